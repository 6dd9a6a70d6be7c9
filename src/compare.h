/*
 * compare.h
 *		What differs between the rows here and those at the remote.
 */
#ifndef POSSYNC_COMPARE_H
#define POSSYNC_COMPARE_H

#include "run.h"

typedef enum PosDifference
{
	POS_DIFFERENT,				/* the columns differ */
	POS_MISSING_HERE,			/* nothing here is linked with it, or what is
								 * was left here when it had been deleted */
	POS_MISSING_THERE,			/* linked, and not there */
	POS_LOST_HERE				/* linked, and the local row is gone */
} PosDifference;

/* One row that differs; texts live until the callback returns */
typedef struct PosDifferent
{
	PosDifference kind;
	char	   *remote;			/* its canonical keys, as texts; NULL: none */
	char	   *local;
	bool		matched;		/* linked with a row that was here before */
	char	   *here;			/* as the digest's content; NULL: no row */
	char	   *there;
} PosDifferent;

typedef void (*PosCompareCallback) (PosRun *run, PosModel *model,
									PosDifferent *different, void *argument);

/* in compare.c */
extern void pos_compare_begin(PosRun *run);
extern void pos_compare_end(PosRun *run);
extern void pos_compare_model(PosRun *run, PosModel *model, PosContent content,
							  bool ours_only, const char *condition,
							  PosCompareCallback callback, void *argument);

#endif							/* POSSYNC_COMPARE_H */
