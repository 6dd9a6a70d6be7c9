/*
 * differences.c
 *		possync_compare: what differs between both sides, as rows.
 *
 * A queued model is pushed: only rows of ours count, since the remote has those of
 * others, too, and rows that nothing is linked with have not been sent.
 */
#include "possync.h"

#include "catalog/pg_type.h"
#include "differences.h"
#include "funcapi.h"
#include "queue.h"
#include "sql.h"
#include "store.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/json.h"
#include "utils/memutils.h"
#include "utils/rls.h"
#include "utils/snapmgr.h"

PG_FUNCTION_INFO_V1(possync_compare);

enum
{
	C_MODEL, C_RELATION, C_DIRECTION, C_LOCAL, C_REMOTE, C_DIFFERENCE, C_FIELDS,
	C_QUEUED, C_NCOLUMNS
};

/* Where the differences go, and what has to be known for them */
typedef struct Listing
{
	ReturnSetInfo *result;
	bool		pushed;			/* the current model's direction */
	char	  **queued;			/* local keys with changes to be pushed */
	int			nqueued;
} Listing;

/* Returns the texts of a digest's content, NULL for nulls. */
static char **
texts_of(const char *content, int n)
{
	char	  **texts = palloc0(n * sizeof(char *));
	Datum		array;
	Datum	   *elements;
	bool	   *nulls;
	int			nelements;

	if (content == NULL)
		return texts;
	array = OidInputFunctionCall(F_ARRAY_IN, unconstify(char *, content), TEXTOID, -1);
	deconstruct_array(DatumGetArrayTypeP(array), TEXTOID, -1, false, TYPALIGN_INT,
					  &elements, &nulls, &nelements);
	for (int i = 0; i < Min(n, nelements); i++)
		if (!nulls[i])
			texts[i] = TextDatumGetCString(elements[i]);
	return texts;
}

static void
append_side(StringInfo buf, const char *side, const char *text)
{
	appendStringInfo(buf, "\"%s\": ", side);
	if (text == NULL)
		appendStringInfoString(buf, "null");
	else
		escape_json(buf, text);
}

/* Returns the columns that differ, as JSON; NULL if both rows are not there. */
static char *
fields_of(PosModel *model, PosDifferent *different)
{
	PosTable   *table = &model->table;
	char	  **here = texts_of(different->here, table->ncolumns);
	char	  **there = texts_of(different->there, table->ncolumns);
	StringInfoData buf;

	initStringInfo(&buf);
	for (int i = table->nkey; i < table->ncolumns; i++)
	{
		if (here[i] == there[i] ||
			(here[i] != NULL && there[i] != NULL && strcmp(here[i], there[i]) == 0))
			continue;
		appendStringInfoString(&buf, buf.len > 0 ? ", " : "{");
		escape_json(&buf, table->columns[i].local);
		appendStringInfoString(&buf, ": {");
		if (different->here != NULL)
			append_side(&buf, "here", here[i]);
		if (different->here != NULL && different->there != NULL)
			appendStringInfoString(&buf, ", ");
		if (different->there != NULL)
			append_side(&buf, "there", there[i]);
		appendStringInfoChar(&buf, '}');
	}
	if (buf.len == 0)
		return NULL;
	appendStringInfoChar(&buf, '}');
	return buf.data;
}

static void
put(Listing *listing, PosModel *model, const char *local,
	const char *remote, const char *difference, const char *fields)
{
	Datum		row[C_NCOLUMNS];
	bool		nulls[C_NCOLUMNS] = {false};

	row[C_MODEL] = CStringGetTextDatum(model->name);
	row[C_RELATION] = ObjectIdGetDatum(model->relid);
	row[C_DIRECTION] = CStringGetTextDatum(listing->pushed ? "push" : "pull");
	nulls[C_LOCAL] = local == NULL;
	if (local != NULL)
		row[C_LOCAL] = CStringGetTextDatum(local);
	nulls[C_REMOTE] = remote == NULL;
	if (remote != NULL)
		row[C_REMOTE] = CStringGetTextDatum(remote);
	row[C_DIFFERENCE] = CStringGetTextDatum(difference);
	nulls[C_FIELDS] = fields == NULL;
	if (fields != NULL)
		row[C_FIELDS] = DirectFunctionCall1(jsonb_in, CStringGetDatum(fields));
	row[C_QUEUED] = BoolGetDatum(local != NULL &&
								 pos_conflict_has_key(listing->queued,
													  listing->nqueued, local));
	tuplestore_putvalues(listing->result->setResult, listing->result->setDesc, row,
						 nulls);
}

/* Takes a row that differs; see PosCompareCallback. */
static void
take(PosRun *run, PosModel *model, PosDifferent *different, void *argument)
{
	static const char *const words[] = {
		[POS_DIFFERENT] = "different",
		[POS_MISSING_HERE] = "missing here",
		[POS_MISSING_THERE] = "missing there",
		[POS_LOST_HERE] = "lost here"
	};

	/* rows that are recognised and left as they are may differ */
	if (different->kind == POS_DIFFERENT && different->matched &&
		!model->update_matched)
		return;
	if (different->kind == POS_MISSING_THERE && different->here == NULL)
		return;					/* gone on both sides */
	put(argument, model, different->local, different->remote,
		words[different->kind], fields_of(model, different));
}

/*
 * Returns which rows of a table, p, are linked with nothing, or with a row that is
 * gone, as SQL: possync_key of each, as in a link, and the row itself.
 */
char *
pos_differences_unsent(PosModel *model, PosInspection *inspection, bool gone)
{
	StringInfoData sql;

	initStringInfo(&sql);
	for (int i = 0; i < model->nkey; i++)
		appendStringInfo(&sql, "%spg_catalog.format('%%s', p.%s)", i > 0 ? ", " :
						 model->nkey > 1 ? "ARRAY[" : "",
						 quote_identifier(model->key[i]->name));
	if (model->nkey > 1)
		appendStringInfoString(&sql, "]::pg_catalog.text");
	return psprintf("(SELECT u.* FROM (SELECT %s AS possync_key, p.* FROM %s p WHERE %s) u"
					" WHERE NOT EXISTS (SELECT FROM %s._possync_linked t"
					" WHERE t.model OPERATOR(pg_catalog.=) %d%s"
					" AND t.local_key%s OPERATOR(pg_catalog.=) u.possync_key%s)) p",
					sql.data, model->table_sql,
					inspection->condition != NULL ? inspection->condition : "true",
					pos_store_schema(), model->id, gone ? " AND t.gone IS NULL" : "",
					model->local_int ? "" : "_text", model->local_int ? "::pg_catalog.int8" : "");
}

/* Lists rows that are linked with nothing. */
static void
list_unsent(PosModel *model, PosInspection *inspection, Listing *listing)
{
	PosCursor  *cursor;
	HeapTuple	tuple;
	TupleDesc	desc;

	cursor = pos_sql_open_whole(psprintf("SELECT p.possync_key FROM %s",
										 pos_differences_unsent(model, inspection, false)));
	while ((tuple = pos_sql_peek(cursor, &desc)) != NULL)
	{
		put(listing, model, SPI_getvalue(tuple, desc, 1), NULL, "not sent", NULL);
		pos_sql_take(cursor);
	}
	pos_sql_close(cursor);
}

/* Lists what differs of one model; see PosInspector. */
static void
list(PosRun *run, PosModel *model, PosInspection *inspection, void *argument)
{
	Listing    *listing = argument;

	listing->pushed = inspection->pushed;
	listing->queued = pos_conflict_keys(model, &listing->nqueued);
	pos_compare_model(run, model, POS_CONTENT_TEXTS,
					  inspection->pushed || model->on_unknown == POS_MATCH_ONLY,
					  inspection->condition, take, listing);
	if (inspection->pushed)
		list_unsent(model, inspection, listing);
}

/*
 * Returns which rows of a model are meant if those of the root are, NULL if none
 * in particular.
 */
static char *
condition_of(PosRun *run, PosModel *model, const char *condition)
{
	PosModel   *root = run->tree->root;
	ListCell   *lc;

	if (model == root)
		return psprintf("(%s)", condition);
	foreach(lc, model->references)
	{
		PosReference *reference = lfirst(lc);
		StringInfoData sql;

		if (reference->parent != root)
			continue;
		initStringInfo(&sql);
		appendStringInfo(&sql, "EXISTS (SELECT FROM %s q WHERE ", root->table_sql);
		for (int i = 0; i < reference->nfields; i++)
			appendStringInfo(&sql, "q.%s OPERATOR(pg_catalog.=) p.%s AND ",
							 quote_identifier(root->key[reference->parts[i]]->name),
							 quote_identifier(reference->fields[i]->name));
		appendStringInfo(&sql, "EXISTS (SELECT FROM (SELECT q.*) p WHERE %s))",
						 condition);
		return sql.data;
	}
	return NULL;
}

/* Opens both sides and looks at the models of a tree. */
static void
inspect_tree(PosRun *run, const char *direction, const char *condition,
			 PosInspector inspector, void *argument)
{
	List	   *problems = NIL;
	ListCell   *lc;

	pos_config_positions(run->tree->models);
	foreach(lc, run->tree->models)
		problems = list_concat(problems, pos_tree_check(run->tree, lfirst(lc)));
	pos_sync_report(run, problems);
	run->connection = pos_connection_get(run->tree->server);
	if ((run->connection->ops->capabilities & POS_CAP_DIGEST) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("server \"%s\" cannot compare rows", run->tree->server)));
	foreach(lc, run->tree->models)
		((PosModel *) lfirst(lc))->table.compared = POS_COMPARED_ALWAYS;
	pos_compare_begin(run);
	(void) pos_sync_begin(run);
	pos_sync_prepare(run);
	foreach(lc, run->tree->models)
	{
		PosModel   *model = lfirst(lc);
		PosInspection inspection = {.condition = NULL};

		if (model->on_unknown == POS_IGNORE || model->rel == NULL)
			continue;
		if (check_enable_rls(model->relid, InvalidOid, true) == RLS_ENABLED)
			ereport(ERROR,
					(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
					 errmsg("rows of table %s may be hidden by row security and cannot be compared",
							model->name)));
		if (condition != NULL)
		{
			inspection.condition = condition_of(run, model, condition);
			if (inspection.condition == NULL)
				continue;
		}
		inspection.pushed = direction != NULL ? strcmp(direction, "push") == 0 :
			pos_queue_is_captured(model->rel);
		PushActiveSnapshot(run->before);
		inspector(run, model, &inspection, argument);
		PopActiveSnapshot();
	}
	pos_compare_end(run);
	pos_translation_close(run);
	run->connection->ops->finish(run->connection);
}

/* Returns an argument as a C string, NULL for null. */
static char *
text_argument(FunctionCallInfo fcinfo, int i)
{
	return PG_ARGISNULL(i) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(i));
}

/*
 * Calls a function for every model of a tree, with both sides open and as they were
 * at one moment.  For SQL functions that return a set and have the arguments model,
 * direction (pull, push, null for what each model is for) and condition (SQL on p, the
 * root model: only those rows and their children; null for all).  Changes nothing.
 * Errors as those of a pull.
 */
void
pos_differences_each(FunctionCallInfo fcinfo, PosInspector inspector,
					 void *argument)
{
	PosRun	   *run = palloc0(sizeof(PosRun));
	char	   *model = text_argument(fcinfo, 0);
	char	   *direction = text_argument(fcinfo, 1);
	char	   *condition = text_argument(fcinfo, 2);

	if (model == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("model must not be null")));
	if (direction != NULL && strcmp(direction, "pull") != 0 &&
		strcmp(direction, "push") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid direction: \"%s\"", direction),
				 errhint("Allowed are pull and push.")));
	InitMaterializedSRF(fcinfo, 0);
	pos_store_init(fcinfo->flinfo->fn_oid);
	run->context = AllocSetContextCreate(CurrentMemoryContext, "possync run",
										 ALLOCSET_DEFAULT_SIZES);
	run->row = AllocSetContextCreate(run->context, "possync row",
									 ALLOCSET_DEFAULT_SIZES);
	run->dry = true;
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	MemoryContextSwitchTo(run->context);
	run->tree = pos_tree_load(model, false);
	inspect_tree(run, direction, condition, inspector, argument);
	pos_tree_close(run->tree);
	SPI_finish();
	MemoryContextDelete(run->context);
}

/*
 * possync_compare(model text, direction text, condition text)
 *		returns setof (model, relation, direction, local_key, remote_key,
 *		difference, fields, queued)
 *
 * What differs between the rows of a model's tree here and at its server: by
 * hashes, then keys, then columns.  Arguments and errors as in
 * pos_differences_each.
 */
Datum
possync_compare(PG_FUNCTION_ARGS)
{
	Listing		listing = {.result = (ReturnSetInfo *) fcinfo->resultinfo};

	pos_differences_each(fcinfo, list, &listing);
	return (Datum) 0;
}
