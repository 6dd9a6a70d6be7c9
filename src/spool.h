/*
 * spool.h
 *		The captured rows of a transaction, until they are written.
 */
#ifndef POSSYNC_SPOOL_H
#define POSSYNC_SPOOL_H

/*
 * The number of a transaction in the queue has the lane of its models in front: what
 * waits for one server lies together.  A transaction that changed rows of two servers
 * is two there.
 */
#define POS_LANE_SHIFT	48

/* The same in SQL: the numbers that a lane has */
#define POS_LANE_FIRST(lane) \
	"(" lane "::int8 << " CppAsString2(POS_LANE_SHIFT) ")"
#define POS_LANE_LAST(lane) \
	"(" POS_LANE_FIRST(lane) " + ((1::int8 << " CppAsString2(POS_LANE_SHIFT) ") - 1))"

/* A captured row */
typedef struct PosEntry
{
	int16		model;
	int16		lane;			/* of the model */
	char		operation;		/* i, u, d */
	bool		integer;		/* the key is int8, else text */
	Datum		key;
	struct varlena *image;
	struct varlena *before;		/* NULL if there is none */
} PosEntry;

/* in spool.c */
extern void pos_spool_put(Oid queue, Oid sequence, PosEntry *entry);
extern void pos_spool_write(void);

#endif							/* POSSYNC_SPOOL_H */
