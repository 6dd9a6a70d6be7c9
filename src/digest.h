/*
 * digest.h
 *		What both sides compute of a row to be compared, as SQL.
 */
#ifndef POSSYNC_DIGEST_H
#define POSSYNC_DIGEST_H

#include "connection.h"

/* Where one side has its rows; all are SQL, with every name qualified */
typedef struct PosDigestSource
{
	const char *key;			/* the remote key: an integer, or a text */
	bool		key_int;
	List	   *columns;		/* of char *: all columns of the table, in the
								 * form in which they are delivered */
	const char *absent;			/* whether only the key is there; NULL: never */
	const char *more;			/* more columns of the result; NULL: none */
	const char *from;			/* FROM and WHERE */
} PosDigestSource;

/* How a column takes part in the hash of a row by value, see digest.c */
typedef enum PosHashed
{
	POS_HASHED_TEXT,			/* its text, together with those of others */
	POS_HASHED_STRING,
	POS_HASHED_VALUE,			/* by its type's hash function */
	POS_HASHED_SENT				/* the bytes that would be sent of it */
} PosHashed;

/* What the rows of a bucket add up to */
typedef struct PosDigestSum
{
	int64		count;
	int64		high;			/* upper halves of the contents */
	int64		low;			/* lower ones */
} PosDigestSum;

/* in digest.c */
extern PosHashed pos_digest_hashed(PosColumn *column);
extern char *pos_digest_texts(PosDigest *digest, List *columns,
							  const char *other_encoding);
extern bool pos_digest_same_strings(const char *other_encoding);
extern void pos_digest_add(PosDigestSum *sum, int64 content);
extern char *pos_digest_sum(PosDigestSum *sum);
extern char *pos_digest_query(PosDigest *digest, PosDigestSource *source,
							  const char *other_encoding);

#endif							/* POSSYNC_DIGEST_H */
