/*
 * links.c
 *		Rows of synchronize_translation, found by their keys: index scans of our own,
 *		which ask no planner, so nothing here depends on statistics.
 *
 * The scans see rows as they are now (SnapshotSelf), our own of the current command
 * included.  Nobody else changes the translations of a model during a run, which
 * holds the model's lock; a repeatable read transaction that began before somebody
 * did has to be repeated.
 *
 * The index on remote integers has the local ones, too.  Where no more is of interest
 * and all the world sees a page's rows, the table is not read.
 *
 * Callers work row by row, maybe in a subtransaction for each, but what a scan
 * allocates on its way, as for the dead rows it finds, and the buffers that it pins
 * live as long as the scan.
 */
#include "possync.h"

#include "access/genam.h"
#include "access/relscan.h"
#include "access/sysattr.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/visibilitymap.h"
#include "access/xact.h"
#include "compat.h"
#include "links.h"
#include "storage/bufmgr.h"
#include "store.h"
#include "utils/fmgroids.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"

/* The column of an index that has the key, and that of the one on remote integers that
 * has the local one */
#define KEY_COLUMN		2
#define COVERED_COLUMN	3

static const struct
{
	const char *name;
	Oid			equal;			/* compares the key; 0: the index is not
								 * searched */
}			indexes[POS_LINK_INDEXES] = {
	{"synchronize_translation_remote", F_INT8EQ},
	{"synchronize_translation_local", F_INT8EQ},
	{"synchronize_translation_remote_text", F_TEXTEQ},
	{"synchronize_translation_local_text", F_TEXTEQ},
	{"synchronize_translation_gone", InvalidOid},
};

/* An index, ready to be searched */
typedef struct Search
{
	Relation	index;			/* NULL: not open */
	IndexScanDesc scan;
	ScanKeyData keys[2];
} Search;

struct PosLinks
{
	Relation	rel;
	TupleTableSlot *slot;
	Buffer		visible;		/* the page of the visibility map seen last */
	MemoryContext context;
	ResourceOwner owner;
	Search		searches[POS_LINK_INDEXES];
};

/* Returns one of the indexes. */
Oid
pos_links_index(PosLinkIndex which)
{
	return pos_store_relid(indexes[which].name);
}

/* Returns which index is on a model's remote keys, or on its local ones. */
PosLinkIndex
pos_links_index_of(PosModel *model, bool remote)
{
	if (remote)
		return model->remote_int ? POS_LINK_REMOTE : POS_LINK_REMOTE_TEXT;
	return model->local_int ? POS_LINK_LOCAL : POS_LINK_LOCAL_TEXT;
}

static void
open_search(PosLinks *links, PosLinkIndex which)
{
	Search	   *search = &links->searches[which];

	search->index = index_open(pos_links_index(which), AccessShareLock);
	search->scan = pos_compat_beginscan(links->rel, search->index, SnapshotSelf, 2);
	search->scan->xs_want_itup = which == POS_LINK_REMOTE;
	ScanKeyInit(&search->keys[0], 1, BTEqualStrategyNumber, F_INT2EQ, (Datum) 0);
	ScanKeyEntryInitialize(&search->keys[1], 0, 2, BTEqualStrategyNumber, InvalidOid,
						   search->index->rd_indcollation[1],
						   indexes[which].equal, (Datum) 0);
}

/* Opens the indexes again, in the middle of a run, whoever is at work. */
void
pos_links_return(PosLinks *links)
{
	MemoryContext old = MemoryContextSwitchTo(links->context);
	ResourceOwner owner = CurrentResourceOwner;

	CurrentResourceOwner = links->owner;
	for (int i = 0; i < POS_LINK_INDEXES; i++)
		if (OidIsValid(indexes[i].equal))
			open_search(links, i);
	CurrentResourceOwner = owner;
	MemoryContextSwitchTo(old);
}

/* Closes the indexes for a while. */
void
pos_links_leave(PosLinks *links)
{
	for (int i = 0; i < POS_LINK_INDEXES; i++)
	{
		if (links->searches[i].index == NULL)
			continue;
		index_endscan(links->searches[i].scan);
		index_close(links->searches[i].index, AccessShareLock);
		links->searches[i].index = NULL;
	}
}

/* Opens the indexes of the table, which is open; in the current memory context. */
PosLinks *
pos_links_open(Relation rel)
{
	PosLinks   *links = palloc0(sizeof(PosLinks));

	links->rel = rel;
	links->slot = table_slot_create(rel, NULL);
	links->visible = InvalidBuffer;
	links->context = CurrentMemoryContext;
	links->owner = CurrentResourceOwner;
	pos_links_return(links);
	return links;
}

/* Closes all but the table. */
void
pos_links_close(PosLinks *links)
{
	pos_links_leave(links);
	if (BufferIsValid(links->visible))
		ReleaseBuffer(links->visible);
	ExecDropSingleTupleTableSlot(links->slot);
	pfree(links);
}

/* Begins to scan an index for all of a model. */
static IndexScanDesc
scan_model(PosLinks *links, PosModel *model, PosLinkIndex which)
{
	Relation	index = index_open(pos_links_index(which), AccessShareLock);
	IndexScanDesc scan = pos_compat_beginscan(links->rel, index, SnapshotSelf, 1);
	ScanKeyData key;

	ScanKeyInit(&key, 1, BTEqualStrategyNumber, F_INT2EQ, Int16GetDatum(model->id));
	scan->xs_want_itup = true;
	index_rescan(scan, &key, 1, NULL, 0);
	return scan;
}

static void
end_scan(IndexScanDesc scan)
{
	Relation	index = scan->indexRelation;

	index_endscan(scan);
	index_close(index, AccessShareLock);
}

/* Whether an index has anything of a model. */
bool
pos_links_has_any(PosLinks *links, PosModel *model, PosLinkIndex which)
{
	IndexScanDesc scan = scan_model(links, model, which);
	bool		found = index_getnext_slot(scan, ForwardScanDirection, links->slot);

	ExecClearTuple(links->slot);
	end_scan(scan);
	return found;
}

/*
 * Returns an integer key beyond which an index has nothing of a model: the last one
 * that stands in it, be its row there or not.
 */
int64
pos_links_last(PosLinks *links, PosModel *model, PosLinkIndex which)
{
	IndexScanDesc scan = scan_model(links, model, which);
	int64		last = PG_INT64_MIN;
	bool		isnull;

	if (index_getnext_tid(scan, BackwardScanDirection) != NULL)
		last = DatumGetInt64(index_getattr(scan->xs_itup, KEY_COLUMN,
										   scan->xs_itupdesc, &isnull));
	end_scan(scan);
	return last;
}

/*
 * In a transaction that sees all at one moment, refuses what another one linked
 * since: the statements of this run would not see its row.
 */
static void
check_visible(TupleTableSlot *slot)
{
	bool		isnull;
	TransactionId xmin;

	if (!IsolationUsesXactSnapshot())
		return;
	xmin = DatumGetTransactionId(slot_getsysattr(slot,
												 MinTransactionIdAttributeNumber,
												 &isnull));
	if (!TransactionIdIsCurrentTransactionId(xmin) &&
		XidInMVCCSnapshot(xmin, GetTransactionSnapshot()))
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("could not serialize access due to a concurrent synchronization"),
				 errhint("The transaction might succeed if retried.")));
}

/*
 * Takes the scan to the first row that is there.  It stands in the slot, which is
 * empty if the index's tuple will do and everybody sees all rows of that page.
 */
static bool
get_first(PosLinks *links, IndexScanDesc scan, bool covered)
{
	ItemPointer tid;

	ExecClearTuple(links->slot);
	while ((tid = index_getnext_tid(scan, ForwardScanDirection)) != NULL)
	{
		if (covered && VM_ALL_VISIBLE(links->rel, ItemPointerGetBlockNumber(tid),
									  &links->visible))
			return true;
		if (index_fetch_heap(scan, links->slot))
			return true;
	}
	return false;
}

/* Searches an index for a key. */
static bool
find(PosLinks *links, Search *search, PosModel *model, Datum key, bool covered)
{
	MemoryContext old = MemoryContextSwitchTo(links->context);
	ResourceOwner owner = CurrentResourceOwner;
	bool		found;

	CurrentResourceOwner = links->owner;
	search->keys[0].sk_argument = Int16GetDatum(model->id);
	search->keys[1].sk_argument = key;
	index_rescan(search->scan, search->keys, 2, NULL, 0);
	found = get_first(links, search->scan, covered);
	CurrentResourceOwner = owner;
	MemoryContextSwitchTo(old);
	return found;
}

/* Refuses a row of which the key on the other side is of another type than now. */
static void
check_type(PosModel *model, bool isnull)
{
	if (isnull)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the key of table %s has changed its type since it was first synchronized",
						model->name),
				 errhint("Remove the model with possync_remove_model('%s', forget => true) and add it again.",
						 model->name)));
}

/* Reads the row in the slot, which was found by one of its keys. */
static void
read_row(TupleTableSlot *slot, PosModel *model, bool remote, PosLink *link)
{
	int			column;
	bool		isnull;

	check_visible(slot);
	if (remote)
		column = model->local_int ? POS_COL_LOCAL : POS_COL_LOCAL_TEXT;
	else
		column = model->remote_int ? POS_COL_REMOTE : POS_COL_REMOTE_TEXT;
	link->other = slot_getattr(slot, column + 1, &isnull);
	check_type(model, isnull);
	link->matched =
		DatumGetChar(slot_getattr(slot, POS_COL_DECISION + 1, &isnull)) == 'm';
	link->run = DatumGetInt32(slot_getattr(slot, POS_COL_RUN + 1, &isnull));
	(void) slot_getattr(slot, POS_COL_GONE + 1, &isnull);
	link->gone = !isnull;
}

/*
 * Finds what is known of a remote key, or of a local one.  A text stays valid until
 * the next key is looked for.
 */
bool
pos_links_find(PosLinks *links, PosModel *model, bool remote, Datum key, PosLink *link)
{
	PosLinkIndex which = pos_links_index_of(model, remote);
	Search	   *search = &links->searches[which];
	bool		covered = model->covered && which == POS_LINK_REMOTE &&
	model->local_int;
	bool		isnull;

	memset(link, 0, sizeof(PosLink));
	if (!find(links, search, model, key, covered))
		return false;
	if (!TTS_EMPTY(links->slot))
		read_row(links->slot, model, remote, link);
	else
	{
		link->other = index_getattr(search->scan->xs_itup, COVERED_COLUMN,
									search->scan->xs_itupdesc, &isnull);
		check_type(model, isnull);
	}
	return true;
}
