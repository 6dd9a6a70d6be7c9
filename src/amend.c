/*
 * amend.c
 *		Comparing and updating rows of one table below SQL, as a subscriber of
 *		logical replication applies changes.
 *
 * Indexes, checks, generated columns and AFTER ROW triggers are served as UPDATE
 * serves them.  What it does besides (rules, policies, triggers that come before
 * or belong to the statement) makes a table unfit for this way; the caller then
 * uses SQL.
 *
 * Columns that are the same keep the value that is stored, so nothing is stored
 * anew out of line, and what no index has changes within its page.
 */
#include "possync.h"

#include "access/tableam.h"
#include "access/xact.h"
#include "amend.h"
#include "commands/trigger.h"
#include "compat.h"
#include "executor/executor.h"
#include "lookup.h"
#include "miscadmin.h"
#include "run.h"
#include "target.h"
#include "utils/acl.h"
#include "utils/datum.h"
#include "utils/rls.h"
#include "utils/snapmgr.h"

/* Updated rows until the WAL writer is told */
#define LOG_ROWS	64

/* Whether the current user sees and may read all of a model's rows. */
bool
pos_amend_comparable(PosModel *model)
{
	return pos_lookup_possible(model) &&
		pg_class_aclcheck(model->relid, GetUserId(), ACL_SELECT) == ACLCHECK_OK &&
		check_enable_rls(model->relid, InvalidOid, true) == RLS_NONE;
}

/*
 * Whether rows of a model can be updated this way by the current user with the
 * same effect as by UPDATE.
 */
bool
pos_amend_possible(PosModel *model)
{
	TriggerDesc *triggers = model->rel->trigdesc;

	return pos_amend_comparable(model) && model->rel->rd_rules == NULL &&
		pg_class_aclcheck(model->relid, GetUserId(), ACL_UPDATE) == ACLCHECK_OK &&
		(triggers == NULL ||
		 !(triggers->trig_update_before_row ||
		   triggers->trig_update_instead_row ||
		   triggers->trig_update_before_statement ||
		   triggers->trig_update_after_statement ||
		   triggers->trig_update_old_table ||
		   triggers->trig_update_new_table));
}

/* Whether a column of a stored row has the value of a staged one, byte by byte. */
static bool
is_same_value(TupleTableSlot *slot, PosField *field, Datum *values, bool *nulls)
{
	Form_pg_attribute attribute = TupleDescAttr(slot->tts_tupleDescriptor,
												field->attnum - 1);
	bool		isnull;
	Datum		stored = slot_getattr(slot, field->attnum, &isnull);

	if (isnull || nulls[field->staged])
		return isnull && nulls[field->staged];
	return datum_image_eq(stored, values[field->staged], attribute->attbyval,
						  attribute->attlen);
}

/* Whether a stored row has all the values of a staged one. */
bool
pos_amend_is_same(PosModel *model, TupleTableSlot *slot, Datum *values,
				  bool *nulls)
{
	for (int i = model->nkey; i < model->nwritten; i++)
		if (!is_same_value(slot, model->written[i], values, nulls))
			return false;
	return true;
}

/* What is needed to update rows of a model */
typedef struct Amendment
{
	PosModel   *model;
	PosTarget	target;
	PosLookup  *lookup;
	TupleTableSlot *stored;		/* the old row, if it is found by its place */
	TupleTableSlot *slot;		/* the new row */
} Amendment;

/* Returns the columns that are set, as the executor numbers them. */
static Bitmapset *
updated_columns(PosModel *model)
{
	Bitmapset  *columns = NULL;

	for (int i = model->nkey; i < model->nwritten; i++)
		columns = bms_add_member(columns, model->written[i]->attnum -
								 FirstLowInvalidHeapAttributeNumber);
	return columns;
}

/* Makes the new row of a stored and a staged one, without what was dropped. */
static void
fill_slot(Amendment *amendment, TupleTableSlot *stored, Datum *values,
		  bool *nulls)
{
	PosModel   *model = amendment->model;
	TupleTableSlot *slot = amendment->slot;
	TupleDesc	desc = slot->tts_tupleDescriptor;
	int			natts = desc->natts;

	slot_getallattrs(stored);
	ExecClearTuple(slot);
	memcpy(slot->tts_values, stored->tts_values, natts * sizeof(Datum));
	for (int i = 0; i < natts; i++)
		slot->tts_isnull[i] = stored->tts_isnull[i] ||
			TupleDescAttr(desc, i)->attisdropped;
	for (int i = model->nkey; i < model->nwritten; i++)
	{
		PosField   *field = model->written[i];

		if (is_same_value(stored, field, values, nulls))
			continue;
		slot->tts_values[field->attnum - 1] = values[field->staged];
		slot->tts_isnull[field->attnum - 1] = nulls[field->staged];
	}
	ExecStoreVirtualTuple(slot);
	slot->tts_tableOid = RelationGetRelid(model->rel);
}

/*
 * Puts the new row into the place of the stored one, at tid.  Returns false if
 * somebody has changed or deleted that in the meantime.
 */
static bool
replace_row(Amendment *amendment, ItemPointer tid)
{
	PosTarget  *target = &amendment->target;
	TM_FailureData failure;
	PosCompatIndexes indexes;
	List	   *recheck = NIL;

	switch (pos_compat_update_tuple(target->rel, tid, amendment->slot,
									GetActiveSnapshot(), &failure, &indexes))
	{
		case TM_Ok:
			break;
		case TM_SelfModified:
			return true;		/* as UPDATE passes over what comes twice */
		case TM_Updated:
		case TM_Deleted:
			if (IsolationUsesXactSnapshot())
				ereport(ERROR,
						(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
						 errmsg("could not serialize access due to concurrent update")));
			return false;
		default:
			elog(ERROR, "unrecognized result of an update");
	}
	if (target->info->ri_NumIndices > 0 && pos_compat_has_indexes(indexes))
		recheck = pos_compat_update_index_tuples(target->info, amendment->slot,
												 target->estate, indexes);
	ExecARUpdateTriggers(target->estate, target->info, NULL, NULL, tid, NULL,
						 amendment->slot, recheck, NULL, false);
	return true;
}

/*
 * Finds a row as it stands now: at the place where it was seen, if that is known
 * and still right, else by its key.
 */
static TupleTableSlot *
find_row(Amendment *amendment, ItemPointer seen, Datum *values)
{
	if (seen != NULL && ItemPointerIsValid(seen) &&
		table_tuple_fetch_row_version(amendment->model->rel, seen,
									  GetActiveSnapshot(), amendment->stored))
		return amendment->stored;
	return pos_lookup_find(amendment->lookup, &values[POS_STAGE_FIRST]);
}

/* Updates one row.  Returns false if it is not there. */
static bool
amend_row(Amendment *amendment, ItemPointer seen, Datum *values, bool *nulls)
{
	TupleTableSlot *stored;

	while ((stored = find_row(amendment, seen, values)) != NULL)
	{
		ItemPointerData tid = stored->tts_tid;

		if (pos_amend_is_same(amendment->model, stored, values, nulls))
			return true;
		fill_slot(amendment, stored, values, nulls);
		pos_target_complete(&amendment->target, amendment->slot, CMD_UPDATE);
		if (replace_row(amendment, &tid))
			return true;
		(void) pos_lookup_renew(amendment->lookup);
		seen = NULL;
	}
	return false;
}

static void
begin(Amendment *amendment, PosModel *model)
{
	amendment->model = model;
	amendment->lookup = pos_lookup_open(model);
	pos_target_open(&amendment->target, model->rel, CMD_UPDATE,
					updated_columns(model));
	amendment->stored = table_slot_create(model->rel, NULL);
	amendment->slot = table_slot_create(model->rel, NULL);
	AfterTriggerBeginQuery();
}

/* Fires the triggers of the updated rows and closes everything. */
static void
end(Amendment *amendment)
{
	CommandCounterIncrement();
	UpdateActiveSnapshotCommandId();
	AfterTriggerEndQuery(amendment->target.estate);
	ExecDropSingleTupleTableSlot(amendment->slot);
	ExecDropSingleTupleTableSlot(amendment->stored);
	pos_target_close(&amendment->target);
	pos_lookup_close(amendment->lookup);
}

/*
 * Updates the rows of a set, whose columns differ from those stored.  seen may tell
 * where each of them was found by a lookup that is still open, so that no other row
 * can have taken its place.  Returns how many are there.
 */
int64
pos_amend_rows(PosModel *model, PosRowset *rows, ItemPointer seen)
{
	Amendment	amendment;
	int64		done = 0;
	Datum	   *values;
	bool	   *nulls;

	PushActiveSnapshot(GetTransactionSnapshot());
	begin(&amendment, model);
	pos_rowset_rewind(rows);
	for (int64 i = 0; pos_rowset_next(rows, &values, &nulls); i++)
	{
		MemoryContext old =
		MemoryContextSwitchTo(GetPerTupleMemoryContext(amendment.target.estate));

		if (amend_row(&amendment, seen == NULL ? NULL : &seen[i], values, nulls))
			done++;
		if (i % LOG_ROWS == LOG_ROWS - 1)
			pos_target_log();
		ExecClearTuple(amendment.slot);
		MemoryContextSwitchTo(old);
		ResetPerTupleExprContext(amendment.target.estate);
	}
	end(&amendment);
	PopActiveSnapshot();
	return done;
}
