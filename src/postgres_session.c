/*
 * postgres_session.c
 *		The sessions of this backend with remote PostgreSQL servers.
 *
 * Owns their life: one for a user mapping and user, made on demand, kept over
 * transactions (a new connection costs a thousand times what a probe does),
 * dropped when options change or an error leaves it in an unknown state.
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
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/syscache.h"

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

static HTAB *sessions = NULL;

static void make_sessions(void);
static PosPgSession *make_session(ForeignServer *server, UserMapping *mapping);
static void drop_session(SessionEntry *entry);
static void clean_up(int level);
static void transaction_ended(XactEvent event, void *arg);
static void subtransaction_ended(SubXactEvent event, SubTransactionId mine,
								 SubTransactionId parent, void *arg);
static void options_changed(Datum arg, int cacheid, uint32 hash);

/*
 * Returns the connected session of a user mapping and its user; a kept one is
 * not asked if it is still alive.  Errors if it is in use.
 */
PosConnection *
pos_pg_session_get(ForeignServer *server, UserMapping *mapping)
{
	SessionKey	key;
	SessionEntry *entry;
	bool		found;

	if (sessions == NULL)
		make_sessions();

	key.mapping = mapping->umid;
	key.user = mapping->userid;
	entry = hash_search(sessions, &key, HASH_ENTER, &found);
	if (!found)
		entry->session = NULL;

	if (entry->session != NULL &&
		(entry->session->state == POS_PG_OPEN ||
		 entry->session->state == POS_PG_READING))
		pos_pg_session_in_use(entry->session);

	if (entry->session != NULL && entry->session->invalid &&
		entry->session->state != POS_PG_WRITING)
		drop_session(entry);
	if (entry->session == NULL)
		entry->session = make_session(server, mapping);

	if (entry->session->state == POS_PG_CLOSED)
	{
		pos_pg_session_enter(entry->session);
		pos_pg_connect(entry->session);
		pos_pg_session_leave(entry->session);
	}

	return &entry->session->base;
}

/* Raises the error of who needs a session that does something else. */
void
pos_pg_session_in_use(PosPgSession *session)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_IN_USE),
			 errmsg("connection to server \"%s\" is in use",
					session->base.server->servername),
			 errhint("A trigger or function called by a synchronization cannot start another one with the same server.")));
}

/*
 * Closes the connection and forgets all that was learned through it.
 */
void
pos_pg_session_close(PosPgSession *session)
{
	session->base.broken = true;
	pos_pg_disconnect(session);
	pos_pg_relation_forget(session);
	pos_pg_session_forget_read(session);
	if (session->source != NULL)
		pfree(session->source);
	session->source = NULL;
	list_free_deep(session->prepared);
	session->prepared = NIL;
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
	pos_pg_session_close(entry->session);
	MemoryContextDelete(entry->session->context);
	entry->session = NULL;
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
			pos_pg_session_close(session);
			pos_pg_session_leave(session);
		}
		else if (session->level < level)
			continue;
		else if (session->state == POS_PG_READING)
			pos_pg_session_close(session);
		else if (session->state == POS_PG_OPEN)
		{
			pos_pg_session_forget_read(session);
			pos_pg_session_end(session, "ROLLBACK");
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
