/*
 * commands.c
 *		Commands that possync's processes have to know of.
 *
 * PostgreSQL drops, renames or copies a database only while nobody is connected
 * to it: our processes leave before.  They look anew when a server, a user
 * mapping or the extension itself has changed.
 */
#include "possync.h"

#include "access/htup_details.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_database.h"
#include "commands/dbcommands.h"
#include "commands/defrem.h"
#include "compat.h"
#include "launcher.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "shared.h"
#include "tcop/utility.h"
#include "utils/syscache.h"

static ProcessUtility_hook_type next_utility = NULL;

/* Whether a database is a template that everybody may copy. */
static bool
is_template(Oid database)
{
	HeapTuple	tuple = SearchSysCache1(DATABASEOID, ObjectIdGetDatum(database));
	bool		result;

	if (!HeapTupleIsValid(tuple))
		return false;
	result = ((Form_pg_database) GETSTRUCT(tuple))->datistemplate;
	ReleaseSysCache(tuple);
	return result;
}

/* Whether the user may create databases. */
static bool
creates_databases(void)
{
	HeapTuple	tuple;
	bool		result;

	if (superuser())
		return true;
	tuple = SearchSysCache1(AUTHOID, ObjectIdGetDatum(GetUserId()));
	if (!HeapTupleIsValid(tuple))
		return false;
	result = ((Form_pg_authid) GETSTRUCT(tuple))->rolcreatedb;
	ReleaseSysCache(tuple);
	return result;
}

/*
 * Lets our processes leave a database, if PostgreSQL would let the user do what
 * he asks for.
 */
static void
vacate(const char *name, bool copied)
{
	Oid			database = name == NULL ? InvalidOid : get_database_oid(name, true);

	/* that of its own a session cannot drop, but copy */
	if (OidIsValid(database) && (copied || database != MyDatabaseId) &&
		(pos_compat_owns_database(database, GetUserId()) ||
		 (copied && is_template(database) && creates_databases())))
		pos_shared_vacate(database);
}

/* The database that a new one is copied from */
static const char *
template_of(CreatedbStmt *stmt)
{
	ListCell   *lc;

	foreach(lc, stmt->options)
	{
		DefElem    *option = lfirst(lc);

		if (strcmp(option->defname, "template") == 0 && option->arg != NULL)
			return defGetString(option);
	}
	return NULL;
}

/* Makes room for a command. */
static void
before(Node *stmt)
{
	switch (nodeTag(stmt))
	{
		case T_DropdbStmt:
			vacate(((DropdbStmt *) stmt)->dbname, false);
			break;
		case T_CreatedbStmt:
			vacate(template_of((CreatedbStmt *) stmt), true);
			break;
		case T_RenameStmt:
			if (((RenameStmt *) stmt)->renameType == OBJECT_DATABASE)
				vacate(((RenameStmt *) stmt)->subname, false);
			break;
		default:
			break;
	}
}

/* Whether a command may matter to jobs. */
static bool
matters(Node *stmt)
{
	switch (nodeTag(stmt))
	{
		case T_AlterForeignServerStmt:
		case T_CreateUserMappingStmt:
		case T_AlterUserMappingStmt:
		case T_CreateExtensionStmt:
			return true;
		case T_DropStmt:
			return ((DropStmt *) stmt)->removeType == OBJECT_EXTENSION ||
				((DropStmt *) stmt)->removeType == OBJECT_SCHEMA ||
				((DropStmt *) stmt)->removeType == OBJECT_FOREIGN_SERVER;
		case T_RenameStmt:
			return ((RenameStmt *) stmt)->renameType == OBJECT_FOREIGN_SERVER;
		case T_DropRoleStmt:
		case T_DropOwnedStmt:
			return true;
		default:
			return false;
	}
}

static void
utility(PlannedStmt *pstmt, const char *query, bool read_only,
		ProcessUtilityContext context, ParamListInfo params,
		QueryEnvironment *environment, DestReceiver *dest, QueryCompletion *qc)
{
	Node	   *stmt = pstmt->utilityStmt;
	bool		wakes = matters(stmt);

	before(stmt);
	if (next_utility)
		next_utility(pstmt, query, read_only, context, params, environment,
					 dest, qc);
	else
		standard_ProcessUtility(pstmt, query, read_only, context, params,
								environment, dest, qc);
	if (wakes)
		pos_shared_wake_at_commit(POS_WAKE_CONFIG);
}

/* Looks at commands from now on; called while the module is preloaded. */
void
pos_commands_init(void)
{
	next_utility = ProcessUtility_hook;
	ProcessUtility_hook = utility;
}
