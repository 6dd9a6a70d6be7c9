/*
 * queue.h
 *		Capture of changes.
 */
#ifndef POSSYNC_QUEUE_H
#define POSSYNC_QUEUE_H

/* in queue.c */
extern bool pos_queue_mute(bool mute);

#endif							/* POSSYNC_QUEUE_H */
