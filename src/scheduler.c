/*
 * scheduler.c
 *		The process of a database that starts and supervises its runners.
 *
 * A runner carries out the jobs of one role with one server in one direction,
 * so that pushing does not wait for a long pull, connections are kept, and
 * nothing runs with rights that its owner does not have.  The scheduler only
 * reads which of them there have to be.  Jobs that came with a copy of a database
 * rest: two tills with one queue would push its sales twice.
 */
#include "possync.h"

#include "access/xact.h"
#include "commands/dbcommands.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "process.h"
#include "shared.h"
#include "storage/ipc.h"
#include "store.h"
#include "transaction.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

/* How long a runner that broke down is left alone, in milliseconds */
#define RESTART_MS		5000

typedef struct Runner
{
	PosProcess	process;
	bool		wanted;
	TimestampTz not_before;
	PosChild   *child;			/* NULL: none */
} Runner;

extern PGDLLEXPORT void possync_scheduler_main(Datum argument);

static List *runners = NIL;

/* Whether a runner has ended, maybe because it is not wanted any more */
static bool ended = false;

/* Marks a runner as wanted. */
static void
want(Oid database, Oid role, Oid server, bool push)
{
	MemoryContext old;
	Runner	   *runner;
	ListCell   *lc;

	foreach(lc, runners)
	{
		runner = lfirst(lc);
		if (runner->process.role == role && runner->process.server == server &&
			runner->process.push == push)
		{
			runner->wanted = true;
			return;
		}
	}
	old = MemoryContextSwitchTo(TopMemoryContext);
	runner = palloc0(sizeof(Runner));
	runner->process.kind = POS_PROCESS_RUNNER;
	runner->process.database = database;
	runner->process.role = role;
	runner->process.server = server;
	runner->process.push = push;
	runner->wanted = true;
	runners = lappend(runners, runner);
	MemoryContextSwitchTo(old);
}

/* Reads which runners there have to be. */
static void
read_schedule(Oid database)
{
	bool		copied = false;
	ListCell   *lc;

	foreach(lc, runners)
		((Runner *) lfirst(lc))->wanted = false;
	pos_transaction_begin();
	if (pos_process_find_store())
	{
		uint64		n = pos_store_execute("SELECT s.owner::oid, f.oid,"
										  " s.direction = 'push',"
										  " bool_or(s.home = @._possync_home())"
										  " FROM @.synchronize_schedule s"
										  " JOIN @.synchronize_model m ON m.id = s.model"
										  " JOIN pg_foreign_server f ON f.srvname = m.server"
										  " JOIN pg_authid a ON a.oid = s.owner"
										  " WHERE NOT s.paused GROUP BY 1, 2, 3",
										  0, NULL, NULL, NULL);

		for (uint64 i = 0; i < n; i++)
		{
			HeapTuple	tuple = SPI_tuptable->vals[i];
			TupleDesc	desc = SPI_tuptable->tupdesc;
			bool		isnull;

			if (!DatumGetBool(SPI_getbinval(tuple, desc, 4, &isnull)))
			{
				copied = true;
				continue;
			}
			want(database, DatumGetObjectId(SPI_getbinval(tuple, desc, 1, &isnull)),
				 DatumGetObjectId(SPI_getbinval(tuple, desc, 2, &isnull)),
				 DatumGetBool(SPI_getbinval(tuple, desc, 3, &isnull)));
		}
	}
	if (copied)
		ereport(LOG,
				(errmsg("jobs in database \"%s\" do not run: they were set up in another one, of which it is a copy",
						get_database_name(database)),
				 errhint("If this one takes the other's place, call possync_resume for their models or servers.")));
	pos_transaction_commit();
}

/*
 * Starts and stops runners.  Returns how long to wait, in milliseconds, -1 for
 * ever, or 0 if there is nothing to do any more.
 */
static long
supervise(void)
{
	TimestampTz now = GetCurrentTimestamp();
	long		wait = runners == NIL ? 0 : -1;
	ListCell   *lc;

	foreach(lc, runners)
	{
		Runner	   *runner = lfirst(lc);
		bool		done;

		if (runner->child != NULL)
		{
			if (!pos_process_ended(runner->child, &done))
			{
				if (!runner->wanted)
					pos_process_stop(runner->child);
				continue;
			}
			runner->child = NULL;
			ended = true;
			runner->not_before = TimestampTzPlusMilliseconds(now, RESTART_MS);
		}
		if (!runner->wanted)
		{
			runners = foreach_delete_current(runners, lc);
			pfree(runner);
			continue;
		}
		if (now >= runner->not_before)
			runner->child = pos_process_start(&runner->process);
		if (runner->child == NULL)
			wait = RESTART_MS;
	}
	return runners == NIL ? 0 : wait;
}

/* A scheduler's main function. */
void
possync_scheduler_main(Datum argument)
{
	PosProcess	me;
	bool		read = true;

	pos_process_enter(&me);
	pgstat_report_appname("possync scheduler");
	for (;;)
	{
		long		wait;

		if (read)
			read_schedule(me.database);
		wait = supervise();
		if (wait == 0)
		{
			pos_shared_set_done();
			proc_exit(0);
		}
		pos_process_wait(wait);
		read = (pos_shared_woken() & POS_WAKE_CONFIG) != 0 || ended;
		ended = false;
	}
}
