/*
 * config.c
 *		The configuration tables as structs.
 *
 * A server may have a thousand models of which a tree has two: what is asked for is
 * read, once for each tree, and nothing else, by index scans of our own, which ask no
 * planner.  They see what the active snapshot sees, so who builds a tree keeps one.
 *
 * Everything is allocated in the current memory context, which is that of the
 * run.  What the local catalog says of the same tables is added by tree.c.
 */
#include "possync.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "model.h"
#include "store.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

/* Columns of synchronize_model */
enum
{
	MODEL_ID, MODEL_NAME, MODEL_RELATION, MODEL_SERVER, MODEL_LANE, MODEL_REMOTE,
	MODEL_KEY, MODEL_ON_UNKNOWN, MODEL_ON_MATCH, MODEL_ON_CONFLICT, MODEL_ON_DELETE,
	MODEL_INACTIVE_FIELD, MODEL_INACTIVE_VALUE, MODEL_CHANGE, MODEL_AFTER,
	MODEL_REASON, MODEL_NCOLUMNS
};

/* Columns of synchronize_field */
enum
{
	FIELD_MODEL, FIELD_NAME, FIELD_REMOTE, FIELD_COPY, FIELD_MATCH, FIELD_FIXED
};

/* Columns of synchronize_child */
enum
{
	CHILD_MODEL, CHILD_CHILD
};

/* Columns of synchronize_position */
enum
{
	POSITION_MODEL, POSITION_POSITION, POSITION_SOURCE, POSITION_RUN,
	POSITION_LOADED_TO, POSITION_COMPARED_AT
};

/* A table that was asked for; NULL: it has no model with the tree's server */
typedef struct KnownTable
{
	Oid			relid;
	char		status;
	PosModel   *model;
} KnownTable;

#define SH_PREFIX known
#define SH_ELEMENT_TYPE KnownTable
#define SH_KEY_TYPE Oid
#define SH_KEY relid
#define SH_HASH_KEY(tb, key) murmurhash32(key)
#define SH_EQUAL(tb, a, b) ((a) == (b))
#define SH_SCOPE static inline
#define SH_DECLARE
#define SH_DEFINE
#include "lib/simplehash.h"

/* Rows of one of these tables, in the order of an index */
typedef struct ConfigScan
{
	Relation	rel;
	Relation	index;
	SysScanDesc scan;
	Datum		values[MODEL_NCOLUMNS]; /* of the current row; no table has
										 * more */
	bool		nulls[MODEL_NCOLUMNS];
} ConfigScan;

static void
begin_scan(ConfigScan *scan, const char *table, const char *index, int nkeys,
		   ScanKey keys)
{
	scan->rel = table_open(pos_store_relid(table), AccessShareLock);
	scan->index = index_open(pos_store_relid(index), AccessShareLock);
	scan->scan = systable_beginscan_ordered(scan->rel, scan->index,
											GetActiveSnapshot(), nkeys, keys);
}

/* Begins to read the rows of a model: its number is the first column of all. */
static void
begin_scan_of(ConfigScan *scan, const char *table, const char *index, int16 model)
{
	ScanKeyData key;

	ScanKeyInit(&key, 1, BTEqualStrategyNumber, F_INT2EQ, Int16GetDatum(model));
	begin_scan(scan, table, index, 1, &key);
}

static bool
next_row(ConfigScan *scan)
{
	HeapTuple	tuple = systable_getnext_ordered(scan->scan, ForwardScanDirection);

	if (!HeapTupleIsValid(tuple))
		return false;
	heap_deform_tuple(tuple, RelationGetDescr(scan->rel), scan->values,
					  scan->nulls);
	return true;
}

/* Ends a scan; locks stay, as after a statement. */
static void
end_scan(ConfigScan *scan)
{
	systable_endscan_ordered(scan->scan);
	index_close(scan->index, NoLock);
	table_close(scan->rel, NoLock);
}

/* Returns a text of the current row, NULL for null. */
static char *
get_text(ConfigScan *scan, int column)
{
	return scan->nulls[column] ? NULL : TextDatumGetCString(scan->values[column]);
}

/* Returns a name of the current row, NULL for null. */
static char *
get_name(ConfigScan *scan, int column)
{
	return scan->nulls[column] ? NULL :
		pstrdup(NameStr(*DatumGetName(scan->values[column])));
}

/* Returns a text[] of the current row as C strings, none for null. */
static char **
get_texts(ConfigScan *scan, int column, int *count)
{
	Datum	   *elements;
	char	  **strings;

	*count = 0;
	if (scan->nulls[column])
		return NULL;
	deconstruct_array(DatumGetArrayTypeP(scan->values[column]), TEXTOID, -1,
					  false, TYPALIGN_INT, &elements, NULL, count);
	strings = palloc(*count * sizeof(char *));
	for (int i = 0; i < *count; i++)
		strings[i] = TextDatumGetCString(elements[i]);
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
	closest = SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1);
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_OBJECT),
			 errmsg("model \"%s\" does not exist", name),
			 closest != NULL ? errhint("%s", closest) :
			 errhint("SELECT * FROM %s.possync_add_model('table', server => 'name') configures a table and all it depends on.",
					 pos_store_schema())));
}

/*
 * Makes the current row of synchronize_model a model, without its fields: those of
 * its key are placeholders.
 */
static PosModel *
make_model(ConfigScan *scan)
{
	PosModel   *model = palloc0(sizeof(PosModel));
	Datum	   *key;

	model->id = DatumGetInt16(scan->values[MODEL_ID]);
	model->lane = DatumGetInt16(scan->values[MODEL_LANE]);
	model->name = get_text(scan, MODEL_NAME);
	model->relid = DatumGetObjectId(scan->values[MODEL_RELATION]);
	model->remote = get_text(scan, MODEL_REMOTE);
	deconstruct_array(DatumGetArrayTypeP(scan->values[MODEL_KEY]), NAMEOID,
					  NAMEDATALEN, false, TYPALIGN_CHAR, &key, NULL,
					  &model->nkey);
	model->key = palloc(model->nkey * sizeof(PosField *));
	for (int i = 0; i < model->nkey; i++)
	{
		model->key[i] = palloc0(sizeof(PosField));
		model->key[i]->name = pstrdup(NameStr(*DatumGetName(key[i])));
	}
	model->on_unknown = parse_on_unknown(get_text(scan, MODEL_ON_UNKNOWN));
	model->update_matched = strcmp(get_text(scan, MODEL_ON_MATCH), "update") == 0;
	model->on_conflict = parse_on_conflict(get_text(scan, MODEL_ON_CONFLICT));
	model->on_delete = parse_on_delete(get_text(scan, MODEL_ON_DELETE));
	model->inactive_field = get_name(scan, MODEL_INACTIVE_FIELD);
	model->inactive_value = get_text(scan, MODEL_INACTIVE_VALUE);
	model->change = get_texts(scan, MODEL_CHANGE, &model->nchange);
	model->after = get_texts(scan, MODEL_AFTER, &model->nafter);
	return model;
}

/* Returns the model in the current row of synchronize_model, as the tree has it. */
static PosModel *
take_model(PosTree *tree, ConfigScan *scan)
{
	bool		found;
	KnownTable *table = known_insert(tree->known,
									 DatumGetObjectId(scan->values[MODEL_RELATION]),
									 &found);

	if (!found)
	{
		table->model = make_model(scan);
		tree->configured = lappend(tree->configured, table->model);
	}
	return table->model;
}

/*
 * Begins to read the model of this name and goes to its row.  Errors when there is
 * no such model.
 */
static void
begin_named(ConfigScan *scan, const char *name)
{
	ScanKeyData key;

	ScanKeyEntryInitialize(&key, 0, MODEL_NAME + 1, BTEqualStrategyNumber,
						   InvalidOid, DEFAULT_COLLATION_OID, F_TEXTEQ,
						   CStringGetTextDatum(name));
	begin_scan(scan, "synchronize_model", "synchronize_model_name_key", 1, &key);
	if (!next_row(scan))
		report_unknown(name);
}

/* Returns the number of the model of this name.  Errors if there is none. */
int16
pos_config_id(const char *name)
{
	ConfigScan	scan;
	int16		id;

	begin_named(&scan, name);
	id = DatumGetInt16(scan.values[MODEL_ID]);
	end_scan(&scan);
	return id;
}

/*
 * Begins a tree: returns the model of this name and sets the server.  Errors when
 * there is no such model.
 */
PosModel *
pos_config_root(PosTree *tree, const char *name)
{
	ConfigScan	scan;
	PosModel   *model;

	tree->known = known_create(CurrentMemoryContext, 16, NULL);
	begin_named(&scan, name);
	tree->server = get_name(&scan, MODEL_SERVER);
	model = take_model(tree, &scan);
	end_scan(&scan);
	return model;
}

/* Returns the model of a local table with the tree's server, NULL if there is none. */
PosModel *
pos_config_of_table(PosTree *tree, Oid relid)
{
	KnownTable *table = known_lookup(tree->known, relid);
	ScanKeyData keys[2];
	NameData	server;
	ConfigScan	scan;
	bool		found;

	if (table != NULL)
		return table->model;
	namestrcpy(&server, tree->server);
	ScanKeyInit(&keys[0], MODEL_RELATION + 1, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(relid));
	ScanKeyInit(&keys[1], MODEL_SERVER + 1, BTEqualStrategyNumber, F_NAMEEQ,
				NameGetDatum(&server));
	begin_scan(&scan, "synchronize_model", "synchronize_model_relation_server_key",
			   2, keys);
	if (next_row(&scan))
		(void) take_model(tree, &scan);
	else
		known_insert(tree->known, relid, &found)->model = NULL;
	end_scan(&scan);
	return known_lookup(tree->known, relid)->model;
}

/* Returns the model of a local table, NULL if none was read. */
PosModel *
pos_config_known(PosTree *tree, Oid relid)
{
	KnownTable *table = known_lookup(tree->known, relid);

	return table == NULL ? NULL : table->model;
}

/* Appends the models that a scan finds to a list, those of the tree's server. */
static List *
append_models(PosTree *tree, ConfigScan *scan, List *models)
{
	while (next_row(scan))
		if (strcmp(NameStr(*DatumGetName(scan->values[MODEL_SERVER])),
				   tree->server) == 0)
			models = lappend(models, take_model(tree, scan));
	end_scan(scan);
	return models;
}

/* Returns all models of the tree's server, by their numbers. */
List *
pos_config_models(PosTree *tree)
{
	ConfigScan	scan;

	begin_scan(&scan, "synchronize_model", "synchronize_model_pkey", 0, NULL);
	return append_models(tree, &scan, NIL);
}

/* Returns the children of a model, by their numbers. */
List *
pos_config_children(PosTree *tree, PosModel *model)
{
	ConfigScan	scan;
	ConfigScan	child;
	List	   *children = NIL;

	begin_scan_of(&scan, "synchronize_child", "synchronize_child_pkey", model->id);
	while (next_row(&scan))
	{
		begin_scan_of(&child, "synchronize_model", "synchronize_model_pkey",
					  DatumGetInt16(scan.values[CHILD_CHILD]));
		children = append_models(tree, &child, children);
	}
	end_scan(&scan);
	return children;
}

/* Puts the fields into a model, by their names, and those of the key into key. */
void
pos_config_fields(PosModel *model)
{
	ConfigScan	scan;
	int			most = 16;

	model->fields = palloc(most * sizeof(PosField));
	begin_scan_of(&scan, "synchronize_field", "synchronize_field_pkey", model->id);
	while (next_row(&scan))
	{
		if (model->nfields == most)
			model->fields = repalloc(model->fields,
									 (most *= 2) * sizeof(PosField));
		model->fields[model->nfields++] = (PosField)
		{
			.name = get_name(&scan, FIELD_NAME),
				.remote = get_text(&scan, FIELD_REMOTE),
				.copy = DatumGetBool(scan.values[FIELD_COPY]),
				.match = DatumGetBool(scan.values[FIELD_MATCH]),
				.fixed = get_text(&scan, FIELD_FIXED),
				.staged = -1,
				.wire = -1
		};
	}
	end_scan(&scan);
	for (int i = 0; i < model->nfields; i++)
		for (int j = 0; j < model->nkey; j++)
			if (strcmp(model->key[j]->name, model->fields[i].name) == 0)
			{
				model->key[j] = &model->fields[i];
				model->fields[i].is_key = true;
			}
}

/* Puts the current row of synchronize_position into its model. */
static void
set_position(ConfigScan *scan, PosModel *model)
{
	char	   *position = get_text(scan, POSITION_POSITION);

	if (*position == '\0')
		position = NULL;
	model->source = get_text(scan, POSITION_SOURCE);
	model->loaded_to = get_text(scan, POSITION_LOADED_TO);
	model->complete = model->loaded_to == NULL;
	model->position = model->complete ? position : NULL;
	model->load_position = model->complete ? NULL : position;
	model->compared_at = scan->nulls[POSITION_COMPARED_AT] ? 0 :
		DatumGetTimestampTz(scan->values[POSITION_COMPARED_AT]);
}

/* Puts the positions, as they are by now, into the models that have one. */
void
pos_config_positions(List *models)
{
	ListCell   *lc;

	PushActiveSnapshot(GetTransactionSnapshot());
	foreach(lc, models)
	{
		PosModel   *model = lfirst(lc);
		ConfigScan	scan;

		begin_scan_of(&scan, "synchronize_position", "synchronize_position_pkey",
					  model->id);
		if (next_row(&scan))
			set_position(&scan, model);
		end_scan(&scan);
	}
	PopActiveSnapshot();
}
