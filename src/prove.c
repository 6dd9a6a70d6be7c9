/*
 * prove.c
 *		Foreign keys of new rows, proven instead of checked row by row.
 *
 * Every row that new rows refer to was made in this run, or is locked against
 * deletion by us, once for each distinct row, before anything that refers to it
 * is written.  We may delete such rows all the same, so nothing is proven where
 * triggers or rules of the user's may act in between.
 */
#include "possync.h"

#include "bulk.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "miscadmin.h"
#include "queue.h"
#include "run.h"
#include "sql.h"
#include "store.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/rel.h"

/* Rows locked by one statement */
#define LOCK_ROWS		10000

/* Rows of one model that are remembered as locked */
#define MAX_LOCKED		200000

/* The keys of rows that are locked, or are to be */
typedef struct LockedEntry
{
	int64		key;
	char		status;
} LockedEntry;

#define SH_PREFIX locked
#define SH_ELEMENT_TYPE LockedEntry
#define SH_KEY_TYPE int64
#define SH_KEY key
#define SH_HASH_KEY(tb, key) hash_combine(murmurhash32((uint32) ((key) >> 32)), \
										  murmurhash32((uint32) (key)))
#define SH_EQUAL(tb, a, b) ((a) == (b))
#define SH_SCOPE static inline
#define SH_DECLARE
#define SH_DEFINE
#include "lib/simplehash.h"

/* Whether something of the user's may change what we write to a table. */
bool
pos_prove_has_code(Relation rel)
{
	if (rel->rd_rules != NULL)
		return true;
	if (rel->trigdesc != NULL)
		for (int i = 0; i < rel->trigdesc->numtriggers; i++)
			if (!rel->trigdesc->triggers[i].tgisinternal &&
				!pos_queue_is_capture(&rel->trigdesc->triggers[i]))
				return true;
	return false;
}

/*
 * Whether code of the user's may run after a row of parent was made or locked
 * and before a row of model that refers to it is there.
 */
static bool
may_lose_parent(PosTree *tree, PosModel *parent, PosModel *model)
{
	bool		between = false;
	ListCell   *lc;
	ListCell   *lc2;

	foreach(lc, tree->components)
	{
		PosComponent *component = lfirst(lc);

		between = between || component == parent->component;
		if (between)
			foreach(lc2, component->models)
				if (pos_prove_has_code(((PosModel *) lfirst(lc2))->rel))
				return true;
		if (component == model->component)
			break;
	}
	return false;
}

/* Whether the foreign key behind a reference can be proven at all. */
static bool
is_provable(PosTree *tree, PosModel *model, PosReference *reference)
{
	PosModel   *parent = reference->parent;

	return OidIsValid(reference->constraint) && reference->bit >= 0 &&
		parent->local_int && pos_key_is_integer(reference->fields[0]->base) &&
		reference->fields[0]->supplier == reference &&
		parent->rel->rd_rel->relkind == RELKIND_RELATION &&
		!may_lose_parent(tree, parent, model);
}

/*
 * Before the first row of a model is put into its bulk: spares the checks of
 * all foreign keys that can be proven.
 */
void
pos_prove_begin(PosRun *run, PosModel *model)
{
	ListCell   *lc;

	foreach(lc, model->references)
	{
		PosReference *reference = lfirst(lc);

		reference->unproven = !is_provable(run->tree, model, reference);
		if (!reference->unproven)
			pos_bulk_spare(model->bulk, reference->constraint, true);
	}
}

/*
 * Locks the rows of one model that rows to be written refer to, against
 * deletion and change of key, as the foreign key's own check would.  Returns
 * how many are not there.
 */
static int
lock_rows(PosModel *model)
{
	Oid			saved_user;
	int			saved_context;
	char	   *sql;
	int			missing = 0;

	if (model->nto_lock == 0)
		return 0;
	sql = psprintf("SELECT 1 FROM %s t WHERE t.%s OPERATOR(pg_catalog.=) ANY ($1)"
				   " FOR KEY SHARE OF t", model->table_sql,
				   quote_identifier(model->key[0]->name));
	pos_store_as_owner(model->relid, &saved_user, &saved_context);
	for (int start = 0; start < model->nto_lock; start += LOCK_ROWS)
	{
		int			n = Min(LOCK_ROWS, model->nto_lock - start);
		Datum	   *keys = palloc(n * sizeof(Datum));
		Oid			types[] = {INT8ARRAYOID};
		Datum		values[1];

		for (int i = 0; i < n; i++)
			keys[i] = Int64GetDatum(model->to_lock[start + i]);
		values[0] = PointerGetDatum(construct_array(keys, n, INT8OID, 8,
													FLOAT8PASSBYVAL,
													TYPALIGN_DOUBLE));
		missing += n - pos_sql_execute(sql, 1, types, values);
		SPI_freetuptable(SPI_tuptable);
		pfree(keys);
		pfree(DatumGetPointer(values[0]));
	}
	SetUserIdAndSecContext(saved_user, saved_context);
	model->nto_lock = 0;
	return missing;
}

/* Has every foreign key of a component to this parent checked row by row. */
static void
check_references(PosComponent *component, PosModel *parent)
{
	ListCell   *lc;
	ListCell   *lr;

	foreach(lc, component->models)
	{
		PosModel   *model = lfirst(lc);

		foreach(lr, model->references)
		{
			PosReference *reference = lfirst(lr);

			if (model->bulk == NULL || reference->parent != parent ||
				reference->unproven)
				continue;
			reference->unproven = true;
			pos_bulk_spare(model->bulk, reference->constraint, false);
		}
	}
}

/*
 * Locks whatever the rows put into a model's bulk so far refer to; to be called
 * before they are written.
 *
 * A row that somebody deleted here may come again only if it belongs to the
 * same component; then the foreign key's own check tells, when all rows are
 * there.
 */
void
pos_prove_lock(PosModel *model)
{
	ListCell   *lc;

	foreach(lc, model->references)
	{
		PosModel   *parent = ((PosReference *) lfirst(lc))->parent;
		int			missing = lock_rows(parent);

		if (missing > 0 && parent->component != model->component)
			ereport(ERROR,
					(errcode(ERRCODE_FOREIGN_KEY_VIOLATION),
					 errmsg("rows of table %s that new rows refer to were deleted here",
							parent->name),
					 errdetail("%d rows are missing.", missing),
					 errhint("The next pull reads them again.")));
		if (missing > 0)
			check_references(model->component, parent);
	}
}

/*
 * Puts a row on the list of those to be locked, once.  Returns false where
 * there are too many.
 */
static bool
list_for_lock(PosRun *run, PosModel *model, int64 key)
{
	bool		found;

	if (model->locked == NULL)
		model->locked = locked_create(run->context, 64, NULL);
	if (model->locked->members >= MAX_LOCKED)
		return false;
	locked_insert(model->locked, key, &found);
	if (found)
		return true;
	if (model->nto_lock == model->maxto_lock)
	{
		model->maxto_lock = Max(model->maxto_lock * 2, 64);
		model->to_lock = model->to_lock == NULL ?
			MemoryContextAlloc(run->context, model->maxto_lock * sizeof(int64)) :
			repalloc(model->to_lock, model->maxto_lock * sizeof(int64));
	}
	model->to_lock[model->nto_lock++] = key;
	return true;
}

/*
 * Before a staged row is put into its model's bulk: sees to it that what it
 * refers to is proven to exist, or that its foreign keys are checked after all.
 */
void
pos_prove_row(PosRun *run, PosModel *model, Datum *values, bool *nulls)
{
	int64		old = DatumGetInt64(values[POS_STAGE_OLD]);
	ListCell   *lc;

	if (old == 0)
		return;
	foreach(lc, model->references)
	{
		PosReference *reference = lfirst(lc);
		PosField   *field = reference->fields[0];

		if (reference->unproven ||
			(old & (INT64CONST(1) << reference->bit)) == 0)
			continue;
		if (!list_for_lock(run, reference->parent,
						   DatumGetInt64(pos_key_from_integer(field->base,
															  values[field->staged]))))
		{
			pos_prove_lock(model);
			pos_bulk_flush(model->bulk);
			reference->unproven = true;
			pos_bulk_spare(model->bulk, reference->constraint, false);
		}
	}
}
