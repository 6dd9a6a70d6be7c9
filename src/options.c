/*
 * options.c
 *		Options of servers and user mappings, whatever their kind: which there are,
 *		and what their values mean.
 */
#include "postgres.h"

#include <limits.h>
#include <math.h>

#include "catalog/pg_foreign_server.h"
#include "catalog/pg_user_mapping.h"
#include "commands/defrem.h"
#include "options.h"
#include "utils/guc.h"
#include "utils/varlena.h"

/* An option further away than this is no hint */
#define MAX_HINT_DISTANCE 4

/*
 * Returns the option of this name that may be set on objects of a catalog,
 * InvalidOid for any of them; NULL if there is none.
 */
const PosOption *
pos_option_find(const PosOption *options, const char *keyword, Oid catalog)
{
	for (const PosOption *option = options; option->keyword; option++)
	{
		if (strcmp(option->keyword, keyword) == 0 &&
			(catalog == InvalidOid || option->catalog == catalog))
			return option;
	}

	return NULL;
}

/*
 * Errors if there is no option of this name for objects of a catalog; the hint
 * names the closest one.
 */
void
pos_option_check(const PosOption *options, const char *keyword, Oid catalog)
{
	const char *closest = NULL;
	int			distance = MAX_HINT_DISTANCE + 1;
	bool		any = false;

	if (pos_option_find(options, keyword, catalog) != NULL)
		return;

	for (const PosOption *option = options; option->keyword; option++)
	{
		int			d;

		if (option->catalog != catalog)
			continue;
		any = true;

		/* the function refuses longer strings */
		if (strlen(keyword) > NAMEDATALEN)
			continue;
		d = varstr_levenshtein_less_equal(keyword, strlen(keyword),
										  option->keyword,
										  strlen(option->keyword),
										  1, 1, 1, distance - 1, true);
		if (d < distance && d <= strlen(keyword) / 2)
		{
			distance = d;
			closest = option->keyword;
		}
	}

	ereport(ERROR,
			(errcode(ERRCODE_FDW_INVALID_OPTION_NAME),
			 errmsg("invalid option \"%s\"", keyword),
			 catalog != UserMappingRelationId &&
			 pos_option_find(options, keyword, UserMappingRelationId) != NULL ?
			 errhint("It belongs to the user mapping.") :
			 catalog == UserMappingRelationId &&
			 pos_option_find(options, keyword, ForeignServerRelationId) != NULL ?
			 errhint("It belongs to the server.") :
			 closest ? errhint("Perhaps you meant the option \"%s\".", closest) :
			 any ? 0 : errhint("There are no valid options in this context.")));
}

/*
 * Reads a time, in seconds or with a unit of its own.  Returns
 * milliseconds, rounded up: zero means no limit and must be written so.
 */
int
pos_option_time(DefElem *def)
{
	char	   *value = defGetString(def);
	const char *hint = NULL;
	double		seconds;

	if (!parse_real(value, &seconds, GUC_UNIT_S, &hint))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid value for option \"%s\": %s",
						def->defname, value),
				 errhint("Give seconds, or a number with one of the units \"us\", \"ms\", \"s\", \"min\", \"h\", and \"d\".")));
	if (seconds < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("\"%s\" must not be negative", def->defname)));
	if (!(seconds * 1000 <= INT_MAX))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("value of option \"%s\" is too large: %s",
						def->defname, value),
				 errhint("The largest one is %d days.", INT_MAX / 86400000)));

	return (int) ceil(seconds * 1000 - 1e-6);
}

/* Reads an integer between two others. */
int
pos_option_integer(DefElem *def, int least, int most)
{
	char	   *value = defGetString(def);
	const char *hint = NULL;
	int			result;

	if (!parse_int(value, &result, 0, &hint) || result < least || result > most)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid value for option \"%s\": %s", def->defname, value),
				 errhint("Give a number from %d to %d.", least, most)));
	return result;
}
