/*
 * resolve.c
 *		What a person decides about rows in quarantine.
 *
 * Whoever owns the local table may decide about its rows.
 */
#include "possync.h"

#include "catalog/pg_type.h"
#include "compat.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "run.h"
#include "spool.h"
#include "store.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"

/* An entry of synchronize_quarantine */
typedef struct Entry
{
	int64		id;
	int16		model;
	Oid			relid;
	bool		push;
	char	   *reason;
	char	   *key;			/* of the row that was to be sent or taken */
	bool		offered;		/* the candidate is one of the entry's */
} Entry;

PG_FUNCTION_INFO_V1(possync_retry);
PG_FUNCTION_INFO_V1(possync_resolve);
PG_FUNCTION_INFO_V1(possync_discard);

/*
 * Reads an entry.  candidate may be NULL.  Errors if there is no such entry, it
 * was discarded, or the caller does not own the table.
 */
static Entry
read_entry(int64 id, const char *candidate)
{
	Oid			types[] = {INT8OID, TEXTOID};
	Datum		values[2] = {Int64GetDatum(id)};
	Entry		entry = {.id = id};
	HeapTuple	tuple;
	TupleDesc	desc;
	bool		isnull;

	values[1] = CStringGetTextDatum(candidate == NULL ? "" : candidate);
	if (pos_store_execute("SELECT q.model, m.relation::oid,"
						  " q.direction = 'push', q.reason,"
						  " CASE q.direction WHEN 'push' THEN q.local_key"
						  " ELSE q.remote_key END,"
						  " coalesce($2 = ANY (q.candidates), false)"
						  " FROM @.synchronize_quarantine q"
						  " JOIN @.synchronize_model m ON m.id = q.model"
						  " WHERE q.id = $1 AND q.discarded_at IS NULL",
						  2, types, values, NULL) != 1)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("there is no entry " INT64_FORMAT " in quarantine", id)));
	tuple = SPI_tuptable->vals[0];
	desc = SPI_tuptable->tupdesc;
	entry.model = DatumGetInt16(SPI_getbinval(tuple, desc, 1, &isnull));
	entry.relid = DatumGetObjectId(SPI_getbinval(tuple, desc, 2, &isnull));
	entry.push = DatumGetBool(SPI_getbinval(tuple, desc, 3, &isnull));
	entry.reason = SPI_getvalue(tuple, desc, 4);
	entry.key = SPI_getvalue(tuple, desc, 5);
	entry.offered = DatumGetBool(SPI_getbinval(tuple, desc, 6, &isnull));
	if (!pos_compat_owns_table(entry.relid, GetUserId()))
		aclcheck_error(ACLCHECK_NOT_OWNER, OBJECT_TABLE,
					   get_rel_name(entry.relid));
	return entry;
}

static void
begin(FunctionCallInfo fcinfo)
{
	pos_store_init(fcinfo->flinfo->fn_oid);
	pos_spool_write();
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
}

/* Forgets an entry, and that anything waits for it. */
static void
release(Entry *entry)
{
	Oid			types[] = {INT8OID};
	Datum		values[] = {Int64GetDatum(entry->id)};

	if (entry->push)
		pos_quarantine_retry_dependent();
	pos_store_execute("DELETE FROM @.synchronize_held WHERE quarantine = $1",
					  1, types, values, NULL);
	pos_store_execute("DELETE FROM @.synchronize_quarantine WHERE id = $1",
					  1, types, values, NULL);
}

/*
 * Makes the transaction that waits for an entry due.  It is the next push that lets it
 * go: one that is at work may have passed it, and would send later ones before it.
 * What a pull has found in conflict is none of a transaction, and no push will say that
 * it has arrived.
 */
static void
make_due(Entry *entry)
{
	Oid			types[] = {INT8OID};
	Datum		values[] = {Int64GetDatum(entry->id)};

	if (pos_store_execute("UPDATE @.synchronize_quarantine"
						  " SET retry_at = clock_timestamp()"
						  " WHERE id = $1 AND txid IS NOT NULL RETURNING 1",
						  1, types, values, NULL) == 0)
		release(entry);
}

/*
 * Makes all transactions due that wait because the row of an entry is ambiguous:
 * it is so no more.
 */
static void
make_row_due(Entry *entry)
{
	Oid			types[] = {INT2OID, TEXTOID};
	Datum		values[2];

	values[0] = Int16GetDatum(entry->model);
	values[1] = CStringGetTextDatum(entry->key);
	pos_store_execute("UPDATE @.synchronize_quarantine SET retry_at = clock_timestamp()"
					  " WHERE direction = 'push' AND reason = 'ambiguous'"
					  " AND model = $1 AND local_key = $2"
					  " AND discarded_at IS NULL", 2, types, values, NULL);
}

/*
 * possync_retry(id bigint)
 *
 * The next push tries the transaction behind an entry again.  Pulls try theirs
 * every time, so that there is nothing to be done for them.
 */
Datum
possync_retry(PG_FUNCTION_ARGS)
{
	Entry		entry;

	begin(fcinfo);
	entry = read_entry(PG_GETARG_INT64(0), NULL);
	if (entry.push)
		make_due(&entry);
	else
		ereport(NOTICE,
				(errmsg("the next pull tries entry " INT64_FORMAT " again by itself",
						entry.id)));
	SPI_finish();
	PG_RETURN_VOID();
}

/* Whether a key is written as that of a single integer column is. */
static bool
is_integer_key(Entry *entry, bool remote)
{
	Oid			types[] = {INT2OID};
	Datum		values[] = {Int16GetDatum(entry->model)};
	bool		isnull;

	/* other rows of the model tell; else what the key looks like */
	if (pos_store_execute(remote ?
						  "SELECT remote_key IS NOT NULL"
						  " FROM @.synchronize_translation"
						  " WHERE model = $1 LIMIT 1" :
						  "SELECT a.atttypid IN ('int2'::regtype,"
						  " 'int4'::regtype, 'int8'::regtype)"
						  " AND cardinality(m.key_columns) = 1"
						  " FROM @.synchronize_model m JOIN pg_attribute a"
						  " ON a.attrelid = m.relation"
						  " AND a.attname = m.key_columns[1]"
						  " WHERE m.id = $1", 1, types, values, NULL) == 1)
		return DatumGetBool(SPI_getbinval(SPI_tuptable->vals[0],
										  SPI_tuptable->tupdesc, 1, &isnull));
	return true;
}

/*
 * Settles a conflict.  If the local row wins, the remote one as it was then is not
 * taken for a change again, or whatever it is if it was not read; else the queued
 * changes go.
 */
static void
settle_conflict(Entry *entry, bool local)
{
	Oid			types[] = {INT2OID, TEXTOID, INT8OID};
	Datum		values[3];

	values[0] = Int16GetDatum(entry->model);
	values[1] = CStringGetTextDatum(entry->key);
	values[2] = Int64GetDatum(entry->id);
	if (local)
		pos_store_execute("UPDATE @.synchronize_queue SET before ="
						  " (SELECT CASE WHEN txid IS NULL"
						  " THEN row_image -> 'remote' ELSE 'null' END::json"
						  " FROM @.synchronize_quarantine WHERE id = $3)"
						  " WHERE (txid, id) = (SELECT txid, id"
						  " FROM @.synchronize_queue WHERE model = $1"
						  " AND coalesce(local_key::text, local_key_text) = $2"
						  " ORDER BY txid, id LIMIT 1)",
						  3, types, values, NULL);
	else
		pos_store_execute("DELETE FROM @.synchronize_queue WHERE model = $1"
						  " AND coalesce(local_key::text, local_key_text) = $2",
						  2, types, values, NULL);
}

/*
 * possync_resolve(id bigint, candidate text)
 *
 * Links the row of an ambiguous entry with one of its candidates: a local key
 * where a pull was ambiguous, a remote one where a push was.  The candidates of
 * a conflict are "local" and "remote".
 */
Datum
possync_resolve(PG_FUNCTION_ARGS)
{
	char	   *candidate = text_to_cstring(PG_GETARG_TEXT_PP(1));
	Entry		entry;
	bool		remote_int;
	bool		local_int;
	Oid			types[] = {INT2OID, INT8OID, INT8OID, TEXTOID, TEXTOID};
	Datum		values[5];
	char		nulls[6] = "     ";
	char	   *remote;
	char	   *local;

	begin(fcinfo);
	entry = read_entry(PG_GETARG_INT64(0), candidate);
	if (!entry.offered)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("\"%s\" is not among the candidates of entry " INT64_FORMAT,
						candidate, entry.id),
				 errhint("The column candidates of synchronize_quarantine lists them.")));
	if (strcmp(entry.reason, "conflict") == 0)
	{
		settle_conflict(&entry, strcmp(candidate, "local") == 0);
		release(&entry);
		SPI_finish();
		PG_RETURN_VOID();
	}
	remote = entry.push ? candidate : entry.key;
	local = entry.push ? entry.key : candidate;
	remote_int = is_integer_key(&entry, true);
	local_int = is_integer_key(&entry, false);
	values[0] = Int16GetDatum(entry.model);
	if (remote_int)
		values[1] = pos_key_from_string(remote, true);
	if (local_int)
		values[2] = pos_key_from_string(local, true);
	values[3] = CStringGetTextDatum(remote);
	values[4] = CStringGetTextDatum(local);
	nulls[1] = remote_int ? ' ' : 'n';
	nulls[2] = local_int ? ' ' : 'n';
	nulls[3] = remote_int ? 'n' : ' ';
	nulls[4] = local_int ? 'n' : ' ';

	/* a key that it was given before the remote refused it is not needed */
	if (entry.push)
		pos_store_execute("DELETE FROM @.synchronize_translation t"
						  " USING @.synchronize_batch b"
						  " WHERE t.model = $1 AND t.run = b.id"
						  " AND (t.local_key = $3 OR t.local_key_text = $5)",
						  5, types, values, nulls);
	pos_store_execute("INSERT INTO @.synchronize_translation (model, decision,"
					  " run, remote_key, local_key, remote_key_text,"
					  " local_key_text) VALUES ($1, 'm', 0, $2, $3, $4, $5)",
					  5, types, values, nulls);
	if (entry.push)
		make_row_due(&entry);
	else
		release(&entry);
	SPI_finish();
	PG_RETURN_VOID();
}

/*
 * possync_discard(id bigint, because text)
 *
 * The transaction behind an entry is not pushed, the remote row is not taken.
 * The entry stays, with who gave it up, when and why.
 */
Datum
possync_discard(PG_FUNCTION_ARGS)
{
	Entry		entry;
	Oid			types[] = {INT8OID, NAMEOID, TEXTOID};
	Datum		values[3];

	begin(fcinfo);
	entry = read_entry(PG_GETARG_INT64(0), NULL);
	values[0] = Int64GetDatum(entry.id);
	values[1] = DirectFunctionCall1(namein, CStringGetDatum(GetUserNameFromId(GetUserId(), false)));
	values[2] = PG_GETARG_DATUM(1);
	pos_store_execute("DELETE FROM @.synchronize_queue q"
					  " USING @.synchronize_model m WHERE q.txid IN"
					  " (SELECT txid FROM @.synchronize_held WHERE quarantine = $1"
					  " UNION ALL SELECT txid FROM @.synchronize_quarantine"
					  " WHERE id = $1)"
					  " AND m.id = q.model AND m.server ="
					  " (SELECT o.server FROM @.synchronize_quarantine e"
					  " JOIN @.synchronize_model o ON o.id = e.model"
					  " WHERE e.id = $1)", 1, types, values, NULL);
	pos_store_execute("DELETE FROM @.synchronize_held WHERE quarantine = $1",
					  1, types, values, NULL);
	if (entry.push)
		pos_quarantine_retry_dependent();
	pos_store_execute("UPDATE @.synchronize_quarantine"
					  " SET discarded_at = pg_catalog.now(),"
					  " discarded_by = $2, discarded_because = $3"
					  " WHERE id = $1", 3, types, values, NULL);
	SPI_finish();
	PG_RETURN_VOID();
}
