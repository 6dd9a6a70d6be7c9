/*
 * explain.c
 *		Where a row came from, and what waits for it.
 *
 * Whoever may read the row may ask.
 */
#include "possync.h"

#include "catalog/pg_type.h"
#include "compat.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "spool.h"
#include "store.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"

#define NCOLUMNS 5

PG_FUNCTION_INFO_V1(possync_explain);

/*
 * possync_explain(relation regclass, key text)
 *		returns table (server, remote_key, run, at, explanation)
 *
 * key is the local key as text, that of several columns as the text of an
 * array.  One row for every server that the row is linked with, for every
 * queued change, and for everything in quarantine that concerns it.
 */
Datum
possync_explain(PG_FUNCTION_ARGS)
{
	Oid			relid = PG_GETARG_OID(0);
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	Oid			types[] = {OIDOID, TEXTOID};
	Datum		values[] = {ObjectIdGetDatum(relid), PG_GETARG_DATUM(1)};
	AclResult	aclresult = pg_class_aclcheck(relid, GetUserId(), ACL_SELECT);

	if (aclresult != ACLCHECK_OK)
		aclcheck_error(aclresult, OBJECT_TABLE, get_rel_name(relid));
	InitMaterializedSRF(fcinfo, 0);
	pos_store_init(fcinfo->flinfo->fn_oid);
	pos_spool_write();
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	pos_store_execute("WITH model AS (SELECT * FROM @.synchronize_model"
					  " WHERE relation = $1), linked AS"
					  " (SELECT m.server, m.name, t.decision, t.run, t.gone,"
					  " coalesce(t.remote_key::text, t.remote_key_text) AS key"
					  " FROM model m JOIN @.synchronize_translation t"
					  " ON t.model = m.id"
					  " AND (t.local_key = CASE WHEN $2 ~ '^-?[0-9]{1,18}$'"
					  " THEN $2::int8 END OR t.local_key_text = $2))"
					  " SELECT server, remote_key, run, at, explanation FROM ("
					  "SELECT l.server, l.key AS remote_key, l.run,"
					  " h.started_at AS at, 1 AS n,"
					  " CASE WHEN l.decision = 'm' AND l.run = 0 THEN"
					  " 'linked by a person, who chose among candidates'"
					  " WHEN l.decision = 'm' THEN"
					  " 'recognised by its match fields, by a ' || coalesce(h.direction, 'run')"
					  " WHEN h.direction = 'push' THEN"
					  " 'made here, and sent to the remote by a push'"
					  " ELSE 'made by a pull: nothing here matched it' END AS explanation"
					  " FROM linked l LEFT JOIN LATERAL"
					  " (SELECT * FROM @.synchronize_history h"
					  " WHERE h.id <= l.run AND h.server = l.server"
					  " ORDER BY h.id DESC LIMIT 1) h ON true"
					  " UNION ALL SELECT l.server, l.key, l.gone, h.started_at, 4,"
					  " 'deleted at the remote, and left here'"
					  " FROM linked l LEFT JOIN @.synchronize_history h"
					  " ON h.id = l.gone WHERE l.gone IS NOT NULL"
					  " UNION ALL SELECT m.server, NULL, NULL, q.queued_at, 2,"
					  " CASE q.operation WHEN 'i' THEN 'inserted here'"
					  " WHEN 'u' THEN 'updated here' ELSE 'deleted here' END ||"
					  " CASE WHEN h.txid IS NULL THEN ', waits for the next push'"
					  " ELSE ', held back, see quarantine entry ' || h.quarantine END"
					  " FROM model m JOIN @.synchronize_queue q ON q.model = m.id"
					  " LEFT JOIN @.synchronize_held h"
					  " ON h.txid = q.txid AND h.id = q.id"
					  " WHERE q.local_key::text = $2 OR q.local_key_text = $2"
					  " UNION ALL SELECT m.server, q.remote_key, q.run, q.since, 3,"
					  " 'in quarantine (entry ' || q.id || ', ' || q.reason || '): ' ||"
					  " q.message || coalesce('; discarded: ' || q.discarded_because, '')"
					  " FROM model m JOIN @.synchronize_quarantine q ON q.model = m.id"
					  " WHERE q.local_key = $2 OR $2 = ANY (q.candidates)"
					  " OR q.remote_key IN (SELECT key FROM linked WHERE server = m.server)"
					  ") e ORDER BY server, n, at",
					  2, types, values, NULL);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		Datum		row[NCOLUMNS];
		bool		nulls[NCOLUMNS];

		for (int j = 0; j < NCOLUMNS; j++)
			row[j] = SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc,
								   j + 1, &nulls[j]);
		tuplestore_putvalues(result->setResult, result->setDesc, row, nulls);
	}
	SPI_finish();
	return (Datum) 0;
}
