/*
 * build.h
 *		Building the indexes of a table, by several processes.
 */
#ifndef POSSYNC_BUILD_H
#define POSSYNC_BUILD_H

#include "utils/rel.h"

/* in build.c */
extern void pos_build_indexes(Relation rel, List *indexes);

#endif							/* POSSYNC_BUILD_H */
