/*
 * connection_tryton.h
 *		What the files of the Tryton connection share.
 *
 * connection_tryton.c	the operations of connection.h
 * tryton_options.c		options of servers and user mappings
 * tryton_rpc.c			calls: login, sessions, errors
 * tryton_answer.c		from the bytes of an answer to jsonb
 * tryton_model.c		what the remote's models look like
 * tryton_value.c		the remote's values as ours
 * tryton_position.c	up to where a model has been read
 * tryton_page.c		rows, page by page
 * tryton_write.c		the other direction: rows sent
 * tryton_create.c		those that are new
 * tryton_match.c		rows looked for by their values
 * tryton_json.c		our values as the remote's
 * tryton_digest.c		hashes of rows
 *
 * Nobody else includes this file.
 */
#ifndef POSSYNC_CONNECTION_TRYTON_H
#define POSSYNC_CONNECTION_TRYTON_H

#include "connection.h"
#include "http.h"
#include "lib/stringinfo.h"
#include "utils/jsonb.h"

/* Options of a server and a user mapping */
typedef struct PosTrytonOptions
{
	PosHttpOptions http;
	const char *database;
	const char *user;
	const char *password;
	int			company;		/* 0: the user's own */
	const char *language;		/* NULL: the user's own */
	int			overlap;		/* milliseconds */
	int			sweep;			/* milliseconds; 0: never */
	int			page_size;		/* rows of an answer */
	int			batch_size;		/* rows of a call that makes some */
} PosTrytonOptions;

/* A field as fields_get tells */
typedef struct PosTrytonField
{
	char	   *name;
	char	   *type;			/* Tryton's name of it */
	char	   *relation;		/* the model that it refers to, or NULL */
	char	   *inverse;		/* of a list: the field there that refers to
								 * us, or NULL */
	char	   *string;			/* its label */
	bool		required;
	bool		readonly;
	bool		stored;			/* or so it seems */
} PosTrytonField;

typedef struct PosTrytonModel
{
	char	   *name;
	bool		exists;			/* and may be read */
	char	   *why;			/* not, in the remote's words */
	int			nfields;
	PosTrytonField *fields;
} PosTrytonModel;

/* How a column gets its values */
typedef struct PosTrytonPlan PosTrytonPlan;

/* What a position is, and what becomes of it: PosTable's known is here */
typedef struct PosTrytonPosition PosTrytonPosition;

/* Which rows a read takes, and how far it is */
typedef struct PosTrytonPages
{
	char	   *model;
	char	   *link;			/* of a link table: the field that is
								 * unnested; else NULL */
	const char *domain;
	const char *fields;
	int			size;
	int64		last;			/* no row up to this id is asked for again */
	bool		asked;			/* the next page is on its way */
	bool		more;			/* there may be one */
	bool		whole;			/* until one is empty */
	MemoryContext page_context; /* of the page at hand */
	JsonbContainer *rows;
	int			nrows;
	int			row;			/* the next one */
	JsonbContainer *current;
	JsonbContainer *links;		/* what that is linked with */
	int			nlinks;
	int			links_at;
} PosTrytonPages;

/* A call of a method */
typedef struct PosTrytonCall
{
	int32		id;
	char		method[4 * NAMEDATALEN];
	bool		once;
	StringInfoData body;
} PosTrytonCall;

/* Provisional keys: milliseconds since 2000, and a number of so many bits */
#define POS_TRYTON_KEY_BITS 20

typedef struct PosTrytonSession
{
	PosConnection base;
	PosTrytonOptions options;
	PosHttp    *http;
	int			busy;			/* a function is at work, called at this
								 * transaction nesting level; 0: none is */

	/* of the login */
	char	   *authorization;	/* NULL: not logged in */
	TimestampTz learned_at;		/* what follows */
	bool		learning;
	char	   *context;		/* members of every call's context, as JSON */
	char	   *source;			/* identity of the database */
	TimestampTz refused_at;		/* when a login was refused; 0: never */
	char	   *refusal;

	PosTrytonCall call;			/* the one on its way */
	char		method[4 * NAMEDATALEN];	/* for messages */
	uint64		received_before;	/* at begin or send */

	MemoryContext models_context;
	List	   *models;			/* PosTrytonModel, in models_context */
	int			most_rows;		/* of a page that it has given */

	int64		offset;			/* what its clock is ahead of ours,
								 * microseconds */

	/* of a read, in its own context */
	MemoryContext read_context;
	MemoryContext row_context;	/* of what is made of one row */
	PosTable  **tables;
	char	   *buffers;		/* of their next positions */
	PosTrytonPages *pages;		/* of the table at hand */
	PosTrytonPlan *plan;		/* of its columns */
	int			ntables;
	int			current;

	/* of a write */
	PosStep   **steps;
	int			nsteps;
	bool	   *pending;		/* see connection.h; NULL: no write */

	struct PosTrytonDigest *digest;
} PosTrytonSession;

/* All that is written at once */
typedef struct PosTrytonWrite
{
	PosTrytonSession *session;
	struct HTAB *rows;			/* new rows by their provisional keys */
	List	   *all;			/* new rows, in the order of the steps */
	List	   *links;			/* PosTrytonLink, likewise */
	List	   *renewed;		/* new rows in the place of some that were
								 * gone */
} PosTrytonWrite;

/* A row of a link table */
typedef struct PosTrytonLink
{
	PosStep    *step;
	int			row;
	char	   *field;
	int64		origin;
	int64		target;
} PosTrytonLink;

/* in tryton_options.c */
extern void pos_tryton_options_read(ForeignServer *server, UserMapping *mapping,
									PosTrytonOptions *options);

/* in tryton_rpc.c */
extern void pos_tryton_enter(PosTrytonSession *session);
extern void pos_tryton_leave(PosTrytonSession *session);
extern void pos_tryton_open(PosTrytonSession *session);
extern void pos_tryton_send(PosTrytonSession *session, const char *method,
							const char *params, bool once);
extern Jsonb *pos_tryton_receive(PosTrytonSession *session);
extern Jsonb *pos_tryton_call(PosTrytonSession *session, const char *method,
							  const char *params);

/* in tryton_answer.c */
extern Jsonb *pos_tryton_answer(const char *server, const char *body, Size len);
extern JsonbValue *pos_tryton_get(JsonbContainer *object, const char *key,
								  JsonbValue *value);
extern bool pos_tryton_integer(JsonbValue *value, int64 *result);
extern char *pos_tryton_string(JsonbValue *value);
extern char *pos_tryton_text(JsonbContainer *object, const char *key);
pos_noreturn extern void pos_tryton_odd(PosTrytonSession *session);

/* in tryton_model.c */
extern PosTrytonModel *pos_tryton_model(PosTrytonSession *session,
										const char *name);
extern PosTrytonField *pos_tryton_field(PosTrytonSession *session,
										const char *model, const char *path);
extern PosTrytonField *pos_tryton_column(PosTrytonSession *session,
										 const char *model, const char *path);
extern const char *pos_tryton_inverse(PosTrytonSession *session, const char *parent,
									  const char *child, const char *by);
extern bool pos_tryton_is_link(const char *remote, char **model, char **field);
extern void pos_tryton_models_forget(PosTrytonSession *session);
extern List *pos_tryton_describe(PosConnection *connection, PosTable **tables,
								 int ntables);

extern List *pos_tryton_list_models(PosConnection *connection);
extern List *pos_tryton_list_fields(PosConnection *connection, const char *remote);

/* in tryton_value.c */
extern Oid	pos_tryton_type(PosTrytonField *field);
extern bool pos_tryton_convertible(PosTrytonField *field, PosColumn *column);
extern PosTrytonPlan *pos_tryton_plan(PosTrytonSession *session, PosTable *table);
extern void pos_tryton_convert(PosTrytonPlan *plan, JsonbContainer *row, int64 link,
							   Datum *values, bool *nulls);

/* in tryton_position.c */
extern void pos_tryton_positions_read(PosTrytonSession *session,
									  PosTable **tables, int ntables);
extern bool pos_tryton_is_swept(PosTable *table);
extern void pos_tryton_poll(PosTrytonSession *session, PosTable *table);
extern Size pos_tryton_position_size(void);
extern PosTrytonPages *pos_tryton_position_pages(PosTrytonSession *session,
												 PosTable *table, char *buffer);
extern void pos_tryton_position_seen(PosTrytonSession *session, PosTable *table,
									 JsonbContainer *row, int64 link);
extern void pos_tryton_position_end(PosTrytonSession *session, PosTable *table);

/* in tryton_page.c */
extern PosTrytonPages *pos_tryton_pages(PosTable *table, const char *domain,
										const char *fields, int size, bool whole);
extern bool pos_tryton_next(PosTrytonSession *session, PosTrytonPages *pages,
							JsonbContainer **row, int64 *link);

/* in tryton_write.c */
extern void pos_tryton_write_send(PosConnection *connection, PosStep **steps,
								  int nsteps, bool *pending);
extern void pos_tryton_write_pump(PosConnection *connection);
extern void pos_tryton_write_receive(PosConnection *connection);
extern void pos_tryton_write_abandon(PosConnection *connection);
extern bool pos_tryton_settled(PosConnection *connection, const char *key);

extern int64 pos_tryton_key(JsonbContainer *row, const char *name);
extern JsonbContainer *pos_tryton_rows(PosStep *step);
extern JsonbContainer *pos_tryton_row(JsonbContainer *rows, int i);
extern Jsonb *pos_tryton_change(PosTrytonWrite *w, const char *model,
								const char *method, const char *params);
extern void pos_tryton_append_value(PosTrytonWrite *w, StringInfo buf,
									const char *model, const char *column,
									const char *text);
extern void pos_tryton_change_links(PosTrytonWrite *w, const char *model,
									List *links, const char *command);

/* in tryton_create.c */
extern void pos_tryton_create_begin(PosTrytonWrite *w);
extern void pos_tryton_create_take(PosTrytonWrite *w, PosStep *step);
extern void pos_tryton_create(PosTrytonWrite *w);
extern int64 pos_tryton_id(PosTrytonWrite *w, const char *model, int64 key);
extern int64 pos_tryton_key_age(PosTrytonSession *session, int64 key);
extern int	pos_tryton_longest_call(PosTrytonSession *session);

/* in tryton_match.c */
extern void pos_tryton_match(PosTrytonSession *session, PosStep *step);
extern void pos_tryton_expect(PosTrytonSession *session, PosStep *step);

/* in tryton_json.c */
extern void pos_tryton_append_json(StringInfo buf, PosTrytonField *field,
								   const char *text);

/* in tryton_digest.c */
extern void pos_tryton_digest(PosConnection *connection, PosDigest *digest);
extern bool pos_tryton_digest_next(PosConnection *connection, PosDigestRow *row);

#endif							/* POSSYNC_CONNECTION_TRYTON_H */
