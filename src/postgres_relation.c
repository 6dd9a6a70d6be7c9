/*
 * postgres_relation.c
 *		The descriptions of remote tables that a session keeps: looked up here,
 *		filled by postgres_describe.c.
 */
#include "postgres.h"

#include "connection_postgres.h"
#include "utils/memutils.h"

/*
 * Returns what a session knows of a remote table, NULL if it never looked.
 */
PosPgRelation *
pos_pg_relation(PosPgSession *session, const char *remote)
{
	ListCell   *lc;

	foreach(lc, session->relations)
	{
		PosPgRelation *relation = (PosPgRelation *) lfirst(lc);

		if (strcmp(relation->remote, remote) == 0)
			return relation;
	}

	return NULL;
}

/*
 * Returns a column of a remote table, NULL if it has none of this name.
 */
PosPgAttribute *
pos_pg_attribute(PosPgRelation *relation, const char *name)
{
	for (int i = 0; i < relation->nattributes; i++)
	{
		if (strcmp(relation->attributes[i].name, name) == 0)
			return &relation->attributes[i];
	}

	return NULL;
}

/*
 * Forgets every description.
 */
void
pos_pg_relation_forget(PosPgSession *session)
{
	ListCell   *lc;

	foreach(lc, session->relations)
		MemoryContextDelete(((PosPgRelation *) lfirst(lc))->context);
	list_free(session->relations);
	session->relations = NIL;
}
