/*
 * possync.c
 *		Loading of the module, and its settings.
 */
#include "possync.h"

#include <limits.h>

#include "fault.h"
#include "fmgr.h"
#include "launcher.h"
#include "miscadmin.h"
#include "progress.h"
#include "push.h"
#include "shared.h"
#include "utils/guc.h"

PG_MODULE_MAGIC;

int			pos_clock_offset_max;
int			pos_compare_interval;
int			pos_delete_limit;
int			pos_history_keep;
int			pos_log_keep;
int			pos_part_rows;
int			pos_retry_max;
int			pos_retry_slow;

void		_PG_init(void);

static void
define_settings(void)
{
	DefineCustomIntVariable("possync.clock_offset_max",
							"How far the clock of a server may be from ours before a pull warns.",
							"-1 never warns.",
							&pos_clock_offset_max, 60, -1, 24 * 60 * 60,
							PGC_SIGHUP, GUC_UNIT_S, NULL, NULL, NULL);
	DefineCustomIntVariable("possync.compare_interval",
							"How often rows that were deleted at a server are looked for by comparing keys.",
							"0 is with every pull, -1 never.",
							&pos_compare_interval, 600, -1, 24 * 60 * 60,
							PGC_USERSET, GUC_UNIT_S, NULL, NULL, NULL);
	DefineCustomIntVariable("possync.delete_limit",
							"How much of a table a pull deletes at most, in percent.",
							"If more is gone at the server, somebody has to look first; 100 rows are always deleted.",
							&pos_delete_limit, 20, 0, 100,
							PGC_USERSET, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("possync.history_keep",
							"How long rows of synchronize_history are kept.",
							"Scheduled jobs trim it; -1 keeps them for ever.",
							&pos_history_keep, 30 * 24 * 60, -1, INT_MAX,
							PGC_SIGHUP, GUC_UNIT_MIN, NULL, NULL, NULL);
	DefineCustomIntVariable("possync.log_keep",
							"How long entries of a change log are kept.",
							"A till that was away for longer compares all rows; -1 keeps them for ever.",
							&pos_log_keep, 7 * 24 * 60, -1, INT_MAX,
							PGC_SIGHUP, GUC_UNIT_MIN, NULL, NULL, NULL);
	DefineCustomIntVariable("possync.part_rows",
							"How many rows of an initial load a scheduled pull commits together.",
							"0 makes it one transaction.",
							&pos_part_rows, 100000, 0, INT_MAX,
							PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("possync.retry_max",
							"The longest wait before a job whose server cannot be reached is tried again.",
							"It begins with a second and doubles with every failure.",
							&pos_retry_max, 60, 1, 24 * 60 * 60,
							PGC_SIGHUP, GUC_UNIT_S, NULL, NULL, NULL);
	DefineCustomIntVariable("possync.retry_slow",
							"The wait before a job is tried again that failed for a reason that does not pass.",
							"Changed configuration ends it.",
							&pos_retry_slow, 600, 1, 24 * 60 * 60,
							PGC_SIGHUP, GUC_UNIT_S, NULL, NULL, NULL);
}

/* Called by PostgreSQL when the module is loaded. */
void
_PG_init(void)
{
	pos_fault_init();
	pos_batch_init();
	define_settings();
	MarkGUCPrefixReserved("possync");
	if (!process_shared_preload_libraries_in_progress)
		return;
	pos_shared_init();
	pos_progress_init();
	pos_commands_init();
	pos_launcher_register();
}
