/*
 * sums.h
 *		What the rows here add up to.
 */
#ifndef POSSYNC_SUMS_H
#define POSSYNC_SUMS_H

#include "digest.h"
#include "run.h"

/* in sums.c */
extern PosDigestSum *pos_sums_read(PosRun *run, PosModel *model,
								   PosDigest *digest);

#endif							/* POSSYNC_SUMS_H */
