/*
 * sql.h
 *		Statements on the user's tables.
 */
#ifndef POSSYNC_SQL_H
#define POSSYNC_SQL_H

#include "executor/spi.h"
#include "model.h"

/* Rows fetched from a cursor at a time */
#define POS_FETCH_SIZE 1000

typedef struct PosCursor
{
	Portal		portal;
	SPITupleTable *table;		/* the rows fetched last */
	uint64		next;
	uint64		count;
} PosCursor;

/* in sql.c */
extern char *pos_sql_equality(PosField *field);
extern void pos_sql_append_key_join(StringInfo sql, PosModel *model);
extern Bitmapset *pos_sql_key_columns(PosModel *model);
extern uint64 pos_sql_execute(const char *sql, int nargs, Oid *types,
							  Datum *values);
extern uint64 pos_sql_execute_join(const char *sql, Relation rel,
								   Bitmapset *columns, int64 rows);
extern int	pos_sql_plan_join(Relation rel, Bitmapset *columns, int64 rows);
extern void pos_sql_planned(int nestlevel);
extern void pos_sql_as_owner(Relation rel, Oid *saved_user, int *saved_context);
extern PosCursor *pos_sql_open_whole(const char *sql);
extern uint64 pos_sql_execute_whole(const char *sql);
extern void pos_sql_read_whole(const char *sql, DestReceiver *receiver);
extern PosCursor *pos_sql_open(const char *sql, bool read_only);
extern HeapTuple pos_sql_peek(PosCursor *cursor, TupleDesc *desc);
extern void pos_sql_take(PosCursor *cursor);
extern void pos_sql_close(PosCursor *cursor);

#endif							/* POSSYNC_SQL_H */
