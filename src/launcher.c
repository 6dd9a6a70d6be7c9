/*
 * launcher.c
 *		The one process of a server that finds the databases with a schedule.
 *
 * It belongs to no database.  Every database is looked at once, by a scheduler
 * that ends if it finds nothing to do; afterwards a database announces itself
 * when its configuration changes.  New databases, which may be copies of others,
 * are noticed within a minute.
 */
#include "possync.h"

#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_database.h"
#include "launcher.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "process.h"
#include "shared.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "tcop/tcopprot.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

/* How often the list of databases is read, in milliseconds */
#define NAP_MS			60000

/* How long a scheduler that broke down is left alone, in milliseconds */
#define RESTART_MS		5000

typedef struct Database
{
	Oid			oid;
	bool		exists;
	bool		wanted;			/* to be looked at */
	TimestampTz not_before;
	PosChild   *scheduler;		/* NULL: none */
} Database;

extern PGDLLEXPORT void possync_launcher_main(Datum argument);

static List *databases = NIL;

/* Returns what is known of a database; makes it known if it was not. */
static Database *
find_database(Oid oid)
{
	Database   *database;
	ListCell   *lc;

	foreach(lc, databases)
		if (((Database *) lfirst(lc))->oid == oid)
		return lfirst(lc);
	database = palloc0(sizeof(Database));
	database->oid = oid;
	database->wanted = true;
	databases = lappend(databases, database);
	return database;
}

/* Reads the list of databases. */
static void
read_databases(void)
{
	MemoryContext context = CurrentMemoryContext;
	Relation	rel;
	TableScanDesc scan;
	HeapTuple	tuple;
	ListCell   *lc;

	foreach(lc, databases)
		((Database *) lfirst(lc))->exists = false;
	StartTransactionCommand();
	(void) GetTransactionSnapshot();
	rel = table_open(DatabaseRelationId, AccessShareLock);
	scan = table_beginscan_catalog(rel, 0, NULL);
	while ((tuple = heap_getnext(scan, ForwardScanDirection)) != NULL)
	{
		Form_pg_database form = (Form_pg_database) GETSTRUCT(tuple);
		MemoryContext old = MemoryContextSwitchTo(context);

		/* -2: dropping it was interrupted */
		if (form->datallowconn && !form->datistemplate &&
			form->datconnlimit != -2)
			find_database(form->oid)->exists = true;
		MemoryContextSwitchTo(old);
	}
	table_endscan(scan);
	table_close(rel, AccessShareLock);
	CommitTransactionCommand();
	MemoryContextSwitchTo(context);
	foreach(lc, databases)
	{
		Database   *database = lfirst(lc);

		if (!database->exists && database->scheduler == NULL)
		{
			databases = foreach_delete_current(databases, lc);
			pfree(database);
		}
	}
}

/*
 * Takes note of the databases that announced themselves.  Returns whether there
 * may be some that are new.
 */
static bool
take_announced(void)
{
	bool		new = false;
	Oid			oid;
	ListCell   *lc;

	while (pos_shared_take_announced(&oid))
		if (OidIsValid(oid))
		{
			Database   *database = find_database(oid);

			database->wanted = true;
			new = new || !database->exists;
		}
		else
			foreach(lc, databases)
				((Database *) lfirst(lc))->wanted = true;
	return new;
}

/* Starts the schedulers that are wanted.  Returns how long to wait, in ms. */
static long
supervise(void)
{
	TimestampTz now = GetCurrentTimestamp();
	long		wait = NAP_MS;
	PosProcess	process = {.kind = POS_PROCESS_SCHEDULER};
	ListCell   *lc;

	foreach(lc, databases)
	{
		Database   *database = lfirst(lc);

		if (database->scheduler != NULL)
		{
			bool		done;

			if (!pos_process_ended(database->scheduler, &done))
				continue;
			database->scheduler = NULL;
			database->not_before = done ? now :
				TimestampTzPlusMilliseconds(now, RESTART_MS);
			database->wanted = database->wanted || !done;
		}
		if (!database->wanted || !database->exists)
			continue;
		if (now < database->not_before || pos_shared_is_vacated(database->oid))
		{
			wait = Min(wait, RESTART_MS);
			continue;
		}
		process.database = database->oid;
		database->scheduler = pos_process_start(&process);
		if (database->scheduler != NULL)
			database->wanted = false;
		else
			wait = Min(wait, RESTART_MS);
	}
	return wait;
}

/* Registers the launcher; called while the module is preloaded. */
void
pos_launcher_register(void)
{
	BackgroundWorker worker = {0};

	if (IsBinaryUpgrade)
		return;
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS |
		BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = RESTART_MS / 1000;
	strlcpy(worker.bgw_name, "possync launcher", BGW_MAXLEN);
	strlcpy(worker.bgw_type, "possync launcher", BGW_MAXLEN);
	strlcpy(worker.bgw_library_name, "possync", BGW_MAXLEN);
	strlcpy(worker.bgw_function_name, "possync_launcher_main", BGW_MAXLEN);
	RegisterBackgroundWorker(&worker);
}

/* The launcher's main function. */
void
possync_launcher_main(Datum argument)
{
	PosProcess	me = {.kind = POS_PROCESS_LAUNCHER};
	int			slot;
	uint64		tenancy;
	TimestampTz read_at = 0;

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnection(NULL, NULL, 0);
	slot = pos_shared_reserve(&me, &tenancy);
	if (slot < 0)
		proc_exit(1);
	pos_shared_enter(slot);
	MemoryContextSwitchTo(TopMemoryContext);
	pgstat_report_activity(STATE_IDLE, NULL);
	for (;;)
	{
		long		wait;

		(void) pos_shared_woken();
		if (take_announced() ||
			TimestampDifferenceExceeds(read_at, GetCurrentTimestamp(), NAP_MS) ||
			read_at > GetCurrentTimestamp())
		{
			read_databases();
			read_at = GetCurrentTimestamp();
		}
		wait = supervise();
		pos_process_wait(wait);
	}
}
