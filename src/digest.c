/*
 * digest.c
 *		What both sides compute of a row to be compared, as SQL.
 *
 * Two rows are equal if their columns have the same texts, by the types' output
 * functions under settings that both sides pin.  The hashes are those of hash
 * partitions, which have to be the same on every server.  They are not those of
 * machines of another byte order, which compare.c refuses.
 *
 * A row is hashed by its values where both sides can, for to make texts of them
 * would cost more than all the rest.  What has the same hash must have the same text,
 * as good as certainly, and what a type calls equal need not: its own hash function
 * serves only where that follows.  Of int8, and of what is stored like it, that folds
 * the value to half its size, and numeric's forgets sign and scale: they count by the
 * bytes that are sent of them.  All other types count by their texts.
 *
 * The hash of the key is the seed of the row's, so rows that exchange values do not
 * add up to the same, and the key itself need not be in it.
 *
 * Strings of different encodings are hashed as UTF8, and as hexadecimal where a text
 * has to be.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "digest.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/numeric.h"

/* Types that count by the bytes that are sent of them, and what sends them */
static const struct
{
	Oid			type;
	const char *function;
}			sent_types[] = {
	{INT8OID, "int8send"},
	{NUMERICOID, "numeric_send"},
	{TIMEOID, "time_send"},
	{TIMESTAMPOID, "timestamp_send"},
	{TIMESTAMPTZOID, "timestamptz_send"},
};

/* Returns what sends values of a type that counts by that, NULL for others. */
static const char *
sender_of(Oid type)
{
	for (int i = 0; i < lengthof(sent_types); i++)
		if (sent_types[i].type == type)
			return sent_types[i].function;
	return NULL;
}

/* The type of a column as it is hashed */
static Oid
type_of(PosColumn *column)
{
	return column->form == POS_FORM_VALUE ? getBaseType(column->type) : column->type;
}

/* Tells how a column takes part in the hash of a row, if that is by value. */
PosHashed
pos_digest_hashed(PosColumn *column)
{
	switch (type_of(column))
	{
		case TEXTOID:
		case VARCHAROID:
			return POS_HASHED_STRING;
		case BOOLOID:
		case INT2OID:
		case INT4OID:
		case DATEOID:
		case UUIDOID:
		case BYTEAOID:
			return POS_HASHED_VALUE;
		default:
			return sender_of(type_of(column)) != NULL ? POS_HASHED_SENT : POS_HASHED_TEXT;
	}
}

/* Whether strings are the same bytes on the other side. */
bool
pos_digest_same_strings(const char *other_encoding)
{
	return pg_char_to_encoding(other_encoding) == GetDatabaseEncoding();
}

/* Returns the hash of a text. */
static char *
hash_of(const char *text, const char *other_encoding)
{
	if (!pos_digest_same_strings(other_encoding))
		text = psprintf("pg_catalog.encode(pg_catalog.convert_to(%s, 'UTF8'), 'hex')",
						text);

	return psprintf("pg_catalog.hashtextextended(%s COLLATE pg_catalog.\"C\", 0)",
					text);
}

/* Returns a string as a value whose bytes are the same on both sides. */
static char *
string_of(const char *text, const char *other_encoding)
{
	return psprintf(pos_digest_same_strings(other_encoding) ?
					"%s COLLATE pg_catalog.\"C\"" :
					"pg_catalog.convert_to(%s, 'UTF8')", text);
}

/*
 * Returns the columns of a row by value that count by their texts, as one string;
 * NULL if there are none.  columns are those of the table.
 */
char *
pos_digest_texts(PosDigest *digest, List *columns, const char *other_encoding)
{
	StringInfoData buf;

	initStringInfo(&buf);
	for (int i = digest->table->nkey; i < digest->table->ncolumns; i++)
		if (pos_digest_hashed(&digest->table->columns[i]) == POS_HASHED_TEXT)
			appendStringInfo(&buf, "%s(%s)", buf.len > 0 ? ", " : "ROW(",
							 (char *) list_nth(columns, i));
	if (buf.len == 0)
		return NULL;
	appendStringInfoString(&buf, ")::pg_catalog.text");
	return string_of(buf.data, other_encoding);
}

/* Returns the hash of a row by its values. */
static char *
hash_by_value(PosDigest *digest, PosDigestSource *source, const char *key_hash,
			  const char *other_encoding)
{
	PosTable   *table = digest->table;
	char	   *texts = pos_digest_texts(digest, source->columns, other_encoding);
	StringInfoData buf;

	initStringInfo(&buf);
	for (int i = table->nkey; i < table->ncolumns; i++)
	{
		PosHashed	hashed = pos_digest_hashed(&table->columns[i]);
		char	   *column = psprintf("(%s)", (char *) list_nth(source->columns, i));

		if (hashed == POS_HASHED_TEXT)
			continue;
		if (hashed == POS_HASHED_STRING)
			column = string_of(column, other_encoding);
		else if (hashed == POS_HASHED_SENT)
			column = psprintf("pg_catalog.%s(%s)", sender_of(type_of(&table->columns[i])),
							  column);
		appendStringInfo(&buf, "%s%s", buf.len > 0 ? ", " : "", column);
	}
	if (texts != NULL)
		appendStringInfo(&buf, "%s%s", buf.len > 0 ? ", " : "", texts);
	if (buf.len == 0)
		return pstrdup(key_hash);
	return psprintf("pg_catalog.hash_record_extended(ROW(%s), %s)", buf.data, key_hash);
}

/* Returns all columns as one text, or the hash of that. */
static char *
text_content(PosDigestSource *source, bool texts, const char *other_encoding)
{
	StringInfoData buf;
	ListCell   *lc;

	initStringInfo(&buf);
	appendStringInfoString(&buf, texts ? "ARRAY[" : "ROW(");
	foreach(lc, source->columns)
		appendStringInfo(&buf, "%s(%s)%s", foreach_current_index(lc) > 0 ? ", " : "",
						 (char *) lfirst(lc), texts ? "::pg_catalog.text" : "");
	appendStringInfoString(&buf, texts ? "]::pg_catalog.text" : ")::pg_catalog.text");
	return texts ? buf.data : hash_of(buf.data, other_encoding);
}

/* Returns what is compared of a row, beside the key's hash. */
static char *
content_of(PosDigest *digest, PosDigestSource *source, const char *key_hash,
		   const char *other_encoding)
{
	char	   *content;

	if (digest->content == POS_CONTENT_KEY)
		return pstrdup(key_hash);
	if (digest->content == POS_CONTENT_HASH && digest->by_value)
		content = hash_by_value(digest, source, key_hash, other_encoding);
	else
		content = text_content(source, digest->content == POS_CONTENT_TEXTS,
							   other_encoding);
	if (source->absent == NULL)
		return content;
	return psprintf("CASE WHEN %s THEN NULL ELSE %s END", source->absent, content);
}

/* Appends the numbers of the buckets that are wanted. */
static void
append_wanted(StringInfo sql, PosDigest *digest)
{
	bool		first = true;

	appendStringInfoString(sql, "'{");
	for (int i = 0; i < digest->nbuckets; i++)
		if (digest->wanted[i])
		{
			appendStringInfo(sql, "%s%d", first ? "" : ",", i);
			first = false;
		}
	appendStringInfoString(sql, "}'::pg_catalog.int8[]");
}

/*
 * Returns the query that answers a digest from one side's rows: bucket, number of
 * rows and sum; or key hash, key, content and source->more, in the order of the
 * hashes.  A row that is not there counts as zero and has null for its content.
 * other_encoding is that of the other side.  Rows by keys are the business of
 * source->from.
 *
 * Of a query that is not part of another one the planner believes that there are as
 * many buckets as rows, and then that one process is best.  OFFSET keeps it apart,
 * but only as a constant of its very type does it not keep it from several processes.
 */
char *
pos_digest_query(PosDigest *digest, PosDigestSource *source,
				 const char *other_encoding)
{
	char	   *key_hash = source->key_int ?
	psprintf("pg_catalog.hashint8extended(%s, 0)", source->key) :
	hash_of(source->key, other_encoding);
	char	   *content = content_of(digest, source, key_hash, other_encoding);
	char	   *bucket = psprintf("(%s OPERATOR(pg_catalog.&) %d)", key_hash,
								  digest->nbuckets - 1);
	StringInfoData sql;

	initStringInfo(&sql);
	if (digest->wanted == NULL && digest->nkeys == 0)
	{
		appendStringInfo(&sql, "SELECT d.b, pg_catalog.count(*),"
						 " pg_catalog.sum(coalesce(d.c, 0))::pg_catalog.text"
						 " FROM (SELECT %s AS b, %s AS c FROM %s"
						 " OFFSET '0'::pg_catalog.int8) d GROUP BY d.b",
						 bucket, content, source->from);
		return sql.data;
	}
	appendStringInfo(&sql, "SELECT %s AS h, (%s)::pg_catalog.text, (%s)::pg_catalog.text%s%s"
					 " FROM %s", key_hash, source->key, content,
					 source->more != NULL ? ", " : "",
					 source->more != NULL ? source->more : "", source->from);
	if (digest->wanted != NULL)
	{
		appendStringInfo(&sql, " AND %s OPERATOR(pg_catalog.=) ANY (", bucket);
		append_wanted(&sql, digest);
		appendStringInfoChar(&sql, ')');
	}
	appendStringInfoString(&sql, " ORDER BY 1");
	return sql.data;
}

/* Adds a row to a sum. */
void
pos_digest_add(PosDigestSum *sum, int64 content)
{
	/* in halves, of which there may be many */
	sum->high += content >> 32;
	sum->low += content & INT64CONST(0xffffffff);
}

/* Returns a sum as the query has it. */
char *
pos_digest_sum(PosDigestSum *sum)
{
	Datum		high = DirectFunctionCall2(numeric_mul, NumericGetDatum(int64_to_numeric(sum->high)),
										   NumericGetDatum(int64_to_numeric(INT64CONST(1) << 32)));
	Datum		all = DirectFunctionCall2(numeric_add, high,
										  NumericGetDatum(int64_to_numeric(sum->low)));

	return DatumGetCString(DirectFunctionCall1(numeric_out, all));
}
