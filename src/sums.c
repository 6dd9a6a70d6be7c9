/*
 * sums.c
 *		What the rows here add up to, where keys are integers on both sides.
 *
 * The query of digest.c joins each row with its link, and what it refers to with
 * others.  To hash a million rows twice so costs four times as much as to read them;
 * but the links fit in memory, compressed, and are found in the order of the keys as
 * good as for nothing.  So the rows come past once, and are hashed here as
 * hash_record_extended does it.
 *
 * If the links need too much memory, or anything has another form, the answer is the
 * query's.  Both see the same rows, and come to the same sums.
 */
#include "possync.h"

#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "executor/tuptable.h"
#include "miscadmin.h"
#include "pairs.h"
#include "port/pg_bswap.h"
#include "sql.h"
#include "store.h"
#include "sums.h"
#include "tcop/dest.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rls.h"
#include "utils/snapmgr.h"
#include "utils/typcache.h"

/* Memory for links, in bytes: some six million */
#define LINKS_LIMIT		((Size) 32 * 1024 * 1024)

/* How a column of a row is hashed */
typedef struct Column
{
	PosPairs   *links;			/* of what it refers to, or NULL */
	PosHashed	hashed;
	bool		integer;		/* POS_HASHED_SENT: eight bytes */
	FmgrInfo   *hash;			/* POS_HASHED_VALUE */
	FmgrInfo	send;			/* POS_HASHED_SENT */
} Column;

/* The sums of one model on their way */
typedef struct Summing
{
	DestReceiver receiver;
	PosRun	   *run;
	PosModel   *model;
	PosDigest  *digest;
	PosDigestSum *sums;			/* of every bucket */
	MemoryContext context;		/* of the links */
	MemoryContext row;			/* reset for every row */

	/* links, as they are read */
	PosPairs   *links;			/* local key to remote key; NULL: not wanted */
	bool		own;			/* the model's: its buckets are counted */
	bool		full;			/* there was no room for all of them */
	int			nopen;			/* batches that a push has not heard of */
	int32	   *open;

	/* rows */
	PosPairs   *keys;			/* links of the model */
	int			ncolumns;
	Column	   *columns;
} Summing;

static void
receiver_startup(DestReceiver *self, int operation, TupleDesc desc)
{
}

static void
receiver_done(DestReceiver *self)
{
}

/* Makes the receiver one that calls a function for every row. */
static DestReceiver *
receive_by(Summing *s, bool (*take) (TupleTableSlot *slot, DestReceiver *self))
{
	s->receiver.receiveSlot = take;
	s->receiver.rStartup = receiver_startup;
	s->receiver.rShutdown = receiver_done;
	s->receiver.rDestroy = receiver_done;
	s->receiver.mydest = DestNone;
	return &s->receiver;
}

/* Takes a batch that a push has not heard of. */
static bool
take_open(TupleTableSlot *slot, DestReceiver *self)
{
	Summing    *s = (Summing *) self;
	bool		isnull;

	s->open = s->open == NULL ? MemoryContextAlloc(s->context, sizeof(int32)) :
		repalloc(s->open, (s->nopen + 1) * sizeof(int32));
	s->open[s->nopen++] = DatumGetInt32(slot_getattr(slot, 1, &isnull));
	return true;
}

static int64
hash_key(int64 key)
{
	return DatumGetInt64(DirectFunctionCall2(hashint8extended, Int64GetDatum(key),
											 Int64GetDatum(0)));
}

static PosDigestSum *
bucket_of(Summing *s, int64 hash)
{
	return &s->sums[hash & (s->digest->nbuckets - 1)];
}

/* Takes a link: local key, remote key, run, gone. */
static bool
take_link(TupleTableSlot *slot, DestReceiver *self)
{
	Summing    *s = (Summing *) self;
	int64		remote;

	slot_getallattrs(slot);
	for (int i = 0; i < s->nopen; i++)
		if (s->open[i] == DatumGetInt32(slot->tts_values[2]))
			return true;
	if (slot->tts_isnull[1] || (s->own && DatumGetBool(slot->tts_values[3])))
		return true;
	remote = DatumGetInt64(slot->tts_values[1]);
	if (s->own)
	{
		int64		hash = hash_key(remote);
		PosDigestSum *sum = bucket_of(s, hash);

		sum->count++;
		if (s->digest->content == POS_CONTENT_KEY)
			pos_digest_add(sum, hash);
	}
	if (s->links == NULL)
		return true;
	(void) pos_pairs_put(s->links, DatumGetInt64(slot->tts_values[0]), remote);
	s->full = MemoryContextMemAllocated(s->context, false) > LINKS_LIMIT;
	return !s->full;
}

/*
 * Reads the links of a model, as those of _possync_linked.  Returns NULL if only
 * sums are wanted, or if there was no room.
 */
static PosPairs *
read_links(Summing *s, PosModel *model, bool own)
{
	s->own = own;
	s->links = own && s->digest->content == POS_CONTENT_KEY ? NULL :
		pos_pairs_create(s->context);
	pos_store_read(psprintf("SELECT local_key, remote_key, run, gone IS NOT NULL"
							" FROM @.synchronize_translation"
							" WHERE model = %d AND local_key IS NOT NULL%s", model->id,
							s->links == NULL ? "" : " ORDER BY local_key"),
				   receive_by(s, take_link));
	return s->full ? NULL : s->links;
}

/* Returns the hash of a column, as hash_record_extended makes it. */
static uint64
hash_column(Column *column, Datum value, uint64 seed)
{
	struct varlena *bytes;

	if (column->hashed == POS_HASHED_VALUE)
		return DatumGetUInt64(FunctionCall2(column->hash, value, UInt64GetDatum(seed)));
	if (column->integer)
	{
		int64		number = DatumGetInt64(value);

		if (column->links != NULL && !pos_pairs_find(column->links, number, &number))
			number = PG_INT64_MIN;	/* no remote row says so, see compare.c */
		number = pg_hton64(number);
		return hash_bytes_extended((unsigned char *) &number, sizeof(number), seed);
	}
	bytes = column->hashed == POS_HASHED_SENT ? SendFunctionCall(&column->send, value) :
		PG_DETOAST_DATUM_PACKED(value);
	return hash_bytes_extended((unsigned char *) VARDATA_ANY(bytes),
							   VARSIZE_ANY_EXHDR(bytes), seed);
}

/* Takes a row: its key, and its columns. */
static bool
take_row(TupleTableSlot *slot, DestReceiver *self)
{
	Summing    *s = (Summing *) self;
	MemoryContext old;
	int64		remote;
	int64		seed;
	uint64		hash = 0;

	slot_getallattrs(slot);
	if (slot->tts_isnull[0] ||
		!pos_pairs_find(s->keys, DatumGetInt64(slot->tts_values[0]), &remote))
		return true;
	MemoryContextReset(s->row);
	old = MemoryContextSwitchTo(s->row);
	seed = hash_key(remote);
	for (int i = 0; i < s->ncolumns; i++)
	{
		hash = (hash << 5) - hash;
		if (!slot->tts_isnull[i + 1])
			hash += hash_column(&s->columns[i], slot->tts_values[i + 1], (uint64) seed);
	}
	MemoryContextSwitchTo(old);
	pos_digest_add(bucket_of(s, seed), s->ncolumns == 0 ? seed : (int64) hash);
	return true;
}

/* Whether the caller sees the links of a model, see _possync_linked. */
static bool
may_read(PosModel *model)
{
	return pg_class_aclcheck(model->relid, GetUserId(), ACL_SELECT) == ACLCHECK_OK &&
		check_enable_rls(model->relid, InvalidOid, true) != RLS_ENABLED;
}

/* Whether all keys of a model are integers, and the caller may see the links. */
static bool
is_plain(PosModel *model, PosDigest *digest)
{
	ListCell   *lc;

	if (!model->local_int || !model->remote_int || !may_read(model))
		return false;
	if (digest->content == POS_CONTENT_KEY)
		return true;
	foreach(lc, model->references)
	{
		PosReference *reference = lfirst(lc);

		if (reference->nfields != 1 || !reference->parent->local_int ||
			!reference->parent->remote_int || !may_read(reference->parent))
			return false;
	}
	return digest->by_value;
}

/* Reads what the references of a row refer to.  Returns false if there is no room. */
static bool
read_references(Summing *s)
{
	List	   *references = s->model->references;

	for (int i = 0; i < list_length(references); i++)
	{
		PosModel   *parent = ((PosReference *) list_nth(references, i))->parent;
		PosPairs   *links = NULL;

		for (int j = 0; j < i; j++)
			if (((PosReference *) list_nth(references, j))->parent == parent)
				links = s->columns[j].links;
		if (links == NULL)
			links = read_links(s, parent, false);
		if (links == NULL)
			return false;
		s->columns[i].links = links;
		s->columns[i].hashed = POS_HASHED_SENT;
		s->columns[i].integer = true;
	}
	s->ncolumns = list_length(references);
	return true;
}

/* Makes ready for a column of values; returns it as SQL. */
static char *
add_values(Summing *s, PosField *field, PosHashed hashed)
{
	Column	   *column = &s->columns[s->ncolumns++];
	char	   *name = psprintf("p.%s", quote_identifier(field->name));

	column->hashed = hashed;
	if (hashed == POS_HASHED_STRING &&
		!pos_digest_same_strings(s->run->snapshot.encoding))
		return psprintf("pg_catalog.convert_to(%s, 'UTF8')", name);
	if (hashed == POS_HASHED_VALUE)
		column->hash = &lookup_type_cache(field->base, TYPECACHE_HASH_EXTENDED_PROC_FINFO)->hash_extended_proc_finfo;
	column->integer = hashed == POS_HASHED_SENT && field->base != NUMERICOID;
	if (hashed == POS_HASHED_SENT && !column->integer)
	{
		Oid			send;
		bool		varlena;

		getTypeBinaryOutputInfo(field->base, &send, &varlena);
		fmgr_info_cxt(send, &column->send, s->context);
	}
	return name;
}

/* Returns the query that reads the rows in the order of hash_by_value in digest.c. */
static char *
rows_query(Summing *s)
{
	PosModel   *model = s->model;
	StringInfoData sql;
	List	   *columns = NIL;
	char	   *texts;

	initStringInfo(&sql);
	appendStringInfo(&sql, "SELECT p.%s::pg_catalog.int8",
					 quote_identifier(model->key[0]->name));
	columns = lappend(columns, NULL);
	for (int i = 0; i < list_length(model->references); i++)
	{
		PosReference *reference = list_nth(model->references, i);

		columns = lappend(columns, NULL);
		appendStringInfo(&sql, ", p.%s::pg_catalog.int8",
						 quote_identifier(reference->fields[0]->name));
	}
	for (int i = 0; i < model->nfields; i++)
	{
		PosField   *field = &model->fields[i];
		PosHashed	hashed;

		if (field->wire < 0)
			continue;
		columns = lappend(columns, psprintf("p.%s", quote_identifier(field->name)));
		hashed = pos_digest_hashed(&model->table.columns[field->wire]);
		if (hashed != POS_HASHED_TEXT)
			appendStringInfo(&sql, ", %s", add_values(s, field, hashed));
	}
	texts = pos_digest_texts(s->digest, columns, s->run->snapshot.encoding);
	if (texts != NULL)
	{
		appendStringInfo(&sql, ", %s", texts);
		s->columns[s->ncolumns++].hashed = POS_HASHED_STRING;
	}
	appendStringInfo(&sql, " FROM %s p", model->table_sql);
	return sql.data;
}

/*
 * Returns what the rows of a model add up to, for every bucket, as things were before
 * the remote's snapshot; NULL if that is the query's business.  Rows whose
 * counterpart had been deleted do not count.
 */
PosDigestSum *
pos_sums_read(PosRun *run, PosModel *model, PosDigest *digest)
{
	Summing    *s;
	bool		done;

	if (!is_plain(model, digest))
		return NULL;
	s = palloc0(sizeof(Summing));
	s->run = run;
	s->model = model;
	s->digest = digest;
	s->sums = palloc0(digest->nbuckets * sizeof(PosDigestSum));
	s->context = AllocSetContextCreate(CurrentMemoryContext, "possync links",
									   ALLOCSET_DEFAULT_SIZES);
	s->row = AllocSetContextCreate(CurrentMemoryContext, "possync summed row",
								   ALLOCSET_DEFAULT_SIZES);
	s->columns = MemoryContextAllocZero(s->context,
										(model->table.ncolumns + 1) * sizeof(Column));
	PushActiveSnapshot(run->before);
	pos_store_read("SELECT id FROM @.synchronize_batch", receive_by(s, take_open));
	s->keys = read_links(s, model, true);
	done = s->links == NULL;
	if (s->keys != NULL && read_references(s))
	{
		pos_sql_read_whole(rows_query(s), receive_by(s, take_row));
		done = true;
	}
	PopActiveSnapshot();
	MemoryContextDelete(s->row);
	MemoryContextDelete(s->context);
	return done ? s->sums : NULL;
}
