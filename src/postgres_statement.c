/*
 * postgres_statement.c
 *		The statements that carry out the steps of a write.
 *
 * Every step is one statement with one parameter, the rows as JSON objects of
 * strings: PostgreSQL's own functions turn them into rows, so every type travels
 * in its text form and nothing has to be known of it here.  But for JSON itself,
 * which those functions would take for a string.
 *
 * Needs INSERT, SELECT, UPDATE, DELETE as used, and USAGE on the sequences of
 * keys; nothing is installed at the remote.
 */
#include "postgres.h"

#include "access/transam.h"
#include "catalog/pg_type.h"
#include "connection_postgres.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"

/* The rows of a step, all at once */
#define READ_ROWS "json_to_recordset($1::pg_catalog.json)"

/* Whether a column's values are JSON, to the functions that read the rows. */
static bool
is_json(PosPgAttribute *attribute)
{
	return attribute->elemtype == '\0' &&
		(strcmp(attribute->basename, "json") == 0 ||
		 strcmp(attribute->basename, "jsonb") == 0);
}

/* Appends name and type of one column of the rows. */
static void
append_column(StringInfo sql, PosPgRelation *relation, const char *column)
{
	PosPgAttribute *attribute = pos_pg_attribute(relation, column);

	if (sql->data[sql->len - 1] != '(')
		appendStringInfoString(sql, ", ");
	appendStringInfo(sql, "%s %s", quote_identifier(column),
					 is_json(attribute) ? "pg_catalog.text" : attribute->typename);
}

/* Appends r: the rows of an expression, with key and columns of a step. */
static void
append_rows(StringInfo sql, PosPgRelation *relation, PosStep *step,
			const char *function)
{
	appendStringInfo(sql, "pg_catalog.%s r(", function);
	for (int i = 0; i < step->table->nkey && step->kind != POS_STEP_MATCH; i++)
		append_column(sql, relation, step->table->columns[i].remote);
	for (int i = 0; i < step->ncolumns; i++)
	{
		bool		is_key = false;

		for (int j = 0; j < step->table->nkey && step->kind != POS_STEP_MATCH; j++)
			is_key = is_key ||
				strcmp(step->columns[i], step->table->columns[j].remote) == 0;
		if (!is_key)
			append_column(sql, relation, step->columns[i]);
	}
	appendStringInfoChar(sql, ')');
}

/* Appends the value of a column of the rows. */
static void
append_value(StringInfo sql, PosPgRelation *relation, const char *column)
{
	PosPgAttribute *attribute = pos_pg_attribute(relation, column);

	appendStringInfo(sql, "r.%s", quote_identifier(column));
	if (is_json(attribute))
		appendStringInfo(sql, "::%s", attribute->typename);
}

static void
append_values(StringInfo sql, PosPgRelation *relation, PosStep *step)
{
	for (int i = 0; i < step->ncolumns; i++)
	{
		appendStringInfoString(sql, i > 0 ? ", " : "");
		append_value(sql, relation, step->columns[i]);
	}
}

/* Appends the key comparison of t with r. */
static void
append_key(StringInfo sql, PosTable *table)
{
	for (int i = 0; i < table->nkey; i++)
	{
		const char *name = quote_identifier(table->columns[i].remote);

		appendStringInfo(sql, "%st.%s = r.%s", i > 0 ? " AND " : "", name, name);
	}
}

static void
append_names(StringInfo sql, const char *prefix, const char *suffix,
			 PosStep *step)
{
	for (int i = 0; i < step->ncolumns; i++)
		appendStringInfo(sql, "%s%s%s%s", i > 0 ? ", " : "", prefix,
						 quote_identifier(step->columns[i]), suffix);
}

/*
 * Appends whether a key made now is that of no row.  A subquery of this kind is an
 * index scan for each key, whatever statistics say.
 */
static void
append_is_free(StringInfo sql, PosPgRelation *relation, PosStep *step)
{
	appendStringInfo(sql, "(SELECT true FROM %s r WHERE ROW(", relation->sql);
	append_names(sql, "r.", "", step);
	appendStringInfoString(sql, ") = ROW(");
	append_names(sql, "k.", "", step);
	appendStringInfoString(sql, ") LIMIT 1) IS NULL");
}

/*
 * Appends whether no row has a key between the least and the greatest one made now;
 * one index scan for all.
 */
static void
append_all_are_free(StringInfo sql, PosPgRelation *relation, PosStep *step)
{
	const char *key = quote_identifier(step->columns[0]);

	appendStringInfo(sql, "coalesce((SELECT r.%s FROM %s r WHERE r.%s >="
					 " (SELECT pg_catalog.min(k.%s) FROM k) ORDER BY r.%s LIMIT 1) >"
					 " (SELECT pg_catalog.max(k.%s) FROM k), true)",
					 key, relation->sql, key, key, key, key);
}

/*
 * The statement that makes keys: the defaults of their columns.  Rows may be
 * there that did not ask the sequence: their keys are left out.
 */
static void
append_keys(StringInfo sql, PosPgRelation *relation, PosStep *step)
{
	appendStringInfoString(sql, "WITH k AS (SELECT ");
	for (int i = 0; i < step->ncolumns; i++)
	{
		PosPgAttribute *attribute = pos_pg_attribute(relation, step->columns[i]);

		if (attribute->made_by == NULL)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("key column \"%s\" of remote table %s has no default",
							step->columns[i], step->table->remote),
					 errhint("Let its value be copied: possync_set_field('%s', '%s', copy => true).",
							 step->table->local, step->columns[i])));
		appendStringInfo(sql, "%s(%s)::%s AS %s", i > 0 ? ", " : "",
						 attribute->made_by, attribute->typename,
						 quote_identifier(step->columns[i]));
	}
	appendStringInfo(sql, " FROM pg_catalog.generate_series(1, %d)) SELECT ",
					 step->nrows);
	append_names(sql, "k.", "::text", step);
	appendStringInfoString(sql, " FROM k");
	if (step->ncolumns < step->table->nkey)
		return;					/* the rest of the key is not known here */
	appendStringInfoString(sql, " WHERE ");
	if (step->table->nkey == 1 && step->table->columns[0].type == INT8OID)
	{
		append_all_are_free(sql, relation, step);
		appendStringInfoString(sql, " OR ");
	}
	append_is_free(sql, relation, step);
}

/* Appends the comparison of t with the columns of r; null equals null. */
static void
append_same(StringInfo sql, PosPgRelation *relation, PosStep *step)
{
	for (int i = 0; i < step->ncolumns; i++)
	{
		PosPgAttribute *attribute = pos_pg_attribute(relation, step->columns[i]);

		appendStringInfo(sql, "%st.%s %s ", i > 0 ? " AND " : "",
						 quote_identifier(step->columns[i]),
						 attribute->notnull ? "=" : "IS NOT DISTINCT FROM");
		append_value(sql, relation, step->columns[i]);
	}
}

static void
append_match(StringInfo sql, PosPgRelation *relation, PosStep *step)
{
	appendStringInfoString(sql, "SELECT e.n");
	for (int i = 0; i < step->table->nkey; i++)
		appendStringInfo(sql, ", t.%s::text",
						 quote_identifier(step->table->columns[i].remote));
	appendStringInfoString(sql, " FROM pg_catalog.json_array_elements($1::pg_catalog.json)"
						   " WITH ORDINALITY e(j, n), ");
	append_rows(sql, relation, step, "json_to_record(e.j)");
	appendStringInfo(sql, " JOIN %s t ON ", relation->sql);
	append_same(sql, relation, step);
	appendStringInfoString(sql, " ORDER BY e.n");
}

/*
 * The statement that looks for rows with the same values under other keys.  The
 * one before it took the lock, so that it sees what others have made.
 */
static void
append_claim(StringInfo sql, PosPgRelation *relation, PosStep *step)
{
	appendStringInfoString(sql, "SELECT CASE WHEN pg_catalog.count(*) > 0 THEN ('"
						   POS_PG_COMPLAINT "' || pg_catalog.count(*) ||"
						   " ' rows to be made are there by now" POS_PG_COMPLAINT_END "')::int4 END FROM ");
	append_rows(sql, relation, step, READ_ROWS);
	appendStringInfo(sql, " WHERE EXISTS (SELECT FROM %s t WHERE ", relation->sql);
	append_same(sql, relation, step);
	appendStringInfoString(sql, " AND NOT (");
	append_key(sql, step->table);
	appendStringInfoString(sql, "))");
}

/*
 * Returns the type in which a column is compared with what the caller has: the
 * caller's, as its values have been through that, if the remote knows it.
 */
static char *
common_type(PosPgRelation *relation, PosStep *step, int column, Oid *base)
{
	PosTable   *table = step->table;

	for (int i = 0; i < table->ncolumns; i++)
	{
		int32		typmod = table->columns[i].typmod;

		if (strcmp(table->columns[i].remote, step->columns[column]) != 0 ||
			table->columns[i].form != POS_FORM_VALUE)
			continue;
		*base = getBaseTypeAndTypmod(table->columns[i].type, &typmod);
		if (*base < FirstGenbkiObjectId)
			return format_type_extended(*base, typmod,
										FORMAT_TYPE_TYPEMOD_GIVEN |
										FORMAT_TYPE_FORCE_QUALIFY);
	}
	*base = InvalidOid;
	return pos_pg_attribute(relation, step->columns[column])->typename;
}

/* Appends the comparison of a column with what is expected; null equals null. */
static void
append_as_expected(StringInfo sql, PosPgRelation *relation, PosStep *step,
				   int column)
{
	const char *name = quote_identifier(step->columns[column]);
	Oid			base;
	char	   *type = common_type(relation, step, column, &base);

	appendStringInfoString(sql, column > 0 ? " AND " : "");
	if (base == JSONOID || base == JSONBOID)
		appendStringInfo(sql, "t.%s::jsonb IS NOT DISTINCT FROM r.a%d::jsonb",
						 name, column + 1);
	else if (base == NUMERICOID)
		appendStringInfo(sql, "t.%s::%s IS NOT DISTINCT FROM r.a%d",
						 name, type, column + 1);
	else
		appendStringInfo(sql, "ROW(t.%s::%s)::record *= ROW(r.a%d)::record",
						 name, type, column + 1);
}

/* The statement that fails if rows are not as expected, and locks the others. */
static void
append_expect(StringInfo sql, PosPgRelation *relation, PosStep *step)
{
	PosTable   *table = step->table;

	appendStringInfoString(sql, "SELECT ('" POS_PG_COMPLAINT "' || pg_catalog.min(n) || '"
						   POS_PG_COMPLAINT_END "')::int4 FROM (SELECT n FROM (SELECT r.n, ");
	for (int i = 0; i < step->ncolumns; i++)
		append_as_expected(sql, relation, step, i);
	appendStringInfoString(sql, " AS same FROM pg_catalog." READ_ROWS " r(n pg_catalog.text");
	for (int i = 0; i < table->nkey; i++)
		appendStringInfo(sql, ", k%d %s", i + 1,
						 pos_pg_attribute(relation, table->columns[i].remote)->typename);
	for (int i = 0; i < step->ncolumns; i++)
	{
		Oid			base;
		char	   *type = common_type(relation, step, i, &base);
		bool		json = base == JSONOID || base == JSONBOID;

		appendStringInfo(sql, ", a%d %s", i + 1, json ? "pg_catalog.text" : type);
	}
	appendStringInfo(sql, ") JOIN %s t ON ", relation->sql);
	for (int i = 0; i < table->nkey; i++)
		appendStringInfo(sql, "%st.%s = r.k%d", i > 0 ? " AND " : "",
						 quote_identifier(table->columns[i].remote), i + 1);
	appendStringInfoString(sql, " FOR NO KEY UPDATE OF t) l GROUP BY n"
						   " HAVING NOT pg_catalog.bool_or(same)) c");
}

/*
 * Inserts rows.  Those that have not been sent before must all go in, or none:
 * a trigger that drops some would leave half of what belongs together, and a
 * key that somebody has is not theirs.
 */
static void
append_insert(StringInfo sql, PosPgRelation *relation, PosStep *step)
{
	if (!step->again)
		appendStringInfoString(sql, "WITH i AS (");
	appendStringInfo(sql, "INSERT INTO %s (", relation->type);
	append_names(sql, "", "", step);
	appendStringInfoString(sql, ") OVERRIDING SYSTEM VALUE SELECT ");
	append_values(sql, relation, step);
	appendStringInfoString(sql, " FROM ");
	append_rows(sql, relation, step, READ_ROWS);
	if (!step->again)
	{
		appendStringInfo(sql, " RETURNING 1) SELECT CASE pg_catalog.count(*)"
						 " WHEN %d THEN %d ELSE ('" POS_PG_COMPLAINT "' ||"
						 " pg_catalog.count(*) || ' of %d rows were taken, the"
						 " others were dropped by a trigger or a rule" POS_PG_COMPLAINT_END "')::int4 END"
						 " FROM i", step->nrows, step->nrows, step->nrows);
		return;
	}
	appendStringInfoString(sql, " ON CONFLICT (");
	for (int i = 0; i < step->table->nkey; i++)
		appendStringInfo(sql, "%s%s", i > 0 ? ", " : "",
						 quote_identifier(step->table->columns[i].remote));
	appendStringInfoString(sql, ") DO NOTHING");
}

static void
append_update(StringInfo sql, PosPgRelation *relation, PosStep *step)
{
	appendStringInfo(sql, "UPDATE %s t SET ", relation->sql);
	for (int i = 0; i < step->ncolumns; i++)
	{
		appendStringInfo(sql, "%s%s = ", i > 0 ? ", " : "",
						 quote_identifier(step->columns[i]));
		append_value(sql, relation, step->columns[i]);
	}
	appendStringInfoString(sql, " FROM ");
	append_rows(sql, relation, step, READ_ROWS);
	appendStringInfoString(sql, " WHERE ");
	append_key(sql, step->table);
	appendStringInfoString(sql, " AND ROW(");
	append_names(sql, "t.", "", step);
	appendStringInfoString(sql, ")::record *<> ROW(");
	append_values(sql, relation, step);
	appendStringInfoString(sql, ")::record");
}

/* Returns the statement of a step; its parameter are the rows. */
char *
pos_pg_statement(PosPgSession *session, PosStep *step)
{
	PosPgRelation *relation = pos_pg_relation(session, step->table->remote);
	StringInfoData sql;

	initStringInfo(&sql);
	switch (step->kind)
	{
		case POS_STEP_KEYS:
			append_keys(&sql, relation, step);
			break;
		case POS_STEP_MATCH:
			append_match(&sql, relation, step);
			break;
		case POS_STEP_CLAIM:
			append_claim(&sql, relation, step);
			break;
		case POS_STEP_EXPECT:
			append_expect(&sql, relation, step);
			break;
		case POS_STEP_INSERT:
			append_insert(&sql, relation, step);
			break;
		case POS_STEP_UPDATE:
			append_update(&sql, relation, step);
			break;
		case POS_STEP_DELETE:
			appendStringInfo(&sql, "DELETE FROM %s t USING ", relation->sql);
			append_rows(&sql, relation, step, READ_ROWS);
			appendStringInfoString(&sql, " WHERE ");
			append_key(&sql, step->table);
			break;
		case POS_STEP_CALL:
			elog(ERROR, "methods cannot be called");
	}
	return sql.data;
}

/* The statement that lets one after the other claim rows of a table. */
char *
pos_pg_statement_lock(PosPgSession *session, PosStep *step)
{
	PosPgRelation *relation = pos_pg_relation(session, step->table->remote);

	return psprintf("SELECT pg_catalog.pg_advisory_xact_lock("
					"pg_catalog.hashtextextended('possync', %s::pg_catalog.regclass::pg_catalog.oid::pg_catalog.int8))",
					quote_literal_cstr(relation->type));
}

/*
 * The statement that makes sure that rows which were sent again are there: they
 * were passed over if they had arrived, but not for another reason.
 */
char *
pos_pg_statement_presence(PosPgSession *session, PosStep *step)
{
	PosPgRelation *relation = pos_pg_relation(session, step->table->remote);
	StringInfoData sql;

	initStringInfo(&sql);
	appendStringInfo(&sql, "SELECT CASE WHEN pg_catalog.count(*) <> %d THEN ('"
					 POS_PG_COMPLAINT "' || pg_catalog.count(*) || ' of %d rows are"
					 " there, the others were dropped by a trigger or a rule" POS_PG_COMPLAINT_END "')::int4 END FROM ",
					 step->nrows, step->nrows);
	append_rows(&sql, relation, step, READ_ROWS);
	appendStringInfo(&sql, " JOIN %s t ON ", relation->sql);
	append_key(&sql, step->table);
	return sql.data;
}
