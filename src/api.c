/*
 * api.c
 *		SQL entry points: they check arguments and rights and make one call.
 */
#include "possync.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "progress.h"
#include "queue.h"
#include "run.h"
#include "store.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/timestamp.h"
#include "worker.h"

PG_FUNCTION_INFO_V1(possync_pull);
PG_FUNCTION_INFO_V1(possync_push);

/* Refuses null for an argument, which no default stands for then. */
static void
check_argument(FunctionCallInfo fcinfo, int i, const char *name)
{
	if (PG_ARGISNULL(i))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("%s must not be null", name)));
}

/* Whether an error is to be raised, by the value of on_error. */
static bool
parse_on_error(const char *value)
{
	if (strcmp(value, "report") == 0)
		return false;
	if (strcmp(value, "raise") == 0)
		return true;
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("invalid value for on_error: \"%s\"", value),
			 errhint("Valid values are \"report\" and \"raise\".")));
}

/*
 * Whether an error is about the run, so that it belongs into its history, and
 * not about the statement as a whole.  A session that is to end does so with
 * FATAL and never comes here: such an SQLSTATE is the remote's.
 */
static bool
is_reportable(ErrorData *error)
{
	return error->sqlerrcode != ERRCODE_QUERY_CANCELED;
}

/* Raises a failed run's error as a warning. */
static void
warn(const char *model, ErrorData *error)
{
	ereport(WARNING,
			(errcode(error->sqlerrcode),
			 errmsg("pull of \"%s\" failed: %s", model, error->message),
			 error->detail ? errdetail_internal("%s", error->detail) : 0,
			 error->hint ? errhint("%s", error->hint) : 0));
}

/* Raises a warning if rows were left out. */
static void
warn_left_out(PosRun *run, const char *model)
{
	int64		n = 0;
	ListCell   *lc;

	foreach(lc, run->tree->models)
		n += ((PosModel *) lfirst(lc))->counts.left_out;
	if (n > 0)
		ereport(WARNING,
				(errcode(ERRCODE_WARNING),
				 errmsg_plural("%lld row was left out of the pull of \"%s\"",
							   "%lld rows were left out of the pull of \"%s\"",
							   (unsigned long) n, (long long) n, model),
				 errhint(run->dry ?
						 "A pull that is no dry run tells why in view %s.possync_quarantine." :
						 "View %s.possync_quarantine tells why.",
						 pos_store_schema())));
}

/*
 * Carries out a pull in a subtransaction.  Returns the error it failed with,
 * or NULL.
 */
static ErrorData *
attempt(PosRun *run)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	ErrorData  *volatile error = NULL;

	pos_queue_mute(true);
	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		int			nestlevel = NewGUCNestLevel();

		/* our statements are many and short */
		(void) set_config_option("jit", "off", PGC_USERSET, PGC_S_SESSION,
								 GUC_ACTION_SAVE, true, 0, false);
		SPI_connect();
		MemoryContextSwitchTo(run->context);
		pos_sync_pull(run);
		SPI_finish();
		AtEOXact_GUC(true, nestlevel);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
	}
	PG_END_TRY();
	pos_queue_mute(false);
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	return error;
}

/* How many rows of an initial load a run reads, 0 for all. */
static int
part_rows(PosRun *run)
{
	return pos_parts_allowed && !run->dry && !run->anew ? pos_part_rows : 0;
}

/* Makes a run ready for another attempt. */
static void
start_over(PosRun *run, const char *model)
{
	run->has_snapshot = false;
	run->part = part_rows(run);
	run->more = false;
	run->rejects = NULL;
	run->nrejects = 0;
	run->translations = NULL;
	run->before = NULL;
	pos_tree_close(run->tree);
	run->tree = pos_tree_load(model, false);
}

/*
 * Carries out a pull.  Returns the error it failed with, or NULL.
 *
 * Somebody may have deleted here what new rows refer to, and as it did not
 * change at the source it was not read.  Then all is read again, once.  If it is
 * the content of rows that stands in the way, these are left out in one more
 * attempt.
 */
static ErrorData *
pull(PosRun *run, const char *model, bool raise)
{
	ErrorData  *error = attempt(run);

	if (error != NULL && error->sqlerrcode == ERRCODE_FOREIGN_KEY_VIOLATION)
	{
		run->anew = true;
		start_over(run, model);
		error = attempt(run);
	}
	if (error != NULL && pos_careful_is_content(error->sqlerrcode))
	{
		run->careful = true;
		start_over(run, model);
		error = attempt(run);
	}
	if (error != NULL && (raise || !is_reportable(error)))
	{
		pos_progress_end();
		ReThrowError(error);
	}
	return error;
}

/*
 * possync_pull(model text, dry_run boolean, on_error text, full boolean,
 *				compare boolean)
 *		returns synchronize_history
 *
 * Reads what changed in the tree of a model from its server and applies it
 * here, in the caller's transaction.  dry_run finds out what would be done and
 * does nothing.  full reads and compares every row, changed or not.  compare
 * compares all rows by hashes and reads those that differ.  A run that fails
 * changes nothing; it is recorded in history with the error, which is raised as a warning, or with on_error => 'raise' as
 * an error (and then not recorded).
 */
Datum
possync_pull(PG_FUNCTION_ARGS)
{
	char	   *model;
	bool		raise;
	TimestampTz started = GetCurrentTimestamp();
	PosRun	   *run = palloc0(sizeof(PosRun));
	ErrorData  *error;
	Datum		result;

	check_argument(fcinfo, 0, "model");
	check_argument(fcinfo, 1, "dry_run");
	check_argument(fcinfo, 2, "on_error");
	check_argument(fcinfo, 3, "full");
	check_argument(fcinfo, 4, "compare");
	model = text_to_cstring(PG_GETARG_TEXT_PP(0));
	raise = parse_on_error(text_to_cstring(PG_GETARG_TEXT_PP(2)));
	run->dry = PG_GETARG_BOOL(1);
	run->anew = PG_GETARG_BOOL(3);
	run->compare = PG_GETARG_BOOL(4);
	pos_parts_more = false;
	if (!run->dry)
		PreventCommandIfReadOnly("possync_pull()");
	pos_store_init(fcinfo->flinfo->fn_oid);
	run->context = AllocSetContextCreate(CurrentMemoryContext, "possync run",
										 ALLOCSET_DEFAULT_SIZES);
	run->row = AllocSetContextCreate(run->context, "possync row",
									 ALLOCSET_DEFAULT_SIZES);
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	MemoryContextSwitchTo(run->context);
	run->tree = pos_tree_load(model, false);
	if (!run->dry)
		run->id = pos_history_next_id();
	run->part = part_rows(run);
	pos_progress_begin(run->id, model, false);
	error = pull(run, model, raise);
	pos_progress_end();
	pos_tree_close(run->tree);
	if (error != NULL)
		warn(model, error);
	else
		warn_left_out(run, model);
	result = pos_history_record(run, model, started, error);
	SPI_finish();
	MemoryContextDelete(run->context);
	return result;
}

static int
sqlstate_code(const char *text)
{
	return MAKE_SQLSTATE(text[0], text[1], text[2], text[3], text[4]);
}

/* Returns a column of the row of history just read, NULL for null. */
static char *
history_text(const char *column)
{
	return SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc,
						SPI_fnumber(SPI_tuptable->tupdesc, column));
}

/*
 * possync_push(model text, on_error text) returns synchronize_history
 *
 * Sends what is queued for the server of a model, in a background worker with
 * transactions of its own, and waits for it.  What the caller has not committed
 * yet is not sent.  A push that fails leaves the queue as it is, to be sent by
 * the next one; it is recorded in history with the error, which is raised as a
 * warning, or with on_error => 'raise' as an error.
 */
Datum
possync_push(PG_FUNCTION_ARGS)
{
	char	   *model;
	bool		raise;
	Oid			types[] = {INT4OID};
	Datum		values[1];
	int32		id;
	char	   *error;
	char	   *detail;
	char	   *hint;
	Datum		result;

	check_argument(fcinfo, 0, "model");
	check_argument(fcinfo, 1, "on_error");
	model = text_to_cstring(PG_GETARG_TEXT_PP(0));
	raise = parse_on_error(text_to_cstring(PG_GETARG_TEXT_PP(1)));
	PreventCommandIfReadOnly("possync_push()");
	if (IsolationUsesXactSnapshot())
		ereport(ERROR,
				(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
				 errmsg("possync_push() cannot be called in a transaction with isolation level REPEATABLE READ or SERIALIZABLE"),
				 errdetail("It would not see what the push did.")));
	pos_store_init(fcinfo->flinfo->fn_oid);
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	id = pos_history_next_id();
	pos_worker_push(fcinfo->flinfo->fn_oid, pos_config_id(model), id);

	values[0] = Int32GetDatum(id);
	if (pos_store_execute("SELECT * FROM @.synchronize_history WHERE id = $1",
						  1, types, values, NULL) != 1)
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("the worker that was to push \"%s\" ended before it began", model),
				 errhint("The server's log says why.")));
	error = history_text("error");
	if (error != NULL)
		ereport(raise ? ERROR : WARNING,
				(errcode(sqlstate_code(history_text("sqlstate"))),
				 errmsg("push of \"%s\" failed: %s", model, error),
				 (detail = history_text("error_detail")) != NULL ?
				 errdetail_internal("%s", detail) : 0,
				 (hint = history_text("error_hint")) != NULL ?
				 errhint("%s", hint) : 0));
	result = PointerGetDatum(SPI_returntuple(SPI_tuptable->vals[0],
											 CreateTupleDescCopy(SPI_tuptable->tupdesc)));
	SPI_finish();
	return result;
}
