/*
 * tryton_model.c
 *		What the remote's models look like, and whether that fits what is asked.
 *
 * A table of ours is a model of Tryton's, its columns are fields; a field of a
 * record that a many2one field refers to is written "template.name".  What a
 * many2many field links is a table of its own, "product.template:categories", with
 * the columns "origin" and "target": such tables cannot be called by their own
 * names.
 *
 * What fields_get tells is asked for once in a session.
 */
#include "postgres.h"

#include "connection_tryton.h"
#include "catalog/pg_type.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

/* Whether a member is true. */
static bool
member_true(JsonbContainer *object, const char *key)
{
	JsonbValue	value;
	JsonbValue *found = pos_tryton_get(object, key, &value);

	return found != NULL && found->type == jbvBool && found->val.boolean;
}

/* Whether a field's values are lists of records. */
static bool
is_list(const char *type)
{
	return strcmp(type, "one2many") == 0 || strcmp(type, "many2many") == 0;
}

/*
 * Fills a field from its description.  That it is stored is not told; a function
 * is one that cannot be searched and sorted by, or is not loaded at once and cannot
 * be written.
 */
static void
fill_field(PosTrytonField *field, JsonbContainer *description)
{
	char	   *loading = pos_tryton_text(description, "loading");

	field->type = pos_tryton_text(description, "type");
	field->relation = pos_tryton_text(description, "relation");
	field->inverse = pos_tryton_text(description, "relation_field");
	field->string = pos_tryton_text(description, "string");
	field->required = member_true(description, "required");
	field->readonly = member_true(description, "readonly");
	field->stored = field->type != NULL && !is_list(field->type) &&
		member_true(description, "searchable") && member_true(description, "sortable") &&
		!(field->readonly && loading != NULL && strcmp(loading, "lazy") == 0);
}

/* Fills a model from what fields_get told. */
static void
fill_model(PosTrytonSession *session, PosTrytonModel *model, Jsonb *json)
{
	JsonbIterator *it;
	JsonbIteratorToken token;
	JsonbValue	value;
	PosTrytonField *field = NULL;

	if (!JB_ROOT_IS_OBJECT(json))
		pos_tryton_odd(session);
	model->fields = palloc0(Max(JB_ROOT_COUNT(json), 1) * sizeof(PosTrytonField));
	it = JsonbIteratorInit(&json->root);
	while ((token = JsonbIteratorNext(&it, &value, field != NULL)) != WJB_DONE)
		if (token == WJB_KEY)
		{
			field = &model->fields[model->nfields];
			field->name = pnstrdup(value.val.string.val, value.val.string.len);
		}
		else if (token == WJB_VALUE && field != NULL)
		{
			if (value.type == jbvBinary)
				fill_field(field, value.val.binary.data);
			model->nfields += field->type != NULL;
			field = NULL;
		}
}

/* Asks for a model; one that there is none of is remembered in this read only. */
static PosTrytonModel *
load_model(PosTrytonSession *session, const char *name)
{
	MemoryContext old = MemoryContextSwitchTo(session->models_context);
	PosTrytonModel *model = palloc0(sizeof(PosTrytonModel));
	MemoryContext context = old;
	Jsonb	   *json;

	model->name = pstrdup(name);
	MemoryContextSwitchTo(old);
	PG_TRY();
	{
		json = pos_tryton_call(session, psprintf("model.%s.fields_get", name), "null,");
		MemoryContextSwitchTo(session->models_context);
		fill_model(session, model, json);
		model->exists = true;
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(session->models_context);
		error = CopyErrorData();
		if (error->sqlerrcode != ERRCODE_FDW_ERROR &&
			error->sqlerrcode != ERRCODE_INSUFFICIENT_PRIVILEGE)
			PG_RE_THROW();
		FlushErrorState();
		model->why = error->message;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(session->models_context);
	session->models = lappend(session->models, model);
	MemoryContextSwitchTo(context);
	return model;
}

/* Returns what is known of a model; model->exists tells whether it is there. */
PosTrytonModel *
pos_tryton_model(PosTrytonSession *session, const char *name)
{
	ListCell   *lc;

	foreach(lc, session->models)
	{
		PosTrytonModel *model = lfirst(lc);

		if (strcmp(model->name, name) == 0)
			return model;
	}
	if (session->models_context == NULL)
		session->models_context = AllocSetContextCreate(session->base.context,
														"possync remote models",
														ALLOCSET_DEFAULT_SIZES);
	return load_model(session, name);
}

/* Forgets what is known of all models: they may have changed. */
void
pos_tryton_models_forget(PosTrytonSession *session)
{
	if (session->models_context != NULL)
		MemoryContextDelete(session->models_context);
	session->models_context = NULL;
	session->models = NIL;
}

static PosTrytonField *
find_field(PosTrytonModel *model, const char *name, Size len)
{
	for (int i = 0; i < model->nfields; i++)
		if (strlen(model->fields[i].name) == len &&
			memcmp(model->fields[i].name, name, len) == 0)
			return &model->fields[i];
	return NULL;
}

/*
 * Returns the field that a name or path of names leads to from a model, NULL if
 * there is none.
 */
PosTrytonField *
pos_tryton_field(PosTrytonSession *session, const char *name, const char *path)
{
	for (;;)
	{
		PosTrytonModel *model = pos_tryton_model(session, name);
		Size		len = strcspn(path, ".");
		PosTrytonField *field = find_field(model, path, len);

		if (field == NULL || path[len] == '\0')
			return field;
		if (strcmp(field->type, "many2one") != 0 || field->relation == NULL)
			return NULL;
		name = field->relation;
		path += len + 1;
	}
}

/* Returns a field that there has to be. */
PosTrytonField *
pos_tryton_column(PosTrytonSession *session, const char *model, const char *path)
{
	PosTrytonField *field = pos_tryton_field(session, model, path);

	if (field == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_FDW_COLUMN_NAME_NOT_FOUND),
				 errmsg("field \"%s\" of remote model %s does not exist", path, model)));
	return field;
}

/*
 * Returns the one2many field of a model that lists the records of another that
 * refer to it by a field; NULL if there is none that may be written.
 */
const char *
pos_tryton_inverse(PosTrytonSession *session, const char *parent, const char *child,
				   const char *by)
{
	PosTrytonModel *model = pos_tryton_model(session, parent);

	for (int i = 0; i < model->nfields; i++)
	{
		PosTrytonField *field = &model->fields[i];

		if (strcmp(field->type, "one2many") == 0 && field->inverse != NULL &&
			!field->readonly && strcmp(field->relation, child) == 0 &&
			strcmp(field->inverse, by) == 0)
			return field->name;
	}
	return NULL;
}

/* Takes the name of a remote table apart; returns whether it is a link table. */
bool
pos_tryton_is_link(const char *remote, char **model, char **field)
{
	const char *colon = strchr(remote, ':');

	*model = colon == NULL ? pstrdup(remote) : pnstrdup(remote, colon - remote);
	*field = colon == NULL ? NULL : pstrdup(colon + 1);
	return colon != NULL;
}

static char *
field_of(PosTable *table, const char *local)
{
	return psprintf("field \"%s\" of %s", local, table->local);
}

/* Checks one column of a model's table; returns a sentence or NULL. */
static char *
check_column(PosTrytonSession *session, PosTable *table, const char *model, int i)
{
	PosColumn  *column = &table->columns[i];
	PosTrytonField *field = pos_tryton_field(session, model, column->remote);
	bool		integer;

	if (i < table->nkey && strcmp(column->remote, "id") != 0)
		return psprintf("the key of remote model %s is its field \"id\", not \"%s\": set it with possync_set_field(..., remote => 'id') (%s)",
						model, column->remote, field_of(table, column->local));
	if (field == NULL)
		return psprintf("field \"%s\" of remote model %s does not exist (%s)",
						column->remote, model, field_of(table, column->local));
	if (column->form == POS_FORM_KEY)
	{
		integer = strcmp(field->type, "integer") == 0 ||
			strcmp(field->type, "biginteger") == 0 || strcmp(field->type, "many2one") == 0 ||
			strcmp(field->type, "one2one") == 0;
		if (!integer && i >= table->nkey)
			return psprintf("field \"%s\" of remote model %s is a %s field and refers to no record (%s)",
							column->remote, model, field->type,
							field_of(table, column->local));
		column->type = INT8OID;
	}
	else if (column->form == POS_FORM_VALUE && !pos_tryton_convertible(field, column))
		return psprintf("field \"%s\" of remote model %s is a %s field, which cannot be assigned to type %s (%s)",
						column->remote, model, field->type,
						format_type_with_typemod(column->type, column->typmod),
						field_of(table, column->local));
	return NULL;
}

/* Checks the columns of a link table; returns a list of sentences. */
static List *
check_link(PosTrytonSession *session, PosTable *table, const char *model,
		   const char *link)
{
	PosTrytonField *field = pos_tryton_field(session, model, link);
	List	   *problems = NIL;

	if (field == NULL || !is_list(field->type))
		return list_make1(psprintf("remote model %s has no many2many field \"%s\" (table %s)",
								   model, link, table->local));
	for (int i = 0; i < table->ncolumns; i++)
	{
		PosColumn  *column = &table->columns[i];

		if (strcmp(column->remote, "origin") != 0 && strcmp(column->remote, "target") != 0)
			problems = lappend(problems,
							   psprintf("remote table %s has the columns \"origin\" and \"target\", but not \"%s\" (%s)",
										table->remote, column->remote,
										field_of(table, column->local)));
		if (column->form == POS_FORM_KEY)
			column->type = INT8OID;
	}
	if (table->nkey != 2 || strcmp(table->columns[0].remote, table->columns[1].remote) == 0)
		problems = lappend(problems,
						   psprintf("the key of remote table %s is \"origin\" and \"target\": the local table needs a key over these two (table %s)",
									table->remote, table->local));
	return problems;
}

/* Returns how many records a model has. */
static int64
count_rows(PosTrytonSession *session, const char *model)
{
	Jsonb	   *json = pos_tryton_call(session, psprintf("model.%s.search_count", model), "[],");
	JsonbValue	value;
	int64		rows;

	return JsonbExtractScalar(&json->root, &value) && pos_tryton_integer(&value, &rows) ?
		rows : -1;
}

/* Checks the change columns, which a model has without being told. */
static char *
check_changes(PosTable *table)
{
	for (int i = 0; i < table->nchange; i++)
		if (strcmp(table->change[i], "write_date") != 0 &&
			strcmp(table->change[i], "create_date") != 0)
			return psprintf("remote table %s is read by \"write_date\" and \"create_date\", without being told: leave its change columns empty (table %s)",
							table->remote, table->local);
	return NULL;
}

/* Compares what is asked of tables with what is known; returns sentences. */
static List *
check_tables(PosTrytonSession *session, PosTable **tables, int ntables)
{
	List	   *problems = NIL;

	for (int i = 0; i < ntables; i++)
	{
		PosTable   *table = tables[i];
		char	   *name;
		char	   *link;
		bool		is_link = pos_tryton_is_link(table->remote, &name, &link);
		PosTrytonModel *model = pos_tryton_model(session, name);
		char	   *problem = check_changes(table);

		table->rows = model->exists && table->compared != POS_COMPARED_NOT ?
			count_rows(session, name) : -1;
		table->guarded = false;
		if (problem != NULL)
			problems = lappend(problems, problem);
		if (!model->exists)
			problems = lappend(problems,
							   psprintf("remote model %s cannot be read: %s (table %s)",
										name, model->why, table->local));
		else if (is_link)
			problems = list_concat(problems, check_link(session, table, name, link));
		else
			for (int j = 0; j < table->ncolumns; j++)
			{
				problem = check_column(session, table, name, j);
				if (problem != NULL)
					problems = lappend(problems, problem);
			}
	}
	return problems;
}

/* See connection.h: describe */
List *
pos_tryton_describe(PosConnection *connection, PosTable **tables, int ntables)
{
	PosTrytonSession *session = (PosTrytonSession *) connection;
	bool		known = session->models != NIL;
	List	   *problems;

	pos_tryton_enter(session);
	problems = check_tables(session, tables, ntables);
	if (problems != NIL && known)
	{
		/* what is known may be out of date */
		pos_tryton_models_forget(session);
		problems = check_tables(session, tables, ntables);
	}
	pos_tryton_leave(session);
	return problems;
}

/* See connection.h: models */
List *
pos_tryton_list_models(PosConnection *connection)
{
	PosTrytonSession *session = (PosTrytonSession *) connection;
	List	   *models = NIL;
	Jsonb	   *rows;

	pos_tryton_enter(session);
	pos_tryton_open(session);
	rows = pos_tryton_call(session, "model.ir.model.search_read",
						   "[],0,null,[[\"model\",\"ASC\"]],[\"model\",\"name\"],");
	if (!JB_ROOT_IS_ARRAY(rows))
		pos_tryton_odd(session);
	for (int i = 0; i < JB_ROOT_COUNT(rows); i++)
	{
		JsonbValue *row = getIthJsonbValueFromContainer(&rows->root, i);
		PosRemoteModel *model = palloc0(sizeof(PosRemoteModel));

		if (row->type != jbvBinary)
			pos_tryton_odd(session);
		model->name = pos_tryton_text(row->val.binary.data, "model");
		model->title = pos_tryton_text(row->val.binary.data, "name");
		models = lappend(models, model);
	}
	pos_tryton_leave(session);
	return models;
}

/* See connection.h: fields */
List *
pos_tryton_list_fields(PosConnection *connection, const char *remote)
{
	PosTrytonSession *session = (PosTrytonSession *) connection;
	PosTrytonModel *model;
	List	   *fields = NIL;

	pos_tryton_enter(session);
	pos_tryton_open(session);
	model = pos_tryton_model(session, remote);
	pos_tryton_leave(session);
	if (!model->exists)
	{
		char	   *why = pstrdup(model->why);

		pos_tryton_models_forget(session);
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("remote model \"%s\" cannot be read", remote),
				 errdetail_internal("%s", why),
				 errhint("possync_remote_models tells which there are.")));
	}
	for (int i = 0; i < model->nfields; i++)
	{
		PosTrytonField *from = &model->fields[i];
		PosRemoteField *field = palloc0(sizeof(PosRemoteField));

		field->name = from->name;
		field->kind = from->type;
		field->type = pos_tryton_type(from);
		field->refers_to = from->relation;
		field->key = strcmp(from->name, "id") == 0;
		field->required = from->required;
		field->writable = !from->readonly;
		field->stored = from->stored;
		field->title = from->string;
		fields = lappend(fields, field);
	}
	return fields;
}
