/*
 * bulk.h
 *		Inserting many rows into one table below SQL.
 */
#ifndef POSSYNC_BULK_H
#define POSSYNC_BULK_H

#include "utils/rel.h"

typedef struct PosBulk PosBulk;

/* in bulk.c */
extern bool pos_bulk_possible(Relation rel);
extern PosBulk *pos_bulk_open(Relation rel, int ncolumns, AttrNumber *columns);
extern void pos_bulk_gather(PosBulk *bulk, int rows, Size bytes);
extern void pos_bulk_spare(PosBulk *bulk, Oid constraint, bool spare);
extern void pos_bulk_hold(PosBulk *bulk);
extern void pos_bulk_fire(PosBulk *bulk);
extern bool pos_bulk_rebuild(PosBulk *bulk);
extern void pos_bulk_keep(PosBulk *bulk, Oid index);
extern bool pos_bulk_put(PosBulk *bulk, Datum *values, bool *nulls);
extern void pos_bulk_flush(PosBulk *bulk);
extern void pos_bulk_close(PosBulk *bulk);

#endif							/* POSSYNC_BULK_H */
