/*
 * postgres_options.c
 *		Options of possync_postgres servers and user mappings.
 *
 * Owns the validator, the translation of options into libpq's parameters and
 * the rule that only superusers may connect without a password of their own.
 * Never connects.
 *
 * libpq is asked which options it knows; user name and secrets belong to the
 * user mapping, everything else to the server.
 */
#include "postgres.h"

#include "access/reloptions.h"
#include "catalog/pg_foreign_server.h"
#include "catalog/pg_user_mapping.h"
#include "commands/defrem.h"
#include "connection_postgres.h"
#include "fmgr.h"
#include "libpq/libpq-be-fe-helpers.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "options.h"
#include "utils/memutils.h"

/* In milliseconds */
#define DEFAULT_CONNECT_TIMEOUT 10000
#define DEFAULT_STATEMENT_TIMEOUT 60000
#define DEFAULT_OVERLAP 600000
#define DEFAULT_SWEEP 3600000

static PosOption *options = NULL;

static void load_options(void);
static bool hidden(const PQconninfoOption *option);
static bool is_time(const char *keyword);
static void check_superuser_only(DefElem *def);
static bool has_password(UserMapping *mapping);
static bool password_required(UserMapping *mapping);

PG_FUNCTION_INFO_V1(possync_postgres_validator);

/*
 * SQL: possync_postgres_validator(text[], oid)
 */
Datum
possync_postgres_validator(PG_FUNCTION_ARGS)
{
	List	   *list = untransformRelOptions(PG_GETARG_DATUM(0));
	Oid			catalog = PG_GETARG_OID(1);
	ListCell   *lc;

	load_options();
	foreach(lc, list)
	{
		DefElem    *def = (DefElem *) lfirst(lc);

		pos_option_check(options, def->defname, catalog);

		if (is_time(def->defname))
			(void) pos_option_time(def);
		else if (strcmp(def->defname, "keep_connections") == 0)
			(void) defGetBoolean(def);
		else
			check_superuser_only(def);
	}

	PG_RETURN_VOID();
}

/*
 * Reads the options of a server and a user mapping, which the validator has
 * seen, into own options and into the parameters of PQconnectStartParams.
 * Allocates in the current memory context.
 */
void
pos_pg_options_read(ForeignServer *server, UserMapping *mapping,
					PosPgOptions *result,
					const char ***keywords, const char ***values)
{
	List	   *list = list_concat_copy(server->options, mapping->options);
	ListCell   *lc;
	int			n = 0;

	result->connect_timeout = DEFAULT_CONNECT_TIMEOUT;
	result->statement_timeout = DEFAULT_STATEMENT_TIMEOUT;
	result->overlap = DEFAULT_OVERLAP;
	result->sweep = DEFAULT_SWEEP;
	result->keep_connections = true;

	/* room for the two of our own and the end */
	*keywords = palloc(sizeof(char *) * (list_length(list) + 3));
	*values = palloc(sizeof(char *) * (list_length(list) + 3));

	load_options();
	foreach(lc, list)
	{
		DefElem    *def = (DefElem *) lfirst(lc);
		const PosOption *option = pos_option_find(options, def->defname,
												  InvalidOid);

		if (strcmp(def->defname, "connect_timeout") == 0)
			result->connect_timeout = pos_option_time(def);
		else if (strcmp(def->defname, "statement_timeout") == 0)
			result->statement_timeout = pos_option_time(def);
		else if (strcmp(def->defname, "overlap") == 0)
			result->overlap = pos_option_time(def);
		else if (strcmp(def->defname, "sweep") == 0)
			result->sweep = pos_option_time(def);
		else if (strcmp(def->defname, "keep_connections") == 0)
			result->keep_connections = defGetBoolean(def);
		else if (option != NULL && option->passed_on)
		{
			(*keywords)[n] = pstrdup(def->defname);
			(*values)[n++] = pstrdup(defGetString(def));
		}
	}

	(*keywords)[n] = "fallback_application_name";
	(*values)[n++] = "possync";
	(*keywords)[n] = "client_encoding";
	(*values)[n++] = GetDatabaseEncodingName();
	(*keywords)[n] = NULL;
	(*values)[n] = NULL;
}

/*
 * Before connecting: refuses parameters that a server must not pass on to
 * libpq, and users who would connect with credentials that are not theirs.
 */
void
pos_pg_options_check(UserMapping *mapping,
					 const char **keywords, const char **values)
{
#ifdef HAVE_PROXY_CHECK
	PQconninfoOption *parameters;
	int			n = 0;

	while (keywords[n] != NULL)
		n++;
	parameters = palloc0(sizeof(PQconninfoOption) * (n + 1));
	for (int i = 0; i < n; i++)
	{
		parameters[i].keyword = unconstify(char *, keywords[i]);
		parameters[i].val = unconstify(char *, values[i]);
	}
	libpqsrv_check_proxy_conninfo_opts(parameters);
	pfree(parameters);
#endif

	if (password_required(mapping) && !has_password(mapping))
		ereport(ERROR,
				(errcode(ERRCODE_S_R_E_PROHIBITED_SQL_STATEMENT_ATTEMPTED),
				 errmsg("password is required"),
				 errdetail("Non-superusers must provide a password in the user mapping.")));
}

/*
 * After connecting: a user who has to give a password must have used it, or
 * the remote let in not the user but the local server.
 */
void
pos_pg_options_check_connected(UserMapping *mapping, PGconn *conn)
{
	if (password_required(mapping) && !PQconnectionUsedPassword(conn))
		ereport(ERROR,
				(errcode(ERRCODE_S_R_E_PROHIBITED_SQL_STATEMENT_ATTEMPTED),
				 errmsg("password is required"),
				 errdetail("Non-superuser cannot connect if the server does not request a password."),
				 errhint("Target server's authentication method must be changed or password_required=false set in the user mapping attributes.")));
}

/*
 * Asks libpq for its options, once per backend.
 */
static void
load_options(void)
{
	static const PosOption own[] = {
		{"statement_timeout", ForeignServerRelationId, false},
		{"overlap", ForeignServerRelationId, false},
		{"sweep", ForeignServerRelationId, false},
		{"keep_connections", ForeignServerRelationId, false},
		{"password_required", UserMappingRelationId, false},

		/* these may differ from user to user, too */
		{"sslcert", UserMappingRelationId, true},
		{"sslkey", UserMappingRelationId, true},
	};
	PQconninfoOption *defaults;
	PosOption  *list;
	int			n = 0;

	if (options != NULL)
		return;

	defaults = PQconndefaults();
	if (defaults == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_FDW_OUT_OF_MEMORY),
				 errmsg("out of memory"),
				 errdetail("Could not get libpq's default connection options.")));

	for (PQconninfoOption *option = defaults; option->keyword; option++)
		n++;
	list = (PosOption *) MemoryContextAllocZero(TopMemoryContext,
												sizeof(PosOption) * (n + lengthof(own) + 1));
	n = 0;
	for (PQconninfoOption *option = defaults; option->keyword; option++)
	{
		if (hidden(option))
			continue;
		list[n].keyword = MemoryContextStrdup(TopMemoryContext,
											  option->keyword);
		list[n].catalog = (strcmp(option->keyword, "user") == 0 ||
						   strchr(option->dispchar, '*') != NULL) ?
			UserMappingRelationId : ForeignServerRelationId;
		list[n++].passed_on = true;
	}
	memcpy(&list[n], own, sizeof(own));
	PQconninfoFree(defaults);

	options = list;
}

/*
 * Debug options, those that we set ourselves, and OAuth, whose flow asks a
 * person and writes to the server's log.
 */
static bool
hidden(const PQconninfoOption *option)
{
	return strchr(option->dispchar, 'D') != NULL ||
		strcmp(option->keyword, "fallback_application_name") == 0 ||
		strcmp(option->keyword, "client_encoding") == 0 ||
		strncmp(option->keyword, "oauth_", strlen("oauth_")) == 0;
}

static bool
is_time(const char *keyword)
{
	return strcmp(keyword, "connect_timeout") == 0 ||
		strcmp(keyword, "statement_timeout") == 0 ||
		strcmp(keyword, "overlap") == 0 ||
		strcmp(keyword, "sweep") == 0;
}

/*
 * Options with which a user could borrow the identity of the server process
 */
static void
check_superuser_only(DefElem *def)
{
	if (strcmp(def->defname, "password_required") == 0)
	{
		if (!superuser() && !defGetBoolean(def))
			ereport(ERROR,
					(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
					 errmsg("password_required=false is superuser-only"),
					 errhint("User mappings with the password_required option set to false may only be created or modified by the superuser.")));
		(void) defGetBoolean(def);
	}
	else if (strcmp(def->defname, "sslcert") == 0 ||
			 strcmp(def->defname, "sslkey") == 0)
	{
		if (!superuser())
			ereport(ERROR,
					(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
					 errmsg("sslcert and sslkey are superuser-only"),
					 errhint("User mappings with the sslcert or sslkey options set may only be created or modified by the superuser.")));
	}
}

static bool
has_password(UserMapping *mapping)
{
	ListCell   *lc;

	foreach(lc, mapping->options)
	{
		DefElem    *def = (DefElem *) lfirst(lc);

		if (strcmp(def->defname, "password") == 0)
			return defGetString(def)[0] != '\0';
	}

	return false;
}

static bool
password_required(UserMapping *mapping)
{
	ListCell   *lc;

	if (superuser_arg(mapping->userid))
		return false;

	foreach(lc, mapping->options)
	{
		DefElem    *def = (DefElem *) lfirst(lc);

		if (strcmp(def->defname, "password_required") == 0)
			return defGetBoolean(def);
	}

	return true;
}
