/*
 * discover.c
 *		SQL functions that ask a server what it has, and what names mean to it.
 */
#include "possync.h"

#include "connection.h"
#include "fmgr.h"
#include "funcapi.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"

PG_FUNCTION_INFO_V1(possync_remote_name);
PG_FUNCTION_INFO_V1(possync_tells_changes);
PG_FUNCTION_INFO_V1(possync_calls);
PG_FUNCTION_INFO_V1(possync_remote_models);
PG_FUNCTION_INFO_V1(possync_remote_fields);

/*
 * SQL: _possync_remote(server name, relation regclass, remote text) returns text
 *
 * Returns the name of the remote table of a local one: remote, if a server can
 * understand that, or the proposal if it is null.  Errors with
 * invalid_parameter_value if it cannot.
 */
Datum
possync_remote_name(PG_FUNCTION_ARGS)
{
	const PosConnectionOps *ops;
	char	   *remote;
	Oid			relid;

	if (PG_ARGISNULL(0) || (PG_ARGISNULL(1) && PG_ARGISNULL(2)))
		PG_RETURN_NULL();
	ops = pos_connection_kind(NameStr(*PG_GETARG_NAME(0)));
	if (PG_ARGISNULL(2))
	{
		relid = PG_GETARG_OID(1);
		PG_RETURN_TEXT_P(cstring_to_text(ops->propose(get_namespace_name(get_rel_namespace(relid)),
													  get_rel_name(relid))));
	}
	remote = text_to_cstring(PG_GETARG_TEXT_PP(2));
	if (!ops->accepts(remote))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("\"%s\" is not the name of a table", remote),
				 errhint("%s", ops->naming)));
	PG_RETURN_DATUM(PG_GETARG_DATUM(2));
}

/*
 * SQL: _possync_tells_changes(server name) returns boolean
 *
 * Whether a server tells what changed without being told by which columns.
 */
Datum
possync_tells_changes(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL((pos_connection_kind(NameStr(*PG_GETARG_NAME(0)))->capabilities & POS_CAP_CHANGED) != 0);
}

/*
 * SQL: _possync_calls(server name) returns boolean
 *
 * Whether methods can be called for rows at a server.
 */
Datum
possync_calls(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL((pos_connection_kind(NameStr(*PG_GETARG_NAME(0)))->capabilities & POS_CAP_CALLS) != 0);
}

/* Returns a connection that can be asked what there is. */
static PosConnection *
ask(Name server)
{
	PosConnection *connection = pos_connection_get(NameStr(*server));

	if (connection->ops->models == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("server \"%s\" cannot be asked what it has", NameStr(*server)),
				 errdetail("Foreign-data wrapper \"%s\" does not support it.",
						   connection->ops->wrapper)));
	return connection;
}

static Datum
text_or_null(const char *text, bool *isnull)
{
	*isnull = text == NULL;
	return text == NULL ? (Datum) 0 : CStringGetTextDatum(text);
}

/*
 * SQL: possync_remote_models(server name)
 */
Datum
possync_remote_models(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	PosConnection *connection = ask(PG_GETARG_NAME(0));
	List	   *models = connection->ops->models(connection);
	ListCell   *lc;

	InitMaterializedSRF(fcinfo, 0);
	foreach(lc, models)
	{
		PosRemoteModel *model = lfirst(lc);
		Datum		values[2];
		bool		nulls[2];

		values[0] = text_or_null(model->name, &nulls[0]);
		values[1] = text_or_null(model->title, &nulls[1]);
		tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
	}
	return (Datum) 0;
}

/*
 * SQL: possync_remote_fields(server name, model text)
 */
Datum
possync_remote_fields(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	PosConnection *connection = ask(PG_GETARG_NAME(0));
	List	   *fields = connection->ops->fields(connection,
												 text_to_cstring(PG_GETARG_TEXT_PP(1)));
	ListCell   *lc;

	InitMaterializedSRF(fcinfo, 0);
	foreach(lc, fields)
	{
		PosRemoteField *field = lfirst(lc);
		Datum		values[9];
		bool		nulls[9] = {0};

		values[0] = text_or_null(field->name, &nulls[0]);
		values[1] = text_or_null(field->kind, &nulls[1]);
		values[2] = ObjectIdGetDatum(field->type);
		nulls[2] = !OidIsValid(field->type);
		values[3] = text_or_null(field->refers_to, &nulls[3]);
		values[4] = BoolGetDatum(field->key);
		values[5] = BoolGetDatum(field->required);
		values[6] = BoolGetDatum(field->writable);
		values[7] = BoolGetDatum(field->stored);
		values[8] = text_or_null(field->title, &nulls[8]);
		tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
	}
	return (Datum) 0;
}
