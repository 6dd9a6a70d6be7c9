/*
 * postgres_query.c
 *		The SQL that is sent to a remote PostgreSQL.
 *
 * Every string is allocated in the current memory context.  Nothing here
 * leaves a trace in the remote session, so that a pooler may give every
 * transaction another one.  Names are qualified or quoted; search_path is
 * pg_catalog in the transaction.
 */
#include "postgres.h"

#include "connection_postgres.h"
#include "utils/builtins.h"

/*
 * A transaction's timestamp is taken a moment before others can see that it
 * runs.  This much, in milliseconds, is granted to that moment.
 */
#define UNSEEN_START 250

/*
 * The remote looks this often, in milliseconds, whether we are still there
 * while it works for us.  Only Linux can.
 */
#define CLIENT_CHECK "5000"

/* Keys of several columns that are listed, at most */
#define MOST_LISTED 100

static bool always_tells(PosPgRelation *relation, PosTable *table);
static void append_untold(StringInfo sql, PosPgRelation *relation,
						  PosTable *table);

/*
 * The remote's clock, how far it is complete, when it was started, its identity if
 * that is not known yet, whether we see what runs there, whether the session is the one
 * that we were given when we connected, and not a pooler's, and which transaction is the
 * oldest, unless that is a standby's view; one row.  To be run before the snapshot is
 * taken, in a transaction of its own.
 *
 * Where we may see them, the cap is the start of the oldest transaction in the
 * database.  A statement that has arrived may take its time stamp before its
 * transaction shows, hence query_start.  pg_prepared_xact() only tells when a
 * transaction was prepared, not when it started.  A backend with
 * track_activities off shows nothing, nor does a standby show what runs at its
 * primary: then nothing younger than the server's overlap counts as complete,
 * as for users who may not look.  The clock must be read before the list of
 * transactions: OFFSET 0 keeps the planner from folding it in.
 *
 * The identity is that of the cluster, of its timeline, and of the database.  A
 * standby that took over may have lost the last transactions and gives their
 * numbers to others: on its timeline everything has to be read once.
 *
 * Background workers write, too, and have types of their own: only autovacuum does
 * not count.
 *
 * The functions are called directly because to plan the views over them would
 * cost the remote four times as much as all the rest of a poll.
 */
char *
pos_pg_query_clock(PosPgSession *session)
{
	const char *database = "(SELECT oid FROM pg_database"
	" WHERE datname = current_database())";
	const char *source = "(SELECT c.system_identifier || '.' ||"
	" CASE WHEN pg_is_in_recovery()"
	" THEN (SELECT lpad(to_hex(timeline_id), 8, '0') FROM pg_control_checkpoint())"
	" ELSE substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8) END"
	" || '/' || d.oid"
	" FROM pg_control_system() c, pg_database d"
	" WHERE d.datname = current_database())";

	if (session->source != NULL)
	{
		database = strchr(session->source, '/') + 1;
		source = "NULL";
	}

	return psprintf("SELECT k.now, coalesce(CASE"
					" WHEN pg_has_role(current_user, 'pg_read_all_stats', 'USAGE')"
					" AND NOT pg_is_in_recovery() THEN"
					" (SELECT CASE WHEN count(*) FILTER (WHERE a.state = 'disabled') = 0"
					" THEN least(k.now - interval '%d ms',"
					" min(coalesce(a.xact_start, CASE WHEN a.state = 'active' THEN a.query_start END)),"
					" (SELECT min(p.prepared) FROM pg_prepared_xact() p WHERE p.dbid = %s)"
					" - interval '%d ms') END"
					" FROM pg_stat_get_activity(NULL) a"
					" WHERE a.datid = %s AND a.pid <> pg_backend_pid()"
					" AND a.backend_type IS DISTINCT FROM 'autovacuum worker') END,"
					" least(k.now, CASE WHEN pg_is_in_recovery()"
					" THEN pg_last_xact_replay_timestamp() END) - interval '%d ms'),"
					" pg_postmaster_start_time(), %s,"
					" pg_has_role(current_user, 'pg_read_all_stats', 'USAGE')"
					" AND NOT pg_is_in_recovery(), pg_backend_pid() = %d,"
					" CASE WHEN NOT pg_is_in_recovery() THEN"
					" pg_snapshot_xmin(pg_current_snapshot())::text END"
					" FROM (SELECT clock_timestamp() AS now OFFSET 0) k",
					UNSEEN_START, database, session->options.overlap,
					database, session->options.overlap, source,
					PQbackendPID(session->conn));
}

/*
 * Settings of the transaction: what text forms depend on, and limits.  The
 * remote's are tighter than ours, for it can tell what it waited for; all of it
 * together may take as long as it takes.  Where we write, triggers run: they find
 * their tables by the search_path they know.
 */
char *
pos_pg_query_settings(PosPgSession *session, bool writes)
{
	int			limit = session->options.statement_timeout -
	session->options.statement_timeout / 10;

	return psprintf("SELECT%s set_config('datestyle', 'ISO', true),"
					" set_config('intervalstyle', 'postgres', true),"
					" set_config('timezone', 'UTC', true),"
					" set_config('extra_float_digits', '3', true),"
					" set_config('bytea_output', 'hex', true),"
					" set_config('lc_monetary', 'C', true),"
					" set_config('statement_timeout', '%d', true),"
					" set_config('lock_timeout', '%d', true),"
					" set_config('idle_in_transaction_session_timeout', '%d', true)%s%s",
					writes ? "" : " set_config('search_path', 'pg_catalog', true),",
					limit, limit, limit,
					PQserverVersion(session->conn) < 170000 ? "" :
					", set_config('transaction_timeout', '0', true)",
					PQserverVersion(session->conn) < 140000 ? "" :
					", CASE WHEN version() LIKE '%linux%' THEN"
					" set_config('client_connection_check_interval', '" CLIENT_CHECK "', true) END");
}

/*
 * Whether the remote has to be asked if a table changed: it has a position that
 * belongs to this source, and nothing to retry or to compare, for which it must
 * not have a log.  A table that cannot be asked counts as changed; describe then says why.
 */
bool
pos_pg_query_probed(PosPgSession *session, PosTable *table)
{
	bool		logged = pos_pg_position_snapshot(session, table) != NULL;

	return table->nretry == 0 && table->compared != POS_COMPARED_ALWAYS &&
		(logged || table->compared == POS_COMPARED_NOT) &&
		(logged || pos_pg_position_value(table) != NULL) &&
		pos_pg_describe_changes(session, table) == NULL;
}

/*
 * Appends whether a table changed after a value of its change columns, which is SQL.
 *
 * The greatest value is compared with it, rather than a row looked for beyond it: the
 * plan is the same whatever the value is and whatever is known of the values, the end
 * of an index.  There stand nulls, too, which no value tells of.
 */
static void
append_probe(StringInfo sql, PosPgSession *session, PosTable *table,
			 const char *value)
{
	PosPgRelation *relation = pos_pg_relation(session, table->remote);

	if (table->nchange == 1)
	{
		const char *column = quote_identifier(table->change[0]);

		appendStringInfo(sql, "(SELECT coalesce(%s OPERATOR(pg_catalog.>=) %s, true)"
						 " FROM %s ORDER BY %s DESC LIMIT 1)", column, value,
						 relation->sql, column);
		return;
	}
	pos_pg_append_greatest(sql, relation, table, NULL);
	appendStringInfo(sql, " OPERATOR(pg_catalog.>=) %s", value);
	if (!always_tells(relation, table))
		append_untold(sql, relation, table);
}

/*
 * What tells for every table to be probed, in order, whether it changed: a boolean,
 * or a letter of pos_pg_log_append_probe; and then the snapshot.  NULL if there is
 * none.
 */
char *
pos_pg_query_probe(PosPgSession *session, PosTable **tables, int ntables)
{
	StringInfoData sql;

	initStringInfo(&sql);
	for (int i = 0; i < ntables; i++)
	{
		const char *snapshot = pos_pg_position_snapshot(session, tables[i]);

		if (!pos_pg_query_probed(session, tables[i]))
			continue;
		appendStringInfoString(&sql, sql.len > 0 ? ", " : "SELECT ");
		if (snapshot != NULL)
			pos_pg_log_append_probe(&sql, session, tables[i],
									psprintf("%s::pg_snapshot", quote_literal_cstr(snapshot)));
		else
			append_probe(&sql, session, tables[i],
						 quote_literal_cstr(pos_pg_position_value(tables[i])));
	}
	if (sql.len == 0)
		return NULL;
	appendStringInfoString(&sql, ", pg_current_snapshot()::text");

	return sql.data;
}

/*
 * What tells in a few booleans whether any of the tables changed, in any session of
 * the remote: what depends on positions are parameters.  values[0] is to be a
 * snapshot in which no logged table had changed, if there are logged ones.  The other
 * values are filled here.
 */
char *
pos_pg_query_poll(PosPgSession *session, PosTable **tables, int ntables,
				  const char **values, int *nvalues)
{
	StringInfoData sql;
	bool		logged = false;

	*nvalues = values[0] != NULL ? 1 : 0;
	initStringInfo(&sql);
	for (int i = 0; i < ntables; i++)
	{
		if (pos_pg_position_snapshot(session, tables[i]) != NULL)
		{
			logged = true;
			continue;
		}
		values[(*nvalues)++] = pos_pg_position_value(tables[i]);
		appendStringInfoString(&sql, sql.len > 0 ? ", " : "");
		append_probe(&sql, session, tables[i], psprintf("$%d", *nvalues));
	}
	if (!logged)
		return sql.data;
	appendStringInfoString(&sql, sql.len > 0 ? ", " : "");
	pos_pg_log_append_poll(&sql, session, tables, ntables, "$1::pg_catalog.pg_snapshot");

	return sql.data;
}

/* Appends what makes a query read a stretch of a table. */
static void
append_stretch(StringInfo sql, PosTable *table)
{
	StringInfoData key;

	initStringInfo(&key);
	for (int i = 0; i < table->nkey; i++)
		appendStringInfo(&key, "%s%s", i > 0 ? ", " : "",
						 quote_identifier(table->columns[i].remote));
	if (table->after != NULL)
	{
		appendStringInfo(sql, " WHERE (%s) > (", key.data);
		for (int i = 0; i < table->nkey; i++)
			appendStringInfo(sql, "%s%s", i > 0 ? ", " : "",
							 quote_literal_cstr(table->after[i]));
		appendStringInfoChar(sql, ')');
	}
	appendStringInfo(sql, " ORDER BY %s LIMIT %d", key.data, table->limit);
}

/*
 * The rows of a table that a read has to see.
 */
char *
pos_pg_query_rows(PosPgSession *session, PosTable *table, PosPgPlan *plan)
{
	PosPgRelation *relation = pos_pg_relation(session, table->remote);
	StringInfoData sql;

	initStringInfo(&sql);
	appendStringInfoString(&sql, "COPY (SELECT ");
	for (int i = 0; i < table->ncolumns; i++)
		appendStringInfo(&sql, "%s%s%s", i > 0 ? ", " : "",
						 quote_identifier(table->columns[i].remote),
						 pos_pg_plan_as_text(plan, i) ? "::text" : "");
	appendStringInfo(&sql, " FROM %s", relation->sql);
	if (table->limit > 0)
		append_stretch(&sql, table);
	else if (table->scope == POS_SCOPE_CHOSEN)
	{
		appendStringInfoString(&sql, " WHERE ");
		pos_pg_append_keys(&sql, session, table, table->nretry, table->retry);
	}
	else if (table->scope == POS_SCOPE_CHANGED &&
			 (pos_pg_position_snapshot(session, table) != NULL ||
			  pos_pg_position_value(table) != NULL))
	{
		appendStringInfoString(&sql, " WHERE ");
		pos_pg_position_append(&sql, session, table);
		if (table->nretry > 0)
		{
			appendStringInfoString(&sql, " OR ");
			pos_pg_append_keys(&sql, session, table, table->nretry, table->retry);
		}
	}
	appendStringInfoString(&sql, ") TO STDOUT (FORMAT binary)");

	return sql.data;
}

/* Whether every row has a value in one of the change columns at least. */
static bool
always_tells(PosPgRelation *relation, PosTable *table)
{
	for (int i = 0; i < table->nchange; i++)
		if (pos_pg_attribute(relation, table->change[i])->notnull)
			return true;

	return false;
}

/* Appends that all change columns are null. */
static void
append_all_null(StringInfo sql, PosTable *table)
{
	for (int i = 0; i < table->nchange; i++)
		appendStringInfo(sql, "%s%s IS NULL", i > 0 ? " AND " : "",
						 quote_identifier(table->change[i]));
}

/*
 * Appends the condition that a row changed at or after a position.  A row
 * whose change columns are all null never tells, so it always counts.
 */
void
pos_pg_append_changed(StringInfo sql, PosPgRelation *relation, PosTable *table,
					  const char *since)
{
	appendStringInfoChar(sql, '(');
	for (int i = 0; i < table->nchange; i++)
		appendStringInfo(sql, "%s%s >= %s", i > 0 ? " OR " : "",
						 quote_identifier(table->change[i]), since);
	if (!always_tells(relation, table))
	{
		appendStringInfoString(sql, " OR (");
		append_all_null(sql, table);
		appendStringInfoChar(sql, ')');
	}
	appendStringInfoChar(sql, ')');
}

/*
 * Appends that there is a row whose change columns are all null.  The order says
 * that an index is to be used, whatever is known of how many there are.
 */
static void
append_untold(StringInfo sql, PosPgRelation *relation, PosTable *table)
{
	appendStringInfo(sql, " OR (SELECT true FROM %s WHERE ", relation->sql);
	append_all_null(sql, table);
	appendStringInfo(sql, " ORDER BY %s LIMIT 1)",
					 quote_identifier(table->change[0]));
}

/*
 * Appends the greatest value of the change columns, or the greatest up to a
 * limit.  ORDER BY serves every type that has an order and uses an index as max()
 * does.
 */
void
pos_pg_append_greatest(StringInfo sql, PosPgRelation *relation,
					   PosTable *table, const char *limit)
{
	if (table->nchange > 1)
		appendStringInfoString(sql, "GREATEST(");
	for (int i = 0; i < table->nchange; i++)
	{
		const char *column = quote_identifier(table->change[i]);

		appendStringInfo(sql, "%s(SELECT %s FROM %s WHERE %s %s"
						 " ORDER BY %s DESC LIMIT 1)", i > 0 ? ", " : "",
						 column, relation->sql, column,
						 limit == NULL ? "IS NOT NULL" :
						 psprintf("<= %s", limit), column);
	}
	if (table->nchange > 1)
		appendStringInfoChar(sql, ')');
}

/* Appends one column of some keys as an array of texts. */
static void
append_key_array(StringInfo sql, PosTable *table, int column, int nkeys,
				 const char **keys)
{
	appendStringInfoString(sql, "ARRAY[");
	for (int i = 0; i < nkeys; i++)
		appendStringInfo(sql, "%s%s", i > 0 ? "," : "",
						 quote_literal_cstr(keys[i * table->nkey + column]));
	appendStringInfoString(sql, "]::text[]");
}

/* Appends some keys as a query. */
static void
append_key_query(StringInfo sql, PosPgSession *session, PosTable *table,
				 int nkeys, const char **keys)
{
	PosPgRelation *relation = pos_pg_relation(session, table->remote);

	for (int i = 0; i < table->nkey; i++)
		appendStringInfo(sql, "%sk.k%d::%s", i > 0 ? ", " : "SELECT ", i + 1,
						 pos_pg_attribute(relation, table->columns[i].remote)->typename);
	for (int i = 0; i < table->nkey; i++)
	{
		appendStringInfoString(sql, i > 0 ? ", " : " FROM unnest(");
		append_key_array(sql, table, i, nkeys, keys);
	}
	for (int i = 0; i < table->nkey; i++)
		appendStringInfo(sql, "%sk%d", i > 0 ? ", " : ") k(", i + 1);
	appendStringInfoChar(sql, ')');
}

/*
 * Appends that a row has one of some keys, at least one, nkey texts for each.  A
 * list, which indexes serve; but one of many rows would become as many conditions,
 * one within the other.
 */
void
pos_pg_append_keys(StringInfo sql, PosPgSession *session, PosTable *table,
				   int nkeys, const char **keys)
{
	appendStringInfoChar(sql, '(');
	for (int i = 0; i < table->nkey; i++)
		appendStringInfo(sql, "%s%s", i > 0 ? ", " : "",
						 quote_identifier(table->columns[i].remote));
	appendStringInfoString(sql, ") IN (");
	if (table->nkey > 1 && nkeys > MOST_LISTED)
		append_key_query(sql, session, table, nkeys, keys);
	else
		for (int i = 0; i < nkeys; i++)
		{
			appendStringInfoString(sql, i > 0 ? ", (" : "(");
			for (int j = 0; j < table->nkey; j++)
				appendStringInfo(sql, "%s%s", j > 0 ? ", " : "",
								 quote_literal_cstr(keys[i * table->nkey + j]));
			appendStringInfoChar(sql, ')');
		}
	appendStringInfoChar(sql, ')');
}
