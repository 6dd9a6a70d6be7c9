/*
 * outgoing.c
 *		Which rows a batch has to send: those queued by its transactions, and
 *		those that they refer to and the remote does not have.
 *
 * A row changed several times within a batch is sent once, as it was left,
 * unless the batch is sent in order.  Entries that wait in quarantine hold back
 * every transaction that touches the same rows or refers to rows that they would
 * have made.
 */
#include "possync.h"

#include "catalog/pg_type.h"
#include "image.h"
#include "keyset.h"
#include "miscadmin.h"
#include "push.h"
#include "sql.h"
#include "store.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"

static PosKeySet *
make_set(void)
{
	PosKeySet  *set = palloc(sizeof(PosKeySet));

	set->hash = keyset_create(CurrentMemoryContext, 64, NULL);
	return set;
}

/* Adds a key; returns false if it was there. */
static bool
add_key(PosRun *run, PosKeySet *set, const char *key)
{
	bool		found;
	KeySetEntry *entry = keyset_insert(set->hash, unconstify(char *, key), &found);

	if (!found)
	{
		entry->key = MemoryContextStrdup(run->context, key);
		entry->taken = false;
		entry->befores = NIL;
		entry->unforeseen = false;
	}
	return !found;
}

static bool
has_key(PosKeySet *set, const char *key)
{
	return keyset_lookup(set->hash, unconstify(char *, key)) != NULL;
}

/*
 * Returns the canonical local key of the row that a reference of a staged row
 * points to; isnull if to none.
 */
Datum
pos_outgoing_parent(PosReference *reference, Datum *values, bool *nulls,
					bool *isnull)
{
	Oid			types[INDEX_MAX_KEYS];
	Datum		columns[INDEX_MAX_KEYS];
	Datum		key;

	*isnull = false;
	for (int i = 0; i < reference->nfields; i++)
	{
		PosField   *field = reference->fields[i];

		if (nulls[field->staged])
		{
			*isnull = true;
			return (Datum) 0;
		}
		types[reference->parts[i]] = field->type;
		columns[reference->parts[i]] = values[field->staged];
	}
	key = pos_key_from_values(reference->nfields, types, columns);
	if (reference->nfields == 1 && reference->parent->local_int !=
		pos_key_is_integer(reference->fields[0]->base))
		key = pos_key_from_string(pos_key_string(key, !reference->parent->local_int),
								  reference->parent->local_int);
	return key;
}

/*
 * Whether a row got its key in a batch that was never confirmed: it may be at
 * the remote or not.
 */
static bool
is_unsure(PosRun *run, PosModel *model, Datum key)
{
	return run->open != NIL &&
		list_member_int(run->open, pos_translation_run(run, model, key));
}

/* Sees to it that what a row refers to is sent too, if it is not there. */
static void
need_parents(PosRun *run, PosModel *model, Datum *values, bool *nulls)
{
	ListCell   *lc;

	foreach(lc, model->references)
	{
		PosReference *reference = lfirst(lc);
		PosModel   *parent = reference->parent;
		bool		isnull;
		Datum		key = pos_outgoing_parent(reference, values, nulls, &isnull);
		Datum		remote;
		uint8		known;
		char	   *string;

		if (isnull)
			continue;
		if (parent->stage == NULL)
			pos_sync_report(run, parent->problems);
		string = pos_key_string(key, parent->local_int);
		if (has_key(parent->outgoing->keys, string))
			continue;			/* it comes along */
		if (pos_translation_find(run, parent, key, &remote, &known) == POS_FOUND &&
			!is_unsure(run, parent, key))
			continue;
		if (add_key(run, parent->outgoing->keys, string))
		{
			MemoryContext old = MemoryContextSwitchTo(run->context);

			parent->outgoing->needed = lappend(parent->outgoing->needed,
											   pstrdup(string));
			MemoryContextSwitchTo(old);
		}
	}
}

/* Takes one row into the batch. */
static void
take_row(PosRun *run, PosModel *model, Datum *values, bool *nulls)
{
	int			flags = DatumGetInt64(values[POS_STAGE_OLD]);
	char	   *key = pos_key_string(values[POS_STAGE_LOCAL], model->local_int);
	KeySetEntry *row = keyset_lookup(model->outgoing->keys->hash, key);
	Datum		remote;
	uint8		known;

	pos_sync_report(run, model->problems);
	if (is_unsure(run, model, values[POS_STAGE_LOCAL]))
		flags |= POS_ROW_UNSURE;
	if ((flags & POS_ROW_DELETED) == 0)
	{
		if (pos_translation_find(run, model, values[POS_STAGE_LOCAL], &remote,
								 &known) == POS_MISSING)
			flags |= row->taken ? 0 : POS_ROW_UNKNOWN;
		else if ((flags & POS_ROW_NEW) && !(flags & POS_ROW_UNSURE))
			flags |= POS_ROW_THERE;
		row->taken = true;
		need_parents(run, model, values, nulls);
	}
	values[POS_STAGE_OLD] = Int64GetDatum(flags);
	values[POS_STAGE_N] = Int64GetDatum(pos_rowset_count(model->outgoing->rows) + 1);
	nulls[POS_STAGE_N] = false;
	nulls[POS_STAGE_REMOTE] = true;
	pos_rowset_put(model->outgoing->rows, values, nulls);
}

/* Finds out whether any transaction is held. */
static void
look_for_held(PosRun *run)
{
	Oid			types[] = {INT8OID, INT8OID};
	Datum		values[] = {
		Int64GetDatum(run->whole->first), Int64GetDatum(run->whole->last)
	};

	run->held = pos_store_execute_as(POS_PLAN_LOOK_UP,
									 "SELECT 1 FROM @.synchronize_held"
									 " WHERE txid BETWEEN $1 AND $2 LIMIT 1",
									 2, types, values, NULL) > 0;
}

/*
 * Returns one of some keys of a model's rows, as texts, that is of a row that held
 * transactions changed, or NULL.  An entry may have left the queue since it was held.
 */
static char *
find_held(PosModel *model, int nkeys, Datum *keys)
{
	Oid			types[] = {INT2OID, TEXTARRAYOID};
	Datum		values[] = {
		Int16GetDatum(model->id),
		PointerGetDatum(construct_array(keys, nkeys, TEXTOID, -1, false, TYPALIGN_INT))
	};

	if (pos_store_execute_as(POS_PLAN_LOOK_UP,
							 "SELECT k.key FROM unnest($2) k (key), LATERAL"
							 " (SELECT 1 FROM @.synchronize_held h"
							 " JOIN @.synchronize_queue q"
							 " ON q.txid = h.txid AND q.id = h.id"
							 " WHERE h.model = $1 AND h.local_key = k.key LIMIT 1) h"
							 " LIMIT 1", 2, types, values, NULL) == 0)
		return NULL;
	return SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1);
}

/* Errors if the batch changes a row that waits. */
static void
check_queued(PosRun *run, PosModel *model)
{
	keyset_hash *hash = model->outgoing->keys->hash;
	keyset_iterator i;
	KeySetEntry *row;
	Datum	   *keys;
	int			n = 0;
	char	   *held;

	if (!run->held || hash->members == 0)
		return;
	keys = palloc(hash->members * sizeof(Datum));
	keyset_start_iterate(hash, &i);
	while ((row = keyset_iterate(hash, &i)) != NULL)
		keys[n++] = CStringGetTextDatum(row->key);
	held = find_held(model, n, keys);
	if (held != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_TRIGGERED_ACTION_EXCEPTION),
				 errmsg("an earlier change of row %s of \"%s\" waits in quarantine",
						held, model->name)));
}

/* Errors if the batch refers to a row that waits, and that the remote does not have. */
static void
check_needed(PosRun *run, PosModel *model, List *needed)
{
	Datum	   *keys;
	char	   *held;
	ListCell   *lc;

	if (!run->held)
		return;
	keys = palloc(list_length(needed) * sizeof(Datum));
	foreach(lc, needed)
		keys[foreach_current_index(lc)] = CStringGetTextDatum(lfirst(lc));
	held = find_held(model, list_length(needed), keys);
	if (held != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_TRIGGERED_ACTION_EXCEPTION),
				 errmsg("it refers to row %s of \"%s\", which waits in quarantine",
						held, model->name)));
}

/* Errors if the caller must not read a table. */
static void
check_readable(PosModel *model)
{
	if (pg_class_aclcheck(model->relid, GetUserId(), ACL_SELECT) != ACLCHECK_OK &&
		pg_attribute_aclcheck_all(model->relid, GetUserId(), ACL_SELECT,
								  ACLMASK_ALL) != ACLCHECK_OK)
		aclcheck_error(ACLCHECK_NO_PRIV, OBJECT_TABLE,
					   get_rel_name(model->relid));
}

/*
 * Keeps a row as the remote may have it.  One that refers to what the remote does
 * not have is not there; and if that is the row as it was synchronized last, it was
 * so in another way, and nothing can be expected.
 */
static void
keep_before(PosRun *run, PosModel *model, Datum *values, bool *nulls)
{
	int			natts = model->stage->natts;
	KeySetEntry *row = keyset_lookup(model->outgoing->keys->hash,
									 pos_key_string(values[POS_STAGE_LOCAL],
													model->local_int));
	PosBefore  *before;
	MemoryContext old;
	ListCell   *lc;

	foreach(lc, model->references)
	{
		PosReference *reference = lfirst(lc);
		bool		isnull;
		Datum		key = pos_outgoing_parent(reference, values, nulls, &isnull);
		Datum		remote;
		uint8		known;

		if (!isnull && pos_translation_find(run, reference->parent, key, &remote,
											&known) != POS_FOUND)
		{
			row->unforeseen = row->unforeseen || row->befores == NIL;
			return;
		}
	}
	old = MemoryContextSwitchTo(run->context);
	before = palloc(sizeof(PosBefore));
	before->values = palloc(natts * sizeof(Datum));
	before->nulls = palloc(natts * sizeof(bool));
	memcpy(before->nulls, nulls, natts * sizeof(bool));
	for (int i = POS_STAGE_FIRST; i < natts; i++)
	{
		Form_pg_attribute attribute = TupleDescAttr(model->stage, i);

		if (!nulls[i])
			before->values[i] = datumCopy(values[i], attribute->attbyval,
										  attribute->attlen);
	}
	row->befores = lappend(row->befores, before);
	MemoryContextSwitchTo(old);
}

/*
 * Returns as what the remote may have a row, of PosBefore, NIL if nobody has to
 * ask; only once.
 */
List *
pos_outgoing_befores(PosModel *model, Datum local)
{
	KeySetEntry *row = keyset_lookup(model->outgoing->keys->hash,
									 pos_key_string(local, model->local_int));
	List	   *befores;

	if (row == NULL || row->unforeseen)
		return NIL;
	befores = row->befores;
	row->befores = NIL;
	return befores;
}

/* What becomes of a row that was read */
typedef void (*Take) (PosRun *run, PosModel *model, Datum *values, bool *nulls);

/*
 * Reads rows of a query, as the owner of the table: local key, flags, columns;
 * and takes them.
 */
static void
take_rows(PosRun *run, PosModel *model, const char *sql, Take take)
{
	PosCursor  *cursor;
	Datum	   *values = palloc(model->stage->natts * sizeof(Datum));
	bool	   *nulls = palloc(model->stage->natts * sizeof(bool));
	HeapTuple	tuple;
	TupleDesc	desc;
	Oid			user;
	int			context;

	pos_sql_as_owner(model->rel, &user, &context);
	cursor = pos_sql_open(sql, false);
	while ((tuple = pos_sql_peek(cursor, &desc)) != NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(run->row);

		pos_flight_pump(run->whole);
		MemoryContextReset(run->row);
		memset(nulls, true, model->stage->natts * sizeof(bool));
		values[POS_STAGE_LOCAL] = SPI_getbinval(tuple, desc, 1,
												&nulls[POS_STAGE_LOCAL]);
		values[POS_STAGE_OLD] = SPI_getbinval(tuple, desc, 2,
											  &nulls[POS_STAGE_OLD]);
		for (int i = 0; i < model->nwritten; i++)
			values[POS_STAGE_FIRST + i] =
				SPI_getbinval(tuple, desc, i + 3, &nulls[POS_STAGE_FIRST + i]);
		take(run, model, values, nulls);
		MemoryContextSwitchTo(old);
		pos_sql_take(cursor);
	}
	pos_sql_close(cursor);
	SetUserIdAndSecContext(user, context);
	pfree(values);
	pfree(nulls);
}

/* Returns an empty set for the images of a model. */
static PosRowset *
make_images(PosModel *model)
{
	TupleDesc	desc = CreateTemplateTupleDesc(3);

	TupleDescInitEntry(desc, 1, "key", model->local_int ? INT8OID : TEXTOID, -1, 0);
	TupleDescInitEntry(desc, 2, "flags", INT8OID, -1, 0);
	TupleDescInitEntry(desc, 3, "image", JSONOID, -1, 0);
	return pos_rowset_create("possync_images", desc);
}

/*
 * Takes the rows of images.  They are turned into rows as the
 * owner of the table, since types may have code of their own.
 */
static void
take_images(PosRun *run, PosModel *model, PosRowset *images, Take take)
{
	Datum	   *values = palloc(model->stage->natts * sizeof(Datum));
	bool	   *nulls = palloc(model->stage->natts * sizeof(bool));
	PosImageReader *reader;
	Datum	   *image;
	bool	   *imagenulls;
	Oid			user;
	int			context;

	pos_sql_as_owner(model->rel, &user, &context);
	reader = pos_image_prepare(model);
	pos_rowset_rewind(images);
	while (pos_rowset_next(images, &image, &imagenulls))
	{
		MemoryContext old = MemoryContextSwitchTo(run->row);

		pos_flight_pump(run->whole);
		MemoryContextReset(run->row);
		memset(nulls, true, model->stage->natts * sizeof(bool));
		values[POS_STAGE_LOCAL] = image[0];
		values[POS_STAGE_OLD] = image[1];
		nulls[POS_STAGE_LOCAL] = nulls[POS_STAGE_OLD] = false;
		pos_image_read(reader, image[2], values, nulls);
		take(run, model, values, nulls);
		MemoryContextSwitchTo(old);
	}
	SetUserIdAndSecContext(user, context);
}

/* Takes the queued rows of a model, and what they were before. */
static void
take_queued(PosRun *run, PosModel *model)
{
	if (pos_rowset_count(model->outgoing->images) > 0)
		take_images(run, model, model->outgoing->images, take_row);
	if (pos_rowset_count(model->outgoing->befores) > 0)
		take_images(run, model, model->outgoing->befores, keep_before);
	pos_rowset_free(model->outgoing->images);
	pos_rowset_free(model->outgoing->befores);
	model->outgoing->images = model->outgoing->befores = NULL;
}

/* Takes the rows of a model that others need.  Returns whether there were any. */
static bool
take_needed(PosRun *run, PosModel *model)
{
	List	   *needed = model->outgoing->needed;
	PosRowset  *keys;
	Datum	   *values;
	bool	   *nulls;
	StringInfoData sql;
	ListCell   *lc;

	if (needed == NIL)
		return false;
	check_needed(run, model, needed);
	check_readable(model);
	model->outgoing->needed = NIL;
	pos_entries_overtake(model, needed);
	values = palloc0(model->stage->natts * sizeof(Datum));
	nulls = palloc(model->stage->natts * sizeof(bool));
	keys = pos_rowset_create("possync_needed", model->stage);
	foreach(lc, needed)
	{
		memset(nulls, true, model->stage->natts * sizeof(bool));
		values[POS_STAGE_LOCAL] = pos_key_from_string(lfirst(lc), model->local_int);
		nulls[POS_STAGE_LOCAL] = false;
		pos_key_to_columns(model, values[POS_STAGE_LOCAL],
						   &values[POS_STAGE_FIRST]);
		memset(&nulls[POS_STAGE_FIRST], false, model->nkey * sizeof(bool));
		pos_rowset_put(keys, values, nulls);
	}

	initStringInfo(&sql);
	appendStringInfo(&sql, "SELECT r.lkey, %d::int8", POS_ROW_NEEDED);
	for (int i = 0; i < model->nwritten; i++)
		appendStringInfo(&sql, ", t.%s",
						 quote_identifier(model->written[i]->name));
	appendStringInfo(&sql, " FROM possync_needed r JOIN %s t ON ",
					 model->table_sql);
	for (int i = 0; i < model->nkey; i++)
		appendStringInfo(&sql, "%st.%s %s r.w%d", i > 0 ? " AND " : "",
						 quote_identifier(model->key[i]->name),
						 pos_sql_equality(model->key[i]), i + 1);
	pos_rowset_publish(keys);
	take_rows(run, model, sql.data, take_row);
	pos_rowset_free(keys);
	return true;
}

/*
 * Gathers the rows of a batch into the models' outgoing parts, and the models
 * that have any, parents first.
 */
void
pos_outgoing_collect(PosRun *run, PosBatch *batch)
{
	bool		more = true;
	ListCell   *lc;

	foreach(lc, run->tree->models)
	{
		PosModel   *model = lfirst(lc);
		PosOutgoing *outgoing = model->outgoing = palloc0(sizeof(PosOutgoing));

		outgoing->rows = pos_rowset_create(psprintf("possync_outgoing_%d",
													model->id), model->stage);
		outgoing->images = make_images(model);
		outgoing->befores = make_images(model);
		outgoing->labels = model->rel != NULL ? pos_image_labels(model->rel) : NIL;
		outgoing->keys = make_set();
	}
	pos_batch_load_open(run);
	look_for_held(run);
	pos_entries_load(run, batch);
	foreach(lc, run->tree->models)
		check_queued(run, lfirst(lc));
	foreach(lc, run->tree->models)
		take_queued(run, lfirst(lc));

	/* a row taken may need others in turn, in a circle at worst */
	while (more)
	{
		more = false;
		foreach(lc, run->tree->models)
			more = take_needed(run, lfirst(lc)) || more;
	}

	batch->models = NIL;
	foreach(lc, run->tree->models)
		if (pos_rowset_count(((PosModel *) lfirst(lc))->outgoing->rows) > 0)
		batch->models = lappend(batch->models, lfirst(lc));
}

/* Frees the rows gathered. */
void
pos_outgoing_free(PosRun *run)
{
	ListCell   *lc;

	foreach(lc, run->tree->models)
	{
		PosModel   *model = lfirst(lc);

		if (model->outgoing != NULL)
			pos_rowset_free(model->outgoing->rows);
		model->outgoing = NULL;
	}
}
