/*
 * translate.c
 *		A remote row as a staged one: its foreign keys through translations.
 *
 * References that lead out of the component are translated when a row is
 * received, since what it depends on has been written by then.  References
 * within the component have to wait until all rows of the component are bound.
 *
 * A reference some of whose columns are null refers to nothing (MATCH SIMPLE).
 */
#include "possync.h"

#include "catalog/pg_type.h"
#include "run.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"

/*
 * Returns a key read from a foreign key column in the form of its parent's
 * key: the two sides of a foreign key may be of different types.
 */
static Datum
as_parent_key(PosReference *reference, Datum key, bool is_int)
{
	if (is_int == reference->parent->remote_int)
		return key;
	return is_int ? CStringGetTextDatum(pos_key_string(key, true)) :
		pos_key_from_string(TextDatumGetCString(key), true);
}

/*
 * Gets the remote key that a reference holds in a row just read.  Returns
 * false if it refers to nothing.
 */
static bool
read_reference(PosReference *reference, PosModel *model, Datum *wire,
			   bool *wirenulls, Datum *key)
{
	Datum	   *texts;

	for (int i = 0; i < reference->nfields; i++)
		if (wirenulls[reference->wire + i])
			return false;
	if (reference->nfields == 1)
	{
		*key = as_parent_key(reference, wire[reference->wire],
							 model->table.columns[reference->wire].type == INT8OID);
		return true;
	}
	texts = palloc(reference->nfields * sizeof(Datum));
	for (int i = 0; i < reference->nfields; i++)
		texts[reference->parts[i]] = wire[reference->wire + i];
	*key = pos_key_from_parts(reference->nfields, texts);
	return true;
}

/* Sets the columns of a reference to those of a local key. */
static void
set_reference(PosReference *reference, Datum local, Datum *values, bool *nulls)
{
	Datum		parts[INDEX_MAX_KEYS];
	PosField   *first = reference->fields[0];

	if (reference->parent->local_int && first->supplier == reference &&
		pos_key_is_integer(first->base))
	{
		values[first->staged] = pos_key_integer(first->base,
												DatumGetInt64(local));
		nulls[first->staged] = false;
		return;
	}

	pos_key_to_columns(reference->parent, local, parts);
	for (int i = 0; i < reference->nfields; i++)
	{
		PosField   *field = reference->fields[i];
		PosField   *key = reference->parent->key[reference->parts[i]];

		if (field->supplier != reference)
			continue;
		values[field->staged] = parts[reference->parts[i]];
		nulls[field->staged] = false;

		/* foreign key and key may be of different types */
		if (field->base != key->base)
		{
			Oid			function;
			Oid			ioparam;
			bool		varlena;
			char	   *string;

			getTypeOutputInfo(key->type, &function, &varlena);
			string = OidOutputFunctionCall(function, values[field->staged]);
			getTypeInputInfo(field->type, &function, &ioparam);
			values[field->staged] = OidInputFunctionCall(function, string,
														 ioparam, field->typmod);
		}
	}
}

/*
 * Columns of a composite reference to nothing that are not null themselves
 * keep their values.
 */
static void
set_parts(PosReference *reference, Datum *wire, bool *wirenulls,
		  Datum *values, bool *nulls)
{
	for (int i = 0; i < reference->nfields; i++)
	{
		PosField   *field = reference->fields[i];
		Oid			input;
		Oid			ioparam;

		if (field->supplier != reference || wirenulls[reference->wire + i])
			continue;
		getTypeInputInfo(field->type, &input, &ioparam);
		values[field->staged] =
			OidInputFunctionCall(input,
								 TextDatumGetCString(wire[reference->wire + i]),
								 ioparam, field->typmod);
		nulls[field->staged] = false;
	}
}

/* Whether a reference supplies a field that a row is recognised by. */
static bool
identifies(PosReference *reference)
{
	for (int i = 0; i < reference->nfields; i++)
		if ((reference->fields[i]->match || reference->fields[i]->is_key) &&
			reference->fields[i]->supplier == reference)
			return true;
	return false;
}

/*
 * Translates one reference; returns false if its parent is not here.  pending
 * is set if the row is recognised by a parent that the run makes, so that
 * nothing here can match it.
 */
static bool
translate_one(PosRun *run, PosReference *reference, Datum remote, Datum *values,
			  bool *nulls, bool *pending)
{
	Datum		local;
	uint8		known;

	switch (pos_translation_find(run, reference->parent, remote, &local, &known))
	{
		case POS_MISSING:
			reference->missing = remote;
			return false;
		case POS_PENDING:
			values[POS_STAGE_OLD] = Int64GetDatum(DatumGetInt64(values[POS_STAGE_OLD]) |
												  POS_OLD_PENDING);
			*pending = *pending || identifies(reference);
			return true;
		case POS_FOUND:
			set_reference(reference, local, values, nulls);
			if (known & POS_KNOWN_MADE && identifies(reference) &&
				!pos_prove_has_code(reference->parent->rel))
				*pending = true;
			if (!(known & POS_KNOWN_MADE) && reference->bit >= 0)
				values[POS_STAGE_OLD] = Int64GetDatum(DatumGetInt64(values[POS_STAGE_OLD]) |
													  INT64CONST(1) << reference->bit);
	}
	return true;
}

/* Sets the key columns whose values are the remote ones. */
static void
set_copied_key(PosModel *model, Datum remote, Datum *values, bool *nulls)
{
	Datum		parts[INDEX_MAX_KEYS];

	if (model->nkey > 1)
		pos_key_to_parts(remote, model->nkey, parts);
	for (int i = 0; i < model->nkey; i++)
	{
		PosField   *field = model->key[i];
		Oid			input;
		Oid			ioparam;

		if (!field->copy || field->supplier != NULL)
			continue;
		getTypeInputInfo(field->type, &input, &ioparam);
		values[field->staged] =
			OidInputFunctionCall(input, model->nkey > 1 ?
								 TextDatumGetCString(parts[i]) :
								 pos_key_string(remote, model->remote_int),
								 ioparam, field->typmod);
		nulls[field->staged] = false;
	}
}

/* A view, or a table whose key is none there, may deliver rows without one. */
static void
check_key(PosModel *model, bool *wirenulls)
{
	for (int i = 0; i < model->nkey; i++)
		if (wirenulls[i])
			ereport(ERROR,
					(errcode(ERRCODE_NOT_NULL_VIOLATION),
					 errmsg("a row of remote table %s has no key: column \"%s\" is null",
							model->remote, model->key[i]->remote)));
}

/*
 * Turns a row as delivered by the connection into a staged one, without n and
 * local key.  Returns NULL, or the reference whose parent is not here.
 * pending: see translate_one.
 */
PosReference *
pos_translate_row(PosRun *run, PosModel *model, Datum *wire, bool *wirenulls,
				  Datum *values, bool *nulls, bool *pending)
{
	PosReference *missing = NULL;
	ListCell   *lc;

	*pending = false;
	check_key(model, wirenulls);
	memset(nulls, true, model->stage->natts * sizeof(bool));
	nulls[POS_STAGE_REMOTE] = false;
	values[POS_STAGE_REMOTE] = model->nkey == 1 ? wire[0] :
		pos_key_from_parts(model->nkey, wire);
	values[POS_STAGE_OLD] = Int64GetDatum(0);
	nulls[POS_STAGE_OLD] = false;
	set_copied_key(model, values[POS_STAGE_REMOTE], values, nulls);
	for (int i = model->nkey; i < model->nwritten; i++)
	{
		PosField   *field = model->written[i];

		if (field->wire >= 0)
		{
			values[field->staged] = wire[field->wire];
			nulls[field->staged] = wirenulls[field->wire];
		}
		else if (field->fixed != NULL)
		{
			values[field->staged] = field->fixed_value;
			nulls[field->staged] = false;
		}
	}
	foreach(lc, model->references)
	{
		PosReference *reference = lfirst(lc);
		Datum		remote;

		if (!read_reference(reference, model, wire, wirenulls, &remote))
		{
			if (reference->nfields > 1)
				set_parts(reference, wire, wirenulls, values, nulls);
			continue;
		}
		if (reference->inner)
		{
			values[reference->staged] = remote;
			nulls[reference->staged] = false;
		}
		else if (!translate_one(run, reference, remote, values, nulls, pending) &&
				 missing == NULL)
		{
			pos_quarantine_missing(run, reference->parent, remote);
			missing = reference;
		}
	}
	return missing;
}

/*
 * Translates the references of a staged row that stay within its component;
 * with identity_only just those that it is recognised by.  Returns NULL, or the
 * reference whose parent is not bound.
 */
PosReference *
pos_translate_inner(PosRun *run, PosModel *model, bool identity_only,
					Datum *values, bool *nulls, bool *pending)
{
	ListCell   *lc;

	*pending = false;
	foreach(lc, model->references)
	{
		PosReference *reference = lfirst(lc);

		if (reference->inner && !nulls[reference->staged] &&
			(!identity_only || identifies(reference)) &&
			!translate_one(run, reference, values[reference->staged], values,
						   nulls, pending))
			return reference;
	}
	return NULL;
}

/*
 * Leaves a row out because of a reference whose parent was just found not to
 * be here.
 */
void
pos_translate_reject(PosRun *run, PosModel *model, PosReference *reference,
					 Datum *values, bool *nulls)
{
	pos_quarantine_reject(run, model, values[POS_STAGE_REMOTE], "dependency",
						  psprintf("the row of \"%s\" that \"%s\" refers to, remote key %s, is not here",
								   reference->parent->name,
								   reference->fields[0]->name,
								   pos_key_string(reference->missing,
												  reference->parent->remote_int)),
						  NIL, values, nulls);
}
