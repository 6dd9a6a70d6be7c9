/*
 * store.h
 *		Statements on possync's own tables.
 */
#ifndef POSSYNC_STORE_H
#define POSSYNC_STORE_H

#include "executor/spi.h"

/* How a statement is planned, see pos_store_execute_as */
typedef enum PosStorePlan
{
	POS_PLAN_ANY,
	POS_PLAN_LOOK_UP,			/* rows are found one by one, by indexes */
	POS_PLAN_MERGE				/* rows are read in the order of indexes, and
								 * joined in it */
} PosStorePlan;

/* in store.c */
extern void pos_store_init(Oid function);
extern void pos_store_init_schema(Oid schema);
extern const char *pos_store_schema(void);
extern Oid	pos_store_schema_oid(void);
extern Oid	pos_store_relid(const char *table);
extern uint64 pos_store_execute(const char *sql, int nargs, Oid *types,
								Datum *values, const char *nulls);
extern uint64 pos_store_execute_as(PosStorePlan how, const char *sql, int nargs,
								   Oid *types, Datum *values, const char *nulls);
extern void pos_store_read(const char *sql, DestReceiver *receiver);
extern void pos_store_as_owner(Oid relid, Oid *saved_user, int *saved_context);

#endif							/* POSSYNC_STORE_H */
