/*
 * keyset.h
 *		The rows of one model that a batch has to do with, by key, and what is known
 *		of each.
 */
#ifndef POSSYNC_KEYSET_H
#define POSSYNC_KEYSET_H

#include "common/hashfn.h"
#include "push.h"

typedef struct KeySetEntry
{
	char	   *key;
	char		status;
	int			flags;			/* of a queued row: what happened to it */
	uint64		last;			/* its last entry */
	bool		taken;			/* into the batch */
	uint64		first;			/* its first entry */
	List	   *befores;		/* of PosBefore: what the remote may have */
	bool		unforeseen;		/* nobody knows what the remote has */
} KeySetEntry;

#define SH_PREFIX keyset
#define SH_ELEMENT_TYPE KeySetEntry
#define SH_KEY_TYPE char *
#define SH_KEY key
#define SH_HASH_KEY(tb, key) hash_bytes((const unsigned char *) (key), strlen(key))
#define SH_EQUAL(tb, a, b) (strcmp(a, b) == 0)
#define SH_SCOPE static inline
#define SH_DECLARE
#define SH_DEFINE
#include "lib/simplehash.h"

struct PosKeySet
{
	keyset_hash *hash;
};

#endif							/* POSSYNC_KEYSET_H */
