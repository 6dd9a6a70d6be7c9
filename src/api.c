/*
 * api.c
 *		SQL entry points: they check arguments and rights and make one call.
 */
#include "possync.h"

#include "access/xact.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "run.h"
#include "store.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/timestamp.h"

PG_FUNCTION_INFO_V1(possync_pull);

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
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	return error;
}

/*
 * Carries out a pull.  Returns the error it failed with, or NULL.
 *
 * Somebody may have deleted here what new rows refer to, and as it did not
 * change at the source it was not read.  Then all is read again, once.
 */
static ErrorData *
pull(PosRun *run, const char *model, bool raise)
{
	ErrorData  *error = attempt(run);

	if (error != NULL && error->sqlerrcode == ERRCODE_FOREIGN_KEY_VIOLATION)
	{
		run->anew = true;
		run->has_snapshot = false;
		run->rejects = NULL;
		run->nrejects = 0;
		run->translations = NULL;
		pos_tree_close(run->tree);
		run->tree = pos_tree_load(model);
		error = attempt(run);
	}
	if (error != NULL && (raise || !is_reportable(error)))
		ReThrowError(error);
	return error;
}

/*
 * possync_pull(model text, dry_run boolean, on_error text)
 *		returns synchronize_history
 *
 * Reads what changed in the tree of a model from its server and applies it
 * here, in the caller's transaction.  dry_run finds out what would be done and
 * does nothing.  A run that fails changes nothing; it is recorded in history
 * with the error, which is raised as a warning, or with on_error => 'raise' as
 * an error (and then not recorded).
 */
Datum
possync_pull(PG_FUNCTION_ARGS)
{
	char	   *model = text_to_cstring(PG_GETARG_TEXT_PP(0));
	bool		raise = parse_on_error(text_to_cstring(PG_GETARG_TEXT_PP(2)));
	TimestampTz started = GetCurrentTimestamp();
	PosRun	   *run = palloc0(sizeof(PosRun));
	ErrorData  *error;
	Datum		result;

	PreventCommandIfReadOnly("possync_pull()");
	pos_store_init(fcinfo->flinfo->fn_oid);
	run->dry = PG_GETARG_BOOL(1);
	run->context = AllocSetContextCreate(CurrentMemoryContext, "possync run",
										 ALLOCSET_DEFAULT_SIZES);
	run->row = AllocSetContextCreate(run->context, "possync row",
									 ALLOCSET_DEFAULT_SIZES);
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	MemoryContextSwitchTo(run->context);
	run->tree = pos_tree_load(model);
	if (!run->dry)
		run->id = pos_history_next_id();
	error = pull(run, model, raise);
	pos_tree_close(run->tree);
	if (error != NULL)
		warn(model, error);
	result = pos_history_record(run, model, started, error);
	SPI_finish();
	MemoryContextDelete(run->context);
	return result;
}
