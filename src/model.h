/*
 * model.h
 *		Models, fields and references of a tree in memory.
 *
 * A key has one canonical form per side, in which it stands in
 * synchronize_translation and in row sets: int8 for a single integer column,
 * else text; the text of several columns is that of an array of their texts.
 *
 * A staged row is what one remote row looks like between the source and the
 * target:
 *
 *		n		int8		its number among the rows read for its model
 *		rkey	canonical	remote key
 *		lkey	canonical	local key, null until the row is bound
 *		old		int8		a bit for each reference to a row that was not made in
 *							this run, and POS_OLD_PENDING
 *		w1..	local types	the columns to be written, foreign keys translated
 *		r1..	canonical	remote keys of inner references, to be translated
 *							once all rows of the component are bound
 */
#ifndef POSSYNC_MODEL_H
#define POSSYNC_MODEL_H

#include "access/tupdesc.h"
#include "connection.h"
#include "executor/tuptable.h"
#include "nodes/execnodes.h"
#include "utils/rel.h"
#include "utils/timestamp.h"

#define POS_STAGE_N			0
#define POS_STAGE_REMOTE	1
#define POS_STAGE_LOCAL		2
#define POS_STAGE_OLD		3
#define POS_STAGE_FIRST		4	/* first column to be written */

/* In old: a dry run does not know the value of some reference */
#define POS_OLD_PENDING		PG_INT64_MIN

/* What may happen to a row whose counterpart is not known */
typedef enum PosUnknown
{
	POS_MATCH_CREATE,
	POS_MATCH_ONLY,
	POS_CREATE_ONLY,
	POS_IGNORE
} PosUnknown;

/* Who wins where both sides changed a row, see conflict.c */
typedef enum PosConflict
{
	POS_LOCAL_WINS,
	POS_REMOTE_WINS,
	POS_NEWEST,
	POS_ASK
} PosConflict;

/* What happens to a row whose counterpart was deleted, see gone.c */
typedef enum PosDelete
{
	POS_DELETE_IGNORE,
	POS_DELETE_DEACTIVATE,
	POS_DELETE_DELETE
} PosDelete;

/* What both sides are compared by, see drift.c */
typedef enum PosCompare
{
	POS_COMPARE_NOTHING,
	POS_COMPARE_LOG,			/* the source's log tells what was deleted */
	POS_COMPARE_KEYS,
	POS_COMPARE_ROWS
} PosCompare;

typedef struct PosModel PosModel;
typedef struct PosComponent PosComponent;
typedef struct PosRowset PosRowset;
typedef struct PosWriter PosWriter;
struct translation_hash;

/* A column of a model */
typedef struct PosField
{
	char	   *name;
	char	   *remote;
	bool		copy;
	bool		match;
	char	   *fixed;			/* text form of a fixed value, or NULL */

	AttrNumber	attnum;			/* 0: the local column does not exist */
	Oid			type;
	Oid			base;			/* type, or what it is a domain over */
	int32		typmod;
	Oid			collation;
	bool		notnull;
	bool		is_key;

	struct PosReference *supplier;	/* the reference that supplies its value */
	int			staged;			/* its column in a staged row, or -1 */
	int			wire;			/* its column in the read, or -1 */
	Datum		fixed_value;
	ExprState  *key_default;	/* a key column made here: its default */
	struct PosSequence *sequence;	/* ... and what makes that, if one does */
	void	   *domain;			/* what checking its domain needs */
} PosField;

/*
 * A foreign key whose columns are translated as the key of another model.
 * Fields and parts run in parallel: fields[i] holds part parts[i] of the
 * parent's key.
 */
typedef struct PosReference
{
	Oid			constraint;		/* InvalidOid: follows from another one */
	PosModel   *parent;
	int			nfields;
	PosField  **fields;
	int		   *parts;
	bool		inner;			/* the parent is in the same component */
	int			bit;			/* its bit in the column old, or -1 */
	bool		unproven;		/* to be checked for every row, see prove.c */
	int			wire;			/* its first column in the read */
	int			staged;			/* inner: its column in a staged row */
	Datum		missing;		/* the key that was not found last */
} PosReference;

/* Counts of one run and model, as history reports them */
typedef struct PosCounts
{
	int64		read;
	int64		created;
	int64		matched;
	int64		updated;
	int64		deleted;		/* or deactivated */
	int64		unchanged;
	int64		left_out;
} PosCounts;

struct PosModel
{
	/* configuration */
	int16		id;
	int16		lane;			/* of the queue */
	char	   *name;
	Oid			relid;
	char	   *remote;
	PosUnknown	on_unknown;
	bool		update_matched;
	PosConflict on_conflict;
	PosDelete	on_delete;
	char	   *inactive_field; /* set to a value by POS_DELETE_DEACTIVATE */
	char	   *inactive_value;
	int			nchange;
	char	  **change;
	int			nafter;			/* methods called for rows created there */
	char	  **after;
	char	   *position;		/* NULL: never read, or not yet all */
	char	   *source;
	bool		complete;		/* all has been read once */
	char	   *loaded_to;		/* the remote key up to which an initial load
								 * has come, or NULL */
	char	   *load_position;	/* and the position when it began */
	char	   *last_key;		/* of the rows read now, if that is a part */
	TimestampTz compared_at;	/* when deleted rows were last looked for; 0:
								 * never */

	/* local side; rel stays open, locked, during a run; only in the tree */
	Relation	rel;
	int			nfields;
	PosField   *fields;
	int			nkey;
	PosField  **key;
	char	   *table_sql;		/* the table in a FROM clause */
	bool		empty;			/* the local table had no row */
	ExprContext *econtext;		/* for defaults of key columns */

	/* the tree */
	List	   *references;		/* of PosReference */
	List	   *depends;		/* of PosModel, all that must come first */
	PosComponent *component;
	int			index;			/* Tarjan's numbers */
	int			lowlink;
	bool		on_stack;
	bool		opened;			/* its table was looked for */
	List	   *problems;		/* of char *: why it cannot be pushed */

	/* one run */
	PosTable	table;
	bool		remote_int;		/* forms of the canonical keys */
	bool		local_int;
	bool		from_int;		/* the same by direction: source's and
								 * target's */
	bool		to_int;
	TupleDesc	stage;
	int			nwritten;
	PosField  **written;		/* in order of their columns in a staged row */
	List	   *domains;		/* those that are translated and have a domain */
	struct translation_hash *translations;
	struct PosPairs *pairs;		/* those made in this run, see translation.c */
	bool		has_translations;
	int64		last_linked;	/* of greater keys at the source, if they are
								 * integers, all is remembered */
	bool		covered;		/* the index on remote keys tells all that is
								 * of interest, see translation.c */
	struct locked_hash *locked; /* rows that new rows refer to, see prove.c */
	int64	   *to_lock;		/* those of them not locked yet */
	int			nto_lock;
	int			maxto_lock;
	bool		unlinks;		/* what is done with known ones, see known.c */
	bool		looks_up;
	bool		streams;
	struct PosLookup *lookup;
	PosRowset  *known;			/* staged rows by what is known of them */
	PosRowset  *unknown;
	PosRowset  *pending;		/* queued changes, see conflict.c */
	PosRowset  *creates;
	PosCompare	compare;		/* how it is compared in this run */
	PosRowset  *gone;			/* staged rows whose counterpart was deleted:
								 * keys only */
	bool		waits;			/* they are deleted when all is written */
	bool		unfinished;		/* not all that is gone was dealt with: the
								 * log is to be asked again */
	List	   *back;			/* of char *: remote keys of rows that had
								 * been deleted, and are there again */
	PosRowset  *changed;		/* known rows that a dry run would write */
	PosWriter  *writer;
	struct PosOutgoing *outgoing;	/* rows of a batch to be pushed, see
									 * push.h */
	struct PosBulk *bulk;		/* the writer's, if new rows go that way */
	PosCounts	counts;
	double		milliseconds;
};

/* Models that refer to each other: one in general, all of a cycle together */
struct PosComponent
{
	List	   *models;			/* in the order of PosTree.models, in which
								 * rows are read */
	bool		inner;			/* has references within itself */
	bool		held;			/* triggers are held back, see write.c */
};

typedef struct PosTree
{
	char	   *server;
	List	   *configured;		/* of PosModel, all that were read */
	struct known_hash *known;	/* the same by their tables, see config.c */
	PosModel   *root;
	List	   *models;			/* of PosModel, what others depend on first */
	List	   *components;		/* of PosComponent, in the same order */
} PosTree;

/* in config.c */
extern int16 pos_config_id(const char *name);
extern PosModel *pos_config_root(PosTree *tree, const char *name);
extern PosModel *pos_config_of_table(PosTree *tree, Oid relid);
extern PosModel *pos_config_known(PosTree *tree, Oid relid);
extern List *pos_config_models(PosTree *tree);
extern List *pos_config_children(PosTree *tree, PosModel *model);
extern void pos_config_fields(PosModel *model);
extern void pos_config_positions(List *models);
extern PosModel *pos_config_find(List *models, int16 id);
extern Datum pos_config_ids(List *models);

/* in tree.c */
extern PosTree *pos_tree_load(const char *name, bool all);
extern List *pos_tree_check(PosTree *tree, PosModel *model);
extern void pos_tree_close(PosTree *tree);

/* in stage.c */
extern void pos_stage_table(PosModel *model);
extern void pos_stage_layout(PosModel *model);
extern void pos_stage_retry(PosModel *model, const char *key);

/* in key.c */
extern int	pos_key_part(PosModel *model, AttrNumber attnum);
extern bool pos_key_is_integer(Oid base);
extern int	pos_key_pin_settings(void);
extern Datum pos_key_integer(Oid base, int64 number);
extern Datum pos_key_from_integer(Oid base, Datum value);
extern Datum pos_key_from_parts(int nparts, Datum *texts);
extern void pos_key_to_parts(Datum key, int nparts, Datum *texts);
extern void pos_key_to_columns(PosModel *model, Datum key, Datum *values);
extern Datum pos_key_from_values(int nkey, Oid *types, Datum *values);
extern Datum pos_key_from_columns(PosModel *model, Datum *values,
								  bool *nulls);
extern char *pos_key_string(Datum key, bool is_int);
extern Datum pos_key_from_string(const char *string, bool is_int);

#endif							/* POSSYNC_MODEL_H */
