/*
 * sql.c
 *		Pieces of the statements that we run on the user's tables.
 *
 * These run under the caller's search_path, because triggers of the user's
 * may count on it; so every operator is written with its schema.
 */
#include "possync.h"

#include "access/htup_details.h"
#include "catalog/pg_operator.h"
#include "model.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"
#include "utils/typcache.h"

/*
 * Returns the equality operator of a field's type as SQL.  Errors if the type
 * has none.
 */
char *
pos_sql_equality(PosField *field)
{
	Oid			operator = lookup_type_cache(field->type,
											 TYPECACHE_EQ_OPR)->eq_opr;
	HeapTuple	tuple;
	Form_pg_operator form;
	char	   *sql;

	if (!OidIsValid(operator))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_FUNCTION),
				 errmsg("field \"%s\" has a type without equality operator: %s",
						field->name, format_type_be(field->type)),
				 errhint("Rows can't be recognised by it.")));
	tuple = SearchSysCache1(OPEROID, ObjectIdGetDatum(operator));
	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for operator %u", operator);
	form = (Form_pg_operator) GETSTRUCT(tuple);
	sql = psprintf("OPERATOR(%s.%s)",
				   quote_identifier(get_namespace_name(form->oprnamespace)),
				   NameStr(form->oprname));
	ReleaseSysCache(tuple);
	return sql;
}
