/*
 * resend.c
 *		Queues rows again that the remote does not have as they are here.
 */
#include "possync.h"

#include "catalog/pg_type.h"
#include "compat.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "queue.h"
#include "shared.h"
#include "spool.h"
#include "sql.h"
#include "store.h"
#include "utils/builtins.h"
#include "utils/guc.h"

PG_FUNCTION_INFO_V1(possync_resend);

/* Reads a row as an image; NULL if it is not there. */
static struct varlena *
read_image(PosModel *model, Datum key)
{
	Datum		values[INDEX_MAX_KEYS];
	Oid			types[INDEX_MAX_KEYS];
	TupleDesc	desc = RelationGetDescr(model->rel);
	StringInfoData sql;
	int			nestlevel = pos_key_pin_settings();
	char	   *image = NULL;

	(void) set_config_option("search_path", "pg_catalog", PGC_USERSET,
							 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	initStringInfo(&sql);
	appendStringInfoString(&sql, "SELECT json_strip_nulls(json_object(ARRAY[");
	for (int part = 0; part < 2; part++)
	{
		bool		first = true;

		for (int a = 0; a < desc->natts; a++)
		{
			Form_pg_attribute attr = TupleDescAttr(desc, a);

			if (attr->attisdropped || attr->attgenerated)
				continue;
			appendStringInfoString(&sql, first ? "" : ", ");
			if (part == 0)
				appendStringInfoString(&sql, quote_literal_cstr(NameStr(attr->attname)));
			else
				appendStringInfo(&sql, "CASE WHEN num_nulls(t.%s) = 0 THEN format('%%s', t.%s) END",
								 quote_identifier(NameStr(attr->attname)),
								 quote_identifier(NameStr(attr->attname)));
			first = false;
		}
		appendStringInfoString(&sql, part == 0 ? "], ARRAY[" : "]))");
	}
	appendStringInfo(&sql, " FROM %s t WHERE ", model->table_sql);
	pos_key_to_columns(model, key, values);
	for (int i = 0; i < model->nkey; i++)
	{
		types[i] = model->key[i]->type;
		appendStringInfo(&sql, "%st.%s %s $%d", i > 0 ? " AND " : "",
						 quote_identifier(model->key[i]->name),
						 pos_sql_equality(model->key[i]), i + 1);
	}
	if (pos_sql_execute(sql.data, model->nkey, types, values) == 1)
		image = SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1);
	AtEOXact_GUC(true, nestlevel);
	return image == NULL ? NULL : (struct varlena *) cstring_to_text(image);
}

/* Forgets what a row was linked with. */
static void
unlink_row(PosModel *model, Datum key)
{
	Oid			types[] = {INT2OID, TEXTOID};
	Datum		values[] = {
		Int16GetDatum(model->id),
		CStringGetTextDatum(pos_key_string(key, model->local_int))
	};

	pos_store_execute(model->local_int ?
					  "DELETE FROM @.synchronize_translation"
					  " WHERE model = $1 AND local_key = $2::int8" :
					  "DELETE FROM @.synchronize_translation"
					  " WHERE model = $1 AND local_key_text = $2",
					  2, types, values, NULL);
}

/*
 * possync_resend(model text, local_key text, anew boolean) returns boolean
 *
 * Queues a row of a queued model as it is.  With anew it is no longer linked with
 * what the remote had, and is looked for there by its match fields, or created.
 * For the owner of its table.  Returns false if there is no such row.
 */
Datum
possync_resend(PG_FUNCTION_ARGS)
{
	char	   *name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	bool		anew = PG_GETARG_BOOL(2);
	PosTree    *tree;
	PosModel   *model;
	PosEntry	entry = {.operation = anew ? 'i' : 'u'};

	pos_store_init(fcinfo->flinfo->fn_oid);
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	tree = pos_tree_load(name, false);
	model = tree->root;
	if (model->rel == NULL || !pos_queue_is_captured(model->rel))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("model \"%s\" is not queued", name)));
	if (!pos_compat_owns_table(model->relid, GetUserId()))
		aclcheck_error(ACLCHECK_NOT_OWNER, OBJECT_TABLE,
					   RelationGetRelationName(model->rel));
	entry.model = model->id;
	entry.lane = model->lane;
	entry.integer = model->local_int;
	entry.key = pos_key_from_string(text_to_cstring(PG_GETARG_TEXT_PP(1)),
									model->local_int);
	entry.image = read_image(model, entry.key);
	if (entry.image != NULL)
	{
		/* whatever the remote has now */
		if (anew)
			unlink_row(model, entry.key);
		else
			entry.before = (struct varlena *) cstring_to_text("null");
		pos_spool_put(pos_store_relid("synchronize_queue"),
					  pos_store_relid("synchronize_queue_txid_seq"), &entry);
		pos_shared_wake_at_commit(POS_WAKE_QUEUED);
	}
	pos_tree_close(tree);
	SPI_finish();
	PG_RETURN_BOOL(entry.image != NULL);
}
