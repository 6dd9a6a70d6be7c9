/*
 * queue.c
 *		Capture: committed changes of the user's tables into synchronize_queue.
 *
 * The trigger runs in the selling transaction and costs it one insert: no SQL,
 * no network, no lock that another seller could wait for.  It stores the row as
 * it is, so that what is pushed later is what this transaction wrote and not
 * what somebody made of it afterwards.  What possync itself writes is not
 * captured; what triggers of the user's write because of that is.
 */
#include "possync.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/indexing.h"
#include "catalog/pg_type.h"
#include "commands/sequence.h"
#include "commands/trigger.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "model.h"
#include "queue.h"
#include "store.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/datetime.h"
#include "utils/float.h"
#include "utils/fmgrprotos.h"
#include "utils/guc.h"
#include "utils/json.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/timestamp.h"

/* Columns of synchronize_queue */
enum
{
	COL_TXID, COL_ID, COL_MODEL, COL_OPERATION, COL_KEY, COL_KEY_TEXT,
	COL_IMAGE, COL_QUEUED_AT, COL_BEFORE, NCOLS
};

/* What the trigger keeps for one statement */
typedef struct Capture
{
	int16		model;
	Oid			queue;
	Oid			sequence;
	int			nkey;
	AttrNumber	key[INDEX_MAX_KEYS];
	Oid			keytypes[INDEX_MAX_KEYS];
	int			natts;
	FmgrInfo   *output;			/* by attribute; fn_oid 0: not captured */
	Oid		   *types;
	char	  **labels;			/* "name": as JSON */
	bool		spelled;		/* has values that more settings spell */
} Capture;

/*
 * While possync itself writes to the user's tables: the depth of triggers at
 * which its own rows arrive here; else 0.  Rows that come deeper are written by
 * triggers of the user's.
 */
static int	muted = 0;

static int
trigger_depth(void)
{
	return DatumGetInt32(DirectFunctionCall1(pg_trigger_depth, (Datum) 0));
}

/*
 * Switches capturing off for what possync writes in this backend, or on again.
 */
void
pos_queue_mute(bool mute)
{
	muted = mute ? trigger_depth() + 1 : 0;
}

/* Whether a trigger is our own: it touches none of the user's tables. */
bool
pos_queue_is_capture(Trigger *trigger)
{
	return strcmp(trigger->tgname, "possync_queue") == 0 &&
		get_func_namespace(trigger->tgfoid) == pos_store_schema_oid();
}

/* Whether changes of a table are queued. */
bool
pos_queue_is_captured(Relation rel)
{
	if (rel->trigdesc != NULL)
		for (int i = 0; i < rel->trigdesc->numtriggers; i++)
			if (pos_queue_is_capture(&rel->trigdesc->triggers[i]))
				return true;
	return false;
}

/* Finds the key columns of a model in a table, which may be a partition. */
static void
find_key(Capture *capture, Relation rel)
{
	Oid			types[] = {INT2OID};
	Datum		values[] = {Int16GetDatum(capture->model)};
	uint64		n;

	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	n = pos_store_execute("SELECT u.name::text FROM @.synchronize_model m,"
						  " unnest(m.key_columns) WITH ORDINALITY u(name, n)"
						  " WHERE m.id = $1 ORDER BY u.n",
						  1, types, values, NULL);
	if (n == 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("table \"%s\" is queued for a model that does not exist any more",
						RelationGetRelationName(rel)),
				 errhint("Drop the triggers possync_queue and possync_queue_truncate of the table.")));
	for (uint64 i = 0; i < n; i++)
	{
		char	   *name = SPI_getvalue(SPI_tuptable->vals[i],
										SPI_tuptable->tupdesc, 1);
		AttrNumber	attnum = get_attnum(RelationGetRelid(rel), name);

		if (attnum <= 0)
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_COLUMN),
					 errmsg("key column \"%s\" of queued table \"%s\" does not exist any more",
							name, RelationGetRelationName(rel)),
					 errhint("Remove the model with possync_remove_model and add it again.")));
		capture->key[capture->nkey] = attnum;
		capture->keytypes[capture->nkey++] = get_atttype(RelationGetRelid(rel),
														 attnum);
	}
	SPI_finish();
}

/*
 * Whether the text of a type's values depends on lc_monetary or search_path,
 * or may, as in a composite.
 */
static bool
is_spelled(Oid type)
{
	Oid			base = getBaseType(type);
	Oid			element = get_element_type(base);

	if (OidIsValid(element))
		return is_spelled(element);
	switch (base)
	{
		case MONEYOID:
		case REGPROCOID:
		case REGPROCEDUREOID:
		case REGOPEROID:
		case REGOPERATOROID:
		case REGCLASSOID:
		case REGCOLLATIONOID:
		case REGTYPEOID:
		case REGCONFIGOID:
		case REGDICTIONARYOID:
			return true;
		default:
			return type_is_rowtype(base);
	}
}

/* Makes ready for the rows of one statement. */
static Capture *
prepare(FunctionCallInfo fcinfo, TriggerData *trigger)
{
	MemoryContext old = MemoryContextSwitchTo(fcinfo->flinfo->fn_mcxt);
	TupleDesc	desc = RelationGetDescr(trigger->tg_relation);
	Capture    *capture = palloc0(sizeof(Capture));

	if (trigger->tg_trigger->tgnargs != 1)
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("possync_capture needs the number of a model"),
				 errhint("possync_queue creates the trigger.")));
	pos_store_init(fcinfo->flinfo->fn_oid);
	capture->model = pg_strtoint16(trigger->tg_trigger->tgargs[0]);
	capture->queue = pos_store_relid("synchronize_queue");
	capture->sequence = pos_store_relid("synchronize_queue_id_seq");
	find_key(capture, trigger->tg_relation);

	capture->natts = desc->natts;
	capture->output = palloc0(desc->natts * sizeof(FmgrInfo));
	capture->types = palloc0(desc->natts * sizeof(Oid));
	capture->labels = palloc0(desc->natts * sizeof(char *));
	for (int a = 0; a < desc->natts; a++)
	{
		Form_pg_attribute attr = TupleDescAttr(desc, a);
		StringInfoData label;
		Oid			output;
		bool		varlena;

		if (attr->attisdropped || attr->attgenerated)
			continue;
		getTypeOutputInfo(attr->atttypid, &output, &varlena);
		fmgr_info(output, &capture->output[a]);
		capture->types[a] = getBaseType(attr->atttypid);
		capture->spelled = capture->spelled || is_spelled(attr->atttypid);
		initStringInfo(&label);
		escape_json(&label, NameStr(attr->attname));
		appendStringInfoChar(&label, ':');
		capture->labels[a] = label.data;
	}
	MemoryContextSwitchTo(old);
	fcinfo->flinfo->fn_extra = capture;
	return capture;
}

/* Appends one value as a JSON string. */
static void
append_value(StringInfo buf, Oid type, FmgrInfo *output, Datum value)
{
	char		date[MAXDATELEN + 1];
	char		number[MAXINT8LEN + 1];

	switch (type)
	{
		case INT8OID:
			pg_lltoa(DatumGetInt64(value), number);
			appendStringInfo(buf, "\"%s\"", number);
			break;
		case INT4OID:
			pg_ltoa(DatumGetInt32(value), number);
			appendStringInfo(buf, "\"%s\"", number);
			break;
		case BOOLOID:
			appendStringInfoString(buf, DatumGetBool(value) ? "\"t\"" : "\"f\"");
			break;
		case DATEOID:
		case TIMESTAMPOID:
		case TIMESTAMPTZOID:
			appendStringInfo(buf, "\"%s\"",
							 JsonEncodeDateTime(date, value, type, NULL));
			break;
		default:
			escape_json(buf, OutputFunctionCall(output, value));
	}
}

/* Whether this session writes values in the form that every session reads. */
static bool
is_canonical(void)
{
	return DateStyle == USE_ISO_DATES && IntervalStyle == INTSTYLE_POSTGRES &&
		extra_float_digits >= 1;
}

static int
make_canonical(Capture *capture)
{
	static const char *const settings[][2] = {
		{"datestyle", "ISO"}, {"intervalstyle", "postgres"},
		{"extra_float_digits", "1"}, {"lc_monetary", "C"},
		{"search_path", "pg_catalog"}
	};
	int			nestlevel = NewGUCNestLevel();

	for (int i = 0; i < (capture->spelled ? 5 : 3); i++)
		(void) set_config_option(settings[i][0], settings[i][1], PGC_USERSET,
								 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	return nestlevel;
}

/* Returns a row as a JSON object of strings. */
static Datum
row_image(Capture *capture, TupleTableSlot *slot)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoChar(&buf, '{');
	for (int a = 0; a < capture->natts; a++)
	{
		bool		isnull;
		Datum		value;

		if (capture->labels[a] == NULL)
			continue;
		value = slot_getattr(slot, a + 1, &isnull);
		if (isnull)
			continue;
		if (buf.len > 1)
			appendStringInfoChar(&buf, ',');
		appendStringInfoString(&buf, capture->labels[a]);
		append_value(&buf, capture->types[a], &capture->output[a], value);
	}
	appendStringInfoChar(&buf, '}');
	return PointerGetDatum(cstring_to_text_with_len(buf.data, buf.len));
}

/* Queues one row; before is what an update changed, or NULL. */
static void
enqueue(Capture *capture, char operation, TupleTableSlot *slot,
		TupleTableSlot *before)
{
	Relation	queue = table_open(capture->queue, RowExclusiveLock);
	Datum		keys[INDEX_MAX_KEYS];
	Datum		values[NCOLS];
	bool		nulls[NCOLS] = {false};
	bool		integer = capture->nkey == 1 &&
	pos_key_is_integer(getBaseType(capture->keytypes[0]));
	HeapTuple	tuple;

	for (int i = 0; i < capture->nkey; i++)
	{
		bool		isnull;

		keys[i] = slot_getattr(slot, capture->key[i], &isnull);
		if (isnull)
			ereport(ERROR,
					(errcode(ERRCODE_NOT_NULL_VIOLATION),
					 errmsg("a queued row has a null in its key")));
	}
	values[COL_TXID] =
		UInt64GetDatum(U64FromFullTransactionId(GetTopFullTransactionId()));
	values[COL_ID] = Int64GetDatum(nextval_internal(capture->sequence, false));
	values[COL_MODEL] = Int16GetDatum(capture->model);
	values[COL_OPERATION] = CharGetDatum(operation);
	values[COL_KEY] = values[COL_KEY_TEXT] =
		pos_key_from_values(capture->nkey, capture->keytypes, keys);
	nulls[COL_KEY] = !integer;
	nulls[COL_KEY_TEXT] = integer;
	values[COL_IMAGE] = row_image(capture, slot);
	nulls[COL_BEFORE] = before == NULL;
	if (before != NULL)
		values[COL_BEFORE] = row_image(capture, before);
	values[COL_QUEUED_AT] = TimestampTzGetDatum(GetCurrentTransactionStartTimestamp());

	tuple = heap_form_tuple(RelationGetDescr(queue), values, nulls);
	CatalogTupleInsert(queue, tuple);
	table_close(queue, NoLock);
}

/* Whether an update changed the key. */
static bool
key_changed(Capture *capture, TupleTableSlot *old, TupleTableSlot *new)
{
	for (int i = 0; i < capture->nkey; i++)
	{
		TupleDesc	desc = new->tts_tupleDescriptor;
		Form_pg_attribute attr = TupleDescAttr(desc, capture->key[i] - 1);
		bool		isnull;

		if (!datumIsEqual(slot_getattr(old, capture->key[i], &isnull),
						  slot_getattr(new, capture->key[i], &isnull),
						  attr->attbyval, attr->attlen))
			return true;
	}
	return false;
}

PG_FUNCTION_INFO_V1(possync_capture);

/*
 * possync_capture(model) returns trigger
 *
 * AFTER ROW trigger of queued tables, made by possync_queue.
 */
Datum
possync_capture(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;
	Capture    *capture = fcinfo->flinfo->fn_extra;
	int			nestlevel = 0;

	if (!CALLED_AS_TRIGGER(fcinfo) ||
		!TRIGGER_FIRED_AFTER(trigger->tg_event) ||
		!TRIGGER_FIRED_FOR_ROW(trigger->tg_event))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("possync_capture is an AFTER ROW trigger")));
	if (muted > 0 && trigger_depth() == muted)
		PG_RETURN_POINTER(NULL);
	if (capture == NULL)
		capture = prepare(fcinfo, trigger);
	if (capture->spelled || !is_canonical())
		nestlevel = make_canonical(capture);

	if (TRIGGER_FIRED_BY_INSERT(trigger->tg_event))
		enqueue(capture, 'i', trigger->tg_trigslot, NULL);
	else if (TRIGGER_FIRED_BY_DELETE(trigger->tg_event))
		enqueue(capture, 'd', trigger->tg_trigslot, NULL);
	else if (!key_changed(capture, trigger->tg_trigslot, trigger->tg_newslot))
		enqueue(capture, 'u', trigger->tg_newslot, trigger->tg_trigslot);
	else
	{
		enqueue(capture, 'd', trigger->tg_trigslot, NULL);
		enqueue(capture, 'i', trigger->tg_newslot, NULL);
	}

	if (nestlevel > 0)
		AtEOXact_GUC(true, nestlevel);
	PG_RETURN_POINTER(NULL);
}
