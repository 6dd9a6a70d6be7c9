/*
 * lookup.c
 *		Rows of a model's local table by their keys: index scans of our own, which
 *		ask no planner.
 *
 * What is found is what a statement that began when the lookup was opened or
 * renewed would see, and whatever this transaction has written since.  As long as
 * the lookup is open no row that it has found gives its place to another one.
 *
 * Callers work row by row, but what a scan allocates on its way, and the buffers
 * that it pins, live as long as the lookup.
 */
#include "possync.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/nbtree.h"
#include "access/relscan.h"
#include "access/tableam.h"
#include "access/transam.h"
#include "access/xact.h"
#include "catalog/pg_am.h"
#include "catalog/pg_class.h"
#include "compat.h"
#include "lookup.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"
#include "utils/typcache.h"

struct PosLookup
{
	Relation	index;
	IndexScanDesc scan;
	Snapshot	first;			/* keeps places, see above */
	Snapshot	snapshot;
	TupleTableSlot *slot;
	MemoryContext context;
	ResourceOwner owner;
	int			nkeys;
	int			parts[INDEX_MAX_KEYS];	/* which part of the key a column is */
	ScanKeyData keys[INDEX_MAX_KEYS];
};

/* Returns what a column of an index calls equal. */
static Oid
equality(Relation index, int column)
{
	Oid			type = index->rd_opcintype[column];

	return get_opfamily_member(index->rd_opfamily[column], type, type,
							   BTEqualStrategyNumber);
}

/* Whether a column of an index calls equal what SQL does of a part of the key. */
static bool
is_equal(PosField *field, Relation index, int column)
{
	return index->rd_indcollation[column] == field->collation &&
		equality(index, column) == lookup_type_cache(field->type,
													 TYPECACHE_EQ_OPR)->eq_opr;
}

/* Whether an index knows of the rows that old snapshots see, as the planner asks. */
static bool
knows_old_rows(Relation index)
{
	return !index->rd_index->indcheckxmin ||
		TransactionIdPrecedes(HeapTupleHeaderGetXmin(index->rd_indextuple->t_data),
							  TransactionXmin);
}

/* Whether an index finds at most one row by the key of a model, and the right one. */
static bool
serves(PosModel *model, Relation index)
{
	Form_pg_index form = index->rd_index;

	if (!form->indisunique || !form->indimmediate || !form->indisvalid ||
		!form->indisready || index->rd_rel->relam != BTREE_AM_OID ||
		form->indnkeyatts != model->nkey ||
		RelationGetIndexPredicate(index) != NIL || !knows_old_rows(index))
		return false;
	for (int i = 0; i < form->indnkeyatts; i++)
	{
		int			part = pos_key_part(model, form->indkey.values[i]);

		if (part < 0 || !is_equal(model->key[part], index, i))
			return false;
	}
	return true;
}

/* Opens an index that serves a model, or returns NULL. */
static Relation
open_index(PosModel *model)
{
	ListCell   *lc;

	if (model->rel->rd_rel->relkind != RELKIND_RELATION)
		return NULL;
	foreach(lc, RelationGetIndexList(model->rel))
	{
		Relation	index = index_open(lfirst_oid(lc), AccessShareLock);

		if (serves(model, index))
			return index;
		index_close(index, AccessShareLock);
	}
	return NULL;
}

/* Whether rows of a model can be looked up. */
bool
pos_lookup_possible(PosModel *model)
{
	Relation	index = open_index(model);

	if (index != NULL)
		index_close(index, AccessShareLock);
	return index != NULL;
}

/* Prepares the comparison of one column of the index. */
static void
init_key(PosLookup *lookup, int column)
{
	Relation	index = lookup->index;

	ScanKeyEntryInitialize(&lookup->keys[column], 0, column + 1,
						   BTEqualStrategyNumber, InvalidOid,
						   index->rd_indcollation[column],
						   get_opcode(equality(index, column)), (Datum) 0);
}

/*
 * Opens a model's table, which is open and locked, for looking up rows; in the
 * current memory context and resource owner.  Returns NULL if no index serves.
 */
PosLookup *
pos_lookup_open(PosModel *model)
{
	Relation	index = open_index(model);
	PosLookup  *lookup;

	if (index == NULL)
		return NULL;
	lookup = palloc0(sizeof(PosLookup));
	lookup->index = index;
	lookup->context = CurrentMemoryContext;
	lookup->owner = CurrentResourceOwner;
	lookup->nkeys = model->nkey;
	for (int i = 0; i < model->nkey; i++)
	{
		lookup->parts[i] = pos_key_part(model, index->rd_index->indkey.values[i]);
		init_key(lookup, i);
	}
	lookup->slot = table_slot_create(model->rel, NULL);
	lookup->first = lookup->snapshot = RegisterSnapshot(GetTransactionSnapshot());
	lookup->scan = pos_compat_beginscan(model->rel, index, lookup->snapshot,
										model->nkey);
	return lookup;
}

/*
 * Finds the row with a key, given as values of its columns in the model's order.
 * Returns NULL or a slot that is good until the next call.
 */
TupleTableSlot *
pos_lookup_find(PosLookup *lookup, Datum *key)
{
	MemoryContext old = MemoryContextSwitchTo(lookup->context);
	ResourceOwner owner = CurrentResourceOwner;
	bool		found;

	CurrentResourceOwner = lookup->owner;
	for (int i = 0; i < lookup->nkeys; i++)
		lookup->keys[i].sk_argument = key[lookup->parts[i]];
	lookup->snapshot->curcid = GetCurrentCommandId(false);
	index_rescan(lookup->scan, lookup->keys, lookup->nkeys, NULL, 0);
	found = index_getnext_slot(lookup->scan, ForwardScanDirection, lookup->slot);
	CurrentResourceOwner = owner;
	MemoryContextSwitchTo(old);
	return found ? lookup->slot : NULL;
}

/*
 * Has the lookup see what others have committed by now.  Returns false in a
 * transaction that sees all at one moment.
 */
bool
pos_lookup_renew(PosLookup *lookup)
{
	Snapshot	old = lookup->snapshot;

	if (IsolationUsesXactSnapshot())
		return false;
	ExecClearTuple(lookup->slot);
	lookup->snapshot = RegisterSnapshotOnOwner(GetLatestSnapshot(), lookup->owner);
	lookup->scan->xs_snapshot = lookup->snapshot;
	if (old != lookup->first)
		UnregisterSnapshotFromOwner(old, lookup->owner);
	return true;
}

/* Closes all that pos_lookup_open has opened; NULL is nothing. */
void
pos_lookup_close(PosLookup *lookup)
{
	if (lookup == NULL)
		return;
	ExecDropSingleTupleTableSlot(lookup->slot);
	index_endscan(lookup->scan);
	index_close(lookup->index, AccessShareLock);
	if (lookup->snapshot != lookup->first)
		UnregisterSnapshotFromOwner(lookup->snapshot, lookup->owner);
	UnregisterSnapshotFromOwner(lookup->first, lookup->owner);
	pfree(lookup);
}
