/*
 * write.c
 *		The last step: rows that differ are updated, rows that are not here are
 *		inserted, and nothing else is touched.
 *
 * New rows go the bulk way where the table allows it, else through INSERT.
 * On the bulk way a foreign key is not checked row by row where this is
 * proven: every row it refers to was made in this run or is locked against
 * deletion by us, once for each distinct row, before anything that refers to
 * it is written.  We may delete them all the same, so nothing is proven where
 * triggers or rules of the user's may act in between.
 *
 * The models of a component that refers to itself are inserted as by one
 * statement, so that its foreign keys are checked when all rows are there.
 */
#include "possync.h"

#include "access/table.h"
#include "access/xact.h"
#include "bulk.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "common/hashfn.h"
#include "miscadmin.h"
#include "run.h"
#include "sql.h"
#include "store.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rls.h"
#include "utils/snapmgr.h"

/* Rows gathered before an INSERT or UPDATE is run */
#define STATEMENT_ROWS	10000

/* Rows locked by one statement */
#define LOCK_ROWS		10000

/* Rows of one model that are remembered as locked */
#define MAX_LOCKED		200000

struct PosWriter
{
	Relation	rel;
	PosBulk    *bulk;			/* NULL: new rows go through inserts */
	PosRowset  *inserts;
	PosRowset  *updates;
};

/* The keys of rows that are locked, or are to be */
typedef struct LockedEntry
{
	int64		key;
	char		status;
} LockedEntry;

#define SH_PREFIX locked
#define SH_ELEMENT_TYPE LockedEntry
#define SH_KEY_TYPE int64
#define SH_KEY key
#define SH_HASH_KEY(tb, key) hash_combine(murmurhash32((uint32) ((key) >> 32)), \
										  murmurhash32((uint32) (key)))
#define SH_EQUAL(tb, a, b) ((a) == (b))
#define SH_SCOPE static inline
#define SH_DECLARE
#define SH_DEFINE
#include "lib/simplehash.h"

/* Whether something of the user's may change what we write to a table. */
static bool
has_own_code(Relation rel)
{
	if (rel->rd_rules != NULL)
		return true;
	if (rel->trigdesc != NULL)
		for (int i = 0; i < rel->trigdesc->numtriggers; i++)
			if (!rel->trigdesc->triggers[i].tgisinternal)
				return true;
	return false;
}

/*
 * Whether code of the user's may run after a row of parent was made or locked
 * and before a row of model that refers to it is there.
 */
static bool
may_lose_parent(PosTree *tree, PosModel *parent, PosModel *model)
{
	bool		between = false;
	ListCell   *lc;
	ListCell   *lc2;

	foreach(lc, tree->components)
	{
		PosComponent *component = lfirst(lc);

		between = between || component == parent->component;
		if (between)
			foreach(lc2, component->models)
				if (has_own_code(((PosModel *) lfirst(lc2))->rel))
				return true;
		if (component == model->component)
			break;
	}
	return false;
}

/* Whether the foreign key behind a reference can be proven at all. */
static bool
is_provable(PosTree *tree, PosModel *model, PosReference *reference)
{
	PosModel   *parent = reference->parent;

	return OidIsValid(reference->constraint) && reference->bit >= 0 &&
		parent->local_int && pos_key_is_integer(reference->fields[0]->base) &&
		reference->fields[0]->supplier == reference &&
		parent->rel->rd_rel->relkind == RELKIND_RELATION &&
		!may_lose_parent(tree, parent, model);
}

static void
spare_foreign_keys(PosTree *tree, PosModel *model, PosWriter *writer)
{
	ListCell   *lc;

	foreach(lc, model->references)
	{
		PosReference *reference = lfirst(lc);

		reference->unproven = !is_provable(tree, model, reference);
		if (!reference->unproven)
			pos_bulk_spare(writer->bulk, reference->constraint, true);
	}
}

static bool
component_is_bulk(PosComponent *component)
{
	ListCell   *lc;

	foreach(lc, component->models)
		if (!pos_bulk_possible(((PosModel *) lfirst(lc))->rel))
		return false;
	return true;
}

/* Returns a model's writer, opened when first needed. */
static PosWriter *
open_writer(PosRun *run, PosModel *model)
{
	PosWriter  *writer;
	MemoryContext old;

	if (model->writer != NULL)
		return model->writer;
	old = MemoryContextSwitchTo(run->context);
	writer = model->writer = palloc0(sizeof(PosWriter));
	writer->rel = table_open(model->relid, RowExclusiveLock);
	if (component_is_bulk(model->component))
	{
		AttrNumber *columns = palloc(model->nwritten * sizeof(AttrNumber));

		for (int i = 0; i < model->nwritten; i++)
			columns[i] = model->written[i]->attnum;
		writer->bulk = pos_bulk_open(writer->rel, model->nwritten, columns);
		if (model->component->inner)
			pos_bulk_hold(writer->bulk);
		spare_foreign_keys(run->tree, model, writer);
	}
	else
		writer->inserts = pos_rowset_create(psprintf("possync_insert_%d",
													 model->id), model->stage);
	writer->updates = pos_rowset_create(psprintf("possync_update_%d",
												 model->id), model->stage);
	MemoryContextSwitchTo(old);
	return writer;
}

/*
 * Locks the rows of one model that rows to be written refer to, against
 * deletion and change of key, as the foreign key's own check would.  Returns
 * how many are not there.
 */
static int
lock_rows(PosModel *model)
{
	Oid			saved_user;
	int			saved_context;
	char	   *sql;
	int			missing = 0;

	if (model->nto_lock == 0)
		return 0;
	sql = psprintf("SELECT 1 FROM %s t WHERE t.%s OPERATOR(pg_catalog.=) ANY ($1)"
				   " FOR KEY SHARE OF t", model->table_sql,
				   quote_identifier(model->key[0]->name));
	pos_store_as_owner(model->relid, &saved_user, &saved_context);
	for (int start = 0; start < model->nto_lock; start += LOCK_ROWS)
	{
		int			n = Min(LOCK_ROWS, model->nto_lock - start);
		Datum	   *keys = palloc(n * sizeof(Datum));
		Oid			types[] = {INT8ARRAYOID};
		Datum		values[1];

		for (int i = 0; i < n; i++)
			keys[i] = Int64GetDatum(model->to_lock[start + i]);
		values[0] = PointerGetDatum(construct_array(keys, n, INT8OID, 8,
													FLOAT8PASSBYVAL,
													TYPALIGN_DOUBLE));
		missing += n - pos_sql_execute(sql, 1, types, values);
		SPI_freetuptable(SPI_tuptable);
		pfree(keys);
		pfree(DatumGetPointer(values[0]));
	}
	SetUserIdAndSecContext(saved_user, saved_context);
	model->nto_lock = 0;
	return missing;
}

/* Has every foreign key of a component to this parent checked row by row. */
static void
check_references(PosComponent *component, PosModel *parent)
{
	ListCell   *lc;
	ListCell   *lr;

	foreach(lc, component->models)
	{
		PosModel   *model = lfirst(lc);

		foreach(lr, model->references)
		{
			PosReference *reference = lfirst(lr);

			if (model->writer == NULL || reference->parent != parent ||
				reference->unproven)
				continue;
			reference->unproven = true;
			pos_bulk_spare(model->writer->bulk, reference->constraint, false);
		}
	}
}

/*
 * Locks whatever the rows put so far refer to, then writes them.
 *
 * A row that somebody deleted here may come again only if it belongs to the
 * same component; then the foreign key's own check tells, when all rows are
 * there.
 */
static void
flush_bulk(PosModel *model, PosWriter *writer)
{
	ListCell   *lc;

	foreach(lc, model->references)
	{
		PosModel   *parent = ((PosReference *) lfirst(lc))->parent;
		int			missing = lock_rows(parent);

		if (missing > 0 && parent->component != model->component)
			ereport(ERROR,
					(errcode(ERRCODE_FOREIGN_KEY_VIOLATION),
					 errmsg("rows of table %s that new rows refer to were deleted here",
							parent->name),
					 errdetail("%d rows are missing.", missing),
					 errhint("The next pull reads them again.")));
		if (missing > 0)
			check_references(model->component, parent);
	}
	pos_bulk_flush(writer->bulk);
}

/*
 * Puts a row on the list of those to be locked, once.  Returns false where
 * there are too many.
 */
static bool
list_for_lock(PosRun *run, PosModel *model, int64 key)
{
	bool		found;

	if (model->locked == NULL)
		model->locked = locked_create(run->context, 64, NULL);
	if (model->locked->members >= MAX_LOCKED)
		return false;
	locked_insert(model->locked, key, &found);
	if (found)
		return true;
	if (model->nto_lock == model->maxto_lock)
	{
		model->maxto_lock = Max(model->maxto_lock * 2, 64);
		model->to_lock = model->to_lock == NULL ?
			MemoryContextAlloc(run->context, model->maxto_lock * sizeof(int64)) :
			repalloc(model->to_lock, model->maxto_lock * sizeof(int64));
	}
	model->to_lock[model->nto_lock++] = key;
	return true;
}

/*
 * Sees to it that the rows a new row refers to are proven to exist, or that
 * its foreign keys are checked after all.
 */
static void
prove_references(PosRun *run, PosModel *model, PosWriter *writer,
				 Datum *values, bool *nulls)
{
	int64		old = DatumGetInt64(values[POS_STAGE_OLD]);
	ListCell   *lc;

	if (old == 0)
		return;
	foreach(lc, model->references)
	{
		PosReference *reference = lfirst(lc);
		PosField   *field = reference->fields[0];

		if (reference->unproven ||
			(old & (INT64CONST(1) << reference->bit)) == 0)
			continue;
		if (!list_for_lock(run, reference->parent,
						   DatumGetInt64(pos_key_from_integer(field->base,
															  values[field->staged]))))
		{
			flush_bulk(model, writer);
			reference->unproven = true;
			pos_bulk_spare(writer->bulk, reference->constraint, false);
		}
	}
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
 * Inserts the gathered rows of some models as one statement: an INSERT for a
 * single one, else all of them as parts of one WITH.
 */
static void
run_inserts(PosRun *run, List *models)
{
	StringInfoData sql;
	ListCell   *lc;

	pos_translation_flush(run);
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

		if (has_own_code(model->rel))
			reject_suppressed(run, model, model->writer->inserts);
		pos_rowset_clear(model->writer->inserts);
	}
}

/* Takes a row to be inserted. */
static void
insert(PosRun *run, PosModel *model, Datum *values, bool *nulls)
{
	PosWriter  *writer = open_writer(run, model);

	if (writer->bulk != NULL)
	{
		if (model->component->inner && !model->component->held)
		{
			AfterTriggerBeginQuery();
			model->component->held = true;
		}
		prove_references(run, model, writer, values, nulls);
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

/*
 * Takes a new row, bound and translated, whose translation exists.  It is
 * written by the next flush at the latest.
 */
void
pos_write_create(PosRun *run, PosModel *model, Datum *values, bool *nulls)
{
	insert(run, model, values, nulls);
}

static void
run_updates(PosModel *model, PosWriter *writer)
{
	int64		n = pos_rowset_count(writer->updates);
	int64		done;

	if (n == 0)
		return;
	done = pos_update_rows(model, writer->updates);
	model->counts.updated += done;
	if (done < n)
	{
		model->counts.left_out += n - done;
		ereport(WARNING,
				(errmsg("a trigger, rule or policy of table %s kept " INT64_FORMAT " rows from being updated",
						model->name, n - done)));
	}
	pos_rowset_clear(writer->updates);
}

/* Takes a row that differs from its local one. */
static void
update(PosRun *run, PosModel *model, Datum *values, bool *nulls)
{
	PosWriter  *writer = open_writer(run, model);

	pos_rowset_put(writer->updates, values, nulls);
	if (pos_rowset_count(writer->updates) >= STATEMENT_ROWS &&
		!model->component->inner)
		run_updates(model, writer);
}

/* Opens the numbers of known rows that differ from the local ones. */
static PosCursor *
open_differences(PosModel *model)
{
	StringInfoData sql;

	initStringInfo(&sql);
	appendStringInfo(&sql, "SELECT r.n, t.%s IS NULL FROM possync_known_%d r"
					 " LEFT JOIN %s t ON ",
					 quote_identifier(model->key[0]->name), model->id,
					 model->table_sql);
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
	return pos_sql_open(sql.data);
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
pos_write_pretend(PosRun *run, PosModel *model, Datum *values, bool *nulls)
{
	model->counts.updated++;
	remember_changed(run, model, values, nulls);
}

/* Takes one known row that differs, or is missing here. */
static void
take_difference(PosRun *run, PosModel *model, bool missing, Datum *values,
				bool *nulls)
{
	if (missing &&
		check_enable_rls(model->relid, InvalidOid, true) == RLS_ENABLED)
	{
		pos_quarantine_reject(run, model, values[POS_STAGE_REMOTE], "suppressed",
							  "its local row is not there, or a policy hides it",
							  NIL, values, nulls);
		return;
	}
	if (missing)
		model->counts.created++;
	else if (run->dry)
		model->counts.updated++;
	if (run->dry)
		remember_changed(run, model, values, nulls);
	else if (missing)
		insert(run, model, values, nulls);
	else
		update(run, model, values, nulls);
}

/*
 * Compares the known rows of a model with the local ones, byte by byte, takes
 * those that differ and empties the set.  They are written by the next flush
 * at the latest.
 */
void
pos_write_compare(PosRun *run, PosModel *model)
{
	PosCursor  *differences;
	HeapTuple	tuple;
	TupleDesc	desc;
	int64		position = 0;
	int			nestlevel;
	Datum	   *values;
	bool	   *nulls;

	if (pos_rowset_count(model->known) == 0)
		return;
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
		take_difference(run, model,
						DatumGetBool(SPI_getbinval(tuple, desc, 2, &isnull)),
						values, nulls);
		pos_sql_take(differences);
	}
	pos_sql_close(differences);
	pos_rowset_clear(model->known);
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

/* Frees what writing a model needed. */
void
pos_write_close(PosModel *model)
{
	PosWriter  *writer = model->writer;

	if (writer == NULL)
		return;
	if (writer->bulk != NULL)
		pos_bulk_close(writer->bulk);
	pos_rowset_free(writer->inserts);
	pos_rowset_free(writer->updates);
	table_close(writer->rel, NoLock);
	model->writer = NULL;
}

static void
flush_updates(PosComponent *component)
{
	ListCell   *lc;

	foreach(lc, component->models)
	{
		PosModel   *model = lfirst(lc);

		if (model->writer != NULL)
			run_updates(model, model->writer);
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
		flush_updates(component);
	flush_bulks(component);
	flush_inserts(run, component);
	if (component->inner)
		flush_updates(component);
}
