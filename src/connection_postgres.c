/*
 * connection_postgres.c
 *		The operations of connection.h on a remote PostgreSQL.
 *
 * Owns the course of a read: what is asked when, and what is answered in one
 * go.  Sessions, SQL, conversion and libpq's ways are the business of the
 * other postgres_*.c files.
 *
 * A read in which nothing changed is one statement, if the tables are known from
 * an earlier one, see postgres_poll.c.  If something changed, it is three round
 * trips: that, the snapshot with what changed in it and what the tables look
 * like, and the rows.
 */
#include "postgres.h"

#include "access/xact.h"
#include "connection_postgres.h"
#include "miscadmin.h"
#include "port/pg_bswap.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

/* How an attempt to begin ended */
typedef enum Attempt
{
	ATTEMPT_DONE,
	ATTEMPT_CHANGED,			/* a snapshot is needed */
	ATTEMPT_LOST,				/* the kept connection is dead */
	ATTEMPT_STALE				/* what we know of the tables is out of date */
} Attempt;

static bool accepts(const char *remote);
static char *propose(const char *schema, const char *table);
static void begin(PosConnection *connection, PosTable **tables, int ntables,
				  PosSnapshot *snapshot);
static List *describe(PosConnection *connection, PosTable **tables,
					  int ntables);
static void request(PosConnection *connection, PosTable **tables, int ntables);
static bool next(PosConnection *connection, Datum *values, bool *nulls);
static void finish(PosConnection *connection);
static uint64 received(PosConnection *connection);
static const char *source(PosConnection *connection);

const PosConnectionOps pos_connection_postgres = {
	.wrapper = "possync_postgres",
	.capabilities = POS_CAP_SNAPSHOT | POS_CAP_PARTS | POS_CAP_WRITE |
	POS_CAP_DIGEST,
	.naming = "Write schema.table as in SQL, in double quotes where that has to be quoted.",
	.accepts = accepts,
	.propose = propose,
	.make = pos_pg_session_make,
	.ready = pos_pg_session_ready,
	.use = pos_pg_session_use,
	.drop = pos_pg_session_drop,
	.ended = pos_pg_session_ended,
	.begin = begin,
	.describe = describe,
	.digest = pos_pg_digest,
	.digest_next = pos_pg_digest_next,
	.request = request,
	.next = next,
	.finish = finish,
	.expect = pos_pg_expect_tables,
	.send = pos_pg_write_send,
	.pump = pos_pg_write_pump,
	.ahead = pos_pg_write_ahead,
	.retract = pos_pg_write_retract,
	.receive = pos_pg_write_receive,
	.abandon = pos_pg_write_abandon,
	.received = received,
	.source = source,
};

static bool can_poll(PosPgSession *session, PosTable **tables, int ntables);
static Attempt try_poll(PosPgSession *session, PosTable **tables, int ntables);
static Attempt try_begin(PosPgSession *session, PosTable **tables, int ntables,
						 bool kept);
static bool send_begin(PosPgSession *session, const char *probe,
					   const char *description);
static bool send_piped(PosPgSession *session, const char *sql);
static void expect_piped(PosPgSession *session, ExecStatusType status);
static bool out_of_date(PGresult *result);
static bool receive_clock(PosPgSession *session);
static void receive_probe(PosPgSession *session, PosTable **tables,
						  int ntables);
static void run(PosPgSession *session, const char *sql);
static bool all_described(PosPgSession *session, PosTable **tables,
						  int ntables);
static bool skip_header(PosPgSession *session, char **row, int *len);

/*
 * The operations; connection.h says what each is for.
 */
static bool
accepts(const char *remote)
{
	return pos_pg_is_name(remote);
}

static char *
propose(const char *schema, const char *table)
{
	return quote_qualified_identifier(schema, table);
}

static void
begin(PosConnection *connection, PosTable **tables, int ntables,
	  PosSnapshot *snapshot)
{
	PosPgSession *session = (PosPgSession *) connection;
	MemoryContext old;
	Attempt		attempt = ATTEMPT_LOST;

	if (session->state == POS_PG_WRITING)
		pos_connection_in_use(connection);
	pos_pg_session_enter(session);
	session->base.level = GetCurrentTransactionNestLevel();
	session->received = 0;
	for (int i = 0; i < ntables; i++)
	{
		tables[i]->changed = true;
		tables[i]->logged = false;
		tables[i]->next_position = NULL;
		tables[i]->settled = false;
	}

	do
	{
		bool		kept = session->state != POS_PG_CLOSED;

		pos_pg_session_forget_read(session);
		session->read_context = AllocSetContextCreate(session->base.context,
													  "possync read",
													  ALLOCSET_DEFAULT_SIZES);
		old = MemoryContextSwitchTo(session->read_context);
		pos_pg_positions_read(session, tables, ntables);
		if (session->state == POS_PG_CLOSED)
			pos_pg_connect(session);
		else if (can_poll(session, tables, ntables))
			attempt = try_poll(session, tables, ntables);
		else
			attempt = ATTEMPT_CHANGED;
		if (!kept || attempt == ATTEMPT_CHANGED)
			attempt = try_begin(session, tables, ntables, kept);
		MemoryContextSwitchTo(old);

		if (attempt == ATTEMPT_LOST)
			pos_pg_session_close(session);
		else if (attempt == ATTEMPT_STALE)
		{
			pos_pg_relation_forget(session);
			pos_pg_session_end(session, "ROLLBACK");
		}
	} while (attempt != ATTEMPT_DONE);

	for (int i = 0; i < ntables; i++)
	{
		tables[i]->logged = pos_pg_position_snapshot(session, tables[i]) != NULL;
		tables[i]->exact = pos_pg_position_exact(session, tables[i]);
	}
	session->base.broken = false;
	snapshot->now = session->now;
	snapshot->offset = session->offset;
	snapshot->complete = session->complete;
	snapshot->source = pstrdup(session->source);
	snapshot->encoding = pstrdup(pos_pg_encoding(session));
	snapshot->by_value = PQserverVersion(session->conn) >= 140000;
	pos_pg_session_leave(session);
}

static List *
describe(PosConnection *connection, PosTable **tables, int ntables)
{
	PosPgSession *session = (PosPgSession *) connection;
	List	   *problems = NIL;

	for (int i = 0; i < ntables; i++)
		problems = list_concat(problems,
							   pos_pg_describe_check(session, tables[i]));

	return problems;
}

static void
request(PosConnection *connection, PosTable **tables, int ntables)
{
	PosPgSession *session = (PosPgSession *) connection;
	MemoryContext old;
	StringInfoData sql;

	pos_pg_session_enter(session);

	old = MemoryContextSwitchTo(session->read_context);
	session->tables = palloc(sizeof(PosTable *) * ntables);
	memcpy(session->tables, tables, sizeof(PosTable *) * ntables);
	session->plans = palloc(sizeof(PosPgPlan *) * ntables);
	session->queries = palloc(sizeof(char *) * ntables);
	session->ntables = ntables;
	session->current = 0;
	session->copying = false;

	/* rows are taken as we have time for them, which is no fault of theirs */
	initStringInfo(&sql);
	appendStringInfoString(&sql, "SET LOCAL statement_timeout = 0");
	appendStringInfoString(&sql, "; ");
	pos_pg_describe_moved_query(&sql, session, tables, ntables);
	appendStringInfo(&sql, "; %s",
					 pos_pg_positions_query(session, tables, ntables));
	for (int i = 0; i < ntables; i++)
	{
		session->plans[i] = pos_pg_plan(session, tables[i]);
		session->queries[i] = pos_pg_query_rows(session, tables[i],
												session->plans[i]);
		appendStringInfo(&sql, "; %s", session->queries[i]);
	}
	MemoryContextSwitchTo(old);

	run(session, sql.data);
	session->state = POS_PG_READING;
	pos_pg_expect(session, PGRES_COMMAND_OK);
	pos_pg_describe_unmoved(session);
	for (int i = 0; i < ntables; i++)
	{
		tables[i]->next_position = NULL;
		tables[i]->settled = false;
	}
	pos_pg_expect(session, PGRES_TUPLES_OK);
	pos_pg_positions_receive(session, tables, ntables);
	pos_pg_session_leave(session);
}

static bool
next(PosConnection *connection, Datum *values, bool *nulls)
{
	PosPgSession *session = (PosPgSession *) connection;
	char	   *row;
	int			len;

	Assert(session->state == POS_PG_READING);
	CHECK_FOR_INTERRUPTS();
	pos_pg_session_enter(session);

	if (!session->copying)
	{
		session->command = session->queries[session->current];
		pos_pg_expect(session, PGRES_COPY_OUT);
		session->copying = true;
		session->header = false;
	}

	while ((len = pos_pg_row(session)) >= 0)
	{
		row = session->row;
		if (!session->header && !skip_header(session, &row, &len))
			continue;

		/* the end is marked by a row of -1 columns */
		if (len == 2 && memcmp(row, "\377\377", 2) == 0)
			continue;

		/* the row is taken: if it cannot be converted, others can */
		pos_pg_session_leave(session);
		pos_pg_position_seen(session, session->tables[session->current]);
		pos_pg_convert(session->plans[session->current], row, len,
					   values, nulls);
		return true;
	}

	pos_pg_expect(session, PGRES_COMMAND_OK);
	session->copying = false;
	if (++session->current == session->ntables)
	{
		if (pos_pg_result(session) != NULL)
			pos_pg_error(session);
		session->state = POS_PG_OPEN;
	}
	pos_pg_session_leave(session);

	return false;
}

static void
finish(PosConnection *connection)
{
	PosPgSession *session = (PosPgSession *) connection;

	pos_pg_session_forget_read(session);
	if (!session->options.keep_connections)
		pos_pg_session_close(session);
	else if (session->state == POS_PG_OPEN)
		pos_pg_session_end(session, "COMMIT");
	else if (session->state != POS_PG_IDLE)
		pos_pg_session_close(session);
}

static uint64
received(PosConnection *connection)
{
	return ((PosPgSession *) connection)->received;
}

static const char *
source(PosConnection *connection)
{
	return ((PosPgSession *) connection)->source;
}

/*
 * Whether a poll can tell that nothing changed.
 */
static bool
can_poll(PosPgSession *session, PosTable **tables, int ntables)
{
	if (!all_described(session, tables, ntables))
		return false;
	for (int i = 0; i < ntables; i++)
		if (!pos_pg_query_probed(session, tables[i]))
			return false;

	return ntables > 0;
}

static Attempt
try_poll(PosPgSession *session, PosTable **tables, int ntables)
{
	switch (pos_pg_poll(session, tables, ntables))
	{
		case POS_PG_POLL_LOST:
			return ATTEMPT_LOST;
		case POS_PG_POLL_CHANGED:
			return ATTEMPT_CHANGED;
		case POS_PG_POLL_UNCHANGED:
			break;
	}
	for (int i = 0; i < ntables; i++)
		if (pos_pg_position_sweeps(session, tables[i]))
			return ATTEMPT_CHANGED;
	for (int i = 0; i < ntables; i++)
		tables[i]->changed = false;

	return ATTEMPT_DONE;
}

/*
 * Opens the snapshot, asks what changed, and describes the tables.
 *
 * All in one pipeline if the tables are known; if not, what changed is another
 * round trip.  Only a kept connection may turn out to be lost, and it must answer
 * as fast as a new one would: its first question needs no thinking.
 */
static Attempt
try_begin(PosPgSession *session, PosTable **tables, int ntables, bool kept)
{
	bool		changed = false;
	bool		known = all_described(session, tables, ntables);
	StringInfoData description;
	char	   *probe = NULL;

	session->snapshot = NULL;
	initStringInfo(&description);
	pos_pg_describe_query(&description, tables, ntables);
	if (known)
		probe = pos_pg_query_probe(session, tables, ntables);

	if (!send_begin(session, probe, description.data) && kept)
		return ATTEMPT_LOST;
	if (session->state == POS_PG_ENDING && !pos_pg_session_drain(session))
		return ATTEMPT_LOST;

	if (kept && !pos_pg_answers(session, session->options.connect_timeout))
		return ATTEMPT_LOST;
	(void) pos_pg_result(session);
	if (kept && pos_pg_lost(session))
		return ATTEMPT_LOST;
	if (!receive_clock(session))
		return ATTEMPT_LOST;

	/* whether they belong to this source is known from here on */
	pos_pg_positions_read(session, tables, ntables);

	expect_piped(session, PGRES_COMMAND_OK);	/* BEGIN */
	expect_piped(session, PGRES_TUPLES_OK); /* settings */
	if (probe != NULL)
	{
		session->command = probe;
		(void) pos_pg_result(session);
		if (out_of_date(session->result))
		{
			pos_pg_end_pipeline(session);
			return ATTEMPT_STALE;
		}
		receive_probe(session, tables, ntables);
		if (pos_pg_result(session) != NULL)
			pos_pg_error(session);
	}
	session->command = description.data;
	pos_pg_expect(session, PGRES_TUPLES_OK);
	pos_pg_describe_result(session, tables, ntables);
	pos_pg_positions_compare(session, tables, ntables);
	pos_pg_end_pipeline(session);
	session->state = POS_PG_OPEN;

	if (!known &&
		(probe = pos_pg_query_probe(session, tables, ntables)) != NULL)
	{
		run(session, probe);
		pos_pg_expect(session, PGRES_TUPLES_OK);
		receive_probe(session, tables, ntables);
		if (pos_pg_result(session) != NULL)
			pos_pg_error(session);
	}
	for (int i = 0; i < ntables; i++)
	{
		if (pos_pg_position_sweeps(session, tables[i]))
			tables[i]->changed = true;
		changed = changed || tables[i]->changed;
	}
	if (!changed)
		pos_pg_poll_remember(session, tables, ntables, session->snapshot);

	return ATTEMPT_DONE;
}

/*
 * Sends all that opens a snapshot, and the questions to be answered in it; probe
 * may be NULL.  The clock stands before the snapshot, see postgres_query.c.
 * Returns false if the connection does not take it.
 */
static bool
send_begin(PosPgSession *session, const char *probe, const char *description)
{
	session->command = pos_pg_query_clock(session);
	session->asked = GetCurrentTimestamp();
	if (!PQenterPipelineMode(session->conn) ||
		!PQsendQueryParams(session->conn, session->command, 0, NULL, NULL,
						   NULL, NULL, 1) ||
		!PQpipelineSync(session->conn) ||
		!send_piped(session,
					"BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY") ||
		!send_piped(session, pos_pg_query_settings(session, false)) ||
		(probe != NULL && !send_piped(session, probe)) ||
		!send_piped(session, description) ||
		!PQpipelineSync(session->conn))
		return false;
	pos_pg_flush(session);

	return true;
}

static bool
send_piped(PosPgSession *session, const char *sql)
{
	return PQsendQueryParams(session->conn, sql, 0, NULL, NULL, NULL, NULL, 0);
}

/*
 * Waits for the result of a command in a pipeline and the end of it.
 */
static void
expect_piped(PosPgSession *session, ExecStatusType status)
{
	pos_pg_expect(session, status);
	if (pos_pg_result(session) != NULL)
		pos_pg_error(session);
}

/*
 * Whether a probe failed for something that describing the tables again tells
 * better: syntax error or access rule violation, SQLSTATE class 42, or a position
 * that is no value of its column any more, class 22.
 */
static bool
out_of_date(PGresult *result)
{
	const char *sqlstate = PQresultErrorField(result, PG_DIAG_SQLSTATE);

	return sqlstate != NULL && (strncmp(sqlstate, "42", 2) == 0 ||
								strncmp(sqlstate, "22", 2) == 0);
}

/* Whether a column of a result of one row, a boolean in binary form, is true. */
static bool
is_true(PGresult *result, int column)
{
	return PQgetlength(result, 0, column) == 1 &&
		PQgetvalue(result, 0, column)[0] != 0;
}

/*
 * Takes the answer to pos_pg_query_clock.  Returns false if it comes from another
 * server than we know, which may happen behind a pooler.
 */
static bool
receive_clock(PosPgSession *session)
{
	PGresult   *res = session->result;
	TimestampTz started;

	pos_pg_expect_row(session, 7);
	pos_pg_set_clock(session, pos_pg_time(session, 0));
	session->complete = pos_pg_time(session, 1);
	session->sees_running = is_true(res, 4);
	session->direct = is_true(res, 5);
	session->oldest = PQgetisnull(res, 0, 6) ? PG_UINT64_MAX :
		strtou64(PQgetvalue(res, 0, 6), NULL, 10);
	started = pos_pg_time(session, 2);
	if (session->source == NULL)
	{
		session->started = started;
		session->source = MemoryContextStrdup(session->base.context,
											  PQgetvalue(res, 0, 3));
	}
	else if (session->started != started)
		return false;

	if (pos_pg_result(session) != NULL)
		pos_pg_error(session);
	pos_pg_expect(session, PGRES_PIPELINE_SYNC);

	return true;
}

/*
 * Takes the answer to pos_pg_query_probe.
 */
static void
receive_probe(PosPgSession *session, PosTable **tables, int ntables)
{
	int			column = 0;
	List	   *unlogged = NIL;
	ListCell   *lc;

	for (int i = 0; i < ntables; i++)
		column += pos_pg_query_probed(session, tables[i]);
	pos_pg_expect_row(session, column + 1);
	session->snapshot = pstrdup(PQgetvalue(session->result, 0, column));
	column = 0;
	for (int i = 0; i < ntables; i++)
	{
		char		answer;

		if (!pos_pg_query_probed(session, tables[i]))
			continue;
		answer = PQgetvalue(session->result, 0, column++)[0];
		tables[i]->changed = answer == 't' || answer == 'x';
		if (answer == 'x')
			unlogged = lappend(unlogged, tables[i]);
	}

	/* which is part of what tells whether a table was asked for */
	foreach(lc, unlogged)
		pos_pg_position_unlogged(lfirst(lc));
}

/*
 * Sends a command of one or more statements.
 */
static void
run(PosPgSession *session, const char *sql)
{
	session->command = sql;
	if (!PQsendQuery(session->conn, sql))
		pos_pg_error(session);
	pos_pg_flush(session);
}

/*
 * Whether everything is known that the probe has to know.
 */
static bool
all_described(PosPgSession *session, PosTable **tables, int ntables)
{
	for (int i = 0; i < ntables; i++)
	{
		if (tables[i]->position != NULL && tables[i]->nretry == 0 &&
			pos_pg_relation(session, tables[i]->remote) == NULL)
			return false;
	}

	return true;
}

/*
 * Skips the header of a binary COPY, which comes alone or before the first
 * row.  Returns false if nothing follows it.
 */
static bool
skip_header(PosPgSession *session, char **row, int *len)
{
	static const char signature[] = "PGCOPY\n\377\r\n"; /* and its zero byte */
	uint32		flags;
	uint32		extension;
	int			size = sizeof(signature) + sizeof(flags) + sizeof(extension);

	if (*len < size || memcmp(*row, signature, sizeof(signature)) != 0)
		pos_pg_error(session);
	memcpy(&extension, *row + size - sizeof(extension), sizeof(extension));
	size += pg_ntoh32(extension);
	if (*len < size)
		pos_pg_error(session);

	*row += size;
	*len -= size;
	session->header = true;

	return *len > 0;
}
