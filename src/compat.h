/*
 * compat.h
 *		Differences between the versions of PostgreSQL, 15 to 18.
 *
 * Every test of PG_VERSION_NUM stands here, behind a name of our own, so that
 * no other file knows which version it is built for.
 */
#ifndef POSSYNC_COMPAT_H
#define POSSYNC_COMPAT_H

#include "catalog/pg_foreign_server.h"
#include "utils/acl.h"

/* Whether a role holds a privilege on a foreign server */
static inline AclResult
pos_compat_server_aclcheck(Oid server, Oid role, AclMode mode)
{
#if PG_VERSION_NUM >= 160000
	return object_aclcheck(ForeignServerRelationId, server, role, mode);
#else
	return pg_foreign_server_aclcheck(server, role, mode);
#endif
}

#endif							/* POSSYNC_COMPAT_H */
