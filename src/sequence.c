/*
 * sequence.c
 *		Keys that a sequence makes, many at a time.
 *
 * nextval() locks and logs the sequence for every number.  Who takes thousands of
 * them reserves some ahead: the sequence is locked against others, if that can be
 * had at once, moved on with setval(), and unlocked again.  No more are ever left
 * over than a sixteenth of those that were used.
 *
 * A sequence that caches numbers in sessions is left to nextval(), since others hold
 * numbers of it that cannot be seen.
 */
#include "possync.h"

#include "catalog/pg_class.h"
#include "catalog/pg_sequence.h"
#include "catalog/pg_type.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "nodes/nodeFuncs.h"
#include "sequence.h"
#include "storage/lmgr.h"
#include "utils/acl.h"
#include "utils/fmgroids.h"
#include "utils/fmgrprotos.h"
#include "utils/syscache.h"

/* Numbers reserved at once at most, and one for so many that were used */
#define MAX_RESERVED	1000
#define USED_FOR_ONE	16

struct PosSequence
{
	Oid			relid;
	Oid			type;			/* of the numbers: int2, int4 or int8 */
	int64		used;			/* since they could be reserved */
	int64		next;			/* the next number that is reserved */
	int64		step;
	int64		left;			/* how many of them there are */
};

/* Returns the sequence whose nextval() an expression is, or InvalidOid. */
static Oid
find_sequence(Node *expression)
{
	if (IsA(expression, NextValueExpr))
		return ((NextValueExpr *) expression)->seqid;
	expression = strip_implicit_coercions(expression);
	if (IsA(expression, FuncExpr) &&
		((FuncExpr *) expression)->funcid == F_NEXTVAL)
	{
		Node	   *argument = linitial(((FuncExpr *) expression)->args);

		if (IsA(argument, Const) && !((Const *) argument)->constisnull)
			return DatumGetObjectId(((Const *) argument)->constvalue);
	}
	return InvalidOid;
}

/* Returns the sequence behind a column's default, or NULL if it is something else. */
PosSequence *
pos_sequence_find(Node *expression)
{
	Oid			relid = find_sequence(expression);
	Oid			type = exprType(expression);
	PosSequence *sequence;

	if (!OidIsValid(relid) ||
		(type != INT2OID && type != INT4OID && type != INT8OID))
		return NULL;
	sequence = palloc0(sizeof(PosSequence));
	sequence->relid = relid;
	sequence->type = type;
	return sequence;
}

/* Returns a number as a value of the column's type. */
static Datum
make_datum(PosSequence *sequence, int64 number)
{
	if (sequence->type == INT2OID)
		return Int16GetDatum((int16) number);
	if (sequence->type == INT4OID)
		return Int32GetDatum((int32) number);
	return Int64GetDatum(number);
}

static int64
get_number(PosSequence *sequence, Datum value)
{
	if (sequence->type == INT2OID)
		return DatumGetInt16(value);
	if (sequence->type == INT4OID)
		return DatumGetInt32(value);
	return DatumGetInt64(value);
}

/* Locks the sequence, so that nobody else takes numbers of it.  Never waits. */
static bool
lock(PosSequence *sequence)
{
	if (sequence->used < USED_FOR_ONE)
		return false;
	if (pg_class_aclcheck(sequence->relid, GetUserId(), ACL_UPDATE) == ACLCHECK_OK &&
		ConditionalLockRelationOid(sequence->relid, ShareRowExclusiveLock))
		return true;
	sequence->used = 0;
	return false;
}

/* Returns how many more numbers there are after one, at most n. */
static int64
count_after(PosSequence *sequence, Form_pg_sequence form, int64 number, int64 n)
{
	int64		most = sequence->type == INT2OID ? PG_INT16_MAX :
	sequence->type == INT4OID ? PG_INT32_MAX : PG_INT64_MAX;

	if (form->seqcache != 1 || form->seqincrement < 0)
		return 0;
	most = Min(form->seqmax, most);
	return number >= most ? 0 :
		Min(n, (int64) (((uint64) most - (uint64) number) / form->seqincrement));
}

/* Reserves numbers that follow one that the locked sequence has just made. */
static void
reserve(PosSequence *sequence, int64 number)
{
	HeapTuple	tuple = SearchSysCache1(SEQRELID, ObjectIdGetDatum(sequence->relid));
	Form_pg_sequence form;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for sequence %u", sequence->relid);
	form = (Form_pg_sequence) GETSTRUCT(tuple);
	sequence->step = form->seqincrement;
	sequence->next = number + sequence->step;
	sequence->left = count_after(sequence, form, number,
								 Min(MAX_RESERVED, sequence->used / USED_FOR_ONE));
	ReleaseSysCache(tuple);
	if (sequence->left > 0)
		DirectFunctionCall2(setval_oid, ObjectIdGetDatum(sequence->relid),
							Int64GetDatum(number + sequence->left * sequence->step));
	UnlockRelationOid(sequence->relid, ShareRowExclusiveLock);
}

/*
 * Returns the next number; expression is the column's default, which is asked where
 * none is reserved.
 */
Datum
pos_sequence_next(PosSequence *sequence, ExprState *expression, ExprContext *context)
{
	Datum		value;
	bool		isnull;
	bool		locked;

	if (sequence->left == 0)
	{
		locked = lock(sequence);
		value = ExecEvalExpr(expression, context, &isnull);
		if (locked)
			reserve(sequence, get_number(sequence, value));
	}
	else
	{
		value = make_datum(sequence, sequence->next);
		sequence->next += sequence->step;
		sequence->left--;
	}
	sequence->used++;
	return value;
}
