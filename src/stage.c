/*
 * stage.c
 *		What is asked of the remote for a model, and the form of its staged rows.
 *
 * The columns of a read are, in this order: the key; for every reference its
 * foreign key columns; the columns whose values are copied.  A column with two
 * roles is asked for twice.
 */
#include "possync.h"

#include "access/tupdesc.h"
#include "catalog/pg_type.h"
#include "model.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

static int
add_column(PosModel *model, PosField *field, PosForm form)
{
	PosColumn  *column = &model->table.columns[model->table.ncolumns];

	column->remote = field->remote;
	column->local = field->name;
	column->form = form;
	column->type = form == POS_FORM_VALUE ? field->type :
		form == POS_FORM_TEXT ? TEXTOID : InvalidOid;
	column->typmod = form == POS_FORM_VALUE ? field->typmod : -1;
	return model->table.ncolumns++;
}

/* Fills the table that is asked of the connection for a model. */
void
pos_stage_table(PosModel *model)
{
	PosTable   *table = &model->table;
	int			most = model->nkey + model->nfields;
	ListCell   *lc;

	foreach(lc, model->references)
		most += ((PosReference *) lfirst(lc))->nfields;
	table->remote = model->remote;
	table->local = model->name;
	table->columns = palloc0(most * sizeof(PosColumn));
	table->nkey = model->nkey;
	table->nchange = model->nchange;
	table->change = (const char **) model->change;
	table->position = model->position;
	table->source = model->source;
	table->match = palloc(model->nfields * sizeof(char *));
	for (int i = 0; i < model->nfields; i++)
		if (model->fields[i].match)
			table->match[table->nmatch++] = model->fields[i].remote;

	for (int i = 0; i < model->nkey; i++)
		add_column(model, model->key[i],
				   model->nkey == 1 ? POS_FORM_KEY : POS_FORM_TEXT);
	foreach(lc, model->references)
	{
		PosReference *reference = lfirst(lc);

		reference->wire = table->ncolumns;
		for (int i = 0; i < reference->nfields; i++)
			add_column(model, reference->fields[i],
					   reference->nfields == 1 ? POS_FORM_KEY : POS_FORM_TEXT);
	}
	for (int i = 0; i < model->nfields; i++)
	{
		PosField   *field = &model->fields[i];

		if (field->copy && field->supplier == NULL && !field->is_key)
			field->wire = add_column(model, field, POS_FORM_VALUE);
	}
}

/* Has a row read in any case, by its canonical key as a text. */
void
pos_stage_retry(PosModel *model, const char *key)
{
	PosTable   *table = &model->table;
	Datum		parts[INDEX_MAX_KEYS];

	if (table->nretry == table->maxretry)
	{
		Size		size;

		table->maxretry = Max(table->maxretry * 2, 16);
		size = table->maxretry * model->nkey * sizeof(char *);
		table->retry = table->retry == NULL ? palloc(size) :
			repalloc(table->retry, size);
	}
	parts[0] = CStringGetTextDatum(key);
	if (model->nkey > 1)
		pos_key_to_parts(parts[0], model->nkey, parts);
	for (int j = 0; j < model->nkey; j++)
		table->retry[table->nretry * model->nkey + j] =
			TextDatumGetCString(parts[j]);
	table->nretry++;
}

/* Whether the remote key of a model is a single integer. */
static bool
has_integer_key(PosModel *model)
{
	return model->nkey == 1 && model->table.columns[0].type == INT8OID;
}

/* Takes a field into the columns to be written. */
static void
write_field(PosModel *model, PosField *field)
{
	field->staged = POS_STAGE_FIRST + model->nwritten;
	model->written[model->nwritten++] = field;
	if (field->supplier != NULL && field->type != field->base)
		model->domains = lappend(model->domains, field);
}

/*
 * Lays out the staged rows of a model, whose table has been described by the
 * connection, and evaluates its fixed values.
 */
void
pos_stage_layout(PosModel *model)
{
	int			ninner = 0;
	int			natts;
	char		name[NAMEDATALEN];
	ListCell   *lc;

	model->remote_int = has_integer_key(model);
	model->written = palloc((model->nkey + model->nfields) * sizeof(PosField *));
	for (int i = 0; i < model->nkey; i++)
		write_field(model, model->key[i]);
	for (int i = 0; i < model->nfields; i++)
	{
		PosField   *field = &model->fields[i];

		if (field->is_key || !(field->copy || field->fixed != NULL))
			continue;
		write_field(model, field);
		if (field->fixed != NULL)
		{
			Oid			input;
			Oid			ioparam;

			getTypeInputInfo(field->type, &input, &ioparam);
			field->fixed_value = OidInputFunctionCall(input, field->fixed,
													  ioparam, field->typmod);
		}
	}
	foreach(lc, model->references)
		if (((PosReference *) lfirst(lc))->inner)
		ninner++;

	natts = POS_STAGE_FIRST + model->nwritten + ninner;
	model->stage = CreateTemplateTupleDesc(natts);
	TupleDescInitEntry(model->stage, POS_STAGE_N + 1, "n", INT8OID, -1, 0);
	TupleDescInitEntry(model->stage, POS_STAGE_REMOTE + 1, "rkey",
					   model->remote_int ? INT8OID : TEXTOID, -1, 0);
	TupleDescInitEntry(model->stage, POS_STAGE_LOCAL + 1, "lkey",
					   model->local_int ? INT8OID : TEXTOID, -1, 0);
	TupleDescInitEntry(model->stage, POS_STAGE_OLD + 1, "old", INT8OID, -1, 0);
	for (int i = 0; i < model->nwritten; i++)
	{
		PosField   *field = model->written[i];

		snprintf(name, sizeof(name), "w%d", i + 1);
		TupleDescInitEntry(model->stage, field->staged + 1, name, field->type,
						   field->typmod, 0);
		TupleDescInitEntryCollation(model->stage, field->staged + 1,
									field->collation);
	}
	natts = POS_STAGE_FIRST + model->nwritten;
	foreach(lc, model->references)
	{
		PosReference *reference = lfirst(lc);

		reference->bit = foreach_current_index(lc) < 63 ?
			foreach_current_index(lc) : -1;
		if (!reference->inner)
			continue;
		reference->staged = natts++;
		snprintf(name, sizeof(name), "r%d", natts);
		TupleDescInitEntry(model->stage, reference->staged + 1, name,
						   has_integer_key(reference->parent) ? INT8OID : TEXTOID,
						   -1, 0);
	}
}
