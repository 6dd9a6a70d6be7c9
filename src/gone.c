/*
 * gone.c
 *		What becomes of rows whose counterpart was deleted at the source.
 *
 *		ignore			nothing; they are not looked for
 *		deactivate		a column of theirs is set to a value
 *		delete			they are deleted, unless something refers to them, or a
 *						trigger objects: those stay, in quarantine, and are tried
 *						again whenever deleted rows are looked for
 *
 * They are deleted before anything is written, what refers to others first, since
 * new rows may want their unique values; and what was referred to then once more
 * when all is written.  If a foreign key would carry that on to rows that are not gone,
 * it is done only then: they may refer to something else by now.
 *
 * A row that stays keeps its translation, marked: nothing is made of it at the
 * source again.  What was changed here and not pushed yet is left alone until it
 * has been.
 */
#include "possync.h"

#include "access/table.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "run.h"
#include "sql.h"
#include "store.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/resowner.h"

/* Fewer rows are deleted whatever part of all they are */
#define FEW_ROWS	100

/* Takes a row that is gone at the source, by its canonical keys as texts. */
void
pos_gone_put(PosRun *run, PosModel *model, const char *remote,
			 const char *local)
{
	Datum	   *values = palloc0(model->stage->natts * sizeof(Datum));
	bool	   *nulls = palloc(model->stage->natts * sizeof(bool));

	if (model->gone == NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(run->context);

		model->gone = pos_rowset_create(psprintf("possync_gone_%d", model->id),
										model->stage);
		MemoryContextSwitchTo(old);
	}
	memset(nulls, true, model->stage->natts * sizeof(bool));
	values[POS_STAGE_N] = Int64GetDatum(pos_rowset_count(model->gone) + 1);
	values[POS_STAGE_REMOTE] = pos_key_from_string(remote, model->remote_int);
	values[POS_STAGE_LOCAL] = pos_key_from_string(local, model->local_int);
	memset(nulls, false, (POS_STAGE_LOCAL + 1) * sizeof(bool));
	pos_key_to_columns(model, values[POS_STAGE_LOCAL], &values[POS_STAGE_FIRST]);
	memset(&nulls[POS_STAGE_FIRST], false, model->nkey * sizeof(bool));
	pos_rowset_put(model->gone, values, nulls);
}

/* Whether a row that had been deleted is there again. */
static bool
is_back(PosModel *model, const char *remote)
{
	ListCell   *lc;

	foreach(lc, model->back)
		if (strcmp(lfirst(lc), remote) == 0)
		return true;
	return false;
}

/* Takes the rows that are known to be gone and could not be deleted so far. */
static void
put_kept(PosRun *run, PosModel *model)
{
	Oid			types[] = {INT2OID};
	Datum		values[] = {Int16GetDatum(model->id)};
	uint64		n;

	n = pos_store_execute("SELECT coalesce(remote_key::text, remote_key_text),"
						  " coalesce(local_key::text, local_key_text)"
						  " FROM @.synchronize_translation"
						  " WHERE model = $1 AND gone IS NOT NULL",
						  1, types, values, NULL);
	for (uint64 i = 0; i < n; i++)
	{
		HeapTuple	tuple = SPI_tuptable->vals[i];
		char	   *remote = SPI_getvalue(tuple, SPI_tuptable->tupdesc, 1);

		if (!is_back(model, remote))
			pos_gone_put(run, model, remote,
						 SPI_getvalue(tuple, SPI_tuptable->tupdesc, 2));
	}
	SPI_freetuptable(SPI_tuptable);
}

/* Leaves rows alone that have changes waiting to be pushed. */
static void
remove_queued(PosModel *model)
{
	int			nkeys;
	char	  **keys = pos_conflict_keys(model, &nkeys);
	PosRowset  *rest;
	Datum	   *values;
	bool	   *nulls;

	if (nkeys == 0)
		return;
	rest = pos_rowset_create(psprintf("possync_gone_%d", model->id), model->stage);
	pos_rowset_rewind(model->gone);
	while (pos_rowset_next(model->gone, &values, &nulls))
		if (pos_conflict_has_key(keys, nkeys,
								 pos_key_string(values[POS_STAGE_LOCAL],
												model->local_int)))
			model->unfinished = true;
		else
			pos_rowset_put(rest, values, nulls);
	pos_rowset_free(model->gone);
	model->gone = rest;
}

/*
 * Whether so many rows are gone that somebody has to look first: more likely than
 * their deletion is a mistake at the source.
 */
static bool
is_suspicious(PosRun *run, PosModel *model)
{
	Oid			types[] = {INT2OID};
	Datum		values[] = {Int16GetDatum(model->id)};
	int64		n = pos_rowset_count(model->gone);
	int64		all;
	bool		isnull;

	if (n <= FEW_ROWS || run->compare || pos_delete_limit >= 100)
		return false;
	pos_store_execute("SELECT count(*) FROM @.synchronize_translation"
					  " WHERE model = $1", 1, types, values, NULL);
	all = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc,
									  1, &isnull));
	if (n * 100 <= all * pos_delete_limit)
		return false;
	ereport(WARNING,
			(errcode(ERRCODE_WARNING),
			 errmsg(INT64_FORMAT " of " INT64_FORMAT " rows of model \"%s\" are gone at server \"%s\", and nothing was deleted",
					n, all, model->name, run->tree->server),
			 errdetail("That is more than possync.delete_limit, %d percent.",
					   pos_delete_limit),
			 errhint("SELECT * FROM %s.possync_repair('%s') shows them; with dry_run => false it deletes them.",
					 pos_store_schema(), run->tree->root->name)));
	return true;
}

/* Whether anything here is checked only when somebody says so, or at the commit. */
static bool
has_deferrable(void)
{
	return pos_store_execute("SELECT 1 FROM pg_trigger WHERE tgdeferrable LIMIT 1",
							 0, NULL, NULL, NULL) > 0;
}

/*
 * Checks all constraints now.  The subtransaction is rolled back, and with it what is
 * deferred becomes so again.
 */
static void
check_deferred(void)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	ErrorData  *volatile error = NULL;

	if (!has_deferrable())
		return;
	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		pos_sql_execute("SET CONSTRAINTS ALL IMMEDIATE", 0, NULL, NULL);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
	}
	PG_END_TRY();
	RollbackAndReleaseCurrentSubTransaction();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	if (error != NULL)
		ReThrowError(error);
}

/*
 * Whether a foreign key would carry the deletion of one of the gathered rows on to a
 * row of another table, which is read as its owner, as for checking a foreign key.
 * condition is NULL if that cannot be told.
 */
static bool
carries_on(PosModel *model, Oid relid, const char *condition)
{
	Relation	rel;
	Oid			saved_user;
	int			saved_context;
	bool		found;

	if (condition == NULL)
		return true;
	rel = table_open(relid, AccessShareLock);
	pos_sql_as_owner(rel, &saved_user, &saved_context);
	found = pos_sql_execute(psprintf("SELECT 1 FROM possync_gone_%d r JOIN %s x ON %s LIMIT 1",
									 model->id,
									 quote_qualified_identifier(get_namespace_name(RelationGetNamespace(rel)),
																RelationGetRelationName(rel)),
									 condition), 0, NULL, NULL) > 0;
	SetUserIdAndSecContext(saved_user, saved_context);
	table_close(rel, NoLock);
	return found;
}

/*
 * Whether deleting the gathered rows does something to others that the pull may be
 * about to change: then it has to wait until they are as they shall be.
 */
static bool
reaches_others(PosModel *model)
{
	Oid			types[] = {OIDOID, INT2ARRAYOID};
	Datum	   *key = palloc(model->nkey * sizeof(Datum));
	Datum		values[2];
	SPITupleTable *table;
	uint64		n;
	bool		found = false;

	if (model->on_delete != POS_DELETE_DELETE)
		return false;
	for (int i = 0; i < model->nkey; i++)
		key[i] = Int16GetDatum(model->key[i]->attnum);
	values[0] = ObjectIdGetDatum(model->relid);
	values[1] = PointerGetDatum(construct_array(key, model->nkey, INT2OID, 2, true,
												TYPALIGN_SHORT));
	n = pos_store_execute("SELECT c.conrelid::oid, (SELECT CASE WHEN bool_and("
						  "array_position($2, k.there) IS NOT NULL AND b.oid < 10000) THEN"
						  " string_agg(format('x.%I OPERATOR(pg_catalog.=) r.w%s',"
						  " a.attname, array_position($2, k.there)), ' AND ') END"
						  " FROM unnest(c.conkey, c.confkey) k (here, there)"
						  " JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = k.here"
						  " JOIN pg_type b ON b.oid = a.atttypid)"
						  " FROM pg_constraint c WHERE c.confrelid = $1 AND c.contype = 'f'"
						  " AND c.conparentid = 0 AND c.confdeltype IN ('c', 'n', 'd')",
						  2, types, values, NULL);
	table = SPI_tuptable;
	pos_rowset_publish(model->gone);
	for (uint64 i = 0; i < n && !found; i++)
	{
		bool		isnull;

		found = carries_on(model,
						   DatumGetObjectId(SPI_getbinval(table->vals[i], table->tupdesc,
														  1, &isnull)),
						   SPI_getvalue(table->vals[i], table->tupdesc, 2));
	}
	SPI_freetuptable(table);
	return found;
}

/* Refuses to go on if a trigger, rule or policy kept one of the rows. */
static void
check_deleted(PosModel *model)
{
	StringInfoData sql;

	initStringInfo(&sql);
	appendStringInfo(&sql, "SELECT 1 FROM possync_gone_%d r JOIN %s t ON ",
					 model->id, model->table_sql);
	pos_sql_append_key_join(&sql, model);
	if (pos_sql_execute_join(sql.data, model->rel, pos_sql_key_columns(model),
							 pos_rowset_count(model->gone)) > 0)
		ereport(ERROR,
				(errcode(ERRCODE_TRIGGERED_DATA_CHANGE_VIOLATION),
				 errmsg("a trigger, rule or policy of the local table kept it")));
}

/* Deletes the gathered rows of a model, all of them. */
static void
delete_gathered(PosRun *run, void *argument)
{
	PosModel   *model = argument;
	int64		n = pos_rowset_count(model->gone);
	StringInfoData sql;
	Datum	   *values;
	bool	   *nulls;

	pos_rowset_publish(model->gone);
	initStringInfo(&sql);
	appendStringInfo(&sql, "DELETE FROM %s t USING possync_gone_%d r WHERE ",
					 model->table_sql, model->id);
	pos_sql_append_key_join(&sql, model);
	if (pos_sql_execute_join(sql.data, model->rel, pos_sql_key_columns(model),
							 n) < n)
		check_deleted(model);
	check_deferred();
	pos_rowset_rewind(model->gone);
	while (pos_rowset_next(model->gone, &values, &nulls))
		pos_translation_remove(run, model, values[POS_STAGE_REMOTE]);
	model->counts.deleted += n;
	pos_rowset_clear(model->gone);
}

/* Sets the column that tells that rows are not to be used any more. */
static void
deactivate_gathered(PosRun *run, void *argument)
{
	PosModel   *model = argument;
	StringInfoData sql;
	const char *column = quote_identifier(model->inactive_field);
	Datum	   *values;
	bool	   *nulls;

	pos_rowset_publish(model->gone);
	initStringInfo(&sql);
	appendStringInfo(&sql, "UPDATE %s t SET %s = %s FROM possync_gone_%d r"
					 " WHERE t.%s::pg_catalog.text IS DISTINCT FROM %s AND ",
					 model->table_sql, column,
					 quote_literal_cstr(model->inactive_value), model->id, column,
					 quote_literal_cstr(model->inactive_value));
	pos_sql_append_key_join(&sql, model);
	model->counts.deleted +=
		pos_sql_execute_join(sql.data, model->rel, pos_sql_key_columns(model),
							 pos_rowset_count(model->gone));
	pos_rowset_rewind(model->gone);
	while (pos_rowset_next(model->gone, &values, &nulls))
		pos_translation_set_gone(run, model, values[POS_STAGE_REMOTE], true);
	pos_rowset_clear(model->gone);
}

/* Keeps a row that cannot be deleted, or deactivated. */
static void
keep(PosRun *run, PosModel *model, Datum *values, bool *nulls,
	 ErrorData *error)
{
	if (model->on_delete == POS_DELETE_DELETE)
		pos_translation_set_gone(run, model, values[POS_STAGE_REMOTE], true);
	else
		model->unfinished = true;
	pos_quarantine_gone(run, model, values[POS_STAGE_REMOTE],
						pos_careful_message(error));
}

static PosCareful
does(PosModel *model)
{
	return model->on_delete == POS_DELETE_DELETE ? delete_gathered :
		deactivate_gathered;
}

/* Deletes, or deactivates, what can be; the rest stays in model->gone. */
static void
apply(PosRun *run, PosModel *model)
{
	PosRowset  *rest;

	run->deleting = true;
	rest = pos_careful_rest(run, model, model->gone, does(model), PG_INT64_MAX);
	run->deleting = false;
	pos_rowset_free(model->gone);
	model->gone = rest;
}

/* Before anything is written. */
static void
apply_first(PosRun *run, PosModel *model)
{
	bool		suspicious = false;

	if (model->gone != NULL)
	{
		remove_queued(model);
		suspicious = is_suspicious(run, model);
		if (suspicious)
		{
			model->unfinished = true;
			pos_rowset_clear(model->gone);
		}
	}
	if (model->on_delete == POS_DELETE_DELETE && !suspicious)
		put_kept(run, model);
	if (model->gone == NULL || pos_rowset_count(model->gone) == 0)
		return;
	if (run->dry)
		model->counts.deleted += pos_rowset_count(model->gone);
	else if ((model->waits = reaches_others(model)) == false)
		apply(run, model);
}

/* When all is written. */
static void
apply_last(PosRun *run, PosModel *model)
{
	PosRowset  *rest;

	if (run->dry || pos_rowset_count(model->gone) == 0)
		return;
	if (model->waits)
		apply(run, model);
	rest = model->gone;
	model->gone = pos_rowset_create(psprintf("possync_gone_%d", model->id),
									model->stage);
	run->deleting = true;
	pos_careful_last(run, model, rest, model->gone, does(model), keep);
	run->deleting = false;
}

/*
 * Does with the rows that are gone what their models say: before anything is
 * written, and for the last time when all is.  What refers to others comes first.
 */
void
pos_gone_apply(PosRun *run, bool last)
{
	for (int i = list_length(run->tree->models) - 1; i >= 0; i--)
	{
		PosModel   *model = list_nth(run->tree->models, i);

		if (model->compare == POS_COMPARE_NOTHING)
			continue;
		if (!last)
			apply_first(run, model);
		else if (model->gone != NULL)
			apply_last(run, model);
	}
}

/* Notes when the deleted rows of which models have been looked for. */
void
pos_gone_store(PosRun *run)
{
	Oid			types[] = {INT2OID};
	ListCell   *lc;

	foreach(lc, run->tree->models)
	{
		PosModel   *model = lfirst(lc);
		Datum		values[] = {Int16GetDatum(model->id)};

		if (model->compare != POS_COMPARE_NOTHING &&
			model->on_delete != POS_DELETE_IGNORE)
			pos_store_execute("UPDATE @.synchronize_position"
							  " SET compared_at = pg_catalog.clock_timestamp()"
							  " WHERE model = $1", 1, types, values, NULL);
	}
}
