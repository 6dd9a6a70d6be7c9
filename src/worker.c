/*
 * worker.c
 *		A push from its turn to its row in history, in a background worker.
 *
 * A push needs transactions of its own, so it cannot run in that of its caller:
 * the caller starts a worker, waits for its end, and reads what it left in
 * history, under a number that the caller reserved.  The worker runs as the
 * caller's role.  It needs no shared_preload_libraries.  Pushes that are
 * scheduled run in a process that is there already, see runner.c.
 *
 * One push at a time goes to a server; another one waits for its turn.
 */
#include "possync.h"

#include "access/xact.h"
#include "catalog/pg_foreign_server.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "executor/spi.h"
#include "fault.h"
#include "foreign/foreign.h"
#include "libpq/pqsignal.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "progress.h"
#include "push.h"
#include "spool.h"
#include "storage/ipc.h"
#include "storage/lock.h"
#include "store.h"
#include "transaction.h"
#include "tcop/tcopprot.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "worker.h"

/* What the worker is told, in bgw_extra */
typedef struct Order
{
	Oid			database;
	Oid			role;
	Oid			function;		/* one of the extension's, to find its schema */
	uint64		caller;			/* its transaction, if that has a number */
	int32		history;
	int16		model;
} Order;

extern PGDLLEXPORT void possync_worker_main(Datum argument);

/*
 * Starts a worker that pushes a model's tree under the given number in history,
 * and waits until it is done.  Errors if no worker can be started.
 */
void
pos_worker_push(Oid function, int16 model, int32 history)
{
	BackgroundWorker worker = {0};
	BackgroundWorkerHandle *handle;
	Order		order = {
		.database = MyDatabaseId,
		.role = GetUserId(),
		.function = function,
		.caller = U64FromFullTransactionId(GetTopFullTransactionIdIfAny()),
		.history = history,
		.model = model,
	};

	StaticAssertStmt(sizeof(Order) <= BGW_EXTRALEN, "order too long");
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS |
		BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = BGW_NEVER_RESTART;
	worker.bgw_notify_pid = MyProcPid;
	strlcpy(worker.bgw_name, "possync push", BGW_MAXLEN);
	strlcpy(worker.bgw_type, "possync push", BGW_MAXLEN);
	strlcpy(worker.bgw_library_name, "possync", BGW_MAXLEN);
	strlcpy(worker.bgw_function_name, "possync_worker_main", BGW_MAXLEN);
	memcpy(worker.bgw_extra, &order, sizeof(order));

	if (!RegisterDynamicBackgroundWorker(&worker, &handle))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_RESOURCES),
				 errmsg("could not start a worker to push with"),
				 errhint("Raise max_worker_processes.")));
	PG_TRY();
	{
		if (WaitForBackgroundWorkerShutdown(handle) == BGWH_POSTMASTER_DIED)
			ereport(ERROR,
					(errcode(ERRCODE_ADMIN_SHUTDOWN),
					 errmsg("the server was shut down during the push")));
	}
	PG_CATCH();
	{
		/* what it has begun is finished by the next push */
		TerminateBackgroundWorker(handle);
		PG_RE_THROW();
	}
	PG_END_TRY();
}

/*
 * Makes a process fit for pushing: values are sent as text that every session
 * writes and reads alike, and names in them are qualified.
 */
void
pos_worker_pin_settings(void)
{
	SetConfigOption("search_path", "pg_catalog", PGC_USERSET, PGC_S_OVERRIDE);
	SetConfigOption("lc_monetary", "C", PGC_USERSET, PGC_S_OVERRIDE);
	SetConfigOption("datestyle", "ISO", PGC_USERSET, PGC_S_OVERRIDE);
	SetConfigOption("intervalstyle", "postgres", PGC_USERSET, PGC_S_OVERRIDE);
	SetConfigOption("timezone", "UTC", PGC_USERSET, PGC_S_OVERRIDE);
	SetConfigOption("extra_float_digits", "3", PGC_USERSET, PGC_S_OVERRIDE);
	SetConfigOption("bytea_output", "hex", PGC_USERSET, PGC_S_OVERRIDE);
	SetConfigOption("jit", "off", PGC_USERSET, PGC_S_OVERRIDE);
	SetConfigOption("application_name", "possync push", PGC_USERSET,
					PGC_S_OVERRIDE);
}

/*
 * The turn with a server.  The lock is of the advisory kind, as others do not
 * outlive an abort; its last field is not one that SQL functions use.
 */
static void
set_turn(LOCKTAG *tag, Oid server)
{
	SET_LOCKTAG_ADVISORY(*tag, MyDatabaseId, ForeignServerRelationId, server, 3);
}

/*
 * Finds the root, its server and where in the queue is what waits for that, and waits
 * for the turn with it.  That is one lane, unless models were made by hand.
 */
static void
take_turn(PosPush *push, int16 model, LOCKTAG *turn)
{
	Oid			types[] = {INT2OID};
	Datum		values[] = {Int16GetDatum(model)};
	bool		isnull;

	pos_transaction_begin();
	if (pos_store_execute("SELECT m.name, m.server,"
						  POS_LANE_FIRST("min(o.lane)") "," POS_LANE_LAST("max(o.lane)")
						  " FROM @.synchronize_model m"
						  " JOIN @.synchronize_model o ON o.server = m.server"
						  " WHERE m.id = $1 GROUP BY m.id",
						  1, types, values, NULL) != 1)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("the model to be pushed does not exist any more")));
	push->root = MemoryContextStrdup(push->memory,
									 SPI_getvalue(SPI_tuptable->vals[0],
												  SPI_tuptable->tupdesc, 1));
	push->server = MemoryContextStrdup(push->memory,
									   SPI_getvalue(SPI_tuptable->vals[0],
													SPI_tuptable->tupdesc, 2));
	push->first = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0],
											  SPI_tuptable->tupdesc, 3, &isnull));
	push->last = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0],
											 SPI_tuptable->tupdesc, 4, &isnull));
	set_turn(turn, GetForeignServerByName(push->server, false)->serverid);
	(void) LockAcquire(turn, ExclusiveLock, true, false);
	pos_transaction_commit();
}

/*
 * Notes in history that the push runs.  Pushes that still seem to run have ended
 * without a word.
 */
static void
start(PosPush *push)
{
	Oid			types[] = {INT4OID, TEXTOID, TEXTOID};
	Datum		values[3];

	pos_transaction_begin();
	values[0] = Int32GetDatum(push->history);
	values[1] = CStringGetTextDatum(push->root);
	values[2] = CStringGetTextDatum(push->server);
	pos_store_execute_as(POS_PLAN_LOOK_UP,
						 "UPDATE @.synchronize_history SET status = 'interrupted',"
						 " finished_at = pg_catalog.clock_timestamp()"
						 " WHERE status = 'running' AND direction = 'push'"
						 " AND server = $1", 1, types + 1, values + 2, NULL);
	pos_store_execute("INSERT INTO @.synchronize_history"
					  " (id, model, server, direction, status, started_at)"
					  " OVERRIDING SYSTEM VALUE VALUES"
					  " ($1, $2, $3, 'push', 'running', pg_catalog.clock_timestamp())",
					  3, types, values, NULL);
	pos_transaction_commit_lazily();	/* all that matters is forced later */
}

/*
 * Closes the batches of which no key is unsure any more.  Once nothing waits that
 * is older than this push, what is left are rows that nobody sends by themselves,
 * as their transaction was discarded: they may be at the remote or not.  Who refers
 * to one sends it along under its key, so its batch stays open, and is looked at
 * again when such a row was sent.
 */
static void
close_batches(PosPush *push)
{
	Oid			types[] = {TEXTOID, INT4OID, INT8OID, INT8OID};
	Datum		values[] = {
		CStringGetTextDatum(push->server), Int32GetDatum(push->history),
		Int64GetDatum(push->first), Int64GetDatum(push->last)
	};

	if (pos_store_execute(push->sent_again ?
						  "SELECT 1 FROM @.synchronize_batch WHERE server = $1"
						  " LIMIT 1" :
						  "SELECT 1 FROM @.synchronize_batch WHERE server = $1"
						  " AND NOT given_up LIMIT 1", 1, types, values, NULL) == 0)
		return;
	pos_store_execute_as(POS_PLAN_LOOK_UP,
						 "DELETE FROM @.synchronize_batch b WHERE server = $1"
						 " AND NOT EXISTS (SELECT 1"
						 " FROM json_each(b.made) m (model, keys),"
						 " json_array_elements(m.keys) k (key), LATERAL"
						 " (SELECT run, decision FROM @.synchronize_translation"
						 " WHERE model = m.model::int2 AND local_key"
						 " BETWEEN (k.key ->> 0)::int8 AND (k.key ->> 1)::int8"
						 " UNION ALL"
						 " SELECT run, decision FROM @.synchronize_translation"
						 " WHERE model = m.model::int2"
						 " AND local_key_text = k.key #>> '{}') t"
						 " WHERE t.run = b.id AND t.decision = 'c')",
						 1, types, values, NULL);
	pos_store_execute("UPDATE @.synchronize_batch SET given_up = true"
					  " WHERE server = $1 AND NOT given_up"
					  " AND NOT EXISTS (SELECT 1 FROM @.synchronize_held"
					  " WHERE txid BETWEEN $3 AND $4)"
					  " AND NOT EXISTS (SELECT 1 FROM @.synchronize_queue q"
					  " JOIN @.synchronize_history h ON h.id = $2"
					  " WHERE q.txid BETWEEN $3 AND $4"
					  " AND q.queued_at < h.started_at)",
					  4, types, values, NULL);
}

/* Notes in history how the push ended, and closes batches that arrived. */
static void
finish(PosPush *push, ErrorData *error)
{
	Oid			types[] = {
		INT4OID, TEXTOID, INT8OID, INT8OID, INT8OID, INT8OID, INT8OID, INT8OID,
		TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID
	};
	Datum		values[13];
	char		nulls[14] = "             ";

	pos_transaction_begin();
	values[0] = Int32GetDatum(push->history);
	values[1] = CStringGetTextDatum(error != NULL ? "failed" : "ok");
	values[2] = Int64GetDatum(push->counts.read);
	values[3] = Int64GetDatum(push->counts.created);
	values[4] = Int64GetDatum(push->counts.matched);
	values[5] = Int64GetDatum(push->counts.updated);
	values[6] = Int64GetDatum(push->counts.left_out);
	values[7] = Int64GetDatum((int64) push->received);
	memset(nulls + 8, 'n', 5);
	if (error != NULL)
	{
		const char *texts[] = {
			error->message, unpack_sql_state(error->sqlerrcode), error->detail,
			error->hint, error->context
		};

		for (int i = 0; i < lengthof(texts); i++)
			if (texts[i] != NULL)
			{
				values[8 + i] = CStringGetTextDatum(texts[i]);
				nulls[8 + i] = ' ';
			}
	}
	pos_store_execute("UPDATE @.synchronize_history SET status = $2,"
					  " finished_at = pg_catalog.clock_timestamp(),"
					  " rows_read = $3, rows_created = $4, rows_matched = $5,"
					  " rows_updated = $6, rows_left_out = $7,"
					  " bytes_received = $8, error = $9, sqlstate = $10,"
					  " error_detail = $11, error_hint = $12,"
					  " error_context = $13 WHERE id = $1",
					  13, types, values, nulls);
	if (error == NULL)
		close_batches(push);
	pos_transaction_commit();
}

/*
 * Runs a push.  Returns the error it failed with, in a memory context, or NULL;
 * a process that is told to end raises it.
 */
static ErrorData *
run(PosPush *push, MemoryContext context)
{
	ErrorData  *volatile error = NULL;

	pos_progress_begin(push->history, push->root, true);
	PG_TRY();
	{
		pos_push_run(push);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		if (ProcDiePending)
			PG_RE_THROW();
		FlushErrorState();
		AbortOutOfAnyTransaction();
	}
	PG_END_TRY();
	pos_progress_end();
	return error;
}

/*
 * Carries out a push under a number reserved in history, for a transaction (or 0)
 * that waits for its end.  Must be called outside of a transaction.  lasting says
 * that this process will push more.  Returns the error it failed with, in the
 * current memory context, or NULL; a process that is told to end raises it.
 */
ErrorData *
pos_worker_run(int16 model, int32 history, uint64 caller, bool lasting)
{
	MemoryContext context = CurrentMemoryContext;
	MemoryContext memory = AllocSetContextCreate(context,
												 "possync whole push",
												 ALLOCSET_DEFAULT_SIZES);
	PosPush    *push = MemoryContextAllocZero(memory, sizeof(PosPush));
	LOCKTAG		turn;
	ErrorData  *volatile error = NULL;

	push->memory = memory;
	push->history = history;
	push->caller = caller;
	push->lasting = lasting;
	take_turn(push, model, &turn);
	PG_TRY();
	{
		start(push);
		error = run(push, context);
		finish(push, error);
	}
	PG_FINALLY();
	{
		(void) LockRelease(&turn, ExclusiveLock, true);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	MemoryContextDelete(memory);
	return error;
}

/* The worker's main function. */
void
possync_worker_main(Datum argument)
{
	Order		order;

	memcpy(&order, MyBgworkerEntry->bgw_extra, sizeof(order));
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnectionByOid(order.database, order.role, 0);
	pos_compat_lift_time_limit();
	pos_worker_pin_settings();
	pgstat_report_activity(STATE_RUNNING, "pushing");

	StartTransactionCommand();
	pos_store_init(order.function);
	CommitTransactionCommand();
	MemoryContextSwitchTo(TopMemoryContext);
	(void) pos_worker_run(order.model, order.history, order.caller, false);
	proc_exit(0);
}
