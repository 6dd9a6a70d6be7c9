/*
 * lookup.h
 *		Rows of a model's local table by their keys.
 */
#ifndef POSSYNC_LOOKUP_H
#define POSSYNC_LOOKUP_H

#include "model.h"

typedef struct PosLookup PosLookup;

/* in lookup.c */
extern bool pos_lookup_possible(PosModel *model);
extern PosLookup *pos_lookup_open(PosModel *model);
extern TupleTableSlot *pos_lookup_find(PosLookup *lookup, Datum *key);
extern bool pos_lookup_renew(PosLookup *lookup);
extern void pos_lookup_close(PosLookup *lookup);

#endif							/* POSSYNC_LOOKUP_H */
