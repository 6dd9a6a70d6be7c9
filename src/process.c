/*
 * process.c
 *		Starting, supervising and waiting of possync's lasting processes.
 */
#include "possync.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/pg_extension.h"
#include "compat.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "process.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "store.h"
#include "tcop/tcopprot.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/wait_event.h"

/* What a process is told, in bgw_extra */
typedef struct Order
{
	PosProcess	process;
	int			slot;
} Order;

struct PosChild
{
	BackgroundWorkerHandle *handle;
	int			slot;
	uint64		tenancy;
};

/*
 * Starts a process, unless there is one that does the same or no room for it:
 * then returns NULL.  This process is told when it ends.
 */
PosChild *
pos_process_start(PosProcess *process)
{
	BackgroundWorker worker = {0};
	Order		order = {.process = *process};
	PosChild   *child;
	uint64		tenancy;
	bool		runner = process->kind == POS_PROCESS_RUNNER;

	StaticAssertStmt(sizeof(Order) <= BGW_EXTRALEN, "order too long");
	order.slot = pos_shared_reserve(process, &tenancy);
	if (order.slot < 0)
		return NULL;
	child = MemoryContextAlloc(TopMemoryContext, sizeof(PosChild));
	child->slot = order.slot;
	child->tenancy = tenancy;
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS |
		BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = BGW_NEVER_RESTART;
	worker.bgw_notify_pid = MyProcPid;
	strlcpy(worker.bgw_name, !runner ? "possync scheduler" :
			process->push ? "possync pushes" : "possync pulls", BGW_MAXLEN);
	strlcpy(worker.bgw_type, worker.bgw_name, BGW_MAXLEN);
	strlcpy(worker.bgw_library_name, "possync", BGW_MAXLEN);
	strlcpy(worker.bgw_function_name, runner ? "possync_runner_main" :
			"possync_scheduler_main", BGW_MAXLEN);
	memcpy(worker.bgw_extra, &order, sizeof(order));
	if (!RegisterDynamicBackgroundWorker(&worker, &child->handle))
	{
		ereport(LOG,
				(errcode(ERRCODE_INSUFFICIENT_RESOURCES),
				 errmsg("could not start process \"%s\"", worker.bgw_name),
				 errhint("Raise max_worker_processes.")));
		pos_shared_release(order.slot, tenancy);
		pfree(child);
		return NULL;
	}
	return child;
}

/*
 * Whether a process has ended; done tells whether it said that there was nothing
 * to do.  The child is gone then.
 */
bool
pos_process_ended(PosChild *child, bool *done)
{
	pid_t		pid;

	if (GetBackgroundWorkerPid(child->handle, &pid) != BGWH_STOPPED)
		return false;
	*done = pos_shared_is_done(child->slot, child->tenancy);
	pos_shared_release(child->slot, child->tenancy);
	pfree(child->handle);
	pfree(child);
	return true;
}

/* Asks a process to end. */
void
pos_process_stop(PosChild *child)
{
	TerminateBackgroundWorker(child->handle);
}

/* Begins a process: connects it to its database, as its role. */
void
pos_process_enter(PosProcess *process)
{
	Order		order;

	memcpy(&order, MyBgworkerEntry->bgw_extra, sizeof(order));
	*process = order.process;
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGINT, StatementCancelHandler);
	pqsignal(SIGTERM, die);
	pos_shared_enter(order.slot);
	if (pos_shared_is_vacated(process->database))
		proc_exit(1);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnectionByOid(process->database, process->role,
											  0);
	pos_compat_lift_time_limit();
}

/* Waits until somebody wakes this process, or so long; -1: for ever. */
void
pos_process_wait(long milliseconds)
{
	pgstat_report_activity(STATE_IDLE, NULL);

	/* others may have reset the latch since; no reason to wake is lost then */
	if (pos_shared_is_woken())
		milliseconds = 0;
	(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_EXIT_ON_PM_DEATH |
					 (milliseconds < 0 ? 0 : WL_TIMEOUT), milliseconds,
					 PG_WAIT_EXTENSION);
	ResetLatch(MyLatch);
	CHECK_FOR_INTERRUPTS();
	if (ConfigReloadPending)
	{
		ConfigReloadPending = false;
		ProcessConfigFile(PGC_SIGHUP);
	}
}

/* Returns the schema of the extension, InvalidOid if there is none. */
static Oid
extension_schema(void)
{
	Relation	rel = table_open(ExtensionRelationId, AccessShareLock);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;
	Oid			schema = InvalidOid;

	ScanKeyInit(&key, Anum_pg_extension_extname, BTEqualStrategyNumber, F_NAMEEQ,
				CStringGetDatum("possync"));
	scan = systable_beginscan(rel, ExtensionNameIndexId, true, NULL, 1, &key);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
		schema = ((Form_pg_extension) GETSTRUCT(tuple))->extnamespace;
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return schema;
}

/*
 * Finds the extension's tables, within a transaction.  Returns false if the
 * database does not have the extension.
 */
bool
pos_process_find_store(void)
{
	Oid			schema = extension_schema();

	if (!OidIsValid(schema) ||
		!OidIsValid(get_relname_relid("synchronize_schedule", schema)))
		return false;
	pos_store_init_schema(schema);
	return true;
}
