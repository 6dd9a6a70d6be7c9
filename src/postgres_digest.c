/*
 * postgres_digest.c
 *		Hashes of rows, computed by a remote PostgreSQL.
 *
 * Columns are hashed as the local table would have them, as far as that can be
 * said with types that both sides know; what is equal and hashed differently
 * costs that the row is read.  By value a type that we do not know must not be
 * hashed: it may take for equal what has another text.
 */
#include "postgres.h"

#include "access/transam.h"
#include "catalog/pg_type.h"
#include "connection_postgres.h"
#include "digest.h"
#include "miscadmin.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"

/* Whether values of both types have the same texts, whatever they are. */
static bool
same_texts(PosPgAttribute *attribute, Oid local, int32 typmod)
{
	bool		strings = (attribute->type == TEXTOID ||
						   attribute->type == VARCHAROID) &&
	(local == TEXTOID || local == VARCHAROID);

	if (attribute->type >= FirstGenbkiObjectId || local >= FirstGenbkiObjectId)
		return true;			/* nothing better is known */
	return (attribute->type == local || strings) &&
		(typmod == -1 || typmod == attribute->typmod);
}

/* Returns a column as it is hashed. */
static char *
column_sql(PosPgRelation *relation, PosColumn *column, bool by_value)
{
	PosPgAttribute *attribute = pos_pg_attribute(relation, column->remote);
	const char *name = quote_identifier(column->remote);
	Oid			local;
	int32		typmod = column->typmod;

	if (column->type == INT8OID && column->form == POS_FORM_KEY)
		return pstrdup(name);
	if (column->form != POS_FORM_VALUE)
		return psprintf("%s::text", name);
	local = getBaseTypeAndTypmod(column->type, &typmod);
	if (attribute->type >= FirstGenbkiObjectId && by_value &&
		pos_digest_hashed(column) != POS_HASHED_TEXT)
		name = psprintf("%s::text", name);
	else if (same_texts(attribute, local, typmod))
		return pstrdup(name);
	return psprintf("%s::%s", name, format_type_with_typemod(local, typmod));
}

static bool
wants_sums(PosDigest *digest)
{
	return digest->wanted == NULL && digest->nkeys == 0 && !digest->gone;
}

/* Returns a table's key, as one value. */
static char *
key_sql(PosTable *table, List *columns)
{
	StringInfoData buf;

	if (table->nkey == 1)
		return linitial(columns);
	initStringInfo(&buf);
	appendStringInfoString(&buf, "ARRAY[");
	for (int i = 0; i < table->nkey; i++)
		appendStringInfo(&buf, "%s%s", i > 0 ? ", " : "",
						 (char *) list_nth(columns, i));
	appendStringInfoString(&buf, "]::text");

	return buf.data;
}

/*
 * The name of the remote's encoding, by which both sides decide how strings are
 * hashed; "" if it does not tell.
 */
const char *
pos_pg_encoding(PosPgSession *session)
{
	const char *encoding = PQparameterStatus(session->conn, "server_encoding");

	return encoding == NULL ? "" : encoding;
}

/*
 * See connection.h.
 */
void
pos_pg_digest(PosConnection *connection, PosDigest *digest)
{
	PosPgSession *session = (PosPgSession *) connection;
	PosTable   *table = digest->table;
	PosPgRelation *relation = pos_pg_relation(session, table->remote);
	PosDigestSource source = {.columns = NIL};
	StringInfoData from;
	StringInfoData sql;
	MemoryContext old;

	pos_pg_session_enter(session);
	if (session->digest_context == NULL)
		session->digest_context = AllocSetContextCreate(session->read_context,
														"possync digest",
														ALLOCSET_DEFAULT_SIZES);
	MemoryContextReset(session->digest_context);
	old = MemoryContextSwitchTo(session->digest_context);
	for (int i = 0; i < table->ncolumns; i++)
		source.columns = lappend(source.columns,
								 column_sql(relation, &table->columns[i],
											digest->by_value));
	source.key_int = table->nkey == 1 && table->columns[0].type == INT8OID;
	source.key = key_sql(table, source.columns);
	initStringInfo(&from);
	appendStringInfo(&from, "%s WHERE ", relation->sql);
	if (digest->nkeys > 0)
		pos_pg_append_keys(&from, session, table, digest->nkeys, digest->keys);
	else
		appendStringInfoString(&from, "true");
	for (int i = 0; i < table->nkey; i++)
		if (!pos_pg_attribute(relation, table->columns[i].remote)->notnull)
			appendStringInfo(&from, " AND %s IS NOT NULL",
							 quote_identifier(table->columns[i].remote));
	source.from = from.data;

	session->digest = digest;
	if (digest->gone)
		session->command =
			pos_pg_log_query_gone(session, table,
								  psprintf("%s::pg_snapshot",
										   quote_literal_cstr(pos_pg_position_snapshot(session, table))));
	else
		session->command = pos_digest_query(digest, &source,
											pos_pg_encoding(session));
	/* there are few buckets, however many the planner believes in */
	if (wants_sums(digest))
		session->command = psprintf("SET LOCAL enable_sort = off; SET LOCAL jit = off; %s",
									session->command);
	initStringInfo(&sql);
	pos_pg_describe_moved_query(&sql, session, &table, 1);
	appendStringInfo(&sql, "; %s", session->command);
	session->command = sql.data;
	MemoryContextSwitchTo(old);
	if (!PQsendQuery(session->conn, session->command) ||
		!PQsetSingleRowMode(session->conn))
		pos_pg_error(session);
	session->state = POS_PG_READING;
	pos_pg_flush(session);
	pos_pg_describe_unmoved(session);
	pos_pg_session_leave(session);
}

/*
 * See connection.h.
 */
bool
pos_pg_digest_next(PosConnection *connection, PosDigestRow *row)
{
	PosPgSession *session = (PosPgSession *) connection;
	bool		sums = wants_sums(session->digest);
	PGresult   *res;

	CHECK_FOR_INTERRUPTS();
	pos_pg_session_enter(session);
	res = pos_pg_result(session);
	while (PQresultStatus(res) == PGRES_COMMAND_OK)
		res = pos_pg_result(session);
	if (PQresultStatus(res) == PGRES_TUPLES_OK && PQntuples(res) == 0)
	{
		if (pos_pg_result(session) != NULL)
			pos_pg_error(session);
		session->state = POS_PG_OPEN;
		pos_pg_session_leave(session);
		return false;
	}
	if (PQresultStatus(res) != PGRES_SINGLE_TUPLE || PQnfields(res) != 3)
		pos_pg_error(session);
	row->number = strtoi64(PQgetvalue(res, 0, 0), NULL, 10);
	row->count = sums ? strtoi64(PQgetvalue(res, 0, 1), NULL, 10) : 1;
	row->key = sums ? NULL : pstrdup(PQgetvalue(res, 0, 1));
	row->content = pstrdup(PQgetvalue(res, 0, 2));
	pos_pg_session_leave(session);

	return true;
}
