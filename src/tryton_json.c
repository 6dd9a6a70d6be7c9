/*
 * tryton_json.c
 *		Our values as the remote's: from the text of a type to JSON that Tryton
 *		understands.
 *
 * A number with decimals always goes as a Decimal: a JSON number would be a float
 * on the other side.  Times are naive there, and in UTC.
 */
#include "postgres.h"

#include <math.h>

#include "catalog/pg_type.h"
#include "common/base64.h"
#include "connection_tryton.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/date.h"
#include "utils/datetime.h"
#include "utils/fmgrprotos.h"
#include "utils/json.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"

static void
append_date(StringInfo buf, struct pg_tm *tm)
{
	appendStringInfo(buf, "\"year\":%d,\"month\":%d,\"day\":%d", tm->tm_year, tm->tm_mon,
					 tm->tm_mday);
}

static void
append_clock(StringInfo buf, struct pg_tm *tm, fsec_t fsec)
{
	appendStringInfo(buf, "\"hour\":%d,\"minute\":%d,\"second\":%d,\"microsecond\":%d",
					 tm->tm_hour, tm->tm_min, tm->tm_sec, (int) fsec);
}

pos_noreturn static void refuse(PosTrytonField *field, const char *text);

static void
refuse(PosTrytonField *field, const char *text)
{
	ereport(ERROR,
			(errcode(ERRCODE_DATATYPE_MISMATCH),
			 errmsg("\"%s\" is no value for field \"%s\" of Tryton's, a %s field",
					text, field->name, field->type)));
}

/* Appends a time stamp; one without a time zone is taken for UTC. */
static void
append_timestamp(StringInfo buf, PosTrytonField *field, const char *text)
{
	Size		date = strcspn(text, " T");
	bool		zone = strpbrk(text +date, "+-Zz") != NULL;
	Timestamp	timestamp;
	struct pg_tm tm;
	fsec_t		fsec;

	timestamp = DatumGetTimestamp(DirectFunctionCall3(zone ? timestamptz_in : timestamp_in,
													  CStringGetDatum(text),
													  ObjectIdGetDatum(InvalidOid),
													  Int32GetDatum(-1)));
	if (TIMESTAMP_NOT_FINITE(timestamp) ||
		timestamp2tm(timestamp, NULL, &tm, &fsec, NULL, NULL) != 0)
		refuse(field, text);
	appendStringInfoString(buf, "{\"__class__\":\"datetime\",");
	append_date(buf, &tm);
	appendStringInfoChar(buf, ',');
	append_clock(buf, &tm, fsec);
	appendStringInfoChar(buf, '}');
}

static void
append_date_value(StringInfo buf, PosTrytonField *field, const char *text)
{
	DateADT		date = DatumGetDateADT(DirectFunctionCall1(date_in, CStringGetDatum(text)));
	struct pg_tm tm;

	if (DATE_NOT_FINITE(date))
		refuse(field, text);
	j2date(date + POSTGRES_EPOCH_JDATE, &tm.tm_year, &tm.tm_mon, &tm.tm_mday);
	appendStringInfoString(buf, "{\"__class__\":\"date\",");
	append_date(buf, &tm);
	appendStringInfoChar(buf, '}');
}

static void
append_time_value(StringInfo buf, const char *text)
{
	TimeADT		time = DatumGetTimeADT(DirectFunctionCall3(time_in, CStringGetDatum(text),
														   ObjectIdGetDatum(InvalidOid),
														   Int32GetDatum(-1)));
	struct pg_tm tm;
	fsec_t		fsec;

	(void) time2tm(time, &tm, &fsec);
	appendStringInfoString(buf, "{\"__class__\":\"time\",");
	append_clock(buf, &tm, fsec);
	appendStringInfoChar(buf, '}');
}

/* Appends an interval; months have no length. */
static void
append_interval(StringInfo buf, PosTrytonField *field, const char *text)
{
	Interval   *interval = DatumGetIntervalP(DirectFunctionCall3(interval_in,
																 CStringGetDatum(text),
																 ObjectIdGetDatum(InvalidOid),
																 Int32GetDatum(-1)));
	int64		time = interval->day * USECS_PER_DAY + interval->time;
	int64		length = llabs(time);

	if (interval->month != 0)
		refuse(field, text);
	appendStringInfo(buf, "{\"__class__\":\"timedelta\",\"seconds\":%s" INT64_FORMAT ".%06d}",
					 time < 0 ? "-" : "", length / USECS_PER_SEC,
					 (int) (length % USECS_PER_SEC));
}

static void
append_bytes(StringInfo buf, const char *text)
{
	bytea	   *bytes = DatumGetByteaPP(DirectFunctionCall1(byteain, CStringGetDatum(text)));
	int			size = pg_b64_enc_len(VARSIZE_ANY_EXHDR(bytes));
	int			len;

	appendStringInfoString(buf, "{\"__class__\":\"bytes\",\"base64\":\"");
	enlargeStringInfo(buf, size);
	len = pg_b64_encode((void *) VARDATA_ANY(bytes), VARSIZE_ANY_EXHDR(bytes), buf->data + buf->len, size);
	if (len < 0)
		elog(ERROR, "could not encode bytes");
	buf->len += len;
	buf->data[buf->len] = '\0';
	appendStringInfoString(buf, "\"}");
}

/* Appends a list of words, given as an array or as JSON. */
static void
append_words(StringInfo buf, const char *list)
{
	ArrayType  *array;
	Datum	   *words;
	bool	   *nulls;
	int			n;
	Oid			input;
	Oid			ioparam;

	if (list[0] == '[')
	{
		(void) DirectFunctionCall1(json_in, CStringGetDatum(list));
		appendStringInfoString(buf, list);
		return;
	}
	getTypeInputInfo(TEXTARRAYOID, &input, &ioparam);
	array = DatumGetArrayTypeP(OidInputFunctionCall(input, pstrdup(list), ioparam, -1));
	deconstruct_array(array, TEXTOID, -1, false, TYPALIGN_INT, &words, &nulls, &n);
	appendStringInfoChar(buf, '[');
	for (int i = 0; i < n; i++)
	{
		appendStringInfoString(buf, i > 0 ? "," : "");
		if (nulls[i])
			appendStringInfoString(buf, "null");
		else
			escape_json(buf, TextDatumGetCString(words[i]));
	}
	appendStringInfoChar(buf, ']');
}

/*
 * Appends the JSON of a value for a field, from its text; NULL for null.  Errors
 * of class data exception if that is no value for it.
 */
void
pos_tryton_append_json(StringInfo buf, PosTrytonField *field, const char *text)
{
	if (text == NULL)
	{
		appendStringInfoString(buf, "null");
		return;
	}
	switch (pos_tryton_type(field))
	{
		case INT4OID:
		case INT8OID:
			appendStringInfo(buf, INT64_FORMAT,
							 DatumGetInt64(DirectFunctionCall1(int8in, CStringGetDatum(text))));
			break;
		case FLOAT8OID:
			{
				float8		number = DatumGetFloat8(DirectFunctionCall1(float8in, CStringGetDatum(text)));

				if (isnan(number) || isinf(number))
					refuse(field, text);
				appendStringInfoString(buf,
									   DatumGetCString(DirectFunctionCall1(float8out,
																		   Float8GetDatum(number))));
				break;
			}
		case NUMERICOID:
			{
				Datum		number = DirectFunctionCall3(numeric_in, CStringGetDatum(text),
														 ObjectIdGetDatum(InvalidOid),
														 Int32GetDatum(-1));

				if (numeric_is_nan(DatumGetNumeric(number)) || numeric_is_inf(DatumGetNumeric(number)))
					refuse(field, text);
				appendStringInfo(buf, "{\"__class__\":\"Decimal\",\"decimal\":\"%s\"}",
								 DatumGetCString(DirectFunctionCall1(numeric_out, number)));
				break;
			}
		case BOOLOID:
			appendStringInfoString(buf,
								   DatumGetBool(DirectFunctionCall1(boolin, CStringGetDatum(text))) ?
								   "true" : "false");
			break;
		case DATEOID:
			append_date_value(buf, field, text);
			break;
		case TIMESTAMPTZOID:
			append_timestamp(buf, field, text);
			break;
		case TIMEOID:
			append_time_value(buf, text);
			break;
		case INTERVALOID:
			append_interval(buf, field, text);
			break;
		case BYTEAOID:
			append_bytes(buf, text);
			break;
		case JSONBOID:
			(void) DirectFunctionCall1(json_in, CStringGetDatum(text));
			appendStringInfoString(buf, text);
			break;
		case TEXTARRAYOID:
			append_words(buf, text);
			break;
		case TEXTOID:
			escape_json(buf, text);
			break;
		default:
			refuse(field, text);
	}
}
