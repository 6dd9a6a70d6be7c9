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
 * that is not known yet, and whether we see what runs there; one row.  To be run before the snapshot is
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
					" AND a.backend_type IN ('client backend', 'background worker')) END,"
					" least(k.now, CASE WHEN pg_is_in_recovery()"
					" THEN pg_last_xact_replay_timestamp() END) - interval '%d ms'),"
					" pg_postmaster_start_time(), %s,"
					" pg_has_role(current_user, 'pg_read_all_stats', 'USAGE')"
					" AND NOT pg_is_in_recovery()"
					" FROM (SELECT clock_timestamp() AS now OFFSET 0) k",
					UNSEEN_START, database, session->options.overlap,
					database, session->options.overlap, source);
}

/*
 * Settings of the transaction: what text forms depend on, and limits.  The
 * remote's are tighter than ours, for it can tell what it waited for.  Where
 * we write, triggers run: they find their tables by the search_path they know.
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
					" set_config('lock_timeout', '%d', true)%s",
					writes ? "" : " set_config('search_path', 'pg_catalog', true),",
					limit, limit,
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
 * What tells for every table to be probed, in order, whether it changed: a boolean,
 * or a letter of pos_pg_log_append_probe; NULL if there is none.
 *
 * The greatest value is compared with the position, rather than a row looked for
 * beyond it: the plan is the same whatever the position is and whatever is known
 * of the values, the end of an index.  With values, that is filled with the
 * positions, which then are parameters, and the statement means the same under
 * any settings; without, they are in it.
 */
char *
pos_pg_query_probe(PosPgSession *session, PosTable **tables, int ntables,
				   const char **values)
{
	StringInfoData sql;
	int			n = 0;

	initStringInfo(&sql);
	for (int i = 0; i < ntables; i++)
	{
		PosTable   *table = tables[i];
		PosPgRelation *relation = pos_pg_relation(session, table->remote);

		const char *snapshot = pos_pg_position_snapshot(session, table);

		if (!pos_pg_query_probed(session, table))
			continue;
		appendStringInfoString(&sql, n > 0 ? ", " : "");
		if (snapshot != NULL)
		{
			const char *parameter = values == NULL ? quote_literal_cstr(snapshot) :
			psprintf("$%d", n + 1);

			pos_pg_log_append_probe(&sql, session, table,
									psprintf("%s::pg_catalog.pg_snapshot", parameter),
									values == NULL);
			if (values != NULL)
				values[n] = snapshot;
			n++;
			continue;
		}
		pos_pg_append_greatest(&sql, relation, table, NULL);
		appendStringInfoString(&sql, " OPERATOR(pg_catalog.>=) ");
		if (values == NULL)
			appendStringInfoString(&sql, quote_literal_cstr(pos_pg_position_value(table)));
		else
		{
			values[n] = pos_pg_position_value(table);
			appendStringInfo(&sql, "$%d", n + 1);
		}
		if (!always_tells(relation, table))
			append_untold(&sql, relation, table);
		n++;
	}

	return n == 0 ? NULL : psprintf("%s%s", values == NULL ? "SELECT " : "",
									sql.data);
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
