/*
 * rowset.c
 *		Rows in order, in memory as far as work_mem goes and then on disk, which
 *		SQL statements run through SPI can see by name.
 *
 * The name is that of an ephemeral named relation, as transition tables have
 * it: no catalog entry, no statistics to be wrong, and the planner knows the
 * number of rows.  A published rowset keeps its registration when it is
 * cleared and filled again, so that a prepared statement can be used for many
 * fillings.
 */
#include "possync.h"

#include "executor/spi.h"
#include "miscadmin.h"
#include "run.h"
#include "utils/memutils.h"

struct PosRowset
{
	char	   *name;
	TupleDesc	desc;
	MemoryContext context;
	Tuplestorestate *store;
	TupleTableSlot *slot;
	EphemeralNamedRelation enr; /* NULL until published */
	int64		count;
};

static Tuplestorestate *
new_store(PosRowset *rowset)
{
	MemoryContext old = MemoryContextSwitchTo(rowset->context);
	Tuplestorestate *store;

	/* several rowsets are alive at a time, and they share work_mem */
	store = tuplestore_begin_heap(true, false, Max(work_mem / 4, 64));
	MemoryContextSwitchTo(old);
	return store;
}

/*
 * Returns an empty rowset for rows of the given form, living in the current
 * memory context.
 */
PosRowset *
pos_rowset_create(const char *name, TupleDesc desc)
{
	PosRowset  *rowset = palloc0(sizeof(PosRowset));

	rowset->name = pstrdup(name);
	rowset->desc = desc;
	rowset->context = CurrentMemoryContext;
	rowset->store = new_store(rowset);
	rowset->slot = MakeSingleTupleTableSlot(desc, &TTSOpsMinimalTuple);
	return rowset;
}

/* Appends a row. */
void
pos_rowset_put(PosRowset *rowset, Datum *values, bool *nulls)
{
	tuplestore_putvalues(rowset->store, rowset->desc, values, nulls);
	rowset->count++;
}

/* Returns the number of rows. */
int64
pos_rowset_count(PosRowset *rowset)
{
	return rowset->count;
}

/* Makes pos_rowset_next begin with the first row. */
void
pos_rowset_rewind(PosRowset *rowset)
{
	tuplestore_select_read_pointer(rowset->store, 0);
	tuplestore_rescan(rowset->store);
}

/*
 * Returns whether there is a next row, and its values, which stay valid until
 * the next call.
 */
bool
pos_rowset_next(PosRowset *rowset, Datum **values, bool **nulls)
{
	CHECK_FOR_INTERRUPTS();

	/* statements that scan the rows have read pointers of their own */
	tuplestore_select_read_pointer(rowset->store, 0);
	if (!tuplestore_gettupleslot(rowset->store, true, false, rowset->slot))
		return false;
	slot_getallattrs(rowset->slot);
	*values = rowset->slot->tts_values;
	*nulls = rowset->slot->tts_isnull;
	return true;
}

/*
 * Makes the rows visible to statements run through SPI, under the rowset's
 * name.  To be called again after the rowset was filled anew, for the
 * planner's sake.
 *
 * SPI keeps its list of names in the current context, for as long as the
 * connection: it must not be that of a row.
 */
void
pos_rowset_publish(PosRowset *rowset)
{
	MemoryContext old;
	int			rc;

	if (rowset->enr != NULL)
	{
		rowset->enr->reldata = rowset->store;
		rowset->enr->md.enrtuples = rowset->count;
		return;
	}
	rowset->enr = MemoryContextAllocZero(rowset->context,
										 sizeof(EphemeralNamedRelationData));
	rowset->enr->md.name = rowset->name;
	rowset->enr->md.reliddesc = InvalidOid;
	rowset->enr->md.tupdesc = rowset->desc;
	rowset->enr->md.enrtype = ENR_NAMED_TUPLESTORE;
	rowset->enr->md.enrtuples = rowset->count;
	rowset->enr->reldata = rowset->store;
	old = MemoryContextSwitchTo(TopTransactionContext);
	rc = SPI_register_relation(rowset->enr);
	MemoryContextSwitchTo(old);
	if (rc != SPI_OK_REL_REGISTER)
		elog(ERROR, "SPI_register_relation failed: %s",
			 SPI_result_code_string(rc));
}

/* Removes all rows. */
void
pos_rowset_clear(PosRowset *rowset)
{
	if (rowset->count == 0)
		return;

	/*
	 * A new store instead of tuplestore_clear: every statement that read the
	 * old one has left a read pointer in it.
	 */
	ExecClearTuple(rowset->slot);
	tuplestore_end(rowset->store);
	rowset->store = new_store(rowset);
	rowset->count = 0;
	if (rowset->enr != NULL)
		pos_rowset_publish(rowset);
}

/* Frees the rows and withdraws the name. */
void
pos_rowset_free(PosRowset *rowset)
{
	if (rowset == NULL)
		return;
	if (rowset->enr != NULL)
		SPI_unregister_relation(rowset->name);
	ExecDropSingleTupleTableSlot(rowset->slot);
	tuplestore_end(rowset->store);
	pfree(rowset->name);
	pfree(rowset);
}
