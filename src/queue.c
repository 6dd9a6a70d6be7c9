/*
 * queue.c
 *		Capture: committed changes of the user's tables into synchronize_queue.
 *
 * The trigger runs in the selling transaction and does little there: no SQL, no
 * network, no lock that another seller could wait for.  It hands the row as it
 * is to spool.c, so that what is pushed later is what this transaction wrote and
 * not what somebody made of it afterwards.  What possync itself writes is not
 * captured; what triggers of the user's write because of that is.
 */
#include "possync.h"

#include "access/skey.h"
#include "access/stratnum.h"
#include "access/table.h"
#include "access/tableam.h"
#include "catalog/partition.h"
#include "catalog/pg_trigger.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "executor/tuptable.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "model.h"
#include "queue.h"
#include "shared.h"
#include "spool.h"
#include "store.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/datetime.h"
#include "utils/float.h"
#include "utils/fmgroids.h"
#include "utils/fmgrprotos.h"
#include "utils/guc.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/json.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

/* A captured column */
typedef struct Column
{
	AttrNumber	attnum;
	Oid			type;			/* no domain */
	FmgrInfo	output;
	int			label;			/* "name": as JSON, from the Capture's begin */
	int			labellen;
} Column;

/*
 * How a table is captured: one piece of memory, so that it is copied with one
 * call.
 */
typedef struct Capture
{
	Size		size;
	int16		model;
	int16		lane;			/* of the queue */
	Oid			queue;
	Oid			sequence;
	bool		integer;		/* the key is one integer */
	int			nkey;
	AttrNumber	key[INDEX_MAX_KEYS];
	Oid			keytypes[INDEX_MAX_KEYS];
	bool		spelled;		/* has values that more settings spell */
	int			ncolumns;
	Column		columns[FLEXIBLE_ARRAY_MEMBER];
} Capture;

/*
 * What this backend knows about capturing, by trigger: finding it out costs
 * more than queuing a row.  Changes of the table and of synchronize_model make
 * an entry invalid.
 */
typedef struct KnownCapture
{
	Oid			trigger;
	Oid			table;
	Oid			models;			/* synchronize_model */
	bool		valid;
	Capture    *capture;		/* NULL if it could not be found out */
} KnownCapture;

static HTAB *known = NULL;

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

/*
 * Whether a table is a model's, or a partition of that.  Anybody may create a
 * trigger, but not sell in another table's name.
 */
static bool
is_table_of(Relation rel, Oid model)
{
	return RelationGetRelid(rel) == model ||
		(rel->rd_rel->relispartition &&
		 list_member_oid(get_partition_ancestors(RelationGetRelid(rel)), model));
}

/*
 * Reads the table of a model, returned, its lane and the names of its key columns.
 * Without SQL, which would cost a seller who connects anew more than his first
 * sales do.
 */
static Oid
read_model(int16 id, int16 *lane, Datum **names, int *n)
{
	Relation	models = table_open(pos_store_relid("synchronize_model"),
									AccessShareLock);
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	TupleTableSlot *slot = table_slot_create(models, NULL);
	ScanKeyData key;
	TableScanDesc scan;
	Oid			relid = InvalidOid;

	ScanKeyInit(&key, get_attnum(RelationGetRelid(models), "id"), BTEqualStrategyNumber, F_INT2EQ,
				Int16GetDatum(id));
	scan = table_beginscan(models, snapshot, 1, &key);
	if (table_scan_getnextslot(scan, ForwardScanDirection, slot))
	{
		bool		isnull;

		AttrNumber	relation = get_attnum(RelationGetRelid(models), "relation");
		AttrNumber	columns = get_attnum(RelationGetRelid(models), "key_columns");
		AttrNumber	queued = get_attnum(RelationGetRelid(models), "lane");

		*lane = DatumGetInt16(slot_getattr(slot, queued, &isnull));
		relid = DatumGetObjectId(slot_getattr(slot, relation, &isnull));
		deconstruct_array(DatumGetArrayTypePCopy(slot_getattr(slot,
															  columns,
															  &isnull)),
						  NAMEOID, NAMEDATALEN, false, TYPALIGN_CHAR, names,
						  NULL, n);
	}
	table_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	UnregisterSnapshot(snapshot);
	table_close(models, AccessShareLock);
	return relid;
}

/* Finds the lane of a model, and its key in a table, which may be a partition. */
static void
find_model(Capture *capture, Relation rel)
{
	Datum	   *names;
	int			n;
	Oid			table = read_model(capture->model, &capture->lane, &names, &n);

	if (!OidIsValid(table))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("table \"%s\" is queued for a model that does not exist any more",
						RelationGetRelationName(rel)),
				 errhint("Drop the triggers possync_queue and possync_queue_truncate of the table.")));
	if (!is_table_of(rel, table))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("table \"%s\" is not that of the model it is queued for",
						RelationGetRelationName(rel)),
				 errhint("possync_queue creates the trigger.")));
	for (int i = 0; i < n; i++)
	{
		char	   *name = NameStr(*DatumGetName(names[i]));
		AttrNumber	attnum = get_attnum(RelationGetRelid(rel), name);

		if (attnum <= 0)
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_COLUMN),
					 errmsg("key column \"%s\" of queued table \"%s\" does not exist any more",
							name, RelationGetRelationName(rel)),
					 errhint("Remove the model with possync_remove_model and add it again.")));
		capture->key[capture->nkey] = attnum;
		capture->keytypes[capture->nkey++] =
			getBaseType(get_atttype(RelationGetRelid(rel), attnum));
	}
	capture->integer = capture->nkey == 1 &&
		pos_key_is_integer(capture->keytypes[0]);
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

/* Finds out how a table is captured. */
static Capture *
find_out(FunctionCallInfo fcinfo, TriggerData *trigger)
{
	TupleDesc	desc = RelationGetDescr(trigger->tg_relation);
	Size		size = offsetof(Capture, columns) + desc->natts * sizeof(Column);
	Capture    *capture = palloc0(size);
	StringInfoData labels;

	capture->model = pg_strtoint16(trigger->tg_trigger->tgargs[0]);
	capture->queue = pos_store_relid("synchronize_queue");
	capture->sequence = pos_store_relid("synchronize_queue_txid_seq");
	find_model(capture, trigger->tg_relation);

	initStringInfo(&labels);
	for (int a = 0; a < desc->natts; a++)
	{
		Form_pg_attribute attr = TupleDescAttr(desc, a);
		Column	   *column = &capture->columns[capture->ncolumns];
		Oid			output;
		bool		varlena;

		if (attr->attisdropped || attr->attgenerated)
			continue;
		capture->ncolumns++;
		column->attnum = attr->attnum;
		column->type = getBaseType(attr->atttypid);
		capture->spelled = capture->spelled || is_spelled(attr->atttypid);
		getTypeOutputInfo(attr->atttypid, &output, &varlena);
		fmgr_info(output, &column->output);
		column->label = size + labels.len;
		escape_json(&labels, NameStr(attr->attname));
		appendStringInfoChar(&labels, ':');
		column->labellen = size + labels.len - column->label;
	}
	capture->size = size + labels.len;
	capture = repalloc(capture, capture->size);
	memcpy((char *) capture + size, labels.data, labels.len);
	pfree(labels.data);
	return capture;
}

/* Relation cache callback: forgets what may have changed. */
static void
forget(Datum arg, Oid relid)
{
	HASH_SEQ_STATUS status;
	KnownCapture *entry;

	hash_seq_init(&status, known);
	while ((entry = hash_seq_search(&status)) != NULL)
		if (relid == InvalidOid || relid == entry->table ||
			relid == entry->models)
			entry->valid = false;
}

/* Returns what is known of a trigger, up to date. */
static Capture *
get_known(FunctionCallInfo fcinfo, TriggerData *trigger)
{
	KnownCapture *entry;
	Capture    *capture;
	bool		found;

	if (known == NULL)
	{
		HASHCTL		ctl = {.keysize = sizeof(Oid),.entrysize = sizeof(KnownCapture)};

		known = hash_create("possync captures", 16, &ctl, HASH_ELEM | HASH_BLOBS);
		CacheRegisterRelcacheCallback(forget, (Datum) 0);
	}
	entry = hash_search(known, &trigger->tg_trigger->tgoid, HASH_ENTER, &found);
	if (found && entry->valid && entry->capture != NULL)
		return entry->capture;

	if (found && entry->capture != NULL)
		pfree(entry->capture);
	entry->capture = NULL;
	pos_store_init(fcinfo->flinfo->fn_oid);
	entry->table = RelationGetRelid(trigger->tg_relation);
	entry->models = pos_store_relid("synchronize_model");
	entry->valid = true;		/* an invalidation may arrive from here on */
	capture = find_out(fcinfo, trigger);
	entry->capture = MemoryContextAlloc(TopMemoryContext, capture->size);
	memcpy(entry->capture, capture, capture->size);
	pfree(capture);
	return entry->capture;
}

/* Makes ready for the rows of one statement. */
static Capture *
prepare(FunctionCallInfo fcinfo, TriggerData *trigger)
{
	Capture    *template;
	Capture    *capture;

	if (trigger->tg_trigger->tgnargs != 1)
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("possync_capture needs the number of a model"),
				 errhint("possync_queue creates the trigger.")));
	template = get_known(fcinfo, trigger);

	/* output functions keep things between calls, in fn_mcxt */
	capture = MemoryContextAlloc(fcinfo->flinfo->fn_mcxt, template->size);
	memcpy(capture, template, template->size);
	for (int i = 0; i < capture->ncolumns; i++)
		capture->columns[i].output.fn_mcxt = fcinfo->flinfo->fn_mcxt;
	fcinfo->flinfo->fn_extra = capture;
	return capture;
}

PG_FUNCTION_INFO_V1(possync_forget_captures);

/*
 * _possync_forget_captures() returns trigger
 *
 * Trigger of synchronize_model: tells all backends that models have changed.
 */
Datum
possync_forget_captures(PG_FUNCTION_ARGS)
{
	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("possync_forget_captures is a trigger")));
	CacheInvalidateRelcache(((TriggerData *) fcinfo->context)->tg_relation);
	PG_RETURN_POINTER(NULL);
}

/* Appends one value as a JSON string. */
static void
append_value(StringInfo buf, Column *column, Datum value)
{
	char		out[MAXDATELEN + 3];
	int			len;

	out[0] = '"';
	switch (column->type)
	{
		case INT8OID:
			len = pg_lltoa(DatumGetInt64(value), out + 1);
			break;
		case INT4OID:
			len = pg_ltoa(DatumGetInt32(value), out + 1);
			break;
		case BOOLOID:
			out[1] = DatumGetBool(value) ? 't' : 'f';
			len = 1;
			break;
		case DATEOID:
		case TIMESTAMPOID:
		case TIMESTAMPTZOID:
			(void) JsonEncodeDateTime(out + 1, value, column->type, NULL);
			len = strlen(out + 1);
			break;
		default:
			escape_json(buf, OutputFunctionCall(&column->output, value));
			return;
	}
	out[len + 1] = '"';
	appendBinaryStringInfo(buf, out, len + 2);
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
static struct varlena *
row_image(Capture *capture, TupleTableSlot *slot)
{
	StringInfoData buf;

	initStringInfo(&buf);
	buf.len = VARHDRSZ;
	appendStringInfoChar(&buf, '{');
	for (int i = 0; i < capture->ncolumns; i++)
	{
		Column	   *column = &capture->columns[i];
		bool		isnull;
		Datum		value = slot_getattr(slot, column->attnum, &isnull);

		if (isnull)
			continue;
		if (buf.len > VARHDRSZ + 1)
			appendStringInfoChar(&buf, ',');
		appendBinaryStringInfo(&buf, (char *) capture + column->label,
							   column->labellen);
		append_value(&buf, column, value);
	}
	appendStringInfoChar(&buf, '}');
	SET_VARSIZE(buf.data, buf.len);
	return (struct varlena *) buf.data;
}

/* Returns the key of a row. */
static Datum
row_key(Capture *capture, TupleTableSlot *slot)
{
	Datum		keys[INDEX_MAX_KEYS];

	for (int i = 0; i < capture->nkey; i++)
	{
		bool		isnull;

		keys[i] = slot_getattr(slot, capture->key[i], &isnull);
		if (isnull)
			ereport(ERROR,
					(errcode(ERRCODE_NOT_NULL_VIOLATION),
					 errmsg("a queued row has a null in its key")));
	}
	if (capture->integer)
		return pos_key_from_integer(capture->keytypes[0], keys[0]);
	return pos_key_from_values(capture->nkey, capture->keytypes, keys);
}

/* Queues one row; before is what an update changed, or NULL. */
static void
enqueue(Capture *capture, char operation, TupleTableSlot *slot,
		TupleTableSlot *before)
{
	PosEntry	entry = {
		.model = capture->model,
		.lane = capture->lane,
		.operation = operation,
		.integer = capture->integer,
		.key = row_key(capture, slot),
		.image = row_image(capture, slot),
		.before = before != NULL ? row_image(capture, before) : NULL
	};

	pos_spool_put(capture->queue, capture->sequence, &entry);
	pos_shared_wake_at_commit(POS_WAKE_QUEUED);
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
		/* another key is another row; of both, what is asked for */
		if (trigger->tg_trigger->tgtype & TRIGGER_TYPE_DELETE)
			enqueue(capture, 'd', trigger->tg_trigslot, NULL);
		if (trigger->tg_trigger->tgtype & TRIGGER_TYPE_INSERT)
			enqueue(capture, 'i', trigger->tg_newslot, NULL);
	}

	if (nestlevel > 0)
		AtEOXact_GUC(true, nestlevel);
	PG_RETURN_POINTER(NULL);
}
