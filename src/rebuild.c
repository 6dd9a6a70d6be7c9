/*
 * rebuild.c
 *		Indexes that are left alone while a table is filled for the first time, and
 *		built when all its rows are there: a fifth to a half of the time, and of the
 *		WAL.
 *
 * An index that lacks rows may be read by nobody.  Others are kept out by locks
 * that are taken beforehand, and only if they can be had at once, so a load never
 * waits for somebody and nobody waits for it in a circle.  In our own session
 * nothing of the user's may run in between: pos_rebuild_is_plain tells.  Should
 * the transaction fail, the rows are dead and the old indexes are right again.
 */
#include "possync.h"

#include "access/genam.h"
#include "catalog/pg_language.h"
#include "catalog/pg_proc.h"
#include "access/transam.h"
#include "nodes/nodeFuncs.h"
#include "rebuild.h"
#include "storage/lmgr.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"
#include "utils/typcache.h"

/* Whether a function may look at tables: all that users write, unless in C. */
static bool
may_look(Oid function, void *context)
{
	HeapTuple	tuple;
	Oid			language;

	if (function < FirstNormalObjectId)
		return false;
	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(function));
	if (!HeapTupleIsValid(tuple))
		return true;
	language = ((Form_pg_proc) GETSTRUCT(tuple))->prolang;
	ReleaseSysCache(tuple);
	return language != INTERNALlanguageId && language != ClanguageId;
}

static bool
has_code(Node *node, void *context)
{
	return node != NULL &&
		(check_functions_in_node(node, may_look, context) ||
		 expression_tree_walker(node, has_code, context));
}

static bool
text_has_code(const char *expression)
{
	return expression != NULL && has_code(stringToNode(expression), NULL);
}

/* Whether values of a type are checked or made by functions of the user's. */
static bool
type_has_code(Oid type)
{
	return get_typtype(type) == TYPTYPE_DOMAIN &&
		(DomainHasConstraints(type) || has_code(get_typdefault(type), NULL));
}

/*
 * Whether defaults, checks and indexes of a table do without functions of the
 * user's that may look at tables.  Triggers and rules are another question.
 */
bool
pos_rebuild_is_plain(Relation rel)
{
	TupleDesc	desc = RelationGetDescr(rel);
	TupleConstr *constraints = desc->constr;
	ListCell   *lc;
	bool		code = false;

	for (int i = 0; i < desc->natts && !code; i++)
		code = !TupleDescAttr(desc, i)->attisdropped &&
			type_has_code(TupleDescAttr(desc, i)->atttypid);
	for (int i = 0; constraints != NULL && i < constraints->num_defval && !code; i++)
		code = text_has_code(constraints->defval[i].adbin);
	for (int i = 0; constraints != NULL && i < constraints->num_check && !code; i++)
		code = text_has_code(constraints->check[i].ccbin);
	foreach(lc, RelationGetIndexList(rel))
	{
		Relation	index = index_open(lfirst_oid(lc), AccessShareLock);

		code = code || has_code((Node *) RelationGetIndexExpressions(index), NULL) ||
			has_code((Node *) RelationGetIndexPredicate(index), NULL);
		index_close(index, AccessShareLock);
	}
	return !code;
}

/* Whether a read is known to bring so many rows that indexes are built at the end. */
bool
pos_rebuild_expects(PosTable *table)
{
	return table->changed && table->position == NULL &&
		table->rows >= POS_REBUILD_ROWS &&
		(table->limit == 0 || table->limit >= POS_REBUILD_ROWS);
}

/*
 * Locks some open indexes of a table, and the table against others that write,
 * until the end of the transaction.  Returns false, and holds nothing, if that
 * would mean to wait or if somebody else in this session uses one of them.
 */
bool
pos_rebuild_lock(Relation rel, int nindexes, Relation *indexes)
{
	int			locked = 0;

	if (!ConditionalLockRelation(rel, ShareRowExclusiveLock))
		return false;
	while (locked < nindexes && indexes[locked]->rd_refcnt == 1 &&
		   ConditionalLockRelation(indexes[locked], AccessExclusiveLock))
		locked++;
	if (locked == nindexes)
		return true;
	while (--locked >= 0)
		UnlockRelation(indexes[locked], AccessExclusiveLock);
	UnlockRelation(rel, ShareRowExclusiveLock);
	return false;
}
