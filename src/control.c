/*
 * control.c
 *		possync_control: numbers of rows and sums on both sides, as at the end of a
 *		day.
 *
 * The other side's are those of this side and what the rows that differ make of
 * them, which a comparison finds.
 */
#include "possync.h"

#include "catalog/pg_type.h"
#include "differences.h"
#include "funcapi.h"
#include "sql.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/numeric.h"

PG_FUNCTION_INFO_V1(possync_control);

enum
{
	T_MODEL, T_RELATION, T_MEASURE, T_HERE, T_THERE, T_EQUAL, T_NCOLUMNS
};

/* What is counted of a model: rows, and the columns that can be summed up */
typedef struct Totals
{
	ReturnSetInfo *result;
	MemoryContext context;
	int			n;				/* measures; the first one is the rows */
	int		   *wire;			/* column of the read of each, -1: the rows */
	const char **names;
	Datum	   *here;			/* numeric */
	Datum	   *there;
} Totals;

static Datum
number(const char *text)
{
	return DirectFunctionCall3(numeric_in, CStringGetDatum(text == NULL ? "0" : text),
							   ObjectIdGetDatum(InvalidOid), Int32GetDatum(-1));
}

/* Finds out what can be counted of a model. */
static void
find_measures(PosModel *model, Totals *totals)
{
	totals->wire = palloc((model->nfields + 1) * sizeof(int));
	totals->names = palloc((model->nfields + 1) * sizeof(char *));
	totals->n = 1;
	totals->wire[0] = -1;
	totals->names[0] = "rows";
	for (int i = 0; i < model->nfields; i++)
	{
		PosField   *field = &model->fields[i];

		if (field->wire < 0 || field->match ||
			(field->base != NUMERICOID && !pos_key_is_integer(field->base)))
			continue;
		totals->wire[totals->n] = field->wire;
		totals->names[totals->n++] = field->name;
	}
}

/* Reads the totals of a set of local rows, which is SQL. */
static Datum *
read_totals(PosModel *model, Totals *totals, const char *rows)
{
	Datum	   *values = palloc(totals->n * sizeof(Datum));
	StringInfoData sql;
	PosCursor  *cursor;
	HeapTuple	tuple;
	TupleDesc	desc;

	initStringInfo(&sql);
	appendStringInfoString(&sql, "SELECT pg_catalog.count(*)");
	for (int i = 1; i < totals->n; i++)
		appendStringInfo(&sql, ", pg_catalog.sum(p.%s)",
						 quote_identifier(totals->names[i]));
	appendStringInfo(&sql, " FROM %s", rows);
	cursor = pos_sql_open_whole(sql.data);
	tuple = pos_sql_peek(cursor, &desc);
	for (int i = 0; i < totals->n; i++)
		values[i] = number(SPI_getvalue(tuple, desc, i + 1));
	pos_sql_close(cursor);
	return values;
}

/* Adds what one side of a row has to the other side's totals, or takes it off. */
static void
apply(Totals *totals, const char *content, PGFunction function)
{
	Datum		array;
	Datum	   *elements;
	bool	   *nulls;
	int			n;

	if (content == NULL)
		return;
	array = OidInputFunctionCall(F_ARRAY_IN, unconstify(char *, content), TEXTOID, -1);
	deconstruct_array(DatumGetArrayTypeP(array), TEXTOID, -1, false, TYPALIGN_INT,
					  &elements, &nulls, &n);
	for (int i = 0; i < totals->n; i++)
	{
		int			wire = totals->wire[i];
		Datum		value;
		MemoryContext old;

		if (wire >= n || (wire >= 0 && nulls[wire]))
			continue;
		value = number(wire < 0 ? "1" : TextDatumGetCString(elements[wire]));
		old = MemoryContextSwitchTo(totals->context);
		totals->there[i] = DirectFunctionCall2(function, totals->there[i], value);
		MemoryContextSwitchTo(old);
	}
}

/* Takes a row that differs; see PosCompareCallback. */
static void
take(PosRun *run, PosModel *model, PosDifferent *different, void *argument)
{
	apply(argument, different->here, numeric_sub);
	apply(argument, different->there, numeric_add);
}

/* Counts one model; see PosInspector. */
static void
count(PosRun *run, PosModel *model, PosInspection *inspection, void *argument)
{
	Totals	   *totals = argument;
	Datum	   *unsent = NULL;

	totals->context = CurrentMemoryContext;
	find_measures(model, totals);
	totals->here = read_totals(model, totals,
							   psprintf("%s p WHERE %s", model->table_sql,
										inspection->condition != NULL ? inspection->condition : "true"));
	unsent = read_totals(model, totals, pos_differences_unsent(model, inspection, true));
	totals->there = palloc(totals->n * sizeof(Datum));
	for (int i = 0; i < totals->n; i++)
		totals->there[i] = DirectFunctionCall2(numeric_sub, totals->here[i], unsent[i]);
	pos_compare_model(run, model, POS_CONTENT_TEXTS,
					  inspection->pushed || model->on_unknown == POS_MATCH_ONLY,
					  inspection->condition, take, totals);
	for (int i = 0; i < totals->n; i++)
	{
		Datum		row[T_NCOLUMNS];
		bool		nulls[T_NCOLUMNS] = {false};

		row[T_MODEL] = CStringGetTextDatum(model->name);
		row[T_RELATION] = ObjectIdGetDatum(model->relid);
		row[T_MEASURE] = CStringGetTextDatum(totals->names[i]);
		row[T_HERE] = totals->here[i];
		row[T_THERE] = totals->there[i];
		row[T_EQUAL] = DirectFunctionCall2(numeric_eq, totals->here[i], totals->there[i]);
		tuplestore_putvalues(totals->result->setResult, totals->result->setDesc, row,
							 nulls);
	}
}

/*
 * possync_control(model text, direction text, condition text)
 *		returns setof (model, relation, measure, here, there, equal)
 *
 * How many rows there are of every model of a tree, and what their numbers add up
 * to, here and at its server.  Arguments and errors as in pos_differences_each.
 */
Datum
possync_control(PG_FUNCTION_ARGS)
{
	Totals		totals = {.result = (ReturnSetInfo *) fcinfo->resultinfo};

	pos_differences_each(fcinfo, count, &totals);
	return (Datum) 0;
}
