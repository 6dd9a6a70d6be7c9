/*
 * transaction.h
 *		Transactions of a background worker.
 */
#ifndef POSSYNC_TRANSACTION_H
#define POSSYNC_TRANSACTION_H

/* in transaction.c */
extern void pos_transaction_begin(void);
extern void pos_transaction_wait_briefly(void);
extern void pos_transaction_commit(void);
extern void pos_transaction_commit_lazily(void);

#endif							/* POSSYNC_TRANSACTION_H */
