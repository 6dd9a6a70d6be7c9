/*
 * queue.h
 *		Capture of changes.
 */
#ifndef POSSYNC_QUEUE_H
#define POSSYNC_QUEUE_H

#include "utils/rel.h"
#include "utils/reltrigger.h"

/* in queue.c */
extern void pos_queue_mute(bool mute);
extern bool pos_queue_is_capture(Trigger *trigger);
extern bool pos_queue_is_captured(Relation rel);
extern List *pos_queue_labels(Relation rel);
extern char *pos_queue_stranger(text *image, List *labels);

#endif							/* POSSYNC_QUEUE_H */
