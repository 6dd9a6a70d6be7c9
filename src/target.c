/*
 * target.c
 *		A table opened for writing below SQL: what the executor needs to know of it
 *		to serve indexes, constraints and triggers.
 *
 * Triggers keep slots in the executor's state, so it must be closed before the
 * relation.
 */
#include "postgres.h"

#include "access/xlog.h"
#include "compat.h"
#include "executor/executor.h"
#include "executor/nodeModifyTable.h"
#include "nodes/makefuncs.h"
#include "target.h"

/*
 * Opens a relation, which must stay open and locked, for one kind of command;
 * updated are the columns that an UPDATE sets, as attribute numbers less
 * FirstLowInvalidHeapAttributeNumber.
 */
void
pos_target_open(PosTarget *target, Relation rel, CmdType command,
				Bitmapset *updated)
{
	MemoryContext old;

	target->rel = rel;
	target->estate = CreateExecutorState();
	old = MemoryContextSwitchTo(target->estate->es_query_cxt);
	pos_compat_init_range_table(target->estate, rel, bms_copy(updated));
	target->info = makeNode(ResultRelInfo);
	ExecInitResultRelation(target->estate, target->info, 1);
	pos_compat_check_target(target->info, command);
	ExecOpenIndices(target->info, false);
	MemoryContextSwitchTo(old);
}

/* Fills in what the table computes of a new row, and checks it. */
void
pos_target_complete(PosTarget *target, TupleTableSlot *slot, CmdType command)
{
	TupleConstr *constraints = RelationGetDescr(target->rel)->constr;

	if (constraints != NULL && constraints->has_generated_stored)
		ExecComputeStoredGenerated(target->info, target->estate, slot, command);
	if (constraints != NULL)
		ExecConstraints(target->info, slot, target->estate);
	if (target->rel->rd_rel->relispartition)
		(void) ExecPartitionCheck(target->info, slot, target->estate, true);
}

/*
 * Has rows entered into one index after the other, as those of many have places near
 * each other there: enter is called for every index that takes entries, and then no
 * other one does.
 */
void
pos_target_enter(PosTarget *target, void (*enter) (void *), void *argument)
{
	int			n = target->info->ri_NumIndices;
	IndexInfo **infos = target->info->ri_IndexRelationInfo;
	bool	   *ready = palloc(n * sizeof(bool));

	for (int i = 0; i < n; i++)
	{
		ready[i] = infos[i]->ii_ReadyForInserts;
		infos[i]->ii_ReadyForInserts = false;
	}
	PG_TRY();
	{
		for (int i = 0; i < n; i++)
		{
			if (!ready[i])
				continue;
			infos[i]->ii_ReadyForInserts = true;
			enter(argument);
			infos[i]->ii_ReadyForInserts = false;
		}
	}
	PG_FINALLY();
	{
		for (int i = 0; i < n; i++)
			infos[i]->ii_ReadyForInserts = ready[i];
	}
	PG_END_TRY();
	pfree(ready);
}

/* Closes all but the relation. */
void
pos_target_close(PosTarget *target)
{
	ExecResetTupleTable(target->estate->es_tupleTable, false);
	ExecCloseResultRelations(target->estate);
	ExecCloseRangeTableRelations(target->estate);
	FreeExecutorState(target->estate);
}

/*
 * Has the WAL writer write what this session has logged so far, as after an
 * asynchronous commit.  Else the session itself would have to as soon as the buffers
 * are full, and would wait for all of it when it commits.
 */
void
pos_target_log(void)
{
	XLogSetAsyncXactLSN(XactLastRecEnd);
}
