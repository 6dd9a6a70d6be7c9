/*
 * key.c
 *		Keys in their canonical form: int8, or text.
 *
 * See model.h for what the form is.  The text of a key must be the same in
 * every session, so types whose text depends on settings are written with
 * pinned ones.
 */
#include "possync.h"

#include "catalog/pg_type.h"
#include "model.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"

/* Returns the part of a model's key that a column is, or -1. */
int
pos_key_part(PosModel *model, AttrNumber attnum)
{
	for (int i = 0; i < model->nkey; i++)
		if (model->key[i]->attnum == attnum)
			return i;
	return -1;
}

/*
 * Whether the text of a type's values may depend on the session's settings: of
 * all but the usual types of keys.
 */
static bool
depends_on_settings(Oid type)
{
	Oid			base = getBaseType(type);
	char		category;
	bool		preferred;

	get_type_category_preferred(base, &category, &preferred);
	return category != TYPCATEGORY_STRING && base != UUIDOID &&
		base != NUMERICOID && !pos_key_is_integer(base);
}

/*
 * Makes values have texts that mean the same to everybody, until AtEOXact_GUC is
 * called with what it returns.
 */
int
pos_key_pin_settings(void)
{
	static const char *const settings[][2] = {
		{"datestyle", "ISO"}, {"intervalstyle", "postgres"},
		{"timezone", "UTC"}, {"extra_float_digits", "1"},
		{"bytea_output", "hex"}, {"lc_monetary", "C"}
	};
	int			nestlevel = NewGUCNestLevel();

	for (int i = 0; i < lengthof(settings); i++)
		(void) set_config_option(settings[i][0], settings[i][1],
								 PGC_USERSET, PGC_S_SESSION,
								 GUC_ACTION_SAVE, true, 0, false);
	return nestlevel;
}

/* Returns a value's text, independent of the session's settings. */
static Datum
column_text(Oid type, Datum value)
{
	Oid			output;
	bool		varlena;
	bool		pin = depends_on_settings(type);
	int			nestlevel = 0;
	char	   *string;

	getTypeOutputInfo(type, &output, &varlena);
	if (pin)
		nestlevel = pos_key_pin_settings();
	string = OidOutputFunctionCall(output, value);
	if (pin)
		AtEOXact_GUC(true, nestlevel);
	return CStringGetTextDatum(string);
}

/* Returns the value of a column's type that has this text. */
static Datum
column_value(Oid type, const char *string)
{
	Oid			input;
	Oid			ioparam;

	getTypeInputInfo(type, &input, &ioparam);
	return OidInputFunctionCall(input, unconstify(char *, string), ioparam, -1);
}

/* Returns the canonical key made of several texts. */
Datum
pos_key_from_parts(int nparts, Datum *texts)
{
	ArrayType  *array = construct_array(texts, nparts, TEXTOID, -1, false,
										TYPALIGN_INT);

	return CStringGetTextDatum(OidOutputFunctionCall(F_ARRAY_OUT,
													 PointerGetDatum(array)));
}

/* Takes a canonical key of several columns apart into nparts texts. */
void
pos_key_to_parts(Datum key, int nparts, Datum *texts)
{
	Datum		array = OidInputFunctionCall(F_ARRAY_IN, TextDatumGetCString(key),
											 TEXTOID, -1);
	Datum	   *elements;
	int			nelements;

	deconstruct_array(DatumGetArrayTypeP(array), TEXTOID, -1, false,
					  TYPALIGN_INT, &elements, NULL, &nelements);
	if (nelements != nparts)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("key %s does not have %d parts",
						TextDatumGetCString(key), nparts)));
	memcpy(texts, elements, nparts * sizeof(Datum));
}

/* Whether a type, no domain, is one of the integers that make an int8 key. */
bool
pos_key_is_integer(Oid base)
{
	return base == INT2OID || base == INT4OID || base == INT8OID;
}

/* Returns a number as a value of an integer type; errors when it does not fit. */
Datum
pos_key_integer(Oid base, int64 number)
{
	switch (base)
	{
		case INT2OID:
			return DirectFunctionCall1(int82, Int64GetDatum(number));
		case INT4OID:
			return DirectFunctionCall1(int84, Int64GetDatum(number));
		default:
			return Int64GetDatum(number);
	}
}

/* Returns the value of an integer type as an int8. */
Datum
pos_key_from_integer(Oid base, Datum value)
{
	switch (base)
	{
		case INT2OID:
			return Int64GetDatum((int64) DatumGetInt16(value));
		case INT4OID:
			return Int64GetDatum((int64) DatumGetInt32(value));
		default:
			return value;
	}
}

/*
 * Fills the values of a model's key columns (nkey of them) from a canonical
 * local key.
 */
void
pos_key_to_columns(PosModel *model, Datum key, Datum *values)
{
	if (model->local_int)
		values[0] = pos_key_integer(model->key[0]->base,
									DatumGetInt64(key));
	else if (model->nkey == 1)
		values[0] = column_value(model->key[0]->type, TextDatumGetCString(key));
	else
	{
		pos_key_to_parts(key, model->nkey, values);
		for (int i = 0; i < model->nkey; i++)
			values[i] = column_value(model->key[i]->type,
									 TextDatumGetCString(values[i]));
	}
}

/*
 * Returns the canonical key of the values of one or more columns of the given
 * types.
 */
Datum
pos_key_from_values(int nkey, Oid *types, Datum *values)
{
	Oid			base = getBaseType(types[0]);
	Datum	   *texts;

	if (nkey == 1 && pos_key_is_integer(base))
		return pos_key_from_integer(base, values[0]);
	if (nkey == 1)
		return column_text(types[0], values[0]);

	texts = palloc(nkey * sizeof(Datum));
	for (int i = 0; i < nkey; i++)
		texts[i] = column_text(types[i], values[i]);
	return pos_key_from_parts(nkey, texts);
}

/*
 * Returns the canonical local key of the values of a model's key columns.
 * Errors if one of them is null, as a default or a local row may have it.
 */
Datum
pos_key_from_columns(PosModel *model, Datum *values, bool *nulls)
{
	Oid			types[INDEX_MAX_KEYS];

	for (int i = 0; i < model->nkey; i++)
		if (nulls[i])
			ereport(ERROR,
					(errcode(ERRCODE_NOT_NULL_VIOLATION),
					 errmsg("null value in key column \"%s\" of table %s",
							model->key[i]->name, model->name)));
	if (model->local_int)
		return pos_key_from_integer(model->key[0]->base, values[0]);
	for (int i = 0; i < model->nkey; i++)
		types[i] = model->key[i]->type;
	return pos_key_from_values(model->nkey, types, values);
}

/* Returns a canonical key as a C string. */
char *
pos_key_string(Datum key, bool is_int)
{
	char	   *string;

	if (!is_int)
		return TextDatumGetCString(key);
	string = palloc(MAXINT8LEN + 1);
	pg_lltoa(DatumGetInt64(key), string);
	return string;
}

/* Returns the canonical key written as a C string by pos_key_string. */
Datum
pos_key_from_string(const char *string, bool is_int)
{
	if (is_int)
		return DirectFunctionCall1(int8in, CStringGetDatum(string));
	return CStringGetTextDatum(string);
}
