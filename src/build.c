/*
 * build.c
 *		Building the indexes of a table that has been filled, by several processes
 *		where that pays.
 *
 * This is REINDEX, but what PostgreSQL does for one index after the other is done
 * here for all together: the catalogs are changed before and after, and in between
 * the processes of a parallel operation take one index after the other, as those of
 * VACUUM do.  Each sorts on its own, in its share of maintenance_work_mem; nothing
 * is merged.
 *
 * Only whole, valid indexes of permanent tables are built, of which the caller has
 * locked everything: that leaves out what REINDEX has to do besides.
 */
#include "possync.h"

#include "access/amapi.h"
#include "access/parallel.h"
#include "access/table.h"
#include "access/visibilitymap.h"
#include "access/xact.h"
#include "build.h"
#include "catalog/index.h"
#include "catalog/pg_am.h"
#include "catalog/pg_proc.h"
#include "commands/tablecmds.h"
#include "compat.h"
#include "fault.h"
#include "miscadmin.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/optimizer.h"
#include "optimizer/paths.h"
#include "optimizer/planner.h"
#include "port/atomics.h"
#include "storage/bufmgr.h"
#include "storage/predicate.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"

/* Memory below which a process has to sort in too many pieces, as in PostgreSQL, kB */
#define MIN_MEMORY	32768

/* The processes find their work under this key. */
#define KEY_WORK	1

typedef struct Built
{
	Oid			index;
	double		heap_tuples;
	double		index_tuples;
} Built;

/* What the processes have in common */
typedef struct Work
{
	Oid			table;
	int			memory;			/* for each, kB */
	int			n;
	pg_atomic_uint32 next;		/* the index that nobody has taken yet */
	Built		built[FLEXIBLE_ARRAY_MEMBER];
} Work;

extern PGDLLEXPORT void possync_build_main(dsm_segment *segment, shm_toc *toc);

static bool
is_unsafe(Oid function, void *context)
{
	return func_parallel(function) != PROPARALLEL_SAFE;
}

static bool
has_unsafe(Node *node, void *context)
{
	return node != NULL &&
		(check_functions_in_node(node, is_unsafe, context) ||
		 expression_tree_walker(node, has_unsafe, context));
}

/* Whether any process can build an index. */
static bool
can_share(Oid oid)
{
	Relation	index = index_open(oid, NoLock);
	bool		can = index->rd_rel->relam == BTREE_AM_OID &&
	!has_unsafe((Node *) RelationGetIndexExpressions(index), NULL) &&
	!has_unsafe((Node *) RelationGetIndexPredicate(index), NULL);

	index_close(index, NoLock);
	return can;
}

/* How many processes are to help with so many indexes. */
static int
choose_workers(Relation rel, int n)
{
	if (!IsUnderPostmaster || n == 0 ||
		(int64) RelationGetNumberOfBlocks(rel) * n < min_parallel_table_scan_size)
		return 0;
	return Max(0, Min(Min(n, maintenance_work_mem / MIN_MEMORY) - 1,
					  max_parallel_maintenance_workers));
}

/* Gives an index an empty file of its own until the transaction ends. */
static void
renew_storage(Relation rel, Oid oid)
{
	Relation	index = index_open(oid, AccessExclusiveLock);

	CheckTableNotInUse(index, "REINDEX INDEX");
	TransferPredicateLocksToHeapRelation(index);
	pos_compat_set_new_storage(index, rel->rd_rel->relpersistence);
	index_close(index, NoLock);
}

/* Builds one index; alone says that no other one is built meanwhile. */
static void
build(Relation rel, Built *built, bool alone)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext,
												  "possync index",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	Relation	index = index_open(built->index, RowExclusiveLock);
	IndexInfo  *info = BuildIndexInfo(index);
	IndexBuildResult *result;

	if (alone && index->rd_rel->relam == BTREE_AM_OID)
		info->ii_ParallelWorkers =
			plan_create_index_workers(RelationGetRelid(rel), built->index);
	result = index->rd_indam->ambuild(rel, index, info);
	built->heap_tuples = result->heap_tuples;
	built->index_tuples = result->index_tuples;
	index_close(index, NoLock);
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
}

/* Takes indexes and builds them, until none is left. */
static void
take_part(Relation rel, Work *work, bool alone)
{
	uint32		i;

	while ((i = pg_atomic_fetch_add_u32(&work->next, 1)) < work->n)
		build(rel, &work->built[i], alone);
}

/* Other processes begin here. */
void
possync_build_main(dsm_segment *segment, shm_toc *toc)
{
	Work	   *work = shm_toc_lookup(toc, KEY_WORK, false);
	Relation	rel = table_open(work->table, ShareLock);

	maintenance_work_mem = work->memory;
	pos_fault_point("index helper");
	take_part(rel, work, false);
	table_close(rel, NoLock);
}

/* Fills in what is to be done. */
static void
set_up(Work *work, Relation rel, List *indexes, int memory)
{
	work->table = RelationGetRelid(rel);
	work->memory = memory;
	work->n = list_length(indexes);
	pg_atomic_init_u32(&work->next, 0);
	for (int i = 0; i < work->n; i++)
	{
		work->built[i].index = list_nth_oid(indexes, i);
		work->built[i].heap_tuples = 0;
		work->built[i].index_tuples = 0;
	}
}

/* Tells the planner how large a table or an index is. */
static void
set_size(Relation rel, double tuples)
{
	BlockNumber visible = 0;

	if (tuples == 0)
		return;
	if (rel->rd_rel->relkind != RELKIND_INDEX)
		visibilitymap_count(rel, &visible, NULL);
	pos_compat_set_size(rel, RelationGetNumberOfBlocks(rel), tuples, visible);
}

/* Writes down how large all has become. */
static void
finish(Relation rel, Work *work)
{
	for (int i = 0; i < work->n; i++)
	{
		Relation	index = index_open(work->built[i].index, NoLock);

		set_size(index, work->built[i].index_tuples);
		index_close(index, NoLock);
	}
	set_size(rel, work->built[0].heap_tuples);
	CommandCounterIncrement();
}

/* Builds indexes one after the other. */
static void
build_alone(Relation rel, List *indexes)
{
	Work	   *work = palloc(offsetof(Work, built) +
							  list_length(indexes) * sizeof(Built));

	set_up(work, rel, indexes, maintenance_work_mem);
	take_part(rel, work, true);
	finish(rel, work);
	pfree(work);
}

/* Builds indexes together with other processes; none may come. */
static void
build_together(Relation rel, List *indexes, int nworkers)
{
	Size		size = offsetof(Work, built) + list_length(indexes) * sizeof(Built);
	int			memory = maintenance_work_mem;
	Work	   *result = palloc(size);
	Work	   *work;
	ParallelContext *context;

	EnterParallelMode();
	context = CreateParallelContext("possync", "possync_build_main", nworkers);
	shm_toc_estimate_chunk(&context->estimator, size);
	shm_toc_estimate_keys(&context->estimator, 1);
	InitializeParallelDSM(context);
	work = shm_toc_allocate(context->toc, size);
	set_up(work, rel, indexes, memory / (context->nworkers + 1));
	shm_toc_insert(context->toc, KEY_WORK, work);
	LaunchParallelWorkers(context);
	PG_TRY();
	{
		maintenance_work_mem = work->memory;
		take_part(rel, work, false);
	}
	PG_FINALLY();
	{
		maintenance_work_mem = memory;
	}
	PG_END_TRY();
	WaitForParallelWorkersToFinish(context);
	memcpy(result, work, size);
	DestroyParallelContext(context);
	ExitParallelMode();
	finish(rel, result);
	pfree(result);
}

/*
 * Builds indexes of a table anew, of which all rows are there.  All are locked, and
 * nobody in this session has one of them open.  Raises what building raises: that a
 * key is not unique.
 */
void
pos_build_indexes(Relation rel, List *indexes)
{
	List	   *shared = NIL;
	List	   *others = NIL;
	ListCell   *lc;
	Oid			user;
	int			security;
	int			nestlevel;
	int			nworkers;

	if (indexes == NIL)
		return;
	foreach(lc, indexes)
	{
		renew_storage(rel, lfirst_oid(lc));
		if (can_share(lfirst_oid(lc)))
			shared = lappend_oid(shared, lfirst_oid(lc));
		else
			others = lappend_oid(others, lfirst_oid(lc));
	}
	CommandCounterIncrement();

	/* functions of indexes run as the table's owner, as in PostgreSQL */
	GetUserIdAndSecContext(&user, &security);
	SetUserIdAndSecContext(rel->rd_rel->relowner,
						   security | SECURITY_RESTRICTED_OPERATION);
	nestlevel = NewGUCNestLevel();
	pos_compat_restrict_search_path();
	nworkers = choose_workers(rel, list_length(shared));
	if (nworkers > 0)
		build_together(rel, shared, nworkers);
	else
		others = list_concat(shared, others);
	if (others != NIL)
		build_alone(rel, others);
	AtEOXact_GUC(false, nestlevel);
	SetUserIdAndSecContext(user, security);
}
