/*
 * push.c
 *		The other direction: queued changes to the remote, exactly once.
 *
 * A push is a row of batches, each of which goes
 *
 *		transaction A	rows of some queued transactions; recognised at the
 *						remote or given keys that it makes; translations written
 *						and the batch marked as open.  Commit.
 *		the remote		all rows in one transaction, with those keys; a row
 *						whose key is there already is passed over
 *		transaction B	entries leave the queue, the batch is closed.  Commit.
 *
 * Transaction A of the next batch is worked on while the remote works, and is
 * transaction B of the one before, see flight.c.
 *
 * A crash anywhere leaves the entries in the queue and the translations made, so
 * that the next push sends the same rows under the same keys.
 *
 * A batch that the remote refuses because of its content is halved until the
 * transactions at fault are alone.  These go to quarantine, and the rest goes on.
 * Everything here runs in a worker with transactions of its own.
 */
#include "possync.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fault.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "progress.h"
#include "push.h"
#include "sql.h"
#include "store.h"
#include "transaction.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

/* Bytes of images taken into one batch, about */
#define BATCH_BYTES		(8 * 1024 * 1024)


/* Makes the state of one transaction in a context that it has for itself. */
static PosRun *
make_run(PosPush *push, MemoryContext context)
{
	PosRun	   *run;

	MemoryContextReset(context);
	MemoryContextSwitchTo(context);
	run = palloc0(sizeof(PosRun));
	run->push = true;
	run->whole = push;
	run->id = push->history;
	run->context = context;
	run->row = AllocSetContextCreate(run->context, "possync row",
									 ALLOCSET_DEFAULT_SIZES);
	return run;
}

/* Whether all of a model is here, so that its rows can be laid out. */
static bool
is_complete(PosModel *model)
{
	if (model->rel == NULL || model->on_unknown == POS_IGNORE)
		return false;
	for (int i = 0; i < model->nfields; i++)
		if (model->fields[i].attnum == 0)
			return false;
	return true;
}

/*
 * Loads the models of the server and lays out their rows.  What does not fit is
 * remembered with its model: it matters only if rows of that are to be sent.
 */
static void
load(PosRun *run, PosPush *push)
{
	PosTable  **tables;
	int			ntables = 0;
	Oid			user;
	int			context;
	ListCell   *lc;

	run->tree = pos_tree_load(push->root, true);
	tables = palloc(list_length(run->tree->models) * sizeof(PosTable *));
	foreach(lc, run->tree->models)
	{
		PosModel   *model = lfirst(lc);

		model->problems = pos_tree_check(run->tree, model);
		if (!is_complete(model))
			continue;
		pos_stage_table(model);
		model->table.position = NULL;
		tables[ntables++] = &model->table;
	}
	run->connection = pos_connection_get(run->tree->server);
	if ((run->connection->ops->capabilities & POS_CAP_WRITE) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("nothing can be pushed to server \"%s\"", run->tree->server),
				 errdetail("Foreign-data wrapper \"%s\" only reads.",
						   run->connection->ops->wrapper)));
	(void) run->connection->ops->expect(run->connection, tables, ntables);
	push->late_keys = (run->connection->ops->capabilities & POS_CAP_LATE_KEYS) != 0;
	if (push->late_keys)
		pos_flight_land(push);	/* it tells the keys of its rows */
	pos_translation_open(run);
	foreach(lc, run->tree->models)
	{
		PosModel   *model = lfirst(lc);
		PosTable   *table = &model->table;

		if (table->ncolumns == 0)
			continue;
		model->problems =
			list_concat(model->problems,
						run->connection->ops->expect(run->connection, &table, 1));
		if (!OidIsValid(table->columns[0].type))
			continue;			/* the remote has no such key */
		pos_sql_as_owner(model->rel, &user, &context);
		pos_stage_layout(model);
		SetUserIdAndSecContext(user, context);
		pos_translation_prepare(run, model);
	}
}

/*
 * Prepares a batch of whole transactions while the one before it, if there is
 * one, is on its way; confirms that, and sends the new one.
 */
static void
send_batch(PosPush *push, int ntxids, Datum *txids, PosAttempt attempt)
{
	PosFlight  *flight = &push->flights[push->flying == &push->flights[0]];
	PosBatch   *batch = &flight->batch;
	PosRun	   *run = make_run(push, flight->context);

	*batch = (PosBatch)
	{
		.ntxids = ntxids,.txids = palloc(ntxids * sizeof(Datum))
	};
	memcpy(batch->txids, txids, ntxids * sizeof(Datum));
	flight->run = run;
	flight->steps = (PosSteps)
	{
		0
	};
	flight->from = push->searched;
	flight->counted = false;
	push->culprit.model = 0;

	pos_transaction_begin();
	if (push->flying != NULL)
		pos_transaction_wait_briefly(); /* it has locks at the remote */
	MemoryContextSwitchTo(run->context);
	pos_progress_phase(ntxids == 1 ? "pushing a transaction" : "pushing a batch", NULL);
	run->match_all = attempt != POS_ATTEMPT_PLAIN;
	run->in_order = attempt == POS_ATTEMPT_IN_ORDER;
	load(run, push);
	batch->id = run->id = pos_history_next_id();
	pos_outgoing_collect(run, batch);
	pos_recognise_batch(run, batch);
	pos_batch_open(run, batch, push->history);
	pos_steps_batch(run, batch, &flight->steps);
	if (push->more || push->lasting)
		pos_keys_ahead(run, batch, push->more, &flight->steps);
	pos_flight_ahead(push, flight);
	pos_flight_expect(push);
	pos_translation_close(run);
	pos_tree_close(run->tree);
	if (push->flying != NULL)
		pos_fault_point("push beside");
	pos_flight_land(push);
	if (push->flying != NULL)
		pos_fault_point("push ahead");
	pos_fault_point("push bound");

	/* whatever synchronous_commit says: the remote is going to have the keys */
	ForceSyncCommit();
	pos_transaction_commit();
	if (push->flying != NULL)
		pos_flight_landed(push);
	pos_fault_point("push prepared");
	pos_flight_launch(push, flight);
}

/* Waits for the batch on its way, in a transaction that does nothing else. */
static void
land(PosPush *push)
{
	pos_transaction_begin();
	pos_flight_land(push);
	pos_transaction_commit_lazily();	/* else it is sent again */
	pos_flight_landed(push);
}

/* A way to get on with a push */
typedef void (*Action) (PosPush *push, int ntxids, Datum *txids,
						PosAttempt attempt);

static void
send_and_land(PosPush *push, int ntxids, Datum *txids, PosAttempt attempt)
{
	send_batch(push, ntxids, txids, attempt);
	land(push);
}

static void
just_land(PosPush *push, int ntxids, Datum *txids, PosAttempt attempt)
{
	land(push);
}

/*
 * Remembers the row that the remote has changed, too, if the batch on its way failed
 * for one.
 */
static void
blame(PosPush *push)
{
	PosFlight  *flight = push->flying;
	MemoryContext old = MemoryContextSwitchTo(push->errors);

	for (int i = 0; i < flight->steps.nsteps; i++)
	{
		PosStep    *step = flight->steps.steps[i];

		if (step->blamed == NULL)
			continue;
		push->culprit.model = pos_steps_model(flight->run, step)->id;
		push->culprit.key = pstrdup(step->blamed);
		push->culprit.candidates = list_make2("local", "remote");
	}
	MemoryContextSwitchTo(old);
}

/*
 * Tries something.  Returns the error it failed with, after its transaction was
 * rolled back, or NULL.
 */
static ErrorData *
try(PosPush *push, Action action, int ntxids, Datum *txids, PosAttempt attempt)
{
	ErrorData  *volatile error = NULL;

	PG_TRY();
	{
		action(push, ntxids, txids, attempt);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(push->errors);
		error = CopyErrorData();
		if (ProcDiePending)
			PG_RE_THROW();
		FlushErrorState();
		AbortOutOfAnyTransaction();
		pos_flight_retract(push);
	}
	PG_END_TRY();
	return error;
}

/*
 * Ends the push with an error.  Whether the batch on its way has arrived is not known,
 * unless it is known that it has not: then its keys are forgotten, else the next push
 * would have to find out.
 */
static void
give_up(PosPush *push, ErrorData *error)
{
	if (push->flying != NULL && push->landing && !push->pending)
		pos_flight_failed(push);
	ReThrowError(error);
}

/* Tries a batch on its own.  Returns the error it failed with, or NULL. */
static ErrorData *
try_batch(PosPush *push, int ntxids, Datum *txids, PosAttempt attempt)
{
	ErrorData  *error = try(push, send_and_land, ntxids, txids, attempt);

	if (error == NULL)
		return NULL;
	if (!pos_careful_is_content(error->sqlerrcode))
		give_up(push, error);
	if (push->flying != NULL)
	{
		blame(push);
		pos_flight_failed(push);
	}
	return error;
}

/* Puts one transaction into quarantine. */
static void
hold(PosPush *push, Datum txid, ErrorData *error)
{
	PosRun	   *run = make_run(push, push->context);

	pos_transaction_begin();
	MemoryContextSwitchTo(run->context);
	run->tree = pos_tree_load(push->root, true);
	pos_quarantine_hold(run, txid, error, &push->culprit);
	pos_tree_close(run->tree);
	pos_transaction_commit();
	push->counts.left_out++;
}

/*
 * Pushes some transactions, those at fault into quarantine.  They may have failed
 * with an error before, at the first attempt.
 *
 * A unique constraint that is violated by a new row may mean that the row is there
 * already, because somebody else was faster: then it is looked for.
 *
 * A transaction alone that violates a constraint may do so because its rows are
 * sent as they were left, the new ones first and the deleted ones last.  The
 * till's constraints have seen its changes one by one, and so does the remote
 * then, unless it would keep the first of them when it refuses the next.
 */
static void
push_some(PosPush *push, int ntxids, Datum *txids, ErrorData *error)
{
	if (error == NULL)
		error = try_batch(push, ntxids, txids, POS_ATTEMPT_PLAIN);
	CHECK_FOR_INTERRUPTS();
	if (error != NULL && error->sqlerrcode == ERRCODE_UNIQUE_VIOLATION)
		error = try_batch(push, ntxids, txids, POS_ATTEMPT_MATCH);
	if (error != NULL && ntxids == 1 && !push->late_keys &&
		(ERRCODE_TO_CATEGORY(error->sqlerrcode) == ERRCODE_INTEGRITY_CONSTRAINT_VIOLATION ||
		 error->sqlerrcode == ERRCODE_CARDINALITY_VIOLATION))
		error = try_batch(push, ntxids, txids, POS_ATTEMPT_IN_ORDER);

	/* somebody may be faster again, between looking and writing */
	for (int i = 0; i < 2 && error != NULL && ntxids == 1 && !push->late_keys &&
		 error->sqlerrcode == ERRCODE_UNIQUE_VIOLATION; i++)
		error = try_batch(push, ntxids, txids, POS_ATTEMPT_IN_ORDER);
	if (error == NULL)
		return;
	if (ntxids == 1)
		hold(push, txids[0], error);
	else
	{
		push_some(push, ntxids / 2, txids, NULL);
		push_some(push, ntxids - ntxids / 2, txids + ntxids / 2, NULL);
	}
}

/* Goes on with the batch that was on its way and has failed. */
static void
push_failed(PosPush *push, ErrorData *error)
{
	PosFlight  *flight = push->flying;
	int			ntxids = flight->batch.ntxids;
	Datum	   *txids = MemoryContextAlloc(push->errors, ntxids * sizeof(Datum));

	if (!pos_careful_is_content(error->sqlerrcode))
		give_up(push, error);
	memcpy(txids, flight->batch.txids, ntxids * sizeof(Datum));
	push->from = flight->from;
	push->culprit.model = 0;
	blame(push);
	pos_flight_failed(push);
	push_some(push, ntxids, txids, error);
}

/* Waits for the batch on its way and sees to it if it fails. */
static void
land_or_mend(PosPush *push)
{
	ErrorData  *error = try(push, just_land, 0, NULL, POS_ATTEMPT_PLAIN);

	if (error != NULL && !push->landing)
		ReThrowError(error);
	if (error != NULL)
		push_failed(push, error);
}

/*
 * Pushes the transactions picked: prepares and sends them beside the batch that
 * is on its way, if there is one.  Should that fail, they are picked again.  If
 * they fail themselves, they are tried on their own.
 */
static void
push_next(PosPush *push, int ntxids, Datum *txids)
{
	bool		beside = push->flying != NULL;
	ErrorData  *error = try(push, send_batch, ntxids, txids, POS_ATTEMPT_PLAIN);

	if (error == NULL)
		return;
	pos_keys_lost();
	if (push->landing)
		push_failed(push, error);
	else if (error->sqlerrcode == ERRCODE_QUERY_CANCELED ||
			 (!beside && !pos_careful_is_content(error->sqlerrcode)))
		ReThrowError(error);
	else
	{
		if (beside)
		{
			land_or_mend(push);
			error = NULL;
		}
		push_some(push, ntxids, txids, error);
	}
}

/* Searches the queue for the next transactions, from push->from on. */
static int
search(PosPush *push, PosRun *run, int64 to, Datum **txids)
{
	push->searched = push->from;
	return pos_batch_pick(run, push->flying ? &push->flying->batch : NULL,
						  push->entries, BATCH_BYTES, &push->from, to, txids);
}

/*
 * Picks transactions of batches that are open, and no later ones: a row whose arrival
 * is in doubt is looked for as it was sent, if nothing but that tells it from others.
 */
static int
repeat_open(PosPush *push, PosRun *run, Datum **txids)
{
	int64		from = push->from;
	int64		to;
	int			n;

	if ((pos_connection_kind(run->tree->server)->capabilities & POS_CAP_LATE_KEYS) == 0)
		return 0;
	to = pos_batch_open_to(run->tree->server);
	if (to == 0)
		return 0;
	if (push->flying == NULL)
		push->from = push->first;
	n = search(push, run, to, txids);
	if (n == 0)
		push->from = from;
	return n;
}

/* Picks the next transactions; they live in context. */
static int
pick(PosPush *push, MemoryContext context, Datum **txids)
{
	PosRun	   *run = make_run(push, push->context);
	Datum	   *picked;
	int			n;

	pos_transaction_begin();
	MemoryContextSwitchTo(run->context);
	run->tree = pos_tree_load(push->root, true);
	pos_batch_horizon(push);
	pos_batch_size(push);
	n = repeat_open(push, run, &picked);
	if (n == 0)
		n = search(push, run, push->last, &picked);
	if (n == 0 && push->from > push->first && push->flying == NULL)
	{
		push->from = push->first;
		n = search(push, run, push->last, &picked);
	}
	push->from = Min(push->from, push->first + push->horizon.complete + 1);
	push->more = run->full;
	*txids = MemoryContextAlloc(context, Max(n, 1) * sizeof(Datum));
	memcpy(*txids, picked, n * sizeof(Datum));
	pos_tree_close(run->tree);
	pos_transaction_commit();
	return n;
}

/* Whether there are held transactions to be tried again; lets them go. */
static bool
release_due(PosPush *push)
{
	PosRun	   *run = make_run(push, push->context);
	bool		due;

	pos_transaction_begin();
	MemoryContextSwitchTo(run->context);
	run->tree = pos_tree_load(push->root, true);
	due = pos_quarantine_release_due(run);
	pos_tree_close(run->tree);
	pos_transaction_commit();
	return due;
}

/* Says how many entries there are, about: nobody counts them before each sale. */
static void
expect_entries(PosPush *push)
{
	Oid			types[] = {INT8OID, INT8OID};
	Datum		values[] = {Int64GetDatum(push->first), Int64GetDatum(push->last)};
	bool		isnull;

	pos_transaction_begin();
	if (pos_store_execute_as(POS_PLAN_MERGE, "WITH first AS (SELECT txid FROM @.synchronize_queue"
							 " WHERE txid BETWEEN $1 AND $2"
							 " ORDER BY txid, id LIMIT 1000)"
							 " SELECT CASE WHEN count(*) < 1000 THEN count(*) ELSE"
							 " ((SELECT txid FROM @.synchronize_queue"
							 " WHERE txid BETWEEN $1 AND $2"
							 " ORDER BY txid DESC LIMIT 1) - min(txid) + 1)"
							 " * count(*) / count(DISTINCT txid) END FROM first",
							 2, types, values, NULL) == 1)
	{
		Datum		n = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc,
									  1, &isnull);

		if (!isnull)
			pos_progress_expect(DatumGetInt64(n));
	}
	pos_transaction_commit();
}

/* Pushes all that is queued and not held. */
static void
push_all(PosPush *push)
{
	MemoryContext batch = AllocSetContextCreate(push->memory, "possync batch",
												ALLOCSET_DEFAULT_SIZES);
	Datum	   *txids;
	int			n;

	expect_entries(push);
	for (;;)
	{
		/* the last one has none beside it */
		if (push->flying != NULL && !push->more)
			land_or_mend(push);
		n = pick(push, batch, &txids);
		if (n > 0)
			push_next(push, n, txids);
		else if (push->flying != NULL)
			land_or_mend(push);
		else
			break;
		MemoryContextReset(batch);
		MemoryContextReset(push->errors);
	}
	MemoryContextDelete(batch);
}

/* Makes a memory context that is reset by every user of it. */
static MemoryContext
make_context(PosPush *push)
{
	return AllocSetContextCreate(push->memory, "possync push",
								 ALLOCSET_DEFAULT_SIZES);
}

/*
 * Pushes all that is queued for the server of a root model, at last what was
 * held and is due.  Must be called outside of a transaction.
 */
void
pos_push_run(PosPush *push)
{
	push->from = push->first;
	push->context = make_context(push);
	push->errors = make_context(push);
	for (int i = 0; i < lengthof(push->flights); i++)
		push->flights[i].context = make_context(push);
	PG_TRY();
	{
		push_all(push);
		if (release_due(push))
		{
			push->from = push->first;
			push_all(push);
		}
	}
	PG_CATCH();
	{
		pos_flight_abandon(push);
		PG_RE_THROW();
	}
	PG_END_TRY();
}
