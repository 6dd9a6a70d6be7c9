/*
 * drift.c
 *		What a pull reads, and deletes, because both sides differ.
 *
 * A table that has nothing to tell changes by is compared by hashes, and only the
 * rows that differ are read, once it is big enough for that to pay.  Deleted rows
 * leave nothing behind that could be read; they are found by comparing keys, from
 * time to time, unless the source keeps a log.  And everything is compared if
 * somebody asks for it.
 */
#include "possync.h"

#include "catalog/pg_type.h"
#include "compare.h"
#include "sql.h"
#include "store.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/rls.h"
#include "utils/snapmgr.h"

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

/* Whether there are rows that were to be deleted and could not be. */
static bool
has_kept(PosModel *model)
{
	Oid			types[] = {INT2OID};
	Datum		values[] = {Int16GetDatum(model->id)};

	return pos_store_execute("SELECT 1 FROM @.synchronize_translation"
							 " WHERE model = $1 AND gone IS NOT NULL LIMIT 1",
							 1, types, values, NULL) > 0;
}

/* Whether the remote tells what changed without being told how. */
static bool
tells_changes(PosRun *run)
{
	return (run->connection->ops->capabilities & POS_CAP_CHANGED) != 0;
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
			(run->compare || (model->nchange == 0 && !tells_changes(run))))
			model->compare = POS_COMPARE_ROWS;
		if (run->compare ||
			(model->compare != POS_COMPARE_NOTHING &&
			 model->on_delete != POS_DELETE_IGNORE &&
			 (model->compared_at == 0 || (is_due(model) && has_kept(model)))))
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
	{
		model->compare = POS_COMPARE_NOTHING;
		return;
	}
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

	/* of a row that a policy hides nobody knows whether it is there */
	if (run->before == NULL || model->loaded_to != NULL ||
		!model->has_translations || table->limit > 0 || !table->changed ||
		check_enable_rls(model->relid, InvalidOid, true) == RLS_ENABLED)
		return POS_COMPARE_NOTHING;
	if (table->logged && !run->compare)
		return !deletes ? POS_COMPARE_NOTHING :
			model->compared_at == 0 ? POS_COMPARE_KEYS : POS_COMPARE_LOG;

	/* what happened before the log began, or while it could not tell */
	if (deletes && table->exact == POS_EXACT_LOG &&
		model->compare == POS_COMPARE_NOTHING && !run->anew)
		return POS_COMPARE_KEYS;

	/* as long as this makes one round trip less */
	if (model->compare == POS_COMPARE_ROWS && !run->compare &&
		table->rows >= 0 && table->rows < SMALL_TABLE)
		return deletes ? POS_COMPARE_KEYS : POS_COMPARE_NOTHING;
	return model->compare;
}

/* Reads from the source's log which rows of a model were deleted. */
static PosRowset *
read_gone(PosRun *run, PosModel *model)
{
	PosDigest	digest = {.table = &model->table,.gone = true};
	TupleDesc	desc = CreateTemplateTupleDesc(1);
	PosRowset  *keys;
	PosDigestRow row;
	MemoryContext old;

	TupleDescInitEntry(desc, 1, "key", TEXTOID, -1, 0);
	keys = pos_rowset_create(psprintf("possync_candidates_%d", model->id), desc);
	run->connection->ops->digest(run->connection, &digest);
	old = MemoryContextSwitchTo(run->row);
	while (run->connection->ops->digest_next(run->connection, &row))
	{
		Datum		value = CStringGetTextDatum(row.key);
		bool		isnull = false;

		pos_rowset_put(keys, &value, &isnull);
		MemoryContextReset(run->row);
	}
	MemoryContextSwitchTo(old);
	return keys;
}

/*
 * Finds out by the source's log which rows of a model are gone: those that were
 * linked before the remote's snapshot, see compare.c.
 */
static void
ask_log(PosRun *run, PosModel *model)
{
	PosRowset  *keys = read_gone(run, model);
	PosCursor  *cursor;
	HeapTuple	tuple;
	TupleDesc	desc;
	int			chosen = 0;

	pos_rowset_publish(keys);
	PushActiveSnapshot(run->before);
	cursor = pos_sql_open_whole(psprintf("SELECT c.key,"
										 " coalesce(t.local_key::pg_catalog.text, t.local_key_text)"
										 " FROM possync_candidates_%d c JOIN %s._possync_linked t"
										 " ON t.remote_key%s OPERATOR(pg_catalog.=) c.key%s"
										 " WHERE t.model OPERATOR(pg_catalog.=) %d AND t.gone IS NULL",
										 model->id, pos_store_schema(),
										 model->remote_int ? "" : "_text",
										 model->remote_int ? "::pg_catalog.int8" : "", model->id));
	PopActiveSnapshot();
	while ((tuple = pos_sql_peek(cursor, &desc)) != NULL)
	{
		pos_gone_put(run, model, SPI_getvalue(tuple, desc, 1),
					 SPI_getvalue(tuple, desc, 2));
		pos_sql_take(cursor);
	}
	pos_sql_close(cursor);
	pos_rowset_free(keys);

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
