/*
 * tryton_digest.c
 *		Hashes of rows, computed here.
 *
 * The remote computes none, so rows are read, and hashed as the local side's query
 * (digest.c) does it.  Keys alone are little; whole rows cost as much as a pull.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_type.h"
#include "connection_tryton.h"
#include "digest.h"
#include "funcapi.h"
#include "mb/pg_wchar.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/resowner.h"

/* Rows of a page that has keys only */
#define KEY_PAGES	5

/* A row's digest */
typedef struct Entry
{
	int64		hash;			/* of the key */
	char	   *key;
	int64		content;		/* its hash */
	char	   *texts;
} Entry;

/* All rows that were read, and how far they are delivered */
struct PosTrytonDigest
{
	MemoryContext context;
	PosDigest  *asked;
	PosTable   *table;
	PosContent	content;
	bool		all;			/* not only rows by their keys */
	Entry	   *entries;
	int			n;
	int			size;
	PosDigestSum *sums;			/* of every bucket */
	int			next;			/* entry, or bucket */
};

/* How the content of a row is made */
typedef struct Rows
{
	PosTable   *table;
	PosTrytonPlan *plan;		/* NULL: keys only */
	TupleDesc	desc;
	FmgrInfo	record_out;
	Datum	   *values;
	bool	   *nulls;
	MemoryContext row;
} Rows;

/* Prepares for reading the content of rows. */
static void
prepare(PosTrytonSession *session, PosTable *table, Rows *rows)
{
	rows->table = table;
	rows->plan = pos_tryton_plan(session, table);
	rows->desc = CreateTemplateTupleDesc(table->ncolumns);
	for (int i = 0; i < table->ncolumns; i++)
		TupleDescInitEntry(rows->desc, i + 1, "f", table->columns[i].type,
						   table->columns[i].typmod, 0);
	BlessTupleDesc(rows->desc);
	fmgr_info(F_RECORD_OUT, &rows->record_out);
	rows->values = palloc(table->ncolumns * sizeof(Datum));
	rows->nulls = palloc(table->ncolumns * sizeof(bool));
	rows->row = AllocSetContextCreate(CurrentMemoryContext, "possync digest row",
									  ALLOCSET_DEFAULT_SIZES);
}

static int64
hash_text(const char *text)
{
	return DatumGetInt64(DirectFunctionCall2Coll(hashtextextended, C_COLLATION_OID,
												 CStringGetTextDatum(text),
												 Int64GetDatum(0)));
}

/* Returns what a cast to text makes of a value. */
static char *
cast_text(Oid type, Datum value)
{
	Oid			output;
	bool		varlena;

	if (getBaseType(type) == BOOLOID)
		return pstrdup(DatumGetBool(value) ? "true" : "false");
	if (getBaseType(type) == BPCHAROID)
		return TextDatumGetCString(DirectFunctionCall1(rtrim1, value));
	getTypeOutputInfo(type, &output, &varlena);
	return OidOutputFunctionCall(output, value);
}

/* Returns the texts of a row's columns, as an array's text. */
static char *
row_texts(Rows *rows)
{
	int			n = rows->table->ncolumns;
	int			lower = 1;
	Datum	   *texts = palloc(n * sizeof(Datum));
	ArrayType  *array;

	for (int i = 0; i < n; i++)
		texts[i] = rows->nulls[i] ? (Datum) 0 :
			CStringGetTextDatum(cast_text(rows->table->columns[i].type, rows->values[i]));
	array = construct_md_array(texts, rows->nulls, 1, &n, &lower, TEXTOID, -1, false,
							   TYPALIGN_INT);
	return OidOutputFunctionCall(F_ARRAY_OUT, PointerGetDatum(array));
}

/* Returns the hash of all columns of a row. */
static int64
row_hash(Rows *rows)
{
	HeapTuple	tuple = heap_form_tuple(rows->desc, rows->values, rows->nulls);

	return hash_text(OutputFunctionCall(&rows->record_out,
										HeapTupleHeaderGetDatum(tuple->t_data)));
}

/* Converts a row; returns false if it cannot be one of ours. */
static bool
convert(Rows *rows, JsonbContainer *row, int64 link)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	volatile bool done = false;

	/* a domain may run anything */
	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(rows->row);
	PG_TRY();
	{
		pos_tryton_convert(rows->plan, row, link, rows->values, rows->nulls);
		ReleaseCurrentSubTransaction();
		done = true;
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(rows->row);
		error = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		if (ERRCODE_TO_CATEGORY(error->sqlerrcode) != ERRCODE_DATA_EXCEPTION &&
			ERRCODE_TO_CATEGORY(error->sqlerrcode) != ERRCODE_INTEGRITY_CONSTRAINT_VIOLATION &&
			error->sqlerrcode != ERRCODE_DATATYPE_MISMATCH)
			ReThrowError(error);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	return done;
}

/* Takes a row's digest. */
static void
take_row(PosTrytonSession *session, struct PosTrytonDigest *digest, Rows *rows,
		 JsonbContainer *row, int64 link)
{
	PosTable   *table = digest->table;
	JsonbValue	value;
	int64		id;
	Entry	   *entry;
	MemoryContext old = CurrentMemoryContext;

	MemoryContextReset(session->row_context);
	MemoryContextSwitchTo(session->row_context);
	if (!pos_tryton_integer(pos_tryton_get(row, "id", &value), &id))
		pos_tryton_odd(session);
	MemoryContextSwitchTo(old);
	if (digest->n == digest->size)
	{
		digest->size = Max(digest->size * 2, 1024);
		digest->entries = digest->entries == NULL ?
			palloc(digest->size * sizeof(Entry)) :
			repalloc_huge(digest->entries, digest->size * sizeof(Entry));
	}
	entry = &digest->entries[digest->n++];
	if (table->nkey == 1)
	{
		entry->key = psprintf(INT64_FORMAT, id);
		entry->hash = DatumGetInt64(DirectFunctionCall2(hashint8extended, Int64GetDatum(id),
														Int64GetDatum(0)));
	}
	else
	{
		bool		origin = strcmp(table->columns[0].remote, "origin") == 0;

		entry->key = psprintf("{" INT64_FORMAT "," INT64_FORMAT "}", origin ? id : link,
							  origin ? link : id);
		entry->hash = hash_text(entry->key);
	}
	entry->content = entry->hash;
	entry->texts = NULL;
	if (rows->plan == NULL)
		return;
	MemoryContextReset(rows->row);
	if (!convert(rows, row, link))
	{
		/* it is like no row that could be here */
		entry->content = ~entry->hash;
		entry->texts = digest->content == POS_CONTENT_TEXTS ? pstrdup("?") : NULL;
		return;
	}
	MemoryContextSwitchTo(rows->row);
	if (digest->content == POS_CONTENT_HASH)
		entry->content = row_hash(rows);
	else
		entry->texts = MemoryContextStrdup(old, row_texts(rows));
	MemoryContextSwitchTo(old);
}

/* Whether a row has one of the keys that are asked for. */
static bool
is_asked(PosDigest *digest, JsonbContainer *row, int64 link)
{
	JsonbValue	value;
	int64		id;
	bool		origin = strcmp(digest->table->columns[0].remote, "origin") == 0;

	if (digest->nkeys == 0 || digest->table->nkey == 1)
		return true;			/* or the domain says so */
	if (!pos_tryton_integer(pos_tryton_get(row, "id", &value), &id))
		return false;
	for (int i = 0; i < digest->nkeys; i++)
		if (strtoll(digest->keys[2 * i], NULL, 10) == (origin ? id : link) &&
			strtoll(digest->keys[2 * i + 1], NULL, 10) == (origin ? link : id))
			return true;
	return false;
}

static int
compare_entries(const void *a, const void *b)
{
	int64		x = ((const Entry *) a)->hash;
	int64		y = ((const Entry *) b)->hash;

	return x < y ? -1 : x > y;
}

/* Reads the rows that a digest is about. */
static void
read_rows(PosTrytonSession *session, struct PosTrytonDigest *digest)
{
	PosDigest  *asked = digest->asked;
	PosTable   *table = digest->table;
	StringInfoData domain;
	StringInfoData fields;
	PosTrytonPages *pages;
	Rows		rows = {0};
	JsonbContainer *row;
	int64		link;

	initStringInfo(&domain);
	initStringInfo(&fields);
	if (asked->nkeys > 0 && table->nkey == 1)
	{
		appendStringInfoString(&domain, "[\"id\",\"in\",[");
		for (int i = 0; i < asked->nkeys; i++)
			appendStringInfo(&domain, "%s%s", i > 0 ? "," : "", asked->keys[i]);
		appendStringInfoString(&domain, "]],");
	}
	if (digest->content != POS_CONTENT_KEY)
	{
		prepare(session, table, &rows);
		for (int i = 0; i < table->ncolumns; i++)
			if (strcmp(table->columns[i].remote, "id") != 0)
				appendStringInfo(&fields, "\"%s\",", table->columns[i].remote);
	}
	pages = pos_tryton_pages(table, domain.data, fields.data,
							 session->options.page_size *
							 (digest->content == POS_CONTENT_KEY ? KEY_PAGES : 1), true);
	while (pos_tryton_next(session, pages, &row, &link))
		if (is_asked(asked, row, link))
			take_row(session, digest, &rows, row, link);
	qsort(digest->entries, digest->n, sizeof(Entry), compare_entries);
}

/* Whether a digest asks for sums. */
static bool
wants_sums(PosDigest *digest)
{
	return digest->wanted == NULL && digest->nkeys == 0 && !digest->gone;
}

/* Sums up the rows of every bucket. */
static void
sum_up(struct PosTrytonDigest *digest)
{
	int			nbuckets = digest->asked->nbuckets;
	MemoryContext old = MemoryContextSwitchTo(digest->context);

	digest->sums = palloc0(nbuckets * sizeof(PosDigestSum));
	for (int i = 0; i < digest->n; i++)
	{
		PosDigestSum *sum = &digest->sums[digest->entries[i].hash & (nbuckets - 1)];

		pos_digest_add(sum, digest->entries[i].content);
		sum->count++;
	}
	MemoryContextSwitchTo(old);
}

/* See connection.h: digest */
void
pos_tryton_digest(PosConnection *connection, PosDigest *asked)
{
	PosTrytonSession *session = (PosTrytonSession *) connection;
	struct PosTrytonDigest *digest = session->digest;
	MemoryContext context;
	MemoryContext old;

	pos_tryton_enter(session);

	/* sums were asked for before the rows that they are of */
	if (digest == NULL || !digest->all || digest->table != asked->table ||
		digest->content != asked->content || asked->nkeys > 0)
	{
		if (digest != NULL)
			MemoryContextDelete(digest->context);
		session->digest = NULL;
		context = AllocSetContextCreate(session->read_context, "possync digest",
										ALLOCSET_DEFAULT_SIZES);
		old = MemoryContextSwitchTo(context);
		digest = palloc0(sizeof(struct PosTrytonDigest));
		digest->context = context;
		digest->asked = asked;
		digest->table = asked->table;
		digest->content = asked->content;
		digest->all = asked->nkeys == 0;
		if (!asked->gone)
			read_rows(session, digest);
		MemoryContextSwitchTo(old);
		session->digest = digest;
	}
	digest->asked = asked;
	digest->next = 0;
	if (wants_sums(asked))
		sum_up(digest);
	pos_tryton_leave(session);
}

/* Returns the next bucket that has rows. */
static bool
next_sum(struct PosTrytonDigest *digest, PosDigestRow *row)
{
	PosDigestSum *sum;

	while (digest->next < digest->asked->nbuckets && digest->sums[digest->next].count == 0)
		digest->next++;
	if (digest->next == digest->asked->nbuckets)
		return false;
	sum = &digest->sums[digest->next];
	row->number = digest->next++;
	row->count = sum->count;
	row->key = NULL;
	row->content = pos_digest_sum(sum);
	return true;
}

/* See connection.h: digest_next */
bool
pos_tryton_digest_next(PosConnection *connection, PosDigestRow *row)
{
	struct PosTrytonDigest *digest = ((PosTrytonSession *) connection)->digest;
	PosDigest  *asked = digest->asked;

	if (wants_sums(asked))
		return next_sum(digest, row);
	while (digest->next < digest->n)
	{
		Entry	   *entry = &digest->entries[digest->next++];

		if (asked->wanted != NULL && !asked->wanted[entry->hash & (asked->nbuckets - 1)])
			continue;
		row->number = entry->hash;
		row->count = 1;
		row->key = pstrdup(entry->key);
		row->content = entry->texts != NULL ? pstrdup(entry->texts) :
			psprintf(INT64_FORMAT, entry->content);
		return true;
	}
	return false;
}
