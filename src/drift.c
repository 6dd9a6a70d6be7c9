/*
 * drift.c
 *		What a pull reads, and deletes, because both sides differ.
 *
 * A table that has nothing to tell changes by is compared by hashes, and only the
 * rows that differ are read, once it is big enough for that to pay.  Deleted rows
 * leave nothing behind that could be read; they are found by comparing keys, from
 * time to time, unless the source keeps a log.  And everything is compared if somebody asks for it.
 */
#include "possync.h"

#include "compare.h"

/* A table that has fewer rows is read as a whole */
#define SMALL_TABLE		1000

/* If more rows differ, all are read */
#define MOST_CHOSEN		10000

/* Whether it is time to look for deleted rows. */
static bool
is_due(PosModel *model)
{
	return model->compared_at == 0 || pos_compare_interval == 0 ||
		(pos_compare_interval > 0 &&
		 TimestampDifferenceExceeds(Min(model->compared_at, GetCurrentTimestamp()),
									Max(model->compared_at, GetCurrentTimestamp()),
									pos_compare_interval * 1000));
}

/* Decides, before the remote's snapshot is taken, which models are compared. */
void
pos_drift_plan(PosRun *run)
{
	ListCell   *lc;

	if ((run->connection->ops->capabilities & POS_CAP_DIGEST) == 0)
		return;
	foreach(lc, run->tree->models)
	{
		PosModel   *model = lfirst(lc);

		if (model->on_unknown == POS_IGNORE || model->rel == NULL ||
			model->loaded_to != NULL)
			continue;
		if (model->on_delete != POS_DELETE_IGNORE &&
			(run->anew || run->compare || is_due(model)))
			model->compare = POS_COMPARE_KEYS;
		/* without a source it has not been read as it is configured now */
		if (!run->anew && model->source != NULL &&
			(run->compare || model->nchange == 0))
			model->compare = POS_COMPARE_ROWS;
		if (run->compare)
			model->table.compared = POS_COMPARED_ALWAYS;
		else if (model->compare != POS_COMPARE_NOTHING)
			model->table.compared = POS_COMPARED_UNLESS_LOGGED;
		if (run->before == NULL && (model->compare != POS_COMPARE_NOTHING ||
									model->on_delete != POS_DELETE_IGNORE))
			pos_compare_begin(run);
	}
}

/* Takes a row that differs: it is read, or deleted. */
static void
take(PosRun *run, PosModel *model, PosDifferent *different, void *argument)
{
	int		   *chosen = argument;
	MemoryContext old;

	if (different->kind == POS_MISSING_THERE)
	{
		if (model->on_delete != POS_DELETE_IGNORE)
			pos_gone_put(run, model, different->remote, different->local);
		return;
	}
	if (different->kind == POS_DIFFERENT && different->matched &&
		!model->update_matched)
		return;
	old = MemoryContextSwitchTo(run->context);
	if (different->kind == POS_MISSING_HERE && different->local != NULL)
		model->back = lappend(model->back, pstrdup(different->remote));
	if (++*chosen <= MOST_CHOSEN)
		pos_stage_retry(model, different->remote);
	MemoryContextSwitchTo(old);
}

/*
 * Compares a model.  Another source than last time has to be read first: what is
 * not there may be on its way.
 */
static void
compare(PosRun *run, PosModel *model)
{
	PosTable   *table = &model->table;
	int			chosen = 0;

	if (model->source == NULL ||
		strcmp(model->source, run->snapshot.source) != 0)
		return;
	pos_compare_model(run, model, model->compare == POS_COMPARE_ROWS ?
					  POS_CONTENT_HASH : POS_CONTENT_KEY,
					  model->on_unknown == POS_MATCH_ONLY, NULL, take, &chosen);
	if (chosen > MOST_CHOSEN)
		table->scope = POS_SCOPE_ALL;
	else if (model->compare == POS_COMPARE_ROWS && model->nchange == 0)
	{
		table->scope = POS_SCOPE_CHOSEN;
		table->changed = table->nretry > 0;
	}
}

/* Decides how a model is compared, now that its table is known. */
static PosCompare
choose(PosRun *run, PosModel *model)
{
	PosTable   *table = &model->table;
	bool		deletes = model->on_delete != POS_DELETE_IGNORE;

	if (!model->has_translations || table->limit > 0 || !table->changed)
		return POS_COMPARE_NOTHING;
	if (table->logged && !run->compare)
		return deletes ? POS_COMPARE_LOG : POS_COMPARE_NOTHING;

	/* as long as this makes one round trip less */
	if (model->compare == POS_COMPARE_ROWS && !run->compare &&
		table->rows >= 0 && table->rows < SMALL_TABLE)
		return deletes ? POS_COMPARE_KEYS : POS_COMPARE_NOTHING;
	return model->compare;
}

/* Finds out by the source's log which rows of a model were deleted. */
static void
ask_log(PosRun *run, PosModel *model)
{
	PosDigest	digest = {.table = &model->table,.gone = true};
	PosDigestRow row;
	int			chosen = 0;

	run->connection->ops->digest(run->connection, &digest);
	while (run->connection->ops->digest_next(run->connection, &row))
	{
		Datum		remote = pos_key_from_string(row.key, model->remote_int);
		Datum		local;
		uint8		known;

		if (pos_translation_find(run, model, remote, &local, &known) == POS_FOUND &&
			(known & POS_KNOWN_GONE) == 0)
			pos_gone_put(run, model, row.key,
						 pos_key_string(local, model->local_int));
	}

	/* which of those that were deleted before are there again */
	pos_compare_model(run, model, POS_CONTENT_KEY, true, "t.gone IS NOT NULL", take,
					  &chosen);
}

/*
 * Compares the models that are to be, in the remote's snapshot, and decides by
 * that which of their rows are read, and which are gone.
 */
void
pos_drift_find(PosRun *run)
{
	ListCell   *lc;

	foreach(lc, run->tree->models)
	{
		PosModel   *model = lfirst(lc);

		model->compare = choose(run, model);
		if (model->compare == POS_COMPARE_LOG)
			ask_log(run, model);
		else if (model->compare != POS_COMPARE_NOTHING)
			compare(run, model);
	}
	if (run->before != NULL)
		pos_compare_end(run);
}
