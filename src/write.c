/*
 * write.c
 *		The last step: rows that differ are updated, rows that are not here are
 *		inserted.
 *
 * New rows go the bulk way where the table allows it, else through INSERT.  On
 * the bulk way foreign keys are proven instead of checked where prove.c can.
 *
 * The models of a component that refers to itself are inserted as by one
 * statement, so that its foreign keys are checked when all rows are there.
 */
#include "possync.h"

#include "access/table.h"
#include "access/xact.h"
#include "bulk.h"
#include "catalog/pg_class.h"
#include "commands/trigger.h"
#include "compat.h"
#include "miscadmin.h"
#include "progress.h"
#include "rebuild.h"
#include "run.h"
#include "sql.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rls.h"
#include "utils/snapmgr.h"

/* Rows gathered before an INSERT or UPDATE is run */
#define STATEMENT_ROWS	10000

struct PosWriter
{
	Relation	rel;
	PosBulk    *bulk;			/* NULL: new rows go through inserts */
	bool		considered;		/* see consider_rebuild */
	bool		rebuilds;		/* indexes are built by closing */
	PosRowset  *inserts;
	PosRowset  *updates;
	ItemPointer seen;			/* where they were found, see amend.c */
	int64		maxseen;
};

static bool
component_is_bulk(PosComponent *component)
{
	ListCell   *lc;

	foreach(lc, component->models)
		if (!pos_bulk_possible(((PosModel *) lfirst(lc))->rel))
		return false;
	return true;
}

/* Whether a table gets so many new rows that its indexes are built at the end. */
static bool
gets_many(PosModel *model)
{
	return model->counts.created >= POS_REBUILD_ROWS ||
		pos_rebuild_expects(&model->table);
}

/*
 * Leaves the indexes of a table alone until all its rows are there, if it had
 * none, gets many, and nothing looks at them before.  They belong to their owner,
 * who alone may lock them.
 */
static void
consider_rebuild(PosModel *model, PosWriter *writer)
{
	if (writer->considered || !gets_many(model))
		return;
	writer->considered = true;
	if (model->empty && !model->component->inner &&
		pos_compat_owns_table(model->relid, GetUserId()) &&
		!pos_prove_has_code(model->rel) && pos_rebuild_is_plain(model->rel))
		writer->rebuilds = pos_bulk_rebuild(writer->bulk);
}

/* Returns a model's writer, opened when first needed. */
static PosWriter *
open_writer(PosRun *run, PosModel *model)
{
	PosWriter  *writer;
	MemoryContext old;

	if (model->writer != NULL)
		return model->writer;
	pos_progress_phase("writing", model->name);
	old = MemoryContextSwitchTo(run->context);
	writer = model->writer = palloc0(sizeof(PosWriter));
	writer->rel = table_open(model->relid, RowExclusiveLock);
	if (!run->careful && component_is_bulk(model->component))
	{
		AttrNumber *columns = palloc(model->nwritten * sizeof(AttrNumber));

		for (int i = 0; i < model->nwritten; i++)
			columns[i] = model->written[i]->attnum;
		writer->bulk = pos_bulk_open(writer->rel, model->nwritten, columns);
		if (model->component->inner)
			pos_bulk_hold(writer->bulk);
		model->bulk = writer->bulk;
		pos_prove_begin(run, model);
		consider_rebuild(model, writer);
	}
	else
		writer->inserts = pos_rowset_create(psprintf("possync_insert_%d",
													 model->id), model->stage);
	writer->updates = pos_rowset_create(psprintf("possync_update_%d",
												 model->id), model->stage);
	MemoryContextSwitchTo(old);
	return writer;
}

/* Writes the rows put so far, once what they refer to is locked. */
static void
flush_bulk(PosModel *model, PosWriter *writer)
{
	pos_prove_lock(model);
	pos_bulk_flush(writer->bulk);
	consider_rebuild(model, writer);
}

/* Appends the INSERT of a model's gathered rows. */
static void
append_insert(StringInfo sql, PosModel *model)
{
	appendStringInfo(sql, "INSERT INTO %s AS t (",
					 quote_qualified_identifier(get_namespace_name(RelationGetNamespace(model->rel)),
												RelationGetRelationName(model->rel)));
	for (int i = 0; i < model->nwritten; i++)
		appendStringInfo(sql, "%s%s", i > 0 ? ", " : "",
						 quote_identifier(model->written[i]->name));
	appendStringInfoString(sql, ") OVERRIDING SYSTEM VALUE SELECT ");
	for (int i = 0; i < model->nwritten; i++)
		appendStringInfo(sql, "%sr.w%d", i > 0 ? ", " : "", i + 1);
	appendStringInfo(sql, " FROM possync_insert_%d r", model->id);
}

/*
 * Leaves out, and unlinks, the gathered rows that an INSERT did not put into
 * the table because a trigger or rule of the user's decided so.
 */
static void
reject_suppressed(PosRun *run, PosModel *model, PosRowset *inserts)
{
	StringInfoData sql;
	SPITupleTable *table;
	uint64		n;
	int64		position = 0;
	Datum	   *values;
	bool	   *nulls;

	initStringInfo(&sql);
	appendStringInfo(&sql, "SELECT r.n FROM possync_insert_%d r WHERE NOT EXISTS"
					 " (SELECT 1 FROM %s t WHERE ", model->id, model->table_sql);
	pos_sql_append_key_join(&sql, model);
	appendStringInfoString(&sql, ") ORDER BY r.n");
	n = pos_sql_execute(sql.data, 0, NULL, NULL);
	table = SPI_tuptable;

	pos_rowset_rewind(inserts);
	for (uint64 i = 0; i < n; i++)
	{
		bool		isnull;
		int64		suppressed = DatumGetInt64(SPI_getbinval(table->vals[i],
															 table->tupdesc, 1,
															 &isnull));

		for (; position < suppressed; position++)
			pos_rowset_next(inserts, &values, &nulls);
		model->counts.created--;
		pos_quarantine_reject(run, model, values[POS_STAGE_REMOTE], "suppressed",
							  "a trigger, rule or policy of the local table did not let it in",
							  NIL, values, nulls);
		pos_translation_remove(run, model, values[POS_STAGE_REMOTE]);
	}
	SPI_freetuptable(table);
}

/*
 * Checks translated values against their domains; all others have been through
 * an input function or a cast.
 */
static void
check_domains(PosRun *run, PosModel *model, Datum *values, bool *nulls)
{
	ListCell   *lc;

	foreach(lc, model->domains)
	{
		PosField   *field = lfirst(lc);

		domain_check(values[field->staged], nulls[field->staged], field->type,
					 &field->domain, run->context);
	}
}

/* Checks the domains of gathered rows. */
static void
check_gathered(PosRun *run, PosModel *model, PosRowset *rows)
{
	Datum	   *values;
	bool	   *nulls;

	pos_rowset_rewind(rows);
	while (pos_rowset_next(rows, &values, &nulls))
		check_domains(run, model, values, nulls);
}

/*
 * Inserts the gathered rows of some models as one statement: an INSERT for a
 * single one, else all of them as parts of one WITH.
 */
static void
insert_gathered(PosRun *run, void *argument)
{
	List	   *models = argument;
	StringInfoData sql;
	ListCell   *lc;

	if (run->careful)
		foreach(lc, models)
			check_gathered(run, lfirst(lc),
						   ((PosModel *) lfirst(lc))->writer->inserts);
	initStringInfo(&sql);
	if (list_length(models) == 1)
		append_insert(&sql, linitial(models));
	else
	{
		foreach(lc, models)
		{
			appendStringInfo(&sql, "%s i%d AS (",
							 foreach_current_index(lc) == 0 ? "WITH" : ",",
							 foreach_current_index(lc));
			append_insert(&sql, lfirst(lc));
			appendStringInfoChar(&sql, ')');
		}
		appendStringInfoString(&sql, " SELECT 1");
	}
	foreach(lc, models)
		pos_rowset_publish(((PosModel *) lfirst(lc))->writer->inserts);
	(void) pos_sql_execute(sql.data, 0, NULL, NULL);
	foreach(lc, models)
	{
		PosModel   *model = lfirst(lc);

		if (pos_prove_has_code(model->rel))
			reject_suppressed(run, model, model->writer->inserts);
		pos_rowset_clear(model->writer->inserts);
	}
}

/* Inserts the gathered rows of one model. */
static void
insert_model(PosRun *run, void *argument)
{
	insert_gathered(run, list_make1(argument));
}

/* Inserts the gathered rows of some models, of one or of a whole component. */
static void
run_inserts(PosRun *run, List *models)
{
	PosModel   *first = linitial(models);

	pos_translation_flush(run);
	if (!run->careful)
		insert_gathered(run, models);
	else if (!first->component->inner)
		pos_careful_write(run, first, first->writer->inserts, insert_model, true);
	else
	{
		PosRowset **gathered = palloc(list_length(models) * sizeof(PosRowset *));
		ListCell   *lc;

		foreach(lc, models)
			gathered[foreach_current_index(lc)] =
			((PosModel *) lfirst(lc))->writer->inserts;
		pos_careful_write_component(run, models, gathered, insert_gathered,
									insert_model);
	}
}

/*
 * Takes a new row, bound and translated, whose translation exists.  It is
 * written by the next flush at the latest.
 */
void
pos_write_create(PosRun *run, PosModel *model, Datum *values, bool *nulls)
{
	PosWriter  *writer = open_writer(run, model);

	if (!run->careful)
		check_domains(run, model, values, nulls);
	if (writer->bulk != NULL)
	{
		if (model->component->inner && !model->component->held)
		{
			AfterTriggerBeginQuery();
			model->component->held = true;
		}
		pos_prove_row(run, model, values, nulls);
		if (pos_bulk_put(writer->bulk, &values[POS_STAGE_FIRST],
						 &nulls[POS_STAGE_FIRST]))
			flush_bulk(model, writer);
		return;
	}
	values[POS_STAGE_N] = Int64GetDatum(pos_rowset_count(writer->inserts) + 1);
	nulls[POS_STAGE_N] = false;
	pos_rowset_put(writer->inserts, values, nulls);
	if (pos_rowset_count(writer->inserts) >= STATEMENT_ROWS &&
		!model->component->inner)
		run_inserts(run, list_make1(model));
}

static void
update_gathered(PosRun *run, void *argument)
{
	PosModel   *model = argument;
	PosWriter  *writer = model->writer;
	int64		n = pos_rowset_count(writer->updates);
	int64		done;

	if (run->careful)
		check_gathered(run, model, writer->updates);
	done = pos_update_rows(model, writer->updates,
						   run->careful ? NULL : writer->seen);
	model->counts.updated += done;
	if (done < n)
	{
		model->counts.left_out += n - done;
		ereport(WARNING,
				(errmsg(INT64_FORMAT " rows of table %s were not updated",
						n - done, model->name),
				 errdetail("A trigger, rule or policy kept them as they are, or somebody has deleted them meanwhile.")));
	}
	pos_rowset_clear(writer->updates);
}

/* Updates the gathered rows of a model. */
static void
run_updates(PosRun *run, PosModel *model)
{
	PosRowset  *updates = model->writer->updates;

	if (pos_rowset_count(updates) == 0)
		return;
	if (run->careful)
		pos_careful_write(run, model, updates, update_gathered, false);
	else
		update_gathered(run, model);
}

/* Remembers where the next row to be updated was found, NULL if that is not known. */
static void
put_seen(PosRun *run, PosWriter *writer, ItemPointer seen)
{
	int64		n = pos_rowset_count(writer->updates);

	if (n == writer->maxseen)
	{
		writer->maxseen = Max(writer->maxseen * 2, 64);
		writer->seen = writer->seen == NULL ?
			MemoryContextAlloc(run->context, writer->maxseen * sizeof(ItemPointerData)) :
			repalloc_huge(writer->seen, writer->maxseen * sizeof(ItemPointerData));
	}
	if (seen != NULL)
		writer->seen[n] = *seen;
	else
		ItemPointerSetInvalid(&writer->seen[n]);
}

/*
 * Takes a row that differs from its local one, which was found at seen, if that is
 * known.  It is written by the next flush at the latest.
 */
void
pos_write_update(PosRun *run, PosModel *model, ItemPointer seen, Datum *values,
				 bool *nulls)
{
	PosWriter  *writer = open_writer(run, model);

	if (!run->careful)
	{
		check_domains(run, model, values, nulls);
		put_seen(run, writer, seen);
	}
	pos_rowset_put(writer->updates, values, nulls);
	if (pos_rowset_count(writer->updates) >= STATEMENT_ROWS &&
		!model->component->inner)
		run_updates(run, model);
}

/* Inserts what the bulks of a component hold. */
static void
flush_bulks(PosComponent *component)
{
	PosWriter  *any = NULL;
	ListCell   *lc;

	foreach(lc, component->models)
	{
		PosModel   *model = lfirst(lc);

		if (model->writer == NULL || model->writer->bulk == NULL)
			continue;
		flush_bulk(model, model->writer);
		any = model->writer;
	}
	if (component->held)
	{
		component->held = false;
		pos_bulk_fire(any->bulk);
	}
}

/* Inserts what the row sets of a component hold. */
static void
flush_inserts(PosRun *run, PosComponent *component)
{
	List	   *models = NIL;
	ListCell   *lc;

	foreach(lc, component->models)
	{
		PosModel   *model = lfirst(lc);

		if (model->writer != NULL && model->writer->inserts != NULL &&
			pos_rowset_count(model->writer->inserts) > 0)
			models = lappend(models, model);
	}
	if (models != NIL)
		run_inserts(run, models);
}

/* Ends writing a model: its indexes are complete, and what was needed is freed. */
void
pos_write_close(PosModel *model)
{
	PosWriter  *writer = model->writer;

	if (writer == NULL)
		return;
	if (writer->rebuilds)
		pos_progress_phase("indexing", model->name);
	if (writer->bulk != NULL)
		pos_bulk_close(writer->bulk);
	model->bulk = NULL;
	pos_rowset_free(writer->inserts);
	pos_rowset_free(writer->updates);
	if (writer->seen != NULL)
		pfree(writer->seen);
	table_close(writer->rel, NoLock);
	model->writer = NULL;
}

static void
flush_updates(PosRun *run, PosComponent *component)
{
	ListCell   *lc;

	foreach(lc, component->models)
	{
		PosModel   *model = lfirst(lc);

		if (model->writer != NULL)
			run_updates(run, model);
	}
}

/*
 * Writes all rows taken so far for the models of a component: changed ones
 * first, as new ones may want what they give up, unless changed ones may refer
 * to new ones.
 */
void
pos_write_flush(PosRun *run, PosComponent *component)
{
	if (!component->inner)
		flush_updates(run, component);
	flush_bulks(component);
	flush_inserts(run, component);
	if (component->inner)
		flush_updates(run, component);
}
