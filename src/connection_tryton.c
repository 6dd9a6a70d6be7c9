/*
 * connection_tryton.c
 *		The operations of connection.h on a Tryton server.
 *
 * Owns the course of a read: one call for every model tells whether it changed;
 * then come the rows, page by page.  There is no snapshot: every call sees the
 * server as it is at that moment.  A row that refers to one which was made in
 * between waits in quarantine for the next pull, as any row whose parent is not
 * here.
 */
#include "postgres.h"

#include "access/xact.h"
#include "connection_tryton.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

static bool accepts(const char *remote);
static char *propose(const char *schema, const char *table);
static PosConnection *make(ForeignServer *server, UserMapping *mapping);
static void ready(PosConnection *connection);
static PosUse use(PosConnection *connection);
static void drop(PosConnection *connection);
static void ended(PosConnection *connection, int level);
static void begin(PosConnection *connection, PosTable **tables, int ntables,
				  PosSnapshot *snapshot);
static void request(PosConnection *connection, PosTable **tables, int ntables);
static bool next(PosConnection *connection, Datum *values, bool *nulls);
static void finish(PosConnection *connection);
static List *expect(PosConnection *connection, PosTable **tables, int ntables);
static uint64 received(PosConnection *connection);
static const char *source(PosConnection *connection);

const PosConnectionOps pos_connection_tryton = {
	.wrapper = "possync_tryton",
	.capabilities = POS_CAP_CHANGED | POS_CAP_WRITE | POS_CAP_DIGEST |
	POS_CAP_LATE_KEYS | POS_CAP_CALLS,
	.naming = "Write the model as Tryton does, as product.template, and what a many2many field links as product.template:categories.",
	.accepts = accepts,
	.propose = propose,
	.make = make,
	.ready = ready,
	.use = use,
	.drop = drop,
	.ended = ended,
	.begin = begin,
	.describe = pos_tryton_describe,
	.digest = pos_tryton_digest,
	.digest_next = pos_tryton_digest_next,
	.request = request,
	.next = next,
	.finish = finish,
	.expect = expect,
	.send = pos_tryton_write_send,
	.pump = pos_tryton_write_pump,
	.receive = pos_tryton_write_receive,
	.abandon = pos_tryton_write_abandon,
	.settled = pos_tryton_settled,
	.models = pos_tryton_list_models,
	.fields = pos_tryton_list_fields,
	.received = received,
	.source = source,
};

/*
 * The operations; connection.h says what each is for.
 */
static bool
accepts(const char *remote)
{
	Size		model = strspn(remote, "abcdefghijklmnopqrstuvwxyz0123456789_-.");

	if (model == 0 || remote[0] == '.' || remote[model - 1] == '.')
		return false;
	if (remote[model] != ':')
		return remote[model] == '\0';
	remote += model + 1;
	return remote[0] != '\0' &&
		strspn(remote, "abcdefghijklmnopqrstuvwxyz0123456789_") == strlen(remote);
}

/* Tryton itself calls the table of product.template product_template. */
static char *
propose(const char *schema, const char *table)
{
	char	   *remote = pstrdup(table);

	for (char *p = remote; *p; p++)
		if (*p == '_')
			*p = '.';
	return remote;
}

static PosConnection *
make(ForeignServer *server, UserMapping *mapping)
{
	PosTrytonSession *session = palloc0(sizeof(PosTrytonSession));

	pos_tryton_options_read(server, mapping, &session->options);
	session->http = pos_http_make(&session->options.http);
	return &session->base;
}

static void
ready(PosConnection *connection)
{
	/* a call will tell whether the server is there */
}

static PosUse
use(PosConnection *connection)
{
	PosTrytonSession *session = (PosTrytonSession *) connection;

	return session->read_context != NULL ? POS_USE_READING :
		session->steps != NULL ? POS_USE_WRITING : POS_USE_NONE;
}

static void
drop(PosConnection *connection)
{
	pos_http_close(((PosTrytonSession *) connection)->http);
}

/* Forgets what belongs to one read. */
static void
end_read(PosTrytonSession *session)
{
	if (session->read_context != NULL)
		MemoryContextDelete(session->read_context);
	session->read_context = NULL;
	session->row_context = NULL;
	session->tables = NULL;
	session->pages = NULL;
	session->plan = NULL;
	session->digest = NULL;
}

static void
ended(PosConnection *connection, int level)
{
	PosTrytonSession *session = (PosTrytonSession *) connection;
	bool		failed = session->busy >= Max(level, 1);

	if (failed)
	{
		connection->broken = true;
		session->steps = NULL;
		session->pending = NULL;
		session->learning = false;
	}
	if (failed || connection->level >= level)
	{
		pos_http_cancel(session->http);
		end_read(session);
		pos_tryton_leave(session);
	}
	if (failed)
		pos_tryton_models_forget(session);
}

static void
begin(PosConnection *connection, PosTable **tables, int ntables,
	  PosSnapshot *snapshot)
{
	PosTrytonSession *session = (PosTrytonSession *) connection;
	MemoryContext old;

	pos_tryton_enter(session);
	connection->level = GetCurrentTransactionNestLevel();
	connection->broken = false;
	session->received_before = pos_http_received(session->http);
	session->read_context = AllocSetContextCreate(connection->context,
												  "possync read",
												  ALLOCSET_DEFAULT_SIZES);
	session->row_context = AllocSetContextCreate(session->read_context, "possync row",
												 ALLOCSET_DEFAULT_SIZES);
	old = MemoryContextSwitchTo(session->read_context);
	pos_tryton_open(session);
	pos_tryton_positions_read(session, tables, ntables);
	for (int i = 0; i < ntables; i++)
	{
		tables[i]->logged = false;
		tables[i]->next_position = NULL;
		tables[i]->settled = false;
		tables[i]->exact = pos_tryton_is_swept(tables[i]) ? POS_EXACT_COMPARED :
			POS_EXACT_OVERLAP;
		pos_tryton_poll(session, tables[i]);
	}
	MemoryContextSwitchTo(old);
	snapshot->now = GetCurrentTimestamp() + session->offset;
	snapshot->offset = session->offset;
	snapshot->complete = TimestampTzPlusMilliseconds(snapshot->now,
													 -session->options.overlap);
	snapshot->source = pstrdup(session->source);
	snapshot->encoding = GetDatabaseEncodingName(); /* rows are hashed here */
	pos_tryton_leave(session);
}

static void
request(PosConnection *connection, PosTable **tables, int ntables)
{
	PosTrytonSession *session = (PosTrytonSession *) connection;
	char	   *buffers = palloc(ntables * pos_tryton_position_size());
	MemoryContext old = MemoryContextSwitchTo(session->read_context);

	session->tables = palloc(sizeof(PosTable *) * ntables);
	memcpy(session->tables, tables, sizeof(PosTable *) * ntables);
	session->buffers = buffers;
	session->ntables = ntables;
	session->current = 0;
	session->plan = NULL;
	MemoryContextSwitchTo(old);
}

/* Begins with the current table. */
static void
begin_table(PosTrytonSession *session)
{
	PosTable   *table = session->tables[session->current];
	MemoryContext old = MemoryContextSwitchTo(session->read_context);

	session->plan = pos_tryton_plan(session, table);
	session->pages = pos_tryton_position_pages(session, table,
											   session->buffers +
											   session->current * pos_tryton_position_size());
	MemoryContextSwitchTo(old);
}

static bool
next(PosConnection *connection, Datum *values, bool *nulls)
{
	PosTrytonSession *session = (PosTrytonSession *) connection;
	PosTable   *table = session->tables[session->current];
	MemoryContext old;
	JsonbContainer *row;
	int64		link;
	bool		any;

	pos_tryton_enter(session);
	if (session->plan == NULL)
		begin_table(session);
	any = session->pages != NULL &&
		pos_tryton_next(session, session->pages, &row, &link);
	old = MemoryContextSwitchTo(session->read_context);
	if (any)
		pos_tryton_position_seen(session, table, row, link);
	else
	{
		pos_tryton_position_end(session, table);
		session->current++;
		session->plan = NULL;
	}
	MemoryContextSwitchTo(old);
	pos_tryton_leave(session);

	/* the row is taken: if it cannot be converted, others can */
	if (any)
		pos_tryton_convert(session->plan, row, link, values, nulls);
	return any;
}

static void
finish(PosConnection *connection)
{
	PosTrytonSession *session = (PosTrytonSession *) connection;

	pos_http_cancel(session->http);
	end_read(session);
}

static List *
expect(PosConnection *connection, PosTable **tables, int ntables)
{
	PosTrytonSession *session = (PosTrytonSession *) connection;

	pos_tryton_enter(session);
	connection->level = GetCurrentTransactionNestLevel();
	pos_tryton_open(session);
	pos_tryton_leave(session);
	return pos_tryton_describe(connection, tables, ntables);
}

static uint64
received(PosConnection *connection)
{
	PosTrytonSession *session = (PosTrytonSession *) connection;

	return pos_http_received(session->http) - session->received_before;
}

static const char *
source(PosConnection *connection)
{
	return ((PosTrytonSession *) connection)->source;
}
