/*
 * steps.c
 *		The rows of a batch as the steps of a write: JSON with remote names, and
 *		with foreign keys that are the remote's.
 *
 * Claims come first, and what is expected; inserts go parents first, then updates,
 * then deletes, children first; or all in the order in which they were done.
 */
#include "possync.h"

#include "catalog/pg_type.h"
#include "push.h"
#include "utils/builtins.h"
#include "utils/json.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"

/* Rows, and bytes, in one statement at the remote */
#define STEP_ROWS		4000
#define STEP_BYTES		(1024 * 1024)

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

/* Returns the model that a step is for. */
PosModel *
pos_steps_model(PosRun *run, PosStep *step)
{
	ListCell   *lc;

	foreach(lc, run->tree->models)
		if (&((PosModel *) lfirst(lc))->table == step->table)
		return lfirst(lc);
	elog(ERROR, "a step is for no model");
}

/* Returns the remote key that texts of its columns make. */
Datum
pos_steps_key(PosModel *model, char **texts)
{
	Datum		parts[INDEX_MAX_KEYS];

	if (model->nkey == 1)
		return pos_key_from_string(texts[0], model->remote_int);
	for (int i = 0; i < model->nkey; i++)
		parts[i] = CStringGetTextDatum(texts[i]);
	return pos_key_from_parts(model->nkey, parts);
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

/* Whether a step has a column for a field. */
static bool
has_column(PosStepKind kind, PosModel *model, PosField *field)
{
	switch (kind)
	{
		case POS_STEP_CLAIM:
			return field->match;
		case POS_STEP_INSERT:
			return field->is_key || travels(field);
		case POS_STEP_UPDATE:
			return travels(field);
		case POS_STEP_EXPECT:
			return travels(field) && pos_conflict_counts(model, field);
		default:
			return false;
	}
}

/* Whether a model sends anything but keys. */
static bool
has_values(PosModel *model)
{
	for (int i = 0; i < model->nwritten; i++)
		if (travels(model->written[i]))
			return true;
	return false;
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

/* Whether a row is to be inserted, updated, or deleted; maybe several. */
static bool
needs_step(PosModel *model, PosStepKind kind, int flags)
{
	if (flags & POS_ROW_DELETED)
		return kind == POS_STEP_DELETE;
	switch (kind)
	{
		case POS_STEP_CLAIM:
			return flags & POS_ROW_CLAIMED;
		case POS_STEP_INSERT:
			return !(flags & POS_ROW_MATCHED) &&
				(flags & (POS_ROW_NEW | POS_ROW_CREATED | POS_ROW_UNSURE));
		case POS_STEP_UPDATE:
			return !(flags & POS_ROW_CREATED) &&
				((flags & POS_ROW_UPDATED) ||
				 ((flags & (POS_ROW_MATCHED | POS_ROW_UNSURE | POS_ROW_THERE)) &&
				  !(flags & POS_ROW_NEEDED) && model->update_matched));
		case POS_STEP_CALL:
			return model->nafter > 0 &&
				(flags & (POS_ROW_NEW | POS_ROW_CREATED | POS_ROW_UNSURE));
		default:
			return false;
	}
}

/* Adds a step with the columns that it has for a model. */
static PosStep *
add_step(PosModel *model, PosStepKind kind, PosSteps *steps)
{
	PosStep    *step = pos_steps_add(steps, model, kind);

	for (int i = 0; i < model->nwritten; i++)
		if (has_column(kind, model, model->written[i]))
			step->columns[step->ncolumns++] = model->written[i]->remote;
	if (kind == POS_STEP_CALL)
	{
		step->columns = (const char **) model->after;
		step->ncolumns = model->nafter;
	}
	return step;
}

/* Adds a row to the last step; to a new one if that is another, or full. */
static void
add_row(PosRun *run, PosModel *model, PosStepKind kind, Datum *values,
		bool *nulls, PosSteps *steps)
{
	PosStep    *step = steps->open ? steps->steps[steps->nsteps - 1] : NULL;
	int			flags = DatumGetInt64(values[POS_STAGE_OLD]);
	bool		again = kind == POS_STEP_INSERT &&
	(flags & (POS_ROW_UNSURE | POS_ROW_THERE));
	Datum		remote;
	uint8		known;

	if (kind == POS_STEP_UPDATE && !has_values(model))
		return;					/* nothing but a key */
	if (pos_translation_find(run, model, values[POS_STAGE_LOCAL], &remote,
							 &known) != POS_FOUND)
	{
		if ((flags & POS_ROW_DELETED) == 0)
			elog(ERROR, "row %s of \"%s\" was given no key",
				 pos_key_string(values[POS_STAGE_LOCAL], model->local_int),
				 model->name);
		return;					/* deleted before the remote ever had it */
	}

	/*
	 * One statement must not update a row twice.  Rows that refer to each
	 * other have to go in together, whether they are sure or not.
	 */
	if (step == NULL || step->kind != kind || step->table != &model->table ||
		(step->again != again && !model->component->inner) ||
		is_full(steps, model) || (run->in_order && kind == POS_STEP_UPDATE))
	{
		pos_steps_close(steps);
		step = add_step(model, kind, steps);
	}
	step->again = step->again || again;
	pos_steps_begin_row(steps);
	append_key(&steps->rows, model, remote);
	for (int i = 0; i < model->nwritten; i++)
		if (has_column(kind, model, model->written[i]) && !model->written[i]->is_key)
			pos_steps_field(&steps->rows, run, model->written[i], values, nulls);
	pos_steps_end_row(steps);
}

/* Adds the steps that do one kind of thing with the rows of a model. */
static void
add_rows(PosRun *run, PosModel *model, PosStepKind kind, int among,
		 PosSteps *steps)
{
	Datum	   *values;
	bool	   *nulls;

	pos_rowset_rewind(model->outgoing->rows);
	while (pos_rowset_next(model->outgoing->rows, &values, &nulls))
	{
		int			flags = DatumGetInt64(values[POS_STAGE_OLD]);

		pos_flight_pump(run->whole);
		if ((flags & among) == among && needs_step(model, kind, flags))
			add_row(run, model, kind, values, nulls, steps);
	}
	pos_steps_close(steps);
}

/*
 * Adds the steps that repeat every change in its order, after what they all
 * need.  The rows of a model stand in the order of its entries.
 */
static void
add_in_order(PosRun *run, PosBatch *batch, PosSteps *steps)
{
	static const PosStepKind kinds[] = {
		POS_STEP_INSERT, POS_STEP_UPDATE, POS_STEP_DELETE
	};
	ListCell   *lc;

	foreach(lc, batch->models)
		add_rows(run, lfirst(lc), POS_STEP_INSERT, POS_ROW_NEEDED, steps);
	foreach(lc, batch->models)
		pos_rowset_rewind(((PosModel *) lfirst(lc))->outgoing->rows);
	for (int i = 0; i < batch->nentries; i++)
	{
		PosModel   *model = batch->order[i];
		Datum	   *values;
		bool	   *nulls;

		if (model == NULL)
			continue;
		if (!pos_rowset_next(model->outgoing->rows, &values, &nulls))
			elog(ERROR, "an entry of \"%s\" has no row", model->name);
		for (int k = 0; k < lengthof(kinds); k++)
			if (needs_step(model, kinds[k], DatumGetInt64(values[POS_STAGE_OLD])))
				add_row(run, model, kinds[k], values, nulls, steps);
	}
	pos_steps_close(steps);
}

/* Appends a label that is a letter and a number, and a text if there is one. */
static void
append_numbered(StringInfo buf, char letter, int number, const char *text)
{
	if (text == NULL)
		return;
	append_label(buf, psprintf("%c%d", letter, number));
	escape_json(buf, text);
}

/* Appends a row as the remote may have it. */
static void
append_expected(StringInfo buf, PosRun *run, PosModel *model, Datum local,
				Datum remote, PosBefore *before)
{
	Datum		parts[INDEX_MAX_KEYS];
	int			n = 0;

	append_label(buf, "n");
	escape_json(buf, pos_key_string(local, model->local_int));
	if (model->nkey == 1)
		append_numbered(buf, 'k', 1, pos_key_string(remote, model->remote_int));
	else
		pos_key_to_parts(remote, model->nkey, parts);
	for (int i = 0; i < model->nkey && model->nkey > 1; i++)
		append_numbered(buf, 'k', i + 1, TextDatumGetCString(parts[i]));
	for (int i = 0; i < model->nwritten; i++)
		if (has_column(POS_STEP_EXPECT, model, model->written[i]))
			append_numbered(buf, 'a', ++n,
							pos_steps_text(run, model->written[i],
										   before->values, before->nulls));
}

/* Adds the steps that look whether the remote has changed rows of a model, too. */
static void
add_expected(PosRun *run, PosModel *model, PosSteps *steps)
{
	PosStep    *step = NULL;
	Datum	   *values;
	bool	   *nulls;

	pos_rowset_rewind(model->outgoing->rows);
	while (pos_rowset_next(model->outgoing->rows, &values, &nulls))
	{
		List	   *befores = pos_outgoing_befores(model, values[POS_STAGE_LOCAL]);
		Datum		remote;
		uint8		known;
		ListCell   *lc;

		if (befores == NIL ||
			(DatumGetInt64(values[POS_STAGE_OLD]) & (POS_ROW_MATCHED | POS_ROW_CREATED)) ||
			pos_translation_find(run, model, values[POS_STAGE_LOCAL], &remote,
								 &known) != POS_FOUND)
			continue;
		if (step == NULL || is_full(steps, model))
		{
			pos_steps_close(steps);
			step = add_step(model, POS_STEP_EXPECT, steps);
		}
		if (step->ncolumns == 0)
			break;
		foreach(lc, befores)
		{
			pos_steps_begin_row(steps);
			append_expected(&steps->rows, run, model, values[POS_STAGE_LOCAL],
							remote, lfirst(lc));
			pos_steps_end_row(steps);
		}
	}
	if (step != NULL && step->ncolumns == 0)
		steps->nsteps--;
	pos_steps_close(steps);
}

/* Puts together what is to be sent of a batch. */
void
pos_steps_batch(PosRun *run, PosBatch *batch, PosSteps *steps)
{
	ListCell   *lc;

	foreach(lc, batch->models)
		add_rows(run, lfirst(lc), POS_STEP_CLAIM, 0, steps);
	foreach(lc, batch->models)
		add_expected(run, lfirst(lc), steps);
	if (run->in_order)
		add_in_order(run, batch, steps);
	else
	{
		foreach(lc, batch->models)
			add_rows(run, lfirst(lc), POS_STEP_INSERT, 0, steps);
		foreach(lc, batch->models)
			add_rows(run, lfirst(lc), POS_STEP_UPDATE, 0, steps);
		foreach(lc, batch->models)
			add_rows(run, lfirst(lc), POS_STEP_CALL, 0, steps);
		for (int i = list_length(batch->models) - 1; i >= 0; i--)
			add_rows(run, list_nth(batch->models, i), POS_STEP_DELETE, 0, steps);
	}
	foreach(lc, batch->models)
	{
		PosModel   *model = lfirst(lc);

		model->counts.read = pos_rowset_count(model->outgoing->rows);
	}
	pos_outgoing_free(run);
}
