/*
 * steps.c
 *		The rows of a batch as the steps of a write: JSON with remote names, and
 *		with foreign keys that are the remote's.
 *
 * Inserts go parents first, then updates, then deletes, children first.
 */
#include "possync.h"

#include "catalog/pg_type.h"
#include "push.h"
#include "utils/builtins.h"
#include "utils/json.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"

/* Rows, and bytes, in one statement at the remote */
#define STEP_ROWS		1000
#define STEP_BYTES		(512 * 1024)

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
char *
pos_steps_text(PosRun *run, PosField *field, Datum *values, bool *nulls)
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
void
pos_steps_field(StringInfo buf, PosRun *run, PosField *field, Datum *values,
				bool *nulls)
{
	char	   *text = pos_steps_text(run, field, values, nulls);

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

/* Adds a step for a model; its columns are to be filled in. */
PosStep *
pos_steps_add(PosSteps *steps, PosModel *model, PosStepKind kind)
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

/* Completes the rows of the last step. */
void
pos_steps_close(PosSteps *steps)
{
	if (!steps->open)
		return;
	appendStringInfoChar(&steps->rows, ']');
	steps->steps[steps->nsteps - 1]->rows = steps->rows.data;
	steps->open = false;
}

/* Begins a row of the last step. */
void
pos_steps_begin_row(PosSteps *steps)
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

/* Ends a row of the last step. */
void
pos_steps_end_row(PosSteps *steps)
{
	appendStringInfoChar(&steps->rows, '}');
	steps->steps[steps->nsteps - 1]->nrows++;
}

/* Whether the last step has as many rows as one statement should take. */
static bool
is_full(PosSteps *steps, PosModel *model)
{
	PosStep    *step = steps->steps[steps->nsteps - 1];

	return !model->component->inner &&
		(step->nrows >= STEP_ROWS || steps->rows.len >= STEP_BYTES);
}

/*
 * Adds the steps that do one kind of thing with the rows of a model.
 */
static void
add_rows(PosRun *run, PosModel *model, PosStepKind kind, PosSteps *steps)
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
		 ((flags & (POS_ROW_MATCHED | POS_ROW_UNSURE)) &&
		  !(flags & POS_ROW_NEEDED) && model->update_matched));
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
			pos_steps_close(steps);
			step = pos_steps_add(steps, model, kind);
			for (int i = 0; i < model->nkey && kind == POS_STEP_INSERT; i++)
				step->columns[step->ncolumns++] = model->table.columns[i].remote;
			for (int i = 0; i < model->nwritten && kind != POS_STEP_DELETE; i++)
				if (travels(model->written[i]))
					step->columns[step->ncolumns++] = model->written[i]->remote;
		}
		pos_steps_begin_row(steps);
		append_key(&steps->rows, model, remote);
		for (int i = 0; i < model->nwritten && kind != POS_STEP_DELETE; i++)
			if (travels(model->written[i]))
				pos_steps_field(&steps->rows, run, model->written[i], values, nulls);
		pos_steps_end_row(steps);
	}
	pos_steps_close(steps);
	if (step != NULL && step->ncolumns == 0 && kind == POS_STEP_UPDATE)
		steps->nsteps--;		/* nothing but a key: no update */
}

/* Puts together what is to be sent of a batch. */
void
pos_steps_batch(PosRun *run, PosBatch *batch, PosSteps *steps)
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
