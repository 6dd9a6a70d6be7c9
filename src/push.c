/*
 * push.c
 *		The other direction: queued changes to the remote, exactly once.
 *
 * A push is a row of batches, each of which goes
 *
 *		transaction A	rows of some queued transactions; recognised at the
 *						remote or given keys that it makes; translations written
 *						and the batch marked as open.  Commit.
 *		the remote		all rows in one transaction, with those keys; a row
 *						whose key is there already is passed over
 *		transaction B	entries leave the queue, the batch is closed.  Commit.
 *
 * A crash anywhere leaves the entries in the queue and the translations made, so
 * that the next push sends the same rows under the same keys.
 *
 * A batch that the remote refuses because of its content is halved until the
 * transactions at fault are alone.  These go to quarantine, and the rest goes on.
 * Everything here runs in a worker with transactions of its own.
 */
#include "possync.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fault.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "push.h"
#include "store.h"
#include "utils/builtins.h"
#include "utils/json.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

/* Entries, and bytes of their images, taken into one batch, about */
#define BATCH_ENTRIES	20000
#define BATCH_BYTES		(8 * 1024 * 1024)

/* Rows, and bytes, in one statement at the remote */
#define STEP_ROWS		1000
#define STEP_BYTES		(512 * 1024)

/* Opens a transaction for work on a batch. */
static void
begin_transaction(void)
{
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	PushActiveSnapshot(GetTransactionSnapshot());
}

static void
commit_transaction(void)
{
	SPI_finish();
	PopActiveSnapshot();
	CommitTransactionCommand();
	pgstat_report_stat(false);
}

/* Makes the state of one batch, which outlives the transaction that fills it. */
static PosRun *
make_run(PosPush *push)
{
	PosRun	   *run;

	MemoryContextReset(push->context);
	MemoryContextSwitchTo(push->context);
	run = palloc0(sizeof(PosRun));
	run->push = true;
	run->whole = push;
	run->id = push->history;
	run->context = push->context;
	run->row = AllocSetContextCreate(run->context, "possync row",
									 ALLOCSET_DEFAULT_SIZES);
	return run;
}

/* Loads the models of the server and lays out their rows. */
static void
load(PosRun *run, PosPush *push)
{
	PosTable  **tables;
	int			ntables = 0;
	List	   *sentences;
	ListCell   *lc;

	run->tree = pos_tree_load(push->root, true);
	sentences = pos_tree_check(run->tree);
	tables = palloc(list_length(run->tree->models) * sizeof(PosTable *));
	foreach(lc, run->tree->models)
	{
		PosModel   *model = lfirst(lc);

		if (model->rel == NULL || model->on_unknown == POS_IGNORE)
			continue;
		pos_stage_table(model);
		model->table.position = NULL;
		tables[ntables++] = &model->table;
	}
	run->connection = pos_connection_get(run->tree->server);
	if (sentences == NIL)
		sentences = run->connection->ops->expect(run->connection, tables, ntables);
	pos_sync_report(run, sentences);
	pos_translation_open(run);
	foreach(lc, run->tree->models)
	{
		PosModel   *model = lfirst(lc);

		if (model->table.ncolumns == 0)
			continue;
		pos_stage_layout(model);
		pos_translation_prepare(run, model);
	}
}

/* Appends "name": as JSON, with a comma before it if needed. */
static void
append_label(StringInfo buf, const char *name)
{
	if (buf->data[buf->len - 1] != '{')
		appendStringInfoChar(buf, ',');
	escape_json(buf, name);
	appendStringInfoChar(buf, ':');
}

/* Appends a remote key's columns. */
static void
append_key(StringInfo buf, PosModel *model, Datum key)
{
	Datum		parts[INDEX_MAX_KEYS];

	if (model->nkey == 1)
	{
		append_label(buf, model->table.columns[0].remote);
		escape_json(buf, pos_key_string(key, model->remote_int));
		return;
	}
	pos_key_to_parts(key, model->nkey, parts);
	for (int i = 0; i < model->nkey; i++)
	{
		append_label(buf, model->table.columns[i].remote);
		escape_json(buf, TextDatumGetCString(parts[i]));
	}
}

/* Returns the remote text of a part of the row that a reference points to. */
static char *
parent_text(PosRun *run, PosReference *reference, PosField *field,
			Datum *values, bool *nulls)
{
	PosModel   *parent = reference->parent;
	bool		isnull;
	Datum		local = pos_outgoing_parent(reference, values, nulls, &isnull);
	Datum		remote;
	Datum		parts[INDEX_MAX_KEYS];
	uint8		known;

	if (isnull)
		return NULL;
	if (pos_translation_find(run, parent, local, &remote, &known) != POS_FOUND)
		ereport(ERROR,
				(errcode(ERRCODE_TRIGGERED_ACTION_EXCEPTION),
				 errmsg("\"%s\" refers to row %s of \"%s\", which is not at the remote",
						field->name, pos_key_string(local, parent->local_int),
						parent->name)));
	if (parent->nkey == 1)
		return pos_key_string(remote, parent->remote_int);
	pos_key_to_parts(remote, parent->nkey, parts);
	for (int i = 0; i < reference->nfields; i++)
		if (reference->fields[i] == field)
			return TextDatumGetCString(parts[reference->parts[i]]);
	return NULL;
}

/* Returns the text that the remote is to have for a field, NULL for null. */
static char *
field_text(PosRun *run, PosField *field, Datum *values, bool *nulls)
{
	Oid			output;
	bool		varlena;

	if (field->supplier != NULL)
	{
		char	   *text = parent_text(run, field->supplier, field, values, nulls);

		if (text !=NULL || nulls[field->staged])
			return text;
	}
	if (nulls[field->staged])
		return NULL;
	getTypeOutputInfo(field->type, &output, &varlena);
	return OidOutputFunctionCall(output, values[field->staged]);
}

/* Appends one field of a row; nulls are left out. */
static void
append_field(StringInfo buf, PosRun *run, PosField *field, Datum *values,
			 bool *nulls)
{
	char	   *text = field_text(run, field, values, nulls);

	if (text == NULL)
		return;
	append_label(buf, field->remote);
	escape_json(buf, text);
}

/* Whether a field's value travels to the remote. */
static bool
travels(PosField *field)
{
	return field->copy && !field->is_key;
}

/* The next step of a write that is being put together */
typedef struct Steps
{
	PosStep   **steps;
	int			nsteps;
	int			maxsteps;
	StringInfoData rows;		/* of the last one, while it is open */
	bool		open;
} Steps;

static PosStep *
add_step(Steps *steps, PosModel *model, PosStepKind kind)
{
	PosStep    *step = palloc0(sizeof(PosStep));

	if (steps->nsteps == steps->maxsteps)
	{
		steps->maxsteps = Max(steps->maxsteps * 2, 16);
		steps->steps = steps->steps == NULL ?
			palloc(steps->maxsteps * sizeof(PosStep *)) :
			repalloc(steps->steps, steps->maxsteps * sizeof(PosStep *));
	}
	steps->steps[steps->nsteps++] = step;
	step->kind = kind;
	step->table = &model->table;
	step->columns = palloc((model->nkey + model->nwritten) * sizeof(char *));
	return step;
}

static void
close_step(Steps *steps)
{
	if (!steps->open)
		return;
	appendStringInfoChar(&steps->rows, ']');
	steps->steps[steps->nsteps - 1]->rows = steps->rows.data;
	steps->open = false;
}

/* Begins a row of the last step. */
static void
begin_row(Steps *steps)
{
	if (!steps->open)
	{
		initStringInfo(&steps->rows);
		appendStringInfoChar(&steps->rows, '[');
		steps->open = true;
	}
	else
		appendStringInfoString(&steps->rows, ",\n");
	appendStringInfoChar(&steps->rows, '{');
}

static void
end_row(Steps *steps)
{
	appendStringInfoChar(&steps->rows, '}');
	steps->steps[steps->nsteps - 1]->nrows++;
}

/* Whether the last step has as many rows as one statement should take. */
static bool
is_full(Steps *steps, PosModel *model)
{
	PosStep    *step = steps->steps[steps->nsteps - 1];

	return !model->component->inner &&
		(step->nrows >= STEP_ROWS || steps->rows.len >= STEP_BYTES);
}

/*
 * Adds the steps that do one kind of thing with the rows of a model.
 */
static void
add_rows(PosRun *run, PosModel *model, PosStepKind kind, Steps *steps)
{
	PosRowset  *rows = model->outgoing->rows;
	PosStep    *step = NULL;
	Datum	   *values;
	bool	   *nulls;

	pos_rowset_rewind(rows);
	while (pos_rowset_next(rows, &values, &nulls))
	{
		int			flags = DatumGetInt64(values[POS_STAGE_OLD]);
		bool		gone = (flags & POS_ROW_DELETED) != 0;
		bool		insert = !gone && !(flags & POS_ROW_MATCHED) &&
		(flags & (POS_ROW_NEW | POS_ROW_CREATED | POS_ROW_UNSURE));
		bool		update = !gone && !(flags & POS_ROW_CREATED) &&
		((flags & POS_ROW_UPDATED) ||
		 ((flags & POS_ROW_MATCHED) && !(flags & POS_ROW_NEEDED) &&
		  model->update_matched));
		Datum		remote;
		uint8		known;

		if (!(kind == POS_STEP_INSERT ? insert :
			  kind == POS_STEP_UPDATE ? update : gone))
			continue;
		if (pos_translation_find(run, model, values[POS_STAGE_LOCAL], &remote,
								 &known) != POS_FOUND)
			continue;			/* deleted before the remote ever had it */
		if (step == NULL || is_full(steps, model))
		{
			close_step(steps);
			step = add_step(steps, model, kind);
			for (int i = 0; i < model->nkey && kind == POS_STEP_INSERT; i++)
				step->columns[step->ncolumns++] = model->table.columns[i].remote;
			for (int i = 0; i < model->nwritten && kind != POS_STEP_DELETE; i++)
				if (travels(model->written[i]))
					step->columns[step->ncolumns++] = model->written[i]->remote;
		}
		begin_row(steps);
		append_key(&steps->rows, model, remote);
		for (int i = 0; i < model->nwritten && kind != POS_STEP_DELETE; i++)
			if (travels(model->written[i]))
				append_field(&steps->rows, run, model->written[i], values, nulls);
		end_row(steps);
	}
	close_step(steps);
	if (step != NULL && step->ncolumns == 0 && kind == POS_STEP_UPDATE)
		steps->nsteps--;		/* nothing but a key: no update */
}

/* Marks a row of a model's outgoing set: rewrites the set with new flags. */
typedef int (*Decide) (PosRun *run, PosModel *model, Datum *values, bool *nulls,
					   int flags, void *arg);

static void
mark_rows(PosRun *run, PosModel *model, Decide decide, void *arg)
{
	PosRowset  *done = pos_rowset_create(psprintf("possync_outgoing_%d",
												  model->id), model->stage);
	Datum	   *values;
	bool	   *nulls;

	pos_rowset_rewind(model->outgoing->rows);
	while (pos_rowset_next(model->outgoing->rows, &values, &nulls))
	{
		MemoryContext old;

		MemoryContextReset(run->row);
		old = MemoryContextSwitchTo(run->row);
		values[POS_STAGE_OLD] =
			Int64GetDatum(decide(run, model, values, nulls,
								 DatumGetInt64(values[POS_STAGE_OLD]), arg));
		MemoryContextSwitchTo(old);
		pos_rowset_put(done, values, nulls);
	}
	pos_rowset_free(model->outgoing->rows);
	model->outgoing->rows = done;
}

/* Whether all that a row's match fields refer to is at the remote. */
static bool
can_match(PosRun *run, PosModel *model, Datum *values, bool *nulls)
{
	for (int i = 0; i < model->nwritten; i++)
	{
		PosField   *field = model->written[i];
		bool		isnull;
		Datum		local;
		Datum		remote;
		uint8		known;

		if (!field->match || field->supplier == NULL)
			continue;
		local = pos_outgoing_parent(field->supplier, values, nulls, &isnull);
		if (!isnull && pos_translation_find(run, field->supplier->parent, local,
											&remote, &known) != POS_FOUND)
			return false;
	}
	return true;
}

/* Whether a row is looked for at the remote before it is created there. */
static bool
is_looked_for(PosRun *run, PosModel *model, Datum *values, bool *nulls, int flags)
{
	if (model->on_unknown == POS_CREATE_ONLY)
		return false;

	/*
	 * a new row with a unique match field: the constraint tells, see
	 * push_some
	 */
	if ((flags & POS_ROW_NEW) && !run->match_all &&
		model->on_unknown == POS_MATCH_CREATE)
		return false;
	return (flags & POS_ROW_UNKNOWN) != 0 &&
		can_match(run, model, values, nulls);
}

/* What the remote answered about the rows looked for */
typedef struct Found
{
	PosStep    *step;
	int			row;			/* number of the row decided upon */
	int			answer;
} Found;

static Datum
answered_key(PosModel *model, char **texts)
{
	Datum		parts[INDEX_MAX_KEYS];

	if (model->nkey == 1)
		return pos_key_from_string(texts[0], model->remote_int);
	for (int i = 0; i < model->nkey; i++)
		parts[i] = CStringGetTextDatum(texts[i]);
	return pos_key_from_parts(model->nkey, parts);
}

/* Forgets the keys that unsure rows were given, so that they are looked for. */
static int
forget_unsure(PosRun *run, PosModel *model, Datum *values, bool *nulls, int flags,
			  void *arg)
{
	if (!(flags & POS_ROW_UNSURE))
		return flags;
	pos_translation_remove(run, model, values[POS_STAGE_LOCAL]);
	return (flags & ~POS_ROW_UNSURE) |
		(flags & POS_ROW_DELETED ? 0 : POS_ROW_UNKNOWN);
}

/* Remembers the row for which a batch is about to fail, and its candidates. */
static void
accuse(PosRun *run, PosModel *model, Datum *values, PosStep *step, int first,
	   int last)
{
	PosCulprit *culprit = &run->whole->culprit;
	MemoryContext old = MemoryContextSwitchTo(run->whole->errors);

	culprit->model = model->id;
	culprit->key = pos_key_string(values[POS_STAGE_LOCAL], model->local_int);
	culprit->candidates = NIL;
	for (int i = first; i < last; i++)
		culprit->candidates =
			lappend(culprit->candidates,
					pos_key_string(answered_key(model, &step->answers[i * model->nkey]),
								   model->remote_int));
	MemoryContextSwitchTo(old);
}

/* Links a row with what the remote has, if that is one row. */
static int
link_found(PosRun *run, PosModel *model, Datum *values, bool *nulls, int flags,
		   void *arg)
{
	Found	   *found = arg;
	PosStep    *step = found->step;
	int			first = found->answer;
	Datum		remote;

	if (!is_looked_for(run, model, values, nulls, flags))
		return flags;
	while (found->answer < step->nanswers &&
		   step->row[found->answer] == found->row)
		found->answer++;
	found->row++;
	if (found->answer == first)
		return flags;
	remote = answered_key(model, &step->answers[first * model->nkey]);
	if (found->answer - first > 1)
		accuse(run, model, values, step, first, found->answer);
	if (found->answer - first > 1)
		ereport(ERROR,
				(errcode(ERRCODE_CARDINALITY_VIOLATION),
				 errmsg("%d remote rows match row %s of \"%s\"",
						found->answer - first,
						pos_key_string(values[POS_STAGE_LOCAL], model->local_int),
						model->name)));
	if (pos_translation_is_linked(run, model, remote))
		ereport(ERROR,
				(errcode(ERRCODE_CARDINALITY_VIOLATION),
				 errmsg("the remote row %s that matches row %s of \"%s\" is linked with another local row",
						pos_key_string(remote, model->remote_int),
						pos_key_string(values[POS_STAGE_LOCAL], model->local_int),
						model->name)));
	pos_translation_add(run, model, remote, values[POS_STAGE_LOCAL], false);
	pos_translation_flush(run);
	model->counts.matched++;
	return (flags & ~POS_ROW_UNKNOWN) | POS_ROW_MATCHED;
}

/* Looks for the unknown rows of a model at the remote. */
static void
match(PosRun *run, PosModel *model)
{
	Steps		steps = {0};
	PosStep    *step = add_step(&steps, model, POS_STEP_MATCH);
	Found		found = {.step = step};
	Datum	   *values;
	bool	   *nulls;

	for (int i = 0; i < model->nwritten; i++)
		if (model->written[i]->match)
			step->columns[step->ncolumns++] = model->written[i]->remote;
	if (step->ncolumns == 0)
		return;
	if (run->match_all)
		mark_rows(run, model, forget_unsure, NULL);
	pos_rowset_rewind(model->outgoing->rows);
	while (pos_rowset_next(model->outgoing->rows, &values, &nulls))
	{
		if (!is_looked_for(run, model, values, nulls,
						   DatumGetInt64(values[POS_STAGE_OLD])))
			continue;
		begin_row(&steps);
		for (int i = 0; i < model->nwritten; i++)
			if (model->written[i]->match)
				append_field(&steps.rows, run, model->written[i], values, nulls);
		end_row(&steps);
	}
	close_step(&steps);
	if (step->nrows == 0)
		return;
	run->connection->ops->write(run->connection, steps.steps, steps.nsteps);
	mark_rows(run, model, link_found, &found);
}

/* The keys made at the remote for a model, and how many are used */
typedef struct Keys
{
	PosStep    *step;			/* NULL: no column is made there */
	int			used;
} Keys;

/* Whether a column of a model's key is made at the remote. */
static bool
is_made(PosField *field)
{
	return !field->copy && field->supplier == NULL && field->fixed == NULL;
}

/* Gives an unknown row its key at the remote. */
static int
assign_key(PosRun *run, PosModel *model, Datum *values, bool *nulls, int flags,
		   void *arg)
{
	Keys	   *keys = arg;
	char	   *texts[INDEX_MAX_KEYS];
	int			made = 0;

	if ((flags & POS_ROW_UNKNOWN) == 0)
		return flags;
	if (model->on_unknown == POS_MATCH_ONLY)
		ereport(ERROR,
				(errcode(ERRCODE_TRIGGERED_ACTION_EXCEPTION),
				 errmsg("row %s of \"%s\" matches nothing at the remote, and must not be created there",
						pos_key_string(values[POS_STAGE_LOCAL], model->local_int),
						model->name)));
	for (int i = 0; i < model->nkey; i++)
		texts[i] = is_made(model->key[i]) ?
			keys->step->answers[keys->used * keys->step->ncolumns + made++] :
			field_text(run, model->key[i], values, nulls);
	keys->used++;
	pos_translation_add(run, model, answered_key(model, texts),
						values[POS_STAGE_LOCAL], true);
	return (flags & ~POS_ROW_UNKNOWN) | POS_ROW_CREATED;
}

/* Returns the step that makes keys for a model's unknown rows, if any does. */
static PosStep *
keys_step(PosRun *run, PosModel *model, Steps *steps)
{
	int			n = 0;
	PosStep    *step;
	Datum	   *values;
	bool	   *nulls;
	bool		any = false;

	for (int i = 0; i < model->nkey; i++)
		any = any || is_made(model->key[i]);
	if (!any)
		return NULL;
	pos_rowset_rewind(model->outgoing->rows);
	while (pos_rowset_next(model->outgoing->rows, &values, &nulls))
		if (DatumGetInt64(values[POS_STAGE_OLD]) & POS_ROW_UNKNOWN)
			n++;
	if (n == 0)
		return NULL;
	step = add_step(steps, model, POS_STEP_KEYS);
	step->nrows = n;
	for (int i = 0; i < model->nkey; i++)
		if (is_made(model->key[i]))
			step->columns[step->ncolumns++] = model->key[i]->remote;
	return step;
}

/* Recognises the batch's unknown rows at the remote, or gives them keys. */
static void
bind_batch(PosRun *run, PosBatch *batch)
{
	Steps		steps = {0};
	Keys	   *keys = palloc0(list_length(batch->models) * sizeof(Keys));
	ListCell   *lc;

	foreach(lc, batch->models)
		match(run, lfirst(lc));
	foreach(lc, batch->models)
		keys[foreach_current_index(lc)].step = keys_step(run, lfirst(lc), &steps);
	if (steps.nsteps > 0)
		run->connection->ops->write(run->connection, steps.steps, steps.nsteps);
	foreach(lc, batch->models)
		mark_rows(run, lfirst(lc), assign_key, &keys[foreach_current_index(lc)]);
}

/* Puts together what is to be sent of a batch. */
static void
add_steps(PosRun *run, PosBatch *batch, Steps *steps)
{
	ListCell   *lc;

	foreach(lc, batch->models)
		add_rows(run, lfirst(lc), POS_STEP_INSERT, steps);
	foreach(lc, batch->models)
		add_rows(run, lfirst(lc), POS_STEP_UPDATE, steps);
	for (int i = list_length(batch->models) - 1; i >= 0; i--)
		add_rows(run, list_nth(batch->models, i), POS_STEP_DELETE, steps);
	foreach(lc, batch->models)
	{
		PosModel   *model = lfirst(lc);

		model->counts.read = pos_rowset_count(model->outgoing->rows);
	}
	pos_outgoing_free(run);
}

/* Adds what a batch did to what the push reports. */
static void
count(PosPush *push, PosRun *run, Steps *steps)
{
	ListCell   *lc;

	foreach(lc, run->tree->models)
	{
		PosCounts  *counts = &((PosModel *) lfirst(lc))->counts;

		push->counts.read += counts->read;
		push->counts.matched += counts->matched;
	}
	for (int i = 0; i < steps->nsteps; i++)
		if (steps->steps[i]->kind == POS_STEP_UPDATE)
			push->counts.updated += steps->steps[i]->affected;
		else if (steps->steps[i]->kind == POS_STEP_INSERT)
			push->counts.created += steps->steps[i]->affected;
	push->received += run->connection->ops->received(run->connection);
}

/*
 * Carries out one batch of whole transactions.  An error leaves it to be
 * repeated, in whole or in parts.
 */
static void
push_batch(PosPush *push, int ntxids, Datum *txids, bool match_all)
{
	PosBatch	batch = {.ntxids = ntxids,.txids = txids};
	PosRun	   *run = make_run(push);
	Steps		steps = {0};

	begin_transaction();
	MemoryContextSwitchTo(run->context);
	run->match_all = match_all;
	load(run, push);
	batch.id = run->id = pos_history_next_id();
	pos_outgoing_collect(run, &batch);
	bind_batch(run, &batch);
	add_steps(run, &batch, &steps);
	pos_outgoing_open(run, &batch, push->history);
	pos_translation_close(run);
	pos_tree_close(run->tree);
	pos_fault_point("push bound");
	commit_transaction();
	pos_fault_point("push prepared");

	begin_transaction();
	MemoryContextSwitchTo(run->context);
	if (steps.nsteps > 0)
		run->connection->ops->write(run->connection, steps.steps, steps.nsteps);
	pos_fault_point("push written");
	pos_outgoing_confirm(run, &batch);
	count(push, run, &steps);
	commit_transaction();
	pos_fault_point("push confirmed");
}

/* Tries a batch.  Returns the error it failed with, or NULL. */
static ErrorData *
try_batch(PosPush *push, int ntxids, Datum *txids, bool match_all)
{
	ErrorData  *volatile error = NULL;

	push->culprit.model = 0;
	PG_TRY();
	{
		push_batch(push, ntxids, txids, match_all);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(push->errors);
		error = CopyErrorData();
		FlushErrorState();
		AbortOutOfAnyTransaction();
	}
	PG_END_TRY();
	if (error != NULL && !pos_careful_is_content(error->sqlerrcode))
		ReThrowError(error);
	return error;
}

/* Puts one transaction into quarantine. */
static void
hold(PosPush *push, Datum txid, ErrorData *error)
{
	PosRun	   *run = make_run(push);

	begin_transaction();
	MemoryContextSwitchTo(run->context);
	run->tree = pos_tree_load(push->root, true);
	pos_outgoing_hold(run, txid, error, &push->culprit);
	pos_tree_close(run->tree);
	commit_transaction();
	push->from = Min(push->from, DatumGetUInt64(txid));
	push->counts.left_out++;
}

/*
 * Pushes some transactions, those at fault into quarantine.  A unique
 * constraint that is violated by a new row may mean that the row is there
 * already, because somebody else was faster: then it is looked for.
 */
static void
push_some(PosPush *push, int ntxids, Datum *txids)
{
	ErrorData  *error = try_batch(push, ntxids, txids, false);

	CHECK_FOR_INTERRUPTS();
	if (error != NULL && error->sqlerrcode == ERRCODE_UNIQUE_VIOLATION)
		error = try_batch(push, ntxids, txids, true);
	if (error == NULL)
		return;
	if (ntxids == 1)
		hold(push, txids[0], error);
	else
	{
		push_some(push, ntxids / 2, txids);
		push_some(push, ntxids - ntxids / 2, txids + ntxids / 2);
	}
}

/* Picks the next transactions; they live in context. */
static int
pick(PosPush *push, MemoryContext context, Datum **txids)
{
	PosRun	   *run = make_run(push);
	Datum	   *picked;
	int			n;

	begin_transaction();
	MemoryContextSwitchTo(run->context);
	run->tree = pos_tree_load(push->root, true);
	n = pos_outgoing_pick(run, BATCH_ENTRIES, BATCH_BYTES, &push->from, &picked);
	*txids = MemoryContextAlloc(context, Max(n, 1) * sizeof(Datum));
	memcpy(*txids, picked, n * sizeof(Datum));
	pos_tree_close(run->tree);
	commit_transaction();
	return n;
}

/*
 * Pushes all that is queued for the server of a root model.  Must be called
 * outside of a transaction.  Returns the number of its row in history.
 */
void
pos_push_run(PosPush *push)
{
	MemoryContext batch = AllocSetContextCreate(TopMemoryContext,
												"possync batch",
												ALLOCSET_DEFAULT_SIZES);
	Datum	   *txids;
	int			n;

	push->context = AllocSetContextCreate(TopMemoryContext, "possync push",
										  ALLOCSET_DEFAULT_SIZES);
	push->errors = AllocSetContextCreate(TopMemoryContext,
										 "possync push errors",
										 ALLOCSET_DEFAULT_SIZES);
	while ((n = pick(push, batch, &txids)) > 0)
	{
		push_some(push, n, txids);
		MemoryContextReset(batch);
		MemoryContextReset(push->errors);
	}
	MemoryContextDelete(batch);
}
