/*
 * connection_postgres.h
 *		What the files of the PostgreSQL connection share.
 *
 * connection_postgres.c	the operations of connection.h
 * postgres_session.c		sessions: made, closed, cleaned up
 * postgres_options.c		options of servers and user mappings
 * postgres_wire.c			one libpq connection: connect, wait, errors
 * postgres_relation.c		what is known of remote tables
 * postgres_describe.c		what the remote tables look like
 * postgres_query.c			the SQL that is sent
 * postgres_position.c		up to where a table has been read
 * postgres_poll.c			whether anything changed, asked for little
 * postgres_digest.c		hashes of rows
 * postgres_log.c			the remote's change log
 * postgres_convert.c		from the wire to datums
 * postgres_write.c			the other direction: rows sent, keys made there
 * postgres_statement.c		the SQL of that
 *
 * Nobody else includes this file or libpq-fe.h.
 */
#ifndef POSSYNC_CONNECTION_POSTGRES_H
#define POSSYNC_CONNECTION_POSTGRES_H

#include "compat.h"
#include "connection.h"
#include "lib/stringinfo.h"
#include "libpq-fe.h"

/* Options of a server that libpq knows nothing of, or does not enforce */
typedef struct PosPgOptions
{
	int			connect_timeout;	/* milliseconds; 0: none */
	int			statement_timeout;	/* milliseconds without a byte; 0: none */
	int			overlap;		/* milliseconds */
	int			sweep;			/* milliseconds; 0: never */
	bool		keep_connections;
} PosPgOptions;

/* What a poll found out */
typedef enum PosPgPoll
{
	POS_PG_POLL_UNCHANGED,
	POS_PG_POLL_CHANGED,		/* or so it may be */
	POS_PG_POLL_LOST			/* the kept connection is dead, or leads
								 * elsewhere */
} PosPgPoll;

typedef enum PosPgState
{
	POS_PG_CLOSED,				/* conn is NULL */
	POS_PG_IDLE,				/* no transaction, nothing to be received */
	POS_PG_ENDING,				/* end of transaction sent, answer not read */
	POS_PG_OPEN,				/* in a transaction, nothing to be received */
	POS_PG_READING,				/* rows requested and not all received */
	POS_PG_WRITING				/* steps sent, and their end not received */
} PosPgState;

/* A column of a remote table; domains are resolved to their base type */
typedef struct PosPgAttribute
{
	char	   *name;
	char	   *typename;		/* with modifier, for messages */
	Oid			type;
	int32		typmod;
	char		typtype;
	char		category;
	char	   *basename;		/* of the type or the array's element type,
								 * not qualified */
	char		elemtype;		/* typtype of an array's elements, else 0 */
	bool		notnull;
	bool		readable;
	char	   *made_by;		/* expression of its default, or NULL */
	char	   *unique;			/* "oid/n " for every unique index over n
								 * columns of which it is one, or NULL */
} PosPgAttribute;

/* A remote table as it was when it was last looked at */
typedef struct PosPgRelation
{
	MemoryContext context;		/* holds everything here */
	char	   *remote;			/* the caller's spelling */
	const char *sql;			/* for FROM, with ONLY where it means
								 * something */
	const char *type;			/* the name of its row type */
	bool		exists;
	bool		readable;		/* USAGE on the schema */
	bool		versions;		/* xmin of its rows can be read, and tells
								 * what it should */
	bool		still;			/* only transactions change what is read */
	int64		rows;			/* about; -1: not known */
	char	   *tables;			/* see POS_PG_TABLES; "": nobody knows */
	char	   *oid;
	char	   *log;			/* identity of its change log, or NULL */
	char	   *log_schema;		/* of possync there, quoted */
	char	   *log_key;		/* its key columns, each with a zero byte, in
								 * hexadecimal */
	int			nattributes;
	PosPgAttribute *attributes;
} PosPgRelation;

/* What tells the numbers of the tables that hold the rows of one, in a text */
#define POS_PG_TABLES(oid) \
	"coalesce((SELECT string_agg(p.relid::oid::text, ' ' ORDER BY p.relid::oid)" \
	" FROM pg_partition_tree(" oid ") p WHERE p.isleaf), (" oid ")::oid::text)"

/* A position, taken apart: what PosTable's known is here */
typedef struct PosPgPosition PosPgPosition;

/* How the values of one column travel and become datums */
typedef struct PosPgPlan PosPgPlan;

/*
 * A session.  What libpq allocates (conn, result, row) is held here and freed
 * by the next call or with the session, so that an error anywhere leaks
 * nothing.
 */
typedef struct PosPgSession
{
	PosConnection base;
	PosPgOptions options;
	const char **keywords;		/* for PQconnectStartParams */
	const char **values;

	PosPgState	state;
	PGconn	   *conn;
	PGresult   *result;
	char	   *row;
	uint64		received;		/* bytes since begin */

	char	   *source;			/* identity of the remote; NULL: not yet asked */
	TimestampTz started;		/* when the server with that identity started */
	bool		direct;			/* with the remote, and no pooler in between */
	MemoryContext relation_context; /* what is known of remote tables */
	struct relations_hash *relations;	/* NULL: nothing */
	MemoryContext poll_context; /* what polls have found out */
	HTAB	   *prepared;		/* names of statements; NULL: there was none */
	HTAB	   *polled;			/* PosPgPolled */

	/* since begin */
	MemoryContext read_context;
	TimestampTz asked;			/* when we asked for the remote's clock */
	TimestampTz now;			/* the remote's clock */
	int64		offset;			/* now less ours at that time, microseconds */
	char	   *snapshot;		/* the remote's, as a text */
	TimestampTz complete;		/* changes before it are all visible */
	bool		sees_running;	/* and running transactions say so */
	uint64		oldest;			/* of them, PG_UINT64_MAX: nobody knows */
	PosTable  **tables;			/* requested */
	PosPgPlan **plans;			/* of each of them */
	const char **queries;		/* of each of them, for messages */
	int			ntables;
	int			current;
	bool		copying;		/* the current table's COPY has begun */
	bool		header;			/* and its header was read */
	const char *command;		/* last command sent, for messages */

	/* of a digest */
	PosDigest  *digest;
	MemoryContext digest_context;	/* of its query */

	/* of a write */
	PosStep   **steps;
	int			nsteps;
	bool		kept;			/* on a connection that was there before */
	bool		sent;			/* all of them, as far as we know */
	bool		ending;			/* the end of another transaction is received
								 * first */
	bool	   *pending;		/* see connection.h */
	PosStep   **ahead;			/* those of the next one, if they are sent,
								 * but for their end */
	bool		ahead_sent;		/* all of these, as far as we know */
	bool		halted;			/* its end was sent after a sync */
	int			nsyncs;			/* that are to be received */
	bool		repeated;		/* it has been sent before, on a connection
								 * that was lost */

	/* bookkeeping of postgres_session.c */
	int			busy;			/* a function is at work, called at this
								 * transaction nesting level; 0: none is */
} PosPgSession;

/* in postgres_session.c */
extern PosConnection *pos_pg_session_make(ForeignServer *server,
										  UserMapping *mapping);
extern void pos_pg_session_ready(PosConnection *connection);
extern PosUse pos_pg_session_use(PosConnection *connection);
extern void pos_pg_session_drop(PosConnection *connection);
extern void pos_pg_session_ended(PosConnection *connection, int level);
extern void pos_pg_session_close(PosPgSession *session);
extern void pos_pg_session_end(PosPgSession *session, const char *command);
extern bool pos_pg_session_drain(PosPgSession *session);
extern void pos_pg_session_forget_read(PosPgSession *session);
extern void pos_pg_session_enter(PosPgSession *session);
extern void pos_pg_session_leave(PosPgSession *session);

/* in postgres_options.c */
extern void pos_pg_options_read(ForeignServer *server, UserMapping *mapping,
								PosPgOptions *options,
								const char ***keywords, const char ***values);
extern void pos_pg_options_check(UserMapping *mapping,
								 const char **keywords, const char **values);
extern void pos_pg_options_check_connected(UserMapping *mapping, PGconn *conn);

/* in postgres_wire.c */
extern void pos_pg_connect(PosPgSession *session);
extern void pos_pg_disconnect(PosPgSession *session);
extern void pos_pg_flush(PosPgSession *session);
extern PGresult *pos_pg_result(PosPgSession *session);
extern bool pos_pg_answers(PosPgSession *session, int timeout);
extern bool pos_pg_lost(PosPgSession *session);
extern int	pos_pg_row(PosPgSession *session);
extern void pos_pg_expect(PosPgSession *session, ExecStatusType status);
extern void pos_pg_end_pipeline(PosPgSession *session);
extern void pos_pg_expect_row(PosPgSession *session, int ncolumns);
extern TimestampTz pos_pg_time(PosPgSession *session, int column);
extern void pos_pg_set_clock(PosPgSession *session, TimestampTz now);
pos_noreturn extern void pos_pg_error(PosPgSession *session);

/* in postgres_relation.c */
extern PosPgRelation *pos_pg_relation(PosPgSession *session,
									  const char *remote);
extern void pos_pg_relation_keep(PosPgSession *session,
								 PosPgRelation *relation);
extern PosPgAttribute *pos_pg_attribute(PosPgRelation *relation,
										const char *name);
extern void pos_pg_relation_forget(PosPgSession *session);

/* in postgres_describe.c */
extern bool pos_pg_is_name(const char *remote);
extern void pos_pg_describe_query(StringInfo sql, PosTable **tables,
								  int ntables);
extern void pos_pg_describe_result(PosPgSession *session, PosTable **tables,
								   int ntables);
extern List *pos_pg_describe_check(PosPgSession *session, PosTable *table);
extern void pos_pg_describe_moved_query(StringInfo sql, PosPgSession *session,
										PosTable **tables, int ntables);
extern void pos_pg_describe_unmoved(PosPgSession *session);
extern bool pos_pg_has_word(const char *list, const char *word, size_t len);
extern char *pos_pg_describe_changes(PosPgSession *session, PosTable *table);

/* in postgres_query.c */
extern char *pos_pg_query_clock(PosPgSession *session);
extern char *pos_pg_query_settings(PosPgSession *session, bool writes);
extern char *pos_pg_query_probe(PosPgSession *session, PosTable **tables,
								int ntables);
extern char *pos_pg_query_poll(PosPgSession *session, PosTable **tables,
							   int ntables, const char **values, int *nvalues);
extern void pos_pg_append_changed(StringInfo sql, PosPgRelation *relation,
								  PosTable *table, const char *since);
extern void pos_pg_append_greatest(StringInfo sql, PosPgRelation *relation,
								   PosTable *table, const char *limit);
extern void pos_pg_append_keys(StringInfo sql, PosPgSession *session,
							   PosTable *table, int nkeys, const char **keys);
extern char *pos_pg_query_rows(PosPgSession *session, PosTable *table,
							   PosPgPlan *plan);
extern bool pos_pg_query_probed(PosPgSession *session, PosTable *table);

/* in postgres_position.c */
extern void pos_pg_positions_read(PosPgSession *session, PosTable **tables,
								  int ntables);
extern void pos_pg_positions_compare(PosPgSession *session, PosTable **tables,
									 int ntables);
extern const char *pos_pg_position_value(PosTable *table);
extern const char *pos_pg_position_snapshot(PosPgSession *session,
											PosTable *table);
extern void pos_pg_position_unlogged(PosTable *table);
extern PosExact pos_pg_position_exact(PosPgSession *session, PosTable *table);
extern bool pos_pg_position_sweeps(PosPgSession *session, PosTable *table);
extern void pos_pg_position_append(StringInfo sql, PosPgSession *session,
								   PosTable *table);
extern Oid	pos_pg_change_type(PosPgSession *session, PosTable *table);
extern char *pos_pg_positions_query(PosPgSession *session, PosTable **tables,
									int ntables);
extern void pos_pg_positions_receive(PosPgSession *session, PosTable **tables,
									 int ntables);
extern void pos_pg_position_seen(PosPgSession *session, PosTable *table);

/* in postgres_log.c */
extern bool pos_pg_log_usable(PosPgSession *session, PosTable *table);
extern void pos_pg_log_append_probe(StringInfo sql, PosPgSession *session,
									PosTable *table, const char *snapshot);
extern void pos_pg_log_append_poll(StringInfo sql, PosPgSession *session,
								   PosTable **tables, int ntables,
								   const char *snapshot);
extern void pos_pg_log_append_rows(StringInfo sql, PosPgSession *session,
								   PosTable *table, const char *snapshot);
extern char *pos_pg_log_query_gone(PosPgSession *session, PosTable *table,
								   const char *snapshot);

/* in postgres_poll.c */
extern PosPgPoll pos_pg_poll(PosPgSession *session, PosTable **tables,
							 int ntables);
extern void pos_pg_poll_forget(PosPgSession *session);
extern void pos_pg_poll_remember(PosPgSession *session, PosTable **tables,
								 int ntables, const char *snapshot);

/* in postgres_digest.c */
extern void pos_pg_digest(PosConnection *connection, PosDigest *digest);
extern const char *pos_pg_encoding(PosPgSession *session);
extern bool pos_pg_digest_next(PosConnection *connection, PosDigestRow *row);

/* What a statement of a step that finds something wrong makes fail */
#define POS_PG_COMPLAINT "possync: "
#define POS_PG_COMPLAINT_END "|"

/* in postgres_statement.c */
extern char *pos_pg_statement(PosPgSession *session, PosStep *step);
extern char *pos_pg_statement_lock(PosPgSession *session, PosStep *step);
extern char *pos_pg_statement_presence(PosPgSession *session, PosStep *step);

/* in postgres_write.c */
extern List *pos_pg_expect_tables(PosConnection *connection, PosTable **tables,
								  int ntables);
extern void pos_pg_write_send(PosConnection *connection, PosStep **steps,
							  int nsteps, bool *pending);
extern void pos_pg_write_pump(PosConnection *connection);
extern bool pos_pg_write_ahead(PosConnection *connection, PosStep **steps, int nsteps);
extern void pos_pg_write_retract(PosConnection *connection);
extern void pos_pg_write_receive(PosConnection *connection);
extern void pos_pg_write_abandon(PosConnection *connection);

/* in postgres_convert.c */
extern bool pos_pg_convertible(PosPgAttribute *attribute, PosColumn *column);
extern Oid	pos_pg_key_type(PosPgAttribute *attribute);
extern PosPgPlan *pos_pg_plan(PosPgSession *session, PosTable *table);
extern bool pos_pg_plan_as_text(PosPgPlan *plan, int column);
extern void pos_pg_convert(PosPgPlan *plan, char *data, int len,
						   Datum *values, bool *nulls);

#endif							/* POSSYNC_CONNECTION_POSTGRES_H */
