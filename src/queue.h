/*
 * queue.h
 *		Capture of changes.
 */
#ifndef POSSYNC_QUEUE_H
#define POSSYNC_QUEUE_H

#include "model.h"
#include "utils/rel.h"
#include "utils/reltrigger.h"

/* in queue.c */
extern void pos_queue_mute(bool mute);
extern bool pos_queue_is_capture(Trigger *trigger);
extern bool pos_queue_is_captured(Relation rel);

#endif							/* POSSYNC_QUEUE_H */
