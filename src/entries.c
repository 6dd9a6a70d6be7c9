/*
 * entries.c
 *		The queued entries of a batch: what happened to every row, the image that it
 *		was left with, and the one that it had before.
 */
#include "possync.h"

#include "catalog/pg_type.h"
#include "keyset.h"
#include "push.h"
#include "queue.h"
#include "store.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

static Datum
int8_array(int n, Datum *txids)
{
	return PointerGetDatum(construct_array(txids, n, INT8OID, 8,
										   FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
}

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
		row->before = NULL;
	}
	if (operation == 'u')
		row->flags |= POS_ROW_UPDATED;
	if (operation == 'd')
		row->flags |= POS_ROW_DELETED;
	else
		row->flags &= ~POS_ROW_DELETED;
	row->last = i;
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
	KeySetEntry *row = keyset_lookup(model->outgoing->keys->hash,
									 pos_key_string(key, model->local_int));
	Datum		values[3];
	bool		nulls[3] = {false};
	char	   *stranger;

	if (row->last != i && !run->in_order)
		return;
	values[2] = entry_value(entries, i, ENTRY_IMAGE);
	stranger = pos_queue_stranger(DatumGetTextPP(values[2]),
								  model->outgoing->labels);
	if (stranger != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_EXCEPTION),
				 errmsg("the row was queued with a column %s, which table \"%s\" does not have any more",
						stranger, model->name),
				 errhint("Give the table a column of that name until the row is pushed.")));
	values[0] = key;
	values[1] = Int64GetDatum(run->in_order ?
							  entry_flags(DatumGetChar(entry_value(entries, i,
																   ENTRY_OPERATION))) :
							  row->flags);
	pos_rowset_put(model->outgoing->images, values, nulls);
}

/*
 * Puts what the row of an entry was before into a set of its model, if the entry
 * is the row's first and it is to be asked for.
 */
static void
put_before(PosRun *run, SPITupleTable *entries, uint64 i)
{
	PosModel   *model = entry_model(run, entries, i);
	Datum		values[3];
	bool		nulls[3] = {false};
	KeySetEntry *row;

	values[2] = SPI_getbinval(entries->vals[i], entries->tupdesc, ENTRY_BEFORE,
							  &nulls[2]);
	if (nulls[2])
		return;
	values[0] = entry_key(model, entries, i);
	values[1] = Int64GetDatum(0);
	row = keyset_lookup(model->outgoing->keys->hash,
						pos_key_string(values[0], model->local_int));
	if (row->first == i)
		pos_rowset_put(model->outgoing->befores, values, nulls);
}

/* The models of which a push looks whether the remote has changed a row, too. */
static Datum
watched_ids(PosRun *run)
{
	List	   *models = NIL;
	ListCell   *lc;

	foreach(lc, run->tree->models)
	{
		PosModel   *model = lfirst(lc);

		if (model->on_conflict != POS_LOCAL_WINS && model->update_matched)
			models = lappend(models, model);
	}
	return pos_config_ids(models);
}

/*
 * Reads the queued entries of a batch, as the owner of the queue, and leaves
 * the last image of every row in the models' sets, and in their keys.
 */
void
pos_entries_load(PosRun *run, PosBatch *batch)
{
	Oid			types[] = {INT8ARRAYOID, INT2ARRAYOID, INT2ARRAYOID};
	Datum		arguments[] = {
		int8_array(batch->ntxids, batch->txids),
		pos_config_ids(run->tree->models), watched_ids(run)
	};
	uint64		n = pos_store_execute("SELECT model, local_key, local_key_text,"
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
	MemoryContextSwitchTo(old);
	SPI_freetuptable(entries);
}
