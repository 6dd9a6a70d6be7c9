/*
 * postgres_log.c
 *		The change log that a remote PostgreSQL keeps of a table, if possync_log was
 *		called there.
 *
 * An entry tells which rows a transaction wrote.  A table that was read in some
 * snapshot has changed by the transactions that are not visible in that, which is
 * exact whatever they did in which order.  Only numbers from the snapshot's oldest
 * running one on can be among them: the index finds these.
 *
 * If entries from there on have been trimmed, or the table was truncated, the log
 * cannot tell.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "connection_postgres.h"
#include "utils/builtins.h"

/* Whether the log of a described table knows rows by the key that we do. */
bool
pos_pg_log_usable(PosPgSession *session, PosTable *table)
{
	PosPgRelation *relation = pos_pg_relation(session, table->remote);
	StringInfoData key;

	if (relation == NULL || relation->log == NULL)
		return false;
	initStringInfo(&key);
	for (int i = 0; i < table->nkey; i++)
	{
		for (const char *p = table->columns[i].remote; *p; p++)
			appendStringInfo(&key, "%02x", (unsigned char) *p);
		appendStringInfoString(&key, "00");
	}

	return strcmp(key.data, relation->log_key) == 0;
}

/* Appends the entries since a snapshot, which is SQL. */
static void
append_entries(StringInfo sql, PosPgRelation *relation, const char *snapshot)
{
	appendStringInfo(sql, " FROM %s.possync_changes l"
					 " WHERE l.relation OPERATOR(pg_catalog.=) %s::pg_catalog.oid"
					 " AND l.xid OPERATOR(pg_catalog.>=) pg_catalog.pg_snapshot_xmin(%s)"
					 " AND NOT pg_catalog.pg_visible_in_snapshot(l.xid, %s)",
					 relation->log_schema, relation->oid, snapshot, snapshot);
}

/*
 * Appends whether a table has changed since a snapshot, which is SQL: t, f, or x, the
 * log cannot tell.
 */
void
pos_pg_log_append_probe(StringInfo sql, PosPgSession *session, PosTable *table,
						const char *snapshot)
{
	PosPgRelation *relation = pos_pg_relation(session, table->remote);

	appendStringInfo(sql, "CASE WHEN EXISTS (SELECT 1 FROM %s.synchronize_trimmed r"
					 " WHERE r.relation = %s::oid AND r.xid >= pg_snapshot_xmin(%s))"
					 " OR EXISTS (SELECT 1",
					 relation->log_schema, relation->oid, snapshot);
	append_entries(sql, relation, snapshot);
	appendStringInfoString(sql, " AND l.keys IS NULL AND l.keys_text IS NULL)"
						   " THEN 'x' WHEN EXISTS (SELECT 1");
	append_entries(sql, relation, snapshot);
	appendStringInfoString(sql, ") THEN 't' ELSE 'f' END");
}

/*
 * Appends whether any of the logged ones among some tables has changed since a
 * snapshot, which is SQL with every name qualified, or may have.
 */
void
pos_pg_log_append_poll(StringInfo sql, PosPgSession *session, PosTable **tables,
					   int ntables, const char *snapshot)
{
	StringInfoData oids;
	const char *schema = NULL;

	initStringInfo(&oids);
	for (int i = 0; i < ntables; i++)
	{
		PosPgRelation *relation = pos_pg_relation(session, tables[i]->remote);

		if (pos_pg_position_snapshot(session, tables[i]) == NULL)
			continue;
		appendStringInfo(&oids, "%s%s", oids.len > 0 ? "," : "", relation->oid);
		schema = relation->log_schema;
	}
	appendStringInfo(sql, "(EXISTS (SELECT 1 FROM %s.possync_changes l"
					 " WHERE l.xid OPERATOR(pg_catalog.>=) pg_catalog.pg_snapshot_xmin(%s)"
					 " AND l.relation OPERATOR(pg_catalog.=) ANY ('{%s}'::pg_catalog.oid[])"
					 " AND NOT pg_catalog.pg_visible_in_snapshot(l.xid, %s))"
					 " OR EXISTS (SELECT 1 FROM %s.synchronize_trimmed r"
					 " WHERE r.xid OPERATOR(pg_catalog.>=) pg_catalog.pg_snapshot_xmin(%s)"
					 " AND r.relation OPERATOR(pg_catalog.=) ANY ('{%s}'::pg_catalog.oid[])))",
					 schema, snapshot, oids.data, snapshot, schema, snapshot, oids.data);
}

/* Appends the keys that are noted since a snapshot, as values of the columns. */
static void
append_keys(StringInfo sql, PosPgSession *session, PosTable *table,
			const char *snapshot)
{
	PosPgRelation *relation = pos_pg_relation(session, table->remote);
	bool		integer = table->nkey == 1 && table->columns[0].type == INT8OID;

	appendStringInfoString(sql, "SELECT DISTINCT ");
	if (integer)
		appendStringInfoString(sql, "u.k AS k1");
	else
		for (int i = 0; i < table->nkey; i++)
		{
			PosPgAttribute *attribute = pos_pg_attribute(relation,
														 table->columns[i].remote);

			if (table->nkey == 1)
				appendStringInfo(sql, "u.k::%s AS k1", attribute->typename);
			else
				appendStringInfo(sql, "%s(u.k::text[])[%d]::%s AS k%d", i > 0 ? ", " : "",
								 i + 1, attribute->typename, i + 1);
		}
	appendStringInfo(sql, " FROM (SELECT unnest(l.keys%s) AS k", integer ? "" : "_text");
	append_entries(sql, relation, snapshot);
	appendStringInfoString(sql, ") u");
}

/* Appends that a row was written since a snapshot. */
void
pos_pg_log_append_rows(StringInfo sql, PosPgSession *session, PosTable *table,
					   const char *snapshot)
{
	appendStringInfoChar(sql, '(');
	for (int i = 0; i < table->nkey; i++)
		appendStringInfo(sql, "%s%s", i > 0 ? ", " : "",
						 quote_identifier(table->columns[i].remote));
	appendStringInfoString(sql, ") IN (");
	append_keys(sql, session, table, snapshot);
	appendStringInfoChar(sql, ')');
}

/*
 * Asks for the keys of rows that were written since a snapshot and are not there,
 * in the form of a digest's rows.
 */
char *
pos_pg_log_query_gone(PosPgSession *session, PosTable *table,
					  const char *snapshot)
{
	PosPgRelation *relation = pos_pg_relation(session, table->remote);
	StringInfoData sql;

	initStringInfo(&sql);
	appendStringInfoString(&sql, "SELECT 0, ");
	if (table->nkey == 1)
		appendStringInfoString(&sql, "l.k1::text");
	else
		for (int i = 0; i < table->nkey; i++)
			appendStringInfo(&sql, "%sl.k%d::text%s", i > 0 ? ", " : "ARRAY[", i + 1,
							 i == table->nkey - 1 ? "]::text" : "");
	appendStringInfoString(&sql, ", '' FROM (");
	append_keys(&sql, session, table, snapshot);
	appendStringInfo(&sql, ") l WHERE NOT EXISTS (SELECT FROM %s t WHERE ", relation->sql);
	for (int i = 0; i < table->nkey; i++)
		appendStringInfo(&sql, "%st.%s = l.k%d", i > 0 ? " AND " : "",
						 quote_identifier(table->columns[i].remote), i + 1);
	appendStringInfoChar(&sql, ')');

	return sql.data;
}
