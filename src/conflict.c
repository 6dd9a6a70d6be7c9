/*
 * conflict.c
 *		Rows that were changed here and have not been pushed yet, when a pull
 *		brings them too.
 *
 * The first queued change of a row keeps the row as it was before, which is
 * what was synchronized last.  If the remote row is still that, only this side
 * has changed it, and there is nothing to be pulled.  If it is not, both sides
 * have: a conflict, which the model's policy decides.
 *
 *		local_wins		the row stays; the push overwrites the remote one
 *		remote_wins		the row is overwritten; what was queued for it is dropped
 *		newest			the greater value of the change columns wins
 *		ask				the row stays, its push waits; both stand in quarantine
 *
 * A push looks whether the remote row still is what was synchronized last, unless
 * local_wins; if it is not, the transaction waits for the pull that decides here.
 *
 * The change columns tell when a row was changed, not whether: a trigger of the
 * remote's sets them for what we send, too.
 */
#include "possync.h"

#include "catalog/pg_type.h"
#include "image.h"
#include "queue.h"
#include "run.h"
#include "spool.h"
#include "sql.h"
#include "store.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

/*
 * Loads the queued changes of a model's rows into a row set that statements
 * can join, called possync_pending_<model>: local key, whether the row was
 * inserted here or wins over whatever the remote has, a row that the remote may
 * have: what it was before, and what a push makes of it that may have arrived.
 * Returns false if there are none.
 */
bool
pos_conflict_load(PosRun *run, PosModel *model)
{
	Oid			types[] = {INT2OID};
	Datum		values[] = {Int16GetDatum(model->id)};
	TupleDesc	desc;
	List	   *labels;
	uint64		n;

	if (!pos_queue_is_captured(model->rel))
		return false;
	pos_spool_write();
	n = pos_store_execute("WITH q AS (SELECT local_key, local_key_text, before,"
						  " image, operation, row_number() OVER w AS n,"
						  " first_value(operation) OVER w = 'i' AS new"
						  " FROM @.synchronize_queue WHERE model = $1"
						  " WINDOW w AS (PARTITION BY local_key, local_key_text"
						  " ORDER BY txid, id))"
						  " SELECT local_key, local_key_text,"
						  " new OR coalesce(json_typeof(before) = 'null', false),"
						  " coalesce(CASE WHEN json_typeof(before) <> 'null'"
						  " THEN before END, image) FROM q WHERE n = 1"
						  " UNION ALL SELECT local_key, local_key_text, false, image"
						  " FROM q WHERE NOT new AND operation <> 'd'",
						  1, types, values, NULL);
	if (n == 0)
	{
		SPI_freetuptable(SPI_tuptable);
		return false;
	}
	labels = pos_image_labels(model->rel);
	desc = CreateTemplateTupleDesc(3);
	TupleDescInitEntry(desc, 1, "key", model->local_int ? INT8OID : TEXTOID, -1, 0);
	TupleDescInitEntry(desc, 2, "new", BOOLOID, -1, 0);
	TupleDescInitEntry(desc, 3, "before", JSONOID, -1, 0);
	model->pending = pos_rowset_create(psprintf("possync_pending_%d", model->id),
									   desc);
	for (uint64 i = 0; i < n; i++)
	{
		HeapTuple	tuple = SPI_tuptable->vals[i];
		Datum		row[3];
		bool		nulls[3];

		row[0] = SPI_getbinval(tuple, SPI_tuptable->tupdesc,
							   model->local_int ? 1 : 2, &nulls[0]);
		row[1] = SPI_getbinval(tuple, SPI_tuptable->tupdesc, 3, &nulls[1]);
		row[2] = SPI_getbinval(tuple, SPI_tuptable->tupdesc, 4, &nulls[2]);

		/* of a column that was renamed nobody can tell; the push says so */
		if (pos_image_stranger(DatumGetTextPP(row[2]), labels) != NULL)
			row[1] = BoolGetDatum(true);
		pos_rowset_put(model->pending, row, nulls);
	}
	SPI_freetuptable(SPI_tuptable);
	pos_rowset_publish(model->pending);
	return true;
}

/*
 * Returns the local keys, as texts and in order, of rows of a model that have
 * changes waiting to be pushed.
 */
char	  **
pos_conflict_keys(PosModel *model, int *nkeys)
{
	Oid			types[] = {INT2OID};
	Datum		values[] = {Int16GetDatum(model->id)};
	char	  **keys;

	*nkeys = 0;
	if (!pos_queue_is_captured(model->rel))
		return NULL;
	pos_spool_write();
	*nkeys = pos_store_execute("SELECT DISTINCT coalesce(local_key::text, local_key_text) COLLATE \"C\""
							   " FROM @.synchronize_queue WHERE model = $1 ORDER BY 1",
							   1, types, values, NULL);
	keys = palloc(*nkeys * sizeof(char *));
	for (int i = 0; i < *nkeys; i++)
		keys[i] = SPI_getvalue(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1);
	SPI_freetuptable(SPI_tuptable);
	return keys;
}

static int
compare_keys(const void *a, const void *b)
{
	return strcmp(*(char *const *) a, *(char *const *) b);
}

/* Whether one of these keys is a given one. */
bool
pos_conflict_has_key(char **keys, int nkeys, const char *key)
{
	return nkeys > 0 &&
		bsearch(&key, keys, nkeys, sizeof(char *), compare_keys) != NULL;
}

/* Whether a field that differs on both sides makes a conflict. */
bool
pos_conflict_counts(PosModel *model, PosField *field)
{
	for (int i = 0; i < model->nchange; i++)
		if (strcmp(field->remote, model->change[i]) == 0)
			return false;
	return !field->is_key;
}

/* Appends whether an image b has what the remote row r has. */
static void
append_same(StringInfo sql, PosModel *model)
{
	StringInfoData image;
	StringInfoData remote;
	StringInfoData columns;

	initStringInfo(&image);
	initStringInfo(&remote);
	initStringInfo(&columns);
	for (int i = model->nkey; i < model->nwritten; i++)
	{
		const char *comma = columns.len > 0 ? ", " : "";

		if (!pos_conflict_counts(model, model->written[i]))
			continue;
		appendStringInfoString(&image, comma);
		pos_image_append_value(&image, "b", model->written[i]);
		appendStringInfo(&remote, "%sr.w%d", comma, i + 1);
		appendStringInfoString(&columns, comma);
		pos_image_append_column(&columns, model->written[i]);
	}
	if (columns.len == 0)
		appendStringInfoString(sql, "true");
	else
		appendStringInfo(sql, "(SELECT ROW(%s)::pg_catalog.record"
						 " OPERATOR(pg_catalog.*=) ROW(%s)::pg_catalog.record"
						 " FROM pg_catalog.json_to_record(p.before) b(%s))",
						 image.data, remote.data, columns.data);
}

/*
 * Appends, to the columns of a query that joins known rows r with the local
 * table t, what tells the state of a row: null if nothing is queued for it,
 * 0 if only this side changed it, 1 if both did and the local row is the newer
 * one, 2 if both did and it is not.
 */
void
pos_conflict_append_state(StringInfo sql, PosModel *model)
{
	PosField   *newest = NULL;

	if (model->pending == NULL)
	{
		appendStringInfoString(sql, ", NULL::pg_catalog.int4");
		return;
	}
	for (int i = model->nkey; i < model->nwritten; i++)
		if (!pos_conflict_counts(model, model->written[i]))
			newest = model->written[i];
	appendStringInfoString(sql, ", (SELECT CASE WHEN pg_catalog.bool_or(p.new OR ");
	append_same(sql, model);
	appendStringInfoString(sql, ") THEN 0");
	if (newest != NULL)
		appendStringInfo(sql, " WHEN t.%s OPERATOR(pg_catalog.>) r.w%d THEN 1",
						 quote_identifier(newest->name),
						 newest->staged - POS_STAGE_FIRST + 1);
	appendStringInfo(sql, " ELSE 2 END FROM possync_pending_%d p"
					 " WHERE p.key OPERATOR(pg_catalog.=) r.lkey"
					 " HAVING pg_catalog.count(*) > 0)", model->id);
}

/*
 * The local change of a row wins over the remote's, which is what was synchronized
 * last from now on.
 */
static void
rebase(PosModel *model, Datum key, const char *image)
{
	Oid			types[] = {INT2OID, TEXTOID, JSONOID};
	Datum		values[] = {
		Int16GetDatum(model->id),
		CStringGetTextDatum(pos_key_string(key, model->local_int)),
		CStringGetTextDatum(image)
	};

	pos_spool_write();
	pos_store_execute("UPDATE @.synchronize_queue SET before = $3"
					  " WHERE operation <> 'i' AND (txid, id) = (SELECT txid, id"
					  " FROM @.synchronize_queue WHERE model = $1"
					  " AND coalesce(local_key::text, local_key_text) = $2"
					  " ORDER BY txid, id LIMIT 1)", 3, types, values, NULL);
}

/* Drops what is queued for a row: the remote's change wins. */
static void
drop_queued(PosModel *model, Datum key)
{
	Oid			types[] = {INT2OID, model->local_int ? INT8OID : TEXTOID};
	Datum		values[] = {Int16GetDatum(model->id), key};

	pos_spool_write();
	pos_store_execute(model->local_int ?
					  "DELETE FROM @.synchronize_queue"
					  " WHERE model = $1 AND local_key = $2" :
					  "DELETE FROM @.synchronize_queue"
					  " WHERE model = $1 AND local_key_text = $2",
					  2, types, values, NULL);
}

/* Lets the transactions that changed a row wait, for somebody to decide. */
static void
hold_queued(PosRun *run, PosModel *model, Datum remote, Datum key,
			const char *image)
{
	Oid			types[] = {INT2OID, TEXTOID, TEXTOID, INT4OID, TEXTOID};
	Datum		values[5];

	pos_spool_write();
	values[0] = Int16GetDatum(model->id);
	values[1] = CStringGetTextDatum(pos_key_string(key, model->local_int));
	values[2] = CStringGetTextDatum(pos_key_string(remote, model->remote_int));
	values[3] = Int32GetDatum(run->id);
	values[4] = CStringGetTextDatum(image);
	pos_store_execute("WITH entry AS (SELECT DISTINCT txid FROM @.synchronize_queue"
					  " WHERE model = $1"
					  " AND coalesce(local_key::text, local_key_text) = $2"
					  " AND NOT EXISTS (SELECT 1 FROM @.synchronize_held h"
					  " WHERE h.txid = synchronize_queue.txid)),"
					  " q AS (INSERT INTO @.synchronize_quarantine"
					  " (model, direction, local_key, reason, message,"
					  " candidates, row_image, run)"
					  " SELECT $1, 'push', $2, 'conflict',"
					  " 'remote row ' || $3 || ' was changed too',"
					  " '{local,remote}',"
					  " jsonb_build_object('remote', $5::jsonb, 'local',"
					  " (SELECT image FROM @.synchronize_queue"
					  " WHERE model = $1"
					  " AND coalesce(local_key::text, local_key_text) = $2"
					  " ORDER BY txid DESC, id DESC LIMIT 1)), $4"
					  " WHERE EXISTS (SELECT 1 FROM entry) RETURNING id)"
					  " INSERT INTO @.synchronize_held"
					  " (txid, id, model, local_key, quarantine)"
					  " SELECT w.txid, w.id, w.model,"
					  " coalesce(w.local_key::text, w.local_key_text), q.id"
					  " FROM entry e JOIN @.synchronize_queue w USING (txid), q",
					  5, types, values, NULL);
}

/*
 * Decides upon a known row that differs from the local one and has queued
 * changes, in the state that pos_conflict_append_state told.  Returns whether
 * the remote row is to be written here.
 */
bool
pos_conflict_decide(PosRun *run, PosModel *model, int state, Datum *values,
					bool *nulls)
{
	bool		remote_wins = model->on_conflict == POS_REMOTE_WINS ||
	(model->on_conflict == POS_NEWEST && state == 2);

	if (!run->dry)
		pos_quarantine_release_conflict(model, values[POS_STAGE_LOCAL]);
	if (state > 0 && model->on_conflict == POS_ASK)
	{
		pos_quarantine_reject(run, model, values[POS_STAGE_REMOTE], "conflict",
							  psprintf("local row %s was changed too, and has not been pushed yet",
									   pos_key_string(values[POS_STAGE_LOCAL],
													  model->local_int)),
							  NIL, values, nulls);
		if (!run->dry)
			hold_queued(run, model, values[POS_STAGE_REMOTE],
						values[POS_STAGE_LOCAL],
						pos_quarantine_image(model, values, nulls));
		return false;
	}
	if (state == 0 || !remote_wins)
	{
		model->counts.unchanged++;
		if (state == 1 && model->on_conflict == POS_NEWEST && !run->dry)
			rebase(model, values[POS_STAGE_LOCAL],
				   pos_quarantine_image(model, values, nulls));
		return false;
	}
	if (!run->dry)
		drop_queued(model, values[POS_STAGE_LOCAL]);
	return true;
}
