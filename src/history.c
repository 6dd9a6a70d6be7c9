/*
 * history.c
 *		What a run leaves behind: its row of synchronize_history, and positions.
 *
 * The row is written once, at the end, in the transaction of the run.  A
 * position is moved only when the run wrote something for its model, or when
 * moving it spares the next run a read; a run that found nothing to do writes
 * nothing but history.  Of a table that has nothing to tell changes by it is kept
 * which source it was read from.
 */
#include "possync.h"

#include "catalog/pg_type.h"
#include "commands/sequence.h"
#include "funcapi.h"
#include "run.h"
#include "store.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/json.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"
#include "utils/typcache.h"

/* Reserves the number of a run. */
int32
pos_history_next_id(void)
{
	return (int32) nextval_internal(pos_store_relid("synchronize_history_id_seq"),
									false);
}

static bool
wrote_something(PosModel *model)
{
	return model->counts.created + model->counts.matched +
		model->counts.updated + model->counts.deleted +
		model->counts.left_out > 0;
}

/* Stores the positions reached. */
void
pos_history_positions(PosRun *run)
{
	Oid			types[] = {INT2OID, TEXTOID, TEXTOID, INT4OID};
	ListCell   *lc;

	foreach(lc, run->tree->models)
	{
		PosModel   *model = lfirst(lc);
		PosTable   *table = &model->table;
		Datum		values[4];

		bool		same = model->source != NULL &&
		strcmp(model->source, run->snapshot.source) == 0;

		if (!table->changed || table->limit > 0 ||
			(model->unfinished && table->logged))
			continue;
		if (table->next_position == NULL && model->loaded_to == NULL && same)
			continue;
		if (model->position != NULL && same && !wrote_something(model) &&
			!table->settled)
			continue;
		values[0] = Int16GetDatum(model->id);
		values[1] = CStringGetTextDatum(table->next_position == NULL ? "" :
										table->next_position);
		values[2] = CStringGetTextDatum(run->snapshot.source);
		values[3] = Int32GetDatum(run->id);
		pos_store_execute("INSERT INTO @.synchronize_position"
						  " (model, position, source, run)"
						  " VALUES ($1, $2, $3, $4)"
						  " ON CONFLICT (model) DO UPDATE SET"
						  " position = EXCLUDED.position,"
						  " source = EXCLUDED.source, run = EXCLUDED.run,"
						  " loaded_to = NULL, compared_at ="
						  " CASE WHEN synchronize_position.source = EXCLUDED.source"
						  " THEN synchronize_position.compared_at END",
						  4, types, values, NULL);
	}
}

/* Returns counts, time and position of every model, as the text of JSON. */
static char *
models_json(PosRun *run, bool failed, PosCounts *total)
{
	static const char *const exact[] = {
		[POS_EXACT_OVERLAP] = "overlap",
		[POS_EXACT_RUNNING] = "running transactions",
		[POS_EXACT_COMPARED] = "comparison",
		[POS_EXACT_LOG] = "log"
	};
	StringInfoData buf;
	ListCell   *lc;

	memset(total, 0, sizeof(PosCounts));
	initStringInfo(&buf);
	appendStringInfoChar(&buf, '{');
	if (run->tree != NULL)
		foreach(lc, run->tree->models)
	{
		PosModel   *model = lfirst(lc);
		PosCounts  *c = &model->counts;

		/* what a failed run had done is undone */
		if (failed)
			c->created = c->matched = c->updated = c->deleted = c->unchanged =
				c->left_out = 0;
		total->read += c->read;
		total->created += c->created;
		total->matched += c->matched;
		total->updated += c->updated;
		total->deleted += c->deleted;
		total->unchanged += c->unchanged;
		total->left_out += c->left_out;
		if (model->on_unknown == POS_IGNORE)
			continue;
		if (buf.len > 1)
			appendStringInfoString(&buf, ", ");
		escape_json(&buf, model->name);
		appendStringInfo(&buf, ": {\"read\": " INT64_FORMAT
						 ", \"created\": " INT64_FORMAT
						 ", \"matched\": " INT64_FORMAT
						 ", \"updated\": " INT64_FORMAT
						 ", \"deleted\": " INT64_FORMAT
						 ", \"unchanged\": " INT64_FORMAT
						 ", \"left_out\": " INT64_FORMAT
						 ", \"milliseconds\": %.3f",
						 c->read, c->created, c->matched, c->updated,
						 c->deleted, c->unchanged, c->left_out, model->milliseconds);
		if (run->has_snapshot)
			appendStringInfo(&buf, ", \"exact_by\": \"%s\"", exact[model->table.exact]);
		if (model->table.next_position != NULL)
		{
			appendStringInfoString(&buf, ", \"position\": ");
			escape_json(&buf, model->table.next_position);
		}
		appendStringInfoChar(&buf, '}');
	}
	appendStringInfoChar(&buf, '}');
	return buf.data;
}

/*
 * Whether a run that found nothing may be noted in the row of the one before
 * that found nothing, too: set by processes that do little else all day.
 */
bool		pos_history_merge_idle = false;

/* How long one row of history may stand for runs that found nothing, in ms */
#define IDLE_MS			(60 * 60 * 1000)

/* The last run of this process that found nothing, of each model */
typedef struct Idle
{
	char		model[NAMEDATALEN * 2]; /* hash key; longer names do without */
	int32		run;
	TimestampTz since;
} Idle;

static HTAB *idles = NULL;

/*
 * The row of history, and where its values come from: in the order of the table's
 * columns, since that of a dry run is only selected.
 */
#define ROW_COLUMNS \
	"id, model, server, direction, status, started_at, finished_at," \
	" rows_read, rows_created, rows_matched, rows_updated, rows_deleted," \
	" rows_unchanged," \
	" rows_left_out, bytes_received, position, clock_offset, models, error," \
	" sqlstate, error_detail, error_hint, error_context, runs"
#define ROW_VALUES \
	"$1 AS id, $2 AS model, $3 AS server, $4 AS direction, $5 AS status," \
	" $6 AS started_at, $7 AS finished_at, $8 AS rows_read," \
	" $9 AS rows_created, $10 AS rows_matched, $11 AS rows_updated," \
	" $23 AS rows_deleted," \
	" $12 AS rows_unchanged, $13 AS rows_left_out, $14 AS bytes_received," \
	" $15 AS position, $22 * interval '1 microsecond' AS clock_offset," \
	" $16::jsonb AS models, $17 AS error, $18 AS sqlstate," \
	" $19 AS error_detail, $20 AS error_hint, $21 AS error_context, 1 AS runs"

#define SET_TEXT(i, string) \
	do { \
		nulls[i] = (string) == NULL ? 'n' : ' '; \
		if ((string) != NULL) \
			values[i] = CStringGetTextDatum(string); \
	} while (0)

/* Whether a run found nothing, and nothing has to be said of it. */
static bool
is_idle(PosRun *run, PosCounts *total, ErrorData *error)
{
	return error == NULL && !run->dry &&
		total->read + total->deleted + total->left_out == 0;
}

/* Returns what is remembered of a model, or room for it. */
static Idle *
find_idle(const char *model, bool *found)
{
	HASHCTL		control = {.keysize = sizeof(((Idle *) NULL)->model),
	.entrysize = sizeof(Idle)};

	if (idles == NULL)
		idles = hash_create("possync idle runs", 16, &control,
							HASH_ELEM | HASH_STRINGS);
	return hash_search(idles, model, HASH_ENTER, found);
}

/*
 * Notes a run that found nothing in the row of the last one that did.  Returns
 * false if there is none.
 */
static bool
merge_idle(PosRun *run, const char *model, TimestampTz started)
{
	Oid			types[] = {INT4OID, TIMESTAMPTZOID, INT8OID, INT8OID};
	Datum		values[4];
	char		nulls[5] = "    ";
	Idle	   *idle;
	bool		found;

	if (!pos_history_merge_idle || strlen(model) >= sizeof(idle->model))
		return false;
	idle = find_idle(model, &found);
	if (found && !TimestampDifferenceExceeds(idle->since, started, IDLE_MS))
	{
		values[0] = Int32GetDatum(idle->run);
		values[1] = TimestampTzGetDatum(run->snapshot.complete);
		nulls[1] = run->has_snapshot ? ' ' : 'n';
		values[2] = Int64GetDatum((int64) run->received);
		values[3] = Int64GetDatum(run->snapshot.offset);
		nulls[3] = nulls[1];
		if (pos_store_execute("UPDATE @.synchronize_history"
							  " SET runs = runs + 1, position = $2,"
							  " clock_offset = $4 * interval '1 microsecond',"
							  " finished_at = pg_catalog.clock_timestamp(),"
							  " bytes_received = bytes_received + $3"
							  " WHERE id = $1 AND NOT EXISTS"
							  " (SELECT 1 FROM @.synchronize_history n"
							  " WHERE n.model = synchronize_history.model"
							  " AND n.direction = 'pull' AND n.id > $1)"
							  " RETURNING *", 4, types, values, nulls) == 1)
			return true;
	}
	idle->run = run->id;
	idle->since = started;
	return false;
}

/*
 * Warns if the source's clock is far from ours.  Nothing here depends on ours, but
 * what the user's own tables say may.
 */
static void
check_clock(PosRun *run)
{
	int64		seconds = run->snapshot.offset / USECS_PER_SEC;

	if (!run->has_snapshot || pos_clock_offset_max < 0 ||
		llabs(run->snapshot.offset) <= pos_clock_offset_max * USECS_PER_SEC)
		return;
	ereport(WARNING,
			(seconds >= 0 ?
			 errmsg("the clock of server \"%s\" is " INT64_FORMAT " seconds ahead of ours",
					run->tree->server, seconds) :
			 errmsg("the clock of server \"%s\" is " INT64_FORMAT " seconds behind ours",
					run->tree->server, -seconds),
			 errdetail("One of the two is wrong. Synchronization does not depend on it.")));
}

/*
 * Writes the row of a finished run and returns it as a composite value, in
 * the memory context that was current before SPI was connected.  error is
 * that of a failed run, or NULL.  A dry run's row is only returned.
 */
Datum
pos_history_record(PosRun *run, const char *model, TimestampTz started,
				   ErrorData *error)
{
	static Oid	types[] = {
		INT4OID, TEXTOID, NAMEOID, TEXTOID, TEXTOID, TIMESTAMPTZOID,
		TIMESTAMPTZOID, INT8OID, INT8OID, INT8OID, INT8OID, INT8OID, INT8OID,
		INT8OID, TIMESTAMPTZOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID,
		TEXTOID, INT8OID, INT8OID
	};
	Datum		values[23] = {0};
	char		nulls[24];
	PosCounts	total;
	char	   *models = models_json(run, error != NULL, &total);
	TupleDesc	desc;

	memset(nulls, ' ', sizeof(nulls));
	nulls[23] = '\0';
	values[0] = Int32GetDatum(run->id);
	nulls[0] = run->dry ? 'n' : ' ';
	SET_TEXT(1, model);
	values[2] = DirectFunctionCall1(namein, CStringGetDatum(run->tree ? run->tree->server : ""));
	SET_TEXT(3, "pull");
	SET_TEXT(4, error != NULL ? "failed" : run->dry ? "dry run" : "ok");
	values[5] = TimestampTzGetDatum(started);
	values[6] = TimestampTzGetDatum(GetCurrentTimestamp());
	values[7] = Int64GetDatum(total.read);
	values[8] = Int64GetDatum(total.created);
	values[9] = Int64GetDatum(total.matched);
	values[10] = Int64GetDatum(total.updated);
	values[11] = Int64GetDatum(total.unchanged);
	values[12] = Int64GetDatum(total.left_out);
	values[13] = Int64GetDatum((int64) run->received);
	values[14] = TimestampTzGetDatum(run->snapshot.complete);
	nulls[14] = run->has_snapshot && error == NULL && !run->more ? ' ' : 'n';
	SET_TEXT(15, models);
	SET_TEXT(16, error ? error->message : NULL);
	SET_TEXT(17, error ? unpack_sql_state(error->sqlerrcode) : NULL);
	SET_TEXT(18, error ? error->detail : NULL);
	SET_TEXT(19, error ? error->hint : NULL);
	SET_TEXT(20, error ? error->context : NULL);
	values[21] = Int64GetDatum(run->snapshot.offset);
	nulls[21] = run->has_snapshot ? ' ' : 'n';
	values[22] = Int64GetDatum(total.deleted);

	if (!is_idle(run, &total, error) || !merge_idle(run, model, started))
	{
		check_clock(run);
		pos_store_execute(run->dry ? "SELECT " ROW_VALUES :
						  "INSERT INTO @.synchronize_history (" ROW_COLUMNS ")"
						  " OVERRIDING SYSTEM VALUE SELECT " ROW_VALUES
						  " RETURNING *", 23, types, values, nulls);
	}

	/* as of the table's own type, not a record that only this session knows */
	desc = lookup_rowtype_tupdesc_copy(get_rel_type_id(pos_store_relid("synchronize_history")),
									   -1);
	return PointerGetDatum(SPI_returntuple(SPI_tuptable->vals[0], desc));
}
