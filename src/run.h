/*
 * run.h
 *		One run, shared by the files that carry it out.
 */
#ifndef POSSYNC_RUN_H
#define POSSYNC_RUN_H

#include "model.h"
#include "utils/snapshot.h"
#include "utils/tuplestore.h"

typedef struct PosRun
{
	int32		id;				/* in synchronize_history */
	struct PosPush *whole;		/* the push that this is a batch of */
	List	   *open;			/* of int: batches never confirmed, in a push */
	int64		arrived_to;		/* queued transactions up to this one may have
								 * arrived with them; 0: none */
	bool		held;			/* queued transactions are held, in a push */
	bool		match_all;		/* a push looks even for rows that are new
								 * here */
	bool		full;			/* more is queued than was picked */
	bool		in_order;		/* a push repeats change by change */
	bool		push;			/* the source is here, the target there */
	bool		dry;			/* find out what would be done, and do nothing */
	bool		careful;		/* leave bad rows out, see careful.c */
	bool		deleting;		/* rows are being deleted: whatever objects
								 * keeps them */
	int			nbad;			/* how many of them */
	bool		anew;			/* read everything, whatever the positions say */
	bool		compare;		/* compare the rows of all models */
	Snapshot	before;			/* how things stood here before the remote's
								 * snapshot, see compare.c */
	int			part;			/* rows of an initial load read at most; 0:
								 * all */
	bool		more;			/* there is more of it */
	PosTree    *tree;
	PosConnection *connection;
	PosSnapshot snapshot;
	bool		has_snapshot;
	uint64		received;		/* bytes */
	MemoryContext context;		/* lives as long as the run */
	MemoryContext row;			/* reset for every row */
	PosRowset  *rejects;		/* rows left out, see quarantine.c */
	int64		nrejects;
	struct PosTranslations *translations;
} PosRun;

/*
 * What is known of the row behind a remote key.  A pending row is one that a
 * dry run would have created: it has a key of no meaning and no row.
 */
typedef enum PosFound
{
	POS_MISSING,
	POS_FOUND,
	POS_PENDING
} PosFound;

/* What else pos_translation_find may know of the row */
#define POS_KNOWN_MADE		0x01	/* it was made in this run */
#define POS_KNOWN_MATCHED	0x02	/* it was here before, and was matched */
#define POS_KNOWN_GONE		0x04	/* its counterpart had been deleted */

/* in sync.c */
extern void pos_sync_pull(PosRun *run);
extern bool pos_sync_begin(PosRun *run);
extern void pos_sync_prepare(PosRun *run);
extern void pos_sync_report(PosRun *run, List *sentences);

/* in rowset.c: rows in order, on disk if need be, visible to SPI by name */
extern PosRowset *pos_rowset_create(const char *name, TupleDesc desc);
extern void pos_rowset_put(PosRowset *rowset, Datum *values, bool *nulls);
extern int64 pos_rowset_count(PosRowset *rowset);
extern void pos_rowset_rewind(PosRowset *rowset);
extern bool pos_rowset_next(PosRowset *rowset, Datum **values, bool **nulls);
extern void pos_rowset_publish(PosRowset *rowset);
extern void pos_rowset_clear(PosRowset *rowset);
extern void pos_rowset_free(PosRowset *rowset);

/* in parts.c: an initial load in parts */
extern bool pos_parts_allowed;
extern bool pos_parts_more;
extern void pos_parts_plan(PosRun *run);
extern void pos_parts_key(PosRun *run, PosModel *model, Datum *wire);
extern void pos_parts_store(PosRun *run);

/* in translation.c: local key <-> remote key */
extern void pos_translation_open(PosRun *run);
extern void pos_translation_close(PosRun *run);
extern void pos_translation_prepare(PosRun *run, PosModel *model);
extern PosFound pos_translation_find(PosRun *run, PosModel *model, Datum remote,
									 Datum *local, uint8 *known);
extern int32 pos_translation_run(PosRun *run, PosModel *model, Datum from);
extern bool pos_translation_is_linked(PosRun *run, PosModel *model,
									  Datum local);
extern void pos_translation_expect(PosRun *run);
extern void pos_translation_add(PosRun *run, PosModel *model, Datum remote,
								Datum local, bool created);
extern void pos_translation_remove(PosRun *run, PosModel *model, Datum remote);
extern void pos_translation_set_gone(PosRun *run, PosModel *model,
									 Datum remote, bool gone);
extern void pos_translation_flush(PosRun *run);
extern void pos_translation_publish(PosRun *run);
extern void pos_translation_settle(PosRun *run);

/* in translate.c: a remote row as a staged one */
extern PosReference *pos_translate_row(PosRun *run, PosModel *model,
									   Datum *wire, bool *wirenulls,
									   Datum *values, bool *nulls,
									   bool *pending);
extern PosReference *pos_translate_inner(PosRun *run, PosModel *model,
										 bool identity_only,
										 Datum *values, bool *nulls,
										 bool *pending);
extern void pos_translate_reject(PosRun *run, PosModel *model,
								 PosReference *reference,
								 Datum *values, bool *nulls);

/* in bind.c: known, matched, or to be created */
extern void pos_bind_receive(PosRun *run, PosModel *model);
extern void pos_bind_component(PosRun *run, PosComponent *component);

/* in match.c: unknown rows against the local table */
typedef void (*PosMatchCallback) (PosRun *run, PosModel *model, Datum *values,
								  bool *nulls, List *candidates, bool shared,
								  char *linked);
extern void pos_match_rows(PosRun *run, PosModel *model, PosRowset *rows,
						   PosMatchCallback callback);

/* in update.c: rows that differ, also if they swap unique values */
extern int64 pos_update_rows(PosModel *model, PosRowset *rows,
							 ItemPointer seen);

/* in known.c: rows that are linked with a local one */
extern void pos_known_begin(PosRun *run, PosModel *model, bool unlink);
extern void pos_known_take(PosRun *run, PosModel *model, Datum *values,
						   bool *nulls);
extern void pos_known_pretend(PosRun *run, PosModel *model, Datum *values,
							  bool *nulls);
extern void pos_known_compare(PosRun *run, PosModel *model);
extern void pos_known_end(PosModel *model);

/* in write.c: what differs is written */
extern void pos_write_update(PosRun *run, PosModel *model, ItemPointer seen,
							 Datum *values, bool *nulls);
extern void pos_write_create(PosRun *run, PosModel *model, Datum *values,
							 bool *nulls);
extern void pos_write_flush(PosRun *run, PosComponent *component);
extern void pos_write_close(PosModel *model);

/* in careful.c: bad rows are found and left out */
typedef void (*PosCareful) (PosRun *run, void *argument);
typedef void (*PosCarefulReject) (PosRun *run, PosModel *model, Datum *values,
								  bool *nulls, ErrorData *error);
extern bool pos_careful_is_content(int sqlerrcode);
extern ErrorData *pos_careful_try(PosRun *run, PosCareful function,
								  void *argument);
extern void pos_careful_write(PosRun *run, PosModel *model,
							  PosRowset *gathered, PosCareful function,
							  bool created);
extern PosRowset *pos_careful_rest(PosRun *run, PosModel *model,
								   PosRowset *gathered, PosCareful function,
								   int64 most);
extern void pos_careful_last(PosRun *run, PosModel *model, PosRowset *rest,
							 PosRowset *gathered, PosCareful function,
							 PosCarefulReject reject);
extern void pos_careful_write_component(PosRun *run, List *models,
										PosRowset **gathered, PosCareful all,
										PosCareful one);
extern void pos_careful_count(PosRun *run, ErrorData *error);
extern char *pos_careful_message(ErrorData *error);

/* in prove.c: foreign keys proven instead of checked */
extern bool pos_prove_has_code(Relation rel);
extern void pos_prove_begin(PosRun *run, PosModel *model);
extern void pos_prove_row(PosRun *run, PosModel *model, Datum *values,
						  bool *nulls);
extern void pos_prove_lock(PosModel *model);

/* in conflict.c: rows that both sides changed */
extern bool pos_conflict_counts(PosModel *model, PosField *field);
extern bool pos_conflict_load(PosRun *run, PosModel *model);
extern char **pos_conflict_keys(PosModel *model, int *nkeys);
extern bool pos_conflict_has_key(char **keys, int nkeys, const char *key);
extern void pos_conflict_append_state(StringInfo sql, PosModel *model);
extern bool pos_conflict_decide(PosRun *run, PosModel *model, int state,
								Datum *values, bool *nulls);

/* in drift.c: what is read and deleted because both sides differ */
extern void pos_drift_plan(PosRun *run);
extern void pos_drift_find(PosRun *run);

/* in gone.c: rows whose counterpart was deleted */
extern void pos_gone_put(PosRun *run, PosModel *model, const char *remote,
						 const char *local);
extern void pos_gone_apply(PosRun *run, bool last);
extern void pos_gone_store(PosRun *run);

/* in quarantine.c */
extern void pos_quarantine_retry(PosRun *run);
extern void pos_quarantine_reject(PosRun *run, PosModel *model, Datum remote,
								  const char *reason, const char *message,
								  List *candidates, Datum *values, bool *nulls);
extern void pos_quarantine_gone(PosRun *run, PosModel *model, Datum remote,
								const char *message);
extern void pos_quarantine_missing(PosRun *run, PosModel *model,
								   Datum remote);
extern char *pos_quarantine_image(PosModel *model, Datum *values, bool *nulls);
extern void pos_quarantine_store(PosRun *run);
extern void pos_quarantine_close(PosRun *run);
extern void pos_quarantine_retry_dependent(void);
extern void pos_quarantine_release_conflict(PosModel *model, Datum local);

/* in history.c */
extern bool pos_history_merge_idle;
extern int32 pos_history_next_id(void);
extern Datum pos_history_record(PosRun *run, const char *model,
								TimestampTz started, ErrorData *error);
extern void pos_history_positions(PosRun *run);

#endif							/* POSSYNC_RUN_H */
