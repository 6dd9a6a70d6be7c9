/*
 * update.c
 *		Rows that differ are updated, one by one below SQL where the table allows it,
 *		else by one statement; also where they exchange the values of unique columns.
 *
 * A unique constraint that is not deferrable is checked row by row, so rows
 * that swap their values, or hand them on in the wrong order, cannot be updated
 * by one UPDATE although what it would leave behind is fine.  When that happens,
 * and only then, one column of each such constraint is first set aside: to
 * null, to a number below all others, or to a text that nobody uses.  Where
 * this cannot be done, or does not help, the error stands as it was.
 */
#include "possync.h"

#include "access/xact.h"
#include "amend.h"
#include "catalog/pg_index.h"
#include "catalog/pg_type.h"
#include "run.h"
#include "sql.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/relcache.h"
#include "utils/resowner.h"
#include "utils/syscache.h"

/* Appends which row of the table is which gathered one. */
static void
append_source(StringInfo sql, PosModel *model)
{
	appendStringInfo(sql, " FROM possync_update_%d r WHERE ", model->id);
	pos_sql_append_key_join(sql, model);
}

static char *
update_statement(PosModel *model)
{
	StringInfoData sql;

	initStringInfo(&sql);
	appendStringInfo(&sql, "UPDATE %s t SET ", model->table_sql);
	for (int i = model->nkey; i < model->nwritten; i++)
		appendStringInfo(&sql, "%s%s = r.w%d", i > model->nkey ? ", " : "",
						 quote_identifier(model->written[i]->name), i + 1);
	append_source(&sql, model);
	return sql.data;
}

/*
 * Returns a value that sets a field of a gathered row aside, as SQL, or NULL:
 * there is none that is sure to be free.
 */
static char *
value_aside(PosModel *model, PosField *field, bool null_is_free)
{
	char	   *type = format_type_with_typemod(field->type, field->typmod);
	char		category;
	bool		preferred;

	if (!field->notnull && null_is_free)
		return "NULL";
	if (field->supplier != NULL)
		return NULL;
	get_type_category_preferred(field->base, &category, &preferred);
	switch (category)
	{
		case TYPCATEGORY_STRING:
			return psprintf("CAST(pg_catalog.concat('~', r.n) AS %s)", type);
		case TYPCATEGORY_NUMERIC:
			return psprintf("CAST((SELECT LEAST(pg_catalog.min(x.%s), 0) FROM %s x)"
							" OPERATOR(pg_catalog.-) r.n AS %s)",
							quote_identifier(field->name), model->table_sql, type);
		default:
			return NULL;
	}
}

/* Appends the assignment that makes room in one index, if there is any. */
static void
append_aside(StringInfo sql, PosModel *model, Form_pg_index index)
{
	for (int i = model->nkey; i < model->nwritten; i++)
	{
		PosField   *field = model->written[i];
		char	   *value;

		for (int k = 0; k < index->indnkeyatts; k++)
		{
			if (index->indkey.values[k] != field->attnum)
				continue;
			value = value_aside(model, field, !index->indnullsnotdistinct);
			if (value == NULL)
				continue;
			appendStringInfo(sql, "%s%s = %s", sql->len > 0 ? ", " : "",
							 quote_identifier(field->name), value);
			return;
		}
	}
}

/*
 * Returns the statement that sets aside what the unique columns of gathered
 * rows hold, or NULL: no such constraint stands in the way of an update.
 */
static char *
aside_statement(PosModel *model)
{
	StringInfoData assignments;
	StringInfoData sql;
	ListCell   *lc;

	initStringInfo(&assignments);
	foreach(lc, RelationGetIndexList(model->rel))
	{
		HeapTuple	tuple = SearchSysCache1(INDEXRELID,
											ObjectIdGetDatum(lfirst_oid(lc)));
		Form_pg_index index;

		if (!HeapTupleIsValid(tuple))
			elog(ERROR, "cache lookup failed for index %u", lfirst_oid(lc));
		index = (Form_pg_index) GETSTRUCT(tuple);
		if (index->indisunique && index->indimmediate)
			append_aside(&assignments, model, index);
		ReleaseSysCache(tuple);
	}
	if (assignments.len == 0)
		return NULL;
	initStringInfo(&sql);
	appendStringInfo(&sql, "UPDATE %s t SET %s", model->table_sql,
					 assignments.data);
	append_source(&sql, model);
	return sql.data;
}

static int64
execute(PosModel *model, PosRowset *rows, const char *statement)
{
	pos_rowset_publish(rows);
	return pos_sql_execute_join(statement, model->rel,
								pos_sql_key_columns(model),
								pos_rowset_count(rows));
}

/* Updates the rows of a set; returns how many. */
static int64
update(PosModel *model, PosRowset *rows, ItemPointer seen)
{
	return pos_amend_possible(model) ? pos_amend_rows(model, rows, seen) :
		execute(model, rows, update_statement(model));
}

/*
 * Updates the rows of a set in a subtransaction, after a statement that may be NULL.
 * Returns the error that it failed with, or NULL.
 */
static ErrorData *
attempt(PosModel *model, PosRowset *rows, ItemPointer seen, const char *aside,
		int64 *done)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	ErrorData  *volatile error = NULL;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		if (aside != NULL)
			(void) execute(model, rows, aside);
		*done = update(model, rows, seen);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	return error;
}

/*
 * Updates the rows of a set, which has the name possync_update_<model>.  seen is
 * that of pos_amend_rows, or NULL.  Returns how many the table's triggers, rules and
 * policies let through.
 */
int64
pos_update_rows(PosModel *model, PosRowset *rows, ItemPointer seen)
{
	char	   *aside = aside_statement(model);
	int64		done;
	ErrorData  *error;

	if (aside == NULL)
		return update(model, rows, seen);
	error = attempt(model, rows, seen, NULL, &done);
	if (error != NULL && error->sqlerrcode == ERRCODE_UNIQUE_VIOLATION)
	{
		ErrorData  *second = attempt(model, rows, NULL, aside, &done);

		/* what was in the way at first tells more, unless we were stopped */
		if (second == NULL || ERRCODE_TO_CATEGORY(second->sqlerrcode) ==
			ERRCODE_TO_CATEGORY(ERRCODE_QUERY_CANCELED))
			error = second;
	}
	if (error != NULL)
		ReThrowError(error);
	return done;
}
