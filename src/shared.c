/*
 * shared.c
 *		What possync's processes know of each other, in shared memory.
 *
 * Each has a slot, reserved by whoever starts it, so that nothing is started
 * twice.  A slot carries the reasons for which its process was woken: setting
 * one that is set already costs a seller no signal.
 *
 * There is shared memory only if possync is preloaded; without it there are no
 * processes, and everything here does nothing.
 */
#include "possync.h"

#include <signal.h>

#include "access/xact.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "port/atomics.h"
#include "postmaster/bgworker.h"
#include "shared.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lwlock.h"
#include "storage/proc.h"
#include "storage/shmem.h"
#include "utils/builtins.h"
#include "utils/resowner.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

/* Databases that told the launcher about themselves and were not looked at */
#define MAX_ANNOUNCED	64

/* How long a database is left alone that somebody wants for himself, in ms */
#define VACATED_MS		10000

typedef struct Slot
{
	PosProcess	process;
	uint64		tenancy;		/* counts who has had it */
	Latch	   *latch;
	pg_atomic_uint32 woken;		/* POS_WAKE_... */
} Slot;

typedef struct Shared
{
	LWLock	   *lock;			/* of everything but woken */
	Oid			vacated;		/* no process is to enter this database */
	TimestampTz until;
	int			nannounced;
	Oid			announced[MAX_ANNOUNCED];
	int			nslots;
	Slot		slots[FLEXIBLE_ARRAY_MEMBER];
} Shared;

static Shared *shared = NULL;
static int	my_slot = -1;
static uint32 wake_at_commit = 0;

static shmem_request_hook_type next_request = NULL;
static shmem_startup_hook_type next_startup = NULL;

static Size
shared_size(void)
{
	return offsetof(Shared, slots) + mul_size(max_worker_processes, sizeof(Slot));
}

static void
request(void)
{
	if (next_request)
		next_request();
	RequestAddinShmemSpace(shared_size());
	RequestNamedLWLockTranche("possync", 1);
}

static void
startup(void)
{
	bool		found;

	if (next_startup)
		next_startup();
	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	shared = ShmemInitStruct("possync", shared_size(), &found);
	if (!found)
	{
		memset(shared, 0, shared_size());
		shared->lock = &GetNamedLWLockTranche("possync")->lock;
		shared->nslots = max_worker_processes;
		for (int i = 0; i < shared->nslots; i++)
			pg_atomic_init_u32(&shared->slots[i].woken, 0);
	}
	LWLockRelease(AddinShmemInitLock);
}

/*
 * A transaction that aborts wakes nobody.  One that is prepared is committed by
 * somebody who does not know: it is found when jobs are read the next time.
 */
static void
at_end(XactEvent event, void *arg)
{
	if (event == XACT_EVENT_ABORT || event == XACT_EVENT_PREPARE)
		wake_at_commit = 0;
}

/*
 * Wakes others when a transaction has committed and its invalidations are sent,
 * which is after the callback for the commit: earlier, who is woken would look at
 * what was configured before, and go to sleep again.
 */
static void
at_release(ResourceReleasePhase phase, bool commit, bool top, void *arg)
{
	uint32		why = wake_at_commit;

	if (phase != RESOURCE_RELEASE_AFTER_LOCKS || !commit || !top || why == 0)
		return;
	wake_at_commit = 0;
	pos_shared_wake(MyDatabaseId, why);
}

/* Asks for shared memory; called while the module is preloaded. */
void
pos_shared_init(void)
{
	next_request = shmem_request_hook;
	shmem_request_hook = request;
	next_startup = shmem_startup_hook;
	shmem_startup_hook = startup;
	RegisterXactCallback(at_end, NULL);
	RegisterResourceReleaseCallback(at_release, NULL);
}

/* Whether there is shared memory. */
bool
pos_shared_exists(void)
{
	return shared != NULL;
}

static bool
is_same(PosProcess *a, PosProcess *b)
{
	return a->kind == b->kind && a->database == b->database &&
		a->role == b->role && a->server == b->server && a->push == b->push;
}

/*
 * Reserves a slot for a process about to start; tenancy tells it from who has
 * the slot before and after.  Returns -1 if there is such a process or no slot.
 */
int
pos_shared_reserve(PosProcess *process, uint64 *tenancy)
{
	int			slot = -1;

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < shared->nslots; i++)
	{
		PosProcess *other = &shared->slots[i].process;

		if (other->kind == POS_PROCESS_NONE || other->left)
		{
			if (slot < 0)
				slot = i;
		}
		else if (is_same(other, process))
		{
			slot = -1;
			break;
		}
	}
	if (slot >= 0)
	{
		shared->slots[slot].process = *process;
		shared->slots[slot].latch = NULL;
		*tenancy = ++shared->slots[slot].tenancy;
		pg_atomic_write_u32(&shared->slots[slot].woken, 0);
	}
	LWLockRelease(shared->lock);
	return slot;
}

/* Gives up the slot of a process that did not start, or has ended. */
void
pos_shared_release(int slot, uint64 tenancy)
{
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	if (shared->slots[slot].tenancy == tenancy)
	{
		memset(&shared->slots[slot].process, 0, sizeof(PosProcess));
		shared->slots[slot].latch = NULL;
	}
	LWLockRelease(shared->lock);
}

/*
 * This process ends.  Who started it asks whether it was done, but may itself
 * have ended: so others may take the slot from now on.
 */
static void
leave(int code, Datum arg)
{
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	shared->slots[my_slot].latch = NULL;
	shared->slots[my_slot].process.pid = 0;
	shared->slots[my_slot].process.left = true;
	LWLockRelease(shared->lock);
}

/* This process is the one for which a slot was reserved. */
void
pos_shared_enter(int slot)
{
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	my_slot = slot;
	shared->slots[slot].latch = MyLatch;
	shared->slots[slot].process.pid = MyProcPid;
	LWLockRelease(shared->lock);
	before_shmem_exit(leave, (Datum) 0);
}

/* Whether the process of a slot ended because there was nothing to do. */
bool
pos_shared_is_done(int slot, uint64 tenancy)
{
	bool		done;

	LWLockAcquire(shared->lock, LW_SHARED);
	done = shared->slots[slot].tenancy == tenancy &&
		shared->slots[slot].process.done;
	LWLockRelease(shared->lock);
	return done;
}

/* Notes that this process ends because there is nothing to do. */
void
pos_shared_set_done(void)
{
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	shared->slots[my_slot].process.done = true;
	LWLockRelease(shared->lock);
}

/* Returns why this process was woken since it last asked. */
uint32
pos_shared_woken(void)
{
	return pg_atomic_exchange_u32(&shared->slots[my_slot].woken, 0);
}

/* Whether there is something to be asked for. */
bool
pos_shared_is_woken(void)
{
	return pg_atomic_read_u32(&shared->slots[my_slot].woken) != 0;
}

static void
wake_slot(Slot *slot, uint32 why)
{
	if (slot->latch != NULL &&
		(pg_atomic_fetch_or_u32(&slot->woken, why) & why) != why)
		SetLatch(slot->latch);
}

/*
 * Wakes the processes of a database that something matters to.  The launcher
 * learns of changed configuration, too: there may be no other process yet.
 */
void
pos_shared_wake(Oid database, uint32 why)
{
	bool		config = (why & POS_WAKE_CONFIG) != 0;

	if (shared == NULL)
		return;
	LWLockAcquire(shared->lock, config ? LW_EXCLUSIVE : LW_SHARED);
	if (config)
	{
		int			i = 0;

		while (i < shared->nannounced && shared->announced[i] != database)
			i++;
		if (i == MAX_ANNOUNCED) /* look at all of them */
			shared->announced[0] = InvalidOid;
		else
			shared->announced[i] = database;
		if (i == shared->nannounced && i < MAX_ANNOUNCED)
			shared->nannounced++;
	}
	for (int i = 0; i < shared->nslots; i++)
	{
		Slot	   *slot = &shared->slots[i];

		switch (slot->process.kind)
		{
			case POS_PROCESS_NONE:
				break;
			case POS_PROCESS_LAUNCHER:
				if (config)
					wake_slot(slot, why);
				break;
			case POS_PROCESS_SCHEDULER:
				if (config && slot->process.database == database)
					wake_slot(slot, why);
				break;
			case POS_PROCESS_RUNNER:
				if ((config || slot->process.push) &&
					slot->process.database == database)
					wake_slot(slot, why);
				break;
		}
	}
	LWLockRelease(shared->lock);
}

/* The same, once this transaction has committed. */
void
pos_shared_wake_at_commit(uint32 why)
{
	wake_at_commit |= why;
}

/* Copies what is known of all processes.  Returns how many there are. */
int
pos_shared_processes(PosProcess *processes, int most)
{
	int			n = 0;

	if (shared == NULL)
		return 0;
	LWLockAcquire(shared->lock, LW_SHARED);
	for (int i = 0; i < shared->nslots && n < most; i++)
		if (shared->slots[i].process.pid != 0)
			processes[n++] = shared->slots[i].process;
	LWLockRelease(shared->lock);
	return n;
}

/* Takes a database that the launcher is to look at; InvalidOid means all. */
bool
pos_shared_take_announced(Oid *database)
{
	bool		any;

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	any = shared->nannounced > 0;
	if (any)
		*database = shared->announced[--shared->nannounced];
	LWLockRelease(shared->lock);
	return any;
}

/*
 * Lets all of possync's processes leave a database that somebody wants for
 * himself, to drop it, say; waits for that, some seconds at most.  They stay
 * away for a while, after which they return if the database is still there.
 */
void
pos_shared_vacate(Oid database)
{
	if (shared == NULL)
		return;
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	shared->vacated = database;
	shared->until = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), VACATED_MS);
	LWLockRelease(shared->lock);
	for (int i = 0; i < 50; i++)
	{
		bool		any = false;

		LWLockAcquire(shared->lock, LW_SHARED);
		for (int j = 0; j < shared->nslots; j++)
		{
			PosProcess *process = &shared->slots[j].process;

			if (process->database != database || process->pid == 0)
				continue;
			any = true;
			if (i == 0)
				(void) kill(process->pid, SIGTERM);
		}
		LWLockRelease(shared->lock);
		if (!any)
			break;
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 100, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
}

/* Whether nobody is to enter a database now. */
bool
pos_shared_is_vacated(Oid database)
{
	bool		vacated;

	LWLockAcquire(shared->lock, LW_SHARED);
	vacated = shared->vacated == database &&
		GetCurrentTimestamp() < shared->until;
	LWLockRelease(shared->lock);
	return vacated;
}

PG_FUNCTION_INFO_V1(possync_wake);
PG_FUNCTION_INFO_V1(possync_processes);
PG_FUNCTION_INFO_V1(possync_is_preloaded);

/*
 * _possync_wake() returns trigger
 *
 * Trigger of the configuration tables: wakes whoever runs jobs at commit.
 */
Datum
possync_wake(PG_FUNCTION_ARGS)
{
	pos_shared_wake_at_commit(POS_WAKE_CONFIG);
	PG_RETURN_POINTER(NULL);
}

/*
 * possync_processes()
 *		returns setof (pid, kind, database, role, server, direction)
 *
 * One row for every process that runs what is scheduled, or sees to it.
 */
Datum
possync_processes(PG_FUNCTION_ARGS)
{
	static const char *const kinds[] = {"", "launcher", "scheduler", "runner"};
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	PosProcess *processes = palloc(max_worker_processes * sizeof(PosProcess));
	int			n = pos_shared_processes(processes, max_worker_processes);

	InitMaterializedSRF(fcinfo, 0);
	for (int i = 0; i < n; i++)
	{
		PosProcess *process = &processes[i];
		bool		runner = process->kind == POS_PROCESS_RUNNER;
		Datum		row[] = {
			Int32GetDatum(process->pid),
			CStringGetTextDatum(kinds[process->kind]),
			ObjectIdGetDatum(process->database),
			ObjectIdGetDatum(process->role),
			ObjectIdGetDatum(process->server),
			CStringGetTextDatum(process->push ? "push" : "pull")
		};
		bool		nulls[] = {
			false, false, !OidIsValid(process->database), !runner, !runner,
			!runner
		};

		tuplestore_putvalues(result->setResult, result->setDesc, row, nulls);
	}
	return (Datum) 0;
}

/* _possync_is_preloaded() returns boolean */
Datum
possync_is_preloaded(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(pos_shared_exists());
}
