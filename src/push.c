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
 * A crash anywhere leaves the entries in the queue and the translations made, so
 * that the next push sends the same rows under the same keys.
 *
 * A batch that the remote refuses because of its content is halved until the
 * transactions at fault are alone.  These go to quarantine, and the rest goes on.
 * Everything here runs in a worker with transactions of its own.
 */
#include "possync.h"

#include "access/xact.h"
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

/* Entries, and bytes of their images, taken into one batch, about */
#define BATCH_ENTRIES	20000
#define BATCH_BYTES		(8 * 1024 * 1024)

/* Makes the state of one batch, which outlives the transaction that fills it. */
static PosRun *
make_run(PosPush *push)
{
	PosRun	   *run;

	MemoryContextReset(push->context);
	MemoryContextSwitchTo(push->context);
	run = palloc0(sizeof(PosRun));
	run->push = true;
	run->whole = push;
	run->id = push->history;
	run->context = push->context;
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
	(void) run->connection->ops->expect(run->connection, tables, ntables);
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

/* Adds what a batch did to what the push reports. */
static void
count(PosPush *push, PosRun *run, PosSteps *steps)
{
	ListCell   *lc;

	foreach(lc, run->tree->models)
	{
		PosCounts  *counts = &((PosModel *) lfirst(lc))->counts;

		push->counts.read += counts->read;
		push->counts.matched += counts->matched;
	}
	for (int i = 0; i < steps->nsteps; i++)
		if (steps->steps[i]->kind == POS_STEP_UPDATE)
			push->counts.updated += steps->steps[i]->affected;
		else if (steps->steps[i]->kind == POS_STEP_INSERT)
			push->counts.created += steps->steps[i]->affected;
	push->received += run->connection->ops->received(run->connection);
}

/*
 * Carries out one batch of whole transactions.  An error leaves it to be
 * repeated, in whole or in parts.
 */
static void
push_batch(PosPush *push, int ntxids, Datum *txids, PosAttempt attempt)
{
	PosBatch	batch = {.ntxids = ntxids,.txids = txids};
	PosRun	   *run = make_run(push);
	PosSteps	steps = {0};

	pos_transaction_begin();
	MemoryContextSwitchTo(run->context);
	pos_progress_phase(ntxids == 1 ? "pushing a transaction" : "pushing a batch", NULL);
	run->match_all = attempt != POS_ATTEMPT_PLAIN;
	run->in_order = attempt == POS_ATTEMPT_IN_ORDER;
	load(run, push);
	batch.id = run->id = pos_history_next_id();
	pos_outgoing_collect(run, &batch);
	pos_recognise_batch(run, &batch);
	pos_batch_open(run, &batch, push->history);
	pos_steps_batch(run, &batch, &steps);
	if (push->more || push->lasting)
		pos_keys_ahead(run, &batch, push->more, &steps);
	pos_translation_close(run);
	pos_tree_close(run->tree);
	pos_fault_point("push bound");

	/* whatever synchronous_commit says: the remote is going to have the keys */
	ForceSyncCommit();
	pos_transaction_commit();
	pos_fault_point("push prepared");

	pos_transaction_begin();
	MemoryContextSwitchTo(run->context);
	push->sent = batch.id;
	if (steps.nsteps > 0)
		run->connection->ops->write(run->connection, steps.steps, steps.nsteps,
									&push->pending);
	push->sent = 0;
	pos_keys_take(run, &steps);
	pos_fault_point("push written");
	pos_batch_confirm(run, &batch);
	pos_progress_rows(batch.nentries, push->received);
	pos_quarantine_arrived(run, ntxids, txids);
	count(push, run, &steps);
	pos_transaction_commit_lazily();	/* else it is sent again */
	pos_fault_point("push confirmed");
}

/* Tries a batch.  Returns the error it failed with, or NULL. */
static ErrorData *
try_batch(PosPush *push, int ntxids, Datum *txids, PosAttempt attempt)
{
	ErrorData  *volatile error = NULL;

	push->culprit.model = 0;
	push->sent = 0;
	push->pending = true;
	PG_TRY();
	{
		push_batch(push, ntxids, txids, attempt);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(push->errors);
		error = CopyErrorData();
		FlushErrorState();
		AbortOutOfAnyTransaction();
	}
	PG_END_TRY();
	if (error != NULL && !pos_careful_is_content(error->sqlerrcode))
		ReThrowError(error);
	if (error != NULL && push->sent != 0 && !push->pending)
	{
		pos_transaction_begin();
		pos_batch_refused(push->sent);
		pos_transaction_commit();
	}
	return error;
}

/* Puts one transaction into quarantine. */
static void
hold(PosPush *push, Datum txid, ErrorData *error)
{
	PosRun	   *run = make_run(push);

	pos_transaction_begin();
	MemoryContextSwitchTo(run->context);
	run->tree = pos_tree_load(push->root, true);
	pos_quarantine_hold(run, txid, error, &push->culprit);
	pos_tree_close(run->tree);
	pos_transaction_commit();
	push->counts.left_out++;
}

/*
 * Pushes some transactions, those at fault into quarantine.  A unique
 * constraint that is violated by a new row may mean that the row is there
 * already, because somebody else was faster: then it is looked for.
 *
 * A transaction alone that violates a constraint may do so because its rows are
 * sent as they were left, the new ones first and the deleted ones last.  The
 * till's constraints have seen its changes one by one, and so does the remote
 * then.
 */
static void
push_some(PosPush *push, int ntxids, Datum *txids)
{
	ErrorData  *error = try_batch(push, ntxids, txids, POS_ATTEMPT_PLAIN);

	CHECK_FOR_INTERRUPTS();
	if (error != NULL && error->sqlerrcode == ERRCODE_UNIQUE_VIOLATION)
		error = try_batch(push, ntxids, txids, POS_ATTEMPT_MATCH);
	if (error != NULL && ntxids == 1 &&
		(ERRCODE_TO_CATEGORY(error->sqlerrcode) == ERRCODE_INTEGRITY_CONSTRAINT_VIOLATION ||
		 error->sqlerrcode == ERRCODE_CARDINALITY_VIOLATION))
		error = try_batch(push, ntxids, txids, POS_ATTEMPT_IN_ORDER);

	/* somebody may be faster again, between looking and writing */
	for (int i = 0; i < 2 && error != NULL && ntxids == 1 &&
		 error->sqlerrcode == ERRCODE_UNIQUE_VIOLATION; i++)
		error = try_batch(push, ntxids, txids, POS_ATTEMPT_IN_ORDER);
	if (error == NULL)
		return;
	if (ntxids == 1)
		hold(push, txids[0], error);
	else
	{
		push_some(push, ntxids / 2, txids);
		push_some(push, ntxids - ntxids / 2, txids + ntxids / 2);
	}
}

/* Picks the next transactions; they live in context. */
static int
pick(PosPush *push, MemoryContext context, Datum **txids)
{
	PosRun	   *run = make_run(push);
	Datum	   *picked;
	int			n;

	pos_transaction_begin();
	MemoryContextSwitchTo(run->context);
	run->tree = pos_tree_load(push->root, true);
	pos_batch_horizon(&push->horizon);
	n = pos_batch_pick(run, BATCH_ENTRIES, BATCH_BYTES, &push->from, &picked);
	if (n == 0 && push->from > 0)
	{
		push->from = 0;
		n = pos_batch_pick(run, BATCH_ENTRIES, BATCH_BYTES, &push->from,
						   &picked);
	}
	push->from = Min(push->from, push->horizon.complete + 1);
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
	PosRun	   *run = make_run(push);
	bool		due;

	pos_transaction_begin();
	MemoryContextSwitchTo(run->context);
	run->tree = pos_tree_load(push->root, true);
	due = pos_quarantine_release_due(run);
	pos_tree_close(run->tree);
	pos_transaction_commit();
	return due;
}

/* Says how many entries there are, about: nobody counts a million of them. */
static void
expect_entries(PosPush *push)
{
	bool		isnull;

	pos_transaction_begin();
	if (pos_store_execute("WITH first AS (SELECT txid FROM @.synchronize_queue"
						  " ORDER BY txid, id LIMIT 100000)"
						  " SELECT CASE WHEN count(*) < 100000 THEN count(*) ELSE"
						  " ((SELECT txid FROM @.synchronize_queue"
						  " ORDER BY txid DESC LIMIT 1) - min(txid) + 1)"
						  " * count(*) / count(DISTINCT txid) END FROM first",
						  0, NULL, NULL, NULL) == 1)
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
	while ((n = pick(push, batch, &txids)) > 0)
	{
		push_some(push, n, txids);
		MemoryContextReset(batch);
		MemoryContextReset(push->errors);
	}
	MemoryContextDelete(batch);
}

/*
 * Pushes all that is queued for the server of a root model, at last what was
 * held and is due.  Must be called outside of a transaction.
 */
void
pos_push_run(PosPush *push)
{
	push->context = AllocSetContextCreate(push->memory, "possync push",
										  ALLOCSET_DEFAULT_SIZES);
	push->errors = AllocSetContextCreate(push->memory, "possync push errors",
										 ALLOCSET_DEFAULT_SIZES);
	push_all(push);
	if (release_due(push))
	{
		push->from = 0;
		push_all(push);
	}
}
