/*
 * target.h
 *		A table opened for writing below SQL.
 */
#ifndef POSSYNC_TARGET_H
#define POSSYNC_TARGET_H

#include "nodes/execnodes.h"
#include "utils/rel.h"

typedef struct PosTarget
{
	Relation	rel;
	EState	   *estate;
	ResultRelInfo *info;
} PosTarget;

/* in target.c */
extern void pos_target_open(PosTarget *target, Relation rel, CmdType command,
							Bitmapset *updated);
extern void pos_target_complete(PosTarget *target, TupleTableSlot *slot,
								CmdType command);
extern void pos_target_enter(PosTarget *target, void (*enter) (void *),
							 void *argument);
extern void pos_target_close(PosTarget *target);
extern void pos_target_log(void);

#endif							/* POSSYNC_TARGET_H */
