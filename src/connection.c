/*
 * connection.c
 *		The registry of connections: from the name of a server to a session.
 *
 * Owns the list of kinds and the checks that hold for every kind: the server
 * exists, its wrapper is one of possync's, and the current user may use it.
 * Sessions themselves belong to the connection files.
 */
#include "postgres.h"

#include "compat.h"
#include "connection.h"
#include "miscadmin.h"

static const PosConnectionOps *const kinds[] = {
	&pos_connection_postgres,
};

/*
 * Returns an open session with a server for the current user.
 *
 * Errors if there is no such server, if it belongs to a wrapper that is not
 * possync's, if the user lacks USAGE on it or has no user mapping, and
 * whatever the kind reports when it connects.
 */
PosConnection *
pos_connection_get(const char *servername)
{
	ForeignServer *server = GetForeignServerByName(servername, false);
	ForeignDataWrapper *wrapper = GetForeignDataWrapper(server->fdwid);
	const PosConnectionOps *ops = pos_connection_ops(wrapper->fdwname);
	AclResult	aclresult;

	if (ops == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("server \"%s\" cannot be used by possync",
						servername),
				 errdetail("It belongs to foreign data wrapper \"%s\".",
						   wrapper->fdwname),
				 errhint("Create the server for foreign data wrapper \"%s\".",
						 pos_connection_postgres.wrapper)));

	aclresult = pos_compat_server_aclcheck(server->serverid, GetUserId(),
										   ACL_USAGE);
	if (aclresult != ACLCHECK_OK)
		aclcheck_error(aclresult, OBJECT_FOREIGN_SERVER, servername);

	return ops->get(server, GetUserMapping(GetUserId(), server->serverid));
}

/*
 * Returns the kind that serves a foreign data wrapper, NULL if there is none.
 */
const PosConnectionOps *
pos_connection_ops(const char *wrapper)
{
	for (int i = 0; i < lengthof(kinds); i++)
	{
		if (strcmp(kinds[i]->wrapper, wrapper) == 0)
			return kinds[i];
	}

	return NULL;
}
