/*
 * sequence.h
 *		Keys that a sequence makes, many at a time.
 */
#ifndef POSSYNC_SEQUENCE_H
#define POSSYNC_SEQUENCE_H

#include "nodes/execnodes.h"

typedef struct PosSequence PosSequence;

/* in sequence.c */
extern PosSequence *pos_sequence_find(Node *expression);
extern Datum pos_sequence_next(PosSequence *sequence, ExprState *expression,
							   ExprContext *context);

#endif							/* POSSYNC_SEQUENCE_H */
