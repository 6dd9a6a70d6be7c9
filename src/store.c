/*
 * store.c
 *		Statements on possync's own tables.
 *
 * Whoever may pull a table need not be able to write the bookkeeping tables:
 * these statements run with the rights of their owner and, because of that,
 * with a search_path that nobody else can put an operator in.  Statements on
 * the user's tables never go through here; they run as the caller.
 */
#include "possync.h"

#include "access/table.h"
#include "catalog/namespace.h"
#include "miscadmin.h"
#include "store.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

/* The extension's schema, quoted; set by every entry point */
static char schema_sql[NAMEDATALEN * 2 + 3];
static Oid	schema_oid;

/* Prepared statements of this backend, by the address of their text */
typedef struct StorePlan
{
	const char *sql;
	Oid			schema;			/* of the extension when it was prepared */
	SPIPlanPtr	plan;
} StorePlan;

static HTAB *plans = NULL;

/*
 * Remembers the schema of the extension, which is that of the SQL function
 * being called.
 */
void
pos_store_init(Oid function)
{
	pos_store_init_schema(get_func_namespace(function));
}

/* Remembers the schema of the extension. */
void
pos_store_init_schema(Oid schema)
{
	schema_oid = schema;
	strlcpy(schema_sql, quote_identifier(get_namespace_name(schema_oid)),
			sizeof(schema_sql));
}

/* Returns the extension's schema, quoted. */
const char *
pos_store_schema(void)
{
	return schema_sql;
}

/* Returns the extension's schema. */
Oid
pos_store_schema_oid(void)
{
	return schema_oid;
}

/* Returns the oid of one of possync's own tables or indexes. */
Oid
pos_store_relid(const char *table)
{
	Oid			relid = get_relname_relid(table, schema_oid);

	if (!OidIsValid(relid))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("relation \"%s\" of possync does not exist", table),
				 errhint("Drop and create the extension possync again.")));
	return relid;
}

/*
 * Switches to the owner of a relation, as foreign key triggers do.  The
 * caller restores with SetUserIdAndSecContext; an error does so by itself.
 */
void
pos_store_as_owner(Oid relid, Oid *saved_user, int *saved_context)
{
	Relation	rel = table_open(relid, AccessShareLock);
	Oid			owner = rel->rd_rel->relowner;

	table_close(rel, NoLock);
	GetUserIdAndSecContext(saved_user, saved_context);
	SetUserIdAndSecContext(owner, *saved_context |
						   SECURITY_LOCAL_USERID_CHANGE |
						   SECURITY_NOFORCE_RLS);
}

/* Returns sql with every "@." replaced by the extension's schema. */
static char *
with_schema(const char *sql)
{
	StringInfoData buf;

	initStringInfo(&buf);
	for (const char *p = sql; *p; p++)
	{
		if (p[0] == '@' && p[1] == '.')
			appendStringInfoString(&buf, schema_sql);
		else
			appendStringInfoChar(&buf, *p);
	}
	return buf.data;
}

/*
 * Returns the plan of a statement, made on first use in this backend.  Must be
 * called as the owner and under the search_path it is to run with.
 */
static SPIPlanPtr
get_plan(const char *sql, int nargs, Oid *types)
{
	StorePlan  *entry;
	bool		found;

	if (plans == NULL)
	{
		HASHCTL		ctl = {.keysize = sizeof(char *),.entrysize = sizeof(StorePlan)};

		plans = hash_create("possync plans", 32, &ctl, HASH_ELEM | HASH_BLOBS);
	}
	entry = hash_search(plans, &sql, HASH_ENTER, &found);
	if (!found)
		entry->plan = NULL;
	if (entry->plan != NULL && entry->schema != schema_oid)
	{
		/* the extension was created anew elsewhere */
		SPI_freeplan(entry->plan);
		entry->plan = NULL;
	}
	if (entry->plan == NULL)
	{
		char	   *statement = with_schema(sql);
		SPIPlanPtr	plan = SPI_prepare(statement, nargs, types);

		if (plan == NULL)
			elog(ERROR, "SPI_prepare failed: %s",
				 SPI_result_code_string(SPI_result));
		if (SPI_keepplan(plan) != 0)
			elog(ERROR, "SPI_keepplan failed");
		entry->plan = plan;
		entry->schema = schema_oid;
		pfree(statement);
	}
	return entry->plan;
}

/* Leaves the planner the ways that a statement is to be planned in. */
static void
pin_plan(PosStorePlan how)
{
	static const char *const others[][5] = {
		[POS_PLAN_LOOK_UP] = {"enable_seqscan", "enable_hashjoin", "enable_mergejoin", "jit"},
		[POS_PLAN_MERGE] = {"enable_seqscan", "enable_bitmapscan", "enable_hashjoin",
		"enable_nestloop", "jit"}
	};

	if (how == POS_PLAN_ANY)
		return;
	for (int i = 0; i < lengthof(others[how]) && others[how][i] != NULL; i++)
		(void) set_config_option(others[how][i], "off", PGC_USERSET, PGC_S_SESSION,
								 GUC_ACTION_SAVE, true, 0, false);
}

/*
 * Runs one statement on possync's own tables, written with "@." for the
 * extension's schema.  sql must be a string constant: its address is what the
 * plan is remembered by.  SPI must be connected; a result stands in
 * SPI_tuptable.  Returns the number of rows processed.
 */
uint64
pos_store_execute(const char *sql, int nargs, Oid *types, Datum *values,
				  const char *nulls)
{
	return pos_store_execute_as(POS_PLAN_ANY, sql, nargs, types, values, nulls);
}

/*
 * Does the same with a plan that statistics have no say in: they may be missing, or
 * of a time when the table was small, and the plan is kept while it grows.  It is
 * pinned in every execution, for any may plan anew.
 */
uint64
pos_store_execute_as(PosStorePlan how, const char *sql, int nargs, Oid *types,
					 Datum *values, const char *nulls)
{
	Oid			saved_user;
	int			saved_context;
	int			nestlevel = NewGUCNestLevel();
	int			rc;
	MemoryContext context = CurrentMemoryContext;

	(void) set_config_option("search_path", "pg_catalog, pg_temp",
							 PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
	pin_plan(how);
	pos_store_as_owner(pos_store_relid("synchronize_model"), &saved_user,
					   &saved_context);
	rc = SPI_execute_plan(get_plan(sql, nargs, types), values, nulls, false, 0);
	if (rc < 0)
		elog(ERROR, "SPI_execute_plan failed: %s", SPI_result_code_string(rc));
	SetUserIdAndSecContext(saved_user, saved_context);
	AtEOXact_GUC(true, nestlevel);
	MemoryContextSwitchTo(context); /* SPI leaves us in its own */
	return SPI_processed;
}

/*
 * Gives the rows of a query on possync's own tables, as the active snapshot sees
 * them, to a receiver.  sql is as in pos_store_execute, but planned every time.
 */
void
pos_store_read(const char *sql, DestReceiver *receiver)
{
	Oid			saved_user;
	int			saved_context;
	int			nestlevel = NewGUCNestLevel();
	int			rc;
	MemoryContext context = CurrentMemoryContext;
	SPIExecuteOptions options = {.read_only = true,.dest = receiver};

	(void) set_config_option("search_path", "pg_catalog, pg_temp",
							 PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
	pos_store_as_owner(pos_store_relid("synchronize_model"), &saved_user,
					   &saved_context);
	rc = SPI_execute_extended(with_schema(sql), &options);
	if (rc < 0)
		elog(ERROR, "SPI_execute_extended failed: %s", SPI_result_code_string(rc));
	SetUserIdAndSecContext(saved_user, saved_context);
	AtEOXact_GUC(true, nestlevel);
	MemoryContextSwitchTo(context);
}
