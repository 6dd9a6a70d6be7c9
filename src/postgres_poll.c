/*
 * postgres_poll.c
 *		Whether anything changed, asked for as little as possible.
 *
 * Most reads find nothing, and a master has many tills.  So before a snapshot is
 * opened one statement asks about all tables.  To plan it would cost the remote
 * ten times what it takes to carry out: it is prepared.
 *
 * A pooler may give every transaction another session of the remote.  There the
 * statement may not be prepared yet, or be so already, by us or by another till:
 * the remote says which, and that is what is done next.  The name is made of the
 * text, so it means the same to everybody; the text has no position in it and
 * does not depend on search_path or any other setting.
 *
 * Of logged tables one question is asked for all, what happened since the last poll
 * that found them unchanged: their positions may be much older, and each another.
 *
 * Where no transaction of the whole remote has ended meanwhile, its snapshot is the
 * same, and so is every answer.  After some polls that found it so only the snapshot is
 * asked for, which costs as little as a statement can, however many tables there are;
 * if it is another one, the tables come after it.  Views, foreign tables and policies
 * may look at more than what transactions did.
 *
 * Nothing is concluded from an answer but that nothing changed.  If something
 * has, all is asked again in the snapshot that the rows are read from.
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "connection_postgres.h"
#include "utils/memutils.h"

/* How often to do what the remote's last answer asks for */
#define TRIES 4

/* After so many polls that saw the same snapshot it is asked for alone */
#define QUIET_POLLS 2

/*
 * Stands for some tables and their positions: in that state nothing had changed in a
 * snapshot.
 */
typedef struct PosPgPolled
{
	uint64		tables;			/* must be first */
	uint64		positions;
	char	   *snapshot;
	int			quiet;			/* polls since that saw the same one */
} PosPgPolled;

/*
 * What the statement tells before it comes to the tables.  On a standby a snapshot
 * does not tell which transactions run, so the same may show more.
 */
#define POLL_SELECT \
	"SELECT pg_catalog.transaction_timestamp()," \
	" CASE WHEN pg_catalog.pg_is_in_recovery()" \
	" THEN pg_catalog.pg_last_xact_replay_timestamp()" \
	" ELSE pg_catalog.transaction_timestamp() END," \
	" pg_catalog.pg_postmaster_start_time()," \
	" CASE WHEN NOT pg_catalog.pg_is_in_recovery()" \
	" THEN pg_catalog.pg_current_snapshot()::pg_catalog.text END"

enum
{
	P_NOW,
	P_COMPLETE,
	P_STARTED,
	P_SNAPSHOT,
	P_TABLES
};

/* Before the first poll of a connection: the tables for what is found out. */
static void
make_tables(PosPgSession *session)
{
	HASHCTL		prepared = {.keysize = NAMEDATALEN,.entrysize = NAMEDATALEN};
	HASHCTL		polled = {.keysize = sizeof(uint64),.entrysize = sizeof(PosPgPolled)};
	MemoryContext context = AllocSetContextCreate(session->base.context,
												  "possync polls",
												  ALLOCSET_SMALL_SIZES);

	session->poll_context = prepared.hcxt = polled.hcxt = context;
	session->prepared = hash_create("possync prepared", 16, &prepared,
									HASH_ELEM | HASH_STRINGS | HASH_CONTEXT);
	session->polled = hash_create("possync polled", 16, &polled,
								  HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
}

/* Forgets what polls have found out. */
void
pos_pg_poll_forget(PosPgSession *session)
{
	if (session->poll_context != NULL)
		MemoryContextDelete(session->poll_context);
	session->poll_context = NULL;
	session->prepared = session->polled = NULL;
}

/*
 * A name that no other text has: session-wide it stands for it, whoever prepared
 * it.
 */
static char *
name_of(const char *sql)
{
	const unsigned char *text = (const unsigned char *) sql;
	int			len = strlen(sql);

	return psprintf("possync_%016llx%016llx",
					(unsigned long long) hash_bytes_extended(text, len, 0),
					(unsigned long long) hash_bytes_extended(text, len, 1));
}

/*
 * Sends the statement, and prepares it before if sql is given.  Returns false if
 * the connection does not take it, or does not give the answer to the end of the
 * last transaction.
 */
static bool
send_poll(PosPgSession *session, const char *name, const char *sql,
		  int nvalues, const char **values)
{
	bool		ending = session->state == POS_PG_ENDING;

	session->asked = GetCurrentTimestamp();
	if (!PQenterPipelineMode(session->conn) ||
		(sql != NULL && !PQsendPrepare(session->conn, name, sql, 0, NULL)) ||
		!PQsendQueryPrepared(session->conn, name, nvalues, values, NULL, NULL,
							 1) ||
		!PQpipelineSync(session->conn))
		return false;
	pos_pg_flush(session);
	if (ending && !pos_pg_session_drain(session))
		return false;
	session->state = POS_PG_IDLE;
	return true;
}

/*
 * Takes an answer of so many booleans, and the snapshot.  The clock counts only if
 * nothing has changed.
 */
static PosPgPoll
take_answer(PosPgSession *session, int nanswers)
{
	PGresult   *res = session->result;

	pos_pg_expect_row(session, P_TABLES + nanswers);

	/* behind a pooler the remote may be another one by now */
	if (pos_pg_time(session, P_STARTED) != session->started)
		return POS_PG_POLL_LOST;
	for (int i = 0; i < nanswers; i++)
		if (!PQgetisnull(res, 0, P_TABLES + i) &&
			PQgetvalue(res, 0, P_TABLES + i)[0] != 0)
			return POS_PG_POLL_CHANGED;
	if (PQgetisnull(res, 0, P_COMPLETE))
		return POS_PG_POLL_CHANGED;
	pos_pg_set_clock(session, pos_pg_time(session, P_NOW));
	session->complete = pos_pg_time(session, P_COMPLETE);
	session->snapshot = PQgetisnull(res, 0, P_SNAPSHOT) ? NULL :
		pstrdup(PQgetvalue(res, 0, P_SNAPSHOT));
	return POS_PG_POLL_UNCHANGED;
}

/*
 * Waits for the result of one command of the poll.  Returns its SQLSTATE, "" if
 * it went well and NULL if the connection is lost.  It has to answer as fast as a
 * new one would: if it does not, what comes instead of it has more time.
 */
static const char *
await(PosPgSession *session)
{
	const char *sqlstate;

	if (!pos_pg_answers(session, session->options.connect_timeout))
		return NULL;
	(void) pos_pg_result(session);
	if (pos_pg_lost(session))
		return NULL;
	switch (PQresultStatus(session->result))
	{
		case PGRES_COMMAND_OK:
		case PGRES_TUPLES_OK:
			return "";
		default:
			sqlstate = PQresultErrorField(session->result, PG_DIAG_SQLSTATE);
			if (sqlstate == NULL)
				pos_pg_error(session);
			return pstrdup(sqlstate);
	}
}

/*
 * Returns what is known of some tables, and what their positions are.  If nothing is
 * known, returns NULL or makes an entry that says nothing.
 */
static PosPgPolled *
find_polled(PosPgSession *session, PosTable **tables, int ntables,
			uint64 *positions, bool make)
{
	uint64		names = 0;
	PosPgPolled *polled;
	bool		found;

	*positions = 0;
	for (int i = 0; i < ntables; i++)
	{
		const char *name = tables[i]->remote;
		const char *position = tables[i]->position == NULL ? "" : tables[i]->position;

		names = hash_bytes_extended((const unsigned char *) name, strlen(name), names);
		*positions = hash_bytes_extended((const unsigned char *) position,
										 strlen(position), *positions);
	}
	if (session->poll_context == NULL)
		make_tables(session);
	polled = hash_search(session->polled, &names, make ? HASH_ENTER : HASH_FIND,
						 &found);
	if (make && !found)
		polled->snapshot = NULL;
	return polled;
}

/*
 * Remembers that none of the tables had changed in a snapshot since their positions:
 * their logs need not be asked what was before.  That holds for these positions only;
 * those that a transaction stored may be gone with it.
 */
void
pos_pg_poll_remember(PosPgSession *session, PosTable **tables, int ntables,
					 const char *snapshot)
{
	uint64		positions;
	PosPgPolled *polled = find_polled(session, tables, ntables, &positions, true);

	if (polled->snapshot != NULL)
		pfree(polled->snapshot);
	polled->snapshot = NULL;
	if (snapshot != NULL)
		polled->snapshot = MemoryContextStrdup(session->poll_context, snapshot);
	polled->positions = positions;
	polled->quiet = 0;
}

/* Whether the snapshot of the last answer is one that is remembered. */
static bool
is_same(PosPgSession *session, PosPgPolled *polled)
{
	return polled != NULL && session->snapshot != NULL &&
		strcmp(session->snapshot, polled->snapshot) == 0;
}

/*
 * Asks a question of so many booleans, without a transaction, in whatever session of
 * the remote that is.
 */
static PosPgPoll
ask(PosPgSession *session, const char *sql, int nvalues, const char **values,
	int nanswers)
{
	char	   *name = name_of(sql);
	bool		prepare = hash_search(session->prepared, name, HASH_FIND, NULL) == NULL;

	session->command = sql;
	for (int i = 0; i < TRIES; i++)
	{
		const char *sqlstate = "";
		PosPgPoll	result = POS_PG_POLL_CHANGED;

		if (!send_poll(session, name, prepare ? sql : NULL, nvalues, values))
			return POS_PG_POLL_LOST;
		if (prepare && (sqlstate = await(session)) != NULL && *sqlstate == '\0')
		{
			if (pos_pg_result(session) != NULL)
				pos_pg_error(session);
			(void) hash_search(session->prepared, name, HASH_ENTER, NULL);
		}
		if (sqlstate != NULL && *sqlstate == '\0' &&
			(sqlstate = await(session)) != NULL && *sqlstate == '\0')
			result = take_answer(session, nanswers);
		if (sqlstate == NULL || result == POS_PG_POLL_LOST)
			return POS_PG_POLL_LOST;
		pos_pg_end_pipeline(session);
		if (*sqlstate == '\0')
			return result;

		if (strcmp(sqlstate, "42P05") == 0) /* duplicate_prepared_statement */
		{
			(void) hash_search(session->prepared, name, HASH_ENTER, NULL);
			prepare = false;
		}
		else if (strcmp(sqlstate, "26000") == 0)	/* there is none */
			prepare = true;
		else
			break;
	}

	/* what else is wrong will show when all is asked again */
	return POS_PG_POLL_CHANGED;
}

/* Whether nothing but a transaction can change what is read of the tables. */
static bool
are_still(PosPgSession *session, PosTable **tables, int ntables)
{
	for (int i = 0; i < ntables; i++)
		if (!pos_pg_relation(session, tables[i]->remote)->still)
			return false;
	return true;
}

/*
 * Asks whether any of the tables changed, on a kept connection; all of them are
 * known and have positions.  Opens no transaction.  If nothing has changed the
 * session's clock is set, and it is complete up to when the question came in or,
 * on a standby, up to what that has replayed.
 */
PosPgPoll
pos_pg_poll(PosPgSession *session, PosTable **tables, int ntables)
{
	const char **values = palloc(sizeof(char *) * (ntables + 1));
	bool		logged = false;
	uint64		positions;
	PosPgPolled *polled;
	PosPgPoll	result;
	int			nvalues;
	char	   *sql;

	for (int i = 0; i < ntables; i++)
		logged = logged || pos_pg_position_snapshot(session, tables[i]) != NULL;
	polled = find_polled(session, tables, ntables, &positions, false);
	if (polled != NULL && (polled->positions != positions || polled->snapshot == NULL))
		polled = NULL;
	if (polled != NULL && polled->quiet >= QUIET_POLLS)
	{
		result = ask(session, POLL_SELECT, 0, NULL, 0);
		if (result != POS_PG_POLL_UNCHANGED || is_same(session, polled))
			return result;
		polled->quiet = 0;
	}
	if (logged && polled == NULL)
		return POS_PG_POLL_CHANGED;
	values[0] = logged ? polled->snapshot : NULL;
	sql = psprintf(POLL_SELECT ", %s",
				   pos_pg_query_poll(session, tables, ntables, values, &nvalues));
	result = ask(session, sql, nvalues, values, nvalues);
	if (result != POS_PG_POLL_UNCHANGED)
		return result;
	if (!is_same(session, polled))
		pos_pg_poll_remember(session, tables, ntables, session->snapshot);
	else if (are_still(session, tables, ntables))
		polled->quiet++;
	return result;
}
