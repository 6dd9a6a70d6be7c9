/*
 * postgres_convert.c
 *		From the wire to datums.
 *
 * Owns the decision how each column travels, and the decoding of rows of a
 * binary COPY.  Never touches the connection.
 *
 * A column travels in binary form and is received as what it is if its type is
 * built in, hence the same on both sides.  If the local type is another one
 * that it may be assigned to, the same cast is applied as INSERT would.
 * Everything else travels as text and goes through the local type's input
 * function: enums, composites and types of extensions, whose oids mean nothing
 * here, and types whose binary form is an oid.
 *
 * Receive functions believe that strings come from the local client and
 * convert them from its encoding, but ours come in the database's.  If these
 * are two, types that contain strings travel as text, too.
 */
#include "postgres.h"

#include "access/transam.h"
#include "catalog/pg_type.h"
#include "connection_postgres.h"
#include "executor/executor.h"
#include "fmgr.h"
#include "mb/pg_wchar.h"
#include "nodes/makefuncs.h"
#include "optimizer/optimizer.h"
#include "parser/parse_coerce.h"
#include "port/pg_bswap.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"

/* First oid that is not the same in every version and database */
#define FIRST_UNSTABLE_OID FirstGenbkiObjectId

/* Categories whose built-in types contain no strings */
static const char stringless_categories[] = {
	TYPCATEGORY_BOOLEAN, TYPCATEGORY_DATETIME, TYPCATEGORY_GEOMETRIC,
	TYPCATEGORY_NETWORK, TYPCATEGORY_NUMERIC, TYPCATEGORY_TIMESPAN,
	TYPCATEGORY_BITSTRING, '\0'
};

typedef enum Way
{
	WAY_INTEGER,				/* binary int2, int4 or int8, to int8 */
	WAY_BINARY,					/* receive function */
	WAY_TEXT					/* input function */
} Way;

typedef struct ColumnPlan
{
	Way			way;
	FmgrInfo	function;		/* receive or input */
	Oid			ioparam;
	int32		typmod;
	ExprState  *cast;			/* applied to what function returns; NULL:
								 * none */
	bool		castnull;		/* to nulls, too: a domain may refuse them */
	const char *remote;			/* column, for messages */
} ColumnPlan;

struct PosPgPlan
{
	const char *server;			/* both for messages */
	const char *table;
	int			ncolumns;
	int			current;		/* column being converted; -1: none */
	ExprContext *econtext;		/* of casts */
	ColumnPlan	columns[FLEXIBLE_ARRAY_MEMBER];
};

static bool is_builtin(Oid type);
static bool is_integer(Oid type);
static bool has_same_kind(PosPgAttribute *attribute, Oid local);
static bool is_string(Oid type);
static bool has_name(Oid type, const char *name);
static bool travels_binary(Oid type);
static Node *make_cast(Oid from, int32 frommod, Oid to, int32 tomod);
static void plan_column(ColumnPlan *column, PosPgAttribute *attribute,
						PosColumn *asked);
static Datum convert_value(PosPgPlan *plan, ColumnPlan *column, char *data,
						   int len, bool *isnull);
static int64 convert_integer(const char *data, int len);
static int32 take_int32(char **p, char *end);
static int	take_int16(char **p, char *end);
pos_noreturn static void broken(void);
static void convert_error(void *arg);

/*
 * Whether values of a remote column can become values of the type that is
 * asked for (form VALUE).
 */
bool
pos_pg_convertible(PosPgAttribute *attribute, PosColumn *column)
{
	Oid			local = getBaseType(column->type);

	if (!is_builtin(attribute->type))
		return has_same_kind(attribute, local);

	return attribute->type == local ||
		make_cast(attribute->type, attribute->typmod, column->type,
				  column->typmod) != NULL ||
		(attribute->category == TYPCATEGORY_STRING && type_is_enum(local));
}

/*
 * The type in which a key column is delivered (form KEY).
 */
Oid
pos_pg_key_type(PosPgAttribute *attribute)
{
	return is_integer(attribute->type) ? INT8OID : TEXTOID;
}

/*
 * Decides how the columns of a described table travel.  The plan lives in the
 * current memory context.
 */
PosPgPlan *
pos_pg_plan(PosPgSession *session, PosTable *table)
{
	PosPgRelation *relation = pos_pg_relation(session, table->remote);
	PosPgPlan  *plan = palloc0(offsetof(PosPgPlan, columns) +
							   sizeof(ColumnPlan) * table->ncolumns);

	plan->server = session->base.server->servername;
	plan->table = table->remote;
	plan->ncolumns = table->ncolumns;
	plan->current = -1;
	plan->econtext = CreateStandaloneExprContext();
	for (int i = 0; i < table->ncolumns; i++)
	{
		PosColumn  *asked = &table->columns[i];

		plan_column(&plan->columns[i],
					pos_pg_attribute(relation, asked->remote), asked);
	}

	return plan;
}

/*
 * Whether the remote is to send a column as text.
 */
bool
pos_pg_plan_as_text(PosPgPlan *plan, int column)
{
	return plan->columns[column].way == WAY_TEXT;
}

/*
 * Converts one row of a binary COPY.  By-reference values are allocated in the
 * current memory context.  The data is written to, but restored.
 */
void
pos_pg_convert(PosPgPlan *plan, char *data, int len, Datum *values,
			   bool *nulls)
{
	char	   *p = data;
	char	   *end = data + len;
	ErrorContextCallback callback;

	callback.callback = convert_error;
	callback.arg = plan;
	callback.previous = error_context_stack;
	error_context_stack = &callback;

	if (take_int16(&p, end) != plan->ncolumns)
		broken();
	for (int i = 0; i < plan->ncolumns; i++)
	{
		int32		size = take_int32(&p, end);

		if (size < -1 || size > end - p)
			broken();
		plan->current = i;
		values[i] = convert_value(plan, &plan->columns[i],
								  size == -1 ? NULL : p, size, &nulls[i]);
		plan->current = -1;
		if (size > 0)
			p += size;
	}
	if (p != end)
		broken();

	error_context_stack = callback.previous;
}

static bool
is_builtin(Oid type)
{
	return type < FIRST_UNSTABLE_OID;
}

static bool
is_integer(Oid type)
{
	return type == INT2OID || type == INT4OID || type == INT8OID;
}

/*
 * Whether the text of a remote type that is not built in can be expected to be
 * understood by a local type: both enums, both composites and so on, or types
 * of one name, as an extension makes them.  Whether labels and fields agree
 * shows row by row.  A string takes anything.
 */
static bool
has_same_kind(PosPgAttribute *attribute, Oid local)
{
	Oid			element = get_element_type(local);
	Oid			type = OidIsValid(element) ? getBaseType(element) : local;
	char		kind = attribute->elemtype != '\0' ?
	attribute->elemtype : attribute->typtype;

	if (is_string(local))
		return true;
	if (OidIsValid(element) != (attribute->elemtype != '\0'))
		return false;

	/* elements that are domains over something: their input decides */
	if (kind == TYPTYPE_DOMAIN)
		return true;
	if (get_typtype(type) != kind)
		return false;

	return kind != TYPTYPE_BASE || has_name(type, attribute->basename);
}

static bool
is_string(Oid type)
{
	char		category;
	bool		preferred;

	get_type_category_preferred(type, &category, &preferred);

	return category == TYPCATEGORY_STRING;
}

static bool
has_name(Oid type, const char *name)
{
	HeapTuple	tuple = SearchSysCache1(TYPEOID, ObjectIdGetDatum(type));
	bool		result;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for type %u", type);
	result = strcmp(NameStr(((Form_pg_type) GETSTRUCT(tuple))->typname),
					name) == 0;
	ReleaseSysCache(tuple);

	return result;
}

/*
 * Whether the binary form of a built-in type means the same here and arrives
 * intact.
 */
static bool
travels_binary(Oid type)
{
	Oid			inner = get_element_type(type);
	HeapTuple	tuple;
	Form_pg_type form;
	bool		result;

	/* an empty one is sent, but not received, tsquery by some releases */
	if (type == INT2VECTOROID || type == OIDVECTOROID || type == TSQUERYOID)
		return false;

	if (!OidIsValid(inner) && type_is_multirange(type))
		inner = get_multirange_range(type);
	if (!OidIsValid(inner) && type_is_range(type))
		inner = get_range_subtype(type);
	if (OidIsValid(inner))
		return travels_binary(inner);

	switch (type)
	{
		case REGPROCOID:
		case REGPROCEDUREOID:
		case REGOPEROID:
		case REGOPERATOROID:
		case REGCLASSOID:
		case REGCOLLATIONOID:
		case REGTYPEOID:
		case REGROLEOID:
		case REGNAMESPACEOID:
		case REGCONFIGOID:
		case REGDICTIONARYOID:
			return false;		/* an oid of the remote's catalogs */
		case XMLOID:
			return false;		/* declares an encoding */
		case BYTEAOID:
		case UUIDOID:
			return true;
		default:
			break;
	}

	tuple = SearchSysCache1(TYPEOID, ObjectIdGetDatum(type));
	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for type %u", type);
	form = (Form_pg_type) GETSTRUCT(tuple);
	result = OidIsValid(form->typreceive) &&
		(pg_get_client_encoding() == GetDatabaseEncoding() ||
		 strchr(stringless_categories, form->typcategory) != NULL);
	ReleaseSysCache(tuple);

	return result;
}

/*
 * The expression by which an INSERT would assign one type to another; it takes
 * its input from the expression context's case value.  NULL if it would not.
 */
static Node *
make_cast(Oid from, int32 frommod, Oid to, int32 tomod)
{
	CaseTestExpr *input = makeNode(CaseTestExpr);

	input->typeId = from;
	input->typeMod = frommod;
	input->collation = get_typcollation(from);

	return coerce_to_target_type(NULL, (Node *) input, from, to, tomod,
								 COERCION_ASSIGNMENT, COERCE_IMPLICIT_CAST,
								 -1);
}

static void
plan_column(ColumnPlan *column, PosPgAttribute *attribute, PosColumn *asked)
{
	Oid			type = asked->form == POS_FORM_VALUE ? asked->type : TEXTOID;
	Oid			function;
	bool		binary = false;

	column->remote = attribute->name;
	column->typmod = asked->form == POS_FORM_VALUE ? asked->typmod : -1;

	if (asked->form == POS_FORM_KEY && is_integer(attribute->type))
	{
		column->way = WAY_INTEGER;
		return;
	}

	if (asked->form == POS_FORM_VALUE && is_builtin(attribute->type))
	{
		if (attribute->type == getBaseType(type))
			binary = travels_binary(attribute->type);
		else
		{
			Node	   *cast = make_cast(attribute->type, attribute->typmod,
										 type, asked->typmod);

			if (cast != NULL)
			{
				column->cast = ExecInitExpr(expression_planner((Expr *) cast),
											NULL);
				binary = travels_binary(attribute->type);
				column->castnull = get_typtype(type) == TYPTYPE_DOMAIN;
				type = attribute->type;
				column->typmod = -1;
			}
		}
	}

	if (binary)
	{
		column->way = WAY_BINARY;
		getTypeBinaryInputInfo(type, &function, &column->ioparam);
	}
	else
	{
		column->way = WAY_TEXT;
		getTypeInputInfo(type, &function, &column->ioparam);
	}
	fmgr_info(function, &column->function);
}

/*
 * Converts one field; data is NULL for a null.
 *
 * Receive functions may look at the byte behind their input and expect it to
 * be zero, and input functions need it to be.  There is one: of the next
 * field's length, or libpq's own at the end of a row.
 */
static Datum
convert_value(PosPgPlan *plan, ColumnPlan *column, char *data, int len,
			  bool *isnull)
{
	Datum		value = (Datum) 0;
	bool		strict = column->way == WAY_INTEGER ||
	column->function.fn_strict;
	char		behind = '\0';

	*isnull = data == NULL;
	if (data != NULL)
	{
		behind = data[len];
		data[len] = '\0';
	}

	if (*isnull && strict)
		 /* stays null */ ;
	else if (column->way == WAY_INTEGER)
		value = Int64GetDatum(convert_integer(data, len));
	else if (column->way == WAY_BINARY)
	{
		StringInfoData buf;

		buf.data = data;
		buf.len = len;
		buf.maxlen = len + 1;
		buf.cursor = 0;
		value = ReceiveFunctionCall(&column->function,
									*isnull ? NULL : &buf, column->ioparam,
									column->typmod);
		if (!*isnull && buf.cursor != len)
			broken();
	}
	else
	{
		if (!*isnull)
			(void) pg_verifymbstr(data, len, false);
		value = InputFunctionCall(&column->function, data, column->ioparam,
								  column->typmod);
	}

	if (data != NULL)
		data[len] = behind;

	if (column->cast != NULL && (!*isnull || column->castnull))
	{
		plan->econtext->caseValue_datum = value;
		plan->econtext->caseValue_isNull = *isnull;
		value = ExecEvalExpr(column->cast, plan->econtext, isnull);
	}

	return value;
}

static int64
convert_integer(const char *data, int len)
{
	uint16		n16;
	uint32		n32;
	uint64		n64;

	switch (len)
	{
		case sizeof(n16):
			memcpy(&n16, data, len);
			return (int16) pg_ntoh16(n16);
		case sizeof(n32):
			memcpy(&n32, data, len);
			return (int32) pg_ntoh32(n32);
		case sizeof(n64):
			memcpy(&n64, data, len);
			return (int64) pg_ntoh64(n64);
		default:
			broken();
	}
}

static int32
take_int32(char **p, char *end)
{
	uint32		n;

	if (end - *p < sizeof(n))
		broken();
	memcpy(&n, *p, sizeof(n));
	*p += sizeof(n);

	return (int32) pg_ntoh32(n);
}

static int
take_int16(char **p, char *end)
{
	uint16		n;

	if (end - *p < sizeof(n))
		broken();
	memcpy(&n, *p, sizeof(n));
	*p += sizeof(n);

	return (int16) pg_ntoh16(n);
}

static void
broken(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_PROTOCOL_VIOLATION),
			 errmsg("row received in an unexpected format")));
}

static void
convert_error(void *arg)
{
	PosPgPlan  *plan = (PosPgPlan *) arg;

	if (plan->current >= 0)
		errcontext("column \"%s\" of remote table %s, server \"%s\"",
				   plan->columns[plan->current].remote, plan->table,
				   plan->server);
	else
		errcontext("remote table %s, server \"%s\"", plan->table,
				   plan->server);
}
