/*
 * postgres_session.c
 *		A session with a remote PostgreSQL: connected, used, closed.
 *
 * Nothing is left behind in a remote session but a read-only transaction that
 * ends with the read, and statements that mean the same to everybody (see
 * postgres_poll.c), so a pooler may stand in between.
 *
 * Errors.  Around all that waits or converts stand pos_pg_session_enter and
 * _leave.  An error in between leaves the mark set, and the abort of the
 * (sub)transaction closes the connection, as nobody knows what is still to be
 * received.  The mark is the nesting level at the time, for a function called
 * by a domain may well have subtransactions of its own that fail.  When a
 * (sub)transaction aborts for another reason and the read was begun in it, the
 * remote transaction is ended and the connection kept if it can be.
 */
#include "postgres.h"

#include "access/xact.h"
#include "connection_postgres.h"
#include "utils/memutils.h"

/* See connection.h: make */
PosConnection *
pos_pg_session_make(ForeignServer *server, UserMapping *mapping)
{
	PosPgSession *session = palloc0(sizeof(PosPgSession));

	session->state = POS_PG_CLOSED;
	pos_pg_options_read(server, mapping, &session->options,
						&session->keywords, &session->values);
	return &session->base;
}

/*
 * Whether the remote has ended a kept session and said so: nobody asks it.  What it
 * said before it closed is read first.
 */
static bool
has_ended(PosPgSession *session)
{
	return !PQconsumeInput(session->conn) || !PQconsumeInput(session->conn);
}

/* See connection.h: ready */
void
pos_pg_session_ready(PosConnection *connection)
{
	PosPgSession *session = (PosPgSession *) connection;

	if (pos_pg_session_use(connection) == POS_USE_NONE &&
		session->state != POS_PG_CLOSED && has_ended(session))
		pos_pg_session_close(session);
	if (session->state != POS_PG_CLOSED)
		return;
	pos_pg_session_enter(session);
	pos_pg_connect(session);
	pos_pg_session_leave(session);
}

/* See connection.h: use */
PosUse
pos_pg_session_use(PosConnection *connection)
{
	switch (((PosPgSession *) connection)->state)
	{
		case POS_PG_OPEN:
		case POS_PG_READING:
			return POS_USE_READING;
		case POS_PG_WRITING:
			return POS_USE_WRITING;
		default:
			return POS_USE_NONE;
	}
}

/* See connection.h: drop */
void
pos_pg_session_drop(PosConnection *connection)
{
	pos_pg_session_close((PosPgSession *) connection);
}

/* See connection.h: ended */
void
pos_pg_session_ended(PosConnection *connection, int level)
{
	PosPgSession *session = (PosPgSession *) connection;

	if (session->busy >= Max(level, 1))
	{
		pos_pg_session_close(session);
		pos_pg_session_leave(session);
	}
	else if (connection->level < level)
		return;
	else if (session->state == POS_PG_READING)
		pos_pg_session_close(session);
	else if (session->state == POS_PG_OPEN)
	{
		pos_pg_session_forget_read(session);
		pos_pg_session_end(session, "ROLLBACK");
	}
}

/*
 * Closes the connection and forgets all that was learned through it.
 */
void
pos_pg_session_close(PosPgSession *session)
{
	session->base.broken = true;
	session->ahead = NULL;
	pos_pg_disconnect(session);
	pos_pg_relation_forget(session);
	pos_pg_session_forget_read(session);
	if (session->source != NULL)
		pfree(session->source);
	session->source = NULL;
	pos_pg_poll_forget(session);
}

/*
 * Ends the remote transaction without waiting for the answer, which is read
 * when the session is used again: the next read is sent right behind it in the
 * same pipeline, so that it costs nobody a round trip.  Does not throw.
 */
void
pos_pg_session_end(PosPgSession *session, const char *command)
{
	if (PQenterPipelineMode(session->conn) &&
		PQsendQueryParams(session->conn, command, 0, NULL, NULL, NULL, NULL,
						  0) &&
		PQpipelineSync(session->conn) && PQflush(session->conn) == 0)
		session->state = POS_PG_ENDING;
	else
		pos_pg_session_close(session);
}

/*
 * Reads the answer to the end of the last transaction.  Returns false if the
 * connection does not give it.
 */
bool
pos_pg_session_drain(PosPgSession *session)
{
	static const ExecStatusType expected[] = {
		PGRES_COMMAND_OK, PGRES_FATAL_ERROR /* no result */ , PGRES_PIPELINE_SYNC
	};

	for (int i = 0; i < lengthof(expected); i++)
	{
		if (!pos_pg_answers(session, session->options.connect_timeout) ||
			PQresultStatus(pos_pg_result(session)) != expected[i])
			return false;
	}

	return true;
}

/*
 * Forgets what belongs to one read.
 */
void
pos_pg_session_forget_read(PosPgSession *session)
{
	if (session->read_context != NULL)
		MemoryContextDelete(session->read_context);
	session->read_context = NULL;
	session->digest_context = NULL;
	session->tables = NULL;
	session->plans = NULL;
	session->queries = NULL;
	session->command = NULL;
}

/*
 * Around all that waits or converts: see the head of this file.
 */
void
pos_pg_session_enter(PosPgSession *session)
{
	session->busy = GetCurrentTransactionNestLevel();
}

void
pos_pg_session_leave(PosPgSession *session)
{
	session->busy = 0;
}
