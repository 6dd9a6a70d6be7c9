/*
 * tryton_options.c
 *		Options of possync_tryton servers and user mappings.
 */
#include "postgres.h"

#include <limits.h>

#include "access/reloptions.h"
#include "catalog/pg_foreign_server.h"
#include "catalog/pg_user_mapping.h"
#include "commands/defrem.h"
#include "connection_tryton.h"
#include "fmgr.h"
#include "options.h"
#include "utils/builtins.h"

/* In milliseconds */
#define DEFAULT_CONNECT_TIMEOUT 10000
#define DEFAULT_CALL_TIMEOUT 300000
#define DEFAULT_OVERLAP 600000
#define DEFAULT_SWEEP 86400000

#define DEFAULT_PAGE_SIZE 1000
#define DEFAULT_BATCH_SIZE 500
#define MOST_PAGE_SIZE 100000

/* In MB */
#define DEFAULT_MAX_ANSWER 64
#define MOST_MAX_ANSWER 255		/* jsonb takes no more */

static const PosOption options[] = {
	{"url", ForeignServerRelationId, true},
	{"database", ForeignServerRelationId, true},
	{"company", ForeignServerRelationId},
	{"language", ForeignServerRelationId},
	{"sslrootcert", ForeignServerRelationId, true},
	{"connect_timeout", ForeignServerRelationId},
	{"call_timeout", ForeignServerRelationId},
	{"overlap", ForeignServerRelationId},
	{"sweep", ForeignServerRelationId},
	{"page_size", ForeignServerRelationId},
	{"batch_size", ForeignServerRelationId},
	{"max_answer", ForeignServerRelationId},
	{"user", UserMappingRelationId, true},
	{"password", UserMappingRelationId, true},
	{"company", UserMappingRelationId},
	{"language", UserMappingRelationId},
	{NULL}
};

PG_FUNCTION_INFO_V1(possync_tryton_validator);

/* Takes one option into a struct; errors if its value is not one. */
static void
take(DefElem *def, PosTrytonOptions *result)
{
	const char *name = def->defname;

	if (strcmp(name, "url") == 0)
		result->http.url = defGetString(def);
	else if (strcmp(name, "database") == 0)
		result->database = defGetString(def);
	else if (strcmp(name, "user") == 0)
		result->user = defGetString(def);
	else if (strcmp(name, "password") == 0)
		result->password = defGetString(def);
	else if (strcmp(name, "language") == 0)
		result->language = defGetString(def);
	else if (strcmp(name, "sslrootcert") == 0)
		result->http.cafile = defGetString(def);
	else if (strcmp(name, "company") == 0)
		result->company = pos_option_integer(def, 1, INT_MAX);
	else if (strcmp(name, "page_size") == 0)
		result->page_size = pos_option_integer(def, 1, MOST_PAGE_SIZE);
	else if (strcmp(name, "batch_size") == 0)
		result->batch_size = pos_option_integer(def, 1, MOST_PAGE_SIZE);
	else if (strcmp(name, "max_answer") == 0)
		result->http.most = (Size) pos_option_integer(def, 1, MOST_MAX_ANSWER) * 1024 * 1024;
	else if (strcmp(name, "connect_timeout") == 0)
		result->http.connect_timeout = pos_option_time(def);
	else if (strcmp(name, "call_timeout") == 0)
		result->http.call_timeout = pos_option_time(def);
	else if (strcmp(name, "overlap") == 0)
		result->overlap = pos_option_time(def);
	else if (strcmp(name, "sweep") == 0)
		result->sweep = pos_option_time(def);
}

/* Whether a text may stand in a URL as it is. */
static bool
is_plain(const char *text)
{
	return text[0] != '\0' &&
				strspn(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.") == strlen(text);
}

/* Errors if an option's value cannot be used whatever the others are. */
static void
check(DefElem *def)
{
	const char *value = defGetString(def);

	if (strcmp(def->defname, "url") == 0)
	{
		const char *host = strncmp(value, "https://", 8) == 0 ? value + 8 :
		strncmp(value, "http://", 7) == 0 ? value + 7 : value;

		if (strstr(host, "://") != NULL || strpbrk(host, "@?# \t\n\r\\") != NULL ||
			host[0] == '\0' || host[0] == '/')
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 strchr(host, '@') != NULL ? errmsg("invalid value for option \"url\"") :
					 errmsg("invalid value for option \"url\": %s", value),
					 errhint("Write it as erp.example or https://erp.example:8000; where the connection is not to be encrypted, http://. User and password belong to the user mapping.")));
	}
	else if (strcmp(def->defname, "database") == 0 && !is_plain(value))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid value for option \"database\": %s", value),
				 errhint("Letters, digits, \"_\", \"-\" and \".\" may stand in the name.")));
	else if (strcmp(def->defname, "language") == 0 && !is_plain(value))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid value for option \"language\": %s", value),
				 errhint("Write a code of Tryton's, as \"en\" or \"pt_BR\".")));
	else if (strcmp(def->defname, "user") == 0 && strchr(value, ':') != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid value for option \"user\": %s", value),
				 errdetail("Tryton separates it with \":\" from what follows.")));
}

/*
 * SQL: possync_tryton_validator(text[], oid)
 */
Datum
possync_tryton_validator(PG_FUNCTION_ARGS)
{
	List	   *list = untransformRelOptions(PG_GETARG_DATUM(0));
	Oid			catalog = PG_GETARG_OID(1);
	PosTrytonOptions unused = {0};
	ListCell   *lc;

	foreach(lc, list)
	{
		DefElem    *def = lfirst(lc);

		pos_option_check(options, def->defname, catalog);
		take(def, &unused);
		check(def);
	}
	PG_RETURN_VOID();
}

/*
 * Reads the options of a server and a user mapping, which the validator has seen,
 * into the current memory context.  Errors if one is missing without which nobody
 * can connect.
 */
void
pos_tryton_options_read(ForeignServer *server, UserMapping *mapping,
						PosTrytonOptions *result)
{
	List	   *list = list_concat_copy(server->options, mapping->options);
	const char *missing;
	ListCell   *lc;

	memset(result, 0, sizeof(*result));
	result->http.server = pstrdup(server->servername);
	result->http.connect_timeout = DEFAULT_CONNECT_TIMEOUT;
	result->http.call_timeout = DEFAULT_CALL_TIMEOUT;
	result->http.most = (Size) DEFAULT_MAX_ANSWER * 1024 * 1024;
	result->overlap = DEFAULT_OVERLAP;
	result->sweep = DEFAULT_SWEEP;
	result->page_size = DEFAULT_PAGE_SIZE;
	result->batch_size = DEFAULT_BATCH_SIZE;
	foreach(lc, list)
		take(copyObject(lfirst(lc)), result);

	missing = result->http.url == NULL ? "url" : result->database == NULL ? "database" :
		result->user == NULL ? "user" : result->password == NULL ? "password" : NULL;
	if (missing != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_FDW_DYNAMIC_PARAMETER_VALUE_NEEDED),
				 errmsg("option \"%s\" is missing", missing),
				 strcmp(missing, "url") == 0 || strcmp(missing, "database") == 0 ?
				 errhint("ALTER SERVER %s OPTIONS (ADD %s '...');",
						 quote_identifier(server->servername), missing) :
				 errhint("ALTER USER MAPPING FOR ... SERVER %s OPTIONS (ADD %s '...');",
						 quote_identifier(server->servername), missing)));
	result->http.url = psprintf("%s%s%s%s/",
								strstr(result->http.url, "://") == NULL ? "https://" : "",
								result->http.url,
								result->http.url[strlen(result->http.url) - 1] == '/' ? "" : "/",
								result->database);
}
