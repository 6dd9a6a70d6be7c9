/*
 * quarantine.c
 *		Rows that were left out, and why.
 *
 * They are gathered during the run and stored at its end.  Every run asks the
 * source for them again, changed or not, so that they come in by themselves
 * when the cause is gone; those that did, or that are no more, leave the table.
 * What did not change is not written again.
 */
#include "possync.h"

#include "catalog/pg_type.h"
#include "push.h"
#include "store.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/json.h"
#include "utils/lsyscache.h"

/* Columns of the row set of rejects */
enum
{
	REJ_MODEL, REJ_KEY, REJ_REASON, REJ_MESSAGE, REJ_CANDIDATES, REJ_IMAGE,
	REJ_NCOLS
};

static PosRowset *
rejects(PosRun *run)
{
	MemoryContext old;
	TupleDesc	desc;

	if (run->rejects != NULL)
		return run->rejects;
	old = MemoryContextSwitchTo(run->context);
	desc = CreateTemplateTupleDesc(REJ_NCOLS);
	TupleDescInitEntry(desc, REJ_MODEL + 1, "model", INT2OID, -1, 0);
	TupleDescInitEntry(desc, REJ_KEY + 1, "remote_key", TEXTOID, -1, 0);
	TupleDescInitEntry(desc, REJ_REASON + 1, "reason", TEXTOID, -1, 0);
	TupleDescInitEntry(desc, REJ_MESSAGE + 1, "message", TEXTOID, -1, 0);
	TupleDescInitEntry(desc, REJ_CANDIDATES + 1, "candidates", TEXTARRAYOID, -1, 0);
	TupleDescInitEntry(desc, REJ_IMAGE + 1, "row_image", TEXTOID, -1, 0);
	run->rejects = pos_rowset_create("possync_rejects", desc);
	MemoryContextSwitchTo(old);
	return run->rejects;
}

/*
 * Lets the connection read the quarantined rows of the tree's models whatever
 * their change columns say.
 */
void
pos_quarantine_retry(PosRun *run)
{
	Oid			types[] = {INT2ARRAYOID};
	Datum		values[] = {pos_config_ids(run->tree->models)};
	uint64		n;

	n = pos_store_execute("SELECT model, remote_key"
						  " FROM @.synchronize_quarantine"
						  " WHERE model = ANY ($1) AND direction = 'pull'"
						  " AND reason <> 'referenced'"
						  " AND discarded_at IS NULL ORDER BY id",
						  1, types, values, NULL);
	for (uint64 i = 0; i < n; i++)
	{
		HeapTuple	tuple = SPI_tuptable->vals[i];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		bool		isnull;
		int16		id = DatumGetInt16(SPI_getbinval(tuple, desc, 1, &isnull));

		pos_stage_retry(pos_config_find(run->tree->models, id),
						SPI_getvalue(tuple, desc, 2));
	}
	SPI_freetuptable(SPI_tuptable);
}

/* Returns what the source says of a row, as the text of a JSON object. */
char *
pos_quarantine_image(PosModel *model, Datum *values, bool *nulls)
{
	int			nestlevel = pos_key_pin_settings();
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoChar(&buf, '{');
	for (int i = 0; i < model->nwritten; i++)
	{
		PosField   *field = model->written[i];
		Oid			output;
		bool		varlena;

		/* a key made here is made anew every time */
		if (nulls[field->staged] || (field->is_key && !field->copy))
			continue;
		if (buf.len > 1)
			appendStringInfoString(&buf, ", ");
		escape_json(&buf, field->name);
		appendStringInfoString(&buf, ": ");
		getTypeOutputInfo(field->type, &output, &varlena);
		escape_json(&buf, OidOutputFunctionCall(output, values[field->staged]));
	}
	appendStringInfoChar(&buf, '}');
	AtEOXact_GUC(true, nestlevel);
	return buf.data;
}

static Datum
key_array(PosModel *model, List *keys)
{
	Datum	   *texts = palloc(list_length(keys) * sizeof(Datum));
	ListCell   *lc;

	foreach(lc, keys)
		texts[foreach_current_index(lc)] =
		CStringGetTextDatum(pos_key_string(PointerGetDatum(lfirst(lc)),
										   model->local_int));
	return PointerGetDatum(construct_array(texts, list_length(keys), TEXTOID,
										   -1, false, TYPALIGN_INT));
}

static void
put_reject(PosRun *run, PosModel *model, Datum remote, const char *reason,
		   const char *message, List *candidates, char *image)
{
	Datum		row[REJ_NCOLS];
	bool		nulls[REJ_NCOLS] = {false};

	row[REJ_MODEL] = Int16GetDatum(model->id);
	row[REJ_KEY] = CStringGetTextDatum(pos_key_string(remote, model->remote_int));
	row[REJ_REASON] = CStringGetTextDatum(reason);
	row[REJ_MESSAGE] = CStringGetTextDatum(message);
	nulls[REJ_CANDIDATES] = candidates == NIL;
	if (candidates != NIL)
		row[REJ_CANDIDATES] = key_array(model, candidates);
	nulls[REJ_IMAGE] = image == NULL;
	if (image != NULL)
		row[REJ_IMAGE] = CStringGetTextDatum(image);
	pos_rowset_put(rejects(run), row, nulls);
}

/*
 * Leaves out a staged row with this remote key.  candidates are local
 * canonical keys between which somebody has to choose.
 */
void
pos_quarantine_reject(PosRun *run, PosModel *model, Datum remote,
					  const char *reason, const char *message,
					  List *candidates, Datum *values, bool *nulls)
{
	model->counts.left_out++;
	put_reject(run, model, remote, reason, message, candidates,
			   pos_quarantine_image(model, values, nulls));
}

/*
 * Notes that something refers to a row that is not here, so that the next run
 * asks for it.
 */
void
pos_quarantine_missing(PosRun *run, PosModel *model, Datum remote)
{
	put_reject(run, model, remote, "missing",
			   "other rows refer to it, and it is not here", NIL, NULL);
}

/*
 * Notes that a row whose counterpart was deleted could not be deleted.  That is
 * found out by looking for deleted rows, not by reading it again.
 */
void
pos_quarantine_gone(PosRun *run, PosModel *model, Datum remote,
					const char *message)
{
	model->counts.left_out++;
	put_reject(run, model, remote, "referenced", message, NIL, NULL);
}

/*
 * Removes what was asked for again and not left out again; or, with gone, of rows
 * that could not be deleted those that have been.
 */
static void
remove_solved(PosModel *model, bool gone)
{
	Oid			types[] = {INT2OID, BOOLOID};
	Datum		values[] = {Int16GetDatum(model->id), BoolGetDatum(gone)};

	pos_store_execute("DELETE FROM @.synchronize_quarantine q WHERE model = $1"
					  " AND direction = 'pull' AND discarded_at IS NULL"
					  " AND (reason = 'referenced') = $2"
					  " AND NOT EXISTS (SELECT 1 FROM possync_rejects r"
					  " WHERE r.model = q.model"
					  " AND r.remote_key = q.remote_key)",
					  2, types, values, NULL);
}

/*
 * Stores what was left out and does not stand there in the same words.  That
 * something refers to a row is said only where nothing better is known of it.
 */
static void
store_rejects(PosRun *run)
{
	Oid			types[] = {INT4OID};
	Datum		values[] = {Int32GetDatum(run->id)};

	pos_store_execute("INSERT INTO @.synchronize_quarantine AS q"
					  " (model, remote_key, reason, message, candidates,"
					  " row_image, run)"
					  " SELECT r.model, r.remote_key, r.reason, r.message,"
					  " r.candidates, r.row_image::jsonb, $1"
					  " FROM (SELECT DISTINCT ON (model, remote_key) *"
					  " FROM possync_rejects"
					  " ORDER BY model, remote_key, reason = 'missing') r"
					  " WHERE NOT EXISTS"
					  " (SELECT 1 FROM @.synchronize_quarantine o"
					  " WHERE o.model = r.model AND o.remote_key = r.remote_key"
					  " AND o.reason = r.reason AND o.message = r.message"
					  " AND o.candidates IS NOT DISTINCT FROM r.candidates"
					  " AND o.row_image IS NOT DISTINCT FROM r.row_image::jsonb)"
					  " ON CONFLICT (model, remote_key) DO UPDATE SET"
					  " reason = EXCLUDED.reason, message = EXCLUDED.message,"
					  " candidates = EXCLUDED.candidates,"
					  " row_image = EXCLUDED.row_image, run = EXCLUDED.run,"
					  " discarded_at = NULL, discarded_by = NULL,"
					  " discarded_because = NULL",
					  1, types, values, NULL);
}

/* Brings the table up to date with what the run left out. */
void
pos_quarantine_store(PosRun *run)
{
	ListCell   *lc;

	pos_rowset_publish(rejects(run));
	foreach(lc, run->tree->models)
	{
		PosModel   *model = lfirst(lc);

		if (model->table.nretry > 0)
			remove_solved(model, false);
		if (model->compare != POS_COMPARE_NOTHING && !model->unfinished)
			remove_solved(model, true);
	}
	if (pos_rowset_count(run->rejects) > 0)
		store_rejects(run);
}

/* Frees what was gathered. */
void
pos_quarantine_close(PosRun *run)
{
	pos_rowset_free(run->rejects);
	run->rejects = NULL;
}

/*
 * Makes the transactions due that wait because others do: the next push finds
 * out whether they still have to.  It lets them go itself, before it looks for the
 * first one; one that is at work might send only the later ones of them.
 */
void
pos_quarantine_retry_dependent(void)
{
	pos_store_execute("UPDATE @.synchronize_quarantine SET retry_at = clock_timestamp()"
					  " WHERE direction = 'push' AND reason = 'dependency'"
					  " AND discarded_at IS NULL", 0, NULL, NULL, NULL);
}

/*
 * Lets the transactions go that a push found in conflict over a local row, and all
 * that wait because others do: the caller decides the conflict.
 */
void
pos_quarantine_release_conflict(PosModel *model, Datum local)
{
	Oid			types[] = {INT2OID, TEXTOID};
	Datum		values[] = {
		Int16GetDatum(model->id),
		CStringGetTextDatum(pos_key_string(local, model->local_int))
	};

	if (pos_store_execute("WITH gone AS (DELETE FROM @.synchronize_quarantine"
						  " WHERE direction = 'push' AND reason = 'conflict'"
						  " AND txid IS NOT NULL"
						  " AND model = $1 AND local_key = $2"
						  " AND discarded_at IS NULL RETURNING id)"
						  " DELETE FROM @.synchronize_held h USING gone g"
						  " WHERE h.quarantine = g.id RETURNING 1",
						  2, types, values, NULL) > 0)
		pos_quarantine_retry_dependent();
}

/*
 * Puts a transaction into quarantine with the error that the remote, or our
 * own check, raised about it, in the name of the row at fault or else of the
 * first one.  A pull that asks may have been faster and hold it already.
 */
void
pos_quarantine_hold(PosRun *run, Datum txid, ErrorData *error,
					PosCulprit *culprit)
{
	Oid			types[] = {
		INT8OID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, INT4OID, INT2ARRAYOID,
		INT2OID, TEXTOID, TEXTARRAYOID
	};
	Datum		values[10];
	char		nulls[11] = "          ";
	const char *reason = "error";

	if (error->sqlerrcode == ERRCODE_TRIGGERED_ACTION_EXCEPTION)
		reason = "dependency";
	else if (error->sqlerrcode == ERRCODE_CARDINALITY_VIOLATION)
		reason = "ambiguous";
	else if (error->sqlerrcode == ERRCODE_TRIGGERED_DATA_CHANGE_VIOLATION &&
			 culprit->model != 0)
		reason = "conflict";
	values[0] = txid;
	values[1] = CStringGetTextDatum(reason);
	values[2] = CStringGetTextDatum(error->message);
	values[3] = CStringGetTextDatum(unpack_sql_state(error->sqlerrcode));
	nulls[4] = error->detail == NULL ? 'n' : ' ';
	if (error->detail != NULL)
		values[4] = CStringGetTextDatum(error->detail);
	values[5] = Int32GetDatum(run->id);
	values[6] = pos_config_ids(run->tree->models);
	memset(nulls + 7, 'n', 3);
	if (culprit->model != 0)
	{
		int			n = list_length(culprit->candidates);
		Datum	   *keys = palloc(Max(n, 1) * sizeof(Datum));

		for (int i = 0; i < n; i++)
			keys[i] = CStringGetTextDatum(list_nth(culprit->candidates, i));
		values[7] = Int16GetDatum(culprit->model);
		values[8] = CStringGetTextDatum(culprit->key);
		values[9] = PointerGetDatum(construct_array(keys, n, TEXTOID, -1, false,
													TYPALIGN_INT));
		memset(nulls + 7, ' ', 3);
	}
	pos_store_execute("WITH entry AS (SELECT coalesce($8, model) AS model,"
					  " coalesce($9, local_key::text, local_key_text) AS key,"
					  " image::jsonb AS image,"
					  " (SELECT id FROM @.synchronize_quarantine"
					  " WHERE txid = $1 AND direction = 'push'"
					  " AND model = ANY ($7) AND discarded_at IS NULL) AS old"
					  " FROM @.synchronize_queue WHERE txid = $1"
					  " AND model = ANY ($7) AND NOT EXISTS"
					  " (SELECT 1 FROM @.synchronize_held h WHERE h.txid = $1)"
					  " ORDER BY id LIMIT 1),"
					  " again AS (UPDATE @.synchronize_quarantine q"
					  " SET model = e.model, local_key = e.key, reason = $2,"
					  " message = $3, sqlstate = $4, detail = $5,"
					  " candidates = $10, row_image = e.image, run = $6,"
					  " attempts = attempts + 1,"
					  " retry_at = clock_timestamp() + least('1 hour',"
					  " '1 minute'::interval * 2 ^ least(attempts, 10))"
					  " FROM entry e WHERE q.id = e.old RETURNING q.id),"
					  " new AS (INSERT INTO @.synchronize_quarantine"
					  " (model, direction, local_key, txid, reason, message,"
					  " sqlstate, detail, candidates, row_image, run, retry_at)"
					  " SELECT model, 'push', key, $1, $2, $3, $4, $5, $10,"
					  " image, $6, clock_timestamp() + '1 minute'"
					  " FROM entry WHERE old IS NULL RETURNING id)"
					  " INSERT INTO @.synchronize_held"
					  " (txid, id, model, local_key, quarantine)"
					  " SELECT q.txid, q.id, q.model,"
					  " coalesce(q.local_key::text, q.local_key_text), e.id"
					  " FROM (SELECT id FROM again UNION ALL SELECT id FROM new) e,"
					  " @.synchronize_queue q"
					  " WHERE q.txid = $1 AND q.model = ANY ($7)"
					  " ON CONFLICT DO NOTHING",
					  10, types, values, nulls);
}

/*
 * Lets held transactions go whose time has come to be tried again, and with
 * them all that wait because others do.  Their entries stay until they have
 * arrived.  Returns whether there are any.
 */
bool
pos_quarantine_release_due(PosRun *run)
{
	Oid			types[] = {INT2ARRAYOID, INT8OID, INT8OID};
	Datum		values[] = {
		pos_config_ids(run->tree->models), Int64GetDatum(run->whole->first),
		Int64GetDatum(run->whole->last)
	};

	return pos_store_execute_as(POS_PLAN_LOOK_UP,
								"DELETE FROM @.synchronize_held h"
								" USING @.synchronize_quarantine q"
								" WHERE h.txid BETWEEN $2 AND $3"
								" AND q.id = h.quarantine AND q.model = ANY ($1)"
								" AND (q.retry_at <= clock_timestamp()"
								" OR q.reason = 'dependency') AND EXISTS"
								" (SELECT 1 FROM @.synchronize_held o"
								" JOIN @.synchronize_quarantine p"
								" ON p.id = o.quarantine"
								" WHERE o.txid BETWEEN $2 AND $3"
								" AND p.model = ANY ($1)"
								" AND p.retry_at <= clock_timestamp())",
								3, types, values, NULL) > 0;
}

/* Forgets what was said of transactions that have arrived. */
void
pos_quarantine_arrived(PosRun *run, int ntxids, Datum *txids)
{
	Oid			types[] = {INT8ARRAYOID, INT2ARRAYOID};
	Datum		values[] = {
		pos_batch_txids(ntxids, txids),
		pos_config_ids(run->tree->models)
	};

	pos_store_execute_as(POS_PLAN_LOOK_UP, "DELETE FROM @.synchronize_quarantine"
						 " WHERE direction = 'push' AND txid = ANY ($1)"
						 " AND model = ANY ($2) AND discarded_at IS NULL",
						 2, types, values, NULL);
}
