/*
 * config.c
 *		The configuration tables as structs.
 *
 * Everything is allocated in the current memory context, which is that of the
 * run.  What the local catalog says of the same tables is added by tree.c.
 */
#include "possync.h"

#include "catalog/pg_type.h"
#include "model.h"
#include "store.h"
#include "utils/array.h"
#include "utils/builtins.h"

/* Returns column col of result row i as a C string, NULL for null. */
static char *
get_string(uint64 i, int col)
{
	return SPI_getvalue(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, col);
}

static bool
get_bool(uint64 i, int col)
{
	bool		isnull;

	return DatumGetBool(SPI_getbinval(SPI_tuptable->vals[i],
									  SPI_tuptable->tupdesc, col, &isnull));
}

static int16
get_int16(uint64 i, int col)
{
	bool		isnull;

	return DatumGetInt16(SPI_getbinval(SPI_tuptable->vals[i],
									   SPI_tuptable->tupdesc, col, &isnull));
}

static int32
get_int32(uint64 i, int col)
{
	bool		isnull;

	return DatumGetInt32(SPI_getbinval(SPI_tuptable->vals[i],
									   SPI_tuptable->tupdesc, col, &isnull));
}

/* Returns 0 for null. */
static TimestampTz
get_time(uint64 i, int col)
{
	bool		isnull;
	Datum		value = SPI_getbinval(SPI_tuptable->vals[i],
									  SPI_tuptable->tupdesc, col, &isnull);

	return isnull ? 0 : DatumGetTimestampTz(value);
}

/* Returns column col of result row i, a text[], as C strings. */
static char **
get_strings(uint64 i, int col, int *count)
{
	bool		isnull;
	Datum		value = SPI_getbinval(SPI_tuptable->vals[i],
									  SPI_tuptable->tupdesc, col, &isnull);
	Datum	   *elements;
	char	  **strings;

	*count = 0;
	if (isnull)
		return NULL;
	deconstruct_array(DatumGetArrayTypeP(value), TEXTOID, -1, false,
					  TYPALIGN_INT, &elements, NULL, count);
	strings = palloc(*count * sizeof(char *));
	for (int j = 0; j < *count; j++)
		strings[j] = TextDatumGetCString(elements[j]);
	return strings;
}

static PosUnknown
parse_on_unknown(const char *value)
{
	if (strcmp(value, "match") == 0)
		return POS_MATCH_ONLY;
	if (strcmp(value, "create") == 0)
		return POS_CREATE_ONLY;
	if (strcmp(value, "ignore") == 0)
		return POS_IGNORE;
	return POS_MATCH_CREATE;
}

static PosConflict
parse_on_conflict(const char *value)
{
	if (strcmp(value, "remote_wins") == 0)
		return POS_REMOTE_WINS;
	if (strcmp(value, "newest") == 0)
		return POS_NEWEST;
	if (strcmp(value, "ask") == 0)
		return POS_ASK;
	return POS_LOCAL_WINS;
}

static PosDelete
parse_on_delete(const char *value)
{
	if (strcmp(value, "deactivate") == 0)
		return POS_DELETE_DEACTIVATE;
	if (strcmp(value, "delete") == 0)
		return POS_DELETE_DELETE;
	return POS_DELETE_IGNORE;
}

/* Returns the model with this number, or NULL. */
PosModel *
pos_config_find(List *models, int16 id)
{
	ListCell   *lc;

	foreach(lc, models)
	{
		PosModel   *model = lfirst(lc);

		if (model->id == id)
			return model;
	}
	return NULL;
}

/* Returns the models' numbers as an int2[]. */
Datum
pos_config_ids(List *models)
{
	Datum	   *ids = palloc(list_length(models) * sizeof(Datum));
	ListCell   *lc;

	foreach(lc, models)
		ids[foreach_current_index(lc)] = Int16GetDatum(((PosModel *) lfirst(lc))->id);
	return PointerGetDatum(construct_array(ids, list_length(models), INT2OID,
										   2, true, TYPALIGN_SHORT));
}

/* Reports that there is no model of this name, with the closest one's. */
static void
report_unknown(const char *name)
{
	Oid			types[] = {TEXTOID};
	Datum		values[] = {CStringGetTextDatum(name)};
	char	   *closest;

	pos_store_execute("SELECT @._possync_closest($1, pg_catalog.array_agg(name))"
					  " FROM @.synchronize_model", 1, types, values, NULL);
	closest = get_string(0, 1);
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_OBJECT),
			 errmsg("model \"%s\" does not exist", name),
			 closest != NULL ? errhint("%s", closest) :
			 errhint("SELECT * FROM %s.possync_add_model('table', server => 'name') configures a table and all it depends on.",
					 pos_store_schema())));
}

/*
 * Returns all models of the server that the named model belongs to, without
 * their fields, the named one first, and the server's name.  Errors when there
 * is no such model.
 */
List *
pos_config_models(const char *name, char **server)
{
	List	   *models = NIL;
	Oid			types[] = {TEXTOID};
	Datum		values[] = {CStringGetTextDatum(name)};

	if (pos_store_execute("SELECT m.id, m.name, m.relation::oid, m.remote,"
						  " m.key_columns::text[], m.on_unknown,"
						  " m.on_match = 'update', m.change_columns, m.server,"
						  " m.on_conflict, m.on_delete, m.inactive_field::text,"
						  " m.inactive_value, m.after_create"
						  " FROM @.synchronize_model r"
						  " JOIN @.synchronize_model m ON m.server = r.server"
						  " WHERE r.name = $1"
						  " ORDER BY m.name <> r.name, m.id",
						  1, types, values, NULL) == 0)
		report_unknown(name);

	*server = get_string(0, 9);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		PosModel   *model = palloc0(sizeof(PosModel));
		bool		isnull;
		char	  **key;

		model->id = get_int16(i, 1);
		model->name = get_string(i, 2);
		model->relid = DatumGetObjectId(SPI_getbinval(SPI_tuptable->vals[i],
													  SPI_tuptable->tupdesc,
													  3, &isnull));
		model->remote = get_string(i, 4);
		key = get_strings(i, 5, &model->nkey);
		model->key = palloc0(model->nkey * sizeof(PosField *));
		for (int j = 0; j < model->nkey; j++)
		{
			/* placeholders; pos_config_fields puts the fields in */
			model->key[j] = palloc0(sizeof(PosField));
			model->key[j]->name = key[j];
		}
		model->on_unknown = parse_on_unknown(get_string(i, 6));
		model->update_matched = get_bool(i, 7);
		model->change = get_strings(i, 8, &model->nchange);
		model->on_conflict = parse_on_conflict(get_string(i, 10));
		model->on_delete = parse_on_delete(get_string(i, 11));
		model->inactive_field = get_string(i, 12);
		model->inactive_value = get_string(i, 13);
		model->after = get_strings(i, 14, &model->nafter);
		models = lappend(models, model);
	}
	SPI_freetuptable(SPI_tuptable);
	return models;
}

/* Puts the fields into their models, and those of the key into key. */
void
pos_config_fields(List *models)
{
	Oid			types[] = {INT2ARRAYOID};
	Datum		values[] = {pos_config_ids(models)};
	uint64		n;

	n = pos_store_execute("SELECT model, name::text, remote, copy, match, fixed,"
						  " count(*) OVER (PARTITION BY model)::int4"
						  " FROM @.synchronize_field WHERE model = ANY ($1)"
						  " ORDER BY model, name",
						  1, types, values, NULL);
	for (uint64 i = 0; i < n; i++)
	{
		PosModel   *model = pos_config_find(models, get_int16(i, 1));
		PosField   *field;

		if (model->fields == NULL)
			model->fields = palloc0(get_int32(i, 7) * sizeof(PosField));
		field = &model->fields[model->nfields++];
		field->name = get_string(i, 2);
		field->remote = get_string(i, 3);
		field->copy = get_bool(i, 4);
		field->match = get_bool(i, 5);
		field->fixed = get_string(i, 6);
		field->staged = -1;
		field->wire = -1;
		for (int j = 0; j < model->nkey; j++)
			if (strcmp(model->key[j]->name, field->name) == 0)
			{
				model->key[j] = field;
				field->is_key = true;
			}
	}
	SPI_freetuptable(SPI_tuptable);
}

/* Links every model with its children. */
void
pos_config_children(List *models)
{
	Oid			types[] = {INT2ARRAYOID};
	Datum		values[] = {pos_config_ids(models)};
	uint64		n;

	n = pos_store_execute("SELECT model, child FROM @.synchronize_child"
						  " WHERE model = ANY ($1) ORDER BY model, child",
						  1, types, values, NULL);
	for (uint64 i = 0; i < n; i++)
	{
		PosModel   *model = pos_config_find(models, get_int16(i, 1));
		PosModel   *child = pos_config_find(models, get_int16(i, 2));

		if (child != NULL)
			model->children = lappend(model->children, child);
	}
	SPI_freetuptable(SPI_tuptable);
}

/* Puts the positions into the models that have one. */
void
pos_config_positions(List *models)
{
	Oid			types[] = {INT2ARRAYOID};
	Datum		values[] = {pos_config_ids(models)};
	uint64		n;

	n = pos_store_execute("SELECT model, nullif(position, ''), source, loaded_to,"
						  " compared_at"
						  " FROM @.synchronize_position WHERE model = ANY ($1)",
						  1, types, values, NULL);
	for (uint64 i = 0; i < n; i++)
	{
		PosModel   *model = pos_config_find(models, get_int16(i, 1));

		model->position = get_string(i, 2);
		model->source = get_string(i, 3);
		model->loaded_to = get_string(i, 4);
		model->complete = model->loaded_to == NULL;
		model->compared_at = get_time(i, 5);
		if (!model->complete)
		{
			model->load_position = model->position;
			model->position = NULL;
		}
	}
	SPI_freetuptable(SPI_tuptable);
}
