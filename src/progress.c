/*
 * progress.c
 *		How far a run is, in shared memory, for the view possync_progress.
 *
 * Every backend has an entry that only it writes; it counts up before and after
 * each change, so that who reads knows what may be torn and reads again.  What a
 * process leaves behind that died is told by its pid.  Without preloading there
 * is no shared memory, and nothing happens here.
 */
#include "possync.h"

#include "compat.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "port/atomics.h"
#include "progress.h"
#include "storage/ipc.h"
#include "storage/lwlock.h"
#include "storage/procarray.h"
#include "storage/shmem.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

/* Rows after which the entry is brought up to date */
#define ROWS_AT_A_TIME	500

typedef struct Progress
{
	uint32		changes;		/* odd while it is being changed */
	int			pid;			/* 0: no run */
	Oid			database;
	int32		run;
	bool		push;
	char		root[NAMEDATALEN];
	char		phase[NAMEDATALEN];
	char		model[NAMEDATALEN];
	int64		rows;
	int64		expected;		/* -1: not known */
	uint64		bytes;
	TimestampTz started_at;
} Progress;

static Progress *entries = NULL;
static Progress *mine = NULL;	/* while a run works */
static int64 rows_untold;

static shmem_request_hook_type next_request = NULL;
static shmem_startup_hook_type next_startup = NULL;

static void
request(void)
{
	if (next_request)
		next_request();
	RequestAddinShmemSpace(mul_size(MaxBackends, sizeof(Progress)));
}

static void
startup(void)
{
	Size		size = mul_size(MaxBackends, sizeof(Progress));
	bool		found;

	if (next_startup)
		next_startup();
	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	entries = ShmemInitStruct("possync progress", size, &found);
	if (!found)
		memset(entries, 0, size);
	LWLockRelease(AddinShmemInitLock);
}

/* Asks for shared memory; called while the module is preloaded. */
void
pos_progress_init(void)
{
	next_request = shmem_request_hook;
	shmem_request_hook = request;
	next_startup = shmem_startup_hook;
	shmem_startup_hook = startup;
}

static void
begin_change(void)
{
	mine->changes++;
	pg_write_barrier();
}

static void
end_change(void)
{
	pg_write_barrier();
	mine->changes++;
}

/* A run begins in this process. */
void
pos_progress_begin(int32 run, const char *model, bool push)
{
	int			number = pos_compat_proc_number();

	if (entries == NULL || number >= MaxBackends)
		return;
	mine = &entries[number];
	begin_change();
	mine->pid = MyProcPid;
	mine->database = MyDatabaseId;
	mine->run = run;
	mine->push = push;
	strlcpy(mine->root, model, NAMEDATALEN);
	strlcpy(mine->phase, "connecting", NAMEDATALEN);
	mine->model[0] = '\0';
	mine->rows = 0;
	mine->expected = -1;
	mine->bytes = 0;
	mine->started_at = GetCurrentTimestamp();
	end_change();
	rows_untold = 0;
}

/* The run does something else now; model may be NULL. */
void
pos_progress_phase(const char *phase, const char *model)
{
	if (mine == NULL)
		return;
	begin_change();
	strlcpy(mine->phase, phase, NAMEDATALEN);
	strlcpy(mine->model, model == NULL ? "" : model, NAMEDATALEN);
	mine->rows += rows_untold;
	end_change();
	rows_untold = 0;
}

/* So many rows will come in all; -1: it is not known. */
void
pos_progress_expect(int64 rows)
{
	if (mine == NULL)
		return;
	begin_change();
	mine->expected = rows;
	end_change();
}

/* So many more rows have come, in all of so many bytes. */
void
pos_progress_rows(int64 rows, uint64 bytes)
{
	if (mine == NULL)
		return;
	rows_untold += rows;
	if (rows_untold < ROWS_AT_A_TIME && rows == 1)
		return;
	begin_change();
	mine->rows += rows_untold;
	mine->bytes = bytes;
	end_change();
	rows_untold = 0;
}

/* The run has ended, somehow. */
void
pos_progress_end(void)
{
	if (mine == NULL)
		return;
	begin_change();
	mine->pid = 0;
	end_change();
	mine = NULL;
}

/* Copies an entry that is not torn. */
static Progress
read_entry(Progress *entry)
{
	Progress	copy;
	uint32		before;

	do
	{
		CHECK_FOR_INTERRUPTS();
		before = *(volatile uint32 *) &entry->changes;
		pg_read_barrier();
		memcpy(&copy, entry, sizeof(copy));
		pg_read_barrier();
	} while ((before & 1) != 0 ||
			 before != *(volatile uint32 *) &entry->changes);
	return copy;
}

PG_FUNCTION_INFO_V1(possync_running);

/*
 * _possync_running()
 *		returns setof (pid, run, model, direction, phase, current_model, rows_done,
 *		rows_expected, bytes_received, started_at)
 *
 * One row for every run that works in this database.
 */
Datum
possync_running(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;

	InitMaterializedSRF(fcinfo, 0);
	for (int i = 0; entries != NULL && i < MaxBackends; i++)
	{
		Progress	entry;
		Datum		row[10];
		bool		nulls[10] = {false};

		if (entries[i].pid == 0)
			continue;
		entry = read_entry(&entries[i]);
		if (entry.pid == 0 || entry.database != MyDatabaseId ||
			BackendPidGetProc(entry.pid) == NULL)
			continue;
		row[0] = Int32GetDatum(entry.pid);
		row[1] = Int32GetDatum(entry.run);
		nulls[1] = entry.run == 0;
		row[2] = CStringGetTextDatum(entry.root);
		row[3] = CStringGetTextDatum(entry.push ? "push" : "pull");
		row[4] = CStringGetTextDatum(entry.phase);
		nulls[5] = entry.model[0] == '\0';
		row[5] = CStringGetTextDatum(entry.model);
		row[6] = Int64GetDatum(entry.rows);
		nulls[7] = entry.expected < 0;
		row[7] = Int64GetDatum(entry.expected);
		row[8] = Int64GetDatum((int64) entry.bytes);
		row[9] = TimestampTzGetDatum(entry.started_at);
		tuplestore_putvalues(result->setResult, result->setDesc, row, nulls);
	}
	return (Datum) 0;
}
