/*
 * flight.c
 *		A batch on its way: sent, and what its answer leads to.
 *
 * While a batch is at the remote the next one is prepared in a transaction that
 * commits only after the first has landed, and confirms it, too.  So at any time
 * one batch at most is open, and what is prepared may rely on all that is sent
 * before: if that fails, the transaction is rolled back.
 *
 * The rows of the next batch are sent as soon as they are prepared; what makes them
 * count, the end of their transaction, is sent when the one here is committed.
 *
 * The connection carries one write at a time.  Who has a question for the remote
 * asks here, and so waits for what flies.
 */
#include "possync.h"

#include "fault.h"
#include "progress.h"
#include "push.h"
#include "transaction.h"

/* Rows prepared until the connection is given time to send */
#define PUMP_ROWS	64

/*
 * Sends a batch whose state is committed, without waiting.  Must be called outside
 * of a transaction.  An error is the batch's own.
 */
void
pos_flight_launch(PosPush *push, PosFlight *flight)
{
	PosConnection *connection = flight->run->connection;

	push->flying = flight;
	push->landing = true;
	push->pending = false;
	pos_transaction_begin();
	MemoryContextSwitchTo(flight->context);
	flight->arrived = flight->steps.nsteps == 0;
	push->sends_ahead = push->ahead != NULL;
	flight->launched = push->sends_ahead ? 0 : GetCurrentTimestamp();
	flight->received = 0;
	if (!flight->arrived)
		connection->ops->send(connection, flight->steps.steps,
							  flight->steps.nsteps, &push->pending);
	push->ahead = NULL;
	pos_transaction_commit();
	push->landing = false;
}

/* Gives what flies some of the time that is spent on rows of the next batch. */
void
pos_flight_pump(PosPush *push)
{
	PosFlight  *flight = push->flying;

	if (flight == NULL || flight->arrived || push->pumped++ % PUMP_ROWS != 0)
		return;
	flight->run->connection->ops->pump(flight->run->connection);
}

/* Adds what a batch did to what the push reports. */
static void
count(PosPush *push, PosFlight *flight)
{
	PosSteps   *steps = &flight->steps;
	ListCell   *lc;

	foreach(lc, flight->run->tree->models)
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
	push->received += flight->received;
}

/*
 * Sends the rows of the next batch behind the one on its way, if there is one and they
 * go the same way: the options of the server may have changed in between.  They are
 * there when it is known to have landed, and their transaction is ended by
 * pos_flight_launch.  What need not be done before is done afterwards, while the remote
 * works.  Should that fail, see pos_flight_retract.
 */
void
pos_flight_ahead(PosPush *push, PosFlight *next)
{
	PosFlight  *flight = push->flying;
	PosConnection *connection;

	if (flight == NULL || push->confirmed || flight->arrived)
		return;
	connection = flight->run->connection;
	if (next->run->connection != connection || next->steps.nsteps == 0 ||
		connection->ops->ahead == NULL)
		return;
	push->ahead = connection;
	push->landing = true;
	if (!connection->ops->ahead(connection, next->steps.steps, next->steps.nsteps))
		push->ahead = NULL;
	push->landing = false;
}

/*
 * Does in the transaction at hand, which is committed only if the batch on its way
 * lands, what can be done before: the remote waits for nothing when it has answered.
 */
void
pos_flight_expect(PosPush *push)
{
	PosFlight  *flight = push->flying;
	MemoryContext old;

	if (flight == NULL || push->confirmed || push->expected)
		return;
	old = MemoryContextSwitchTo(flight->context);
	pos_batch_confirm(flight->run, &flight->batch);
	push->expected = true;
	MemoryContextSwitchTo(old);
}

/*
 * Waits for the batch on its way, if there is one, and confirms it in the
 * transaction at hand, which may be rolled back and another one confirm it: with
 * the commit comes pos_flight_landed.  After an error push->landing tells if it is
 * that of the batch on its way.
 */
void
pos_flight_land(PosPush *push)
{
	PosFlight  *flight = push->flying;
	MemoryContext old;

	if (flight == NULL || push->confirmed)
		return;
	old = MemoryContextSwitchTo(flight->context);
	if (!flight->arrived)
	{
		PosConnection *connection = flight->run->connection;

		push->landing = true;
		connection->ops->receive(connection);
		push->landing = false;
		if (flight->launched != 0)
			pos_batch_answered(push, flight->batch.nentries,
							   GetCurrentTimestamp() - flight->launched);
		flight->arrived = true;
		flight->received = connection->ops->received(connection);
	}
	if (!flight->counted)
	{
		count(push, flight);
		pos_keys_take(flight->run, &flight->steps);
		flight->counted = true;
	}
	pos_fault_point("push written");
	pos_keys_learn(flight->run, &flight->steps);
	pos_flight_expect(push);
	pos_progress_rows(flight->batch.nentries, push->received);
	pos_quarantine_arrived(flight->run, flight->batch.ntxids,
						   flight->batch.txids);
	push->confirmed = true;
	MemoryContextSwitchTo(old);
}

/*
 * The transaction that was to send the next batch has failed, or what was to follow
 * it: what of the batch is at the remote comes to nothing.  The one on its way is not
 * sent again: meanwhile somebody there may have changed, or deleted, what it brought.
 */
void
pos_flight_retract(PosPush *push)
{
	push->confirmed = push->expected = false;
	if (push->ahead != NULL)
		push->ahead->ops->retract(push->ahead);
	push->ahead = NULL;
}

/* The transaction that confirmed a batch is committed: nothing flies. */
void
pos_flight_landed(PosPush *push)
{
	push->flying = NULL;
	push->confirmed = push->expected = false;
	pos_fault_point("push confirmed");
}

/* Carries out steps at the remote and waits for them, after what flies. */
void
pos_flight_ask(PosRun *run, PosSteps *steps)
{
	bool		pending;		/* nothing that matters is changed there */
	TimestampTz asked;

	if (steps->nsteps == 0)
		return;
	pos_flight_land(run->whole);
	asked = GetCurrentTimestamp();
	run->connection->ops->send(run->connection, steps->steps, steps->nsteps,
							   &pending);
	run->connection->ops->receive(run->connection);
	pos_batch_answered(run->whole, 0, GetCurrentTimestamp() - asked);
}

/*
 * Gives up the batch on its way, which has failed, after the transaction at hand
 * was rolled back.  If the remote is known to have refused it, its keys are
 * forgotten.
 */
void
pos_flight_failed(PosPush *push)
{
	PosFlight  *flight = push->flying;

	push->flying = NULL;
	push->confirmed = push->expected = push->landing = false;
	pos_keys_lost();
	if (push->pending || flight->arrived)
		return;
	pos_transaction_begin();
	pos_batch_refused(&flight->batch);
	pos_transaction_commit();
}

/* Leaves the batch on its way to the next push: nobody waits for its answer. */
void
pos_flight_abandon(PosPush *push)
{
	PosFlight  *flight = push->flying;

	if (flight == NULL)
		return;
	push->flying = NULL;
	pos_keys_lost();
	if (!flight->arrived)
		flight->run->connection->ops->abandon(flight->run->connection);
}
