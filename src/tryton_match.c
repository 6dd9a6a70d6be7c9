/*
 * tryton_match.c
 *		Rows looked for at the remote by their values.
 *
 * Two values are the same if their JSON is, numbers by their value.
 */
#include "postgres.h"

#include "connection_tryton.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"

/* Rows looked for in one call */
#define MATCH_ROWS	500

/* Returns a text that is the same for the same value of a field. */
static char *
canonical(PosTrytonField *field, JsonbValue *value)
{
	Jsonb	   *json = value == NULL ? NULL : JsonbValueToJsonb(value);
	JsonbValue	member;
	char	   *decimal;

	if (value == NULL || value->type == jbvNull)
		return "null";
	if (value->type == jbvBinary && JsonContainerIsObject(value->val.binary.data) &&
		(decimal = pos_tryton_string(pos_tryton_get(value->val.binary.data, "decimal",
													&member))) != NULL)
	{
		Datum		number = DirectFunctionCall3(numeric_in, CStringGetDatum(decimal),
												 ObjectIdGetDatum(InvalidOid), Int32GetDatum(-1));

		return DatumGetCString(DirectFunctionCall1(numeric_out,
												   DirectFunctionCall1(numeric_trim_scale, number)));
	}
	if (value->type == jbvNumeric)
		return DatumGetCString(DirectFunctionCall1(numeric_out,
												   DirectFunctionCall1(numeric_trim_scale,
																	   NumericGetDatum(value->val.numeric))));
	return JsonbToCString(NULL, &json->root, -1);
}

/* Returns the JSON of a value that a row has, by its text. */
static char *
json_of(PosTrytonField *field, const char *text)
{
	StringInfoData buf;

	initStringInfo(&buf);
	pos_tryton_append_json(&buf, field, text);
	return buf.data;
}

/* Returns the same of a JSON text. */
static char *
canonical_text(PosTrytonField *field, const char *json)
{
	Jsonb	   *value = DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum(json)));
	JsonbValue	scalar;

	if (JsonbExtractScalar(&value->root, &scalar))
		return canonical(field, &scalar);
	scalar.type = jbvBinary;
	scalar.val.binary.data = &value->root;
	scalar.val.binary.len = VARSIZE(value) - VARHDRSZ;
	return canonical(field, &scalar);
}

/* A row that is looked for */
typedef struct Wanted
{
	int			row;
	char	  **json;			/* of every column */
	char	   *value;			/* of all columns */
} Wanted;

/* One column to compare by */
typedef struct Columns
{
	int			n;
	const char **names;
	PosTrytonField **fields;
} Columns;

/* Puts the values of several columns together. */
static char *
join(char **values, int n)
{
	StringInfoData buf;

	initStringInfo(&buf);
	for (int i = 0; i < n; i++)
		appendStringInfo(&buf, "%zu:%s", strlen(values[i]), values[i]);
	return buf.data;
}

/*
 * Takes one of the rows looked for; returns false if it refers to a row that is not
 * there: then it is not there either.
 */
static bool
take_wanted(Columns *columns, JsonbContainer *row, int n, Wanted *wanted)
{
	char	  **values = palloc(columns->n * sizeof(char *));

	wanted->row = n;
	wanted->json = palloc(columns->n * sizeof(char *));
	for (int i = 0; i < columns->n; i++)
	{
		char	   *text = pos_tryton_text(row, columns->names[i]);

		if (text !=NULL && text[0] == '-' && columns->fields[i]->relation != NULL)
			return false;
		wanted->json[i] = json_of(columns->fields[i], text);
		values[i] = canonical_text(columns->fields[i], wanted->json[i]);
	}
	wanted->value = join(values, columns->n);
	return true;
}

/* Appends the clause that finds some rows. */
static void
append_clauses(StringInfo buf, Columns *columns, Wanted *wanted, int n)
{
	bool		nulls = false;

	for (int i = 0; i < n; i++)
		nulls = nulls || strcmp(wanted[i].json[0], "null") == 0;
	if (columns->n == 1 && !nulls)
	{
		appendStringInfo(buf, "[\"%s\",\"in\",[", columns->names[0]);
		for (int i = 0; i < n; i++)
			appendStringInfo(buf, "%s%s", i > 0 ? "," : "", wanted[i].json[0]);
		appendStringInfoString(buf, "]]");
		return;
	}
	appendStringInfoString(buf, "[\"OR\"");
	for (int i = 0; i < n; i++)
	{
		appendStringInfoString(buf, ",[");
		for (int j = 0; j < columns->n; j++)
			appendStringInfo(buf, "%s[\"%s\",\"=\",%s]", j > 0 ? "," : "", columns->names[j],
							 wanted[i].json[j]);
		appendStringInfoChar(buf, ']');
	}
	appendStringInfoChar(buf, ']');
}

/* An answer */
typedef struct Answer
{
	int			row;
	char	   *key;
} Answer;

static int
compare_answers(const ListCell *a, const ListCell *b)
{
	return ((Answer *) lfirst(a))->row - ((Answer *) lfirst(b))->row;
}

/* Looks for some rows; returns the list of answers with what is found. */
static List *
find(PosTrytonSession *session, const char *model, Columns *columns, Wanted *wanted,
	 int n, List *answers)
{
	StringInfoData params;
	Jsonb	   *rows;
	char	  **values = palloc(columns->n * sizeof(char *));

	initStringInfo(&params);
	appendStringInfoChar(&params, '[');
	append_clauses(&params, columns, wanted, n);
	appendStringInfoString(&params, "],0,null,[[\"id\",\"ASC\"]],[");
	for (int i = 0; i < columns->n; i++)
		appendStringInfo(&params, "\"%s\",", columns->names[i]);
	appendStringInfoString(&params, "\"id\"],");
	rows = pos_tryton_call(session, psprintf("model.%s.search_read", model), params.data);
	if (!JB_ROOT_IS_ARRAY(rows))
		pos_tryton_odd(session);
	for (int i = 0; i < JB_ROOT_COUNT(rows); i++)
	{
		JsonbContainer *row = pos_tryton_row(&rows->root, i);
		JsonbValue	value;
		int64		id;
		char	   *joined;

		if (!pos_tryton_integer(pos_tryton_get(row, "id", &value), &id))
			pos_tryton_odd(session);
		for (int j = 0; j < columns->n; j++)
			values[j] = canonical(columns->fields[j],
								  pos_tryton_get(row, columns->names[j], &value));
		joined = join(values, columns->n);
		for (int j = 0; j < n; j++)
			if (strcmp(joined, wanted[j].value) == 0)
			{
				Answer	   *answer = palloc(sizeof(Answer));

				answer->row = wanted[j].row;
				answer->key = psprintf(INT64_FORMAT, id);
				answers = lappend(answers, answer);
			}
	}
	return answers;
}

/* Finds out what the columns of a step are. */
static void
take_columns(PosTrytonSession *session, const char *model, PosStep *step, Columns *columns)
{
	columns->n = step->ncolumns;
	columns->names = step->columns;
	columns->fields = palloc(step->ncolumns * sizeof(PosTrytonField *));
	for (int i = 0; i < step->ncolumns; i++)
		columns->fields[i] = pos_tryton_column(session, model, step->columns[i]);
}

/* Carries out a step that looks for rows.  Those of link tables need not be. */
void
pos_tryton_match(PosTrytonSession *session, PosStep *step)
{
	char	   *model;
	char	   *link;
	Columns		columns;
	JsonbContainer *rows = pos_tryton_rows(step);
	Wanted	   *wanted = palloc(Max(step->nrows, 1) * sizeof(Wanted));
	List	   *answers = NIL;
	ListCell   *lc;
	int			n = 0;

	step->nanswers = 0;
	if (pos_tryton_is_link(step->table->remote, &model, &link))
		return;
	take_columns(session, model, step, &columns);
	for (int i = 0; i < step->nrows; i++)
	{
		if (take_wanted(&columns, pos_tryton_row(rows, i),
						i, &wanted[n]))
			n++;
		if (n == MATCH_ROWS || (n > 0 && i + 1 == step->nrows))
		{
			answers = find(session, model, &columns, wanted, n, answers);
			n = 0;
		}
	}
	list_sort(answers, compare_answers);
	step->nanswers = list_length(answers);
	step->row = palloc(Max(step->nanswers, 1) * sizeof(int));
	step->answers = palloc(Max(step->nanswers, 1) * sizeof(char *));
	foreach(lc, answers)
	{
		step->row[foreach_current_index(lc)] = ((Answer *) lfirst(lc))->row;
		step->answers[foreach_current_index(lc)] = ((Answer *) lfirst(lc))->key;
	}
}

/* Returns the values of a row as they are at the remote, NULL if it is not there. */
static JsonbContainer *
row_with_id(Jsonb *rows, const char *id)
{
	for (int i = 0; i < JB_ROOT_COUNT(rows); i++)
	{
		JsonbContainer *row = pos_tryton_row(&rows->root, i);
		JsonbValue	value;
		int64		number;

		if (pos_tryton_integer(pos_tryton_get(row, "id", &value), &number) &&
			number == strtoll(id, NULL, 10))
			return row;
	}
	return NULL;
}

/* Whether a remote row is one of its choices. */
static bool
fits(Columns *columns, JsonbContainer *there, JsonbContainer *expected)
{
	for (int i = 0; i < columns->n; i++)
	{
		JsonbValue	value;
		char	   *text = pos_tryton_text(expected, psprintf("a%d", i + 1));
		char	   *ours = canonical_text(columns->fields[i], json_of(columns->fields[i], text));

		if (strcmp(ours, canonical(columns->fields[i],
								   pos_tryton_get(there, columns->names[i], &value))) != 0)
			return false;
	}
	return true;
}

/*
 * Carries out a step that compares rows with what they are expected to be.  Between
 * that and the write the remote may change them: there is no transaction over both.
 */
void
pos_tryton_expect(PosTrytonSession *session, PosStep *step)
{
	char	   *model;
	char	   *link;
	Columns		columns;
	JsonbContainer *rows = pos_tryton_rows(step);
	StringInfoData params;
	Jsonb	   *there;
	int			n = 0;

	if (pos_tryton_is_link(step->table->remote, &model, &link))
		return;
	take_columns(session, model, step, &columns);
	initStringInfo(&params);
	appendStringInfoString(&params, "[[\"id\",\"in\",[");
	for (int i = 0; i < step->nrows; i++)
	{
		char	   *id = pos_tryton_text(pos_tryton_row(rows, i), "k1");

		if (id != NULL)
			appendStringInfo(&params, "%s%s", n++ > 0 ? "," : "", id);
	}
	appendStringInfoString(&params, "]]],0,null,null,[");
	for (int i = 0; i < columns.n; i++)
		appendStringInfo(&params, "\"%s\",", columns.names[i]);
	appendStringInfoString(&params, "\"id\"],");
	there = pos_tryton_call(session, psprintf("model.%s.search_read", model), params.data);
	if (!JB_ROOT_IS_ARRAY(there))
		pos_tryton_odd(session);
	for (int i = 0; i < step->nrows;)
	{
		JsonbContainer *expected = pos_tryton_row(rows, i);
		char	   *name = pos_tryton_text(expected, "n");
		char	   *id = pos_tryton_text(expected, "k1");
		JsonbContainer *row = id == NULL ? NULL : row_with_id(there, id);
		bool		fit = row == NULL;

		for (; i < step->nrows; i++)
		{
			JsonbContainer *choice = pos_tryton_row(rows, i);

			if (strcmp(pos_tryton_text(choice, "n"), name) != 0)
				break;
			fit = fit || fits(&columns, row, choice);
		}
		if (fit)
			continue;
		step->blamed = name;
		ereport(ERROR,
				(errcode(ERRCODE_TRIGGERED_DATA_CHANGE_VIOLATION),
				 errmsg("row %s of \"%s\" was changed at the remote, too", name,
						step->table->local)));
	}
}
