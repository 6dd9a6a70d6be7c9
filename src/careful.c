/*
 * careful.c
 *		The second attempt of a pull that failed because of some row's content:
 *		bad rows are found, left out and put into quarantine, the rest goes on.
 *
 * What is written as one statement otherwise is tried in a subtransaction and
 * halved until the rows at fault are alone.  Rows that cannot even be received
 * are left out by their key.  This is slow compared to a pull without errors,
 * which therefore never comes here.
 */
#include "possync.h"

#include "access/xact.h"
#include "run.h"
#include "utils/memutils.h"
#include "utils/resowner.h"

/* As many rows of one run are left out for their content */
#define MAX_BAD_ROWS 1000

/*
 * Whether an error is about the content of a row, so that the others need not
 * suffer for it.
 */
bool
pos_careful_is_content(int sqlerrcode)
{
	switch (ERRCODE_TO_CATEGORY(sqlerrcode))
	{
		case ERRCODE_DATA_EXCEPTION:
		case ERRCODE_INTEGRITY_CONSTRAINT_VIOLATION:
		case ERRCODE_CARDINALITY_VIOLATION:
		case ERRCODE_TRIGGERED_ACTION_EXCEPTION:
		case ERRCODE_TRIGGERED_DATA_CHANGE_VIOLATION:
		case ERRCODE_PLPGSQL_ERROR:
		case ERRCODE_WITH_CHECK_OPTION_VIOLATION:
			return true;
		default:
			return false;
	}
}

/*
 * Whether an error may be a trigger's that objects, whatever SQLSTATE it has chosen,
 * and is not about circumstances or ourselves.
 */
static bool
is_objection(int sqlerrcode)
{
	switch (ERRCODE_TO_CATEGORY(sqlerrcode))
	{
		case ERRCODE_CONNECTION_EXCEPTION:
		case ERRCODE_TRANSACTION_ROLLBACK:
		case ERRCODE_INSUFFICIENT_RESOURCES:
		case ERRCODE_OPERATOR_INTERVENTION:
		case ERRCODE_SYSTEM_ERROR:
		case ERRCODE_INTERNAL_ERROR:
			return false;
		default:
			return sqlerrcode != ERRCODE_LOCK_NOT_AVAILABLE;
	}
}

/*
 * Calls a function in a subtransaction.  Returns the error about content that
 * it failed with, in the run's context, or NULL; other errors go on.
 */
ErrorData *
pos_careful_try(PosRun *run, PosCareful function, void *argument)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	ErrorData  *volatile error = NULL;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		function(run, argument);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(run->context);
		error = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	if (error != NULL && !pos_careful_is_content(error->sqlerrcode) &&
		!(run->deleting && is_objection(error->sqlerrcode)))
		ReThrowError(error);
	return error;
}

/* Puts rows from..to of a set, numbered from 0, into an empty one. */
static void
copy_range(PosModel *model, PosRowset *from, PosRowset *to, int64 first,
		   int64 last)
{
	Datum	   *values;
	bool	   *nulls;

	pos_rowset_clear(to);
	pos_rowset_rewind(from);
	for (int64 i = 0; i < last && pos_rowset_next(from, &values, &nulls); i++)
		if (i >= first)
		{
			values[POS_STAGE_N] = Int64GetDatum(pos_rowset_count(to) + 1);
			nulls[POS_STAGE_N] = false;
			pos_rowset_put(to, values, nulls);
		}
}

/* What halving needs to know */
typedef struct Halving
{
	PosModel   *model;
	PosRowset  *all;
	PosRowset  *gathered;		/* what function writes */
	PosCareful	function;
	PosCarefulReject reject;	/* takes rows at fault */
	PosRowset  *failed;			/* rows at fault, to be tried once more; or
								 * NULL */
	int64		most;			/* of them */
} Halving;

/*
 * Counts a bad row.  If there are too many it is not the rows that are at
 * fault, and the run fails with the error.
 */
void
pos_careful_count(PosRun *run, ErrorData *error)
{
	if (++run->nbad > MAX_BAD_ROWS)
		ReThrowError(error);
}

/* Leaves a row out that could not be written. */
static void
leave_out(PosRun *run, PosModel *model, Datum *values, bool *nulls,
		  ErrorData *error)
{
	pos_careful_count(run, error);
	pos_quarantine_reject(run, model, values[POS_STAGE_REMOTE], "error",
						  pos_careful_message(error), NIL, values, nulls);
}

/* Leaves a row out that was to be made, and has a translation. */
static void
leave_new_out(PosRun *run, PosModel *model, Datum *values, bool *nulls,
			  ErrorData *error)
{
	leave_out(run, model, values, nulls, error);
	model->counts.created--;
	pos_translation_remove(run, model, values[POS_STAGE_REMOTE]);
}

/* Rejects the only gathered row. */
static void
reject(PosRun *run, Halving *halving, ErrorData *error)
{
	Datum	   *values;
	bool	   *nulls;

	pos_rowset_rewind(halving->gathered);
	if (!pos_rowset_next(halving->gathered, &values, &nulls))
		return;
	halving->reject(run, halving->model, values, nulls, error);
	pos_rowset_clear(halving->gathered);
}

/* Appends the only row of a set to another, and empties it. */
static void
copy_row(PosRowset *from, PosRowset *to)
{
	Datum	   *values;
	bool	   *nulls;

	pos_rowset_rewind(from);
	if (pos_rowset_next(from, &values, &nulls))
		pos_rowset_put(to, values, nulls);
	pos_rowset_clear(from);
}

static void
halve(PosRun *run, Halving *halving, int64 first, int64 last)
{
	ErrorData  *error;

	copy_range(halving->model, halving->all, halving->gathered, first, last);
	error = pos_careful_try(run, halving->function, halving->model);
	if (error == NULL)
		return;
	if (last - first == 1 && halving->failed != NULL)
	{
		if (pos_rowset_count(halving->failed) >= halving->most)
			ReThrowError(error);
		copy_row(halving->gathered, halving->failed);
	}
	else if (last - first == 1)
		reject(run, halving, error);
	else
	{
		int64		middle = first + (last - first) / 2;

		halve(run, halving, first, middle);
		halve(run, halving, middle, last);
	}
}

/*
 * Has a function write the gathered rows of a model, which it empties, and
 * returns those that it cannot write, at most so many.
 *
 * Rows may stand in each other's way, as when they pass on the values of a
 * unique column; so those at fault are tried again as long as that helps any.
 */
PosRowset *
pos_careful_rest(PosRun *run, PosModel *model, PosRowset *gathered,
				 PosCareful function, int64 most)
{
	Halving		halving = {
		.model = model,
		.gathered = gathered,
		.function = function,
		.most = most,
		.all = pos_rowset_create("possync_careful", model->stage)
	};
	int64		count = pos_rowset_count(gathered);

	copy_range(model, gathered, halving.all, 0, count);
	while (count > 0)
	{
		int64		before = count;

		halving.failed = pos_rowset_create("possync_careful", model->stage);
		halve(run, &halving, 0, count);
		pos_rowset_free(halving.all);
		halving.all = halving.failed;
		count = pos_rowset_count(halving.all);
		if (count == before)
			break;
	}
	return halving.all;
}

/*
 * Tries the rest of some rows for the last time, and hands those over that cannot
 * be written.  Frees it.
 */
void
pos_careful_last(PosRun *run, PosModel *model, PosRowset *rest,
				 PosRowset *gathered, PosCareful function,
				 PosCarefulReject reject)
{
	Halving		halving = {
		.model = model,
		.gathered = gathered,
		.function = function,
		.reject = reject,
		.all = rest
	};

	if (pos_rowset_count(rest) > 0)
		halve(run, &halving, 0, pos_rowset_count(rest));
	pos_rowset_free(rest);
}

/*
 * Has a function write the gathered rows of a model, which it empties, and
 * leaves out those that it cannot write.  created says whether the rows are
 * new ones, with translations.
 */
void
pos_careful_write(PosRun *run, PosModel *model, PosRowset *gathered,
				  PosCareful function, bool created)
{
	pos_careful_last(run, model,
					 pos_careful_rest(run, model, gathered, function, MAX_BAD_ROWS),
					 gathered, function, created ? leave_new_out : leave_out);
}

/* Returns what is said of a row that an error is about. */
char *
pos_careful_message(ErrorData *error)
{
	if (error->detail == NULL)
		return psprintf("%s (%s)", error->message,
						unpack_sql_state(error->sqlerrcode));
	return psprintf("%s (%s): %s", error->message,
					unpack_sql_state(error->sqlerrcode), error->detail);
}

/* Writes the rows of one model that wait in rest, one by one. */
static bool
write_singly(PosRun *run, PosModel *model, PosRowset *gathered,
			 PosRowset **rest, PosCareful function)
{
	PosRowset  *again = pos_rowset_create("possync_careful", model->stage);
	Halving		one = {.model = model,.gathered = gathered,.reject = leave_new_out};
	bool		progress = false;
	Datum	   *values;
	bool	   *nulls;

	pos_rowset_rewind(*rest);
	while (pos_rowset_next(*rest, &values, &nulls))
	{
		ErrorData  *error;

		pos_rowset_clear(gathered);
		values[POS_STAGE_N] = Int64GetDatum(1);
		pos_rowset_put(gathered, values, nulls);
		error = pos_careful_try(run, function, model);
		if (error != NULL && error->sqlerrcode == ERRCODE_FOREIGN_KEY_VIOLATION)
		{
			/* what it refers to may be among those that are still to come */
			pos_rowset_put(again, values, nulls);
			continue;
		}
		progress = true;
		if (error != NULL)
			reject(run, &one, error);
	}
	pos_rowset_clear(gathered);
	pos_rowset_free(*rest);
	*rest = again;
	return progress;
}

/*
 * As pos_careful_write for the new rows of a component whose models refer to
 * each other: all at once if possible, else one by one in an order that is
 * found by trying, what refers to itself in a circle last and together.
 */
void
pos_careful_write_component(PosRun *run, List *models, PosRowset **gathered,
							PosCareful all, PosCareful one)
{
	int			n = list_length(models);
	PosRowset **rest = palloc(n * sizeof(PosRowset *));
	bool		progress = true;
	ErrorData  *error;

	for (int i = 0; i < n; i++)
	{
		PosModel   *model = list_nth(models, i);

		rest[i] = pos_rowset_create("possync_careful", model->stage);
		copy_range(model, gathered[i], rest[i], 0, pos_rowset_count(gathered[i]));
	}
	if (pos_careful_try(run, all, models) != NULL)
	{
		while (progress)
		{
			progress = false;
			for (int i = 0; i < n; i++)
				progress = write_singly(run, list_nth(models, i), gathered[i],
										&rest[i], one) || progress;
		}
		for (int i = 0; i < n; i++)
			copy_range(list_nth(models, i), rest[i], gathered[i], 0,
					   pos_rowset_count(rest[i]));
		error = pos_careful_try(run, all, models);
		for (int i = 0; i < n && error != NULL; i++)
		{
			Halving		one_by_one = {
				.model = list_nth(models, i),.gathered = gathered[i],.reject = leave_new_out
			};

			for (int64 row = 0; row < pos_rowset_count(rest[i]); row++)
			{
				copy_range(one_by_one.model, rest[i], gathered[i], row, row + 1);
				reject(run, &one_by_one, error);
			}
		}
	}
	for (int i = 0; i < n; i++)
		pos_rowset_free(rest[i]);
}
