/*
 * log.c
 *		The change log of a master: which rows were written by which transaction.
 *
 * A trigger notes the keys of rows that are inserted, updated or deleted; before
 * the commit they become one row of synchronize_log for each table, with the
 * number of the transaction.  Whoever read the table in some snapshot has to read
 * again, or finds deleted, what transactions did that are not visible in that.
 *
 * A key may be noted without need, as when the subtransaction that wrote the row is
 * rolled back: then the row is read again and has not changed.  What it must not
 * is to be missing.
 *
 * Old entries are taken away by those who write new ones, a few at a time.
 */
#include "possync.h"

#include "access/genam.h"
#include "access/table.h"
#include "access/transam.h"
#include "access/xact.h"
#include "bulk.h"
#include "catalog/partition.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "common/pg_prng.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "model.h"
#include "store.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/xid8.h"

PG_FUNCTION_INFO_V1(possync_log_change);

/*
 * Keys of one table in one entry.  More wait for the commit only in subtransactions,
 * whose rollback would take an entry with it, and all that is in that; if it becomes
 * too many, the entry says that nobody knows which.
 */
#define ENTRY_KEYS		8192
#define MOST_KEYS		(64 * ENTRY_KEYS)

/* One transaction in so many looks for old entries, and takes away so many */
#define TRIM_CHANCE		256
#define TRIM_ENTRIES	1024

enum
{
	LOG_XID, LOG_RELATION, LOG_KEYS, LOG_KEYS_TEXT, LOG_AT, LOG_NCOLUMNS
};

/* What is noted of a table in the current transaction */
typedef struct Noted
{
	Oid			relation;		/* of partitions: the root */
	Oid			schema;			/* of the extension */
	bool		integer;
	bool		truncated;
	int			nkeys;
	int			maxkeys;
	Datum	   *keys;
	struct Noted *next;
} Noted;

/* In the current transaction's memory */
static Noted *all_noted = NULL;

/* What a trigger has to know, for one statement */
typedef struct LogTrigger
{
	Oid			relation;
	Oid			schema;			/* of the extension */
	bool		unknown;		/* nobody knows the keys */
	bool		integer;
	int			nkey;
	AttrNumber	key[INDEX_MAX_KEYS];
	Oid			types[INDEX_MAX_KEYS];
} LogTrigger;

static int
compare_integers(const void *a, const void *b)
{
	int64		x = *(const int64 *) a;
	int64		y = *(const int64 *) b;

	return x < y ? -1 : x > y;
}

/* Sorts integer keys and takes those out that are there twice. */
static void
make_unique(Noted *noted)
{
	int			n = 0;

	if (!noted->integer || noted->nkeys < 2)
		return;
	qsort(noted->keys, noted->nkeys, sizeof(Datum), compare_integers);
	for (int i = 0; i < noted->nkeys; i++)
		if (i == 0 || noted->keys[i] != noted->keys[n - 1])
			noted->keys[n++] = noted->keys[i];
	noted->nkeys = n;
}

/* Writes what is noted of a table, and forgets it. */
static void
write_noted(Noted *noted)
{
	Relation	log = try_table_open(get_relname_relid("synchronize_log", noted->schema),
									 RowExclusiveLock);
	Datum		values[LOG_NCOLUMNS];
	bool		nulls[LOG_NCOLUMNS] = {false};
	bool		read_only = XactReadOnly;
	PosBulk    *bulk;

	if (log == NULL)
		return;
	XactReadOnly = false;		/* it may have become so after it wrote */
	make_unique(noted);
	values[LOG_XID] = FullTransactionIdGetDatum(GetTopFullTransactionId());
	values[LOG_RELATION] = ObjectIdGetDatum(noted->relation);
	values[LOG_AT] = TimestampTzGetDatum(GetCurrentTransactionStartTimestamp());
	nulls[LOG_KEYS] = noted->truncated || !noted->integer;
	nulls[LOG_KEYS_TEXT] = noted->truncated || noted->integer;
	if (!nulls[LOG_KEYS])
		values[LOG_KEYS] = PointerGetDatum(construct_array(noted->keys, noted->nkeys,
														   INT8OID, 8, true, TYPALIGN_DOUBLE));
	if (!nulls[LOG_KEYS_TEXT])
		values[LOG_KEYS_TEXT] = PointerGetDatum(construct_array(noted->keys, noted->nkeys,
																TEXTOID, -1, false, TYPALIGN_INT));
	bulk = pos_bulk_open(log, 0, NULL);
	(void) pos_bulk_put(bulk, values, nulls);
	pos_bulk_flush(bulk);
	pos_bulk_close(bulk);
	XactReadOnly = read_only;
	table_close(log, NoLock);
	noted->truncated = false;
}

/* Forgets the keys that are noted of a table. */
static void
forget_keys(Noted *noted)
{
	if (!noted->integer)
		for (int i = 0; i < noted->nkeys; i++)
			pfree(DatumGetPointer(noted->keys[i]));
	noted->nkeys = 0;
}

/*
 * Takes some old entries away.  Nobody waits for anybody: one at a time does so,
 * and others' entries are passed over.
 */
static void
trim(Oid schema)
{
	Oid			types[] = {INT4OID, INT4OID};
	Datum		values[] = {Int32GetDatum(pos_log_keep), Int32GetDatum(TRIM_ENTRIES)};

	if (pos_log_keep < 0 || IsolationUsesXactSnapshot() || XactReadOnly ||
		!OidIsValid(get_relname_relid("synchronize_model", schema)))
		return;
	pos_store_init_schema(schema);
	PushActiveSnapshot(GetTransactionSnapshot());
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	pos_store_execute("WITH old AS (SELECT relation, xid, ctid FROM @.synchronize_log"
					  " WHERE (SELECT pg_try_advisory_xact_lock(hashtextextended('possync_log', 0)))"
					  " AND logged_at < now() - make_interval(mins => $1)"
					  " LIMIT $2 FOR UPDATE SKIP LOCKED),"
					  " gone AS (DELETE FROM @.synchronize_log l USING old o"
					  " WHERE l.ctid = o.ctid AND l.xid = o.xid AND l.relation = o.relation"
					  " RETURNING l.relation, l.xid)"
					  " INSERT INTO @.synchronize_trimmed AS t"
					  " SELECT relation, max(xid::text::int8)::text::xid8 FROM gone GROUP BY relation"
					  " ON CONFLICT (relation) DO UPDATE SET xid = EXCLUDED.xid"
					  " WHERE t.xid < EXCLUDED.xid",
					  2, types, values, NULL);
	SPI_finish();
	PopActiveSnapshot();
}

/* Called at the end of a transaction. */
static void
transaction_event(XactEvent event, void *arg)
{
	switch (event)
	{
		case XACT_EVENT_PRE_COMMIT:
		case XACT_EVENT_PRE_PREPARE:
			for (Noted *noted = all_noted; noted != NULL; noted = noted->next)
				if (noted->nkeys > 0 || noted->truncated)
				{
					write_noted(noted);
					forget_keys(noted);
				}
			if (all_noted != NULL && event == XACT_EVENT_PRE_COMMIT &&
				pg_prng_uint64_range(&pg_global_prng_state, 1, TRIM_CHANCE) == 1)
				trim(all_noted->schema);
			break;
		case XACT_EVENT_COMMIT:
		case XACT_EVENT_PREPARE:
		case XACT_EVENT_ABORT:
			all_noted = NULL;	/* goes with the transaction's memory */
			break;
		default:
			break;
	}
}

/* Returns what is noted of a table. */
static Noted *
get_noted(Oid relation, bool integer, Oid schema)
{
	static bool registered = false;
	Noted	   *noted = all_noted;

	while (noted != NULL && (noted->relation != relation ||
							 noted->integer != integer || noted->schema != schema))
		noted = noted->next;
	if (noted != NULL)
		return noted;
	if (!registered)
		RegisterXactCallback(transaction_event, NULL);
	registered = true;
	noted = MemoryContextAllocZero(TopTransactionContext, sizeof(Noted));
	noted->relation = relation;
	noted->schema = schema;
	noted->integer = integer;
	noted->next = all_noted;
	all_noted = noted;
	return noted;
}

/* Reads the key of a row.  Returns false if nobody can have read the row by it. */
static bool
read_key(LogTrigger *state, TupleTableSlot *slot, Datum *key)
{
	Datum		values[INDEX_MAX_KEYS];

	for (int i = 0; i < state->nkey; i++)
	{
		bool		isnull;

		values[i] = slot_getattr(slot, state->key[i], &isnull);
		if (isnull)
			return false;
	}
	*key = state->integer ? pos_key_from_integer(state->types[0], values[0]) :
		pos_key_from_values(state->nkey, state->types, values);
	return true;
}

/* Notes a key. */
static void
note(LogTrigger *state, Datum key)
{
	Noted	   *noted = get_noted(state->relation, state->integer, state->schema);
	MemoryContext old;

	if (noted->truncated)
		return;
	if (noted->nkeys == noted->maxkeys)
	{
		Size		size;

		noted->maxkeys = Max(2 * noted->maxkeys, 32);
		size = noted->maxkeys * sizeof(Datum);
		noted->keys = noted->keys == NULL ?
			MemoryContextAlloc(TopTransactionContext, size) :
			repalloc(noted->keys, size);
	}
	old = MemoryContextSwitchTo(TopTransactionContext);
	noted->keys[noted->nkeys++] = state->integer ? key :
		PointerGetDatum(PG_DETOAST_DATUM_COPY(key));
	MemoryContextSwitchTo(old);
	if (noted->nkeys < ENTRY_KEYS)
		return;
	if (GetCurrentTransactionNestLevel() == 1)
		write_noted(noted);
	else if (noted->nkeys < MOST_KEYS)
		return;
	else
		noted->truncated = true;
	forget_keys(noted);
}

/* Makes ready for the rows of one statement. */
static LogTrigger *
prepare(FunctionCallInfo fcinfo, TriggerData *trigger)
{
	Relation	rel = trigger->tg_relation;
	LogTrigger *state = MemoryContextAllocZero(fcinfo->flinfo->fn_mcxt,
											   sizeof(LogTrigger));

	state->relation = rel->rd_rel->relispartition ?
		llast_oid(get_partition_ancestors(RelationGetRelid(rel))) :
		RelationGetRelid(rel);
	state->schema = get_func_namespace(fcinfo->flinfo->fn_oid);
	state->nkey = trigger->tg_trigger->tgnargs;
	if (state->nkey < 1 || state->nkey > INDEX_MAX_KEYS)
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("possync_log_change needs the names of key columns"),
				 errhint("possync_log creates the trigger.")));
	for (int i = 0; i < state->nkey; i++)
	{
		char	   *name = trigger->tg_trigger->tgargs[i];

		state->key[i] = get_attnum(RelationGetRelid(rel), name);
		if (state->key[i] <= 0)
		{
			/* the master's own work goes on */
			ereport(WARNING,
					(errcode(ERRCODE_UNDEFINED_COLUMN),
					 errmsg("key column \"%s\" of logged table \"%s\" does not exist any more",
							name, RelationGetRelationName(rel)),
					 errhint("Call possync_log again.")));
			state->unknown = true;
			break;
		}
		state->types[i] = getBaseType(TupleDescAttr(RelationGetDescr(rel),
													state->key[i] - 1)->atttypid);
	}
	state->integer = !state->unknown && state->nkey == 1 &&
		pos_key_is_integer(state->types[0]);
	fcinfo->flinfo->fn_extra = state;
	return state;
}

/*
 * possync_log_change(key column, ...) returns trigger
 *
 * AFTER trigger of logged tables, made by possync_log: for rows, and for TRUNCATE.
 */
Datum
possync_log_change(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;
	LogTrigger *state = fcinfo->flinfo->fn_extra;

	if (!CALLED_AS_TRIGGER(fcinfo) || !TRIGGER_FIRED_AFTER(trigger->tg_event))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("possync_log_change is an AFTER trigger")));
	if (state == NULL)
		state = prepare(fcinfo, trigger);
	if (state->unknown || TRIGGER_FIRED_BY_TRUNCATE(trigger->tg_event))
	{
		Noted	   *noted = get_noted(state->relation, state->integer, state->schema);

		noted->truncated = true;
		forget_keys(noted);
	}
	else
	{
		Datum		key;
		Datum		new;
		bool		known = read_key(state, trigger->tg_trigslot, &key);

		if (known)
			note(state, key);
		if (TRIGGER_FIRED_BY_UPDATE(trigger->tg_event) &&
			read_key(state, trigger->tg_newslot, &new) &&
			!(known && state->integer && key == new))
			note(state, new);
	}
	PG_RETURN_POINTER(NULL);
}
