/*
 * sync.c
 *		One synchronization, straight down.
 *
 *		load the tree -> ask what changed -> compare both sides' columns ->
 *		read, bind, translate and write component by component, what others
 *		depend on first -> positions and quarantine
 *
 * Everything happens in the caller's transaction; an error anywhere leaves
 * nothing behind.
 */
#include "possync.h"

#include "access/xact.h"
#include "compare.h"
#include "miscadmin.h"
#include "portability/instr_time.h"
#include "progress.h"
#include "run.h"
#include "storage/lmgr.h"
#include "store.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

/* Orders models by their number, so that locks are taken in one order. */
static int
compare_ids(const ListCell *a, const ListCell *b)
{
	return ((PosModel *) lfirst(a))->id - ((PosModel *) lfirst(b))->id;
}

/*
 * Locks the models of a tree until the end of the transaction: two runs that
 * share a model take turns, and the second one sees what the first one wrote.
 */
static void
lock_models(PosRun *run)
{
	List	   *models = list_copy(run->tree->models);
	Oid			class = pos_store_relid("synchronize_model");
	ListCell   *lc;

	list_sort(models, compare_ids);
	foreach(lc, models)
		LockDatabaseObject(class, ((PosModel *) lfirst(lc))->id, 0,
						   ShareUpdateExclusiveLock);
	list_free(models);
}

/* Raises one error about everything that does not fit. */
void
pos_sync_report(PosRun *run, List *sentences)
{
	StringInfoData detail;
	ListCell   *lc;

	if (sentences == NIL)
		return;
	initStringInfo(&detail);
	foreach(lc, sentences)
		appendStringInfo(&detail, "%s%s", detail.len > 0 ? "\n" : "",
						 (char *) lfirst(lc));
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("model \"%s\" and the tables of server \"%s\" do not fit together",
					run->tree->root->name, run->tree->server),
			 errdetail_internal("%s", detail.data),
			 errhint("Nothing was written. Change the tables of either side, or, with possync_set_model and possync_set_field, what is expected of them.")));
}

/* Returns the tables that take part, in the order in which they are read. */
static PosTable **
tables_of(PosRun *run, bool changed_only, int *ntables)
{
	PosTable  **tables = palloc(list_length(run->tree->models) * sizeof(PosTable *));
	ListCell   *lc;

	*ntables = 0;
	foreach(lc, run->tree->models)
	{
		PosModel   *model = lfirst(lc);

		if (model->on_unknown != POS_IGNORE &&
			(!changed_only || model->table.changed))
			tables[(*ntables)++] = &model->table;
	}
	return tables;
}

/*
 * Opens the source's snapshot and finds out what changed.  Returns false if
 * nothing did.
 */
bool
pos_sync_begin(PosRun *run)
{
	ListCell   *lc;
	PosTable  **tables;
	int			ntables;
	bool		any = false;

	foreach(lc, run->tree->models)
	{
		PosModel   *model = lfirst(lc);

		if (model->rel == NULL)
			continue;
		pos_stage_table(model);
	}
	pos_quarantine_retry(run);
	tables = tables_of(run, false, &ntables);
	run->connection->ops->begin(run->connection, tables, ntables,
								&run->snapshot);
	run->has_snapshot = true;
	for (int i = 0; i < ntables; i++)
		any = any || tables[i]->changed;
	return any;
}

/* Compares both sides with the configuration, and lays out the rows. */
void
pos_sync_prepare(PosRun *run)
{
	int			ntables;
	PosTable  **tables = tables_of(run, false, &ntables);
	ListCell   *lc;

	pos_sync_report(run,
					run->connection->ops->describe(run->connection, tables,
												   ntables));
	pos_translation_open(run);
	foreach(lc, run->tree->models)
	{
		PosModel   *model = lfirst(lc);

		if (model->on_unknown == POS_IGNORE)
			continue;
		pos_stage_layout(model);
		pos_translation_prepare(run, model);
	}
}

/*
 * Says how many rows there will be, where it is known: how many have changed is
 * not, but how many there are in all.
 */
static void
expect_rows(PosTable **tables, int ntables)
{
	int64		rows = 0;

	for (int i = 0; i < ntables; i++)
		if (rows < 0 || tables[i]->position != NULL || tables[i]->rows < 0)
			rows = -1;
		else
			rows += tables[i]->rows;
	pos_progress_expect(rows);
}

/* Reads and writes one component. */
static void
synchronize_component(PosRun *run, PosComponent *component)
{
	PosModel   *first = linitial(component->models);
	bool		any = false;
	instr_time	start;
	instr_time	end;
	ListCell   *lc;

	INSTR_TIME_SET_CURRENT(start);
	foreach(lc, component->models)
		any = any || ((PosModel *) lfirst(lc))->table.changed;
	if (!any)
		return;
	foreach(lc, component->models)
	{
		pos_progress_phase("reading", ((PosModel *) lfirst(lc))->name);
		pos_bind_receive(run, lfirst(lc));
	}
	pos_progress_phase("writing", first->name);
	pos_bind_component(run, component);
	INSTR_TIME_SET_CURRENT(end);
	INSTR_TIME_SUBTRACT(end, start);
	first->milliseconds = INSTR_TIME_GET_MILLISEC(end);
}

/*
 * Pulls the tree of a run, which has its number, tree, dry and contexts set;
 * SPI is connected and the run's context current.  Fills the tree with counts.
 */
void
pos_sync_pull(PosRun *run)
{
	PosTable  **tables;
	int			ntables;
	List	   *problems = NIL;
	ListCell   *lc;

	if (!run->dry)
		lock_models(run);
	/* positions may have been moved by the run we waited for */
	pos_config_positions(run->tree->models);
	if (run->anew)
		foreach(lc, run->tree->models)
			((PosModel *) lfirst(lc))->position = NULL;
	foreach(lc, run->tree->models)
		problems = list_concat(problems, pos_tree_check(run->tree, lfirst(lc)));
	pos_sync_report(run, problems);

	run->connection = pos_connection_get(run->tree->server);
	pos_drift_plan(run);
	if (pos_sync_begin(run))
	{
		pos_sync_prepare(run);
		pos_parts_plan(run);
		pos_drift_find(run);
		tables = tables_of(run, true, &ntables);
		if (ntables > 0)
			run->connection->ops->request(run->connection, tables, ntables);
		expect_rows(tables, ntables);
		pos_gone_apply(run, false);
		foreach(lc, run->tree->components)
			synchronize_component(run, lfirst(lc));
		pos_translation_settle(run);
		pos_gone_apply(run, true);
		pos_translation_close(run);
		if (!run->dry)
		{
			pos_quarantine_store(run);
			pos_history_positions(run);
			pos_parts_store(run);
			pos_gone_store(run);
		}
		pos_quarantine_close(run);
	}
	else if (run->before != NULL)
		pos_compare_end(run);
	run->received = run->connection->ops->received(run->connection);
	run->connection->ops->finish(run->connection);
}
