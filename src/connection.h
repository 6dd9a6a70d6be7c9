/*
 * connection.h
 *		The interface behind which every kind of remote stands.
 *
 * A connection delivers rows of remote tables as datums of the types that the
 * caller names, which are the local ones: whatever a remote's types and wire
 * format are, nothing outside its connection file learns of them.  One read
 * goes
 *
 *		pos_connection_get		a session, kept between runs, see connection.c
 *		begin					snapshot; which tables changed since their position
 *		describe				both sides' columns compared, all mismatches listed
 *		digest, digest_next ...	hashes of rows, where both sides are compared
 *		request, next ...		the rows of every table asked for, in order; both
 *								are spared if begin found that nothing changed
 *		finish					snapshot released, session kept
 *
 * An error anywhere leaves the session to aborted, which closes what is not
 * known to be idle.  No function here uses SPI or touches a local table.
 */
#ifndef POSSYNC_CONNECTION_H
#define POSSYNC_CONNECTION_H

#include "compat.h"
#include "datatype/timestamp.h"
#include "foreign/foreign.h"
#include "nodes/pg_list.h"

/* What a connection is able to do; callers ask a bit, never the kind. */
#define POS_CAP_SNAPSHOT	0x01	/* all tables of one read are seen at one
									 * moment */
#define POS_CAP_CHANGED		0x02	/* tells what changed since a position
									 * without change columns */
#define POS_CAP_PARTS		0x08	/* can read tables in parts, see limit */
#define POS_CAP_WRITE		0x04	/* rows can be written, and keys made
									 * ahead */
#define POS_CAP_DIGEST		0x10	/* can tell hashes of rows, see digest.h */
#define POS_CAP_LATE_KEYS	0x20	/* keys of rows are known once they are
									 * inserted: those made before stand for
									 * them until then, and are negative, see
									 * settled */
#define POS_CAP_CALLS		0x40	/* methods can be called for rows */

/* In which form a column is delivered */
typedef enum PosForm
{
	POS_FORM_VALUE,				/* as type and typmod say */
	POS_FORM_KEY,				/* int8 if the remote column is an integer,
								 * else its text; describe sets type to
								 * INT8OID or TEXTOID */
	POS_FORM_TEXT				/* its text, whatever its type; type is
								 * TEXTOID */
} PosForm;

/* A column asked of a remote table */
typedef struct PosColumn
{
	const char *remote;			/* as the remote spells it, not quoted */
	const char *local;			/* the local column, for messages */
	PosForm		form;
	Oid			type;
	int32		typmod;
} PosColumn;

/* Why nothing is missed of a table, in the order of what it is worth */
typedef enum PosExact
{
	POS_EXACT_OVERLAP,			/* what is committed late is found within the
								 * server's overlap, or by the next sweep */
	POS_EXACT_RUNNING,			/* the source tells which transactions run */
	POS_EXACT_COMPARED,			/* all rows are read or compared */
	POS_EXACT_LOG				/* the source keeps a log */
} PosExact;

/* Whether the rows of a table are going to be compared */
typedef enum PosCompared
{
	POS_COMPARED_NOT,
	POS_COMPARED_UNLESS_LOGGED, /* unless the source's log tells all */
	POS_COMPARED_ALWAYS
} PosCompared;

/* Which rows of a table a read is to deliver */
typedef enum PosScope
{
	POS_SCOPE_CHANGED,			/* what changed since the position, and rows
								 * to retry */
	POS_SCOPE_CHOSEN,			/* only rows to retry */
	POS_SCOPE_ALL
} PosScope;

/*
 * A remote table taking part in a read.  The caller fills the first part and
 * keeps it unchanged until finish; the connection fills the second.
 */
typedef struct PosTable
{
	const char *remote;			/* as the remote spells it: schema.table,
								 * quoted where it has to be */
	const char *local;			/* the local table, for messages */
	int			ncolumns;
	PosColumn  *columns;
	int			nkey;			/* the first nkey columns are the key; one
								 * column has form KEY, several have form TEXT */
	int			nchange;		/* change columns; 0: every row is read */
	const char **change;
	const char *position;		/* read what changed since; NULL: all.  What a
								 * read has given as next_position: what is in
								 * it is the connection's business */
	const char *source;			/* identity of the source position belongs to */
	PosCompared compared;		/* whether rows are going to be compared: then
								 * it counts as changed */
	PosScope	scope;			/* which rows are read */
	int			limit;			/* read at most so many rows, in the order of
								 * their keys, whatever the position; 0: no
								 * limit */
	const char **after;			/* with limit: only those after this key, nkey
								 * texts; NULL: from the first on */
	int			nmatch;			/* columns that rows are recognised by */
	const char **match;
	int			nretry;			/* rows to read in any case: nretry * nkey key
								 * values in text form, nkey for each row */
	int			maxretry;
	const char **retry;

	/* set by describe and expect */
	int64		rows;			/* how many there are, about; -1: not known */
	bool		guarded;		/* a unique constraint keeps rows from having
								 * the same values in the match columns, nulls
								 * aside */

	/* set by begin */
	bool		changed;		/* whether a read may find rows */
	PosExact	exact;
	bool		logged;			/* the source's log tells exactly what changed
								 * since position, and what was deleted */

	/* set by request */
	const char *next_position;	/* to be stored once the rows are written;
								 * NULL: no change columns, or no row that has
								 * any */
	bool		settled;		/* storing next_position spares the next read
								 * something; may become so while rows are
								 * delivered */

	void	   *known;			/* the connection's own, during a read */
} PosTable;

/* What one step of a write does */
typedef enum PosStepKind
{
	POS_STEP_KEYS,				/* makes nrows keys: answers with their
								 * columns */
	POS_STEP_MATCH,				/* answers with the keys of the rows that have
								 * the same values in the columns; null equals
								 * null */
	POS_STEP_CLAIM,				/* until the end of the write nobody else who
								 * claims makes rows with the same values in
								 * the columns; fails with unique_violation if
								 * there are any under other keys */
	POS_STEP_EXPECT,			/* fails with triggered_data_change_violation
								 * if a row with such a key is not as
								 * expected; the others stay as they are until
								 * the end of the write */
	POS_STEP_INSERT,			/* inserts rows, all of them */
	POS_STEP_UPDATE,			/* sets columns of the rows with these keys */
	POS_STEP_CALL,				/* calls the methods in columns, one after the
								 * other, for the rows with these keys, which
								 * may be those that INSERT was given; fails
								 * if the state that one tells behind a "="
								 * does not come of it */
	POS_STEP_DELETE				/* deletes the rows with these keys */
} PosStepKind;

/*
 * One step of a write, for one table.  Rows are a JSON array of nrows objects
 * with remote column names and the values' text (or null).  Keys in answers are
 * texts, nkey of them for each.  Keys that are made are not those of rows that
 * are there.
 *
 * Rows of EXPECT have other labels: n, by which a failure names the row, k1.. for
 * the key, and a1.. for the columns.  Those with the same n are choices: one of them
 * has to fit, by the types that the caller has for the columns.
 */
typedef struct PosStep
{
	PosStepKind kind;
	PosTable   *table;
	int			ncolumns;		/* remote columns: KEYS those to be made,
								 * MATCH and EXPECT those compared, else those
								 * set */
	const char **columns;
	int			nrows;
	const char *rows;
	bool		again;			/* INSERT: rows may have arrived before; those
								 * whose key is there are passed over */

	/* set by write */
	int64		affected;		/* rows inserted, updated, deleted */
	int			nanswers;
	int		   *row;			/* MATCH: to which row an answer belongs, from
								 * 0 */
	char	  **answers;		/* INSERT, if keys are late: the keys that
								 * rows got */
	char	  **given;			/* which had been sent under these */
	const char *blamed;			/* EXPECT: the n of a row that it failed for */
} PosStep;

/*
 * A comparison without the rows: each side tells of the rows of a table a hash
 * of the key, which falls into one of nbuckets, and the content.  Asked for are
 * sums over buckets, or the rows of some, or rows by their keys.
 */
typedef enum PosContent
{
	POS_CONTENT_KEY,			/* the key's hash */
	POS_CONTENT_HASH,			/* a hash of all columns */
	POS_CONTENT_TEXTS			/* an array of their texts; not summed */
} PosContent;

typedef struct PosDigest
{
	PosTable   *table;
	PosContent	content;
	int			nbuckets;		/* a power of two */
	bool	   *wanted;			/* of which buckets the rows are wanted; NULL:
								 * sums of all buckets, unless nkeys is set */
	int			nkeys;			/* rows with these keys: nkeys * nkey texts */
	const char **keys;
	bool		by_value;		/* HASH: as both sides can, see digest.c */
	bool		gone;			/* instead: keys of deleted rows, by the log */
} PosDigest;

/* One answer: a bucket, or a row; those come in the order of their hashes */
typedef struct PosDigestRow
{
	int64		number;			/* of the bucket; or the key's hash */
	int64		count;			/* rows in the bucket */
	char	   *key;			/* as a text, unless it is a bucket */
	char	   *content;		/* as a text; of a bucket: the sum */
} PosDigestRow;

/* A remote table, or what the kind calls so, as somebody may want to know it */
typedef struct PosRemoteModel
{
	char	   *name;
	char	   *title;			/* as people call it, or NULL */
} PosRemoteModel;

/* A column of one */
typedef struct PosRemoteField
{
	char	   *name;
	char	   *kind;			/* the remote's name of its type */
	Oid			type;			/* what that is here; InvalidOid: nothing */
	char	   *refers_to;		/* remote table, or NULL */
	bool		key;
	bool		required;
	bool		writable;
	bool		stored;			/* not computed whenever it is read */
	char	   *title;			/* as people call it, or NULL */
} PosRemoteField;

/* What a session is doing */
typedef enum PosUse
{
	POS_USE_NONE,
	POS_USE_READING,			/* between begin and finish */
	POS_USE_WRITING				/* between send and receive */
} PosUse;

/* What begin tells about the source */
typedef struct PosSnapshot
{
	TimestampTz now;			/* the source's clock */
	int64		offset;			/* what it is ahead of ours, in microseconds,
								 * give or take half a round trip */
	TimestampTz complete;		/* everything committed before is in the
								 * snapshot */
	const char *source;			/* identity of this incarnation of the source */
	const char *encoding;		/* its name */
	bool		by_value;		/* it can hash rows by their values */
} PosSnapshot;

typedef struct PosConnection PosConnection;

typedef struct PosConnectionOps
{
	const char *wrapper;		/* the foreign data wrapper it serves */
	int			capabilities;
	const char *naming;			/* hint: how names of remote tables are
								 * written */

	/* Whether a text can be the name of a remote table. */
	bool		(*accepts) (const char *remote);

	/*
	 * Returns the name that the counterpart of a local table is likely to
	 * have.
	 */
	char	   *(*propose) (const char *schema, const char *table);

	/*
	 * Makes a session from the options of a server and a user mapping, in the
	 * current memory context, which is its own.  Does not wait for the
	 * remote.
	 */
	PosConnection *(*make) (ForeignServer *server, UserMapping *mapping);

	/*
	 * Makes a session ready for a caller: one that is not connected, or that
	 * the remote is known to have ended, connects, if its kind has to.  What
	 * was learned through the one before is forgotten: another remote may be
	 * there now.  Errors as the remote reports them.
	 */
	void		(*ready) (PosConnection *connection);

	/* What a session is doing */
	PosUse		(*use) (PosConnection *connection);

	/* Frees what memory contexts do not, before the session goes. */
	void		(*drop) (PosConnection *connection);

	/*
	 * A transaction of this nesting level or above has ended, by an abort if
	 * it is a subtransaction; level 0: the outermost.  Ends what was begun in
	 * it, closes what an error left in an unknown state.  Does not throw.
	 */
	void		(*ended) (PosConnection *connection, int level);

	/*
	 * Opens a snapshot and finds out which of the tables changed since their
	 * positions, in one round trip on a kept session.  A position whose
	 * source is another one counts as none.  A table without change columns
	 * or position, with rows to retry or to be compared, or that cannot be
	 * asked (describe tells why) counts as changed.  A kept session that
	 * turns out to be dead is replaced.  The snapshot is allocated in the
	 * caller's memory context.
	 */
	void		(*begin) (PosConnection *connection, PosTable **tables, int ntables,
						  PosSnapshot *snapshot);

	/*
	 * Compares the columns asked for with what the remote has and fills the
	 * types of key columns.  Returns a list of sentences (char *), one for
	 * every table or column that is missing or not assignable; NIL if all is
	 * well, and only then may rows be requested.  To be called in every read
	 * in which something changed.
	 */
	List	   *(*describe) (PosConnection *connection, PosTable **tables, int ntables);

	/*
	 * Asks for a digest of a table that describe has seen, and does not wait.
	 * To be called, and all rows taken, before any is requested.
	 */
	void		(*digest) (PosConnection *connection, PosDigest *digest);

	/*
	 * Delivers the next answer, whose texts live in the current memory
	 * context.  Returns false after the last one.
	 */
	bool		(*digest_next) (PosConnection *connection, PosDigestRow *row);

	/*
	 * Requests the rows of all tables given, which describe has seen, and
	 * fills their next positions (in the caller's memory context).  The rows
	 * are then delivered by next, table after table in this order.
	 */
	void		(*request) (PosConnection *connection, PosTable **tables, int ntables);

	/*
	 * Delivers the next row of the current table into values and nulls
	 * (ncolumns each; by-reference values live in the current memory
	 * context). Returns false after its last row; the following call then
	 * begins the next table.
	 */
	bool		(*next) (PosConnection *connection, Datum *values, bool *nulls);

	/*
	 * Releases the snapshot and keeps the session, unless rows are left
	 * unread.  Does not wait for the remote.
	 */
	void		(*finish) (PosConnection *connection);

	/*
	 * Makes ready for writing to the tables: finds out what they look like,
	 * unless that is known, and compares as describe does.
	 */
	List	   *(*expect) (PosConnection *connection, PosTable **tables, int ntables);

	/*
	 * Sends steps that are to be carried out in one remote transaction and
	 * one round trip, all or none of them, and does not wait.  The session
	 * then is good for pump, expect of tables that are known, and receive,
	 * over transactions and their aborts; the steps have to live as long.
	 */
	void		(*send) (PosConnection *connection, PosStep **steps, int nsteps,
						 bool *pending);

	/* Lets the connection send and receive what it can without waiting. */
	void		(*pump) (PosConnection *connection);

	/*
	 * Sends the steps of the next write before those sent are received, but
	 * not the end of its transaction: they come to nothing unless send is
	 * called for them next, after receive.  If not, retract has to be called.
	 * Never fails.  Returns false, having sent nothing, where a session
	 * cannot do that; NULL where a kind cannot.
	 */
	bool		(*ahead) (PosConnection *connection, PosStep **steps, int nsteps);

	/*
	 * Nobody wants the steps sent ahead any more; the answer to those sent
	 * before, if it has not been received, still can be.  NULL where ahead
	 * is.
	 */
	void		(*retract) (PosConnection *connection);

	/*
	 * Waits until the steps sent are carried out.  A kept session that turns
	 * out to be dead is replaced, and they are sent again.  An error leaves
	 * the session usable unless the connection is lost; then the steps may
	 * have been carried out or not, and have to be repeated.  *pending is
	 * true after an error if that is so, and false if it is known that they
	 * have not.
	 */
	void		(*receive) (PosConnection *connection);

	/*
	 * Closes a session in which steps were sent whose answer nobody awaits;
	 * leaves any other alone.
	 */
	void		(*abandon) (PosConnection *connection);

	/*
	 * If keys are late: whether a row sent under this key, about which
	 * nothing was heard, and which is not found at the remote, is not going
	 * to appear there any more.
	 */
	bool		(*settled) (PosConnection *connection, const char *key);

	/*
	 * Returns lists of PosRemoteModel and, for one of them, of
	 * PosRemoteField, in the current memory context.  Errors with
	 * undefined_object if there is no such table.  NULL where a kind cannot
	 * tell.
	 */
	List	   *(*models) (PosConnection *connection);
	List	   *(*fields) (PosConnection *connection, const char *remote);

	/* Bytes received since begin or send */
	uint64		(*received) (PosConnection *connection);

	/*
	 * Identity of this incarnation of the remote, as begin tells it; NULL if
	 * it was not asked since the session was opened.
	 */
	const char *(*source) (PosConnection *connection);
} PosConnectionOps;

/* Embedded as the first member of every kind's own session struct */
struct PosConnection
{
	const PosConnectionOps *ops;
	ForeignServer *server;		/* without its options */
	UserMapping *mapping;
	bool		broken;			/* the read that was begun cannot go on */
	MemoryContext context;		/* holds the session */
	int			level;			/* transaction nesting level of begin */

	/* bookkeeping of connection.c */
	bool		invalid;		/* options changed: made anew at next get */
	uint32		server_hash;
	uint32		mapping_hash;
};

/* in connection.c */
extern PosConnection *pos_connection_get(const char *servername);
extern const PosConnectionOps *pos_connection_ops(const char *wrapper);
extern const PosConnectionOps *pos_connection_kind(const char *servername);
pos_noreturn extern void pos_connection_in_use(PosConnection *connection);

/* in connection_postgres.c */
extern const PosConnectionOps pos_connection_postgres;

/* in connection_tryton.c */
extern const PosConnectionOps pos_connection_tryton;

#endif							/* POSSYNC_CONNECTION_H */
