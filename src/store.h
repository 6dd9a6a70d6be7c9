/*
 * store.h
 *		Statements on possync's own tables.
 */
#ifndef POSSYNC_STORE_H
#define POSSYNC_STORE_H

#include "executor/spi.h"

/* in store.c */
extern void pos_store_init(Oid function);
extern void pos_store_init_schema(Oid schema);
extern const char *pos_store_schema(void);
extern Oid	pos_store_schema_oid(void);
extern Oid	pos_store_relid(const char *table);
extern uint64 pos_store_execute(const char *sql, int nargs, Oid *types,
								Datum *values, const char *nulls);
extern void pos_store_read(const char *sql, DestReceiver *receiver);
extern void pos_store_as_owner(Oid relid, Oid *saved_user, int *saved_context);

#endif							/* POSSYNC_STORE_H */
