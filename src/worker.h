/*
 * worker.h
 *		Background workers.
 */
#ifndef POSSYNC_WORKER_H
#define POSSYNC_WORKER_H

/* in worker.c */
extern void pos_worker_push(Oid function, int16 model, int32 history);
extern void pos_worker_pin_settings(void);
extern ErrorData *pos_worker_run(int16 model, int32 history,
								 uint64 caller, bool lasting);

#endif							/* POSSYNC_WORKER_H */
