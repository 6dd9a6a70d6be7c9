/*
 * compat.h
 *		What differs between the versions of PostgreSQL that we support, 15 to
 *		18.  Every test of PG_VERSION_NUM is here.
 */
#ifndef POSSYNC_COMPAT_H
#define POSSYNC_COMPAT_H

#include "access/genam.h"
#include "access/multixact.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_class.h"
#include "catalog/pg_database.h"
#include "catalog/pg_foreign_server.h"
#include "commands/vacuum.h"
#include "common/jsonapi.h"
#include "executor/executor.h"
#include "mb/pg_wchar.h"
#include "nodes/parsenodes.h"
#if PG_VERSION_NUM >= 160000
#include "parser/parse_relation.h"
#endif
#if PG_VERSION_NUM < 170000
#include "storage/proc.h"
#else
#include "storage/procnumber.h"
#endif
#include "utils/acl.h"
#include "utils/guc.h"
#include "utils/rel.h"
#include "utils/relcache.h"
#include "utils/snapmgr.h"

/*
 * Gives an executor state a range table of one relation, into which rows are
 * inserted or of which some columns are updated.
 */
static inline void
pos_compat_init_range_table(EState *estate, Relation rel, Bitmapset *updated)
{
	RangeTblEntry *rte = makeNode(RangeTblEntry);
#if PG_VERSION_NUM >= 160000
	List	   *permissions = NIL;
#endif

	rte->rtekind = RTE_RELATION;
	rte->relid = RelationGetRelid(rel);
	rte->relkind = rel->rd_rel->relkind;
	rte->rellockmode = RowExclusiveLock;
#if PG_VERSION_NUM >= 160000
	addRTEPermissionInfo(&permissions, rte)->updatedCols = updated;
#else
	rte->updatedCols = updated;
#endif
#if PG_VERSION_NUM >= 180000
	ExecInitRangeTable(estate, list_make1(rte), permissions,
					   bms_make_singleton(1));
#elif PG_VERSION_NUM >= 160000
	ExecInitRangeTable(estate, list_make1(rte), permissions);
#else
	ExecInitRangeTable(estate, list_make1(rte));
#endif
}

/* Errors if a command cannot be carried out on a table at all */
static inline void
pos_compat_check_target(ResultRelInfo *target, CmdType command)
{
#if PG_VERSION_NUM >= 180000
	CheckValidResultRel(target, command, ONCONFLICT_NONE, NIL);
#elif PG_VERSION_NUM >= 170000
	CheckValidResultRel(target, command, NIL);
#else
	CheckValidResultRel(target, command);
#endif
}

/* Enters a new row into all indexes; returns those to be checked again. */
static inline List *
pos_compat_insert_index_tuples(ResultRelInfo *target, TupleTableSlot *slot,
							   EState *estate)
{
#if PG_VERSION_NUM >= 160000
	return ExecInsertIndexTuples(target, slot, estate, false, false, NULL, NIL,
								 false);
#else
	return ExecInsertIndexTuples(target, slot, estate, false, false, NULL, NIL);
#endif
}

/* Which indexes an updated row has to be entered into */
#if PG_VERSION_NUM >= 160000
typedef TU_UpdateIndexes PosCompatIndexes;
#define pos_compat_has_indexes(indexes) ((indexes) != TU_None)
#else
typedef bool PosCompatIndexes;
#define pos_compat_has_indexes(indexes) (indexes)
#endif

/* Updates one row, after whoever is at work on it has ended. */
static inline TM_Result
pos_compat_update_tuple(Relation rel, ItemPointer tid, TupleTableSlot *slot,
						Snapshot snapshot, TM_FailureData *failure,
						PosCompatIndexes *indexes)
{
	LockTupleMode mode;

	return table_tuple_update(rel, tid, slot, GetCurrentCommandId(true), snapshot,
							  InvalidSnapshot, true, failure, &mode, indexes);
}

/* Enters an updated row into those; returns the indexes to be checked again. */
static inline List *
pos_compat_update_index_tuples(ResultRelInfo *target, TupleTableSlot *slot,
							   EState *estate, PosCompatIndexes indexes)
{
#if PG_VERSION_NUM >= 160000
	return ExecInsertIndexTuples(target, slot, estate, true, false, NULL, NIL,
								 indexes == TU_Summarizing);
#else
	return ExecInsertIndexTuples(target, slot, estate, true, false, NULL, NIL);
#endif
}

/* Begins a scan of an index of a table, with keys that rescan will give. */
static inline IndexScanDesc
pos_compat_beginscan(Relation rel, Relation index, Snapshot snapshot,
					 int nkeys)
{
#if PG_VERSION_NUM >= 180000
	return index_beginscan(rel, index, snapshot, NULL, nkeys, 0);
#else
	return index_beginscan(rel, index, snapshot, nkeys, 0);
#endif
}

/*
 * Whether a column is known to have no nulls.  One that takes none may have some from
 * before (NOT NULL ... NOT VALID).
 */
static inline bool
pos_compat_has_no_nulls(TupleDesc desc, AttrNumber attnum)
{
#if PG_VERSION_NUM >= 180000
	return TupleDescCompactAttr(desc, attnum - 1)->attnullability == ATTNULLABLE_VALID;
#else
	return TupleDescAttr(desc, attnum - 1)->attnotnull;
#endif
}

/* Gives a relation an empty file, for as long as the transaction does not fail. */
static inline void
pos_compat_set_new_storage(Relation rel, char persistence)
{
#if PG_VERSION_NUM >= 160000
	RelationSetNewRelfilenumber(rel, persistence);
#else
	RelationSetNewRelfilenode(rel, persistence);
#endif
}

/* Writes down the size of a table or an index, which are in use. */
static inline void
pos_compat_set_size(Relation rel, BlockNumber pages, double tuples,
					BlockNumber visible)
{
#if PG_VERSION_NUM >= 180000
	vac_update_relstats(rel, pages, tuples, visible, 0, true, InvalidTransactionId,
						InvalidMultiXactId, NULL, NULL, true);
#else
	vac_update_relstats(rel, pages, tuples, visible, true, InvalidTransactionId,
						InvalidMultiXactId, NULL, NULL, true);
#endif
}

/* Has functions of indexes find what they name where PostgreSQL builds one */
static inline void
pos_compat_restrict_search_path(void)
{
#if PG_VERSION_NUM >= 170000
	RestrictSearchPath();
#endif
}

/* Has transactions of this process last as long as they take, as autovacuum's do */
static inline void
pos_compat_lift_time_limit(void)
{
#if PG_VERSION_NUM >= 170000
	SetConfigOption("transaction_timeout", "0", PGC_SUSET, PGC_S_OVERRIDE);
#endif
}

/* Whether rows may be taken away that an old snapshot still sees */
static inline bool
pos_compat_prunes_early(void)
{
#if PG_VERSION_NUM >= 170000
	return false;
#else
	return OldSnapshotThresholdActive();
#endif
}

/* Returns a lexer of JSON in the database's encoding, which unescapes strings. */
static inline JsonLexContext *
pos_compat_json_lexer(char *json, int len)
{
#if PG_VERSION_NUM >= 170000
	return makeJsonLexContextCstringLen(NULL, json, len, GetDatabaseEncoding(), true);
#else
	return makeJsonLexContextCstringLen(json, len, GetDatabaseEncoding(), true);
#endif
}

/* Before the declaration of a function that does not return */
#if PG_VERSION_NUM >= 180000
#define pos_noreturn pg_noreturn
#else
#define pos_noreturn pg_attribute_noreturn()
#endif

/* The number of this process among all backends */
static inline int
pos_compat_proc_number(void)
{
#if PG_VERSION_NUM >= 170000
	return MyProcNumber;
#else
	return MyProc->pgprocno;
#endif
}

/* Whether a role owns a table */
static inline bool
pos_compat_owns_table(Oid relid, Oid role)
{
#if PG_VERSION_NUM >= 160000
	return object_ownercheck(RelationRelationId, relid, role);
#else
	return pg_class_ownercheck(relid, role);
#endif
}

/* Whether a role owns a database */
static inline bool
pos_compat_owns_database(Oid database, Oid role)
{
#if PG_VERSION_NUM >= 160000
	return object_ownercheck(DatabaseRelationId, database, role);
#else
	return pg_database_ownercheck(database, role);
#endif
}

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
