/*
 * sql.c
 *		Statements on the user's tables, run as the caller.
 *
 * They run under the caller's search_path, because triggers of the user's
 * may count on it; so every operator is written with its schema.
 *
 * SPI leaves its own memory context current; these functions restore that of
 * the caller, who may be working row by row.
 */
#include "possync.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "catalog/pg_am.h"
#include "catalog/pg_class.h"
#include "catalog/pg_operator.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "model.h"
#include "optimizer/plancat.h"
#include "sql.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/plancache.h"
#include "utils/rel.h"
#include "utils/syscache.h"
#include "utils/typcache.h"

/* A row found by an index costs as much as this many rows read in order */
#define LOOKUP_COST 10

/*
 * Returns the equality operator of a field's type as SQL.  Errors if the type
 * has none.
 */
char *
pos_sql_equality(PosField *field)
{
	Oid			operator = lookup_type_cache(field->type,
											 TYPECACHE_EQ_OPR)->eq_opr;
	HeapTuple	tuple;
	Form_pg_operator form;
	char	   *sql;

	if (!OidIsValid(operator))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_FUNCTION),
				 errmsg("field \"%s\" has a type without equality operator: %s",
						field->name, format_type_be(field->type)),
				 errhint("Rows can't be recognised by it.")));
	tuple = SearchSysCache1(OPEROID, ObjectIdGetDatum(operator));
	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for operator %u", operator);
	form = (Form_pg_operator) GETSTRUCT(tuple);
	sql = psprintf("OPERATOR(%s.%s)",
				   quote_identifier(get_namespace_name(form->oprnamespace)),
				   NameStr(form->oprname));
	ReleaseSysCache(tuple);
	return sql;
}

/* Appends the comparison of the key of t, the table, with that of r, staged. */
void
pos_sql_append_key_join(StringInfo sql, PosModel *model)
{
	for (int i = 0; i < model->nkey; i++)
		appendStringInfo(sql, "%st.%s %s r.w%d", i > 0 ? " AND " : "",
						 quote_identifier(model->key[i]->name),
						 pos_sql_equality(model->key[i]), i + 1);
}

/* Returns the columns of a model's key. */
Bitmapset *
pos_sql_key_columns(PosModel *model)
{
	Bitmapset  *columns = NULL;

	for (int i = 0; i < model->nkey; i++)
		columns = bms_add_member(columns, model->key[i]->attnum);
	return columns;
}

/*
 * Runs a statement.  Returns the number of rows processed; a result stands in
 * SPI_tuptable.
 */
uint64
pos_sql_execute(const char *sql, int nargs, Oid *types, Datum *values)
{
	MemoryContext context = CurrentMemoryContext;
	int			rc = SPI_execute_with_args(sql, nargs, types, values, NULL,
										   false, 0);

	if (rc < 0)
		elog(ERROR, "SPI_execute_with_args failed: %s",
			 SPI_result_code_string(rc));
	MemoryContextSwitchTo(context);
	return SPI_processed;
}

/* Whether some index can find a row by the given columns alone. */
static bool
has_index(Relation rel, Bitmapset *columns)
{
	List	   *indexes = RelationGetIndexList(rel);
	bool		found = false;
	ListCell   *lc;

	foreach(lc, indexes)
	{
		Relation	index = index_open(lfirst_oid(lc), AccessShareLock);
		Form_pg_index form = index->rd_index;
		bool		usable = form->indisvalid &&
		index->rd_rel->relam == BTREE_AM_OID &&
		RelationGetIndexPredicate(index) == NIL;

		for (int i = 0; i < form->indnkeyatts && usable; i++)
			usable = bms_is_member(form->indkey.values[i], columns);
		found = found || usable;
		index_close(index, NoLock);
	}
	list_free(indexes);
	return found;
}

/*
 * Before a join of some rows with a table by the given columns (a set of
 * attribute numbers): if it is better done by index look-ups, makes the planner
 * see it so, whose statistics may be missing and whose cost of a random page
 * is that of a disk with a moving arm.  Returns what is to be passed to
 * pos_sql_planned after planning.
 */
int
pos_sql_plan_join(Relation rel, Bitmapset *columns, int64 rows)
{
	static const char *const others[] = {
		"enable_hashjoin", "enable_mergejoin", "enable_seqscan"
	};
	int			nestlevel = NewGUCNestLevel();
	BlockNumber pages;
	double		tuples;
	double		visible;

	if (rel->rd_rel->relkind != RELKIND_RELATION)
		return nestlevel;
	estimate_rel_size(rel, NULL, &pages, &tuples, &visible);
	if (rows * LOOKUP_COST > tuples || !has_index(rel, columns))
		return nestlevel;
	for (int i = 0; i < lengthof(others); i++)
		(void) set_config_option(others[i], "off", PGC_USERSET, PGC_S_SESSION,
								 GUC_ACTION_SAVE, true, 0, false);
	return nestlevel;
}

/* Takes back what pos_sql_plan_join did. */
void
pos_sql_planned(int nestlevel)
{
	AtEOXact_GUC(true, nestlevel);
}

/*
 * Runs a statement that joins some rows with a table, as pos_sql_plan_join
 * wants it planned.  Settings are those of the caller again when it runs, for
 * triggers see them.
 */
uint64
pos_sql_execute_join(const char *sql, Relation rel, Bitmapset *columns,
					 int64 rows)
{
	MemoryContext context = CurrentMemoryContext;
	SPIPlanPtr	plan = SPI_prepare(sql, 0, NULL);
	int			nestlevel = pos_sql_plan_join(rel, columns, rows);
	CachedPlan *planned;
	uint64		processed;
	int			rc;

	if (plan == NULL)
		elog(ERROR, "SPI_prepare failed: %s",
			 SPI_result_code_string(SPI_result));

	/* without parameters this is the plan that execution will use */
	planned = SPI_plan_get_cached_plan(plan);
	if (planned != NULL)
		ReleaseCachedPlan(planned, NULL);
	pos_sql_planned(nestlevel);

	rc = SPI_execute_plan(plan, NULL, NULL, false, 0);
	if (rc < 0)
		elog(ERROR, "SPI_execute_plan failed: %s", SPI_result_code_string(rc));
	processed = SPI_processed;
	SPI_freeplan(plan);
	MemoryContextSwitchTo(context);
	return processed;
}

/*
 * Switches to the owner of a user's table, whose types and functions may run
 * code: a push takes rows of tables that belong to others.  The caller restores
 * with SetUserIdAndSecContext; an error does so by itself.
 */
void
pos_sql_as_owner(Relation rel, Oid *saved_user, int *saved_context)
{
	GetUserIdAndSecContext(saved_user, saved_context);
	SetUserIdAndSecContext(rel->rd_rel->relowner, *saved_context |
						   SECURITY_LOCAL_USERID_CHANGE |
						   SECURITY_RESTRICTED_OPERATION);
}

/*
 * Makes the planner join and group whole tables by hashing.  Nested loops and sorts
 * are what a query over them suffers from if statistics are missing.
 */
static int
plan_whole(void)
{
	static const char *const others[] = {"enable_nestloop", "enable_sort", "jit"};
	int			nestlevel = NewGUCNestLevel();

	for (int i = 0; i < lengthof(others); i++)
		(void) set_config_option(others[i], "off", PGC_USERSET, PGC_S_SESSION,
								 GUC_ACTION_SAVE, true, 0, false);
	return nestlevel;
}

/* Opens the rows of a query over whole tables, as the active snapshot sees them. */
PosCursor *
pos_sql_open_whole(const char *sql)
{
	int			nestlevel = plan_whole();
	PosCursor  *cursor = pos_sql_open(sql, true);

	pos_sql_planned(nestlevel);
	return cursor;
}

/*
 * Runs a query over whole tables that has few rows, as the active snapshot sees them,
 * in several processes if that is allowed, which a cursor cannot have.  Returns the
 * number of rows, which stand in SPI_tuptable.
 */
uint64
pos_sql_execute_whole(const char *sql)
{
	MemoryContext context = CurrentMemoryContext;
	int			nestlevel = plan_whole();
	int			rc = SPI_execute_with_args(sql, 0, NULL, NULL, NULL, true, 0);

	if (rc < 0)
		elog(ERROR, "SPI_execute_with_args failed: %s",
			 SPI_result_code_string(rc));
	pos_sql_planned(nestlevel);
	MemoryContextSwitchTo(context);
	return SPI_processed;
}

/*
 * Gives the rows of a query over a whole table, as the active snapshot sees them, to
 * a receiver.
 */
void
pos_sql_read_whole(const char *sql, DestReceiver *receiver)
{
	MemoryContext context = CurrentMemoryContext;
	int			nestlevel = plan_whole();
	SPIExecuteOptions options = {.read_only = true,.dest = receiver};
	int			rc = SPI_execute_extended(sql, &options);

	if (rc < 0)
		elog(ERROR, "SPI_execute_extended failed: %s", SPI_result_code_string(rc));
	pos_sql_planned(nestlevel);
	MemoryContextSwitchTo(context);
}

/*
 * Opens the rows of a query, to be read by pos_sql_peek; as things are now, or, if
 * it reads only, as the active snapshot sees them.
 */
PosCursor *
pos_sql_open(const char *sql, bool read_only)
{
	MemoryContext context = CurrentMemoryContext;
	PosCursor  *cursor = palloc0(sizeof(PosCursor));

	cursor->portal = SPI_cursor_open_with_args(NULL, sql, 0, NULL, NULL, NULL,
											   read_only, 0);
	MemoryContextSwitchTo(context);
	return cursor;
}

/*
 * Returns the next row without taking it, NULL after the last one.  The row
 * is valid until one more is fetched; desc is its form.
 */
HeapTuple
pos_sql_peek(PosCursor *cursor, TupleDesc *desc)
{
	if (cursor->next == cursor->count)
	{
		MemoryContext context = CurrentMemoryContext;

		if (cursor->table != NULL)
			SPI_freetuptable(cursor->table);
		SPI_cursor_fetch(cursor->portal, true, POS_FETCH_SIZE);
		cursor->table = SPI_tuptable;
		cursor->count = SPI_processed;
		cursor->next = 0;
		MemoryContextSwitchTo(context);
	}
	*desc = cursor->table->tupdesc;
	return cursor->count == 0 ? NULL : cursor->table->vals[cursor->next];
}

/* Takes the row that pos_sql_peek returned. */
void
pos_sql_take(PosCursor *cursor)
{
	cursor->next++;
}

/* Closes a cursor. */
void
pos_sql_close(PosCursor *cursor)
{
	if (cursor->table != NULL)
		SPI_freetuptable(cursor->table);
	SPI_cursor_close(cursor->portal);
	pfree(cursor);
}
