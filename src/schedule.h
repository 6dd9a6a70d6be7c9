/*
 * schedule.h
 *		When a job is to run.
 */
#ifndef POSSYNC_SCHEDULE_H
#define POSSYNC_SCHEDULE_H

#include "datatype/timestamp.h"

/* in schedule.c */
extern bool pos_schedule_is_transient(int sqlerrcode);
extern TimestampTz pos_schedule_next(TimestampTz now, int64 every, int64 jitter,
									 double fraction);
extern TimestampTz pos_schedule_retry(TimestampTz now, int failures,
									  bool transient, int longest, int slow,
									  double fraction);

#endif							/* POSSYNC_SCHEDULE_H */
