/*
 * bind.c
 *		What becomes of every row that was read: known by a translation, matched
 *		with a local row, to be created, or left out.
 *
 * Every model is received into two row sets, known and unknown.  Known rows
 * are compared first, so that a row which gave up a match field's value does
 * not stand in the way of a new one that took it.  Unknown ones are then
 * matched; creates get their keys here, before anything is written, so that
 * references within a component can be translated in any order.
 *
 * The first load of a model into an empty table knows beforehand that nothing
 * is known and nothing matches, so its rows need not be gathered.
 */
#include "possync.h"

#include "access/xact.h"
#include "executor/executor.h"
#include "optimizer/optimizer.h"
#include "progress.h"
#include "rebuild.h"
#include "rewrite/rewriteHandler.h"
#include "run.h"
#include "sequence.h"
#include "sql.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"

/* Appends a staged row to a set and numbers it. */
static void
put(PosRowset *rowset, Datum *values, bool *nulls)
{
	values[POS_STAGE_N] = Int64GetDatum(pos_rowset_count(rowset) + 1);
	nulls[POS_STAGE_N] = false;
	pos_rowset_put(rowset, values, nulls);
}

/* Whether a dry run does not know all values of a row. */
static bool
is_pending(Datum *values)
{
	return (DatumGetInt64(values[POS_STAGE_OLD]) & POS_OLD_PENDING) != 0;
}

/*
 * Takes a row whose local one is known, to be compared.  What refers to a row
 * that is only to be made differs in any case.
 */
static void
put_known(PosRun *run, PosModel *model, Datum *values, bool *nulls)
{
	if (is_pending(values) && !model->component->inner)
		pos_known_pretend(run, model, values, nulls);
	else
		pos_known_take(run, model, values, nulls);
}

/* Whether the local table of a model has no row at all. */
static bool
is_empty(PosModel *model)
{
	if (model->has_translations)
		return false;
	return pos_sql_execute(psprintf("SELECT 1 FROM %s t LIMIT 1",
									model->table_sql), 0, NULL, NULL) == 0;
}

static bool
has_match_field(PosModel *model)
{
	for (int i = 0; i < model->nwritten; i++)
		if (model->written[i]->match)
			return true;
	return false;
}

/* Makes ready for the defaults of key columns that are made here. */
static void
prepare_key(PosRun *run, PosModel *model)
{
	MemoryContext old;

	if (model->econtext != NULL)
		return;
	old = MemoryContextSwitchTo(run->context);
	model->econtext = CreateStandaloneExprContext();
	for (int i = 0; i < model->nkey; i++)
	{
		PosField   *field = model->key[i];
		Node	   *expression;

		if (field->copy || field->supplier != NULL || field->fixed != NULL)
			continue;
		expression = build_column_default(model->rel, field->attnum);
		if (expression == NULL)
			ereport(ERROR,
					(errcode(ERRCODE_NOT_NULL_VIOLATION),
					 errmsg("key column \"%s\" of table %s is not copied and has no default",
							field->name, model->name)));
		field->sequence = pos_sequence_find(expression);
		field->key_default = ExecInitExpr(expression_planner((Expr *) expression),
										  NULL);
	}
	MemoryContextSwitchTo(old);
}

/* Gives a row to be created its local key. */
static void
make_key(PosModel *model, Datum *values, bool *nulls)
{
	ResetExprContext(model->econtext);
	for (int i = 0; i < model->nkey; i++)
	{
		PosField   *field = model->key[i];

		if (field->sequence != NULL)
		{
			values[field->staged] = pos_sequence_next(field->sequence,
													  field->key_default,
													  model->econtext);
			nulls[field->staged] = false;
		}
		else if (field->key_default != NULL)
			values[field->staged] = ExecEvalExpr(field->key_default,
												 model->econtext,
												 &nulls[field->staged]);
	}
	values[POS_STAGE_LOCAL] =
		pos_key_from_columns(model, &values[POS_STAGE_FIRST],
							 &nulls[POS_STAGE_FIRST]);
	nulls[POS_STAGE_LOCAL] = false;
}

/* A row is to be created; all that identifies it is translated. */
static void
create(PosRun *run, PosModel *model, Datum *values, bool *nulls)
{
	model->counts.created++;
	if (!run->dry)
	{
		prepare_key(run, model);
		make_key(model, values, nulls);
	}
	pos_translation_add(run, model, values[POS_STAGE_REMOTE],
						values[POS_STAGE_LOCAL], true);
	if (model->component->inner)
		put(model->creates, values, nulls);
	else if (!run->dry)
		pos_write_create(run, model, values, nulls);
}

/* A row nothing is known of and nothing matches; maybe it is left alone. */
static void
create_if_allowed(PosRun *run, PosModel *model, Datum *values, bool *nulls)
{
	if (model->on_unknown != POS_MATCH_ONLY)
		create(run, model, values, nulls);
}

/* A row is linked with a local one by its match fields. */
static void
link_row(PosRun *run, PosModel *model, Datum local, Datum *values, bool *nulls)
{
	values[POS_STAGE_LOCAL] = local;
	nulls[POS_STAGE_LOCAL] = false;
	pos_key_to_columns(model, local, &values[POS_STAGE_FIRST]);
	memset(&nulls[POS_STAGE_FIRST], false, model->nkey * sizeof(bool));
	model->counts.matched++;
	pos_translation_add(run, model, values[POS_STAGE_REMOTE], local, false);
	if (model->update_matched)
		put_known(run, model, values, nulls);
}

/* Returns the names of the match fields of a model. */
static char *
match_fields(PosModel *model)
{
	StringInfoData buf;

	initStringInfo(&buf);
	for (int i = 0; i < model->nwritten; i++)
		if (model->written[i]->match)
			appendStringInfo(&buf, "%s%s", buf.len > 0 ? ", " : "",
							 model->written[i]->name);
	return buf.data;
}

/* Decides upon one unknown row; see PosMatchCallback. */
static void
decide(PosRun *run, PosModel *model, Datum *values, bool *nulls,
	   List *candidates, bool shared, char *linked)
{
	Datum		remote = values[POS_STAGE_REMOTE];

	if (list_length(candidates) == 1 && !shared)
		link_row(run, model, PointerGetDatum(linitial(candidates)), values,
				 nulls);
	else if (candidates != NIL)
		pos_quarantine_reject(run, model, remote, "ambiguous",
							  shared ?
							  psprintf("several remote rows match the same local row, %s",
									   pos_key_string(PointerGetDatum(linitial(candidates)),
													  model->local_int)) :
							  psprintf("%d local rows match by %s",
									   list_length(candidates),
									   match_fields(model)),
							  candidates, values, nulls);
	else if (linked != NULL)
		pos_quarantine_reject(run, model, remote, "linked",
							  psprintf("the local row that matches, %s, is linked with another remote row",
									   linked),
							  NIL, values, nulls);
	else
		create_if_allowed(run, model, values, nulls);
}

/* Sorts one received row into known and unknown ones. */
static void
receive_row(PosRun *run, PosModel *model, bool all_new, Datum *values,
			bool *nulls, bool pending)
{
	Datum		local;
	uint8		known;

	if (all_new)
	{
		create(run, model, values, nulls);
		return;
	}
	switch (pos_translation_find(run, model, values[POS_STAGE_REMOTE], &local,
								 &known))
	{
		case POS_FOUND:
			values[POS_STAGE_LOCAL] = local;
			nulls[POS_STAGE_LOCAL] = false;
			pos_key_to_columns(model, local, &values[POS_STAGE_FIRST]);
			memset(&nulls[POS_STAGE_FIRST], false, model->nkey * sizeof(bool));
			if (known & POS_KNOWN_GONE && !run->dry)
				pos_translation_set_gone(run, model, values[POS_STAGE_REMOTE], false);
			if (known & POS_KNOWN_MATCHED && !model->update_matched)
				model->counts.unchanged++;
			else
				put_known(run, model, values, nulls);
			break;
		case POS_MISSING:
			/* what is recognised by a row that is only to be made is new */
			if (pending)
				create_if_allowed(run, model, values, nulls);
			else
				put(model->unknown, values, nulls);
			break;
		case POS_PENDING:
			break;				/* the remote has the same key twice */
	}
}

/* What is needed to receive rows of a model */
typedef struct Reception
{
	PosModel   *model;
	bool		all_new;		/* nothing is known and nothing can match */
	Datum	   *wire;
	bool	   *wirenulls;
	Datum	   *values;
	bool	   *nulls;
	bool		more;
} Reception;

/* Receives one row; more tells whether there was one. */
static void
receive_one(PosRun *run, void *argument)
{
	Reception  *r = argument;
	PosReference *missing;
	bool		pending;

	r->model->counts.read++;
	r->more = run->connection->ops->next(run->connection, r->wire, r->wirenulls);
	if (!r->more)
	{
		r->model->counts.read--;
		return;
	}
	pos_parts_key(run, r->model, r->wire);
	pos_progress_rows(1, run->connection->ops->received(run->connection));
	missing = pos_translate_row(run, r->model, r->wire, r->wirenulls, r->values,
								r->nulls, &pending);
	if (missing != NULL)
		pos_translate_reject(run, r->model, missing, r->values, r->nulls);
	else
		receive_row(run, r->model, r->all_new, r->values, r->nulls,
					pending && !run->careful);
}

/*
 * Leaves out a row that could not be received.  All that may be known of it is
 * its key, whose columns come first; without it the pull cannot go on.
 */
static void
leave_unreceived_out(PosRun *run, Reception *r, ErrorData *error)
{
	PosModel   *model = r->model;
	char	   *message = pos_careful_message(error);

	if (run->connection->broken)
		ReThrowError(error);
	for (int i = 0; i < model->nkey; i++)
		if (r->wirenulls[i])
			ReThrowError(error);
	pos_careful_count(run, error);
	if (error->context != NULL)
		message = psprintf("%s; %s", message, error->context);
	memset(r->nulls, true, model->stage->natts * sizeof(bool));
	pos_quarantine_reject(run, model, model->nkey == 1 ? r->wire[0] :
						  pos_key_from_parts(model->nkey, r->wire), "error",
						  message, NIL, r->values, r->nulls);
}

/*
 * Receives all rows of a model from the connection, which delivers none for a
 * model of a cycle in which only others changed.  Rows that refer to something
 * that is not here are left out.
 */
void
pos_bind_receive(PosRun *run, PosModel *model)
{
	int			natts = model->stage->natts;
	Reception	reception = {
		.model = model,
		.wire = palloc(model->table.ncolumns * sizeof(Datum)),
		.wirenulls = palloc(model->table.ncolumns * sizeof(bool)),
		.values = palloc(natts * sizeof(Datum)),
		.nulls = palloc(natts * sizeof(bool)),
		.more = true
	};
	MemoryContext old;

	model->known = pos_rowset_create(psprintf("possync_known_%d", model->id),
									 model->stage);
	model->unknown = pos_rowset_create(psprintf("possync_rows_%d", model->id),
									   model->stage);
	model->creates = pos_rowset_create(psprintf("possync_creates_%d", model->id),
									   model->stage);
	model->empty = is_empty(model);
	pos_known_begin(run, model, has_match_field(model) &&
					!model->component->inner &&
					model->on_unknown != POS_CREATE_ONLY);
	reception.all_new = model->empty && !model->component->inner &&
		model->on_unknown != POS_MATCH_ONLY && !run->careful;
	if (reception.all_new && !run->dry && pos_rebuild_expects(&model->table))
		pos_translation_expect(run);

	old = MemoryContextSwitchTo(run->row);
	while (model->table.changed && reception.more)
	{
		ErrorData  *error = NULL;

		MemoryContextReset(run->row);
		memset(reception.wirenulls, true, model->table.ncolumns * sizeof(bool));
		if (run->careful)
			error = pos_careful_try(run, receive_one, &reception);
		else
			receive_one(run, &reception);
		if (error != NULL)
			leave_unreceived_out(run, &reception, error);
	}
	MemoryContextSwitchTo(old);
}

/*
 * Binds unknown rows whose match fields are complete; the others go to later.
 */
static void
bind_rows(PosRun *run, PosModel *model, PosRowset *rows)
{
	Datum	   *values;
	bool	   *nulls;

	if (pos_rowset_count(rows) == 0)
		return;
	if (!model->empty && model->on_unknown != POS_CREATE_ONLY &&
		has_match_field(model))
	{
		pos_match_rows(run, model, rows, decide);
		return;
	}
	pos_rowset_rewind(rows);
	while (pos_rowset_next(rows, &values, &nulls))
	{
		MemoryContext old;

		MemoryContextReset(run->row);
		old = MemoryContextSwitchTo(run->row);
		create_if_allowed(run, model, values, nulls);
		MemoryContextSwitchTo(old);
	}
}

/*
 * Binds those unknown rows of a model that are recognised by nothing that is
 * still unbound, and keeps the others.  Returns whether there were any.
 */
static bool
bind_round(PosRun *run, PosModel *model)
{
	PosRowset  *ready = pos_rowset_create(psprintf("possync_rows_%d", model->id),
										  model->stage);
	PosRowset  *later = pos_rowset_create(psprintf("possync_rows_%d", model->id),
										  model->stage);
	Datum	   *values;
	bool	   *nulls;
	bool		any;

	pos_rowset_rewind(model->unknown);
	while (pos_rowset_next(model->unknown, &values, &nulls))
	{
		MemoryContext old;
		bool		pending;

		MemoryContextReset(run->row);
		old = MemoryContextSwitchTo(run->row);
		if (pos_translate_inner(run, model, true, values, nulls, &pending) != NULL)
			put(later, values, nulls);
		else if (pending)
			create_if_allowed(run, model, values, nulls);
		else
			put(ready, values, nulls);
		MemoryContextSwitchTo(old);
	}
	any = pos_rowset_count(later) < pos_rowset_count(model->unknown);
	bind_rows(run, model, ready);
	pos_translation_flush(run);
	pos_rowset_free(ready);
	pos_rowset_free(model->unknown);
	model->unknown = later;
	return any;
}

/* Whether all key columns that are not made here have their values. */
static bool
key_is_complete(PosModel *model, bool *nulls)
{
	for (int i = 0; i < model->nkey; i++)
		if (model->key[i]->supplier != NULL && nulls[model->key[i]->staged])
			return false;
	return true;
}

/*
 * Binds the unknown rows of a component whose models are recognised by
 * references within it: in rounds, from the rows that refer to nothing unbound
 * down to those that refer to them.  What is left refers to itself in a
 * circle, or to something that is not here.
 */
static void
bind_in_rounds(PosRun *run, PosComponent *component)
{
	bool		progress = true;
	ListCell   *lc;

	while (progress)
	{
		progress = false;
		foreach(lc, component->models)
		{
			PosModel   *model = lfirst(lc);

			if (pos_rowset_count(model->unknown) > 0 && bind_round(run, model))
				progress = true;
		}
	}
	foreach(lc, component->models)
	{
		PosModel   *model = lfirst(lc);
		Datum	   *values;
		bool	   *nulls;

		pos_rowset_rewind(model->unknown);
		while (pos_rowset_next(model->unknown, &values, &nulls))
		{
			MemoryContext old;

			MemoryContextReset(run->row);
			old = MemoryContextSwitchTo(run->row);
			if (key_is_complete(model, nulls))
				create_if_allowed(run, model, values, nulls);
			else
				pos_quarantine_reject(run, model, values[POS_STAGE_REMOTE],
									  "dependency",
									  "its key refers to a row that is not here",
									  NIL, values, nulls);
			MemoryContextSwitchTo(old);
		}
	}
	pos_translation_flush(run);
}

/*
 * Translates the references within the component of a set of rows.  Rows whose
 * parent is not bound are left out and, if they were to be created, unlinked.
 * Returns whether any was unlinked.
 */
static bool
translate_rows(PosRun *run, PosModel *model, PosRowset **rows, bool creates)
{
	PosRowset  *done = pos_rowset_create(psprintf("possync_%s_%d",
												  creates ? "creates" : "known",
												  model->id), model->stage);
	Datum	   *values;
	bool	   *nulls;
	bool		unlinked = false;

	pos_rowset_rewind(*rows);
	while (pos_rowset_next(*rows, &values, &nulls))
	{
		PosReference *missing;
		bool		pending;
		MemoryContext old;

		MemoryContextReset(run->row);
		old = MemoryContextSwitchTo(run->row);
		missing = pos_translate_inner(run, model, false, values, nulls, &pending);
		if (missing == NULL)
		{
			if (is_pending(values) && !creates)
				pos_known_pretend(run, model, values, nulls);
			else
				put(done, values, nulls);
		}
		else
		{
			pos_quarantine_missing(run, missing->parent, values[missing->staged]);
			pos_translate_reject(run, model, missing, values, nulls);
			if (creates)
			{
				model->counts.created--;
				pos_translation_remove(run, model, values[POS_STAGE_REMOTE]);
				unlinked = true;
			}
		}
		MemoryContextSwitchTo(old);
	}
	pos_rowset_free(*rows);
	*rows = done;
	return unlinked;
}

/* Translates and writes the rows of a component that refers to itself. */
static void
settle_inner(PosRun *run, PosComponent *component)
{
	bool		unlinked = true;
	ListCell   *lc;

	while (unlinked)
	{
		unlinked = false;
		foreach(lc, component->models)
		{
			PosModel   *model = lfirst(lc);

			if (translate_rows(run, model, &model->creates, true))
				unlinked = true;
		}
	}
	foreach(lc, component->models)
		translate_rows(run, lfirst(lc), &((PosModel *) lfirst(lc))->known, false);
}

/*
 * Compares those known rows of a component that refer to nothing unbound, as
 * the new ones may want what they give up.
 */
static void
compare_bound(PosRun *run, PosComponent *component)
{
	ListCell   *lc;

	foreach(lc, component->models)
	{
		PosModel   *model = lfirst(lc);
		PosRowset  *bound = pos_rowset_create(psprintf("possync_known_%d",
													   model->id), model->stage);
		PosRowset  *later = pos_rowset_create(psprintf("possync_known_%d",
													   model->id), model->stage);
		Datum	   *values;
		bool	   *nulls;

		pos_rowset_rewind(model->known);
		while (pos_rowset_next(model->known, &values, &nulls))
		{
			MemoryContext old;
			bool		pending;

			MemoryContextReset(run->row);
			old = MemoryContextSwitchTo(run->row);
			if (pos_translate_inner(run, model, false, values, nulls,
									&pending) != NULL)
				put(later, values, nulls);
			else if (is_pending(values))
				pos_known_pretend(run, model, values, nulls);
			else
				put(bound, values, nulls);
			MemoryContextSwitchTo(old);
		}
		pos_rowset_free(model->known);
		model->known = bound;
		pos_known_compare(run, model);
		pos_rowset_free(bound);
		model->known = later;
	}
	pos_write_flush(run, component);
}

/* Hands the rows to be created of a component that refers to itself on. */
static void
write_creates(PosRun *run, PosModel *model)
{
	Datum	   *values;
	bool	   *nulls;

	pos_rowset_rewind(model->creates);
	while (pos_rowset_next(model->creates, &values, &nulls))
		pos_write_create(run, model, values, nulls);
}

static void
free_rows(PosModel *model)
{
	pos_rowset_free(model->known);
	pos_rowset_free(model->unknown);
	pos_rowset_free(model->creates);
	pos_rowset_free(model->changed);
	model->known = model->unknown = model->creates = model->changed = NULL;
}

/*
 * Binds and writes the rows received for all models of a component.
 */
void
pos_bind_component(PosRun *run, PosComponent *component)
{
	PosModel   *first = linitial(component->models);
	ListCell   *lc;

	if (!component->inner)
	{
		pos_known_compare(run, first);
		first->unlinks = false;
		pos_write_flush(run, component);
		bind_rows(run, first, first->unknown);
		pos_translation_flush(run);
		pos_write_flush(run, component);
		pos_known_compare(run, first);
	}
	else
	{
		compare_bound(run, component);
		bind_in_rounds(run, component);
		settle_inner(run, component);
		if (!run->dry)
			foreach(lc, component->models)
				write_creates(run, lfirst(lc));
		pos_write_flush(run, component);
		foreach(lc, component->models)
			pos_known_compare(run, lfirst(lc));
	}
	pos_write_flush(run, component);
	foreach(lc, component->models)
	{
		free_rows(lfirst(lc));
		pos_known_end(lfirst(lc));
		pos_write_close(lfirst(lc));
	}
}
