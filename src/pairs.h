/*
 * pairs.h
 *		A compressed map from int8 to int8.
 */
#ifndef POSSYNC_PAIRS_H
#define POSSYNC_PAIRS_H

typedef struct PosPairs PosPairs;

/* in pairs.c */
extern PosPairs *pos_pairs_create(MemoryContext context);
extern bool pos_pairs_put(PosPairs *pairs, int64 from, int64 to);
extern bool pos_pairs_find(PosPairs *pairs, int64 from, int64 *to);

#endif							/* POSSYNC_PAIRS_H */
