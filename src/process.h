/*
 * process.h
 *		Starting, supervising and waiting of possync's lasting processes.
 */
#ifndef POSSYNC_PROCESS_H
#define POSSYNC_PROCESS_H

#include "shared.h"

/* A process that this one has started */
typedef struct PosChild PosChild;

/* in process.c */
extern PosChild *pos_process_start(PosProcess *process);
extern bool pos_process_ended(PosChild *child, bool *done);
extern void pos_process_stop(PosChild *child);
extern void pos_process_enter(PosProcess *process);
extern void pos_process_wait(long milliseconds);
extern bool pos_process_find_store(void);

#endif							/* POSSYNC_PROCESS_H */
