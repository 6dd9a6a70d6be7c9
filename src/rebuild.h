/*
 * rebuild.h
 *		Indexes that are built when all rows of a table are there.
 */
#ifndef POSSYNC_REBUILD_H
#define POSSYNC_REBUILD_H

#include "connection.h"
#include "utils/rel.h"

/*
 * A table is worth it that had next to nothing before, and gets more rows than
 * these: what was indexed twice then counts for little.
 */
#define POS_REBUILD_ROWS	10000

/* in rebuild.c */
extern bool pos_rebuild_expects(PosTable *table);
extern bool pos_rebuild_is_plain(Relation rel);
extern bool pos_rebuild_lock(Relation rel, int nindexes, Relation *indexes);

#endif							/* POSSYNC_REBUILD_H */
