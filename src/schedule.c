/*
 * schedule.c
 *		When a job is to run: arithmetic, nothing else.
 *
 * Every time gets a part that chance decides, so that a thousand tills that
 * were switched on, or lost their master, in the same second do not all ask it
 * in the same second.
 */
#include "possync.h"

#include "schedule.h"
#include "utils/timestamp.h"

/* The first wait after a failure, in milliseconds */
#define FIRST_RETRY		1000

/*
 * Whether what failed with an error is likely to succeed later without anybody
 * doing something about it: the network, a server that is not there or busy,
 * somebody else who stood in the way.
 */
bool
pos_schedule_is_transient(int sqlerrcode)
{
	switch (sqlerrcode)
	{
			/* servers that refuse a password say nothing more precise */
		case ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION:
		case ERRCODE_INVALID_PASSWORD:
		case ERRCODE_QUERY_CANCELED:
			return sqlerrcode == ERRCODE_QUERY_CANCELED;
		case ERRCODE_LOCK_NOT_AVAILABLE:
		case ERRCODE_FDW_UNABLE_TO_CREATE_EXECUTION:	/* cancelled there */
			return true;
	}
	switch (ERRCODE_TO_CATEGORY(sqlerrcode))
	{
		case ERRCODE_CONNECTION_EXCEPTION:
		case ERRCODE_TRANSACTION_ROLLBACK:
		case ERRCODE_INSUFFICIENT_RESOURCES:
		case ERRCODE_OPERATOR_INTERVENTION:
		case ERRCODE_SYSTEM_ERROR:
			return true;
	}
	return false;
}

/*
 * Returns when a job runs next that ran at now: after every microseconds, and
 * up to jitter earlier or later; fraction is by chance, from 0 to 1.
 */
TimestampTz
pos_schedule_next(TimestampTz now, int64 every, int64 jitter, double fraction)
{
	int64		wait = every + (int64) (jitter * (2 * fraction - 1));

	return now + Max(wait, INT64CONST(1000));
}

/*
 * Returns when a job is tried again that has failed so many times in a row:
 * after a second, then two, four, up to longest seconds, of which chance takes
 * up to half; after slow seconds where trying again is of little use.
 */
TimestampTz
pos_schedule_retry(TimestampTz now, int failures, bool transient, int longest,
				   int slow, double fraction)
{
	int64		most = (int64) (transient ? longest : slow) * 1000;
	int64		wait = most;

	if (transient && failures < 30)
		wait = Min(most, (int64) FIRST_RETRY << (failures - 1));
	return TimestampTzPlusMilliseconds(now, (int64) (wait * (1 - fraction / 2)));
}
