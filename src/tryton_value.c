/*
 * tryton_value.c
 *		The remote's values as ours.
 *
 * Every value becomes a text that the local type's input function takes: what
 * does not fit is an error of that row; a number is rounded to the decimals that the
 * column has, as by any INSERT.  A column of type
 * json or jsonb takes any field, as Tryton writes it.
 *
 * Types that JSON has not come as objects that tell their class.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "common/base64.h"
#include "connection_tryton.h"
#include "fmgr.h"
#include "parser/parse_coerce.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"

/* What the types of Tryton's fields are here */
static const struct
{
	const char *name;
	Oid			type;
}			types[] = {
	{"binary", BYTEAOID},
	{"biginteger", INT8OID},
	{"boolean", BOOLOID},
	{"char", TEXTOID},
	{"date", DATEOID},
	{"datetime", TIMESTAMPTZOID},
	{"dict", JSONBOID},
	{"float", FLOAT8OID},
	{"fullchar", TEXTOID},
	{"fulltext", TEXTOID},
	{"integer", INT4OID},
	{"many2many", INT4ARRAYOID},
	{"many2one", INT4OID},
	{"multiselection", TEXTARRAYOID},
	{"numeric", NUMERICOID},
	{"one2many", INT4ARRAYOID},
	{"one2one", INT4OID},
	{"reference", TEXTOID},
	{"selection", TEXTOID},
	{"text", TEXTOID},
	{"time", TIMEOID},
	{"timedelta", INTERVALOID},
	{"timestamp", TIMESTAMPTZOID},
};

/* What a column of a link table is */
typedef enum LinkPart
{
	LINK_NOT,
	LINK_ORIGIN,
	LINK_TARGET
} LinkPart;

typedef struct ColumnPlan
{
	int			npath;			/* keys that lead to the value */
	char	  **path;
	LinkPart	link;
	PosForm		form;
	bool		json;			/* takes the value as it is */
	bool		zone;			/* a naive time is to say that it is UTC */
	bool		domain;			/* may refuse nulls */
	FmgrInfo	input;
	Oid			ioparam;
	int32		typmod;
	const char *remote;			/* for messages */
} ColumnPlan;

struct PosTrytonPlan
{
	const char *server;			/* both for messages */
	const char *table;
	int			ncolumns;
	int			current;		/* column being converted; -1: none */
	ColumnPlan	columns[FLEXIBLE_ARRAY_MEMBER];
};

/* Returns the type that a field has here; InvalidOid for one that we do not know. */
Oid
pos_tryton_type(PosTrytonField *field)
{
	for (int i = 0; i < lengthof(types); i++)
		if (strcmp(types[i].name, field->type) == 0)
			return types[i].type;
	return InvalidOid;
}

static bool
is_json(Oid type)
{
	return type == JSONOID || type == JSONBOID;
}

/* Whether a field's values can become values of the type that is asked for. */
bool
pos_tryton_convertible(PosTrytonField *field, PosColumn *column)
{
	Oid			local = getBaseType(column->type);
	Oid			remote = pos_tryton_type(field);

	if (is_json(local))
		return true;
	if (!OidIsValid(remote) || remote == JSONBOID)
		return false;
	/* a list of ids, or words, of whatever size */
	if (OidIsValid(get_element_type(remote)))
	{
		remote = get_element_type(remote);
		local = get_element_type(local);
		if (!OidIsValid(local))
			return false;
	}
	/* a part of it would be lost, and nobody told */
	if (remote == TIMESTAMPTZOID && (local == DATEOID || local == TIMEOID || local == TIMETZOID))
		return false;
	return remote == local ||
		(remote == TEXTOID && type_is_enum(local)) ||
		can_coerce_type(1, &remote, &local, COERCION_ASSIGNMENT);
}

/* Takes a path apart: "template.name" is the member name of the member template. */
static void
plan_path(ColumnPlan *column, const char *remote)
{
	column->path = palloc((strlen(remote) / 2 + 1) * sizeof(char *));
	for (;;)
	{
		Size		len = strcspn(remote, ".");

		/* the record that a field refers to is a member with a dot behind */
		column->path[column->npath++] = pnstrdup(remote, len + (remote[len] == '.'));
		if (remote[len] == '\0')
			break;
		remote += len + 1;
	}
}

/* Decides how the columns of a described table get their values. */
PosTrytonPlan *
pos_tryton_plan(PosTrytonSession *session, PosTable *table)
{
	PosTrytonPlan *plan = palloc0(offsetof(PosTrytonPlan, columns) +
								  sizeof(ColumnPlan) * table->ncolumns);
	char	   *model;
	char	   *link;
	bool		is_link = pos_tryton_is_link(table->remote, &model, &link);

	plan->server = session->options.http.server;
	plan->table = table->remote;
	plan->ncolumns = table->ncolumns;
	plan->current = -1;
	for (int i = 0; i < table->ncolumns; i++)
	{
		PosColumn  *asked = &table->columns[i];
		ColumnPlan *column = &plan->columns[i];
		Oid			base = getBaseType(asked->type);
		Oid			input;

		column->remote = asked->remote;
		column->form = asked->form;
		column->typmod = asked->typmod;
		column->json = is_json(base);
		column->zone = base == TIMESTAMPTZOID;
		column->domain = base != asked->type;
		plan_path(column, asked->remote);
		if (is_link)
			column->link = strcmp(asked->remote, "origin") == 0 ? LINK_ORIGIN : LINK_TARGET;
		getTypeInputInfo(asked->type, &input, &column->ioparam);
		fmgr_info(input, &column->input);
	}
	return plan;
}

/* Returns an integer member of an object; errors if there is none. */
static int
part(JsonbContainer *object, const char *name)
{
	JsonbValue	value;
	int64		number;

	if (!pos_tryton_integer(pos_tryton_get(object, name, &value), &number) ||
		number < 0 || number > 999999)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_EXCEPTION),
				 errmsg("a time of Tryton's has no \"%s\"", name)));
	return number;
}

/* Returns the bytes that base64 stands for, as bytea's input takes them. */
static char *
bytes_text(const char *encoded)
{
	int			len = strlen(encoded);
	char	   *plain = palloc(len + 1);
	char	   *bytes = palloc(pg_b64_dec_len(len) + 1);
	char	   *text;
	int			n = 0;

	/* lines end where they like to */
	for (int i = 0; i < len; i++)
		if (!isspace((unsigned char) encoded[i]))
			plain[n++] = encoded[i];
	n = pg_b64_decode(plain, n, (void *) bytes, pg_b64_dec_len(len));
	if (n < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_BINARY_REPRESENTATION),
				 errmsg("invalid base64 in a binary field of Tryton's")));
	text = palloc(2 * (Size) n + 3);

	strcpy(text, "\\x");
	text[		2 + hex_encode(bytes, n, text +2)] = '\0';
	return text;
}

/* Returns the text of an object that tells its class; NULL if it tells none. */
static char *
class_text(JsonbContainer *object, bool zone)
{
	JsonbValue	value;
	JsonbValue *member;
	char	   *class = pos_tryton_text(object, "__class__");

	if (class == NULL)
		return NULL;
	if (strcmp(class, "Decimal") == 0)
		return pos_tryton_text(object, "decimal");
	if (strcmp(class, "bytes") == 0)
	{
		char	   *encoded = pos_tryton_text(object, "base64");

		return encoded == NULL ? NULL : bytes_text(encoded);
	}
	if (strcmp(class, "timedelta") == 0)
	{
		member = pos_tryton_get(object, "seconds", &value);
		if (member == NULL || member->type != jbvNumeric)
			return NULL;
		return psprintf("%s seconds",
						DatumGetCString(DirectFunctionCall1(numeric_out,
															NumericGetDatum(member->val.numeric))));
	}
	if (strcmp(class, "date") == 0)
		return psprintf("%04d-%02d-%02d", part(object, "year"), part(object, "month"),
						part(object, "day"));
	if (strcmp(class, "time") == 0)
		return psprintf("%02d:%02d:%02d.%06d", part(object, "hour"),
						part(object, "minute"), part(object, "second"),
						part(object, "microsecond"));
	if (strcmp(class, "datetime") == 0)
		return psprintf("%04d-%02d-%02d %02d:%02d:%02d.%06d%s",
						part(object, "year"), part(object, "month"), part(object, "day"),
						part(object, "hour"), part(object, "minute"),
						part(object, "second"), part(object, "microsecond"),
						zone ? "+00" : "");
	return NULL;
}

static char *
scalar_text(JsonbValue *value)
{
	switch (value->type)
	{
		case jbvString:
			return pos_tryton_string(value);
		case jbvNumeric:
			return DatumGetCString(DirectFunctionCall1(numeric_out,
													   NumericGetDatum(value->val.numeric)));
		case jbvBool:
			return pstrdup(value->val.boolean ? "true" : "false");
		default:
			return NULL;
	}
}

/* Returns a list as an array's input takes it; NULL if its elements are not plain. */
static char *
list_text(JsonbContainer *list)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoChar(&buf, '{');
	for (int i = 0; i < JsonContainerSize(list); i++)
	{
		char	   *text = scalar_text(getIthJsonbValueFromContainer(list, i));

		if (text == NULL)
			return NULL;
		appendStringInfoString(&buf, i > 0 ? ",\"" : "\"");
		for (char *p = text; *p; p++)
		{
			if (*p == '"' || *p == '\\')
				appendStringInfoChar(&buf, '\\');
			appendStringInfoChar(&buf, *p);
		}
		appendStringInfoChar(&buf, '"');
	}
	appendStringInfoChar(&buf, '}');
	return buf.data;
}

/* Returns the text of a value that is not null. */
static char *
value_text(ColumnPlan *column, JsonbValue *value)
{
	char	   *text;

	if (column->json)
		return JsonbToCString(NULL, &JsonbValueToJsonb(value)->root, -1);
	if (value->type != jbvBinary)
		text = scalar_text(value);

	else if (JsonContainerIsArray(value->val.binary.data))
		text = list_text(value->val.binary.data);

	else
		text = class_text(value->val.binary.data, column->zone);

	if (text == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("a value of Tryton's is not of a kind that we know"),
				 errdetail_internal("%s", JsonbToCString(NULL, &JsonbValueToJsonb(value)->root, -1))));
	return text;
}

/* Returns the value that a path leads to, NULL if it is null or leads nowhere. */
static JsonbValue *
find_value(PosTrytonPlan *plan, ColumnPlan *column, JsonbContainer *row,
		   JsonbValue *value)
{
	JsonbValue *found = NULL;

	for (int i = 0; i < column->npath; i++)
	{
		found = pos_tryton_get(row, column->path[i], value);
		if (found == NULL && i == 0)
			ereport(ERROR,
					(errcode(ERRCODE_FDW_ERROR),
					 errmsg("server \"%s\" sent a row without the field \"%s\" that was asked for",
							plan->server, column->remote)));
		if (found == NULL || found->type == jbvNull)
			return NULL;
		if (i < column->npath - 1)
		{
			if (found->type != jbvBinary || !JsonContainerIsObject(found->val.binary.data))
				return NULL;
			row = found->val.binary.data;
		}
	}
	return found;
}

/* Returns one value, and whether it is null. */
static Datum
convert(PosTrytonPlan *plan, ColumnPlan *column, JsonbContainer *row, int64 link,
		bool *isnull)
{
	JsonbValue	space;
	JsonbValue *value;
	int64		key;

	if (column->link == LINK_TARGET)
	{
		*isnull = false;
		return column->form == POS_FORM_KEY ? Int64GetDatum(link) :
			InputFunctionCall(&column->input, psprintf(INT64_FORMAT, link),
							  column->ioparam, column->typmod);
	}
	value = column->link == LINK_ORIGIN ? pos_tryton_get(row, "id", &space) :
		find_value(plan, column, row, &space);
	*isnull = value == NULL;
	if (value == NULL)
		return column->domain ?
			InputFunctionCall(&column->input, NULL, column->ioparam, column->typmod) :
			(Datum) 0;
	if (column->form != POS_FORM_KEY)
		return InputFunctionCall(&column->input, value_text(column, value),
								 column->ioparam, column->typmod);
	if (!pos_tryton_integer(value, &key))
		ereport(ERROR,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("a value that has to be the id of a record is none")));
	return Int64GetDatum(key);
}

static void
convert_error(void *arg)
{
	PosTrytonPlan *plan = arg;

	if (plan->current >= 0)
		errcontext("field \"%s\" of remote model %s", plan->columns[plan->current].remote,
				   plan->table);
}

/*
 * Converts a row, keys first; link is what a link table's row refers to.  An error
 * is about this row: others can be converted.
 */
void
pos_tryton_convert(PosTrytonPlan *plan, JsonbContainer *row, int64 link,
				   Datum *values, bool *nulls)
{
	ErrorContextCallback callback = {
		.previous = error_context_stack,.callback = convert_error,.arg = plan
	};

	error_context_stack = &callback;
	for (int i = 0; i < plan->ncolumns; i++)
		nulls[i] = true;
	for (int i = 0; i < plan->ncolumns; i++)
	{
		bool		isnull;

		plan->current = i;
		values[i] = convert(plan, &plan->columns[i], row, link, &isnull);
		nulls[i] = isnull;
	}
	plan->current = -1;
	error_context_stack = callback.previous;
}
