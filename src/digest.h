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

/* in digest.c */
extern char *pos_digest_query(PosDigest *digest, PosDigestSource *source,
							  const char *other_encoding);

#endif							/* POSSYNC_DIGEST_H */
