/*
 * entries.c
 *		The queued entries of a batch: what happened to every row, the image that it
 *		was left with, and the one that it had before.
 */
#include "possync.h"

#include "catalog/pg_type.h"
#include "image.h"
#include "keyset.h"
#include "push.h"
#include "store.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

/* Columns of the entries that pos_entries_load reads */
enum
{
	ENTRY_MODEL = 1, ENTRY_KEY, ENTRY_KEY_TEXT, ENTRY_OPERATION, ENTRY_IMAGE,
	ENTRY_BEFORE
};

/* Returns a value of an entry read by pos_entries_load. */
static Datum
entry_value(SPITupleTable *entries, uint64 i, int column)
{
	bool		isnull;

	return SPI_getbinval(entries->vals[i], entries->tupdesc, column, &isnull);
}

static PosModel *
entry_model(PosRun *run, SPITupleTable *entries, uint64 i)
{
	return pos_config_find(run->tree->models,
						   DatumGetInt16(entry_value(entries, i, ENTRY_MODEL)));
}

static Datum
entry_key(PosModel *model, SPITupleTable *entries, uint64 i)
{
	return entry_value(entries, i,
					   model->local_int ? ENTRY_KEY : ENTRY_KEY_TEXT);
}

/* Returns what is known of a row, NULL if the batch has nothing to do with it. */
static KeySetEntry *
find_row(PosModel *model, Datum key)
{
	return keyset_lookup(model->outgoing->keys->hash,
						 pos_key_string(key, model->local_int));
}

/* What an entry alone does to its row */
static int
entry_flags(char operation)
{
	return operation == 'i' ? POS_ROW_NEW :
		operation == 'u' ? POS_ROW_UPDATED : POS_ROW_DELETED;
}

/*
 * Notes what happened to the row of an entry, the entries before it included.
 */
static void
note_entry(PosRun *run, SPITupleTable *entries, uint64 i)
{
	PosModel   *model = entry_model(run, entries, i);
	char		operation = DatumGetChar(entry_value(entries, i, ENTRY_OPERATION));
	char	   *key = pos_key_string(entry_key(model, entries, i),
									 model->local_int);
	bool		found;
	KeySetEntry *row = keyset_insert(model->outgoing->keys->hash, key, &found);

	if (!found)
	{
		row->key = MemoryContextStrdup(run->context, key);
		row->flags = operation == 'i' ? POS_ROW_NEW : POS_ROW_UPDATED;
		row->taken = false;
		row->first = i;
		row->befores = NIL;
		row->unforeseen = false;
	}
	if (operation == 'u')
		row->flags |= POS_ROW_UPDATED;
	if (operation == 'd')
		row->flags |= POS_ROW_DELETED;
	else
		row->flags &= ~POS_ROW_DELETED;
	row->last = i;
}

/* Errors if an image has a column that its table does not have. */
static void
check_columns(PosModel *model, Datum image)
{
	char	   *stranger = pos_image_stranger(DatumGetTextPP(image),
											  model->outgoing->labels);

	if (stranger != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_EXCEPTION),
				 errmsg("the row was queued with a column %s, which table \"%s\" does not have any more",
						stranger, model->name),
				 errhint("Give the table a column of that name until the row is pushed.")));
}

/*
 * Puts an entry into the images of its model if it is the last of its row, or
 * all are wanted.
 */
static void
put_image(PosRun *run, SPITupleTable *entries, uint64 i)
{
	PosModel   *model = entry_model(run, entries, i);
	Datum		key = entry_key(model, entries, i);
	KeySetEntry *row = find_row(model, key);
	Datum		values[3];
	bool		nulls[3] = {false};

	if (row->last != i && !run->in_order)
		return;
	values[2] = entry_value(entries, i, ENTRY_IMAGE);
	check_columns(model, values[2]);
	values[0] = key;
	values[1] = Int64GetDatum(run->in_order ?
							  entry_flags(DatumGetChar(entry_value(entries, i,
																   ENTRY_OPERATION))) :
							  row->flags);
	pos_rowset_put(model->outgoing->images, values, nulls);
}

/* Whether a push looks if the remote has changed rows of a model, too. */
static bool
is_watched(PosModel *model)
{
	return model->on_conflict != POS_LOCAL_WINS && model->update_matched;
}

/* Returns those models. */
static List *
watched_models(PosRun *run)
{
	List	   *models = NIL;
	ListCell   *lc;

	foreach(lc, run->tree->models)
		if (is_watched(lfirst(lc)))
		models = lappend(models, lfirst(lc));
	return models;
}

/* Puts an image into the set of what the remote may have. */
static void
put_expected(PosModel *model, Datum key, Datum image)
{
	Datum		values[3] = {key, Int64GetDatum(0), image};
	bool		nulls[3] = {false};

	pos_rowset_put(model->outgoing->befores, values, nulls);
}

/*
 * Puts what the remote may have of an entry's row into a set of its model, if the
 * remote is to be asked: what the row was before its first entry, and, in case they
 * have arrived already, what its entries made of it.
 */
static void
put_before(PosRun *run, SPITupleTable *entries, uint64 i)
{
	PosModel   *model = entry_model(run, entries, i);
	Datum		key = entry_key(model, entries, i);
	KeySetEntry *row = find_row(model, key);
	bool		isnull;
	Datum		before;

	if (!is_watched(model))
		return;
	before = SPI_getbinval(entries->vals[i], entries->tupdesc, ENTRY_BEFORE, &isnull);
	if (row->first == i)
		row->unforeseen = isnull;
	if (row->first == i && !isnull)
	{
		check_columns(model, before);
		put_expected(model, key, before);
	}
	if (!row->unforeseen &&
		DatumGetChar(entry_value(entries, i, ENTRY_OPERATION)) != 'd')
		put_expected(model, key, entry_value(entries, i, ENTRY_IMAGE));
}

/*
 * After a batch that may have arrived, the remote may have what entries of it made of
 * a row that come later than those at hand.
 */
static void
put_later(PosRun *run, PosBatch *batch, Datum watched)
{
	Oid			types[] = {INT8OID, INT8OID, INT2ARRAYOID};
	Datum		arguments[] = {
		batch->txids[batch->ntxids - 1], Int64GetDatum(run->arrived_to), watched
	};
	uint64		n = pos_store_execute_as(POS_PLAN_LOOK_UP,
										 "SELECT model, local_key, local_key_text,"
										 " operation, image"
										 " FROM @.synchronize_queue"
										 " WHERE txid > $1 AND txid <= $2"
										 " AND model = ANY ($3) AND operation <> 'd'"
										 " ORDER BY txid, id", 3, types, arguments, NULL);
	SPITupleTable *entries = SPI_tuptable;

	for (uint64 i = 0; i < n; i++)
	{
		PosModel   *model = entry_model(run, entries, i);
		Datum		key = entry_key(model, entries, i);
		KeySetEntry *row;

		MemoryContextReset(run->row);
		row = find_row(model, key);
		if (row != NULL && !row->unforeseen)
			put_expected(model, key, entry_value(entries, i, ENTRY_IMAGE));
	}
	SPI_freetuptable(entries);
}

/*
 * Rows are sent as they are now, before their queued entries, because others need
 * them: what those expect the remote to have is not what it has then.
 */
void
pos_entries_overtake(PosModel *model, List *keys)
{
	Oid			types[] = {INT2OID, TEXTARRAYOID};
	Datum		values[2];
	Datum	   *texts = palloc(list_length(keys) * sizeof(Datum));
	int			n = 0;
	ListCell   *lc;

	if (!is_watched(model))
		return;
	foreach(lc, keys)
		texts[n++] = CStringGetTextDatum(lfirst(lc));
	values[0] = Int16GetDatum(model->id);
	values[1] = PointerGetDatum(construct_array(texts, n, TEXTOID, -1, false,
												TYPALIGN_INT));
	pos_store_execute("UPDATE @.synchronize_queue SET before = 'null'"
					  " WHERE operation <> 'i' AND (txid, id) IN"
					  " (SELECT DISTINCT ON (local_key, local_key_text) txid, id"
					  " FROM @.synchronize_queue WHERE model = $1"
					  " AND coalesce(local_key::text, local_key_text) = ANY ($2)"
					  " ORDER BY local_key, local_key_text, txid, id)",
					  2, types, values, NULL);
}

/*
 * Reads the queued entries of a batch, as the owner of the queue, and leaves
 * the last image of every row in the models' sets, and in their keys.
 */
void
pos_entries_load(PosRun *run, PosBatch *batch)
{
	List	   *watched = watched_models(run);
	Oid			types[] = {INT8ARRAYOID, INT2ARRAYOID, INT2ARRAYOID};
	Datum		arguments[] = {
		pos_batch_txids(batch->ntxids, batch->txids),
		pos_config_ids(run->tree->models), pos_config_ids(watched)
	};
	uint64		n = pos_store_execute_as(POS_PLAN_MERGE,
										 "SELECT model, local_key, local_key_text,"
										 " operation, image,"
										 " CASE WHEN model = ANY ($3)"
										 " AND (before IS NULL OR json_typeof(before) <> 'null')"
										 " THEN CASE operation WHEN 'u' THEN before"
										 " WHEN 'd' THEN coalesce(before, image) END END"
										 " FROM @.synchronize_queue"
										 " WHERE txid = ANY ($1)"
										 " AND model = ANY ($2) ORDER BY txid, id",
										 3, types, arguments, NULL);
	SPITupleTable *entries = SPI_tuptable;
	MemoryContext old = MemoryContextSwitchTo(run->row);

	batch->nentries = (int) n;
	batch->order = MemoryContextAlloc(run->context, Max(n, 1) * sizeof(PosModel *));
	for (uint64 i = 0; i < n; i++)
	{
		PosModel   *model = entry_model(run, entries, i);

		pos_flight_pump(run->whole);
		MemoryContextReset(run->row);
		batch->order[i] = model->on_unknown == POS_IGNORE ? NULL : model;
		if (model->stage == NULL)
			pos_sync_report(run, model->problems);
		if (batch->order[i] != NULL)
			note_entry(run, entries, i);
	}
	for (uint64 i = 0; i < n; i++)
	{
		pos_flight_pump(run->whole);
		MemoryContextReset(run->row);
		if (batch->order[i] == NULL)
			continue;
		put_image(run, entries, i);
		put_before(run, entries, i);
	}
	if (watched != NIL && run->arrived_to > 0)
		put_later(run, batch, arguments[2]);
	MemoryContextSwitchTo(old);
	SPI_freetuptable(entries);
}
