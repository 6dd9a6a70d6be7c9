/*
 * postgres_wire.c
 *		One libpq connection: connecting, waiting, and its errors.
 *
 * Every wait in here answers interrupts, and ends when the remote has not sent
 * a byte for as long as the server's options allow.  The connection is
 * non-blocking, so that libpq itself never waits.  Knows nothing of what is
 * sent.
 */
#include "postgres.h"

#include "connection_postgres.h"
#include "libpq/libpq-be-fe-helpers.h"
#include "mb/pg_wchar.h"
#include "port/pg_bswap.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

/* How much of a command an error message shows, in bytes */
#define COMMAND_SHOWN 2000

pos_noreturn static void connect_failed(PosPgSession *session);
static char *plain_message(const char *message, int *code);
static int	wait_socket(PGconn *conn, int events, TimestampTz deadline);
static TimestampTz deadline_after(int timeout);
static void receive(PosPgSession *session);
pos_noreturn static void timed_out(PosPgSession *session);
static char *time_in_words(int milliseconds);
static void forget_result(PosPgSession *session);

/*
 * Connects a session.
 *
 * libpq's own connect_timeout only works in its blocking functions, so the
 * deadline is kept here; it holds for all hosts together.  Errors have the
 * server's SQLSTATE if it said one, else
 * ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION, and libpq's message.
 */
void
pos_pg_connect(PosPgSession *session)
{
	TimestampTz deadline = deadline_after(session->options.connect_timeout);
	PostgresPollingStatusType status = PGRES_POLLING_WRITING;

	Assert(session->state == POS_PG_CLOSED);

	pos_pg_options_check(session->base.mapping, session->keywords,
						 session->values);

	libpqsrv_connect_prepare();
	session->conn = PQconnectStartParams(session->keywords, session->values,
										 false);
	if (session->conn == NULL)
	{
		ReleaseExternalFD();
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY),
				 errmsg("out of memory")));
	}
	session->state = POS_PG_IDLE;
	(void) PQsetErrorVerbosity(session->conn, PQERRORS_VERBOSE);

	if (PQstatus(session->conn) == CONNECTION_BAD)
		connect_failed(session);

	while (status != PGRES_POLLING_OK)
	{
		if (status == PGRES_POLLING_FAILED)
			connect_failed(session);
		if (wait_socket(session->conn,
						status == PGRES_POLLING_READING ?
						WL_SOCKET_READABLE : WL_SOCKET_WRITEABLE,
						deadline) == 0)
			ereport(ERROR,
					(errcode(ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION),
					 errmsg("could not connect to server \"%s\"",
							session->base.server->servername),
					 errdetail("It did not answer within %s.",
							   time_in_words(session->options.connect_timeout)),
					 errhint("Option \"connect_timeout\" of the server sets the limit.")));
		status = PQconnectPoll(session->conn);
	}

	(void) PQsetErrorVerbosity(session->conn, PQERRORS_DEFAULT);
	pos_pg_options_check_connected(session->base.mapping, session->conn);

	if (PQsetnonblocking(session->conn, 1) != 0)
		connect_failed(session);
}

/*
 * Closes a session's connection, if it has one.  Does not throw.
 */
void
pos_pg_disconnect(PosPgSession *session)
{
	forget_result(session);
	libpqsrv_disconnect(session->conn);
	session->conn = NULL;
	session->state = POS_PG_CLOSED;
}

/*
 * Sends what was queued.
 */
void
pos_pg_flush(PosPgSession *session)
{
	while (PQflush(session->conn) > 0)
	{
		int			events;

		events = wait_socket(session->conn,
							 WL_SOCKET_READABLE | WL_SOCKET_WRITEABLE,
							 deadline_after(session->options.statement_timeout));
		if (events == 0)
			timed_out(session);

		/* the remote may be unable to read before we do */
		if ((events & WL_SOCKET_READABLE) && !PQconsumeInput(session->conn))
			break;
	}

	/*
	 * On failure go on: the remote may have said why before it went, and
	 * reading finds that out.
	 */
}

/*
 * Waits for the next result, which belongs to the session and lives until the
 * next call.  Returns NULL where PQgetResult does.
 */
PGresult *
pos_pg_result(PosPgSession *session)
{
	if (!pos_pg_answers(session, session->options.statement_timeout))
		timed_out(session);

	session->result = PQgetResult(session->conn);
	for (int row = 0; row < PQntuples(session->result); row++)
	{
		for (int column = 0; column < PQnfields(session->result); column++)
			session->received += PQgetlength(session->result, row, column);
	}

	return session->result;
}

/*
 * Waits until a result can be had without waiting.  Returns false if the
 * remote does not send a byte for timeout milliseconds (0: no limit).
 */
bool
pos_pg_answers(PosPgSession *session, int timeout)
{
	forget_result(session);
	while (PQisBusy(session->conn))
	{
		/* what is to be sent behind the question must not wait for the answer */
		int			more = PQflush(session->conn) > 0 ? WL_SOCKET_WRITEABLE : 0;

		if (wait_socket(session->conn, WL_SOCKET_READABLE | more,
						deadline_after(timeout)) == 0)
			return false;
		if (!PQconsumeInput(session->conn))
			break;				/* PQgetResult tells what happened */
	}

	return true;
}

/*
 * Whether the session's current result means that the connection is no more.
 * A server that ends a session says so with severity FATAL before it closes.
 */
bool
pos_pg_lost(PosPgSession *session)
{
	const char *severity;

	if (PQstatus(session->conn) == CONNECTION_BAD)
		return true;
	severity = PQresultErrorField(session->result,
								  PG_DIAG_SEVERITY_NONLOCALIZED);

	return severity != NULL && strcmp(severity, "FATAL") == 0;
}

/*
 * Waits for the next row of a COPY, which is then found in session->row until
 * the next call.  Returns its length, or -1 at the end of the COPY.
 */
int
pos_pg_row(PosPgSession *session)
{
	int			timeout = session->options.statement_timeout;
	bool		asked = false;
	int			len;

	if (session->row != NULL)
		PQfreemem(session->row);
	session->row = NULL;

	while ((len = PQgetCopyData(session->conn, &session->row, true)) == 0)
	{
		/*
		 * More has often arrived already, and to ask costs less than to set
		 * up a wait.
		 */
		if (asked && wait_socket(session->conn, WL_SOCKET_READABLE,
								 deadline_after(timeout)) == 0)
			timed_out(session);
		receive(session);
		asked = true;
	}

	if (len == -2)
		pos_pg_error(session);
	if (len > 0)
		session->received += len;

	return len;
}

/*
 * Waits for the next result and errors unless it is as expected.
 */
void
pos_pg_expect(PosPgSession *session, ExecStatusType status)
{
	if (PQresultStatus(pos_pg_result(session)) != status)
		pos_pg_error(session);
}

/*
 * Skips what is left in a pipeline and leaves it.
 */
void
pos_pg_end_pipeline(PosPgSession *session)
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
 * Errors unless the session's result is one row of so many columns: what is on
 * the other side need not be what it says it is.
 */
void
pos_pg_expect_row(PosPgSession *session, int ncolumns)
{
	PGresult   *res = session->result;

	if (PQresultStatus(res) != PGRES_TUPLES_OK || PQntuples(res) != 1 ||
		PQnfields(res) != ncolumns)
		pos_pg_error(session);
}

/*
 * Returns a column of a result of one row: a timestamp with time zone in binary
 * form, microseconds since 2000, as here.
 */
TimestampTz
pos_pg_time(PosPgSession *session, int column)
{
	uint64		n;

	if (PQgetlength(session->result, 0, column) != sizeof(n))
		pos_pg_error(session);
	memcpy(&n, PQgetvalue(session->result, 0, column), sizeof(n));

	return (TimestampTz) pg_ntoh64(n);
}

/*
 * Takes the remote's clock, which we asked for at session->asked and have just
 * received.  It was read somewhere in between.
 */
void
pos_pg_set_clock(PosPgSession *session, TimestampTz now)
{
	TimestampTz received = GetCurrentTimestamp();

	session->now = now;
	session->offset = now - (session->asked + (received - session->asked) / 2);
}

/*
 * Throws what the session's current result, or else its connection, says.
 *
 * SQLSTATE, message, detail, hint and context are the remote's.  Only its
 * query_canceled becomes another code: here that would mean that somebody
 * cancelled the local command, which nobody may catch.
 */
void
pos_pg_error(PosPgSession *session)
{
	PGresult   *res = session->result;
	const char *sqlstate = PQresultErrorField(res, PG_DIAG_SQLSTATE);
	const char *message = PQresultErrorField(res, PG_DIAG_MESSAGE_PRIMARY);
	const char *detail = PQresultErrorField(res, PG_DIAG_MESSAGE_DETAIL);
	const char *hint = PQresultErrorField(res, PG_DIAG_MESSAGE_HINT);
	const char *context = PQresultErrorField(res, PG_DIAG_CONTEXT);
	const char *command = session->command;
	int			code = ERRCODE_CONNECTION_FAILURE;

	if (sqlstate != NULL && strlen(sqlstate) == 5)
		code = MAKE_SQLSTATE(sqlstate[0], sqlstate[1], sqlstate[2],
							 sqlstate[3], sqlstate[4]);
	if (code == ERRCODE_QUERY_CANCELED)
		code = ERRCODE_FDW_UNABLE_TO_CREATE_EXECUTION;

	if (message == NULL)
		message = pchomp(PQerrorMessage(session->conn));
	if (message[0] == '\0' && res != NULL)
		message = psprintf("unexpected result %s",
						   PQresStatus(PQresultStatus(res)));
	else if (message[0] == '\0')
		message = "connection lost";

	if (command != NULL && strlen(command) > COMMAND_SHOWN)
		command = psprintf("%.*s...",
						   pg_mbcliplen(command, strlen(command),
										COMMAND_SHOWN), command);

	ereport(ERROR,
			(errcode(code),
			 errmsg_internal("%s", message),
			 detail ? errdetail_internal("%s", detail) : 0,
			 hint ? errhint("%s", hint) : 0,
			 context ? errcontext("%s", context) : 0,
			 command ? errcontext("remote SQL command: %s", command) : 0,
			 errcontext("server \"%s\"",
						session->base.server->servername)));
}

static void
connect_failed(PosPgSession *session)
{
	int			code = ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION;
	char	   *detail = plain_message(PQerrorMessage(session->conn), &code);

	ereport(ERROR,
			(errcode(code),
			 errmsg("could not connect to server \"%s\"",
					session->base.server->servername),
			 errdetail_internal("%s", detail)));
}

/* Whether a line tells a place in the source, as in "file.c:123". */
static bool
is_location(const char *line, size_t len)
{
	size_t		digits = 0;

	while (len > 0 && line[len - 1] >= '0' && line[len - 1] <= '9')
	{
		len--;
		digits++;
	}
	return digits > 0 && len > 3 && strncmp(line + len - 3, ".c:", 3) == 0;
}

/* Whether an SQLSTATE and what follows it begins at p. */
static bool
is_sqlstate(const char *p)
{
	return strspn(p, "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ") == 5 &&
		p[5] == ':' && p[6] == ' ';
}

/*
 * Returns a message about a failed connection without what it is verbose for,
 * and puts the server's SQLSTATE, if there is one, into code.  libpq tells that
 * in no other way.
 */
static char *
plain_message(const char *message, int *code)
{
	StringInfoData buf;

	initStringInfo(&buf);
	while (*message != '\0')
	{
		size_t		len = strcspn(message, "\n");
		const char *state = NULL;

		for (size_t i = 2; i < len && state == NULL; i++)
			if (strncmp(message + i - 2, "  ", 2) == 0 && is_sqlstate(message + i))
				state = message + i;
		if (state != NULL)
		{
			*code = MAKE_SQLSTATE(state[0], state[1], state[2], state[3], state[4]);
			appendBinaryStringInfo(&buf, message, state - message);
			appendBinaryStringInfo(&buf, state + 7, len - (state + 7 - message));
			appendStringInfoChar(&buf, '\n');
		}
		else if (!is_location(message, len))
		{
			appendBinaryStringInfo(&buf, message, len);
			appendStringInfoChar(&buf, '\n');
		}
		message += len + (message[len] == '\n' ? 1 : 0);
	}
	return pchomp(buf.data);
}

/*
 * Waits for the socket until a deadline (0: none).  Returns the events that
 * came, 0 when there was none in time.
 */
static int
wait_socket(PGconn *conn, int events, TimestampTz deadline)
{
	for (;;)
	{
		long		timeout = -1;
		int			rc;

		if (deadline != 0)
			timeout = TimestampDifferenceMilliseconds(GetCurrentTimestamp(),
													  deadline);
		rc = WaitLatchOrSocket(MyLatch,
							   WL_EXIT_ON_PM_DEATH | WL_LATCH_SET | events |
							   (deadline != 0 ? WL_TIMEOUT : 0),
							   PQsocket(conn), timeout, PG_WAIT_EXTENSION);
		if (rc & WL_LATCH_SET)
		{
			ResetLatch(MyLatch);
			CHECK_FOR_INTERRUPTS();
		}
		if (rc & events)
			return rc & events;
		if (rc & WL_TIMEOUT)
			return 0;
	}
}

static TimestampTz
deadline_after(int timeout)
{
	return timeout == 0 ? 0 :
		TimestampTzPlusMilliseconds(GetCurrentTimestamp(), timeout);
}

static void
receive(PosPgSession *session)
{
	if (!PQconsumeInput(session->conn))
	{
		forget_result(session);

		/* the remote's last words, if it had any */
		if (!PQisBusy(session->conn))
			session->result = PQgetResult(session->conn);
		pos_pg_error(session);
	}
}

static void
timed_out(PosPgSession *session)
{
	ereport(ERROR,
			(errcode(ERRCODE_CONNECTION_FAILURE),
			 errmsg("server \"%s\" does not answer",
					session->base.server->servername),
			 errdetail("Nothing was received for %s.",
					   time_in_words(session->options.statement_timeout)),
			 errhint("Option \"statement_timeout\" of the server sets the limit.")));
}

static char *
time_in_words(int milliseconds)
{
	if (milliseconds % 1000 != 0)
		return psprintf("%d ms", milliseconds);
	return psprintf(ngettext("%d second", "%d seconds", milliseconds / 1000),
					milliseconds / 1000);
}

static void
forget_result(PosPgSession *session)
{
	PQclear(session->result);
	session->result = NULL;
	if (session->row != NULL)
		PQfreemem(session->row);
	session->row = NULL;
}
