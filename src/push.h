/*
 * push.h
 *		Batches of queued changes on their way to the remote.
 *
 * A batch is some queued transactions, whole.  Its rows are staged as those of
 * a pull are (model.h), but w1.. are local values, foreign keys included, and
 * the column old holds what is known of the row (POS_ROW_...).
 */
#ifndef POSSYNC_PUSH_H
#define POSSYNC_PUSH_H

#include "run.h"

#define POS_ROW_NEW			0x01	/* was inserted by the batch */
#define POS_ROW_UPDATED		0x02	/* was updated, or existed before */
#define POS_ROW_DELETED		0x04	/* is gone at the end of the batch */
#define POS_ROW_NEEDED		0x08	/* not queued: others refer to it */
#define POS_ROW_CREATED		0x10	/* gets a new key at the remote now */
#define POS_ROW_MATCHED		0x20	/* was recognised there now */
#define POS_ROW_UNSURE		0x40	/* got its key in a batch that is still
									 * open */
#define POS_ROW_UNKNOWN		0x80	/* no key at the remote is known, yet */
#define POS_ROW_THERE		0x100	/* is new here, and yet was there before */
#define POS_ROW_CLAIMED		0x200	/* was not found, and nothing at the
									 * remote keeps others from making it, too */

/* Keys of one model, as strings */
typedef struct PosKeySet PosKeySet;

/* The part of a batch that belongs to one model */
typedef struct PosOutgoing
{
	PosRowset  *images;			/* of queued rows, until they are taken */
	PosRowset  *befores;		/* what the remote may have of them, likewise;
								 * the first of a row is what was synchronized
								 * last */
	List	   *labels;			/* of char *: names in images that have a
								 * column */
	PosRowset  *rows;
	PosKeySet  *keys;			/* of both */
	List	   *needed;			/* of char *: keys of rows to be fetched */
} PosOutgoing;

/* A row as the remote may have it */
typedef struct PosBefore
{
	Datum	   *values;			/* staged */
	bool	   *nulls;
} PosBefore;

/* The row that a batch failed for, where it is known */
typedef struct PosCulprit
{
	int16		model;			/* 0: not known */
	char	   *key;
	List	   *candidates;		/* of char *: remote keys to choose from */
} PosCulprit;

typedef struct PosBatch
{
	int32		id;				/* in synchronize_batch, and its translations'
								 * run */
	int			ntxids;
	Datum	   *txids;			/* int8: as in the queue */
	int			nentries;		/* in the queue */
	PosModel  **order;			/* model of every entry, to go in order; NULL
								 * if that is ignored */
	List	   *models;			/* of PosModel: those with rows, parents first */
	List	   *unsure;			/* of PosBatchKeys: rows that got their keys
								 * in batches that are still open */
	List	   *made;			/* of PosBatchKeys: rows that got them in this
								 * one */
} PosBatch;

/* Rows of a model */
typedef struct PosBatchKeys
{
	PosModel   *model;
	Datum		keys;			/* local ones, int8[] or text[] */
} PosBatchKeys;

/*
 * Up to which number of a transaction the queue is complete: nobody who runs can
 * still add an earlier one.
 */
typedef struct PosHorizon
{
	int64		complete;
	int64		next;			/* it will be complete up to there */
	uint64		after;			/* once nobody older than this runs */
} PosHorizon;

/* Steps of a write that are being put together, see steps.c */
typedef struct PosSteps
{
	PosStep   **steps;
	int			nsteps;
	int			maxsteps;
	StringInfoData rows;		/* of the last one, while it is open */
	bool		open;
} PosSteps;

/* A batch from its preparation until the remote's answer is confirmed */
typedef struct PosFlight
{
	MemoryContext context;		/* of everything here */
	PosRun	   *run;
	PosBatch	batch;
	PosSteps	steps;
	int64		from;			/* where the search for it began */
	TimestampTz launched;		/* 0: its rows were there before */
	bool		arrived;		/* the remote has done it */
	uint64		received;		/* bytes */
	bool		counted;
} PosFlight;

/* Ways to send a batch, tried one after the other */
typedef enum PosAttempt
{
	POS_ATTEMPT_PLAIN,
	POS_ATTEMPT_MATCH,			/* look for new rows, too */
	POS_ATTEMPT_IN_ORDER		/* and repeat change by change */
} PosAttempt;

/* A whole push, over all of its transactions */
typedef struct PosPush
{
	MemoryContext memory;		/* of everything here */
	char	   *root;
	char	   *server;
	int32		history;		/* its row there */
	uint64		caller;			/* transaction that waits for its end, or 0 */
	int64		first;			/* what waits for the server is in the queue */
	int64		last;			/* from here to there, see spool.h */
	int64		from;			/* where to look for the next, see batch.c */
	int64		searched;		/* from where those picked last were found */
	PosHorizon	horizon;
	bool		lasting;		/* others will follow in this process */
	bool		more;			/* batches of this kind follow */
	bool		late_keys;		/* see POS_CAP_LATE_KEYS: a write is several
								 * calls there, not one transaction */
	bool		sent_again;		/* rows of batches that were left open */
	PosCounts	counts;			/* of what has arrived */
	uint64		received;
	MemoryContext context;		/* of a transaction that sends nothing */
	MemoryContext errors;
	PosCulprit	culprit;		/* of the last batch that failed */
	PosFlight	flights[2];		/* one flies, one is prepared */
	PosFlight  *flying;			/* or NULL */
	PosConnection *ahead;		/* has rows of the batch that is prepared; or
								 * NULL */
	bool		pending;		/* it may have arrived */
	bool		landing;		/* an error is its, see flight.c */
	bool		expected;		/* by the transaction at hand: confirmed, as
								 * far as that can be done beforehand */
	bool		confirmed;		/* by the transaction at hand */
	int			entries;		/* in the batch picked last, about */
	int			enough;			/* in any; 0: not known */
	int64		answer_time;	/* us, the shortest so far; 0: not known */
	bool		sends_ahead;	/* rows of the next one follow at once */
	uint32		pumped;			/* rows */
} PosPush;

/* in steps.c */
extern char *pos_steps_text(PosRun *run, PosField *field, Datum *values,
							bool *nulls);
extern Datum pos_steps_key(PosModel *model, char **texts);
extern PosStep *pos_steps_add(PosSteps *steps, PosModel *model,
							  PosStepKind kind);
extern void pos_steps_begin_row(PosSteps *steps);
extern void pos_steps_field(StringInfo buf, PosRun *run, PosField *field,
							Datum *values, bool *nulls);
extern void pos_steps_end_row(PosSteps *steps);
extern void pos_steps_close(PosSteps *steps);
extern PosModel *pos_steps_model(PosRun *run, PosStep *step);
extern void pos_steps_batch(PosRun *run, PosBatch *batch, PosSteps *steps);

/* in keys.c */
extern bool pos_keys_is_made(PosField *field);
extern bool pos_keys_are_made(PosModel *model);
extern void pos_keys_need(PosRun *run, PosModel *model, int n, PosSteps *steps);
extern void pos_keys_ahead(PosRun *run, PosBatch *batch, bool more,
						   PosSteps *steps);
extern void pos_keys_take(PosRun *run, PosSteps *steps);
extern void pos_keys_lost(void);
extern void pos_keys_learn(PosRun *run, PosSteps *steps);
extern char **pos_keys_next(PosRun *run, PosModel *model);

/* in recognise.c */
extern void pos_recognise_batch(PosRun *run, PosBatch *batch);

/* in entries.c */
extern void pos_entries_load(PosRun *run, PosBatch *batch);
extern void pos_entries_overtake(PosModel *model, List *keys);

/* in outgoing.c */
extern void pos_outgoing_collect(PosRun *run, PosBatch *batch);
extern Datum pos_outgoing_parent(PosReference *reference, Datum *values,
								 bool *nulls, bool *isnull);
extern List *pos_outgoing_befores(PosModel *model, Datum local);
extern void pos_outgoing_free(PosRun *run);

/* in batch.c */
extern int	pos_batch_pick(PosRun *run, PosBatch *flying, int entries,
						   int64 bytes, int64 *from, int64 to, Datum **txids);
extern int64 pos_batch_open_to(const char *server);
extern void pos_batch_horizon(PosPush *push);
extern void pos_batch_size(PosPush *push);
extern void pos_batch_answered(PosPush *push, int entries, int64 time);
extern int	pos_batch_coming(PosPush *push, int rows, int batches);
extern void pos_batch_init(void);
extern Datum pos_batch_txids(int ntxids, Datum *txids);
extern void pos_batch_load_open(PosRun *run);
extern void pos_batch_open(PosRun *run, PosBatch *batch, int32 history);
extern void pos_batch_confirm(PosRun *run, PosBatch *batch);
extern void pos_batch_learn(PosModel *model, int n, Datum *given, Datum *got);
extern void pos_batch_refused(PosBatch *batch);

/* in flight.c */
extern void pos_flight_launch(PosPush *push, PosFlight *flight);
extern void pos_flight_pump(PosPush *push);
extern void pos_flight_ahead(PosPush *push, PosFlight *next);
extern void pos_flight_expect(PosPush *push);
extern void pos_flight_land(PosPush *push);
extern void pos_flight_retract(PosPush *push);
extern void pos_flight_landed(PosPush *push);
extern void pos_flight_ask(PosRun *run, PosSteps *steps);
extern void pos_flight_failed(PosPush *push);
extern void pos_flight_abandon(PosPush *push);

/* in quarantine.c */
extern void pos_quarantine_hold(PosRun *run, Datum txid, ErrorData *error,
								PosCulprit *culprit);
extern bool pos_quarantine_release_due(PosRun *run);
extern void pos_quarantine_arrived(PosRun *run, int ntxids, Datum *txids);

/* in push.c */
extern void pos_push_run(PosPush *push);

#endif							/* POSSYNC_PUSH_H */
