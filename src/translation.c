/*
 * translation.c
 *		Local key <-> remote key: the only door to synchronize_translation.
 *
 * Keys are looked up in a hash table per model and, where that does not know
 * them, in the table (links.c).  The hash table remembers what was found and what was
 * added in this run, up to a limit of memory for all models together; beyond
 * the limit it just stops learning.  New translations are written in batches
 * and must be flushed before they can be found outside the hash table.
 *
 * Rows that are made in the order of their keys, both of them integers, are
 * remembered by pairs.c instead, which needs a tenth of the memory.
 *
 * A first load leaves the indexes alone and has them built at the end, see
 * rebuild.c.  As long as it does, everything that it adds is remembered, so what
 * cannot be found by its key at the source is not there.  Whoever looks in
 * another way, and the first that cannot be remembered, has them built at once.
 *
 * A dry run writes nothing.  It keeps the rows it would have created in the
 * hash tables only, without the limit.
 */
#include "possync.h"

#include "access/table.h"
#include "bulk.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "links.h"
#include "pairs.h"
#include "rebuild.h"
#include "run.h"
#include "store.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

/* Memory for the hash tables of one run, in bytes */
#define CACHE_LIMIT ((Size) 32 * 1024 * 1024)

/* So many, or bytes of them, a push writes only when the remote has got its rows */
#define LATER_ROWS	20000
#define LATER_BYTES	(4 * 1024 * 1024)

/* Known of a translation in the hash table beside what run.h defines */
#define KNOWN_PENDING	0x80	/* its row would be made, were it not a dry
								 * run */
#define KNOWN_REMOVED	0x40	/* nothing is known any more, whatever the
								 * pairs say */

typedef struct TranslationEntry
{
	Datum		from;			/* key at the source */
	Datum		to;				/* key at the target */
	char		status;
	uint8		flags;
} TranslationEntry;

/* The hash table's private data is the model, which knows the key's form. */
static uint32
hash_key(PosModel *model, Datum key)
{
	if (model->from_int)
		return hash_combine(murmurhash32((uint32) (DatumGetInt64(key) >> 32)),
							murmurhash32((uint32) DatumGetInt64(key)));
	return DatumGetUInt32(hash_any((unsigned char *) VARDATA_ANY(DatumGetPointer(key)),
								   VARSIZE_ANY_EXHDR(DatumGetPointer(key))));
}

static bool
equal_keys(PosModel *model, Datum a, Datum b)
{
	if (model->from_int)
		return a == b;
	return VARSIZE_ANY_EXHDR(DatumGetPointer(a)) == VARSIZE_ANY_EXHDR(DatumGetPointer(b)) &&
		memcmp(VARDATA_ANY(DatumGetPointer(a)), VARDATA_ANY(DatumGetPointer(b)),
			   VARSIZE_ANY_EXHDR(DatumGetPointer(a))) == 0;
}

#define SH_PREFIX translation
#define SH_ELEMENT_TYPE TranslationEntry
#define SH_KEY_TYPE Datum
#define SH_KEY from
#define SH_HASH_KEY(tb, key) hash_key((PosModel *) (tb)->private_data, key)
#define SH_EQUAL(tb, a, b) equal_keys((PosModel *) (tb)->private_data, a, b)
#define SH_SCOPE static inline
#define SH_DECLARE
#define SH_DEFINE
#include "lib/simplehash.h"

typedef struct PosTranslations
{
	Relation	rel;
	PosLinks   *links;			/* what the table knows */
	MemoryContext context;		/* of the hash tables */
	PosBulk    *bulk;
	bool		forgotten;		/* some are neither remembered nor written */
	bool		rebuilds;		/* the indexes lack what is remembered ... */
	bool		filled[POS_LINK_INDEXES];	/* ... these do */
	int64		added;
	int64		pending;		/* the next key without meaning, in a dry run */
} PosTranslations;

/* Opens the table for one run; no translation may be asked for before. */
void
pos_translation_open(PosRun *run)
{
	PosTranslations *t = palloc0(sizeof(PosTranslations));

	t->rel = table_open(pos_store_relid("synchronize_translation"),
						RowExclusiveLock);
	t->links = pos_links_open(t->rel);
	t->context = AllocSetContextCreate(CurrentMemoryContext,
									   "possync translations",
									   ALLOCSET_DEFAULT_SIZES);
	t->pending = PG_INT64_MIN;
	run->translations = t;
}

/*
 * Writes what is left.  Of the indexes that were left alone those are built that
 * lack something; nobody may have them open.
 */
static void
close_bulk(PosTranslations *t)
{
	if (t->bulk == NULL)
		return;
	for (int i = 0; i < POS_LINK_INDEXES && t->rebuilds; i++)
		if (!t->filled[i])
			pos_bulk_keep(t->bulk, pos_links_index(i));
	pos_bulk_close(t->bulk);
	t->bulk = NULL;
	t->rebuilds = false;
}

/* Writes what is left and closes the table. */
void
pos_translation_close(PosRun *run)
{
	PosTranslations *t = run->translations;

	pos_links_leave(t->links);
	close_bulk(t);
	pos_links_close(t->links);
	MemoryContextDelete(t->context);
	table_close(t->rel, NoLock);
	run->translations = NULL;
}

/*
 * Makes ready for a model of the tree, once the forms of its keys are known,
 * and finds out whether it has any translation at all, and up to which key: most of
 * what is looked for is new and comes after that.
 *
 * A pull has the model for itself.  During a push somebody else may link a row: that
 * it then has two is seen by the unique indexes.
 */
void
pos_translation_prepare(PosRun *run, PosModel *model)
{
	PosTranslations *t = run->translations;

	model->from_int = run->push ? model->local_int : model->remote_int;
	model->to_int = run->push ? model->remote_int : model->local_int;
	model->translations = translation_create(t->context, 64, model);
	model->pairs = NULL;
	model->covered = !run->push && model->update_matched &&
		!pos_links_has_any(t->links, model, POS_LINK_GONE);
	model->has_translations =
		pos_links_has_any(t->links, model, pos_links_index_of(model, true));
	model->last_linked = model->from_int ?
		pos_links_last(t->links, model, pos_links_index_of(model, !run->push)) :
		PG_INT64_MAX;
	if (pos_links_has_any(t->links, model,
						  model->remote_int ? POS_LINK_REMOTE_TEXT : POS_LINK_REMOTE))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the key of remote table %s has changed its type since it was first synchronized",
						model->remote),
				 errhint("Remove the model with possync_remove_model('%s', forget => true) and add it again.",
						 model->name)));
}

static Datum
copy_key(PosTranslations *t, Datum key, bool is_int)
{
	MemoryContext old;

	if (is_int)
		return key;
	old = MemoryContextSwitchTo(t->context);
	key = PointerGetDatum(PG_DETOAST_DATUM_COPY(key));
	MemoryContextSwitchTo(old);
	return key;
}

/*
 * Remembers a translation in the hash table; returns NULL where there is no
 * room.
 */
static TranslationEntry *
remember(PosRun *run, PosModel *model, Datum from, Datum to, uint8 flags)
{
	PosTranslations *t = run->translations;
	TranslationEntry *entry;
	bool		found;

	if (!run->dry &&
		MemoryContextMemAllocated(t->context, false) > CACHE_LIMIT)
		return NULL;
	from = copy_key(t, from, model->from_int);
	entry = translation_insert(model->translations, from, &found);
	entry->to = copy_key(t, to, model->to_int);
	entry->flags = flags;
	return entry;
}

/* Finds a translation in the hash table or in the table. */
static bool
find(PosRun *run, PosModel *model, Datum from, Datum *to, uint8 *known)
{
	PosTranslations *t = run->translations;
	TranslationEntry *entry = translation_lookup(model->translations, from);
	PosLink		link;

	if (entry != NULL)
	{
		*to = entry->to;
		*known = entry->flags;
		return (entry->flags & KNOWN_REMOVED) == 0;
	}
	if (model->pairs != NULL)
	{
		int64		pair;

		if (pos_pairs_find(model->pairs, DatumGetInt64(from), &pair))
		{
			*to = Int64GetDatum(pair);
			*known = POS_KNOWN_MADE;
			return true;
		}
	}
	if (!model->has_translations ||
		(model->from_int && DatumGetInt64(from) > model->last_linked) ||
		!pos_links_find(t->links, model, !run->push, from, &link))
		return false;
	*to = link.other;
	*known = (link.matched ? POS_KNOWN_MATCHED : 0) |
		(link.gone ? POS_KNOWN_GONE : 0);
	entry = remember(run, model, from, *to, *known);
	if (entry != NULL)
		*to = entry->to;
	return true;
}

/*
 * Finds the target's key of a source's key, and what is known of its row.  The
 * key found stays valid as long as the run, or until the next look-up if it is
 * a text.
 */
PosFound
pos_translation_find(PosRun *run, PosModel *model, Datum from, Datum *to,
					 uint8 *known)
{
	*known = 0;
	if (!find(run, model, from, to, known))
		return POS_MISSING;
	return *known & KNOWN_PENDING ? POS_PENDING : POS_FOUND;
}

/* Returns the run in which a row of the source was linked; 0 if it is not. */
int32
pos_translation_run(PosRun *run, PosModel *model, Datum from)
{
	PosLink		link;

	pos_translation_settle(run);
	if (!model->has_translations ||
		!pos_links_find(run->translations->links, model, !run->push, from, &link))
		return 0;
	return link.run;
}

/* Whether a row of the target is linked with any of the source; after a flush. */
bool
pos_translation_is_linked(PosRun *run, PosModel *model, Datum to)
{
	PosLink		link;

	pos_translation_settle(run);
	return model->has_translations &&
		pos_links_find(run->translations->links, model, run->push, to, &link);
}

/*
 * Whether there are not many more translations than this run has added.  What a
 * failed first load has left behind is passed over.
 */
static bool
had_few(void)
{
	Oid			types[] = {INT8OID};
	Datum		values[] = {Int64GetDatum(2 * POS_REBUILD_ROWS)};

	return pos_store_execute("SELECT 1 FROM @.synchronize_translation"
							 " OFFSET $1 LIMIT 1", 1, types, values, NULL) == 0;
}

/* Whether nothing of the user's that may look at a table runs in a pull. */
static bool
is_plain(PosTree *tree)
{
	ListCell   *lc;

	foreach(lc, tree->models)
	{
		Relation	rel = ((PosModel *) lfirst(lc))->rel;

		if (rel != NULL && (pos_prove_has_code(rel) || !pos_rebuild_is_plain(rel)))
			return false;
	}
	return true;
}

/* Opens the table for inserting, if that has not been done. */
static void
open_bulk(PosRun *run)
{
	PosTranslations *t = run->translations;
	MemoryContext old;

	if (t->bulk != NULL)
		return;
	old = MemoryContextSwitchTo(run->context);
	t->bulk = pos_bulk_open(t->rel, 0, NULL);
	if (run->push)
		pos_bulk_gather(t->bulk, LATER_ROWS, LATER_BYTES);
	MemoryContextSwitchTo(old);
}

/*
 * Leaves the indexes alone from here on, if this is a first load and nobody uses
 * them.
 */
static void
consider_rebuild(PosRun *run)
{
	PosTranslations *t = run->translations;

	pos_bulk_flush(t->bulk);
	if (t->rebuilds || run->push || run->careful || pos_prove_has_code(t->rel) ||
		!is_plain(run->tree) || !had_few())
		return;
	pos_links_leave(t->links);
	t->rebuilds = pos_bulk_rebuild(t->bulk);
	memset(t->filled, false, sizeof(t->filled));
	pos_links_return(t->links);
}

/* Many rows of an empty table are about to be linked. */
void
pos_translation_expect(PosRun *run)
{
	open_bulk(run);
	consider_rebuild(run);
}

/* Remembers what this run added; returns false where there is no room. */
static bool
remember_added(PosRun *run, PosModel *model, Datum remote, Datum local,
			   bool created)
{
	PosTranslations *t = run->translations;
	Datum		from = run->push ? local : remote;
	Datum		to = run->push ? remote : local;

	if (created && model->from_int && model->to_int &&
		MemoryContextMemAllocated(t->context, false) <= CACHE_LIMIT)
	{
		if (model->pairs == NULL)
			model->pairs = pos_pairs_create(t->context);
		if (pos_pairs_put(model->pairs, DatumGetInt64(from), DatumGetInt64(to)))
			return true;
	}
	return remember(run, model, from, to,
					created ? POS_KNOWN_MADE : POS_KNOWN_MATCHED) != NULL;
}

/*
 * Links a remote key with a local one; created tells why.  In a dry run the
 * local key of a row that would be created is not looked at.
 */
void
pos_translation_add(PosRun *run, PosModel *model, Datum remote, Datum local,
					bool created)
{
	PosTranslations *t = run->translations;
	Datum		values[POS_NCOLS];
	bool		nulls[POS_NCOLS];

	if (run->dry)
	{
		if (created)
			local = model->local_int ? Int64GetDatum(t->pending++) :
				CStringGetTextDatum("");
		remember(run, model, run->push ? local : remote,
				 run->push ? remote : local,
				 created ? KNOWN_PENDING : POS_KNOWN_MATCHED);
		return;
	}

	memset(nulls, false, sizeof(nulls));
	values[POS_COL_MODEL] = Int16GetDatum(model->id);
	values[POS_COL_DECISION] = CharGetDatum(created ? 'c' : 'm');
	values[POS_COL_RUN] = Int32GetDatum(run->id);
	values[POS_COL_REMOTE] = values[POS_COL_REMOTE_TEXT] = remote;
	values[POS_COL_LOCAL] = values[POS_COL_LOCAL_TEXT] = local;
	nulls[POS_COL_REMOTE] = !model->remote_int;
	nulls[POS_COL_REMOTE_TEXT] = model->remote_int;
	nulls[POS_COL_LOCAL] = !model->local_int;
	nulls[POS_COL_LOCAL_TEXT] = model->local_int;
	nulls[POS_COL_GONE] = true;

	open_bulk(run);
	t->filled[pos_links_index_of(model, true)] = true;
	t->filled[pos_links_index_of(model, false)] = true;
	if (pos_bulk_put(t->bulk, values, nulls))
		pos_bulk_flush(t->bulk);
	model->has_translations = true;
	if (++t->added == POS_REBUILD_ROWS)
		consider_rebuild(run);
	if (!remember_added(run, model, remote, local, created))
	{
		pos_translation_settle(run);
		t->forgotten = true;
		if (model->from_int)
			model->last_linked = Max(model->last_linked,
									 DatumGetInt64(run->push ? local : remote));
	}
}

/* Hides a pair, which cannot be taken out. */
static void
forget_pair(PosTranslations *t, PosModel *model, Datum from)
{
	TranslationEntry *entry;
	int64		to;
	bool		found;

	if (!pos_pairs_find(model->pairs, DatumGetInt64(from), &to))
		return;
	entry = translation_insert(model->translations, from, &found);
	entry->to = Int64GetDatum(to);
	entry->flags = KNOWN_REMOVED;
}

/*
 * Unlinks a row that was linked in this run and then could not be written
 * after all.
 */
void
pos_translation_remove(PosRun *run, PosModel *model, Datum from)
{
	Oid			types[] = {INT2OID, model->from_int ? INT8OID : TEXTOID};
	Datum		values[] = {Int16GetDatum(model->id), from};
	const char *sql;

	translation_delete(model->translations, from);
	if (run->dry)
		return;
	pos_translation_settle(run);
	pos_translation_flush(run);
	if (model->pairs != NULL)
		forget_pair(run->translations, model, from);
	if (run->push)
		sql = model->from_int ?
			"DELETE FROM @.synchronize_translation"
			" WHERE model = $1 AND local_key = $2" :
			"DELETE FROM @.synchronize_translation"
			" WHERE model = $1 AND local_key_text = $2";
	else
		sql = model->from_int ?
			"DELETE FROM @.synchronize_translation"
			" WHERE model = $1 AND remote_key = $2" :
			"DELETE FROM @.synchronize_translation"
			" WHERE model = $1 AND remote_key_text = $2";
	pos_store_execute(sql, 2, types, values, NULL);
}

/* Notes that the counterpart of a row has been deleted, or is there again. */
void
pos_translation_set_gone(PosRun *run, PosModel *model, Datum remote, bool gone)
{
	Oid			types[] = {INT2OID, model->remote_int ? INT8OID : TEXTOID, INT4OID};
	Datum		values[] = {Int16GetDatum(model->id), remote, Int32GetDatum(run->id)};
	const char *nulls = gone ? "   " : "  n";

	pos_translation_settle(run);
	pos_store_execute(model->remote_int ?
					  "UPDATE @.synchronize_translation SET gone = $3"
					  " WHERE model = $1 AND remote_key = $2"
					  " AND (gone IS NULL) <> ($3 IS NULL)" :
					  "UPDATE @.synchronize_translation SET gone = $3"
					  " WHERE model = $1 AND remote_key_text = $2"
					  " AND (gone IS NULL) <> ($3 IS NULL)", 3, types, values, nulls);
}

/* Writes the translations added so far. */
void
pos_translation_flush(PosRun *run)
{
	if (run->translations->bulk != NULL)
		pos_bulk_flush(run->translations->bulk);
}

/* Sees to it that all that was added can be found. */
void
pos_translation_publish(PosRun *run)
{
	if (run->translations->forgotten)
		pos_translation_flush(run);
	run->translations->forgotten = false;
}

/* Completes the indexes, so that statements can find what was added. */
void
pos_translation_settle(PosRun *run)
{
	PosTranslations *t = run->translations;

	if (!t->rebuilds)
		return;
	pos_links_leave(t->links);
	close_bulk(t);
	pos_links_return(t->links);
}
