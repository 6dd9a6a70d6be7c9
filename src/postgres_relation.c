/*
 * postgres_relation.c
 *		The descriptions of remote tables that a session keeps: looked up here,
 *		filled by postgres_describe.c.
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "connection_postgres.h"
#include "utils/memutils.h"

typedef struct RelationEntry
{
	const char *remote;
	char		status;
	PosPgRelation *relation;
} RelationEntry;

#define SH_PREFIX relations
#define SH_ELEMENT_TYPE RelationEntry
#define SH_KEY_TYPE const char *
#define SH_KEY remote
#define SH_HASH_KEY(tb, key) hash_bytes((const unsigned char *) (key), strlen(key))
#define SH_EQUAL(tb, a, b) (strcmp(a, b) == 0)
#define SH_SCOPE static inline
#define SH_DECLARE
#define SH_DEFINE
#include "lib/simplehash.h"

/*
 * Returns what a session knows of a remote table, NULL if it never looked.
 */
PosPgRelation *
pos_pg_relation(PosPgSession *session, const char *remote)
{
	RelationEntry *entry = session->relations == NULL ? NULL :
	relations_lookup(session->relations, remote);

	return entry == NULL ? NULL : entry->relation;
}

/*
 * Keeps a description, in place of an older one of the same table.
 */
void
pos_pg_relation_keep(PosPgSession *session, PosPgRelation *relation)
{
	RelationEntry *entry;
	bool		found;

	if (session->relations == NULL)
	{
		session->relation_context =
			AllocSetContextCreate(session->base.context, "possync relations",
								  ALLOCSET_SMALL_SIZES);
		session->relations = relations_create(session->relation_context, 16, NULL);
	}
	entry = relations_insert(session->relations, relation->remote, &found);
	if (found)
		MemoryContextDelete(entry->relation->context);
	entry->remote = relation->remote;
	entry->relation = relation;
	MemoryContextSetParent(relation->context, session->relation_context);
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
	if (session->relations != NULL)
		MemoryContextDelete(session->relation_context);
	session->relation_context = NULL;
	session->relations = NULL;
}
