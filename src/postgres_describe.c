/*
 * postgres_describe.c
 *		What the remote tables look like.
 *
 * Owns the descriptions that a session keeps of remote tables, the query that
 * fetches them, and the comparison with what the caller asks for.  A
 * description is good for building SQL and for nothing else: whether it still
 * holds is found out by asking again, which every read that finds changes does.
 */
#include "postgres.h"

#include "catalog/pg_class.h"
#include "connection_postgres.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/varlena.h"

/* Columns of the query's result */
enum
{
	D_TABLE,
	D_RELKIND,
	D_USAGE,
	D_NAME,
	D_TYPENAME,
	D_TYPE,
	D_TYPMOD,
	D_TYPTYPE,
	D_CATEGORY,
	D_BASENAME,
	D_ELEMTYPE,
	D_NOTNULL,
	D_READABLE,
	D_DEFAULT,
	D_UNIQUE,
	D_ROWS,
	D_VERSIONS,
	D_STILL,
	D_TABLES,
	D_OID,
	D_LOG,
	D_LOG_SCHEMA,
	D_LOG_KEY,
	D_COLUMNS
};

static const char *const describe_sql =
"SELECT t.n, c.relkind, has_schema_privilege(s.oid, 'USAGE'),"
" a.attname, format_type(a.atttypid, a.atttypmod),"
" b.oid, b.typmod, y.typtype, y.typcategory,"
" coalesce(e.typname, y.typname), e.typtype,"
/* nulls from before they were refused are there all the same */
" a.attnotnull AND NOT EXISTS (SELECT FROM pg_constraint v WHERE v.conrelid = c.oid"
" AND v.contype = 'n' AND v.conkey[1] = a.attnum AND NOT v.convalidated),"
" has_column_privilege(c.oid, a.attnum, 'SELECT'),"
/* since PostgreSQL 17 a partition's identity is that of the table that it is a part of */
" CASE WHEN a.attidentity <> '' THEN CASE WHEN has_schema_privilege(o.relnamespace, 'USAGE')"
" THEN format('nextval(%%L)', pg_get_serial_sequence(o.oid::regclass::text, a.attname)) END"
" WHEN a.attgenerated = '' THEN (SELECT pg_get_expr(f.adbin, f.adrelid)"
" FROM pg_attrdef f WHERE f.adrelid = c.oid AND f.adnum = a.attnum) END,"
" (SELECT string_agg(format('%%s/%%s', i.indexrelid, i.indnkeyatts), ' ')"
" FROM pg_index i WHERE i.indrelid = c.oid AND i.indisunique AND i.indisvalid"
" AND i.indpred IS NULL AND i.indexprs IS NULL"
" AND a.attnum = ANY (i.indkey[0:i.indnkeyatts - 1])),"
" CASE WHEN c.reltuples > 0 OR c.relkind NOT IN ('r', 'm') THEN c.reltuples::int8"
" ELSE pg_relation_size(c.oid) / 100 END,"
" CASE WHEN c.relkind NOT IN ('r', 'p') THEN false"
" WHEN NOT has_column_privilege(c.oid, 'xmin', 'SELECT') THEN false"
" WHEN c.relkind = 'r' THEN c.relam = 2 ELSE NOT EXISTS"
" (SELECT FROM pg_partition_tree(c.oid) p JOIN pg_class l ON l.oid = p.relid"
" WHERE p.isleaf AND l.relam <> 2) END,"
" c.relkind IN ('r', 'p') AND NOT row_security_active(c.oid) AND NOT EXISTS"
" (SELECT FROM pg_partition_tree(c.oid) p JOIN pg_class l ON l.oid = p.relid"
" WHERE l.relkind NOT IN ('r', 'p')),"
/* which hold its rows, said once */
" CASE WHEN row_number() OVER (PARTITION BY t.n ORDER BY a.attnum) = 1"
" AND c.relkind IN ('r', 'p', 'm') THEN " POS_PG_TABLES("c.oid") " END,"
" c.oid, g.log, g.schema, g.key"
" FROM unnest(%s::text[], %s::text[]) WITH ORDINALITY t(schema, name, n)"
" JOIN pg_namespace s ON s.nspname = t.schema"
" JOIN pg_class c ON c.relnamespace = s.oid AND c.relname = t.name"
" AND c.relkind IN ('r', 'p', 'v', 'm', 'f')"
" JOIN pg_class o ON o.oid = coalesce(CASE WHEN"
" current_setting('server_version_num')::int >= 170000 THEN pg_partition_root(c.oid) END, c.oid)"
" JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0"
" AND NOT a.attisdropped"
" CROSS JOIN LATERAL ("
"WITH RECURSIVE d AS ("
"SELECT oid, a.atttypmod AS typmod, typtype, typbasetype, typtypmod"
" FROM pg_type WHERE oid = a.atttypid UNION ALL"
" SELECT y.oid, d.typtypmod, y.typtype, y.typbasetype, y.typtypmod"
" FROM d JOIN pg_type y ON y.oid = d.typbasetype AND d.typtype = 'd')"
" SELECT oid, typmod FROM d WHERE typtype <> 'd') b"
" JOIN pg_type y ON y.oid = b.oid"
" LEFT JOIN pg_type e ON e.oid = y.typelem AND y.typcategory = 'A'"
/* a trigger that was made anew or switched off has missed something */
/* a partition may come with rows, and go with them */
" LEFT JOIN LATERAL (SELECT format('%%s.%%s.%%s', g.oid, g.xmin,"
" (SELECT hashtext(string_agg(format('%%s.%%s.%%s.%%s', t.relid::oid, q.oid, q.xmin, q.tgenabled), ',' ORDER BY t.relid::oid))"
" FROM pg_partition_tree(c.oid) t"
" LEFT JOIN pg_trigger q ON q.tgrelid = t.relid AND q.tgname = 'possync_log')) AS log,"
" quote_ident(n.nspname) AS schema, encode(g.tgargs, 'hex') AS key"
" FROM pg_trigger g JOIN pg_proc p ON p.oid = g.tgfoid"
" AND p.proname = 'possync_log_change'"
" JOIN pg_namespace n ON n.oid = p.pronamespace"
" JOIN pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid"
" AND d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e'"
" JOIN pg_extension x ON x.oid = d.refobjid AND x.extname = 'possync'"
" WHERE g.tgrelid = c.oid AND g.tgname = 'possync_log'"
" AND g.tgenabled IN ('O', 'A') AND NOT c.relispartition"
" AND has_schema_privilege(n.oid, 'USAGE')"
" AND has_table_privilege(c.oid, 'SELECT') AND NOT row_security_active(c.oid)"
/* a standby does not tell which transactions run at its primary */
" AND NOT pg_is_in_recovery() AND NOT EXISTS"
" (SELECT FROM pg_partition_tree(c.oid) t WHERE NOT EXISTS"
" (SELECT FROM pg_trigger q WHERE q.tgrelid = t.relid"
" AND q.tgname = 'possync_log_truncate' AND q.tgenabled IN ('O', 'A')))) g ON true"
" ORDER BY t.n, a.attnum";

static void split_name(const char *remote, char **schema, char **name);
static char *text_array(char **elements, int n);
static PosPgRelation *make_relation(const char *remote);
static void fill_relation(PosPgRelation *relation, PGresult *res, int first,
						  int last);
static char *check_table(PosPgSession *session, PosPgRelation *relation,
						 PosTable *table);
static char *check_column(PosPgSession *session, PosPgRelation *relation,
						  PosTable *table, PosColumn *column);
static bool is_guarded(PosPgRelation *relation, PosTable *table);
static char *field_of(PosTable *table, const char *local);

/*
 * Appends the query whose result pos_pg_describe_result understands.  Errors
 * if a table's name is not written as schema.table.
 */
void
pos_pg_describe_query(StringInfo sql, PosTable **tables, int ntables)
{
	char	  **schemas = palloc(sizeof(char *) * ntables);
	char	  **names = palloc(sizeof(char *) * ntables);

	for (int i = 0; i < ntables; i++)
		split_name(tables[i]->remote, &schemas[i], &names[i]);

	appendStringInfo(sql, describe_sql, text_array(schemas, ntables),
					 text_array(names, ntables));
}

/*
 * Stores the session's current result as the description of the tables.
 */
void
pos_pg_describe_result(PosPgSession *session, PosTable **tables, int ntables)
{
	PGresult   *res = session->result;
	int			row = 0;

	if (PQnfields(res) != D_COLUMNS)
		pos_pg_error(session);
	for (int i = 0; i < ntables; i++)
	{
		int			first = row;
		PosPgRelation *relation;
		MemoryContext old;

		while (row < PQntuples(res) &&
			   atoi(PQgetvalue(res, row, D_TABLE)) == i + 1)
			row++;

		relation = make_relation(tables[i]->remote);
		old = MemoryContextSwitchTo(relation->context);
		fill_relation(relation, res, first, row);
		MemoryContextSwitchTo(old);
		pos_pg_relation_keep(session, relation);
	}
}

/*
 * Compares what a caller asks of a table with the description of it, and
 * decides the type of its key column.  Returns a list of sentences.
 */
List *
pos_pg_describe_check(PosPgSession *session, PosTable *table)
{
	PosPgRelation *relation = pos_pg_relation(session, table->remote);
	List	   *problems = NIL;
	char	   *problem = check_table(session, relation, table);

	if (problem != NULL)
		return list_make1(problem);

	for (int i = 0; i < table->ncolumns; i++)
	{
		problem = check_column(session, relation, table, &table->columns[i]);
		if (problem != NULL)
			problems = lappend(problems, problem);
	}

	problem = pos_pg_describe_changes(session, table);
	if (problem != NULL)
		problems = lappend(problems, problem);
	table->guarded = is_guarded(relation, table);
	table->rows = relation->rows;

	return problems;
}

/*
 * Appends a query whose result pos_pg_describe_unmoved takes: the names of tables that
 * are not what they were when the transaction's snapshot was taken.
 *
 * A snapshot sees none of the rows of a table that was written anew by somebody since,
 * as by ALTER TABLE or TRUNCATE, nor those of another that has got its name: all would
 * count as deleted.  The tables are mentioned because that locks them, before anything
 * is looked at, until we have read.
 */
void
pos_pg_describe_moved_query(StringInfo sql, PosPgSession *session,
							PosTable **tables, int ntables)
{
	char	  **names = palloc(sizeof(char *) * ntables);
	char	  **numbers = palloc(sizeof(char *) * ntables);
	StringInfoData locks;
	int			n = 0;

	initStringInfo(&locks);
	for (int i = 0; i < ntables; i++)
	{
		PosPgRelation *relation = pos_pg_relation(session, tables[i]->remote);

		if (relation->tables[0] == '\0')
			continue;
		names[n] = (char *) relation->type;
		numbers[n++] = relation->tables;
		appendStringInfo(&locks, " OR EXISTS (SELECT FROM %s LIMIT 0)", relation->sql);
	}
	appendStringInfo(sql, "SELECT t.name FROM unnest(%s::text[], %s::text[]) t (name, tables)"
					 " WHERE " POS_PG_TABLES("to_regclass(t.name)::oid")
					 " IS DISTINCT FROM t.tables"
					 " OR (SELECT count(*) FROM pg_class c"
					 " WHERE c.oid = ANY (string_to_array(t.tables, ' ')::oid[])"
					 " AND c.relfilenode = coalesce(pg_relation_filenode(c.oid), 0))"
					 " <> cardinality(string_to_array(t.tables, ' '))%s",
					 text_array(names, n), text_array(numbers, n), locks.data);
}

/* Takes the answer: errors if there is such a table. */
void
pos_pg_describe_unmoved(PosPgSession *session)
{
	PGresult   *res = pos_pg_result(session);

	if (PQntuples(res) > 0)
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("remote table %s of server \"%s\" was changed as a whole while it was read",
						PQgetvalue(res, 0, 0), session->base.server->servername),
				 errdetail("By TRUNCATE, ALTER TABLE, REFRESH MATERIALIZED VIEW or the like."),
				 errhint("Pull again.")));
	if (PQresultStatus(res) != PGRES_TUPLES_OK)
		pos_pg_error(session);
}

/* Whether one word of a list of words is a given one. */
bool
pos_pg_has_word(const char *list, const char *word, size_t len)
{
	for (; *list != '\0'; list += strcspn(list, " "), list += *list == ' ')
		if (strcspn(list, " ") == len && memcmp(list, word, len) == 0)
			return true;
	return false;
}

/* Whether a unique index spans some of the match columns of a table. */
static bool
is_guarded(PosPgRelation *relation, PosTable *table)
{
	for (int i = 0; i < table->nmatch; i++)
	{
		PosPgAttribute *first = pos_pg_attribute(relation, table->match[i]);
		const char *index = first == NULL ? NULL : first->unique;

		for (; index != NULL && *index != '\0';
			 index += strcspn(index, " "), index += *index == ' ')
		{
			size_t		len = strcspn(index, " ");
			int			n = 0;

			for (int j = 0; j < table->nmatch; j++)
			{
				PosPgAttribute *attribute = pos_pg_attribute(relation,
															 table->match[j]);

				if (attribute != NULL && attribute->unique != NULL &&
					pos_pg_has_word(attribute->unique, index, len))
					n++;
			}
			if (n == atoi(strchr(index, '/') + 1))
				return true;
		}
	}
	return false;
}

/*
 * One position serves all change columns of a described table, so they must
 * exist, be readable and have one type.  Returns a sentence if they do not,
 * else NULL.
 */
char *
pos_pg_describe_changes(PosPgSession *session, PosTable *table)
{
	PosPgRelation *relation = pos_pg_relation(session, table->remote);
	PosPgAttribute *first = NULL;
	char	   *problem = check_table(session, relation, table);

	if (problem != NULL)
		return problem;

	for (int i = 0; i < table->nchange; i++)
	{
		PosPgAttribute *attribute = pos_pg_attribute(relation,
													 table->change[i]);

		if (attribute == NULL)
			return psprintf("change column \"%s\" of remote table %s does not exist (table %s)",
							table->change[i], table->remote, table->local);
		if (!attribute->readable)
			return psprintf("permission denied for change column \"%s\" of remote table %s: grant SELECT on it to the user of server \"%s\" (table %s)",
							table->change[i], table->remote,
							session->base.server->servername, table->local);
		if (first == NULL)
			first = attribute;
		else if (first->type != attribute->type)
			return psprintf("change columns \"%s\" and \"%s\" of remote table %s have different types, %s and %s: choose columns of one type (table %s)",
							first->name, attribute->name, table->remote,
							first->typename, attribute->typename,
							table->local);
	}

	return NULL;
}

/* Returns what follows an identifier, NULL if there is none. */
static const char *
skip_identifier(const char *p)
{
	const char *start = p;

	if (*p != '"')
	{
		if (!isalpha((unsigned char) *p) && *p != '_' && !IS_HIGHBIT_SET(*p))
			return NULL;
		while (isalnum((unsigned char) *p) || *p == '_' || *p == '$' || IS_HIGHBIT_SET(*p))
			p++;
		return p;
	}
	for (p++; *p != '\0'; p++)
		if (*p == '"' && *++p != '"')
			return p == start + 2 ? NULL : p;
	return NULL;
}

/*
 * Whether a text is schema.table or a table alone, and nothing else: it stands in
 * queries.
 */
bool
pos_pg_is_name(const char *remote)
{
	const char *end = skip_identifier(remote);

	if (end != NULL && *end == '.')
		end = skip_identifier(end + 1);
	return end != NULL && *end == '\0';
}

/*
 * Splits schema.table as the remote would; a name alone is one in public.
 */
static void
split_name(const char *remote, char **schema, char **name)
{
	List	   *parts = textToQualifiedNameList(cstring_to_text(remote));

	if (list_length(parts) > 2)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_NAME),
				 errmsg("invalid name of a remote table: %s", remote),
				 errhint("Write it as schema.table, and quote what needs quotes.")));
	*schema = list_length(parts) == 2 ? strVal(linitial(parts)) : "public";
	*name = strVal(llast(parts));
}

/*
 * A literal for an array of texts: array_in's syntax inside a quoted literal
 */
static char *
text_array(char **elements, int n)
{
	StringInfoData array;

	initStringInfo(&array);
	appendStringInfoChar(&array, '{');
	for (int i = 0; i < n; i++)
	{
		appendStringInfoString(&array, i > 0 ? ",\"" : "\"");
		for (char *p = elements[i]; *p; p++)
		{
			if (*p == '"' || *p == '\\')
				appendStringInfoChar(&array, '\\');
			appendStringInfoChar(&array, *p);
		}
		appendStringInfoChar(&array, '"');
	}
	appendStringInfoChar(&array, '}');

	return quote_literal_cstr(array.data);
}

/*
 * Makes an empty description, which goes with the current memory context until
 * it is complete.
 */
static PosPgRelation *
make_relation(const char *remote)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext,
												  "possync remote table",
												  ALLOCSET_SMALL_SIZES);
	PosPgRelation *relation;

	relation = (PosPgRelation *) MemoryContextAllocZero(context,
														sizeof(PosPgRelation));
	relation->context = context;
	relation->remote = MemoryContextStrdup(context, remote);

	return relation;
}

/*
 * Fills a description from rows of the query's result.
 */
static void
fill_relation(PosPgRelation *relation, PGresult *res, int first, int last)
{
	char	   *schema;
	char	   *name;

	relation->nattributes = last - first;
	relation->exists = relation->nattributes > 0;
	if (!relation->exists)
		return;

	/*
	 * The rows of an ordinary table's inheritance children are not its own;
	 * those of partitions are.
	 */
	split_name(relation->remote, &schema, &name);
	relation->sql = psprintf("%s%s",
							 PQgetvalue(res, first, D_RELKIND)[0] == RELKIND_RELATION ?
							 "ONLY " : "",
							 quote_qualified_identifier(schema, name));
	relation->type = quote_qualified_identifier(schema, name);
	relation->rows = atoll(PQgetvalue(res, first, D_ROWS));
	relation->readable = PQgetvalue(res, first, D_USAGE)[0] == 't';
	relation->versions = PQgetvalue(res, first, D_VERSIONS)[0] == 't';
	relation->still = PQgetvalue(res, first, D_STILL)[0] == 't';
	relation->tables = pstrdup(PQgetvalue(res, first, D_TABLES));
	relation->oid = pstrdup(PQgetvalue(res, first, D_OID));
	if (!PQgetisnull(res, first, D_LOG))
	{
		relation->log = pstrdup(PQgetvalue(res, first, D_LOG));
		relation->log_schema = pstrdup(PQgetvalue(res, first, D_LOG_SCHEMA));
		relation->log_key = pstrdup(PQgetvalue(res, first, D_LOG_KEY));
	}
	relation->attributes = palloc0(sizeof(PosPgAttribute) *
								   relation->nattributes);

	for (int row = first; row < last; row++)
	{
		PosPgAttribute *attribute = &relation->attributes[row - first];

		attribute->name = pstrdup(PQgetvalue(res, row, D_NAME));
		attribute->typename = pstrdup(PQgetvalue(res, row, D_TYPENAME));
		attribute->type = (Oid) strtoul(PQgetvalue(res, row, D_TYPE), NULL, 10);
		attribute->typmod = atoi(PQgetvalue(res, row, D_TYPMOD));
		attribute->typtype = PQgetvalue(res, row, D_TYPTYPE)[0];
		attribute->category = PQgetvalue(res, row, D_CATEGORY)[0];
		attribute->basename = pstrdup(PQgetvalue(res, row, D_BASENAME));
		attribute->elemtype = PQgetvalue(res, row, D_ELEMTYPE)[0];
		attribute->notnull = PQgetvalue(res, row, D_NOTNULL)[0] == 't';
		attribute->readable = PQgetvalue(res, row, D_READABLE)[0] == 't';
		if (!PQgetisnull(res, row, D_DEFAULT))
			attribute->made_by = pstrdup(PQgetvalue(res, row, D_DEFAULT));
		if (!PQgetisnull(res, row, D_UNIQUE))
			attribute->unique = pstrdup(PQgetvalue(res, row, D_UNIQUE));
	}
}

static char *
check_table(PosPgSession *session, PosPgRelation *relation, PosTable *table)
{
	const char *server = session->base.server->servername;

	if (!relation->exists)
		return psprintf("remote table %s does not exist on server \"%s\" (table %s)",
						table->remote, server, table->local);
	if (!relation->readable)
		return psprintf("permission denied for schema of remote table %s: grant USAGE on it to the user of server \"%s\" (table %s)",
						table->remote, server, table->local);

	return NULL;
}

static char *
check_column(PosPgSession *session, PosPgRelation *relation, PosTable *table,
			 PosColumn *column)
{
	PosPgAttribute *attribute = pos_pg_attribute(relation, column->remote);

	if (attribute == NULL)
		return psprintf("column \"%s\" of remote table %s does not exist (%s)",
						column->remote, table->remote,
						field_of(table, column->local));
	if (!attribute->readable)
		return psprintf("permission denied for column \"%s\" of remote table %s: grant SELECT on it to the user of server \"%s\" (%s)",
						column->remote, table->remote,
						session->base.server->servername,
						field_of(table, column->local));

	if (column->form == POS_FORM_KEY)
		column->type = pos_pg_key_type(attribute);
	else if (column->form == POS_FORM_VALUE &&
			 !pos_pg_convertible(attribute, column))
		return psprintf("column \"%s\" of remote table %s has type %s, which cannot be assigned to type %s (%s)",
						column->remote, table->remote, attribute->typename,
						format_type_with_typemod(column->type, column->typmod),
						field_of(table, column->local));

	return NULL;
}

static char *
field_of(PosTable *table, const char *local)
{
	return psprintf("field \"%s\" of %s", local, table->local);
}
