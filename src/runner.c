/*
 * runner.c
 *		The process that carries out the jobs of one role with one server, in
 *		one direction, when they are due.
 *
 * It is connected as the role that scheduled them, so nothing that a job calls
 * can do more than that role.  A pull is what possync_pull does, in a
 * transaction that need not be on disk when it ends: what a crash takes comes
 * again.  A push is what its own worker would do.  What a job came to is left
 * in synchronize_schedule.
 *
 * Between jobs the process sleeps until the next one is due, the configuration
 * has changed, or something was queued.  It keeps its jobs in the order in which they
 * are due: to run one does not take a look at all others.
 */
#include "possync.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "commands/async.h"
#include "common/pg_prng.h"
#include "executor/spi.h"
#include "lib/pairingheap.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "process.h"
#include "run.h"
#include "schedule.h"
#include "shared.h"
#include "spool.h"
#include "storage/ipc.h"
#include "store.h"
#include "transaction.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/json.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "worker.h"

/*
 * How often jobs are read, in ms, though nobody has said that they changed: who
 * commits a prepared transaction, or has triggers switched off, does not.
 */
#define READ_MS			(60 * 1000)

/* How often history is trimmed, and how often time is looked at, in ms */
#define TRIM_MS			(60 * 60 * 1000)

/* Rows of history trimmed at a time */
#define TRIM_ROWS		10000

typedef struct Job
{
	pairingheap_node node;
	int16		model;
	char	   *name;
	int64		every;			/* microseconds */
	int64		jitter;
	TimestampTz next_run;
	int			failures;
	bool		permanent;		/* the last failure was not of the kind that
								 * passes */
} Job;

/* How a job went */
typedef struct Outcome
{
	int32		run;			/* in history; 0: there was nothing to do */
	bool		more;			/* it is to go on at once */
	int			sqlerrcode;		/* 0: it succeeded */
	char	   *error;
} Outcome;

extern PGDLLEXPORT void possync_runner_main(Datum argument);

static PosProcess me;

/* The jobs, the next one first */
static pairingheap *jobs;
static MemoryContext jobs_context;

/* Jobs are gone with the extension, or with the role's last one. */
static void
leave(void)
{
	pos_shared_set_done();
	proc_exit(0);
}

/* Whose jobs these are, with which server, in which direction: three values */
static void
set_identity(Datum *values)
{
	values[0] = ObjectIdGetDatum(me.role);
	values[1] = ObjectIdGetDatum(me.server);
	values[2] = CStringGetTextDatum(me.push ? "push" : "pull");
}

/* Orders jobs by when they run next; what is greatest comes first. */
static int
compare_jobs(const pairingheap_node *a, const pairingheap_node *b, void *arg)
{
	const Job  *left = pairingheap_const_container(Job, node, a);
	const Job  *right = pairingheap_const_container(Job, node, b);

	if (left->next_run != right->next_run)
		return left->next_run < right->next_run ? 1 : -1;
	return right->model - left->model;
}

static Job *
first_job(void)
{
	return pairingheap_container(Job, node, pairingheap_first(jobs));
}

/* Reads the jobs of this process. */
static void
read_jobs(void)
{
	Oid			types[] = {OIDOID, OIDOID, TEXTOID};
	Datum		values[3];
	uint64		n;

	pos_transaction_begin();
	if (!pos_process_find_store())
		leave();
	set_identity(values);
	n = pos_store_execute("SELECT s.model, m.name,"
						  " (extract(epoch FROM s.every) * 1000000)::int8,"
						  " (extract(epoch FROM s.jitter) * 1000000)::int8,"
						  " s.next_run, s.failures, s.permanent"
						  " FROM @.synchronize_schedule s"
						  " JOIN @.synchronize_model m ON m.id = s.model"
						  " JOIN pg_foreign_server f ON f.srvname = m.server"
						  " WHERE s.owner = $1 AND f.oid = $2"
						  " AND s.direction = $3 AND NOT s.paused"
						  " AND s.home = (SELECT @._possync_home())",
						  3, types, values, NULL);
	if (n == 0)
		leave();
	MemoryContextReset(jobs_context);
	MemoryContextSwitchTo(jobs_context);
	jobs = pairingheap_allocate(compare_jobs, NULL);
	for (uint64 i = 0; i < n; i++)
	{
		HeapTuple	tuple = SPI_tuptable->vals[i];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		Job		   *job = palloc(sizeof(Job));
		bool		isnull;

		job->model = DatumGetInt16(SPI_getbinval(tuple, desc, 1, &isnull));
		job->name = SPI_getvalue(tuple, desc, 2);
		job->every = DatumGetInt64(SPI_getbinval(tuple, desc, 3, &isnull));
		job->jitter = DatumGetInt64(SPI_getbinval(tuple, desc, 4, &isnull));
		job->next_run = DatumGetTimestampTz(SPI_getbinval(tuple, desc, 5, &isnull));
		job->failures = DatumGetInt32(SPI_getbinval(tuple, desc, 6, &isnull));
		job->permanent = DatumGetBool(SPI_getbinval(tuple, desc, 7, &isnull));
		pairingheap_add(jobs, &job->node);
	}
	pos_transaction_commit();
}

/*
 * Runs that were begun and never ended were cut off by a crash.  A pull has left
 * nothing then, which history has to say; of a push it says so itself.
 */
static void
note_interrupted(void)
{
	Oid			types[] = {OIDOID, OIDOID, TEXTOID};
	Datum		values[3];

	pos_transaction_begin();
	if (!pos_process_find_store())
		leave();
	set_identity(values);
	pos_store_execute("WITH cut AS (UPDATE @.synchronize_schedule s"
					  " SET started_at = NULL, next_run = clock_timestamp()"
					  " FROM @.synchronize_model m, pg_foreign_server f"
					  " WHERE m.id = s.model AND f.srvname = m.server"
					  " AND s.owner = $1 AND f.oid = $2 AND s.direction = $3"
					  " AND s.started_at IS NOT NULL"
					  " RETURNING m.name, m.server, s.direction,"
					  " (SELECT o.started_at FROM @.synchronize_schedule o"
					  " WHERE o.model = s.model AND o.direction = s.direction)"
					  " AS started_at)"
					  " INSERT INTO @.synchronize_history"
					  " (model, server, direction, status, started_at,"
					  " finished_at)"
					  " SELECT name, server, direction, 'interrupted', started_at,"
					  " clock_timestamp()"
					  " FROM cut WHERE direction = 'pull'",
					  3, types, values, NULL);
	pos_transaction_commit();
}

/* Notes that a job has begun, should it not come to its end. */
static void
begin_job(Job *job)
{
	Oid			types[] = {INT2OID, TEXTOID};
	Datum		values[2];

	pos_transaction_begin();
	values[0] = Int16GetDatum(job->model);
	values[1] = CStringGetTextDatum(me.push ? "push" : "pull");
	pos_store_execute_as(POS_PLAN_LOOK_UP, "UPDATE @.synchronize_schedule"
						 " SET started_at = clock_timestamp()"
						 " WHERE model = $1 AND direction = $2",
						 2, types, values, NULL);
	pos_transaction_commit_lazily();
}

/* Tells everybody who listens that a run has finished. */
static void
notify(Job *job, Outcome *outcome)
{
	StringInfoData payload;

	initStringInfo(&payload);
	appendStringInfo(&payload, "{\"run\": %d, \"direction\": \"%s\", \"status\": \"%s\", \"model\": ",
					 outcome->run, me.push ? "push" : "pull",
					 outcome->sqlerrcode == 0 ? "ok" : "failed");
	escape_json(&payload, job->name);
	appendStringInfoChar(&payload, '}');
	Async_Notify("possync", payload.data);
}

/*
 * Leaves what a job came to, and when it runs next.  Must be called within the
 * transaction of the job, if it has one.
 */
static void
finish_job(Job *job, Outcome *outcome)
{
	Oid			types[] = {
		INT2OID, TEXTOID, TIMESTAMPTZOID, INT4OID, BOOLOID, INT4OID, TEXTOID,
		TEXTOID
	};
	Datum		values[8];
	char		nulls[9] = "        ";
	TimestampTz now = GetCurrentTimestamp();
	double		chance = pg_prng_double(&pg_global_prng_state);

	if (outcome->sqlerrcode == 0)
	{
		job->failures = 0;
		job->permanent = false;
		job->next_run = outcome->more ? now :
			pos_schedule_next(now, job->every, job->jitter, chance);
	}
	else
	{
		job->failures++;
		job->permanent = !pos_schedule_is_transient(outcome->sqlerrcode);
		job->next_run = pos_schedule_retry(now, job->failures, !job->permanent,
										   pos_retry_max, pos_retry_slow, chance);
	}
	values[0] = Int16GetDatum(job->model);
	values[1] = CStringGetTextDatum(me.push ? "push" : "pull");
	values[2] = TimestampTzGetDatum(job->next_run);
	values[3] = Int32GetDatum(job->failures);
	values[4] = BoolGetDatum(job->permanent);
	values[5] = Int32GetDatum(outcome->run);
	nulls[5] = outcome->run == 0 ? 'n' : ' ';
	nulls[6] = nulls[7] = outcome->sqlerrcode == 0 ? 'n' : ' ';
	if (outcome->sqlerrcode != 0)
	{
		values[6] = CStringGetTextDatum(unpack_sql_state(outcome->sqlerrcode));
		values[7] = CStringGetTextDatum(outcome->error);
	}
	pos_store_execute_as(POS_PLAN_LOOK_UP, "UPDATE @.synchronize_schedule"
						 " SET started_at = NULL, next_run = $3, failures = $4,"
						 " permanent = $5, run = coalesce($6, run), sqlstate = $7,"
						 " error = $8, succeeded_at = CASE WHEN $7 IS NULL"
						 " THEN clock_timestamp() ELSE succeeded_at END"
						 " WHERE model = $1 AND direction = $2",
						 8, types, values, nulls);
	if (outcome->run != 0)
		notify(job, outcome);
}

/* Carries out a pull. */
static void
pull(Job *job)
{
	Outcome		outcome = {0};
	Oid			types[] = {TEXTOID};
	Datum		values[1];
	HeapTuple	tuple;
	TupleDesc	desc;
	bool		isnull;
	char	   *sqlstate;

	pos_transaction_begin();
	values[0] = CStringGetTextDatum(job->name);
	if (SPI_execute_with_args(psprintf("SELECT id, sqlstate, error"
									   " FROM %s.possync_pull($1, false,"
									   " 'report'::pg_catalog.text, false)",
									   pos_store_schema()),
							  1, types, values, NULL, false, 0) != SPI_OK_SELECT ||
		SPI_processed != 1)
		elog(ERROR, "a pull returned no row");
	tuple = SPI_tuptable->vals[0];
	desc = SPI_tuptable->tupdesc;
	outcome.run = DatumGetInt32(SPI_getbinval(tuple, desc, 1, &isnull));
	sqlstate = SPI_getvalue(tuple, desc, 2);
	if (sqlstate != NULL)
		outcome.sqlerrcode = MAKE_SQLSTATE(sqlstate[0], sqlstate[1], sqlstate[2],
										   sqlstate[3], sqlstate[4]);
	outcome.error = SPI_getvalue(tuple, desc, 3);
	outcome.more = pos_parts_more;
	finish_job(job, &outcome);
	pos_transaction_commit_lazily();
}

/* Whether anything waits that a push would send. */
static bool
is_anything_queued(Job *job)
{
	Oid			types[] = {OIDOID};
	Datum		values[] = {ObjectIdGetDatum(me.server)};
	bool		any;

	pos_transaction_begin();
	any = pos_store_execute_as(POS_PLAN_LOOK_UP, "WITH m AS MATERIALIZED"
							   " (SELECT m.id, m.lane FROM @.synchronize_model m"
							   " JOIN pg_foreign_server f ON f.srvname = m.server"
							   " WHERE f.oid = $1), l AS MATERIALIZED"
							   " (SELECT " POS_LANE_FIRST("min(lane)") " AS first, "
							   POS_LANE_LAST("max(lane)") " AS last FROM m)"
							   " SELECT 1 WHERE EXISTS"
							   " (SELECT 1 FROM l, @.synchronize_queue q"
							   " WHERE q.txid BETWEEN l.first AND l.last"
							   " AND q.model IN (SELECT id FROM m)"
							   " AND NOT EXISTS (SELECT 1 FROM @.synchronize_held h"
							   " WHERE h.txid = q.txid))"
							   " OR EXISTS (SELECT 1 FROM l, @.synchronize_quarantine q"
							   " WHERE q.txid BETWEEN l.first AND l.last"
							   " AND q.discarded_at IS NULL"
							   " AND q.retry_at <= clock_timestamp()"
							   " AND q.model IN (SELECT id FROM m))",
							   1, types, values, NULL) > 0;
	pos_transaction_commit();
	return any;
}

/* Carries out a push. */
static void
push(Job *job)
{
	Outcome		outcome = {0};
	ErrorData  *error;

	if (is_anything_queued(job))
	{
		pos_transaction_begin();
		outcome.run = pos_history_next_id();
		pos_transaction_commit();
		error = pos_worker_run(job->model, outcome.run, 0, true);
		if (error != NULL)
		{
			outcome.sqlerrcode = error->sqlerrcode;
			outcome.error = error->message;
			ereport(WARNING,
					(errcode(error->sqlerrcode),
					 errmsg("push of \"%s\" failed: %s", job->name, error->message),
					 error->detail ? errdetail_internal("%s", error->detail) : 0,
					 error->hint ? errhint("%s", error->hint) : 0));
		}
	}
	pos_transaction_begin();
	finish_job(job, &outcome);
	pos_transaction_commit_lazily();
}

/* Runs a job.  Whatever goes wrong is left in the schedule. */
static void
run_job(Job *job)
{
	MemoryContext context = CurrentMemoryContext;
	Outcome		failed = {0};

	pgstat_report_activity(STATE_RUNNING, psprintf("%s %s",
												   me.push ? "pushing" : "pulling",
												   job->name));
	PG_TRY();
	{
		begin_job(job);
		MemoryContextSwitchTo(context);
		if (me.push)
			push(job);
		else
			pull(job);
	}
	PG_CATCH();
	{
		ErrorData  *error;

		if (ProcDiePending)
			PG_RE_THROW();
		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		EmitErrorReport();
		FlushErrorState();
		AbortOutOfAnyTransaction();
		failed.sqlerrcode = error->sqlerrcode;
		failed.error = error->message;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	if (failed.sqlerrcode == 0)
		return;
	pos_transaction_begin();
	if (!pos_process_find_store())
		leave();
	finish_job(job, &failed);
	pos_transaction_commit_lazily();
	MemoryContextSwitchTo(context);
}

/*
 * Whether a job is to run now.  A wake-up makes a push run that has not failed,
 * and changed configuration a job that waits for somebody to change something.
 */
static bool
is_due(Job *job, TimestampTz now, uint32 woken)
{
	if (job->next_run <= now)
		return true;
	if ((woken & POS_WAKE_QUEUED) && job->failures == 0)
		return true;
	if ((woken & POS_WAKE_CONFIG) && job->permanent)
		return true;

	/* somebody has set the clock back */
	return job->next_run > now + job->every + job->jitter +
		Max(pos_retry_max, pos_retry_slow) * USECS_PER_SEC;
}

/*
 * Runs what is due, which are the first ones, or with all may be any.  A server that
 * cannot be reached is not asked again by the other jobs.  Returns how long to wait,
 * in milliseconds.
 */
static long
run_jobs(uint32 woken, bool all)
{
	TimestampTz next = PG_INT64_MAX;
	List	   *passed = NIL;
	ListCell   *lc;

	while (next == PG_INT64_MAX && !pairingheap_is_empty(jobs))
	{
		Job		   *job = first_job();
		bool		due = is_due(job, GetCurrentTimestamp(), woken);

		if (!due && !all)
			break;
		(void) pairingheap_remove_first(jobs);
		passed = lappend(passed, job);
		if (due)
			run_job(job);
		if (job->failures > 0 && !job->permanent && !pairingheap_is_empty(jobs))
			next = job->next_run;
	}
	foreach(lc, passed)
		pairingheap_add(jobs, &((Job *) lfirst(lc))->node);
	if (next == PG_INT64_MAX)
		next = first_job()->next_run;
	return Min(TimestampDifferenceMilliseconds(GetCurrentTimestamp(), next),
			   TRIM_MS);
}

/* Whether something happened longer ago than so many ms, or is to happen yet. */
static bool
is_past(TimestampTz then, int milliseconds)
{
	TimestampTz now = GetCurrentTimestamp();

	return then > now || TimestampDifferenceExceeds(then, now, milliseconds);
}

/*
 * Trims history, and adds up what goes.  Several processes may do so at once.
 */
static void
trim_history(void)
{
	Oid			types[] = {INT4OID, INT4OID};
	Datum		values[] = {
		Int32GetDatum(pos_history_keep), Int32GetDatum(TRIM_ROWS)
	};
	uint64		n = TRIM_ROWS;

	while (pos_history_keep >= 0 && n == TRIM_ROWS)
	{
		pos_transaction_begin();
		if (!pos_process_find_store())
			leave();
		pos_store_execute("WITH old AS (SELECT id FROM @.synchronize_history"
						  " WHERE finished_at < now() - make_interval(mins => $1)"
						  " ORDER BY id LIMIT $2 FOR UPDATE SKIP LOCKED),"
						  " gone AS (DELETE FROM @.synchronize_history h USING old"
						  " WHERE h.id = old.id RETURNING h.*),"
						  " added AS (INSERT INTO @.synchronize_counter AS c"
						  " SELECT g.model, g.server, g.direction,"
						  " min(g.started_at), sum(g.runs),"
						  " count(*) FILTER (WHERE g.status <> 'ok'),"
						  " sum(g.rows_read), sum(g.rows_created),"
						  " sum(g.rows_updated), sum(g.rows_deleted),"
						  " sum(g.rows_left_out), sum(g.bytes_received) FROM gone g"
						  " LEFT JOIN @.synchronize_counter o"
						  " USING (model, server, direction)"
						  " WHERE o.since IS NULL OR g.started_at >= o.since"
						  " GROUP BY 1, 2, 3"
						  " ON CONFLICT (model, server, direction) DO UPDATE SET"
						  " runs = c.runs + EXCLUDED.runs,"
						  " failures = c.failures + EXCLUDED.failures,"
						  " rows_read = c.rows_read + EXCLUDED.rows_read,"
						  " rows_created = c.rows_created + EXCLUDED.rows_created,"
						  " rows_updated = c.rows_updated + EXCLUDED.rows_updated,"
						  " rows_deleted = c.rows_deleted + EXCLUDED.rows_deleted,"
						  " rows_left_out = c.rows_left_out + EXCLUDED.rows_left_out,"
						  " bytes_received = c.bytes_received + EXCLUDED.bytes_received)"
						  " SELECT 1 FROM gone", 2, types, values, NULL);
		n = SPI_processed;
		pos_transaction_commit();
	}
}

/* A runner's main function. */
void
possync_runner_main(Datum argument)
{
	TimestampTz trimmed_at;
	TimestampTz read_at = 0;
	MemoryContext turn;

	pos_process_enter(&me);
	if (me.push)
		pos_worker_pin_settings();
	SetConfigOption("application_name", me.push ? "possync push" : "possync pull",
					PGC_USERSET, PGC_S_OVERRIDE);
	jobs_context = AllocSetContextCreate(TopMemoryContext, "possync jobs",
										 ALLOCSET_DEFAULT_SIZES);
	turn = AllocSetContextCreate(TopMemoryContext, "possync turn",
								 ALLOCSET_DEFAULT_SIZES);
	pos_history_merge_idle = true;
	pos_parts_allowed = true;
	note_interrupted();
	trimmed_at = GetCurrentTimestamp();
	for (;;)
	{
		uint32		woken = pos_shared_woken();
		bool		read = (woken & POS_WAKE_CONFIG) || is_past(read_at, READ_MS);
		long		wait;

		if (read)
		{
			read_at = GetCurrentTimestamp();
			read_jobs();
		}
		MemoryContextReset(turn);
		MemoryContextSwitchTo(turn);
		wait = run_jobs(woken, read || woken != 0);
		if (is_past(trimmed_at, TRIM_MS))
		{
			trim_history();
			trimmed_at = GetCurrentTimestamp();
		}
		pos_process_wait(wait);
	}
}
