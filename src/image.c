/*
 * image.c
 *		Images of rows, as they wait in the queue: read.
 *
 * An image is a JSON object of strings, one for each column that is not null, with
 * what the type's output function makes of it under settings that every session
 * reads (queue.c writes them).
 */
#include "possync.h"

#include "catalog/pg_type.h"
#include "compat.h"
#include "image.h"
#include "utils/builtins.h"
#include "utils/json.h"
#include "utils/lsyscache.h"

/* Returns the labels that images of a table's rows have: names as JSON. */
List *
pos_image_labels(Relation rel)
{
	List	   *labels = NIL;

	for (int a = 0; a < RelationGetNumberOfAttributes(rel); a++)
	{
		Form_pg_attribute attr = TupleDescAttr(RelationGetDescr(rel), a);
		StringInfoData label;

		if (attr->attisdropped)
			continue;
		initStringInfo(&label);
		escape_json(&label, NameStr(attr->attname));
		labels = lappend(labels, label.data);
	}
	return labels;
}

/* Returns the end of a JSON string that begins at p. */
static const char *
string_end(const char *p, const char *end)
{
	for (p++; p < end && *p != '"'; p++)
		if (*p == '\\')
			p++;
	return p + 1;
}

/*
 * Returns a label of an image that is none of these, NULL if there is none.  A
 * column that was renamed since would silently become null.
 */
char *
pos_image_stranger(text *image, List *labels)
{
	const char *p = VARDATA_ANY(image) + 1;
	const char *end = VARDATA_ANY(image) + VARSIZE_ANY_EXHDR(image);

	while (p < end && *p == '"')
	{
		const char *label = p;
		ListCell   *lc;
		bool		known = false;

		p = string_end(p, end);
		foreach(lc, labels)
			if (strlen(lfirst(lc)) == p - label &&
				memcmp(lfirst(lc), label, p - label) == 0)
		{
			known = true;
			break;
		}
		if (!known)
			return pnstrdup(label, p - label);
		p = string_end(p + 1, end) + 1; /* its value, a string, and a comma */
	}
	return NULL;
}

/* Whether a value is JSON itself, which an image holds as a string. */
static bool
is_json(PosField *field)
{
	return field->base == JSONOID || field->base == JSONBOID;
}

/* Returns the name of a column's type, without a modifier that could cut. */
static char *
type_name(PosField *field)
{
	return format_type_extended(field->type, -1, FORMAT_TYPE_TYPEMOD_GIVEN |
								FORMAT_TYPE_FORCE_QUALIFY);
}

/* Appends what json_to_record has to be told of a column of an image. */
void
pos_image_append_column(StringInfo sql, PosField *field)
{
	appendStringInfo(sql, "%s %s", quote_identifier(field->name),
					 is_json(field) ? "pg_catalog.text" : type_name(field));
}

/* Appends the value of a column of what that returns. */
void
pos_image_append_value(StringInfo sql, const char *alias, PosField *field)
{
	appendStringInfo(sql, "%s.%s", alias, quote_identifier(field->name));
	if (is_json(field))
		appendStringInfo(sql, "::%s", type_name(field));
}

/* A column of a model's images */
typedef struct ImageColumn
{
	PosField   *field;
	FmgrInfo	input;
	Oid			ioparam;
} ImageColumn;

struct PosImageReader
{
	PosModel   *model;
	int			ncolumns;
	int		   *following;		/* [0]: whose label came first; [i + 1]: after
								 * that of column i */
	ImageColumn columns[FLEXIBLE_ARRAY_MEMBER];
};

/*
 * Makes ready for images of a model, in the current memory context.  Types may have
 * code of their own: to be called, and used, as the owner of the table.
 */
PosImageReader *
pos_image_prepare(PosModel *model)
{
	PosImageReader *reader = palloc0(offsetof(PosImageReader, columns) +
									 model->nwritten * sizeof(ImageColumn));

	reader->model = model;
	reader->ncolumns = model->nwritten;
	reader->following = palloc0((model->nwritten + 1) * sizeof(int));
	for (int i = 0; i < model->nwritten; i++)
	{
		ImageColumn *column = &reader->columns[i];
		Oid			input;

		column->field = model->written[i];
		getTypeInputInfo(column->field->type, &input, &column->ioparam);
		fmgr_info(input, &column->input);
	}
	return reader;
}

/*
 * Returns the column of this name, NULL if it is none that is written.  last is that
 * of the label before: images of a table have their labels in the same order.
 */
static ImageColumn *
find_column(PosImageReader *reader, const char *label, int *last)
{
	int			likely = reader->following[*last];

	if (strcmp(reader->columns[likely].field->name, label) != 0)
	{
		for (likely = 0; likely < reader->ncolumns; likely++)
			if (strcmp(reader->columns[likely].field->name, label) == 0)
				break;
		if (likely == reader->ncolumns)
			return NULL;
		reader->following[*last] = likely;
	}
	*last = likely + 1;
	return &reader->columns[likely];
}

pos_noreturn static void
malformed(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_DATA_CORRUPTED),
			 errmsg("queued image of a row is not of the form that possync writes")));
}

static void
advance(JsonLexContext *lex)
{
	if (json_lex(lex) != JSON_SUCCESS)
		malformed();
}

/* Takes the next token, which has to be of a kind. */
static void
take(JsonLexContext *lex, JsonTokenType kind)
{
	advance(lex);
	if (lex->token_type != kind)
		malformed();
}

/* Reads an image into staged columns; those that it does not have are null. */
void
pos_image_read(PosImageReader *reader, Datum image, Datum *values, bool *nulls)
{
	text	   *json = DatumGetTextPP(image);
	JsonLexContext *lex = pos_compat_json_lexer(VARDATA_ANY(json),
												VARSIZE_ANY_EXHDR(json));
	int			last = 0;

	for (int i = 0; i < reader->ncolumns; i++)
		nulls[reader->columns[i].field->staged] = true;
	take(lex, JSON_TOKEN_OBJECT_START);
	advance(lex);
	while (lex->token_type == JSON_TOKEN_STRING)
	{
		ImageColumn *column = find_column(reader, lex->strval->data, &last);

		take(lex, JSON_TOKEN_COLON);
		take(lex, JSON_TOKEN_STRING);
		if (column != NULL)
		{
			values[column->field->staged] =
				InputFunctionCall(&column->input, lex->strval->data,
								  column->ioparam, -1);
			nulls[column->field->staged] = false;
		}
		advance(lex);
		if (lex->token_type == JSON_TOKEN_COMMA)
			take(lex, JSON_TOKEN_STRING);
	}
	if (lex->token_type != JSON_TOKEN_OBJECT_END)
		malformed();
}
