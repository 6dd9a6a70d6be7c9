/*
 * postgres_write.c
 *		Rows on their way to a remote PostgreSQL.
 *
 * Every step of a write is one statement with one parameter, the rows as JSON
 * objects of strings: PostgreSQL's own functions turn them into rows, so every
 * type travels in its text form and nothing has to be known of it here.  But
 * for JSON itself, which those functions would take for a string.  All
 * statements of a write go out in one pipeline between BEGIN and COMMIT.
 *
 * Needs INSERT, SELECT, UPDATE, DELETE as used, and USAGE on the sequences of
 * keys; nothing is installed at the remote.
 */
#include "postgres.h"

#include "access/xact.h"
#include "connection_postgres.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

/* The rows of a step, all at once */
#define READ_ROWS "json_to_recordset($1::pg_catalog.json)"

static void fail(PosPgSession *session);
static void leave(PosPgSession *session);

/* What a statement that finds something wrong with a step makes fail */
#define COMPLAINT "possync: "
#define COMPLAINT_END "|"

/* Whether a column's values are JSON, to the functions that read the rows. */
static bool
is_json(PosPgAttribute *attribute)
{
	return attribute->elemtype == '\0' &&
		(strcmp(attribute->basename, "json") == 0 ||
		 strcmp(attribute->basename, "jsonb") == 0);
}

/* Appends name and type of one column of the rows. */
static void
append_column(StringInfo sql, PosPgRelation *relation, const char *column)
{
	PosPgAttribute *attribute = pos_pg_attribute(relation, column);

	if (sql->data[sql->len - 1] != '(')
		appendStringInfoString(sql, ", ");
	appendStringInfo(sql, "%s %s", quote_identifier(column),
					 is_json(attribute) ? "pg_catalog.text" : attribute->typename);
}

/* Appends r: the rows of an expression, with key and columns of a step. */
static void
append_rows(StringInfo sql, PosPgRelation *relation, PosStep *step,
			const char *function)
{
	appendStringInfo(sql, "pg_catalog.%s r(", function);
	for (int i = 0; i < step->table->nkey && step->kind != POS_STEP_MATCH; i++)
		append_column(sql, relation, step->table->columns[i].remote);
	for (int i = 0; i < step->ncolumns; i++)
	{
		bool		is_key = false;

		for (int j = 0; j < step->table->nkey && step->kind != POS_STEP_MATCH; j++)
			is_key = is_key ||
				strcmp(step->columns[i], step->table->columns[j].remote) == 0;
		if (!is_key)
			append_column(sql, relation, step->columns[i]);
	}
	appendStringInfoChar(sql, ')');
}

/* Appends the value of a column of the rows. */
static void
append_value(StringInfo sql, PosPgRelation *relation, const char *column)
{
	PosPgAttribute *attribute = pos_pg_attribute(relation, column);

	appendStringInfo(sql, "r.%s", quote_identifier(column));
	if (is_json(attribute))
		appendStringInfo(sql, "::%s", attribute->typename);
}

static void
append_values(StringInfo sql, PosPgRelation *relation, PosStep *step)
{
	for (int i = 0; i < step->ncolumns; i++)
	{
		appendStringInfoString(sql, i > 0 ? ", " : "");
		append_value(sql, relation, step->columns[i]);
	}
}

/* Appends the key comparison of t with r. */
static void
append_key(StringInfo sql, PosTable *table)
{
	for (int i = 0; i < table->nkey; i++)
	{
		const char *name = quote_identifier(table->columns[i].remote);

		appendStringInfo(sql, "%st.%s = r.%s", i > 0 ? " AND " : "", name, name);
	}
}

static void
append_names(StringInfo sql, const char *prefix, const char *suffix,
			 PosStep *step)
{
	for (int i = 0; i < step->ncolumns; i++)
		appendStringInfo(sql, "%s%s%s%s", i > 0 ? ", " : "", prefix,
						 quote_identifier(step->columns[i]), suffix);
}

/*
 * The statement that makes keys: the defaults of their columns.  Rows may be
 * there that did not ask the sequence: their keys are left out.  A subquery of
 * this kind is an index scan for each key, whatever statistics say.
 */
static void
append_keys(StringInfo sql, PosPgRelation *relation, PosStep *step)
{
	appendStringInfoString(sql, "SELECT ");
	append_names(sql, "k.", "::text", step);
	appendStringInfoString(sql, " FROM (SELECT ");
	for (int i = 0; i < step->ncolumns; i++)
	{
		PosPgAttribute *attribute = pos_pg_attribute(relation, step->columns[i]);

		if (attribute->made_by == NULL)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("key column \"%s\" of remote table %s has no default",
							step->columns[i], step->table->remote),
					 errhint("Let its value be copied: possync_set_field('%s', '%s', copy => true).",
							 step->table->local, step->columns[i])));
		appendStringInfo(sql, "%s(%s)::%s AS %s", i > 0 ? ", " : "",
						 attribute->made_by, attribute->typename,
						 quote_identifier(step->columns[i]));
	}
	appendStringInfo(sql, " FROM pg_catalog.generate_series(1, %d) OFFSET 0) k",
					 step->nrows);
	if (step->ncolumns < step->table->nkey)
		return;					/* the rest of the key is not known here */
	appendStringInfo(sql, " WHERE (SELECT true FROM %s r WHERE ROW(", relation->sql);
	append_names(sql, "r.", "", step);
	appendStringInfoString(sql, ") = ROW(");
	append_names(sql, "k.", "", step);
	appendStringInfoString(sql, ") LIMIT 1) IS NULL");
}

/* Appends the comparison of t with the columns of r; null equals null. */
static void
append_same(StringInfo sql, PosPgRelation *relation, PosStep *step)
{
	for (int i = 0; i < step->ncolumns; i++)
	{
		PosPgAttribute *attribute = pos_pg_attribute(relation, step->columns[i]);

		appendStringInfo(sql, "%st.%s %s ", i > 0 ? " AND " : "",
						 quote_identifier(step->columns[i]),
						 attribute->notnull ? "=" : "IS NOT DISTINCT FROM");
		append_value(sql, relation, step->columns[i]);
	}
}

static void
append_match(StringInfo sql, PosPgRelation *relation, PosStep *step)
{
	appendStringInfoString(sql, "SELECT e.n");
	for (int i = 0; i < step->table->nkey; i++)
		appendStringInfo(sql, ", t.%s::text",
						 quote_identifier(step->table->columns[i].remote));
	appendStringInfoString(sql, " FROM pg_catalog.json_array_elements($1::pg_catalog.json)"
						   " WITH ORDINALITY e(j, n), ");
	append_rows(sql, relation, step, "json_to_record(e.j)");
	appendStringInfo(sql, " JOIN %s t ON ", relation->sql);
	append_same(sql, relation, step);
	appendStringInfoString(sql, " ORDER BY e.n");
}

/*
 * The statement that looks for rows with the same values under other keys.  The
 * one before it took the lock, so that it sees what others have made.
 */
static void
append_claim(StringInfo sql, PosPgRelation *relation, PosStep *step)
{
	appendStringInfoString(sql, "SELECT CASE WHEN pg_catalog.count(*) > 0 THEN ('"
						   COMPLAINT "' || pg_catalog.count(*) ||"
						   " ' rows to be made are there by now" COMPLAINT_END "')::int4 END FROM ");
	append_rows(sql, relation, step, READ_ROWS);
	appendStringInfo(sql, " WHERE EXISTS (SELECT FROM %s t WHERE ", relation->sql);
	append_same(sql, relation, step);
	appendStringInfoString(sql, " AND NOT (");
	append_key(sql, step->table);
	appendStringInfoString(sql, "))");
}

/* Appends a row of t's columns, or of the rows' values of them. */
static void
append_record(StringInfo sql, PosPgRelation *relation, PosStep *step, char value)
{
	appendStringInfoString(sql, "ROW(");
	for (int i = 0; i < step->ncolumns; i++)
	{
		PosPgAttribute *attribute = pos_pg_attribute(relation, step->columns[i]);

		appendStringInfoString(sql, i > 0 ? ", " : "");
		if (value == '\0')
			appendStringInfo(sql, "t.%s", quote_identifier(step->columns[i]));
		else
			appendStringInfo(sql, "r.%c%d%s%s", value, i + 1,
							 is_json(attribute) ? "::" : "",
							 is_json(attribute) ? attribute->typename : "");
	}
	appendStringInfoString(sql, ")::record");
}

/* The statement that fails if rows are not as expected, and locks the others. */
static void
append_expect(StringInfo sql, PosPgRelation *relation, PosStep *step)
{
	PosTable   *table = step->table;

	appendStringInfoString(sql, "SELECT ('" COMPLAINT "' || pg_catalog.min(n) || '"
						   COMPLAINT_END "')::int4 FROM (SELECT n FROM (SELECT r.n, ");
	append_record(sql, relation, step, '\0');
	appendStringInfoString(sql, " *= ");
	append_record(sql, relation, step, 'a');
	appendStringInfoString(sql, " OR ");
	append_record(sql, relation, step, '\0');
	appendStringInfoString(sql, " *= ");
	append_record(sql, relation, step, 'b');
	appendStringInfoString(sql, " AS same FROM pg_catalog." READ_ROWS " r(n pg_catalog.text");
	for (int i = 0; i < table->nkey; i++)
		appendStringInfo(sql, ", k%d %s", i + 1,
						 pos_pg_attribute(relation, table->columns[i].remote)->typename);
	for (int i = 0; i < step->ncolumns; i++)
	{
		PosPgAttribute *attribute = pos_pg_attribute(relation, step->columns[i]);
		const char *type = is_json(attribute) ? "pg_catalog.text" :
		attribute->typename;

		appendStringInfo(sql, ", a%d %s, b%d %s", i + 1, type, i + 1, type);
	}
	appendStringInfo(sql, ") JOIN %s t ON ", relation->sql);
	for (int i = 0; i < table->nkey; i++)
		appendStringInfo(sql, "%st.%s = r.k%d", i > 0 ? " AND " : "",
						 quote_identifier(table->columns[i].remote), i + 1);
	appendStringInfoString(sql, " FOR NO KEY UPDATE OF t) l GROUP BY n"
						   " HAVING NOT pg_catalog.bool_or(same)) c");
}

/*
 * Inserts rows.  Those that have not been sent before must all go in, or none:
 * a trigger that drops some would leave half of what belongs together, and a
 * key that somebody has is not theirs.
 */
static void
append_insert(StringInfo sql, PosPgRelation *relation, PosStep *step)
{
	if (!step->again)
		appendStringInfoString(sql, "WITH i AS (");
	appendStringInfo(sql, "INSERT INTO %s (", relation->type);
	append_names(sql, "", "", step);
	appendStringInfoString(sql, ") OVERRIDING SYSTEM VALUE SELECT ");
	append_values(sql, relation, step);
	appendStringInfoString(sql, " FROM ");
	append_rows(sql, relation, step, READ_ROWS);
	if (!step->again)
	{
		appendStringInfo(sql, " RETURNING 1) SELECT CASE pg_catalog.count(*)"
						 " WHEN %d THEN %d ELSE ('" COMPLAINT "' ||"
						 " pg_catalog.count(*) || ' of %d rows were taken, the"
						 " others were dropped by a trigger or a rule" COMPLAINT_END "')::int4 END"
						 " FROM i", step->nrows, step->nrows, step->nrows);
		return;
	}
	appendStringInfoString(sql, " ON CONFLICT (");
	for (int i = 0; i < step->table->nkey; i++)
		appendStringInfo(sql, "%s%s", i > 0 ? ", " : "",
						 quote_identifier(step->table->columns[i].remote));
	appendStringInfoString(sql, ") DO NOTHING");
}

static void
append_update(StringInfo sql, PosPgRelation *relation, PosStep *step)
{
	appendStringInfo(sql, "UPDATE %s t SET ", relation->sql);
	for (int i = 0; i < step->ncolumns; i++)
	{
		appendStringInfo(sql, "%s%s = ", i > 0 ? ", " : "",
						 quote_identifier(step->columns[i]));
		append_value(sql, relation, step->columns[i]);
	}
	appendStringInfoString(sql, " FROM ");
	append_rows(sql, relation, step, READ_ROWS);
	appendStringInfoString(sql, " WHERE ");
	append_key(sql, step->table);
	appendStringInfoString(sql, " AND ROW(");
	append_names(sql, "t.", "", step);
	appendStringInfoString(sql, ")::record *<> ROW(");
	append_values(sql, relation, step);
	appendStringInfoString(sql, ")::record");
}

static char *
statement(PosPgSession *session, PosStep *step)
{
	PosPgRelation *relation = pos_pg_relation(session, step->table->remote);
	StringInfoData sql;

	initStringInfo(&sql);
	switch (step->kind)
	{
		case POS_STEP_KEYS:
			append_keys(&sql, relation, step);
			break;
		case POS_STEP_MATCH:
			append_match(&sql, relation, step);
			break;
		case POS_STEP_CLAIM:
			append_claim(&sql, relation, step);
			break;
		case POS_STEP_EXPECT:
			append_expect(&sql, relation, step);
			break;
		case POS_STEP_INSERT:
			append_insert(&sql, relation, step);
			break;
		case POS_STEP_UPDATE:
			append_update(&sql, relation, step);
			break;
		case POS_STEP_DELETE:
			appendStringInfo(&sql, "DELETE FROM %s t USING ", relation->sql);
			append_rows(&sql, relation, step, READ_ROWS);
			appendStringInfoString(&sql, " WHERE ");
			append_key(&sql, step->table);
			break;
	}
	return sql.data;
}

/* The statement that lets one after the other claim rows of a table. */
static char *
lock_statement(PosPgSession *session, PosStep *step)
{
	PosPgRelation *relation = pos_pg_relation(session, step->table->remote);

	return psprintf("SELECT pg_catalog.pg_advisory_xact_lock("
					"pg_catalog.hashtextextended('possync', %s::pg_catalog.regclass::pg_catalog.oid::pg_catalog.int8))",
					quote_literal_cstr(relation->type));
}

/*
 * The statement that makes sure that rows which were sent again are there: they
 * were passed over if they had arrived, but not for another reason.
 */
static char *
presence_statement(PosPgSession *session, PosStep *step)
{
	PosPgRelation *relation = pos_pg_relation(session, step->table->remote);
	StringInfoData sql;

	initStringInfo(&sql);
	appendStringInfo(&sql, "SELECT CASE WHEN pg_catalog.count(*) <> %d THEN ('"
					 COMPLAINT "' || pg_catalog.count(*) || ' of %d rows are"
					 " there, the others were dropped by a trigger or a rule" COMPLAINT_END "')::int4 END FROM ",
					 step->nrows, step->nrows);
	append_rows(&sql, relation, step, READ_ROWS);
	appendStringInfo(&sql, " JOIN %s t ON ", relation->sql);
	append_key(&sql, step->table);
	return sql.data;
}

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

/*
 * Makes the session ready for other things after an error that stands in its
 * result, if the remote lives: what is left of the pipeline is skipped, the
 * transaction rolled back.
 */
static void
leave(PosPgSession *session)
{
	PGresult   *error = session->result;

	if (error != NULL && PQstatus(session->conn) == CONNECTION_OK &&
		!pos_pg_lost(session))
	{
		session->result = NULL;
		do
		{
			(void) pos_pg_result(session);
		} while (PQstatus(session->conn) == CONNECTION_OK &&
				 PQresultStatus(session->result) != PGRES_PIPELINE_SYNC);
		PQclear(session->result);
		session->result = error;
		if (PQstatus(session->conn) == CONNECTION_OK)
		{
			*session->pending = session->repeated;
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
	const char *complaint = message == NULL ? NULL : strstr(message, COMPLAINT);

	if (complaint == NULL || strrchr(complaint, COMPLAINT_END[0]) == NULL)
		fail(session);
	complaint += strlen(COMPLAINT);
	complaint = pnstrdup(complaint, strrchr(complaint, COMPLAINT_END[0]) - complaint);
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
		session->command = lock_statement(session, step);
		expect(session, PGRES_TUPLES_OK);
		expect_end(session);
	}
	session->command = statement(session, step);
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
		session->command = presence_statement(session, step);
		if (PQresultStatus(pos_pg_result(session)) != PGRES_TUPLES_OK)
			complain(session, step);
		expect_end(session);
	}
}

/*
 * Puts all steps on their way.  Whether that works is found out when their
 * results are read.
 */
static void
send_steps(PosPgSession *session)
{
	bool		sent;

	*session->pending = true;
	session->ending = session->state == POS_PG_ENDING;
	session->state = POS_PG_WRITING;
	session->command = "BEGIN";
	sent = PQenterPipelineMode(session->conn) && send(session, "BEGIN", NULL) &&
		send(session, pos_pg_query_settings(session, true), NULL);
	for (int i = 0; i < session->nsteps && sent; i++)
	{
		PosStep    *step = session->steps[i];

		sent = (step->kind != POS_STEP_CLAIM ||
				send(session, lock_statement(session, step), NULL)) &&
			send(session, statement(session, step),
				 step->kind == POS_STEP_KEYS ? NULL : step->rows) &&
			(!is_sent_again(step) ||
			 send(session, presence_statement(session, step), step->rows));
	}
	session->sent = sent && send(session, "COMMIT", NULL) &&
		PQpipelineSync(session->conn);
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
	session->command = "COMMIT";
	expect(session, PGRES_COMMAND_OK);
	expect_end(session);
	expect(session, PGRES_PIPELINE_SYNC);
	if (!PQexitPipelineMode(session->conn))
		pos_pg_error(session);
	session->state = POS_PG_IDLE;
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
	know_tables(session);		/* connects, if need be */
	pos_pg_session_enter(session);
	send_steps(session);
	pos_pg_session_leave(session);
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
	session->level = GetCurrentTransactionNestLevel();
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
		send_steps(session);
		(void) receive_steps(session, false);
	}
	*session->pending = false;
	pos_pg_session_leave(session);
	if (!session->options.keep_connections)
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
