/*
 * batch.c
 *		Batches of queued transactions: which come next, and where each one
 *		stands between being begun and being confirmed.
 */
#include "possync.h"

#include "access/transam.h"
#include "catalog/pg_type.h"
#include "push.h"
#include "store.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/json.h"

/*
 * Changes in one batch, about.  The remote has nothing to do while the first one is
 * prepared, nor this side while the last one is carried out, so small ones are best;
 * but none is ended, and no other one begun here, until the one before has been
 * answered: the remote should have work in one for some times as long as an answer
 * takes.  Where rows are not sent ahead, it waits for all of that.  The setting is the
 * limit.
 */
#define FIRST_ENTRIES	2500
#define FEW_ENTRIES		5000
#define WORK_PER_ANSWER 5

static int	batch_entries;

/* Returns numbers of transactions as an array, int8[]. */
Datum
pos_batch_txids(int ntxids, Datum *txids)
{
	return PointerGetDatum(construct_array(txids, ntxids, INT8OID, 8,
										   FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
}

/* Whether a transaction is one of a batch. */
static bool
is_in(PosBatch *batch, int64 txid)
{
	int			low = 0;
	int			high = batch == NULL ? 0 : batch->ntxids;

	while (low < high)
	{
		int			middle = (low + high) / 2;
		int64		found = DatumGetInt64(batch->txids[middle]);

		if (found == txid)
			return true;
		if (found < txid)
			low = middle + 1;
		else
			high = middle;
	}
	return false;
}

/* Returns a column, which is not null, of a row that a statement has returned. */
static Datum
get_value(SPITupleTable *rows, uint64 i, int column)
{
	bool		isnull;

	return SPI_getbinval(rows->vals[i], rows->tupdesc, column, &isnull);
}

static int64
get_int64(int column)
{
	return DatumGetInt64(get_value(SPI_tuptable, 0, column));
}

/* Whether a transaction has entries behind one of it. */
static bool
has_more(Datum models, Datum txid, Datum id)
{
	Oid			types[] = {INT2ARRAYOID, INT8OID, INT4OID};
	Datum		values[] = {models, txid, id};

	return pos_store_execute_as(POS_PLAN_LOOK_UP,
								"SELECT 1 FROM @.synchronize_queue"
								" WHERE txid = $2 AND id > $3"
								" AND model = ANY ($1) LIMIT 1",
								3, types, values, NULL) > 0;
}

/*
 * Picks the oldest queued transactions that are not held, whole, with about as
 * many entries and bytes for the run's models as given in all.  Those of a batch
 * on its way (or NULL) are passed over.  Returns how many.
 *
 * Oldest is what has the least number.  It took that when it was about to end
 * (spool.c), and who changes or refers to a row of another transaction does so
 * after that one's end, so this order is right for every row.  Of the last
 * transaction only a part may have been seen; it has to wait.
 *
 * The search begins at *from, which is moved forward: what is behind it is in
 * the queue no more, and a long queue is not full of dead entries that each
 * search has to pass.  A transaction that appears behind it is found by a
 * search from push->first.  It ends at to.  What is held is read beside the
 * queue, in the same order, and no further.
 */
int
pos_batch_pick(PosRun *run, PosBatch *flying, int entries, int64 bytes,
			   int64 *from, int64 to, Datum **txids)
{
	bool		beside = flying != NULL &&
	DatumGetInt64(flying->txids[flying->ntxids - 1]) >= *from;
	uint64		limit = entries + (beside ? flying->nentries : 0);
	Oid			types[] = {INT2ARRAYOID, INT8OID, INT8OID, INT8OID};
	Datum		values[] = {
		pos_config_ids(run->tree->models), Int64GetDatum(limit),
		Int64GetDatum(*from), Int64GetDatum(to)
	};
	SPITupleTable *seen;
	uint64		n;
	uint64		next = 0;
	int			picked = 0;
	int64		size = 0;
	bool		partial = false;

	n = pos_store_execute_as(POS_PLAN_MERGE,
							 "SELECT q.txid, q.id, pg_column_size(q.image)"
							 " FROM @.synchronize_queue q"
							 " WHERE q.txid >= $3 AND q.txid <= $4"
							 " AND q.model = ANY ($1) AND NOT EXISTS"
							 " (SELECT 1 FROM @.synchronize_held h"
							 " WHERE h.txid = q.txid AND h.txid >= $3)"
							 " ORDER BY q.txid, q.id LIMIT $2",
							 4, types, values, NULL);
	seen = SPI_tuptable;
	*txids = palloc(Max(n, 1) * sizeof(Datum));
	while (next < n && size < bytes)
	{
		int64		txid = DatumGetInt64(get_value(seen, next, 1));
		bool		flies = is_in(flying, txid);

		for (; next < n && DatumGetInt64(get_value(seen, next, 1)) == txid; next++)
			size += flies ? 0 : DatumGetInt32(get_value(seen, next, 3));
		*from = txid;
		partial = !flies && next == limit &&
			has_more(values[0], Int64GetDatum(txid), get_value(seen, next - 1, 2));
		if (partial)
			break;
		if (!flies)
			(*txids)[picked++] = Int64GetDatum(txid);
		(*from)++;
	}
	run->full = n == limit || next < n;
	SPI_freetuptable(seen);
	if (partial && picked == 0)
		return pos_batch_pick(run, flying, entries * 2, bytes, from, to, txids);
	return picked;
}

/*
 * Returns up to which transaction batches of a server have been sent that are still
 * open, 0 if none is.
 */
int64
pos_batch_open_to(const char *server)
{
	Oid			types[] = {NAMEOID};
	Datum		values[] = {DirectFunctionCall1(namein, CStringGetDatum(server))};
	int64		to;

	(void) pos_store_execute("SELECT coalesce(max(last_txid), 0) FROM @.synchronize_batch"
							 " WHERE server = $1 AND NOT given_up",
							 1, types, values, NULL);
	to = get_int64(1);
	SPI_freetuptable(SPI_tuptable);
	return to;
}

/*
 * Returns up to which transaction all have ended that may add to the queue.  A
 * snapshot tells which run, but not of those that began after the last one that has
 * ended: these are all taken to run.
 */
static uint64
oldest_running(PosPush *push)
{
	Oid			types[] = {INT8OID};
	Datum		values[] = {Int64GetDatum(push->caller)};

	pos_store_execute("SELECT coalesce((SELECT min(x::text::int8)"
					  " FROM pg_snapshot_xip(s) x WHERE x::text::int8 <> $1),"
					  " CASE WHEN next = $1 THEN next + 1 ELSE next END)"
					  " FROM pg_current_snapshot() s,"
					  " LATERAL (SELECT pg_snapshot_xmax(s)::text::int8) n(next)",
					  1, types, values, NULL);
	return get_int64(1);
}

/*
 * Finds out up to which of its numbers the queue is complete.  A transaction has
 * PostgreSQL's number before it takes ours: so who has taken one when the sequence
 * is read has the former below that of any who begin afterwards, and all of ours
 * up to there are seen when the last of those has ended, at once if nobody runs.
 *
 * The one that waits for this push to end is not waited for.  It may have taken a
 * number, but what it has queued is seen by the next push only, and nobody else
 * can depend on it until then.
 */
void
pos_batch_horizon(PosPush *push)
{
	PosHorizon *horizon = &push->horizon;
	uint64		oldest = oldest_running(push);

	if (horizon->after == 0 || oldest >= horizon->after)
	{
		if (horizon->after != 0)
			horizon->complete = horizon->next;
		pos_store_execute("SELECT last_value FROM @.synchronize_queue_txid_seq",
						  0, NULL, NULL, NULL);
		horizon->next = get_int64(1);
		horizon->after = U64FromFullTransactionId(ReadNextFullTransactionId());
	}
	if (oldest >= horizon->after)
	{
		horizon->complete = horizon->next;
		horizon->after = 0;
	}
}

/*
 * Loads the numbers of batches that were never confirmed.  The one on its way
 * will be, or this transaction is rolled back.
 */
void
pos_batch_load_open(PosRun *run)
{
	PosFlight  *flying = run->whole->flying;
	Oid			types[] = {NAMEOID};
	Datum		values[] = {
		DirectFunctionCall1(namein, CStringGetDatum(run->tree->server))
	};
	uint64		n;

	n = pos_store_execute("SELECT id, CASE WHEN NOT given_up THEN last_txid ELSE 0 END"
						  " FROM @.synchronize_batch WHERE server = $1",
						  1, types, values, NULL);
	for (uint64 i = 0; i < n; i++)
	{
		int32		id = DatumGetInt32(get_value(SPI_tuptable, i, 1));
		int64		last = DatumGetInt64(get_value(SPI_tuptable, i, 2));

		if (flying != NULL && flying->batch.id == id)
			continue;
		run->open = lappend_int(run->open, id);
		run->arrived_to = Max(run->arrived_to, last);
	}
	SPI_freetuptable(SPI_tuptable);
}

/* Returns an array of keys, int8[] or text[]. */
static Datum
key_array(bool is_int, int n, Datum *keys)
{
	return PointerGetDatum(is_int ?
						   construct_array(keys, n, INT8OID, 8, FLOAT8PASSBYVAL,
										   TYPALIGN_DOUBLE) :
						   construct_array(keys, n, TEXTOID, -1, false,
										   TYPALIGN_INT));
}

/* Adds the rows of a model that have a flag, if any, to a list. */
static List *
add_flagged(List *list, PosModel *model, int flag)
{
	bool		is_int = model->local_int;
	PosBatchKeys *flagged;
	Datum	   *keys = palloc(pos_rowset_count(model->outgoing->rows) * sizeof(Datum));
	int			n = 0;
	Datum	   *values;
	bool	   *nulls;

	pos_rowset_rewind(model->outgoing->rows);
	while (pos_rowset_next(model->outgoing->rows, &values, &nulls))
		if (DatumGetInt64(values[POS_STAGE_OLD]) & flag)
			keys[n++] = is_int ? values[POS_STAGE_LOCAL] :
				PointerGetDatum(PG_DETOAST_DATUM_COPY(values[POS_STAGE_LOCAL]));
	if (n > 0)
	{
		flagged = palloc(sizeof(PosBatchKeys));
		flagged->model = model;
		flagged->keys = key_array(is_int, n, keys);
		list = lappend(list, flagged);
	}
	pfree(keys);
	return list;
}

/*
 * Which translations belong to keys, looked up one by one: for "key = ANY ($3)" the
 * index may be read by the model alone.
 */
#define TRANSLATIONS_OF(key) \
	"ctid = ANY (ARRAY(SELECT t.id FROM unnest($3) k (k)," \
	" LATERAL (SELECT ctid AS id FROM @.synchronize_translation" \
	" WHERE model = $2 AND " key " = k.k OFFSET 0) t))"

/*
 * Runs a statement on the translations of rows: $1 is the number of a batch, $2 their
 * model, $3 their keys.  There is one for either form of keys.
 */
static void
execute_for_keys(PosBatch *batch, PosBatchKeys *rows, const char *sql,
				 const char *sql_text)
{
	bool		is_int = rows->model->local_int;
	Oid			types[] = {INT4OID, INT2OID, is_int ? INT8ARRAYOID : TEXTARRAYOID};
	Datum		values[] = {
		Int32GetDatum(batch->id), Int16GetDatum(rows->model->id), rows->keys
	};

	pos_store_execute_as(POS_PLAN_LOOK_UP, is_int ? sql : sql_text, 3, types, values,
						 NULL);
}

/* Lets the keys that rows got in open batches belong to one that arrived. */
static void
take_over(PosBatch *batch)
{
	ListCell   *lc;

	foreach(lc, batch->unsure)
		execute_for_keys(batch, lfirst(lc),
						 "UPDATE @.synchronize_translation SET run = $1 WHERE "
						 TRANSLATIONS_OF("local_key"),
						 "UPDATE @.synchronize_translation SET run = $1 WHERE "
						 TRANSLATIONS_OF("local_key_text"));
}

/* Rows of a model that are translated into one remote key are so into another. */
void
pos_batch_learn(PosModel *model, int n, Datum *given, Datum *got)
{
	Oid			array = model->remote_int ? INT8ARRAYOID : TEXTARRAYOID;
	Oid			types[] = {INT2OID, array, array};
	Datum		values[] = {
		Int16GetDatum(model->id), key_array(model->remote_int, n, given),
		key_array(model->remote_int, n, got)
	};

	pos_store_execute(model->remote_int ?
					  "UPDATE @.synchronize_translation SET remote_key = k.got"
					  " FROM unnest($2, $3) k (given, got)"
					  " WHERE model = $1 AND remote_key = k.given" :
					  "UPDATE @.synchronize_translation SET remote_key_text = k.got"
					  " FROM unnest($2, $3) k (given, got)"
					  " WHERE model = $1 AND remote_key_text = k.given",
					  3, types, values, NULL);
}

/* Appends keys as a JSON array: integers as runs, of which rows that are new have few. */
static void
append_keys(StringInfo buf, PosBatchKeys *rows)
{
	bool		is_int = rows->model->local_int;
	Datum	   *keys;
	int			n;

	if (is_int)
		deconstruct_array(DatumGetArrayTypeP(rows->keys), INT8OID, 8, FLOAT8PASSBYVAL,
						  TYPALIGN_DOUBLE, &keys, NULL, &n);
	else
		deconstruct_array(DatumGetArrayTypeP(rows->keys), TEXTOID, -1, false,
						  TYPALIGN_INT, &keys, NULL, &n);
	appendStringInfoChar(buf, '[');
	for (int i = 0; i < n; i++)
	{
		int			first = i;

		if (i > 0)
			appendStringInfoChar(buf, ',');
		if (!is_int)
		{
			escape_json(buf, TextDatumGetCString(keys[i]));
			continue;
		}
		while (i + 1 < n && DatumGetInt64(keys[i + 1]) - 1 == DatumGetInt64(keys[i]))
			i++;
		appendStringInfo(buf, "[" INT64_FORMAT "," INT64_FORMAT "]",
						 DatumGetInt64(keys[first]), DatumGetInt64(keys[i]));
	}
	appendStringInfoChar(buf, ']');
}

/* Returns the keys that a batch has made, by model, as the text of a JSON object. */
static char *
made_keys(PosBatch *batch)
{
	StringInfoData buf;
	ListCell   *lc;

	initStringInfo(&buf);
	foreach(lc, batch->made)
	{
		PosBatchKeys *rows = lfirst(lc);

		appendStringInfo(&buf, "%c\"%d\":", buf.len == 0 ? '{' : ',', rows->model->id);
		append_keys(&buf, rows);
	}
	appendStringInfoString(&buf, buf.len == 0 ? "{}" : "}");
	return buf.data;
}

/*
 * Notes that a batch is on its way: translations of this run are not sure.  Which they
 * are is remembered, here and in the table, for they cannot be looked up by their run.
 */
void
pos_batch_open(PosRun *run, PosBatch *batch, int32 history)
{
	Oid			types[] = {INT4OID, INT4OID, NAMEOID, INT8OID, JSONOID};
	Datum		values[] = {
		Int32GetDatum(batch->id), Int32GetDatum(history),
		DirectFunctionCall1(namein, CStringGetDatum(run->tree->server)),
		batch->txids[batch->ntxids - 1], (Datum) 0
	};
	ListCell   *lc;

	foreach(lc, batch->models)
	{
		batch->unsure = add_flagged(batch->unsure, lfirst(lc), POS_ROW_UNSURE);
		batch->made = add_flagged(batch->made, lfirst(lc), POS_ROW_CREATED);
	}
	values[4] = CStringGetTextDatum(made_keys(batch));
	pos_store_execute("INSERT INTO @.synchronize_batch (id, run, server, last_txid, made)"
					  " VALUES ($1, $2, $3, $4, $5)", 5, types, values, NULL);
	if (batch->unsure != NIL)
		run->whole->sent_again = true;
}

/* The batch has arrived: its entries leave the queue, and it is closed. */
void
pos_batch_confirm(PosRun *run, PosBatch *batch)
{
	Oid			types[] = {INT8ARRAYOID, INT2ARRAYOID};
	Datum		values[] = {
		pos_batch_txids(batch->ntxids, batch->txids),
		pos_config_ids(run->tree->models)
	};
	Oid			types2[] = {INT4OID};
	Datum		values2[] = {Int32GetDatum(batch->id)};

	take_over(batch);
	pos_store_execute_as(POS_PLAN_LOOK_UP, "DELETE FROM @.synchronize_queue"
						 " WHERE txid = ANY ($1) AND model = ANY ($2)",
						 2, types, values, NULL);
	pos_store_execute("DELETE FROM @.synchronize_batch WHERE id = $1",
					  1, types2, values2, NULL);
}

/*
 * The remote has refused a batch: none of the keys made for it is in use there, and
 * one of them may be somebody else's.
 */
void
pos_batch_refused(PosBatch *batch)
{
	Oid			types[] = {INT4OID};
	Datum		values[] = {Int32GetDatum(batch->id)};
	ListCell   *lc;

	foreach(lc, batch->made)
		execute_for_keys(batch, lfirst(lc),
						 "DELETE FROM @.synchronize_translation WHERE run = $1"
						 " AND decision = 'c' AND " TRANSLATIONS_OF("local_key"),
						 "DELETE FROM @.synchronize_translation WHERE run = $1"
						 " AND decision = 'c' AND " TRANSLATIONS_OF("local_key_text"));
	pos_store_execute("DELETE FROM @.synchronize_batch WHERE id = $1",
					  1, types, values, NULL);
}

/* Returns how many entries a batch has that comes after one of so many, or 0. */
static int
following(PosPush *push, int entries)
{
	int			most = push->sends_ahead && push->enough > 0 ?
	Min(push->enough, batch_entries) : batch_entries;

	return entries == 0 ? Min(FIRST_ENTRIES, most) : Min(entries * 2, most);
}

/* Another batch is going to be picked: sets how large it is. */
void
pos_batch_size(PosPush *push)
{
	push->entries = following(push, push->entries);
}

/*
 * The remote has answered after so many microseconds: a batch of so many entries, or
 * a question (0), that needs no work to speak of.
 */
void
pos_batch_answered(PosPush *push, int entries, int64 time)
{
	int64		work;

	push->answer_time = push->answer_time == 0 ? time : Min(push->answer_time, time);
	if (entries == 0)
		return;
	work = Max(time - push->answer_time, 1);
	push->enough = Max(FEW_ENTRIES,
					   Min(batch_entries, WORK_PER_ANSWER * push->answer_time *
						   entries / work));
}

/*
 * Returns how many rows of a model the next one or two batches may be going to have, if
 * the one at hand has so many.  Whole transactions are not as even as that: some more.
 */
int
pos_batch_coming(PosPush *push, int rows, int batches)
{
	int			next = following(push, push->entries);
	int64		entries = next + (batches == 2 ? following(push, next) : 0);

	return rows * entries / Max(push->entries, 1) + rows / 32 + 8;
}

/* Defines the setting; called when the module is loaded. */
void
pos_batch_init(void)
{
	DefineCustomIntVariable("possync.batch_entries",
							"How many queued changes are pushed together, about; for tests.",
							NULL, &batch_entries, 10000, 1, 1000000, PGC_SUSET,
							GUC_NOT_IN_SAMPLE | GUC_NO_SHOW_ALL,
							NULL, NULL, NULL);
}
