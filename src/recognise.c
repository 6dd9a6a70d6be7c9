/*
 * recognise.c
 *		Rows of a batch that the remote is not known to have: found there by
 *		their match fields, or given keys that the remote makes.
 *
 * A new row is not looked for if nothing says that it might be there; should a
 * unique constraint of the remote say so after all, the batch comes here again
 * with match_all.
 */
#include "possync.h"

#include "push.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

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

		pos_flight_pump(run->whole);
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

/* Whether a remote key only stands for one that is not known yet, see connection.h. */
static bool
is_provisional(PosRun *run, PosModel *model, Datum remote)
{
	return (run->connection->ops->capabilities & POS_CAP_LATE_KEYS) != 0 &&
		model->remote_int && DatumGetInt64(remote) < 0;
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
		if (!isnull &&
			(pos_translation_find(run, field->supplier->parent, local, &remote,
								  &known) != POS_FOUND ||
			 is_provisional(run, field->supplier->parent, remote)))
			return false;
	}
	return true;
}

/*
 * Whether a unique constraint of the remote keeps others from making the same
 * row, too.
 */
static bool
is_guarded(PosModel *model, bool *nulls)
{
	for (int i = 0; i < model->nwritten; i++)
		if (model->written[i]->match && nulls[model->written[i]->staged])
			return false;
	return model->table.guarded;
}

/* Whether the key of a new row is known only after it has been inserted. */
static bool
has_late_key(PosRun *run, PosModel *model)
{
	return (run->connection->ops->capabilities & POS_CAP_LATE_KEYS) != 0 &&
		pos_keys_are_made(model);
}

/* Whether a row is looked for at the remote before it is created there. */
static bool
is_looked_for(PosRun *run, PosModel *model, Datum *values, bool *nulls, int flags)
{
	/* nothing else tells whether it has been sent before */
	if (has_late_key(run, model))
		return (flags & (POS_ROW_UNKNOWN | POS_ROW_UNSURE)) &&
			can_match(run, model, values, nulls);

	if (model->on_unknown == POS_CREATE_ONLY)
		return false;

	/* if a new row is there, the constraint tells, see push_some */
	if ((flags & POS_ROW_NEW) && !run->match_all &&
		model->on_unknown == POS_MATCH_CREATE && is_guarded(model, nulls))
		return false;

	/* nor is it sure that a row has the key that it was given */
	return ((flags & POS_ROW_UNKNOWN) ||
			((flags & POS_ROW_UNSURE) && !(flags & POS_ROW_DELETED) &&
			 (run->match_all || !is_guarded(model, nulls)))) &&
		can_match(run, model, values, nulls);
}

/* What the remote answered about the rows looked for */
typedef struct Found
{
	PosStep    *step;
	bool	   *asked;			/* for every row of the model: whether the
								 * step asks for it */
	bool	   *decided;		/* whether one did */
	int			at;				/* the row decided upon */
	int			row;			/* its number in the step */
	int			answer;
} Found;

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
					pos_key_string(pos_steps_key(model, &step->answers[i * model->nkey]),
								   model->remote_int));
	MemoryContextSwitchTo(old);
}

/* Whether a row was found under the key that it was given. */
static bool
is_own(PosRun *run, PosModel *model, Datum *values, PosStep *step, int first,
	   int last)
{
	Datum		own;
	uint8		known;

	if (pos_translation_find(run, model, values[POS_STAGE_LOCAL], &own,
							 &known) != POS_FOUND)
		return false;
	for (int i = first; i < last; i++)
		if (strcmp(pos_key_string(own, model->remote_int),
				   pos_key_string(pos_steps_key(model, &step->answers[i * model->nkey]),
								  model->remote_int)) == 0)
			return true;
	return false;
}

/*
 * Decides about a row that was sent, whose key is not known, and which is not found:
 * it is sent again, under a new key, once it cannot arrive any more.
 */
static int
send_again(PosRun *run, PosModel *model, Datum *values, int flags)
{
	Datum		own;
	uint8		known;

	if ((flags & POS_ROW_UNSURE) == 0 ||
		pos_translation_find(run, model, values[POS_STAGE_LOCAL], &own, &known) != POS_FOUND ||
		!is_provisional(run, model, own))
		return flags;
	if (!run->connection->ops->settled(run->connection,
									   pos_key_string(own, model->remote_int)))
		ereport(ERROR,
				(errcode(ERRCODE_CONNECTION_FAILURE),
				 errmsg("it is not known yet whether row %s of \"%s\" has arrived",
						pos_key_string(values[POS_STAGE_LOCAL], model->local_int),
						model->name),
				 errdetail("The connection was lost when it was sent. It is not there, and may still appear as long as the server works on it."),
				 errhint("It is sent again once that cannot be any more; option \"overlap\" of the server tells how long its longest transaction takes.")));
	pos_translation_remove(run, model, values[POS_STAGE_LOCAL]);
	flags &= ~POS_ROW_UNSURE;
	return (flags & POS_ROW_DELETED) ? flags : flags | POS_ROW_UNKNOWN;
}

/*
 * Links a row with what the remote has, if that is one row.  One that is not
 * sure to have its key keeps it if nothing else is found.
 */
static int
link_found(PosRun *run, PosModel *model, Datum *values, bool *nulls, int flags,
		   void *arg)
{
	Found	   *found = arg;
	PosStep    *step = found->step;
	int			first = found->answer;
	Datum		remote;

	if (!found->asked[found->at++])
		return flags;
	while (found->answer < step->nanswers &&
		   step->row[found->answer] == found->row)
		found->answer++;
	found->row++;
	if (found->answer == first && has_late_key(run, model))
		return send_again(run, model, values, flags);
	if (found->answer == first)
		return is_guarded(model, nulls) ? flags : flags | POS_ROW_CLAIMED;
	if (is_own(run, model, values, step, first, found->answer))
		return flags;
	remote = pos_steps_key(model, &step->answers[first * model->nkey]);
	if (found->answer - first > 1)
		accuse(run, model, values, step, first, found->answer);
	if (found->answer - first > 1)
		ereport(ERROR,
				(errcode(ERRCODE_CARDINALITY_VIOLATION),
				 errmsg("%d remote rows match row %s of \"%s\"",
						found->answer - first,
						pos_key_string(values[POS_STAGE_LOCAL], model->local_int),
						model->name)));
	if (pos_translation_is_linked(run, model, remote) && run->in_order)
		return flags;			/* as before: its row may go first */
	if (pos_translation_is_linked(run, model, remote))
		ereport(ERROR,
				(errcode(ERRCODE_CARDINALITY_VIOLATION),
				 errmsg("the remote row %s that matches row %s of \"%s\" is linked with another local row",
						pos_key_string(remote, model->remote_int),
						pos_key_string(values[POS_STAGE_LOCAL], model->local_int),
						model->name)));
	if (flags & POS_ROW_UNSURE)
		pos_translation_remove(run, model, values[POS_STAGE_LOCAL]);
	pos_translation_add(run, model, remote, values[POS_STAGE_LOCAL], false);
	pos_translation_flush(run);
	model->counts.matched++;
	return (flags & ~(POS_ROW_UNKNOWN | POS_ROW_UNSURE)) | POS_ROW_MATCHED;
}

/* Raises the error of a model whose rows cannot be recognised where they have to. */
static void
check_match_fields(PosRun *run, PosModel *model)
{
	if (model->table.nmatch == 0)
		ereport(ERROR,
				(errcode(ERRCODE_TRIGGERED_ACTION_EXCEPTION),
				 errmsg("rows of \"%s\" cannot be created at server \"%s\" without match fields",
						model->name, run->tree->server),
				 errdetail("A row whose arrival is in doubt has to be recognised there."),
				 errhint("Choose fields that tell them apart: possync_set_field(%s, ..., match => true).",
						 quote_literal_cstr(model->name))));
}

/* Looks for rows that were not looked for; returns whether there were any. */
static bool
ask_for_rows(PosRun *run, PosModel *model, Found *found)
{
	PosSteps	steps = {0};
	PosStep    *step = pos_steps_add(&steps, model, POS_STEP_MATCH);
	Datum	   *values;
	bool	   *nulls;

	for (int i = 0; i < model->nwritten; i++)
		if (model->written[i]->match)
			step->columns[step->ncolumns++] = model->written[i]->remote;
	if (step->ncolumns == 0)
		return false;
	found->step = step;
	found->at = found->row = found->answer = 0;
	pos_rowset_rewind(model->outgoing->rows);
	for (int i = 0; pos_rowset_next(model->outgoing->rows, &values, &nulls); i++)
	{
		found->asked[i] = !found->decided[i] &&
			is_looked_for(run, model, values, nulls,
						  DatumGetInt64(values[POS_STAGE_OLD]));
		if (!found->asked[i])
			continue;
		found->decided[i] = true;
		pos_steps_begin_row(&steps);
		for (int j = 0; j < model->nwritten; j++)
			if (model->written[j]->match)
				pos_steps_field(&steps.rows, run, model->written[j], values, nulls);
		pos_steps_end_row(&steps);
	}
	pos_steps_close(&steps);
	if (step->nrows == 0)
		return false;
	pos_flight_ask(run, &steps);
	mark_rows(run, model, link_found, found);
	return true;
}

/*
 * Decides about rows in doubt that could not be looked for, because what they refer
 * to is not there: then they are not there either.
 */
static int
doubt(PosRun *run, PosModel *model, Datum *values, bool *nulls, int flags,
	  void *arg)
{
	Found	   *found = arg;

	if (found->decided[found->at++] || (flags & POS_ROW_UNSURE) == 0)
		return flags;
	check_match_fields(run, model);
	return send_again(run, model, values, flags);
}

/* Takes the keys of links in doubt away: they are made of other keys. */
static int
renew(PosRun *run, PosModel *model, Datum *values, bool *nulls, int flags,
	  void *arg)
{
	if ((flags & POS_ROW_UNSURE) == 0)
		return flags;
	pos_translation_remove(run, model, values[POS_STAGE_LOCAL]);
	return (flags & ~POS_ROW_UNSURE) | POS_ROW_UNKNOWN;
}

/*
 * Looks for the unknown rows of a model at the remote.  Those that are recognised by
 * others of the model are looked for after these.
 */
static void
match(PosRun *run, PosModel *model)
{
	bool		late = (run->connection->ops->capabilities & POS_CAP_LATE_KEYS) != 0;
	int64		n = pos_rowset_count(model->outgoing->rows);
	Found		found = {.asked = palloc0(n * sizeof(bool)),.decided = palloc0(n * sizeof(bool))};

	if (late && !pos_keys_are_made(model))
	{
		mark_rows(run, model, renew, NULL);
		return;
	}
	while (ask_for_rows(run, model, &found) && late)
		;
	found.at = 0;
	if (late)
		mark_rows(run, model, doubt, &found);
}

/* Gives an unknown row its key at the remote. */
static int
assign_key(PosRun *run, PosModel *model, Datum *values, bool *nulls, int flags,
		   void *arg)
{
	char	  **made;
	char	   *texts[INDEX_MAX_KEYS];

	if ((flags & POS_ROW_UNKNOWN) == 0)
		return flags;
	if (model->on_unknown == POS_MATCH_ONLY)
		ereport(ERROR,
				(errcode(ERRCODE_TRIGGERED_ACTION_EXCEPTION),
				 errmsg("row %s of \"%s\" matches nothing at the remote, and must not be created there",
						pos_key_string(values[POS_STAGE_LOCAL], model->local_int),
						model->name)));
	if (has_late_key(run, model))
	{
		check_match_fields(run, model);
		for (int i = 0; i < model->nwritten; i++)
			if (model->written[i]->match && model->written[i]->supplier == NULL &&
				nulls[model->written[i]->staged])
				ereport(ERROR,
						(errcode(ERRCODE_TRIGGERED_ACTION_EXCEPTION),
						 errmsg("row %s of \"%s\" cannot be created at server \"%s\": its match field \"%s\" is null",
								pos_key_string(values[POS_STAGE_LOCAL], model->local_int),
								model->name, run->tree->server, model->written[i]->name),
						 errdetail("A row whose arrival is in doubt has to be recognised there."),
						 errhint("Fill it, or choose other match fields with possync_set_field.")));
	}
	made = pos_keys_next(run, model);
	for (int i = 0; i < model->nkey; i++)
		texts[i] = pos_keys_is_made(model->key[i]) ? *made++ :
			pos_steps_text(run, model->key[i], values, nulls);
	pos_translation_add(run, model, pos_steps_key(model, texts),
						values[POS_STAGE_LOCAL], true);
	return (flags & ~POS_ROW_UNKNOWN) | POS_ROW_CREATED;
}

/* Counts the rows of a model that need keys at the remote. */
static int
count_unknown(PosModel *model)
{
	int			n = 0;
	Datum	   *values;
	bool	   *nulls;

	pos_rowset_rewind(model->outgoing->rows);
	while (pos_rowset_next(model->outgoing->rows, &values, &nulls))
		if (DatumGetInt64(values[POS_STAGE_OLD]) & POS_ROW_UNKNOWN)
			n++;
	return n;
}

/* Recognises the batch's unknown rows at the remote, or gives them keys. */
void
pos_recognise_batch(PosRun *run, PosBatch *batch)
{
	PosSteps	steps = {0};
	ListCell   *lc;

	foreach(lc, batch->models)
		match(run, lfirst(lc));
	foreach(lc, batch->models)
		pos_keys_need(run, lfirst(lc), count_unknown(lfirst(lc)), &steps);
	pos_flight_ask(run, &steps);
	pos_keys_take(run, &steps);
	foreach(lc, batch->models)
	{
		mark_rows(run, lfirst(lc), assign_key, NULL);
		pos_translation_publish(run);
	}
}
