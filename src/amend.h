/*
 * amend.h
 *		Updating rows of one table below SQL.
 */
#ifndef POSSYNC_AMEND_H
#define POSSYNC_AMEND_H

#include "model.h"

/* in amend.c */
extern bool pos_amend_comparable(PosModel *model);
extern bool pos_amend_possible(PosModel *model);
extern bool pos_amend_is_same(PosModel *model, TupleTableSlot *slot,
							  Datum *values, bool *nulls);
extern int64 pos_amend_rows(PosModel *model, PosRowset *rows,
							ItemPointer seen);

#endif							/* POSSYNC_AMEND_H */
