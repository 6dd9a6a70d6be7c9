/*
 * compare.c
 *		What differs between the rows here and those at the remote, found with
 *		little traffic.
 *
 * Both sides sum up hashes of their rows in buckets, by a hash of the remote key.
 * Only of buckets that differ do the rows' hashes travel, and of rows that differ
 * the rows.  Where the remote has many rows that are none of ours, it is asked
 * for ours by their keys instead.
 *
 * Local rows are seen as they were before the remote's snapshot was taken, and
 * without those that a push has sent and not heard of: whatever is linked in what
 * we see was there in the remote's snapshot, or has been deleted before.
 *
 * Runs as the caller, on the view _possync_linked.
 */
#include "possync.h"

#include "catalog/pg_collation.h"
#include "catalog/pg_type.h"
#include "compare.h"
#include "digest.h"
#include "mb/pg_wchar.h"
#include "sql.h"
#include "store.h"
#include "sums.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

/* Rows that share a bucket, about, and how many buckets there may be */
#define BUCKET_ROWS		256
#define MIN_BUCKETS		16
#define MAX_BUCKETS		65536

/* Columns of the local rows, beyond those of every digest */
#define LOCAL_MORE \
	"coalesce(t.local_key::pg_catalog.text, t.local_key_text), t.decision," \
	" t.gone IS NOT NULL"

enum
{
	L_NUMBER = 1, L_KEY, L_CONTENT, L_LOCAL, L_DECISION, L_GONE
};

/* A comparison on its way */
typedef struct Comparison
{
	PosRun	   *run;
	PosModel   *model;
	PosDigest	digest;
	PosDigestSource source;
	PosCompareCallback callback;
	void	   *argument;
	PosCursor  *cursor;
	PosDigestRow local;
	PosDifferent shown;			/* what is known of the local row */
	PosDigestRow remote;
	bool		has_local;
	bool		has_remote;
	bool		gone;			/* the local row's counterpart had been
								 * deleted */
	MemoryContext local_row;	/* what the two rows are made of */
	MemoryContext remote_row;
} Comparison;

/*
 * Remembers how things stand here.  To be called before the remote's snapshot is
 * taken.
 */
void
pos_compare_begin(PosRun *run)
{
	run->before = RegisterSnapshot(GetTransactionSnapshot());
}

/* Forgets it. */
void
pos_compare_end(PosRun *run)
{
	UnregisterSnapshot(run->before);
	run->before = NULL;
}

/* Returns the text of an expression, by its type's output function. */
static char *
text_of(PosField *field, const char *alias)
{
	const char *name = quote_identifier(field->name);

	/* a cast to text may be another text */
	return psprintf("CASE WHEN %s.%s IS NOT NULL THEN pg_catalog.format('%%s', %s.%s) END",
					alias, name, alias, name);
}

/* Appends the join that finds the remote key of what a reference refers to. */
static void
append_reference_join(StringInfo sql, PosReference *reference, int n)
{
	PosModel   *parent = reference->parent;

	appendStringInfo(sql, " LEFT JOIN %s._possync_linked f%d"
					 " ON f%d.model OPERATOR(pg_catalog.=) %d AND f%d.local_key%s"
					 " OPERATOR(pg_catalog.=) ", pos_store_schema(), n, n, parent->id,
					 n, parent->local_int ? "" : "_text");
	if (reference->nfields > 1)
	{
		appendStringInfoString(sql, "ARRAY[");
		for (int part = 0; part < reference->nfields; part++)
			for (int i = 0; i < reference->nfields; i++)
				if (reference->parts[i] == part)
					appendStringInfo(sql, "%s%s", part > 0 ? ", " : "",
									 text_of(reference->fields[i], "p"));
		appendStringInfoString(sql, "]::pg_catalog.text");
	}
	else if (!parent->local_int)
		appendStringInfo(sql, "(%s)", text_of(reference->fields[0], "p"));
	else
		appendStringInfo(sql, "p.%s::pg_catalog.int8",
						 quote_identifier(reference->fields[0]->name));
}

/*
 * Returns one column of a reference as the remote has it.  What refers to a row
 * that is not linked is not what any remote row says.
 */
static char *
reference_sql(PosReference *reference, int i, int n)
{
	StringInfoData nothing;
	const char *name = quote_identifier(reference->fields[0]->name);

	if (reference->nfields == 1 && reference->parent->remote_int)
		return psprintf("coalesce(f%d.remote_key, CASE WHEN p.%s IS NOT NULL"
						" THEN " INT64_FORMAT " END)", n, name, PG_INT64_MIN);
	if (reference->nfields == 1)
		return psprintf("coalesce(f%d.remote_key_text, CASE WHEN p.%s IS NOT NULL"
						" THEN '?' END)", n, name);
	initStringInfo(&nothing);
	for (int j = 0; j < reference->nfields; j++)
		appendStringInfo(&nothing, "%sp.%s IS NULL", j > 0 ? " OR " : "",
						 quote_identifier(reference->fields[j]->name));
	return psprintf("CASE WHEN %s THEN p.%s::pg_catalog.text ELSE"
					" coalesce((f%d.remote_key_text::pg_catalog.text[])[%d], '?') END",
					nothing.data, quote_identifier(reference->fields[i]->name), n,
					reference->parts[i] + 1);
}

/* Builds where the local rows of a model are, in the order of stage.c. */
static void
describe_source(PosRun *run, PosModel *model, PosContent content,
				const char *condition, PosDigestSource *source)
{
	StringInfoData from;
	ListCell   *lc;

	initStringInfo(&from);
	source->key_int = model->remote_int;
	source->key = model->remote_int ? "t.remote_key" : "t.remote_key_text";
	source->columns = NIL;
	for (int i = 0; i < model->nkey; i++)
		source->columns = lappend(source->columns, model->nkey == 1 ?
								  pstrdup(source->key) :
								  psprintf("(t.remote_key_text::pg_catalog.text[])[%d]", i + 1));
	appendStringInfo(&from, "%s._possync_linked t", pos_store_schema());
	if (content != POS_CONTENT_KEY || condition != NULL)
	{
		appendStringInfo(&from, " LEFT JOIN %s p ON ", model->table_sql);
		if (model->local_int)
			appendStringInfo(&from, "p.%s OPERATOR(pg_catalog.=) t.local_key",
							 quote_identifier(model->key[0]->name));
		else if (model->nkey == 1)
			appendStringInfo(&from, "(%s) OPERATOR(pg_catalog.=) t.local_key_text",
							 text_of(model->key[0], "p"));
		else
			for (int i = 0; i < model->nkey; i++)
				appendStringInfo(&from, "%s(%s) OPERATOR(pg_catalog.=)"
								 " (t.local_key_text::pg_catalog.text[])[%d]",
								 i > 0 ? " AND " : "", text_of(model->key[i], "p"),
								 i + 1);
		source->absent = psprintf("p.%s IS NULL",
								  quote_identifier(model->key[0]->name));
	}
	foreach(lc, model->references)
	{
		PosReference *reference = lfirst(lc);
		int			n = foreach_current_index(lc);

		if (content != POS_CONTENT_KEY)
			append_reference_join(&from, reference, n);
		for (int i = 0; i < reference->nfields; i++)
			source->columns = lappend(source->columns,
									  reference_sql(reference, i, n));
	}
	for (int i = 0; i < model->nfields; i++)
		if (model->fields[i].wire >= 0)
			source->columns = lappend(source->columns,
									  psprintf("p.%s", quote_identifier(model->fields[i].name)));
	appendStringInfo(&from, " WHERE t.model OPERATOR(pg_catalog.=) %d%s%s", model->id,
					 condition != NULL ? " AND " : "",
					 condition != NULL ? condition : "");
	source->from = from.data;
	source->more = LOCAL_MORE;
}

/*
 * Asks for the sums of the local side.  Rows whose counterpart had been deleted do not
 * count; if one is there again, its bucket differs.  Returns how many buckets there
 * are, which stand in SPI_tuptable.
 */
static uint64
query_sums(Comparison *c)
{
	PosDigestSource source = c->source;
	uint64		n;

	source.from = psprintf("%s AND t.gone IS NULL", source.from);
	PushActiveSnapshot(c->run->before);
	n = pos_sql_execute_whole(pos_digest_query(&c->digest, &source,
											   c->run->snapshot.encoding));
	PopActiveSnapshot();
	return n;
}

/* Opens the rows of the local side. */
static void
open_local(Comparison *c)
{
	PushActiveSnapshot(c->run->before);
	c->cursor = pos_sql_open_whole(pos_digest_query(&c->digest, &c->source,
													c->run->snapshot.encoding));
	PopActiveSnapshot();
}

/* Returns column col of the local row, NULL for null. */
static char *
local_text(HeapTuple tuple, TupleDesc desc, int col)
{
	return SPI_getvalue(tuple, desc, col);
}

static int64
local_number(HeapTuple tuple, TupleDesc desc, int col)
{
	bool		isnull;

	return DatumGetInt64(SPI_getbinval(tuple, desc, col, &isnull));
}

/* Reads the sums of the local side: rows of every bucket, and their sum if any. */
static void
read_sums(Comparison *c, int64 *counts, char **sums)
{
	PosDigestSum *read = pos_sums_read(c->run, c->model, &c->digest);
	uint64		n;

	for (int i = 0; read != NULL && i < c->digest.nbuckets; i++)
		if (read[i].count > 0)
		{
			counts[i] = read[i].count;
			sums[i] = pos_digest_sum(&read[i]);
		}
	if (read != NULL)
		return;
	n = query_sums(c);
	for (uint64 i = 0; i < n; i++)
	{
		HeapTuple	tuple = SPI_tuptable->vals[i];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		int64		bucket = local_number(tuple, desc, L_NUMBER);

		counts[bucket] = local_number(tuple, desc, 2);
		sums[bucket] = local_text(tuple, desc, 3);
	}
	SPI_freetuptable(SPI_tuptable);
}

/*
 * Compares the sums of all buckets.  Returns whether any differs; those are wanted
 * then.
 */
static bool
compare_sums(Comparison *c)
{
	PosDigest  *digest = &c->digest;
	bool	   *wanted = palloc0(digest->nbuckets * sizeof(bool));
	int64	   *counts = palloc0(digest->nbuckets * sizeof(int64));
	char	  **sums = palloc0(digest->nbuckets * sizeof(char *));
	PosConnection *connection = c->run->connection;
	bool		any = false;

	connection->ops->digest(connection, digest);
	read_sums(c, counts, sums);
	for (int i = 0; i < digest->nbuckets; i++)
		wanted[i] = sums[i] != NULL;
	while (connection->ops->digest_next(connection, &c->remote))
	{
		int64		bucket = c->remote.number;

		if (bucket < 0 || bucket >= digest->nbuckets)
			ereport(ERROR,
					(errcode(ERRCODE_FDW_ERROR),
					 errmsg("server \"%s\" sent a digest that was not asked for",
							c->run->tree->server)));
		wanted[bucket] = sums[bucket] == NULL ||
			counts[bucket] != c->remote.count ||
			strcmp(sums[bucket], c->remote.content) != 0;
	}
	for (int i = 0; i < digest->nbuckets; i++)
		any = any || wanted[i];
	digest->wanted = wanted;
	return any;
}

/* Makes the next local row the current one, but none beyond the last fetched. */
static void
next_local(Comparison *c, bool fetch)
{
	MemoryContext old;
	HeapTuple	tuple = NULL;
	TupleDesc	desc;
	bool		isnull;

	if (fetch || c->cursor->next < c->cursor->count)
		tuple = pos_sql_peek(c->cursor, &desc);
	c->has_local = tuple != NULL;
	if (tuple == NULL)
		return;
	MemoryContextReset(c->local_row);
	old = MemoryContextSwitchTo(c->local_row);
	c->local.number = local_number(tuple, desc, L_NUMBER);
	c->local.key = local_text(tuple, desc, L_KEY);
	c->local.content = local_text(tuple, desc, L_CONTENT);
	c->shown.local = local_text(tuple, desc, L_LOCAL);
	c->shown.matched = DatumGetChar(SPI_getbinval(tuple, desc, L_DECISION,
												  &isnull)) == 'm';
	c->gone = DatumGetBool(SPI_getbinval(tuple, desc, L_GONE, &isnull));
	pos_sql_take(c->cursor);
	MemoryContextSwitchTo(old);
}

/*
 * Refuses to conclude anything from hashes that are not ours, as of a machine of
 * another byte order: all rows would seem to be gone.
 */
static void
check_hash(Comparison *c)
{
	Datum		hash;

	if (c->model->remote_int)
		hash = DirectFunctionCall2(hashint8extended,
								   DirectFunctionCall1(int8in, CStringGetDatum(c->remote.key)),
								   Int64GetDatum(0));
	else if (pos_digest_same_strings(c->run->snapshot.encoding))
		hash = DirectFunctionCall2Coll(hashtextextended, C_COLLATION_OID,
									   CStringGetTextDatum(c->remote.key),
									   Int64GetDatum(0));
	else
		return;
	if (DatumGetInt64(hash) != c->remote.number)
		ereport(ERROR,
				(errcode(ERRCODE_FDW_ERROR),
				 errmsg("server \"%s\" computes other hashes than we do",
						c->run->tree->server),
				 errdetail("Rows of table %s cannot be compared by them.",
						   c->model->name),
				 errhint("possync_set_model with on_delete => 'ignore' and change_columns lets it be pulled without.")));
}

static void
next_remote(Comparison *c)
{
	MemoryContext old;

	MemoryContextReset(c->remote_row);
	old = MemoryContextSwitchTo(c->remote_row);
	c->has_remote = c->run->connection->ops->digest_next(c->run->connection,
														 &c->remote);
	if (c->has_remote)
		check_hash(c);
	MemoryContextSwitchTo(old);
}

/* Tells of one row, that of the one side, the other, or both. */
static void
tell(Comparison *c, PosDifference kind, bool local, bool remote)
{
	PosDifferent different = {.kind = kind};
	MemoryContext old;

	different.remote = c->remote.key;
	if (local)
	{
		different = c->shown;
		different.kind = kind;
		different.remote = c->local.key;
		different.here = c->local.content;
	}
	if (remote)
		different.there = c->remote.content;
	MemoryContextReset(c->run->row);
	old = MemoryContextSwitchTo(c->run->row);
	c->callback(c->run, c->model, &different, c->argument);
	MemoryContextSwitchTo(old);
}

/* Compares two rows with the same hash of their keys. */
static void
compare_rows(Comparison *c)
{
	/* as good as impossible; nothing may be concluded then */
	if (strcmp(c->local.key, c->remote.key) != 0)
		return;
	if (c->gone)
	{
		tell(c, POS_MISSING_HERE, true, true);
		return;
	}
	if (c->local.content == NULL)
		tell(c, POS_LOST_HERE, true, true);
	else if (strcmp(c->local.content, c->remote.content) != 0)
		tell(c, POS_DIFFERENT, true, true);
}

/* Compares row by row; both sides come in the order of their hashes. */
static void
merge(Comparison *c, bool fetch)
{
	next_local(c, fetch);
	next_remote(c);
	while (c->has_local || c->has_remote)
	{
		if (!c->has_remote ||
			(c->has_local && c->local.number < c->remote.number))
		{
			if (!c->gone)
				tell(c, POS_MISSING_THERE, true, false);
			next_local(c, fetch);
		}
		else if (!c->has_local || c->remote.number < c->local.number)
		{
			tell(c, POS_MISSING_HERE, false, true);
			next_remote(c);
		}
		else
		{
			compare_rows(c);
			next_local(c, fetch);
			next_remote(c);
		}
	}
}

/* Asks for the rows whose keys were fetched last. */
static void
ask_for_keys(Comparison *c)
{
	PosDigest  *digest = &c->digest;
	int			nkey = c->model->nkey;
	TupleDesc	desc = c->cursor->table->tupdesc;

	digest->nkeys = c->cursor->count;
	digest->keys = palloc(digest->nkeys * nkey * sizeof(char *));
	for (int i = 0; i < digest->nkeys; i++)
	{
		Datum		parts[INDEX_MAX_KEYS];

		parts[0] = CStringGetTextDatum(local_text(c->cursor->table->vals[i], desc,
												  L_KEY));
		if (nkey > 1)
			pos_key_to_parts(parts[0], nkey, parts);
		for (int j = 0; j < nkey; j++)
			digest->keys[i * nkey + j] = TextDatumGetCString(parts[j]);
	}
	c->run->connection->ops->digest(c->run->connection, digest);
}

/* Compares our rows with those that have their keys. */
static void
compare_ours(Comparison *c)
{
	TupleDesc	desc;

	c->digest.nkeys = 1;		/* rows, not sums */
	open_local(c);
	while (pos_sql_peek(c->cursor, &desc) != NULL)
	{
		MemoryContext old;

		MemoryContextReset(c->run->row);
		old = MemoryContextSwitchTo(c->run->row);
		ask_for_keys(c);
		MemoryContextSwitchTo(old);
		merge(c, false);
	}
	pos_sql_close(c->cursor);
}

/* Compares all rows, bucket by bucket. */
static void
compare_all(Comparison *c, PosContent content)
{
	if (content == POS_CONTENT_TEXTS)
		c->digest.content = POS_CONTENT_HASH;
	while (c->digest.nbuckets < MAX_BUCKETS &&
		   (int64) c->digest.nbuckets * BUCKET_ROWS < c->model->table.rows)
		c->digest.nbuckets *= 2;
	if (!compare_sums(c))
		return;
	c->digest.content = content;
	c->run->connection->ops->digest(c->run->connection, &c->digest);
	open_local(c);
	merge(c, true);
	pos_sql_close(c->cursor);
}

/*
 * Compares the rows of a model, whose table is described, with those at the
 * remote, in the snapshot that is open there, and calls back for every row that
 * differs, in run->row, which is reset for each.  With ours_only, rows that are not
 * linked with any here do not count.  condition, which implies ours_only, tells
 * which of the local rows (p) are compared; NULL: all.
 */
void
pos_compare_model(PosRun *run, PosModel *model, PosContent content,
				  bool ours_only, const char *condition,
				  PosCompareCallback callback, void *argument)
{
	Comparison	c = {
		.run = run,
		.model = model,
		.digest = {.table = &model->table,.content = content,.nbuckets = MIN_BUCKETS,
		.by_value = run->snapshot.by_value},
		.callback = callback,
		.argument = argument
	};
	int			nestlevel = pos_key_pin_settings();

	c.local_row = AllocSetContextCreate(run->context, "possync local row",
										ALLOCSET_SMALL_SIZES);
	c.remote_row = AllocSetContextCreate(run->context, "possync remote row",
										 ALLOCSET_SMALL_SIZES);
	describe_source(run, model, content, condition, &c.source);
	if (ours_only || condition != NULL)
		compare_ours(&c);
	else
		compare_all(&c, content);
	MemoryContextDelete(c.local_row);
	MemoryContextDelete(c.remote_row);
	AtEOXact_GUC(true, nestlevel);
}
