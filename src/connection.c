/*
 * connection.c
 *		The registry of connections: from the name of a server to a session.
 *
 * Owns the list of kinds, the checks that hold for every kind (the server exists,
 * its wrapper is one of possync's, the current user may use it), and the life of
 * sessions: one for a user mapping and user, made on demand, kept over
 * transactions, dropped when options change.  What a session is, its kind knows.
 */
#include "postgres.h"

#include "access/xact.h"
#include "compat.h"
#include "connection.h"
#include "miscadmin.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/syscache.h"

static const PosConnectionOps *const kinds[] = {
	&pos_connection_postgres,
	&pos_connection_tryton,
};

/* PUBLIC's mapping serves many users, and each must be checked for himself */
typedef struct SessionKey
{
	Oid			mapping;
	Oid			user;
} SessionKey;

typedef struct SessionEntry
{
	SessionKey	key;			/* must be first */
	PosConnection *session;		/* NULL while it is being made */
} SessionEntry;

static HTAB *sessions = NULL;

static void make_sessions(void);

/* Raises the error of who needs a session that does something else. */
void
pos_connection_in_use(PosConnection *connection)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_IN_USE),
			 errmsg("connection to server \"%s\" is in use",
					connection->server->servername),
			 errhint("A trigger or function called by a synchronization cannot start another one with the same server.")));
}

/* Makes a session that is not connected yet. */
static PosConnection *
make_session(const PosConnectionOps *ops, ForeignServer *server,
			 UserMapping *mapping)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext,
												  "possync session",
												  ALLOCSET_SMALL_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	PosConnection *session = ops->make(server, mapping);

	session->ops = ops;
	session->context = context;
	session->server = palloc0(sizeof(ForeignServer));
	session->server->serverid = server->serverid;
	session->server->fdwid = server->fdwid;
	session->server->owner = server->owner;
	session->server->servername = pstrdup(server->servername);
	session->mapping = palloc0(sizeof(UserMapping));
	session->mapping->umid = mapping->umid;
	session->mapping->userid = mapping->userid;
	session->mapping->serverid = mapping->serverid;
	session->mapping->options = copyObject(mapping->options);
	session->server_hash =
		GetSysCacheHashValue1(FOREIGNSERVEROID,
							  ObjectIdGetDatum(server->serverid));
	session->mapping_hash =
		GetSysCacheHashValue1(USERMAPPINGOID, ObjectIdGetDatum(mapping->umid));
	MemoryContextSwitchTo(old);

	/* complete, so nothing is left behind by an error above */
	MemoryContextSetParent(context, CacheMemoryContext);

	return session;
}

static void
drop_session(SessionEntry *entry)
{
	entry->session->ops->drop(entry->session);
	MemoryContextDelete(entry->session->context);
	entry->session = NULL;
}

/*
 * Returns the session of a user mapping and its user; a kept one is not asked if
 * it is still alive.
 */
static PosConnection *
find_session(const PosConnectionOps *ops, ForeignServer *server,
			 UserMapping *mapping)
{
	SessionKey	key;
	SessionEntry *entry;
	PosUse		use;
	bool		found;

	if (sessions == NULL)
		make_sessions();
	key.mapping = mapping->umid;
	key.user = mapping->userid;
	entry = hash_search(sessions, &key, HASH_ENTER, &found);
	if (!found)
		entry->session = NULL;
	use = entry->session == NULL ? POS_USE_NONE : ops->use(entry->session);
	if (use == POS_USE_READING)
		pos_connection_in_use(entry->session);
	if (entry->session != NULL && entry->session->invalid && use == POS_USE_NONE)
		drop_session(entry);
	if (entry->session == NULL)
		entry->session = make_session(ops, server, mapping);
	return entry->session;
}

/* Returns the kind of a server; errors if it is none of possync's. */
const PosConnectionOps *
pos_connection_kind(const char *servername)
{
	ForeignServer *server = GetForeignServerByName(servername, false);
	ForeignDataWrapper *wrapper = GetForeignDataWrapper(server->fdwid);
	const PosConnectionOps *ops = pos_connection_ops(wrapper->fdwname);

	if (ops == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("server \"%s\" cannot be used by possync",
						servername),
				 errdetail("It belongs to foreign data wrapper \"%s\".",
						   wrapper->fdwname),
				 errhint("Create the server for foreign data wrapper \"%s\".",
						 pos_connection_postgres.wrapper)));
	return ops;
}

/*
 * Returns an open session with a server for the current user.
 *
 * Errors if there is no such server, if it belongs to a wrapper that is not
 * possync's, if the user lacks USAGE on it or has no user mapping, if the session
 * is in use, and whatever the kind reports when it connects.
 */
PosConnection *
pos_connection_get(const char *servername)
{
	ForeignServer *server = GetForeignServerByName(servername, false);
	const PosConnectionOps *ops = pos_connection_kind(servername);
	PosConnection *connection;
	AclResult	aclresult;

	aclresult = pos_compat_server_aclcheck(server->serverid, GetUserId(),
										   ACL_USAGE);
	if (aclresult != ACLCHECK_OK)
		aclcheck_error(aclresult, OBJECT_FOREIGN_SERVER, servername);

	connection = find_session(ops, server,
							  GetUserMapping(GetUserId(), server->serverid));
	ops->ready(connection);
	return connection;
}

/*
 * Returns the kind that serves a foreign data wrapper, NULL if there is none.
 */
const PosConnectionOps *
pos_connection_ops(const char *wrapper)
{
	for (int i = 0; i < lengthof(kinds); i++)
	{
		if (strcmp(kinds[i]->wrapper, wrapper) == 0)
			return kinds[i];
	}

	return NULL;
}

/* Tells all sessions that a transaction of a nesting level has ended. */
static void
tell_ended(int level)
{
	HASH_SEQ_STATUS scan;
	SessionEntry *entry;

	hash_seq_init(&scan, sessions);
	while ((entry = hash_seq_search(&scan)) != NULL)
		if (entry->session != NULL)
			entry->session->ops->ended(entry->session, level);
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
			tell_ended(0);
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
		tell_ended(level);
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
		PosConnection *session = entry->session;

		if (session != NULL &&
			(hash == 0 ||
			 (cacheid == FOREIGNSERVEROID && session->server_hash == hash) ||
			 (cacheid == USERMAPPINGOID && session->mapping_hash == hash)))
			session->invalid = true;
	}
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
