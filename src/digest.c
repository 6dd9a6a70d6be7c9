/*
 * digest.c
 *		What both sides compute of a row to be compared, as SQL.
 *
 * Two rows are equal if their columns have the same texts, by the types' output
 * functions under settings that both sides pin.  The hashes are those of hash
 * partitions, which have to be the same on every server.  They are not those of
 * machines of another byte order, which compare.c refuses.
 *
 * Strings of different encodings are hashed as hexadecimal UTF8.
 */
#include "postgres.h"

#include "digest.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"

/* Returns the hash of a text. */
static char *
hash_of(const char *text, const char *other_encoding)
{
	if (pg_char_to_encoding(other_encoding) != GetDatabaseEncoding())
		text = psprintf("pg_catalog.encode(pg_catalog.convert_to(%s, 'UTF8'), 'hex')",
						text);

	return psprintf("pg_catalog.hashtextextended(%s COLLATE pg_catalog.\"C\", 0)",
					text);
}

/* Returns what is compared of a row, beside the key's hash. */
static char *
content_of(PosDigest *digest, PosDigestSource *source, const char *key_hash,
		   const char *other_encoding)
{
	StringInfoData buf;
	ListCell   *lc;
	bool		texts = digest->content == POS_CONTENT_TEXTS;
	const char *content;

	if (digest->content == POS_CONTENT_KEY)
		return pstrdup(key_hash);
	initStringInfo(&buf);
	appendStringInfoString(&buf, texts ? "ARRAY[" : "ROW(");
	foreach(lc, source->columns)
		appendStringInfo(&buf, "%s(%s)%s", foreach_current_index(lc) > 0 ? ", " : "",
						 (char *) lfirst(lc), texts ? "::pg_catalog.text" : "");
	appendStringInfoString(&buf, texts ? "]::pg_catalog.text" : ")::pg_catalog.text");
	content = texts ? buf.data : hash_of(buf.data, other_encoding);
	if (source->absent == NULL)
		return pstrdup(content);
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
						 " FROM (SELECT %s AS b, %s AS c FROM %s) d GROUP BY d.b",
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
