/*
 * progress.h
 *		How far a run is, for whoever looks.
 */
#ifndef POSSYNC_PROGRESS_H
#define POSSYNC_PROGRESS_H

/* in progress.c */
extern void pos_progress_init(void);
extern void pos_progress_begin(int32 run, const char *model, bool push);
extern void pos_progress_phase(const char *phase, const char *model);
extern void pos_progress_expect(int64 rows);
extern void pos_progress_rows(int64 rows, uint64 bytes);
extern void pos_progress_end(void);

#endif							/* POSSYNC_PROGRESS_H */
