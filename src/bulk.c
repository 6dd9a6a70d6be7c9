/*
 * bulk.c
 *		Inserting many rows into one table below SQL, as COPY FROM does.
 *
 * Rows are gathered and handed to the table in batches; indexes, checks,
 * generated columns, defaults and AFTER ROW triggers are served as COPY serves
 * them.  What COPY would do row by row (BEFORE triggers) or what a statement
 * does and COPY does not (rules, policies) makes a table unfit for this way;
 * pos_bulk_possible tells, and the caller then inserts by SQL.
 *
 * A foreign key that the caller has proven for all rows can be spared: its
 * check is then not queued.  Nothing is switched off for anybody else.
 *
 * Indexes can be left alone and built at the end, see rebuild.c.
 */
#include "possync.h"

#include "access/heapam.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "build.h"
#include "bulk.h"
#include "catalog/pg_class.h"
#include "catalog/pg_trigger.h"
#include "commands/trigger.h"
#include "compat.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "optimizer/optimizer.h"
#include "rebuild.h"
#include "rewrite/rewriteHandler.h"
#include "target.h"
#include "utils/acl.h"
#include "utils/memutils.h"
#include "utils/rls.h"
#include "utils/snapmgr.h"

/* As many rows, or bytes, as COPY gathers */
#define MAX_ROWS	1000
#define MAX_BYTES	65535

struct PosBulk
{
	PosTarget	target;
	BulkInsertState state;		/* NULL until a batch is full */
	MemoryContext context;		/* reset after every batch */
	int			nrows;
	Size		nbytes;
	int			ncolumns;		/* columns supplied by the caller */
	AttrNumber *columns;
	int			ndefaults;		/* columns that get their default */
	AttrNumber *defaults;
	ExprState **expressions;
	bool		has_after_row;	/* the table's own value, see set_spared */
	bool		hold;			/* see pos_bulk_hold */
	List	   *rebuild;		/* of Oid: indexes to be built by closing */
	List	  **recheck;		/* of the rows: indexes to be checked later */
	int			maxrows;
	Size		maxbytes;
	TupleDesc	desc;			/* of the slots; pinned by none of them */
	int			nslots;
	TupleTableSlot **slots;		/* maxrows of them */
};

/*
 * Whether rows can be inserted into a table this way by the current user with
 * the same effect as by INSERT.
 */
bool
pos_bulk_possible(Relation rel)
{
	TriggerDesc *triggers = rel->trigdesc;

	if (rel->rd_rel->relkind != RELKIND_RELATION || rel->rd_rules != NULL)
		return false;
	if (pg_class_aclcheck(RelationGetRelid(rel), GetUserId(),
						  ACL_INSERT) != ACLCHECK_OK)
		return false;
	if (check_enable_rls(RelationGetRelid(rel), InvalidOid, true) != RLS_NONE)
		return false;
	return triggers == NULL ||
		!(triggers->trig_insert_before_row ||
		  triggers->trig_insert_instead_row ||
		  triggers->trig_insert_before_statement ||
		  triggers->trig_insert_after_statement ||
		  triggers->trig_insert_new_table);
}

/* Prepares the defaults of the columns that the caller does not supply. */
static void
prepare_defaults(PosBulk *bulk)
{
	TupleDesc	desc = RelationGetDescr(bulk->target.rel);

	bulk->defaults = palloc(desc->natts * sizeof(AttrNumber));
	bulk->expressions = palloc(desc->natts * sizeof(ExprState *));
	for (int a = 0; a < desc->natts; a++)
	{
		Form_pg_attribute attr = TupleDescAttr(desc, a);
		Node	   *expression;
		bool		supplied = bulk->columns == NULL;

		for (int i = 0; i < bulk->ncolumns && !supplied; i++)
			supplied = bulk->columns[i] == attr->attnum;
		if (supplied || attr->attisdropped || attr->attgenerated)
			continue;
		expression = build_column_default(bulk->target.rel, attr->attnum);
		if (expression == NULL)
			continue;
		bulk->defaults[bulk->ndefaults] = attr->attnum;
		bulk->expressions[bulk->ndefaults++] =
			ExecInitExpr(expression_planner((Expr *) expression), NULL);
	}
}

/*
 * Opens a table for inserting.  The caller supplies the given columns of
 * every row (NULL: all of them, in order).  The relation must stay open.
 */
PosBulk *
pos_bulk_open(Relation rel, int ncolumns, AttrNumber *columns)
{
	PosBulk    *bulk = palloc0(sizeof(PosBulk));
	MemoryContext old;

	bulk->maxrows = MAX_ROWS;
	bulk->maxbytes = MAX_BYTES;
	bulk->slots = palloc(MAX_ROWS * sizeof(TupleTableSlot *));
	bulk->ncolumns = columns == NULL ? RelationGetDescr(rel)->natts : ncolumns;
	bulk->columns = columns;
	bulk->context = AllocSetContextCreate(CurrentMemoryContext,
										  "possync bulk insert",
										  ALLOCSET_DEFAULT_SIZES);
	pos_target_open(&bulk->target, rel, CMD_INSERT, NULL);
	old = MemoryContextSwitchTo(bulk->target.estate->es_query_cxt);
	prepare_defaults(bulk);
	bulk->desc = CreateTupleDescCopyConstr(RelationGetDescr(rel));
	MemoryContextSwitchTo(old);
	if (bulk->target.info->ri_TrigDesc != NULL)
		bulk->has_after_row = bulk->target.info->ri_TrigDesc->trig_insert_after_row;
	return bulk;
}

/* Says how many rows, or bytes, are gathered until it is time to flush. */
void
pos_bulk_gather(PosBulk *bulk, int rows, Size bytes)
{
	bulk->maxrows = rows;
	bulk->maxbytes = bytes;
	bulk->slots = repalloc(bulk->slots, rows * sizeof(TupleTableSlot *));
}

/* Recomputes whether any AFTER ROW trigger is left to be queued. */
static void
update_after_row(PosBulk *bulk)
{
	TriggerDesc *triggers = bulk->target.info->ri_TrigDesc;
	bool		any = false;

	for (int i = 0; i < triggers->numtriggers; i++)
	{
		Trigger    *trigger = &triggers->triggers[i];

		any = any || (TRIGGER_TYPE_MATCHES(trigger->tgtype, TRIGGER_TYPE_ROW,
										   TRIGGER_TYPE_AFTER,
										   TRIGGER_TYPE_INSERT) &&
					  trigger->tgenabled != TRIGGER_DISABLED);
	}
	triggers->trig_insert_after_row = bulk->has_after_row && any;
}

/*
 * Says whether the check of a foreign key is spared for the rows that are not
 * flushed yet and those to come.  This touches the trigger list of this insert alone.
 */
void
pos_bulk_spare(PosBulk *bulk, Oid constraint, bool spare)
{
	TriggerDesc *triggers = bulk->target.info->ri_TrigDesc;

	if (triggers == NULL)
		return;
	for (int i = 0; i < triggers->numtriggers; i++)
	{
		Trigger    *trigger = &triggers->triggers[i];

		if (trigger->tgconstraint != constraint ||
			RI_FKey_trigger_type(trigger->tgfoid) != RI_TRIGGER_FK)
			continue;
		if (spare && trigger->tgenabled == TRIGGER_FIRES_ON_ORIGIN)
			trigger->tgenabled = TRIGGER_DISABLED;
		else if (!spare && trigger->tgenabled == TRIGGER_DISABLED)
			trigger->tgenabled = TRIGGER_FIRES_ON_ORIGIN;
	}
	update_after_row(bulk);
}

/*
 * Holds back the triggers that flushing queues, until the caller's own
 * AfterTriggerEndQuery, as if several tables were filled by one statement:
 * rows of a cycle of foreign keys can then be inserted in any order.
 */
void
pos_bulk_hold(PosBulk *bulk)
{
	bulk->hold = true;
}

/*
 * Fires what was held back since the caller's AfterTriggerBeginQuery.  Any of
 * the bulks concerned will do.
 */
void
pos_bulk_fire(PosBulk *bulk)
{
	PushActiveSnapshot(GetTransactionSnapshot());
	AfterTriggerEndQuery(bulk->target.estate);
	PopActiveSnapshot();
}

/* Whether rows may stay without an entry in an index until it is rebuilt. */
static bool
can_lag(Relation index)
{
	return index->rd_index->indimmediate && !index->rd_index->indisexclusion &&
		index->rd_index->indisready && index->rd_index->indisvalid &&
		index->rd_rel->relpersistence == RELPERSISTENCE_PERMANENT &&
		!pos_compat_prunes_early();
}

/*
 * Leaves indexes alone from here on, until pos_bulk_close builds them.  The caller
 * knows that nothing reads them until then.  Returns false if there is none, or they
 * are in use.
 */
bool
pos_bulk_rebuild(PosBulk *bulk)
{
	int			n = bulk->target.info->ri_NumIndices;
	Relation   *indexes = palloc(n * sizeof(Relation));
	int			nlagging = 0;

	for (int i = 0; i < n; i++)
		if (can_lag(bulk->target.info->ri_IndexRelationDescs[i]))
			indexes[nlagging++] = bulk->target.info->ri_IndexRelationDescs[i];
	if (nlagging == 0 || !pos_rebuild_lock(bulk->target.rel, nlagging, indexes))
		return false;
	for (int i = 0; i < n; i++)
	{
		Relation	index = bulk->target.info->ri_IndexRelationDescs[i];
		MemoryContext old;

		if (!can_lag(index))
			continue;
		/* as an index that is not ready yet, for our rows only */
		bulk->target.info->ri_IndexRelationInfo[i]->ii_ReadyForInserts = false;
		old = MemoryContextSwitchTo(bulk->target.estate->es_query_cxt);
		bulk->rebuild = lappend_oid(bulk->rebuild, RelationGetRelid(index));
		MemoryContextSwitchTo(old);
	}
	pfree(indexes);
	return true;
}

/* An index that was left alone is right as it is: no row belongs into it. */
void
pos_bulk_keep(PosBulk *bulk, Oid index)
{
	bulk->rebuild = list_delete_oid(bulk->rebuild, index);
}

/* Whether it is time to flush. */
static bool
is_full(PosBulk *bulk)
{
	return bulk->nrows == bulk->maxrows || bulk->nbytes > bulk->maxbytes;
}

/*
 * Takes one row, whose values are copied.  Returns true when it is time to
 * flush.
 */
bool
pos_bulk_put(PosBulk *bulk, Datum *values, bool *nulls)
{
	TupleTableSlot *slot;
	MemoryContext old;

	if (bulk->nrows == bulk->nslots)
	{
		old = MemoryContextSwitchTo(bulk->target.estate->es_query_cxt);
		bulk->slots[bulk->nslots++] =
			MakeSingleTupleTableSlot(bulk->desc,
									 table_slot_callbacks(bulk->target.rel));
		MemoryContextSwitchTo(old);
	}
	slot = bulk->slots[bulk->nrows];
	ResetPerTupleExprContext(bulk->target.estate);
	if (bulk->columns == NULL)
	{
		memcpy(slot->tts_values, values, bulk->ncolumns * sizeof(Datum));
		memcpy(slot->tts_isnull, nulls, bulk->ncolumns * sizeof(bool));
	}
	else
	{
		memset(slot->tts_isnull, true, slot->tts_tupleDescriptor->natts);
		for (int i = 0; i < bulk->ncolumns; i++)
		{
			slot->tts_values[bulk->columns[i] - 1] = values[i];
			slot->tts_isnull[bulk->columns[i] - 1] = nulls[i];
		}
		for (int i = 0; i < bulk->ndefaults; i++)
			slot->tts_values[bulk->defaults[i] - 1] =
				ExecEvalExprSwitchContext(bulk->expressions[i],
										  GetPerTupleExprContext(bulk->target.estate),
										  &slot->tts_isnull[bulk->defaults[i] - 1]);
	}
	ExecStoreVirtualTuple(slot);
	slot->tts_tableOid = RelationGetRelid(bulk->target.rel);

	old = MemoryContextSwitchTo(GetPerTupleMemoryContext(bulk->target.estate));
	pos_target_complete(&bulk->target, slot, CMD_INSERT);
	MemoryContextSwitchTo(old);
	bulk->nbytes += ExecFetchSlotHeapTuple(slot, true, NULL)->t_len;
	bulk->nrows++;
	return is_full(bulk);
}

/* Enters the inserted rows into an index. */
static void
enter_rows(void *argument)
{
	PosBulk    *bulk = argument;
	PosTarget  *target = &bulk->target;

	for (int i = 0; i < bulk->nrows; i++)
	{
		ResetPerTupleExprContext(target->estate);
		bulk->recheck[i] =
			list_concat(bulk->recheck[i],
						pos_compat_insert_index_tuples(target->info, bulk->slots[i],
													   target->estate));
	}
}

/* Completes the inserted rows: indexes, then triggers. */
static void
complete(PosBulk *bulk)
{
	PosTarget  *target = &bulk->target;

	bulk->recheck = palloc0(bulk->nrows * sizeof(List *));
	pos_target_enter(target, enter_rows, bulk);
	for (int i = 0; i < bulk->nrows; i++)
	{
		ResetPerTupleExprContext(target->estate);
		ExecARInsertTriggers(target->estate, target->info, bulk->slots[i],
							 bulk->recheck[i], NULL);
		ExecClearTuple(bulk->slots[i]);
	}
}

/*
 * Writes the rows put so far and fires their triggers, unless these are held
 * back.  Afterwards the rows are visible to statements.
 */
void
pos_bulk_flush(PosBulk *bulk)
{
	MemoryContext old;

	if (bulk->nrows == 0)
		return;
	CHECK_FOR_INTERRUPTS();
	PushActiveSnapshot(GetTransactionSnapshot());
	if (!bulk->hold)
		AfterTriggerBeginQuery();

	if (bulk->state == NULL && is_full(bulk))
	{
		old = MemoryContextSwitchTo(bulk->target.estate->es_query_cxt);
		bulk->state = GetBulkInsertState();
		MemoryContextSwitchTo(old);
	}
	old = MemoryContextSwitchTo(bulk->context);
	table_multi_insert(bulk->target.rel, bulk->slots, bulk->nrows,
					   GetCurrentCommandId(true), 0, bulk->state);
	complete(bulk);
	bulk->nrows = 0;
	bulk->nbytes = 0;
	MemoryContextSwitchTo(old);
	MemoryContextReset(bulk->context);
	/* of a few rows there is nothing to write before they are committed */
	if (bulk->state != NULL)
		pos_target_log();

	CommandCounterIncrement();
	if (!bulk->hold)
	{
		UpdateActiveSnapshotCommandId();
		AfterTriggerEndQuery(bulk->target.estate);
	}
	PopActiveSnapshot();
}

/*
 * Writes what is left, builds the indexes that were left alone, and frees
 * everything but the relation.
 */
void
pos_bulk_close(PosBulk *bulk)
{
	List	   *rebuild = list_copy(bulk->rebuild);

	pos_bulk_flush(bulk);
	for (int i = 0; i < bulk->nslots; i++)
		ExecDropSingleTupleTableSlot(bulk->slots[i]);
	if (bulk->state != NULL)
		FreeBulkInsertState(bulk->state);
	table_finish_bulk_insert(bulk->target.rel, 0);
	pos_target_close(&bulk->target);
	MemoryContextDelete(bulk->context);
	pos_build_indexes(bulk->target.rel, rebuild);
	pfree(bulk->slots);
	pfree(bulk);
}
