/*
 * connection_postgres.c
 *		Sessions with remote PostgreSQL servers.
 *
 * Owns the sessions of this backend, one for a user and user mapping, and the
 * operations of connection.h on them.  Sessions outlive transactions, for a
 * new connection costs a thousand times what a probe does.  What is sent,
 * received and converted is the business of the other postgres_*.c files.
 *
 * Nothing is left behind in a remote session but a read-only transaction that
 * ends with the read, so a pooler may stand in between.
 *
 * Errors.  A function that waits or converts sets busy while it works.  An
 * error in it thus leaves the flag set, and the abort of the (sub)transaction
 * closes the connection, as nobody knows what is still to be received.  The
 * flag is the nesting level at the time, for a function called by a domain may
 * well have subtransactions of its own that fail.  When a
 * (sub)transaction aborts for another reason and the session was begun in it,
 * the remote transaction is ended and the connection kept if it can be.
 */
#include "postgres.h"

#include "access/xact.h"
#include "connection_postgres.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "port/pg_bswap.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

/* PUBLIC's mapping serves many users, and each must be checked for himself */
typedef struct SessionKey
{
	Oid			mapping;
	Oid			user;
} SessionKey;

typedef struct SessionEntry
{
	SessionKey	key;			/* must be first */
	PosPgSession *session;		/* NULL while it is being made */
} SessionEntry;

/* How an attempt to begin ended */
typedef enum Attempt
{
	ATTEMPT_DONE,
	ATTEMPT_LOST,				/* the kept connection is dead */
	ATTEMPT_STALE				/* what we know of the tables is out of date */
} Attempt;

static HTAB *sessions = NULL;

static PosConnection *get(ForeignServer *server, UserMapping *mapping);
static void begin(PosConnection *connection, PosTable **tables, int ntables,
				  PosSnapshot *snapshot);
static List *describe(PosConnection *connection, PosTable **tables,
					  int ntables);
static void request(PosConnection *connection, PosTable **tables, int ntables);
static bool next(PosConnection *connection, Datum *values, bool *nulls);
static void finish(PosConnection *connection);
static uint64 received(PosConnection *connection);

const PosConnectionOps pos_connection_postgres = {
	.wrapper = "possync_postgres",
	.capabilities = POS_CAP_SNAPSHOT | POS_CAP_CHANGED,
	.get = get,
	.begin = begin,
	.describe = describe,
	.request = request,
	.next = next,
	.finish = finish,
	.received = received,
};

static void make_sessions(void);
static PosPgSession *make_session(ForeignServer *server, UserMapping *mapping);
static void drop_session(SessionEntry *entry);
static void close_session(PosPgSession *session);
static void end_transaction(PosPgSession *session, const char *command);
static void end_read(PosPgSession *session);
static void enter(PosPgSession *session);
static void leave(PosPgSession *session);
static void clean_up(int level);
static void transaction_ended(XactEvent event, void *arg);
static void subtransaction_ended(SubXactEvent event, SubTransactionId mine,
								 SubTransactionId parent, void *arg);
static void options_changed(Datum arg, int cacheid, uint32 hash);
static Attempt try_begin(PosPgSession *session, PosTable **tables, int ntables,
						 bool kept);
static bool drain(PosPgSession *session);
static bool send_begin(PosPgSession *session, const char *question);
static bool send_piped(PosPgSession *session, const char *sql);
static void expect_piped(PosPgSession *session, ExecStatusType status);
static void end_pipeline(PosPgSession *session);
static bool out_of_date(PGresult *result);
static void receive_clock(PosPgSession *session);
static TimestampTz parse_time(const char *literal);
static void receive_probe(PosPgSession *session, PosTable **tables,
						  int ntables);
static void receive_positions(PosPgSession *session, PosTable **tables,
							  int ntables);
static void run(PosPgSession *session, const char *sql);
static bool all_described(PosPgSession *session, PosTable **tables,
						  int ntables);
static bool skip_header(PosPgSession *session, char **row, int *len);

static PosConnection *
get(ForeignServer *server, UserMapping *mapping)
{
	SessionKey	key = {.mapping = mapping->umid, .user = mapping->userid};
	SessionEntry *entry;
	bool		found;

	if (sessions == NULL)
		make_sessions();

	entry = hash_search(sessions, &key, HASH_ENTER, &found);
	if (!found)
		entry->session = NULL;

	if (entry->session != NULL &&
		(entry->session->state == POS_PG_OPEN ||
		 entry->session->state == POS_PG_READING))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("connection to server \"%s\" is in use",
						server->servername),
				 errhint("A trigger or function called by a synchronization cannot start another one with the same server.")));

	if (entry->session != NULL && entry->session->invalid)
		drop_session(entry);
	if (entry->session == NULL)
		entry->session = make_session(server, mapping);

	if (entry->session->state == POS_PG_CLOSED)
	{
		enter(entry->session);
		pos_pg_connect(entry->session);
		leave(entry->session);
	}

	return &entry->session->base;
}

static void
begin(PosConnection *connection, PosTable **tables, int ntables,
	  PosSnapshot *snapshot)
{
	PosPgSession *session = (PosPgSession *) connection;
	MemoryContext old;
	Attempt		attempt;

	enter(session);
	session->level = GetCurrentTransactionNestLevel();
	session->received = 0;
	for (int i = 0; i < ntables; i++)
	{
		tables[i]->changed = true;
		tables[i]->next_position = NULL;
		tables[i]->settled = false;
	}

	do
	{
		bool		kept = session->state == POS_PG_ENDING;

		end_read(session);
		session->read_context = AllocSetContextCreate(session->context,
													  "possync read",
													  ALLOCSET_DEFAULT_SIZES);
		old = MemoryContextSwitchTo(session->read_context);
		if (session->state == POS_PG_CLOSED)
			pos_pg_connect(session);
		attempt = try_begin(session, tables, ntables, kept);
		MemoryContextSwitchTo(old);

		if (attempt == ATTEMPT_LOST)
			close_session(session);
		else if (attempt == ATTEMPT_STALE)
		{
			pos_pg_describe_forget(session);
			end_transaction(session, "ROLLBACK");
		}
	} while (attempt != ATTEMPT_DONE);

	snapshot->now = parse_time(session->now);
	snapshot->complete = parse_time(session->cap);
	snapshot->source = pstrdup(session->source);
	leave(session);
}

static List *
describe(PosConnection *connection, PosTable **tables, int ntables)
{
	PosPgSession *session = (PosPgSession *) connection;
	List	   *problems = NIL;
	MemoryContext old;
	StringInfoData sql;

	enter(session);
	old = MemoryContextSwitchTo(session->read_context);
	initStringInfo(&sql);
	pos_pg_describe_query(&sql, tables, ntables);
	MemoryContextSwitchTo(old);
	run(session, sql.data);
	pos_pg_expect(session, PGRES_TUPLES_OK);
	pos_pg_describe_result(session, tables, ntables);
	if (pos_pg_result(session) != NULL)
		pos_pg_error(session);
	leave(session);

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
	char	   *positions;

	enter(session);

	old = MemoryContextSwitchTo(session->read_context);
	session->tables = palloc(sizeof(PosTable *) * ntables);
	memcpy(session->tables, tables, sizeof(PosTable *) * ntables);
	session->plans = palloc(sizeof(PosPgPlan *) * ntables);
	session->ntables = ntables;
	session->current = 0;
	session->copying = false;

	/* rows are taken as we have time for them, which is no fault of theirs */
	initStringInfo(&sql);
	appendStringInfoString(&sql, "SET LOCAL statement_timeout = 0");
	positions = pos_pg_query_positions(session, tables, ntables);
	if (positions != NULL)
		appendStringInfo(&sql, "; %s", positions);
	for (int i = 0; i < ntables; i++)
	{
		session->plans[i] = pos_pg_plan(session, tables[i]);
		appendStringInfo(&sql, "; %s",
						 pos_pg_query_rows(session, tables[i],
										   session->plans[i]));
	}
	MemoryContextSwitchTo(old);

	run(session, sql.data);
	session->state = POS_PG_READING;
	pos_pg_expect(session, PGRES_COMMAND_OK);
	for (int i = 0; i < ntables; i++)
	{
		tables[i]->next_position = NULL;
		tables[i]->settled = false;
	}
	if (positions != NULL)
	{
		pos_pg_expect(session, PGRES_TUPLES_OK);
		receive_positions(session, tables, ntables);
	}
	leave(session);
}

static bool
next(PosConnection *connection, Datum *values, bool *nulls)
{
	PosPgSession *session = (PosPgSession *) connection;
	char	   *row;
	int			len;

	Assert(session->state == POS_PG_READING);
	CHECK_FOR_INTERRUPTS();
	enter(session);

	if (!session->copying)
	{
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

		pos_pg_convert(session->plans[session->current], row, len,
					   values, nulls);
		leave(session);
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
	leave(session);

	return false;
}

static void
finish(PosConnection *connection)
{
	PosPgSession *session = (PosPgSession *) connection;

	end_read(session);
	if (session->state == POS_PG_OPEN && session->options.keep_connections)
		end_transaction(session, "COMMIT");
	else
		close_session(session);
}

static uint64
received(PosConnection *connection)
{
	return ((PosPgSession *) connection)->received;
}

/*
 * On first use in a backend: the table of sessions and the callbacks that
 * watch over it.
 */
static void
make_sessions(void)
{
	HASHCTL		ctl = {0};

	ctl.keysize = sizeof(SessionKey);
	ctl.entrysize = sizeof(SessionEntry);
	sessions = hash_create("possync sessions", 8, &ctl,
						   HASH_ELEM | HASH_BLOBS);

	RegisterXactCallback(transaction_ended, NULL);
	RegisterSubXactCallback(subtransaction_ended, NULL);
	CacheRegisterSyscacheCallback(FOREIGNSERVEROID, options_changed,
								  (Datum) 0);
	CacheRegisterSyscacheCallback(USERMAPPINGOID, options_changed, (Datum) 0);
}

/*
 * Makes a session that is not connected yet.
 */
static PosPgSession *
make_session(ForeignServer *server, UserMapping *mapping)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext,
												  "possync session",
												  ALLOCSET_SMALL_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	PosPgSession *session = palloc0(sizeof(PosPgSession));

	session->context = context;
	session->base.ops = &pos_connection_postgres;
	session->base.server = palloc0(sizeof(ForeignServer));
	session->base.server->serverid = server->serverid;
	session->base.server->fdwid = server->fdwid;
	session->base.server->owner = server->owner;
	session->base.server->servername = pstrdup(server->servername);
	session->mapping = palloc0(sizeof(UserMapping));
	session->mapping->umid = mapping->umid;
	session->mapping->userid = mapping->userid;
	session->mapping->serverid = mapping->serverid;
	session->mapping->options = copyObject(mapping->options);
	session->state = POS_PG_CLOSED;
	session->server_hash =
		GetSysCacheHashValue1(FOREIGNSERVEROID,
							  ObjectIdGetDatum(server->serverid));
	session->mapping_hash =
		GetSysCacheHashValue1(USERMAPPINGOID, ObjectIdGetDatum(mapping->umid));
	pos_pg_options_read(server, mapping, &session->options,
						&session->keywords, &session->values);
	MemoryContextSwitchTo(old);

	/* complete, so nothing is left behind by an error above */
	MemoryContextSetParent(context, CacheMemoryContext);

	return session;
}

static void
drop_session(SessionEntry *entry)
{
	close_session(entry->session);
	MemoryContextDelete(entry->session->context);
	entry->session = NULL;
}

/*
 * Closes the connection and forgets all that was learned through it.
 */
static void
close_session(PosPgSession *session)
{
	pos_pg_disconnect(session);
	pos_pg_describe_forget(session);
	end_read(session);
	if (session->source != NULL)
		pfree(session->source);
	session->source = NULL;
}

/*
 * Ends the remote transaction without waiting for the answer, which is read
 * when the session is used again.  Does not throw.
 */
static void
end_transaction(PosPgSession *session, const char *command)
{
	if (PQsendQuery(session->conn, command) && PQflush(session->conn) == 0)
		session->state = POS_PG_ENDING;
	else
		close_session(session);
}

static void
end_read(PosPgSession *session)
{
	if (session->read_context != NULL)
		MemoryContextDelete(session->read_context);
	session->read_context = NULL;
	session->cap = NULL;
	session->tables = NULL;
	session->plans = NULL;
	session->command = NULL;
}

/*
 * Around all that waits or converts: see the head of this file.
 */
static void
enter(PosPgSession *session)
{
	session->busy = GetCurrentTransactionNestLevel();
}

static void
leave(PosPgSession *session)
{
	session->busy = 0;
}

/*
 * At the end of a transaction of a nesting level: closes what an error left
 * in an unknown state, ends what was begun in it.
 */
static void
clean_up(int level)
{
	HASH_SEQ_STATUS scan;
	SessionEntry *entry;

	hash_seq_init(&scan, sessions);
	while ((entry = hash_seq_search(&scan)) != NULL)
	{
		PosPgSession *session = entry->session;

		if (session == NULL)
			continue;
		if (session->busy >= Max(level, 1))
		{
			close_session(session);
			leave(session);
		}
		else if (session->level < level)
			continue;
		else if (session->state == POS_PG_READING)
			close_session(session);
		else if (session->state == POS_PG_OPEN)
		{
			end_read(session);
			end_transaction(session, "ROLLBACK");
		}
	}
}

static void
transaction_ended(XactEvent event, void *arg)
{
	switch (event)
	{
		case XACT_EVENT_COMMIT:
		case XACT_EVENT_ABORT:
		case XACT_EVENT_PREPARE:
		case XACT_EVENT_PARALLEL_COMMIT:
		case XACT_EVENT_PARALLEL_ABORT:
			clean_up(0);
			break;
		case XACT_EVENT_PRE_COMMIT:
		case XACT_EVENT_PARALLEL_PRE_COMMIT:
		case XACT_EVENT_PRE_PREPARE:
			break;
	}
}

static void
subtransaction_ended(SubXactEvent event, SubTransactionId mine,
					 SubTransactionId parent, void *arg)
{
	int			level = GetCurrentTransactionNestLevel();

	if (event == SUBXACT_EVENT_ABORT_SUB)
		clean_up(level);
	else if (event == SUBXACT_EVENT_COMMIT_SUB)
	{
		HASH_SEQ_STATUS scan;
		SessionEntry *entry;

		/* what was begun in it now belongs to its parent */
		hash_seq_init(&scan, sessions);
		while ((entry = hash_seq_search(&scan)) != NULL)
		{
			if (entry->session != NULL && entry->session->level >= level)
				entry->session->level = level - 1;
		}
	}
}

/*
 * A session in use goes on to its end; the next get replaces it.
 */
static void
options_changed(Datum arg, int cacheid, uint32 hash)
{
	HASH_SEQ_STATUS scan;
	SessionEntry *entry;

	hash_seq_init(&scan, sessions);
	while ((entry = hash_seq_search(&scan)) != NULL)
	{
		PosPgSession *session = entry->session;

		if (session != NULL &&
			(hash == 0 ||
			 (cacheid == FOREIGNSERVEROID && session->server_hash == hash) ||
			 (cacheid == USERMAPPINGOID && session->mapping_hash == hash)))
			session->invalid = true;
	}
}

/*
 * Opens the snapshot and asks what changed.
 *
 * All in one pipeline if the tables are known; if not, the pipeline describes
 * them and the question is another round trip.  Only a kept connection may
 * turn out to be lost, and it must answer as fast as a new one would: its
 * first question needs no thinking.
 */
static Attempt
try_begin(PosPgSession *session, PosTable **tables, int ntables, bool kept)
{
	bool		known = all_described(session, tables, ntables);
	StringInfoData question;
	char	   *probe = NULL;

	if (kept && !drain(session))
		return ATTEMPT_LOST;

	initStringInfo(&question);
	if (!known)
		pos_pg_describe_query(&question, tables, ntables);
	else if ((probe = pos_pg_query_probe(session, tables, ntables)) != NULL)
		appendStringInfoString(&question, probe);

	if (!send_begin(session, question.data) && kept)
		return ATTEMPT_LOST;

	if (kept && !pos_pg_answers(session, session->options.connect_timeout))
		return ATTEMPT_LOST;
	(void) pos_pg_result(session);
	if (kept && pos_pg_lost(session))
		return ATTEMPT_LOST;
	receive_clock(session);

	expect_piped(session, PGRES_COMMAND_OK);	/* BEGIN */
	expect_piped(session, PGRES_TUPLES_OK); /* settings */
	if (question.len > 0)
	{
		session->command = question.data;
		(void) pos_pg_result(session);
		if (known && out_of_date(session->result))
		{
			end_pipeline(session);
			return ATTEMPT_STALE;
		}
		if (PQresultStatus(session->result) != PGRES_TUPLES_OK)
			pos_pg_error(session);
		if (known)
			receive_probe(session, tables, ntables);
		else
			pos_pg_describe_result(session, tables, ntables);
	}
	end_pipeline(session);
	session->state = POS_PG_OPEN;

	if (!known)
		probe = pos_pg_query_probe(session, tables, ntables);
	if (!known && probe != NULL)
	{
		run(session, probe);
		pos_pg_expect(session, PGRES_TUPLES_OK);
		receive_probe(session, tables, ntables);
		if (pos_pg_result(session) != NULL)
			pos_pg_error(session);
	}

	return ATTEMPT_DONE;
}

/*
 * Reads the answer to the end of the last transaction.  Returns false if the
 * connection does not give it.
 */
static bool
drain(PosPgSession *session)
{
	do
	{
		if (!pos_pg_answers(session, session->options.connect_timeout))
			return false;
		if (pos_pg_result(session) != NULL &&
			PQresultStatus(session->result) != PGRES_COMMAND_OK)
			return false;
	} while (session->result != NULL);

	session->state = POS_PG_IDLE;

	return true;
}

/*
 * Sends all that opens a snapshot, and a question to be answered in it unless
 * that is empty.  The clock stands before the snapshot, see postgres_query.c.
 * Returns false if the connection does not take it.
 */
static bool
send_begin(PosPgSession *session, const char *question)
{
	session->command = pos_pg_query_clock(session);
	if (!PQenterPipelineMode(session->conn) ||
		!send_piped(session, session->command) ||
		!PQpipelineSync(session->conn) ||
		!send_piped(session,
					"BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY") ||
		!send_piped(session, pos_pg_query_settings(session)) ||
		(question[0] != '\0' && !send_piped(session, question)) ||
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
 * Skips what is left in a pipeline and leaves it.
 */
static void
end_pipeline(PosPgSession *session)
{
	while (PQresultStatus(session->result) != PGRES_PIPELINE_SYNC)
	{
		if (pos_pg_result(session) == NULL &&
			PQstatus(session->conn) == CONNECTION_BAD)
			pos_pg_error(session);
	}
	if (!PQexitPipelineMode(session->conn))
		pos_pg_error(session);
}

/*
 * Whether a probe failed for something that describing the tables again tells
 * better: syntax error or access rule violation, SQLSTATE class 42.
 */
static bool
out_of_date(PGresult *result)
{
	const char *sqlstate = PQresultErrorField(result, PG_DIAG_SQLSTATE);

	return sqlstate != NULL && strncmp(sqlstate, "42", 2) == 0;
}

/*
 * Takes the answer to pos_pg_query_clock.
 */
static void
receive_clock(PosPgSession *session)
{
	PGresult   *res = session->result;

	if (PQresultStatus(res) != PGRES_TUPLES_OK || PQntuples(res) != 1)
		pos_pg_error(session);

	session->now = pstrdup(PQgetvalue(res, 0, 0));
	session->cap = pstrdup(PQgetvalue(res, 0, 1));
	if (session->source == NULL)
		session->source = MemoryContextStrdup(session->context,
											  PQgetvalue(res, 0, 2));

	if (pos_pg_result(session) != NULL)
		pos_pg_error(session);
	pos_pg_expect(session, PGRES_PIPELINE_SYNC);
}

static TimestampTz
parse_time(const char *literal)
{
	return DatumGetTimestampTz(DirectFunctionCall3(timestamptz_in,
												   CStringGetDatum(literal),
												   ObjectIdGetDatum(InvalidOid),
												   Int32GetDatum(-1)));
}

/*
 * Takes the answer to pos_pg_query_probe.
 */
static void
receive_probe(PosPgSession *session, PosTable **tables, int ntables)
{
	int			column = 0;

	for (int i = 0; i < ntables; i++)
	{
		if (pos_pg_query_probed(session, tables[i]))
			tables[i]->changed =
				PQgetvalue(session->result, 0, column++)[0] == 't';
	}
}

/*
 * Takes the answer to pos_pg_query_positions.
 */
static void
receive_positions(PosPgSession *session, PosTable **tables, int ntables)
{
	PGresult   *res = session->result;
	int			column = 0;

	for (int i = 0; i < ntables; i++)
	{
		if (tables[i]->nchange == 0)
			continue;
		if (!PQgetisnull(res, 0, column))
			tables[i]->next_position = pstrdup(PQgetvalue(res, 0, column));
		tables[i]->settled = PQgetvalue(res, 0, column + 1)[0] == 't';
		column += 2;
	}
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
		if (tables[i]->nchange > 0 && tables[i]->position != NULL &&
			tables[i]->nretry == 0 &&
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
	static const char signature[11] = "PGCOPY\n\377\r\n\0";
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
