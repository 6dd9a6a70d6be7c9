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
 * Rows are entered into the indexes some at a time, one index after the other: what is
 * read of one is still at hand for the next row.  So rows may exchange the values of
 * unique columns if they come close to each other; update.c sees to those that do not.
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

/* Updated rows until they are entered into the indexes, and the WAL writer is told */
#define BATCH_ROWS	64

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

/* A row that was updated, until it is entered into the indexes */
typedef struct Amended
{
	TupleTableSlot *slot;		/* the new row; made when first needed */
	ItemPointerData place;		/* of the old one */
	PosCompatIndexes indexes;	/* into which the new one has to be entered */
	List	   *recheck;		/* of Oid: those that have to be checked again */
} Amended;

/* What is needed to update rows of a model */
typedef struct Amendment
{
	PosModel   *model;
	PosTarget	target;
	PosLookup  *lookup;
	TupleTableSlot *stored;		/* the old row, if it is found by its place */
	MemoryContext context;		/* of what is kept until rows are entered */
	int			n;
	Amended		rows[BATCH_ROWS];
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
	TupleTableSlot *slot = amendment->rows[amendment->n].slot;
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
	Amended    *row = &amendment->rows[amendment->n];
	TM_FailureData failure;

	switch (pos_compat_update_tuple(amendment->target.rel, tid, row->slot,
									GetActiveSnapshot(), &failure, &row->indexes))
	{
		case TM_Ok:
			row->place = *tid;
			row->recheck = NIL;
			amendment->n++;
			return true;
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
}

/* Enters the updated rows into an index. */
static void
enter_rows(void *argument)
{
	Amendment  *amendment = argument;
	PosTarget  *target = &amendment->target;

	for (int i = 0; i < amendment->n; i++)
	{
		Amended    *row = &amendment->rows[i];

		if (!pos_compat_has_indexes(row->indexes))
			continue;
		row->recheck =
			list_concat(row->recheck,
						pos_compat_update_index_tuples(target->info, row->slot,
													   target->estate, row->indexes));
		ResetPerTupleExprContext(target->estate);
	}
}

/* Completes the updated rows: indexes, then triggers. */
static void
complete(Amendment *amendment)
{
	PosTarget  *target = &amendment->target;
	MemoryContext old = MemoryContextSwitchTo(amendment->context);

	pos_target_enter(target, enter_rows, amendment);
	for (int i = 0; i < amendment->n; i++)
	{
		Amended    *row = &amendment->rows[i];

		ExecARUpdateTriggers(target->estate, target->info, NULL, NULL, &row->place,
							 NULL, row->slot, row->recheck, NULL, false);
		ExecClearTuple(row->slot);
	}
	/* of a few rows there is nothing to write before they are committed */
	if (amendment->n == BATCH_ROWS)
		pos_target_log();
	amendment->n = 0;
	MemoryContextSwitchTo(old);
	MemoryContextReset(amendment->context);
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

/* Makes the slot of a new row, if it is the first one there. */
static void
make_slot(Amendment *amendment, Amended *row)
{
	EState	   *estate = amendment->target.estate;
	MemoryContext old;

	if (row->slot != NULL)
		return;
	old = MemoryContextSwitchTo(estate->es_query_cxt);
	row->slot = table_slot_create(amendment->model->rel, &estate->es_tupleTable);
	MemoryContextSwitchTo(old);
}

/* Updates one row.  Returns false if it is not there. */
static bool
amend_row(Amendment *amendment, ItemPointer seen, Datum *values, bool *nulls)
{
	Amended    *row = &amendment->rows[amendment->n];
	TupleTableSlot *stored;

	make_slot(amendment, row);
	while ((stored = find_row(amendment, seen, values)) != NULL)
	{
		ItemPointerData tid = stored->tts_tid;

		if (pos_amend_is_same(amendment->model, stored, values, nulls))
			return true;
		fill_slot(amendment, stored, values, nulls);
		pos_target_complete(&amendment->target, row->slot, CMD_UPDATE);
		ExecMaterializeSlot(row->slot);
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
	memset(amendment, 0, sizeof(Amendment));
	amendment->model = model;
	amendment->lookup = pos_lookup_open(model);
	pos_target_open(&amendment->target, model->rel, CMD_UPDATE,
					updated_columns(model));
	amendment->stored = table_slot_create(model->rel, NULL);
	amendment->context = AllocSetContextCreate(CurrentMemoryContext,
											   "possync updates",
											   ALLOCSET_SMALL_SIZES);
	AfterTriggerBeginQuery();
}

/* Fires the triggers of the updated rows and closes everything. */
static void
end(Amendment *amendment)
{
	CommandCounterIncrement();
	UpdateActiveSnapshotCommandId();
	AfterTriggerEndQuery(amendment->target.estate);
	MemoryContextDelete(amendment->context);
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
		MemoryContextSwitchTo(old);
		ResetPerTupleExprContext(amendment.target.estate);
		if (amendment.n == BATCH_ROWS)
			complete(&amendment);
	}
	complete(&amendment);
	end(&amendment);
	PopActiveSnapshot();
	return done;
}
