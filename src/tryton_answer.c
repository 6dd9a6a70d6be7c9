/*
 * tryton_answer.c
 *		From the bytes of an answer to jsonb, and what is taken out of that.
 *
 * The bytes come from somebody else: nothing is believed of them.  Nesting is
 * bounded before PostgreSQL's parser, which recurses, gets to see them.
 */
#include "postgres.h"

#include "connection_tryton.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"

/* Tryton's own answers nest less than ten deep */
#define MOST_NESTED		64

pos_noreturn static void refuse(const char *server, const char *detail);

static void
refuse(const char *server, const char *detail)
{
	ereport(ERROR,
			(errcode(ERRCODE_FDW_ERROR),
			 errmsg("server \"%s\" sent an answer that is not Tryton's", server),
			 errdetail_internal("%s", detail)));
}

/*
 * Looks at an answer from outside of its strings.  Returns how many numbers in it
 * are none: Python writes NaN, Infinity and -Infinity as they are.
 */
static int
scan(const char *server, const char *body, Size len)
{
	bool		in_string = false;
	int			depth = 0;
	int			odd = 0;

	for (Size i = 0; i < len; i++)
	{
		char		c = body[i];

		if (in_string)
		{
			if (c == '\\')
				i++;
			else if (c == '"')
				in_string = false;
			continue;
		}
		switch (c)
		{
			case '"':
				in_string = true;
				break;
			case '{':
			case '[':
				if (++depth > MOST_NESTED)
					refuse(server, "It is nested too deeply.");
				break;
			case '}':
			case ']':
				depth--;
				break;
			case 'N':
			case 'I':
				odd++;
				break;
			case '\0':
				refuse(server, "It contains a zero byte.");
		}
	}
	return odd;
}

/* Returns the answer with those numbers as strings. */
static char *
quote_odd(const char *body, Size len, int odd)
{
	char	   *quoted = palloc(len + 2 * odd + 1);
	char	   *to = quoted;
	bool		in_string = false;

	for (Size i = 0; i < len; i++)
	{
		char		c = body[i];
		bool		escaped = in_string && c == '\\';

		if (!in_string && (c == 'N' || c == 'I'))
		{
			/* a sign stands before it */
			bool		negative = to > quoted && to[-1] == '-';

			if (negative)
				to--;
			*to++ = '"';
			if (negative)
				*to++ = '-';
			while (i < len && isalpha((unsigned char) body[i]))
				*to++ = body[i++];
			*to++ = '"';
			i--;
			continue;
		}
		if (c == '"')
			in_string = !in_string;
		*to++ = c;
		if (escaped && i + 1 < len)
			*to++ = body[++i];
	}
	*to = '\0';
	return quoted;
}

/* Returns a text as jsonb; errors with fdw_error if it is not JSON. */
static Jsonb *
parse(const char *server, const char *text)
{
	MemoryContext context = CurrentMemoryContext;
	Jsonb	   *volatile result = NULL;

	PG_TRY();
	{
		char	   *ours = pg_any_to_server(text, strlen(text), PG_UTF8);

		result = DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum(ours)));
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		if (ERRCODE_TO_CATEGORY(error->sqlerrcode) != ERRCODE_DATA_EXCEPTION &&
			ERRCODE_TO_CATEGORY(error->sqlerrcode) != ERRCODE_PROGRAM_LIMIT_EXCEEDED)
			PG_RE_THROW();
		FlushErrorState();
		refuse(server, error->detail != NULL ?
			   psprintf("%s: %s", error->message, error->detail) : error->message);
	}
	PG_END_TRY();
	return result;
}

/*
 * Returns an answer as jsonb, in the current memory context; body ends with a
 * zero byte.  Errors with fdw_error if it is not JSON.
 */
Jsonb *
pos_tryton_answer(const char *server, const char *body, Size len)
{
	int			odd = scan(server, body, len);

	return parse(server, odd == 0 ? body : quote_odd(body, len, odd));
}

/*
 * Looks up a member of an object.  Returns it in *value, or NULL if there is no
 * such member, or no object.
 */
JsonbValue *
pos_tryton_get(JsonbContainer *object, const char *key, JsonbValue *value)
{
	if (object == NULL || !JsonContainerIsObject(object))
		return NULL;
	return getKeyJsonValueFromContainer(object, key, strlen(key), value);
}

/* Whether a value is an integer that we can hold. */
bool
pos_tryton_integer(JsonbValue *value, int64 *result)
{
	char	   *text;
	char	   *end;

	if (value == NULL || value->type != jbvNumeric)
		return false;
	text = DatumGetCString(DirectFunctionCall1(numeric_out,
											   NumericGetDatum(value->val.numeric)));

	errno = 0;
	*result = strtoll(text, &end, 10);
	return errno == 0 && *end == '\0';
}

/* Returns a string's text; NULL if it is none. */
char *
pos_tryton_string(JsonbValue *value)
{
	if (value == NULL || value->type != jbvString)
		return NULL;
	return pnstrdup(value->val.string.val, value->val.string.len);
}

/* Returns a member that is a string; NULL if there is none. */
char *
pos_tryton_text(JsonbContainer *object, const char *key)
{
	JsonbValue	value;

	return pos_tryton_string(pos_tryton_get(object, key, &value));
}

/* Raises the error of an answer that is JSON and not what was asked for. */
void
pos_tryton_odd(PosTrytonSession *session)
{
	refuse(session->options.http.server,
		   psprintf("It does not answer \"%s\".", session->method));
}
