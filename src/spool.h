/*
 * spool.h
 *		The captured rows of a transaction, until they are written.
 */
#ifndef POSSYNC_SPOOL_H
#define POSSYNC_SPOOL_H

/* A captured row */
typedef struct PosEntry
{
	int16		model;
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
