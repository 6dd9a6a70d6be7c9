/*
 * known.c
 *		Rows that are linked with a local one: what differs from it is updated, what
 *		is the same is not touched.
 *
 * A row is compared as it comes, by a look-up, and so are those that are gathered
 * because they refer to others of their component.  Where only SQL knows what may
 * be seen (policies, rights on columns, partitions), or something is queued for
 * being pushed (conflict.c), they are compared by one statement.  Changes of the
 * user's are to be seen until then, so rows of queued tables are always gathered.
 */
#include "possync.h"

#include "amend.h"
#include "lookup.h"
#include "queue.h"
#include "run.h"
#include "sql.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/rls.h"

/* Opens the numbers of known rows that differ from the local ones. */
static PosCursor *
open_differences(PosModel *model)
{
	StringInfoData sql;

	initStringInfo(&sql);
	appendStringInfo(&sql, "SELECT r.n, t.%s IS NULL",
					 quote_identifier(model->key[0]->name));
	pos_conflict_append_state(&sql, model);
	appendStringInfo(&sql, " FROM possync_known_%d r LEFT JOIN %s t ON ",
					 model->id, model->table_sql);
	pos_sql_append_key_join(&sql, model);
	appendStringInfo(&sql, " WHERE t.%s IS NULL",
					 quote_identifier(model->key[0]->name));
	if (model->nwritten > model->nkey)
	{
		appendStringInfoString(&sql, " OR ROW(");
		for (int i = model->nkey; i < model->nwritten; i++)
			appendStringInfo(&sql, "%st.%s", i > model->nkey ? ", " : "",
							 quote_identifier(model->written[i]->name));
		appendStringInfoString(&sql, ")::pg_catalog.record"
							   " OPERATOR(pg_catalog.*<>) ROW(");
		for (int i = model->nkey; i < model->nwritten; i++)
			appendStringInfo(&sql, "%sr.w%d", i > model->nkey ? ", " : "", i + 1);
		appendStringInfoString(&sql, ")::pg_catalog.record");
	}
	appendStringInfoString(&sql, " ORDER BY r.n");
	return pos_sql_open(sql.data, false);
}

/*
 * Takes a known row that a dry run would write, so that unknown rows are
 * matched with what would stand in its place.
 */
static void
remember_changed(PosRun *run, PosModel *model, Datum *values, bool *nulls)
{
	MemoryContext old = MemoryContextSwitchTo(run->context);

	if (model->changed == NULL)
		model->changed = pos_rowset_create(psprintf("possync_changed_%d",
													model->id), model->stage);
	pos_rowset_put(model->changed, values, nulls);
	MemoryContextSwitchTo(old);
}

/* Takes a known row that a dry run knows to differ without comparing. */
void
pos_known_pretend(PosRun *run, PosModel *model, Datum *values, bool *nulls)
{
	model->counts.updated++;
	remember_changed(run, model, values, nulls);
}

/*
 * Takes one known row that differs, or is missing here.  seen tells where the local
 * one was found, if that is known.
 */
static void
take_difference(PosRun *run, PosModel *model, bool missing, ItemPointer seen,
				Datum *values, bool *nulls)
{
	if (missing &&
		check_enable_rls(model->relid, InvalidOid, true) == RLS_ENABLED)
	{
		pos_quarantine_reject(run, model, values[POS_STAGE_REMOTE], "suppressed",
							  "its local row is not there, or a policy hides it",
							  NIL, values, nulls);
		return;
	}
	if (missing && model->unlinks)
	{
		pos_translation_remove(run, model, values[POS_STAGE_REMOTE]);
		nulls[POS_STAGE_LOCAL] = true;
		values[POS_STAGE_N] = Int64GetDatum(pos_rowset_count(model->unknown) + 1);
		pos_rowset_put(model->unknown, values, nulls);
		return;
	}
	if (missing)
		model->counts.created++;
	else if (run->dry)
		model->counts.updated++;
	if (run->dry)
		remember_changed(run, model, values, nulls);
	else if (missing)
		pos_write_create(run, model, values, nulls);
	else
		pos_write_update(run, model, seen, values, nulls);
}

/*
 * Makes ready for the known rows of a model.  With unlink, those that are not here
 * any more are unlinked and put with the unknown ones, since they may have come
 * again under another key.
 */
void
pos_known_begin(PosRun *run, PosModel *model, bool unlink)
{
	model->unlinks = unlink;
	model->looks_up = !run->careful && pos_amend_comparable(model);
	model->streams = model->looks_up && !model->component->inner &&
		!pos_queue_is_captured(model->rel);
}

/* Closes what comparing has opened. */
void
pos_known_end(PosModel *model)
{
	pos_lookup_close(model->lookup);
	model->lookup = NULL;
}

/*
 * Opens the table for look-ups, if that has not been done: not before it is known
 * that there are any, as nobody may have an index open that is to be built anew.
 */
static bool
open_lookup(PosRun *run, PosModel *model)
{
	MemoryContext old;

	if (model->lookup == NULL && model->looks_up)
	{
		old = MemoryContextSwitchTo(run->context);
		model->lookup = pos_lookup_open(model);
		MemoryContextSwitchTo(old);
		model->looks_up = model->lookup != NULL;
	}
	return model->looks_up;
}

/*
 * Finds the local one of a row.  What is not there may have been made since the
 * lookup was opened, and found by a match.
 */
static TupleTableSlot *
look_up(PosModel *model, Datum *values)
{
	Datum	   *key = &values[POS_STAGE_FIRST];
	TupleTableSlot *slot = pos_lookup_find(model->lookup, key);

	if (slot == NULL && pos_lookup_renew(model->lookup))
		slot = pos_lookup_find(model->lookup, key);
	return slot;
}

/* Compares one row with the local one, byte by byte. */
static void
compare_row(PosRun *run, PosModel *model, Datum *values, bool *nulls)
{
	TupleTableSlot *slot = look_up(model, values);

	if (slot != NULL && pos_amend_is_same(model, slot, values, nulls))
		model->counts.unchanged++;
	else
		take_difference(run, model, slot == NULL,
						slot == NULL ? NULL : &slot->tts_tid, values, nulls);
}

/*
 * Takes a known row.  If it differs it is written by the next flush after
 * pos_known_compare at the latest.
 */
void
pos_known_take(PosRun *run, PosModel *model, Datum *values, bool *nulls)
{
	if (model->streams && open_lookup(run, model))
		compare_row(run, model, values, nulls);
	else
	{
		values[POS_STAGE_N] = Int64GetDatum(pos_rowset_count(model->known) + 1);
		nulls[POS_STAGE_N] = false;
		pos_rowset_put(model->known, values, nulls);
	}
}

/* Compares the gathered rows one by one. */
static void
compare_by_lookups(PosRun *run, PosModel *model)
{
	Datum	   *values;
	bool	   *nulls;

	pos_rowset_rewind(model->known);
	while (pos_rowset_next(model->known, &values, &nulls))
	{
		MemoryContext old;

		MemoryContextReset(run->row);
		old = MemoryContextSwitchTo(run->row);
		compare_row(run, model, values, nulls);
		MemoryContextSwitchTo(old);
	}
}

/* Compares the gathered rows by one statement. */
static void
compare_by_sql(PosRun *run, PosModel *model)
{
	PosCursor  *differences;
	HeapTuple	tuple;
	TupleDesc	desc;
	int64		position = 0;
	int			nestlevel;
	int			state;
	Datum	   *values;
	bool	   *nulls;

	pos_rowset_publish(model->known);
	nestlevel = pos_sql_plan_join(model->rel, pos_sql_key_columns(model),
								  pos_rowset_count(model->known));
	differences = open_differences(model);
	pos_sql_planned(nestlevel);
	pos_rowset_rewind(model->known);
	model->counts.unchanged += pos_rowset_count(model->known);
	while ((tuple = pos_sql_peek(differences, &desc)) != NULL)
	{
		bool		isnull;
		int64		differs = DatumGetInt64(SPI_getbinval(tuple, desc, 1,
														  &isnull));

		for (; position < differs; position++)
			pos_rowset_next(model->known, &values, &nulls);
		model->counts.unchanged--;
		state = DatumGetInt32(SPI_getbinval(tuple, desc, 3, &isnull));
		if (isnull || pos_conflict_decide(run, model, state, values, nulls))
			take_difference(run, model,
							DatumGetBool(SPI_getbinval(tuple, desc, 2, &isnull)),
							NULL, values, nulls);
		pos_sql_take(differences);
	}
	pos_sql_close(differences);
}

/*
 * Compares the known rows that are gathered, takes those that differ and empties
 * the set.  They are written by the next flush at the latest.
 */
void
pos_known_compare(PosRun *run, PosModel *model)
{
	if (pos_rowset_count(model->known) == 0)
		return;
	if (!pos_conflict_load(run, model) && open_lookup(run, model))
		compare_by_lookups(run, model);
	else
		compare_by_sql(run, model);
	pos_rowset_free(model->pending);
	model->pending = NULL;
	pos_rowset_clear(model->known);
}
