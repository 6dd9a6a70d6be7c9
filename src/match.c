/*
 * match.c
 *		Unknown rows against the local table: which local rows have the same
 *		values in all match fields.
 *
 * Null equals null.  So that indexes and hash joins serve all the same, rows
 * are compared by one join for each pattern of nulls that really occurs: plain
 * equality where a value stands, IS NULL where none does.
 *
 * A local row that is linked with another remote row already is no candidate.
 */
#include "possync.h"

#include "nodes/bitmapset.h"
#include "run.h"
#include "sql.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

/*
 * Returns the sets of match fields (by number in written) that are null
 * together in some row; without nullable match fields there is just one.
 */
static List *
null_patterns(PosModel *model, PosRowset *rows)
{
	List	   *patterns = NIL;
	Datum	   *values;
	bool	   *nulls;

	pos_rowset_rewind(rows);
	while (pos_rowset_next(rows, &values, &nulls))
	{
		Bitmapset  *pattern = NULL;
		bool		known = false;
		ListCell   *lc;

		for (int i = 0; i < model->nwritten; i++)
			if (model->written[i]->match && nulls[model->written[i]->staged])
				pattern = bms_add_member(pattern, i);
		foreach(lc, patterns)
			known = known || bms_equal(pattern, lfirst(lc));
		if (!known)
			patterns = lappend(patterns, pattern);
		else
			bms_free(pattern);
	}
	return patterns;
}

/*
 * Returns the local table of a model in a FROM clause, with its key and its
 * match fields: in a dry run as it would be by now.
 */
static const char *
table_by_now(PosRun *run, PosModel *model)
{
	StringInfoData here;
	StringInfoData changed;
	StringInfoData keys;
	bool		gone = run->dry && model->gone != NULL &&
	model->on_delete == POS_DELETE_DELETE;
	const char *here_sql;

	if (model->changed == NULL && !gone)
		return model->table_sql;
	initStringInfo(&here);
	initStringInfo(&changed);
	initStringInfo(&keys);
	for (int i = 0; i < model->nwritten; i++)
	{
		const char *name = quote_identifier(model->written[i]->name);

		if (i >= model->nkey && !model->written[i]->match)
			continue;
		appendStringInfo(&here, "%st.%s", i > 0 ? ", " : "", name);
		appendStringInfo(&changed, "%sc.w%d", i > 0 ? ", " : "", i + 1);
		if (i < model->nkey)
			appendStringInfo(&keys, "%st.%s %s c.w%d", i > 0 ? " AND " : "",
							 name, pos_sql_equality(model->written[i]), i + 1);
	}
	here_sql = psprintf("SELECT %s FROM %s t WHERE true", here.data, model->table_sql);
	if (gone)
	{
		pos_rowset_publish(model->gone);
		here_sql = psprintf("%s AND NOT EXISTS (SELECT 1 FROM possync_gone_%d c"
							" WHERE %s)", here_sql, model->id, keys.data);
	}
	if (model->changed != NULL)
	{
		pos_rowset_publish(model->changed);
		here_sql = psprintf("%s AND NOT EXISTS (SELECT 1 FROM possync_changed_%d c"
							" WHERE %s) UNION ALL SELECT %s FROM possync_changed_%d c",
							here_sql, model->id, keys.data, changed.data, model->id);
	}
	return psprintf("(%s)", here_sql);
}

/* Appends the join for one pattern of nulls. */
static void
append_join(StringInfo sql, PosRun *run, PosModel *model, const char *rows,
			Bitmapset *pattern)
{
	appendStringInfoString(sql, "SELECT u.n");
	for (int i = 0; i < model->nkey; i++)
		appendStringInfo(sql, ", t.%s AS k%d",
						 quote_identifier(model->key[i]->name), i);
	appendStringInfo(sql, " FROM %s u JOIN %s t ON true", rows,
					 table_by_now(run, model));
	for (int i = 0; i < model->nwritten; i++)
	{
		PosField   *field = model->written[i];
		const char *name = quote_identifier(field->name);

		if (!field->match)
			continue;
		if (bms_is_member(i, pattern))
			appendStringInfo(sql, " AND t.%s IS NULL AND u.w%d IS NULL", name,
							 i + 1);
		else
			appendStringInfo(sql, " AND t.%s %s u.w%d", name, pos_sql_equality(field),
							 i + 1);
	}
}

/*
 * Opens the joined rows: n, the local key's columns, and whether another
 * remote row matches the same local one.
 */
static PosCursor *
open_pairs(PosRun *run, PosModel *model, PosRowset *rows, const char *name)
{
	StringInfoData keys;
	StringInfoData sql;
	Bitmapset  *columns = NULL;
	PosCursor  *pairs;
	int			nestlevel;
	ListCell   *lc;

	initStringInfo(&keys);
	for (int i = 0; i < model->nkey; i++)
		appendStringInfo(&keys, "%sk%d", i > 0 ? ", " : "", i);
	initStringInfo(&sql);
	appendStringInfo(&sql, "SELECT n, %s, pg_catalog.count(*)"
					 " OVER (PARTITION BY %s) OPERATOR(pg_catalog.>) 1"
					 " FROM (", keys.data, keys.data);
	foreach(lc, null_patterns(model, rows))
	{
		if (foreach_current_index(lc) > 0)
			appendStringInfoString(&sql, " UNION ALL ");
		append_join(&sql, run, model, name, lfirst(lc));
	}
	appendStringInfoString(&sql, ") p ORDER BY n");
	pos_rowset_publish(rows);
	for (int i = 0; i < model->nwritten; i++)
		if (model->written[i]->match)
			columns = bms_add_member(columns, model->written[i]->attnum);
	nestlevel = pos_sql_plan_join(model->rel, columns, pos_rowset_count(rows));
	pairs = pos_sql_open(sql.data, false);
	pos_sql_planned(nestlevel);
	return pairs;
}

/*
 * Gathers the candidates of the row with number n.  Returns their canonical
 * local keys; shared is set if another remote row has one of them too, linked
 * to the key of one that is linked elsewhere.
 */
static List *
take_candidates(PosRun *run, PosCursor *pairs, PosModel *model, int64 n,
				bool *shared, char **linked)
{
	List	   *candidates = NIL;
	HeapTuple	tuple;
	TupleDesc	desc;

	*shared = false;
	*linked = NULL;
	while ((tuple = pos_sql_peek(pairs, &desc)) != NULL)
	{
		Datum		columns[INDEX_MAX_KEYS];
		bool		nulls[INDEX_MAX_KEYS];
		Datum		key;
		bool		isnull;

		if (DatumGetInt64(SPI_getbinval(tuple, desc, 1, &isnull)) != n)
			break;
		for (int i = 0; i < model->nkey; i++)
			columns[i] = SPI_getbinval(tuple, desc, i + 2, &nulls[i]);
		key = pos_key_from_columns(model, columns, nulls);
		if (pos_translation_is_linked(run, model, key))
			*linked = pos_key_string(key, model->local_int);
		else
		{
			/* the tuple goes with the next fetch */
			if (!model->local_int)
				key = PointerGetDatum(PG_DETOAST_DATUM_COPY(key));
			candidates = lappend(candidates, DatumGetPointer(key));
			*shared = *shared ||
				DatumGetBool(SPI_getbinval(tuple, desc, model->nkey + 2, &isnull));
		}
		pos_sql_take(pairs);
	}
	return candidates;
}

/*
 * Calls back once for every row of a set, in order, with its candidates:
 * canonical local keys (Datum as pointer), whether one of them is a candidate
 * of another row too, and the key of a local row that would be one were it not
 * linked, if any.  Values passed live until the next row.
 */
void
pos_match_rows(PosRun *run, PosModel *model, PosRowset *rows,
			   PosMatchCallback callback)
{
	PosCursor  *pairs;
	Datum	   *values;
	bool	   *nulls;
	Datum	   *copy = palloc(model->stage->natts * sizeof(Datum));
	bool	   *copynulls = palloc(model->stage->natts * sizeof(bool));
	char	   *name = psprintf("possync_rows_%d", model->id);
	MemoryContext old;

	pairs = open_pairs(run, model, rows, name);
	pos_rowset_rewind(rows);
	while (pos_rowset_next(rows, &values, &nulls))
	{
		List	   *candidates;
		bool		shared;
		char	   *linked;

		memcpy(copy, values, model->stage->natts * sizeof(Datum));
		memcpy(copynulls, nulls, model->stage->natts * sizeof(bool));
		MemoryContextReset(run->row);
		old = MemoryContextSwitchTo(run->row);
		candidates = take_candidates(run, pairs, model,
									 DatumGetInt64(copy[POS_STAGE_N]),
									 &shared, &linked);
		callback(run, model, copy, copynulls, candidates, shared, linked);
		MemoryContextSwitchTo(old);
	}
	pos_sql_close(pairs);
	pfree(copy);
	pfree(copynulls);
}
