/*
 * postgres_write.c
 *		Rows on their way to a remote PostgreSQL.
 *
 * All statements of a write go out in one pipeline between BEGIN and COMMIT.  Those
 * of the next one may follow before the answers have been read, without their COMMIT:
 * so the remote is at work on them while it becomes clear whether that may be sent.
 * Not through a pooler, which gives the remote's session to others when a transaction
 * ends, whatever has been sent behind it.
 *
 * Those sent ahead have a sync of their own: until their COMMIT comes, which may be
 * never, the remote's session is idle in a transaction, and that it limits.
 */
#include "postgres.h"

#include "access/xact.h"
#include "connection_postgres.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

static void fail(PosPgSession *session);
static void leave(PosPgSession *session);

static bool
is_sent_again(PosStep *step)
{
	return step->kind == POS_STEP_INSERT && step->again;
}

static bool
send(PosPgSession *session, const char *sql, const char *rows)
{
	const char *values[1] = {rows};

	return PQsendQueryParams(session->conn, sql, rows == NULL ? 0 : 1, NULL,
							 values, NULL, NULL, 0) == 1;
}

/* Takes the rows that a step's statement returned. */
static void
take_answers(PosPgSession *session, PosStep *step)
{
	PGresult   *res = session->result;
	int			first = step->kind == POS_STEP_MATCH ? 1 : 0;
	int			ncolumns = PQnfields(res) - first;

	if (ncolumns != (first == 1 ? step->table->nkey : step->ncolumns))
		fail(session);
	step->nanswers = PQntuples(res);
	step->row = palloc(Max(step->nanswers, 1) * sizeof(int));
	step->answers = palloc(Max(step->nanswers * ncolumns, 1) * sizeof(char *));
	for (int i = 0; i < step->nanswers; i++)
	{
		step->row[i] = first == 1 ? atoi(PQgetvalue(res, i, 0)) - 1 : i;
		for (int j = 0; j < ncolumns; j++)
			step->answers[i * ncolumns + j] =
				pstrdup(PQgetvalue(res, i, first + j));
	}
}

/* Reads the result of one command of the pipeline. */
static void
expect(PosPgSession *session, ExecStatusType status)
{
	if (PQresultStatus(pos_pg_result(session)) != status)
		fail(session);
}

static void
expect_end(PosPgSession *session)
{
	if (pos_pg_result(session) != NULL)
		fail(session);
}

static void
expect_sync(PosPgSession *session)
{
	expect(session, PGRES_PIPELINE_SYNC);
	session->nsyncs--;
}

/*
 * Makes the session ready for other things after an error that stands in its
 * result, if the remote lives: what is left of the pipeline is skipped, the
 * transaction rolled back.
 */
static void
leave(PosPgSession *session)
{
	PGresult   *error = session->result;

	session->ahead = NULL;
	if (error != NULL && PQstatus(session->conn) == CONNECTION_OK &&
		!pos_pg_lost(session))
	{
		session->result = NULL;
		do
		{
			if (PQresultStatus(pos_pg_result(session)) == PGRES_PIPELINE_SYNC)
				session->nsyncs--;
		} while (PQstatus(session->conn) == CONNECTION_OK && session->nsyncs > 0);
		PQclear(session->result);
		session->result = error;
		if (PQstatus(session->conn) == CONNECTION_OK)
		{
			*session->pending = session->repeated;
			if (PQtransactionStatus(session->conn) == PQTRANS_IDLE &&
				PQexitPipelineMode(session->conn))
				session->state = POS_PG_IDLE;
			else
				pos_pg_session_end(session, "ROLLBACK");
			pos_pg_session_leave(session);
		}
	}
}

/* Raises the error that stands in the session's result. */
static void
fail(PosPgSession *session)
{
	leave(session);
	pos_pg_error(session);
}

/*
 * Raises the error of a step's statement.  Conditions that SQL has no error of
 * its own for make a cast fail; they are told as what they are.
 */
static void
complain(PosPgSession *session, PosStep *step)
{
	const char *message = PQresultErrorField(session->result,
											 PG_DIAG_MESSAGE_PRIMARY);
	const char *complaint = message == NULL ? NULL : strstr(message, POS_PG_COMPLAINT);

	if (complaint == NULL || strrchr(complaint, POS_PG_COMPLAINT_END[0]) == NULL)
		fail(session);
	complaint += strlen(POS_PG_COMPLAINT);
	complaint = pnstrdup(complaint, strrchr(complaint, POS_PG_COMPLAINT_END[0]) - complaint);
	leave(session);
	if (step->kind == POS_STEP_EXPECT)
	{
		step->blamed = complaint;
		ereport(ERROR,
				(errcode(ERRCODE_TRIGGERED_DATA_CHANGE_VIOLATION),
				 errmsg("row %s of \"%s\" was changed at the remote, too",
						complaint, step->table->local)));
	}
	ereport(ERROR,
			(errcode(step->kind == POS_STEP_CLAIM ? ERRCODE_UNIQUE_VIOLATION :
					 ERRCODE_DATA_EXCEPTION),
			 errmsg("remote table %s: %s", step->table->remote, complaint)));
}

/* Reads the result of a step. */
static void
take_result(PosPgSession *session, PosStep *step)
{
	if (step->kind == POS_STEP_CLAIM)
	{
		session->command = pos_pg_statement_lock(session, step);
		expect(session, PGRES_TUPLES_OK);
		expect_end(session);
	}
	session->command = pos_pg_statement(session, step);
	if (PQresultStatus(pos_pg_result(session)) != PGRES_TUPLES_OK &&
		PQresultStatus(session->result) != PGRES_COMMAND_OK)
		complain(session, step);
	switch (step->kind)
	{
		case POS_STEP_KEYS:
		case POS_STEP_MATCH:
			take_answers(session, step);
			break;
		case POS_STEP_CLAIM:
		case POS_STEP_EXPECT:
		case POS_STEP_CALL:
			break;
		case POS_STEP_INSERT:
			step->affected = step->again ?
				atoll(PQcmdTuples(session->result)) : step->nrows;
			break;
		case POS_STEP_UPDATE:
		case POS_STEP_DELETE:
			step->affected = atoll(PQcmdTuples(session->result));
			break;
	}
	expect_end(session);
	if (is_sent_again(step))
	{
		session->command = pos_pg_statement_presence(session, step);
		if (PQresultStatus(pos_pg_result(session)) != PGRES_TUPLES_OK)
			complain(session, step);
		expect_end(session);
	}
}

/* Puts steps on their way, in a transaction that has no end yet. */
static bool
send_steps(PosPgSession *session, PosStep **steps, int nsteps)
{
	bool		sent = PQenterPipelineMode(session->conn) &&
	send(session, "BEGIN", NULL) &&
	send(session, pos_pg_query_settings(session, true), NULL);

	for (int i = 0; i < nsteps && sent; i++)
	{
		PosStep    *step = steps[i];

		sent = (step->kind != POS_STEP_CLAIM ||
				send(session, pos_pg_statement_lock(session, step), NULL)) &&
			send(session, pos_pg_statement(session, step),
				 step->kind == POS_STEP_KEYS ? NULL : step->rows) &&
			(!is_sent_again(step) ||
			 send(session, pos_pg_statement_presence(session, step), step->rows));
	}
	return sent;
}

static bool
send_sync(PosPgSession *session)
{
	if (!PQpipelineSync(session->conn))
		return false;
	session->nsyncs++;
	return true;
}

/* Puts the end of the steps on its way, too, if they are; from here on they count. */
static void
send_end(PosPgSession *session, bool sent)
{
	*session->pending = true;
	session->sent = sent && send(session, "COMMIT", NULL) && send_sync(session);
}

/*
 * Puts the whole write on its way.  Whether that works is found out when the results
 * are read.
 */
static void
send_all(PosPgSession *session)
{
	session->ending = session->state == POS_PG_ENDING;
	session->state = POS_PG_WRITING;
	session->command = "BEGIN";
	session->halted = false;
	session->nsyncs = 0;
	send_end(session, send_steps(session, session->steps, session->nsteps));
}

/*
 * Reads the results of all steps.  Returns false if a kept connection turned out
 * to be lost, so that all is to be repeated on a new one.
 */
static bool
receive_steps(PosPgSession *session, bool kept)
{
	if (session->sent)
		pos_pg_flush(session);
	if (session->ending && !pos_pg_session_drain(session))
		return false;
	session->state = POS_PG_OPEN;

	(void) pos_pg_result(session);
	if (kept && (!session->sent || pos_pg_lost(session)))
		return false;
	if (PQresultStatus(session->result) != PGRES_COMMAND_OK)
		fail(session);			/* BEGIN */
	expect_end(session);
	expect(session, PGRES_TUPLES_OK);	/* settings */
	expect_end(session);
	for (int i = 0; i < session->nsteps; i++)
		take_result(session, session->steps[i]);
	if (session->halted)
		expect_sync(session);
	session->command = "COMMIT";
	expect(session, PGRES_COMMAND_OK);
	if (strcmp(PQcmdStatus(session->result), "COMMIT") != 0)
		fail(session);
	expect_end(session);
	expect_sync(session);
	if (session->ahead != NULL)
		session->state = POS_PG_WRITING;
	else if (session->nsyncs > 0)
		pos_pg_session_close(session);
	else if (PQexitPipelineMode(session->conn))
		session->state = POS_PG_IDLE;
	else
		pos_pg_error(session);
	return true;
}

/*
 * Describes the tables of all steps, if one is not known: a connection that
 * took the place of another knows those only that it was asked for.
 */
static void
know_tables(PosPgSession *session)
{
	PosTable  **tables = palloc(session->nsteps * sizeof(PosTable *));
	bool		known = true;
	List	   *problems;

	for (int i = 0; i < session->nsteps; i++)
	{
		tables[i] = session->steps[i]->table;
		known = known && pos_pg_relation(session, tables[i]->remote) != NULL;
	}
	if (known)
		return;
	problems = pos_pg_expect_tables(&session->base, tables, session->nsteps);
	if (problems != NIL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg_internal("%s", (char *) linitial(problems))));
}

/* See connection.h: send */
void
pos_pg_write_send(PosConnection *connection, PosStep **steps, int nsteps,
				  bool *pending)
{
	PosPgSession *session = (PosPgSession *) connection;

	session->steps = steps;
	session->nsteps = nsteps;
	session->received = 0;
	session->pending = pending;
	session->repeated = false;
	*pending = false;
	session->kept = session->state != POS_PG_CLOSED;
	if (session->ahead == steps)
	{
		session->ahead = NULL;
		session->ending = false;
		session->halted = true;
		session->command = "BEGIN";
		pos_pg_session_enter(session);
		send_end(session, session->ahead_sent);
	}
	else
	{
		know_tables(session);	/* connects, if need be */
		pos_pg_session_enter(session);
		send_all(session);
	}
	pos_pg_session_leave(session);
}

/* See connection.h: ahead */
bool
pos_pg_write_ahead(PosConnection *connection, PosStep **steps, int nsteps)
{
	PosPgSession *session = (PosPgSession *) connection;

	if (session->state != POS_PG_WRITING || !session->sent || !session->direct)
		return false;
	for (int i = 0; i < nsteps; i++)
		if (pos_pg_relation(session, steps[i]->table->remote) == NULL)
			return false;
	session->ahead = steps;
	session->ahead_sent = send_steps(session, steps, nsteps) && send_sync(session);
	return true;
}

/*
 * See connection.h: retract.  The remote session ends with what it was sent, once the
 * answer to what was sent before is here.
 */
void
pos_pg_write_retract(PosConnection *connection)
{
	PosPgSession *session = (PosPgSession *) connection;

	if (session->ahead != NULL && session->nsyncs < 2)
		pos_pg_session_close(session);
	session->ahead = NULL;
}

/* See connection.h: pump */
void
pos_pg_write_pump(PosConnection *connection)
{
	PosPgSession *session = (PosPgSession *) connection;

	/* flushes, too; what fails is found out by receive */
	if (session->state == POS_PG_WRITING)
		(void) PQconsumeInput(session->conn);
}

/* See connection.h: receive */
void
pos_pg_write_receive(PosConnection *connection)
{
	PosPgSession *session = (PosPgSession *) connection;

	pos_pg_session_enter(session);
	session->base.level = GetCurrentTransactionNestLevel();
	if (!receive_steps(session, session->kept))
	{
		/* what was sent may have arrived before the connection was lost */
		session->repeated = *session->pending;
		for (int i = 0; i < session->nsteps; i++)
			session->steps[i]->again = session->steps[i]->again ||
				session->repeated;
		pos_pg_session_close(session);
		know_tables(session);
		pos_pg_session_enter(session);
		send_all(session);
		if (!receive_steps(session, false))
			pos_pg_error(session);	/* lost before it had ended what was
									 * before */
	}
	*session->pending = false;
	pos_pg_session_leave(session);
	if (!session->options.keep_connections && session->ahead == NULL)
		pos_pg_session_close(session);
}

/* See connection.h: abandon */
void
pos_pg_write_abandon(PosConnection *connection)
{
	PosPgSession *session = (PosPgSession *) connection;

	if (session->state == POS_PG_WRITING)
		pos_pg_session_close(session);
}

/* See connection.h: expect */
List *
pos_pg_expect_tables(PosConnection *connection, PosTable **tables, int ntables)
{
	PosPgSession *session = (PosPgSession *) connection;
	List	   *problems = NIL;
	bool		known = session->state != POS_PG_CLOSED;

	for (int i = 0; i < ntables; i++)
		known = known && pos_pg_relation(session, tables[i]->remote) != NULL;
	if (!known)
	{
		PosSnapshot snapshot;

		connection->ops->begin(connection, tables, ntables, &snapshot);
		problems = connection->ops->describe(connection, tables, ntables);
		pos_pg_session_forget_read(session);
		if (session->state == POS_PG_OPEN)
			pos_pg_session_end(session, "COMMIT");
	}
	else
		for (int i = 0; i < ntables; i++)
			problems = list_concat(problems,
								   pos_pg_describe_check(session, tables[i]));
	return problems;
}
