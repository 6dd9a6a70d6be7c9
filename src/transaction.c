/*
 * transaction.c
 *		The envelope of every transaction of a background worker: time, SPI,
 *		snapshot, statistics.
 */
#include "possync.h"

#include "access/xact.h"
#include "executor/spi.h"
#include "pgstat.h"
#include "transaction.h"
#include "utils/guc.h"
#include "utils/snapmgr.h"

/* Begins a transaction in which statements can be run. */
void
pos_transaction_begin(void)
{
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	PushActiveSnapshot(GetTransactionSnapshot());
}

/* Lets it fail rather than wait for a lock for longer than a second. */
void
pos_transaction_wait_briefly(void)
{
	(void) set_config_option("lock_timeout", "1s", PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_LOCAL, true, 0, false);
}

/* Commits it. */
void
pos_transaction_commit(void)
{
	SPI_finish();
	PopActiveSnapshot();
	CommitTransactionCommand();
	pgstat_report_stat(false);
}

/*
 * Commits a transaction that may be lost in a crash of the server, but not
 * halved: nobody waits for the disk.
 */
void
pos_transaction_commit_lazily(void)
{
	(void) set_config_option("synchronous_commit", "off", PGC_USERSET,
							 PGC_S_SESSION, GUC_ACTION_LOCAL, true, 0, false);
	pos_transaction_commit();
}
