/*
 * parts.c
 *		An initial load that is committed in parts.
 *
 * Scheduled pulls only: a pull that somebody calls is one transaction, and ends
 * a load that was begun in parts by reading everything.
 *
 * A part is the small tables that are not here yet and a stretch of a big one, in
 * the order of its remote keys; what depends on them waits.  The position kept
 * is that of the first part, so that the first pull after the load reads all that
 * has changed since.  A part that is lost is read again, and nothing else.
 */
#include "possync.h"

#include "catalog/pg_type.h"
#include "run.h"
#include "store.h"
#include "utils/builtins.h"

/* Whether pulls of this process may load in parts */
bool		pos_parts_allowed = false;

/* Whether the last pull of this process left something to be loaded. */
bool		pos_parts_more = false;

/* Whether a model has not been read to its end once. */
static bool
is_incomplete(PosModel *model)
{
	return model->loaded_to != NULL ||
		(!model->complete && !model->has_translations);
}

/* Does not read a model in this run. */
static void
leave_for_later(PosRun *run, PosModel *model)
{
	run->more = run->more || is_incomplete(model);
	model->table.changed = false;
	model->table.nretry = 0;
}

/* Reads a stretch of a model: from its beginning, or after the last one. */
static void
read_stretch(PosRun *run, PosModel *model)
{
	PosTable   *table = &model->table;
	Datum		parts[INDEX_MAX_KEYS];

	table->limit = run->part;
	table->nretry = 0;
	if (model->loaded_to != NULL &&
		strcmp(model->source, run->snapshot.source) != 0)
		model->loaded_to = NULL;	/* another master: from the beginning */
	if (model->loaded_to == NULL)
		return;
	table->after = palloc(model->nkey * sizeof(char *));
	parts[0] = CStringGetTextDatum(model->loaded_to);
	if (model->nkey > 1)
		pos_key_to_parts(parts[0], model->nkey, parts);
	for (int i = 0; i < model->nkey; i++)
		table->after[i] = TextDatumGetCString(parts[i]);
}

/*
 * Decides what a run reads of the tables that have been described, if it is to
 * load in parts.
 */
void
pos_parts_plan(PosRun *run)
{
	int64		left = run->part;
	ListCell   *lc;
	ListCell   *lc2;

	if (run->part == 0 ||
		(run->connection->ops->capabilities & POS_CAP_PARTS) == 0)
		return;
	foreach(lc, run->tree->components)
	{
		PosComponent *component = lfirst(lc);

		foreach(lc2, component->models)
		{
			PosModel   *model = lfirst(lc2);
			PosTable   *table = &model->table;

			if (!table->changed)
				continue;
			if (left < run->part / 2 && linitial(component->models) == model)
				left = -1;		/* this one and all that follow */
			if (left < 0)
				leave_for_later(run, model);
			else if (!is_incomplete(model))
				continue;
			else if (component->inner)
				left = 0;		/* its rows need each other */
			else if (model->loaded_to == NULL && table->rows >= 0 &&
					 table->rows <= left)
				left -= table->rows;
			else
			{
				read_stretch(run, model);
				left = 0;
			}
		}
	}
}

/* Remembers how far the stretch of a model has come, if this is one. */
void
pos_parts_key(PosRun *run, PosModel *model, Datum *wire)
{
	Datum		key;

	if (model->table.limit == 0)
		return;
	key = model->nkey == 1 ? wire[0] : pos_key_from_parts(model->nkey, wire);
	if (model->last_key != NULL)
		pfree(model->last_key);
	model->last_key = MemoryContextStrdup(run->context,
										  pos_key_string(key, model->remote_int));
}

/* Stores how far loads have come. */
void
pos_parts_store(PosRun *run)
{
	Oid			types[] = {INT2OID, TEXTOID, TEXTOID, INT4OID, TEXTOID};
	ListCell   *lc;

	foreach(lc, run->tree->models)
	{
		PosModel   *model = lfirst(lc);
		PosTable   *table = &model->table;
		bool		ends = model->counts.read < table->limit;
		const char *position = model->loaded_to != NULL ?
		model->load_position : table->next_position;
		Datum		values[5];
		char		nulls[6] = "     ";

		if (table->limit == 0)
			continue;
		run->more = run->more || !ends;
		values[0] = Int16GetDatum(model->id);
		values[1] = CStringGetTextDatum(position == NULL ? "" : position);
		values[2] = CStringGetTextDatum(run->snapshot.source);
		values[3] = Int32GetDatum(run->id);
		nulls[4] = ends ? 'n' : ' ';
		if (!ends)
			values[4] = CStringGetTextDatum(model->last_key);
		pos_store_execute("INSERT INTO @.synchronize_position"
						  " (model, position, source, run, loaded_to)"
						  " VALUES ($1, $2, $3, $4, $5)"
						  " ON CONFLICT (model) DO UPDATE SET"
						  " position = EXCLUDED.position,"
						  " source = EXCLUDED.source, run = EXCLUDED.run,"
						  " loaded_to = EXCLUDED.loaded_to",
						  5, types, values, nulls);
	}
	pos_parts_more = run->more;
}
