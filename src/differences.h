/*
 * differences.h
 *		Looking at both sides of a tree, model by model.
 */
#ifndef POSSYNC_DIFFERENCES_H
#define POSSYNC_DIFFERENCES_H

#include "compare.h"
#include "fmgr.h"

/* What is looked at of one model */
typedef struct PosInspection
{
	bool		pushed;			/* only rows of ours count */
	char	   *condition;		/* which of them, on p; NULL: all */
} PosInspection;

typedef void (*PosInspector) (PosRun *run, PosModel *model,
							  PosInspection *inspection, void *argument);

/* in differences.c */
extern void pos_differences_each(FunctionCallInfo fcinfo, PosInspector inspector,
								 void *argument);
extern char *pos_differences_unsent(PosModel *model, PosInspection *inspection,
									bool gone);

#endif							/* POSSYNC_DIFFERENCES_H */
