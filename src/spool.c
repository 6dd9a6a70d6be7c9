/*
 * spool.c
 *		The captured rows of a transaction, until they are written into
 *		synchronize_queue.
 *
 * They are written together, just before the transaction commits or is
 * prepared: opening the queue and its index for every row costs more than
 * inserting it.  What reads the queue within the same transaction has them
 * written before, with pos_spool_write.
 *
 * The entries of a transaction share a number, by which they are found and
 * transactions are ordered; see spool.h for what stands in front of it.  It is
 * taken when they are written, so the transaction has made all of its changes
 * and still holds the locks of its rows.  Who changes or refers to one of these
 * has to wait for its end, at the latest where a deferred foreign key is
 * checked, and gets a greater number.
 *
 * Until then entries are one string of bytes, whose beginning goes to a
 * temporary file when it becomes long.  What a subtransaction captured is the
 * end of the string, and is cut off if that aborts.
 */
#include "possync.h"

#include "access/table.h"
#include "access/xact.h"
#include "bulk.h"
#include "catalog/pg_type.h"
#include "commands/sequence.h"
#include "executor/spi.h"
#include "lib/stringinfo.h"
#include "spool.h"
#include "storage/buffile.h"
#include "store.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

/* So much is kept in memory */
#define MAX_TAIL	(256 * 1024)

/* Columns of synchronize_queue */
enum
{
	COL_TXID, COL_ID, COL_MODEL, COL_OPERATION, COL_KEY, COL_KEY_TEXT,
	COL_IMAGE, COL_QUEUED_AT, COL_BEFORE, NCOLS
};

/* What begins an entry; a text key, the image and what was before follow. */
typedef struct Header
{
	int16		model;
	int16		lane;
	char		operation;
	bool		integer;
	uint32		key_size;		/* 0: an integer, here */
	uint32		image_size;
	uint32		before_size;	/* 0: none */
	int64		key;
} Header;

/* What the abort of a subtransaction brings back */
typedef struct State
{
	Oid			queue;
	Oid			sequence;
	int64		number;			/* of the transaction, 0: none yet */
	int32		rows;			/* written so far */
	int64		written;		/* how much of the string that is */
	int64		end;			/* of the string */
} State;

/* The state before a subtransaction captured or wrote anything */
typedef struct Mark
{
	int			level;
	State		state;
	struct Mark *below;
} Mark;

typedef struct Spool
{
	State		now;
	Mark	   *marks;			/* one for each level at most, innermost first */
	BufFile    *file;			/* NULL until it is needed */
	int64		base;			/* how much of the string is in the file */
	StringInfoData tail;		/* the rest of it */
} Spool;

/* That of the current transaction, in its memory; NULL if there is none */
static Spool *spool = NULL;

/* Whether our part of the commit is done: what comes now is written at once. */
static bool committing = false;

static void transaction_event(XactEvent event, void *arg);
static void subtransaction_event(SubXactEvent event, SubTransactionId mine,
								 SubTransactionId parent, void *arg);

/* Begins the spool of a transaction. */
static void
start(Oid queue, Oid sequence)
{
	static bool registered = false;
	MemoryContext old = MemoryContextSwitchTo(TopTransactionContext);

	if (!registered)
	{
		RegisterXactCallback(transaction_event, NULL);
		RegisterSubXactCallback(subtransaction_event, NULL);
		registered = true;
	}
	spool = palloc0(sizeof(Spool));
	spool->now.queue = queue;
	spool->now.sequence = sequence;
	initStringInfo(&spool->tail);
	MemoryContextSwitchTo(old);
}

/* Remembers the state before the current subtransaction, if it is not yet. */
static void
mark(void)
{
	int			level = GetCurrentTransactionNestLevel();
	Mark	   *new;

	if (level == 1 || (spool->marks != NULL && spool->marks->level == level))
		return;
	new = MemoryContextAlloc(TopTransactionContext, sizeof(Mark));
	new->level = level;
	new->state = spool->now;
	new->below = spool->marks;
	spool->marks = new;
}

/* Goes to an offset in the file. */
static void
seek(int64 offset)
{
	if (BufFileSeek(spool->file, 0, offset, SEEK_SET) != 0)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not seek in a temporary file of captured rows")));
}

/* Moves the tail to the file, which belongs to the transaction as a whole. */
static void
move_tail(void)
{
	if (spool->file == NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(TopTransactionContext);
		ResourceOwner owner = CurrentResourceOwner;

		CurrentResourceOwner = TopTransactionResourceOwner;
		spool->file = BufFileCreateTemp(false);
		CurrentResourceOwner = owner;
		MemoryContextSwitchTo(old);
	}
	seek(spool->base);
	BufFileWrite(spool->file, spool->tail.data, spool->tail.len);
	spool->base += spool->tail.len;
	resetStringInfo(&spool->tail);
}

/* Appends to the string.  What is given at once stays on one side of base. */
static void
append(void *data, Size size)
{
	if (spool->tail.len + size > MAX_TAIL)
		move_tail();
	if (size <= MAX_TAIL)
		appendBinaryStringInfo(&spool->tail, data, size);
	else
	{
		BufFileWrite(spool->file, data, size);
		spool->base += size;
	}
}

/* Reads from the string at *offset, in order, and moves that forward. */
static void
fetch(int64 *offset, void *data, Size size)
{
	if (*offset >= spool->base)
		memcpy(data, spool->tail.data + (*offset - spool->base), size);
	else if (BufFileRead(spool->file, data, size) != size)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not read from a temporary file of captured rows")));
	*offset += size;
}

/* The same for one that was given as a pointer; returns a copy. */
static Datum
fetch_value(int64 *offset, Size size)
{
	void	   *value = palloc(size);

	fetch(offset, value, size);
	return PointerGetDatum(value);
}

/* Writes the entries from now.written on. */
static void
write_entries(Relation queue)
{
	PosBulk    *bulk = pos_bulk_open(queue, 0, NULL);
	MemoryContext row = AllocSetContextCreate(CurrentMemoryContext,
											  "possync captured row",
											  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(row);
	int64		offset = spool->now.written;
	Datum		values[NCOLS];
	bool		nulls[NCOLS] = {false};

	if (offset < spool->base)
		seek(offset);
	values[COL_QUEUED_AT] = TimestampTzGetDatum(GetCurrentTransactionStartTimestamp());
	while (offset < spool->now.end)
	{
		Header		header;

		fetch(&offset, &header, sizeof(header));
		values[COL_TXID] = Int64GetDatum(((int64) header.lane << POS_LANE_SHIFT) +
										 spool->now.number);
		values[COL_ID] = Int32GetDatum(++spool->now.rows);
		values[COL_MODEL] = Int16GetDatum(header.model);
		values[COL_OPERATION] = CharGetDatum(header.operation);
		nulls[COL_KEY] = !header.integer;
		nulls[COL_KEY_TEXT] = header.integer;
		if (header.integer)
			values[COL_KEY] = Int64GetDatum(header.key);
		else
			values[COL_KEY_TEXT] = fetch_value(&offset, header.key_size);
		values[COL_IMAGE] = fetch_value(&offset, header.image_size);
		nulls[COL_BEFORE] = header.before_size == 0;
		if (header.before_size > 0)
			values[COL_BEFORE] = fetch_value(&offset, header.before_size);
		if (pos_bulk_put(bulk, values, nulls))
			pos_bulk_flush(bulk);
		MemoryContextReset(row);
	}
	MemoryContextSwitchTo(old);
	MemoryContextDelete(row);
	pos_bulk_close(bulk);
}

/* The lanes that there are */
#define LANES \
	"(SELECT DISTINCT " POS_LANE_FIRST("lane") " FROM @.synchronize_model) l (lane)"

/* Executes a statement at the end of the transaction. */
static void
execute(const char *sql, int nargs, Oid *types, Datum *values)
{
	/* there is no snapshot any more, and SPI would leave its own */
	PushActiveSnapshot(GetTransactionSnapshot());
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	pos_store_execute_as(POS_PLAN_LOOK_UP, sql, nargs, types, values, NULL);
	SPI_finish();
	PopActiveSnapshot();
}

/*
 * Gives what is written already the number that the rest will get.  What came
 * between may depend on transactions that have ended since.
 */
static void
renumber(int64 number)
{
	Oid			types[] = {INT8OID, INT8OID};
	Datum		values[] = {
		Int64GetDatum(spool->now.number), Int64GetDatum(number)
	};

	execute("WITH held AS (UPDATE @.synchronize_held SET txid = lane + $2"
			" FROM " LANES " WHERE txid = lane + $1)"
			" UPDATE @.synchronize_queue SET txid = lane + $2"
			" FROM " LANES " WHERE txid = lane + $1", 2, types, values);
}

/*
 * Of a transaction that is held since it looked at the queue, what it wrote after that
 * is held, too.
 */
static void
hold_rest(void)
{
	Oid			types[] = {INT8OID};
	Datum		values[] = {Int64GetDatum(spool->now.number)};

	execute("WITH held AS (SELECT DISTINCT ON (txid) txid, quarantine"
			" FROM " LANES ", @.synchronize_held WHERE txid = lane + $1)"
			" INSERT INTO @.synchronize_held"
			" (txid, id, model, local_key, quarantine)"
			" SELECT q.txid, q.id, q.model,"
			" coalesce(q.local_key::text, q.local_key_text), h.quarantine"
			" FROM held h JOIN @.synchronize_queue q USING (txid)"
			" ON CONFLICT DO NOTHING", 1, types, values);
}

/*
 * Writes what is captured and not written yet.  The transaction keeps the
 * number it has, unless this is the last time: deferred foreign keys may make it
 * depend on others that have ended since.
 */
static void
write_captured(bool last)
{
	Relation	queue;
	bool		read_only = XactReadOnly;
	bool		again;

	if (spool == NULL)
		return;
	if (spool->now.written == spool->now.end &&
		(!last || spool->now.number == 0))
		return;
	mark();
	queue = try_table_open(spool->now.queue, RowExclusiveLock);
	if (queue != NULL)
	{
		/* it may have become read-only after it wrote */
		XactReadOnly = false;
		again = spool->now.number != 0 && last;
		if (spool->now.number == 0 || last)
		{
			int64		number = nextval_internal(spool->now.sequence, false);

			if (again)
				renumber(number);
			spool->now.number = number;
		}
		if (spool->now.written < spool->now.end)
			write_entries(queue);
		if (again)
			hold_rest();
		XactReadOnly = read_only;
		table_close(queue, NoLock);
	}
	spool->now.written = spool->now.end;
}

/*
 * Writes what the transaction has captured so far: statements see it from here
 * on.
 */
void
pos_spool_write(void)
{
	write_captured(false);
}

/* Takes a captured row, which is copied. */
void
pos_spool_put(Oid queue, Oid sequence, PosEntry *entry)
{
	Header		header = {
		.model = entry->model,
		.lane = entry->lane,
		.operation = entry->operation,
		.integer = entry->integer,
		.image_size = VARSIZE(entry->image)
	};

	if (spool == NULL)
		start(queue, sequence);
	mark();
	if (spool->now.queue != queue)
	{
		/* the extension was dropped and created in this transaction */
		pos_spool_write();
		spool->now.queue = queue;
		spool->now.sequence = sequence;
		spool->now.number = 0;
	}
	if (entry->integer)
		header.key = DatumGetInt64(entry->key);
	else
		header.key_size = VARSIZE(DatumGetPointer(entry->key));
	if (entry->before != NULL)
		header.before_size = VARSIZE(entry->before);

	append(&header, sizeof(header));
	if (!entry->integer)
		append(DatumGetPointer(entry->key), header.key_size);
	append(entry->image, header.image_size);
	if (entry->before != NULL)
		append(entry->before, header.before_size);
	spool->now.end = spool->base + spool->tail.len;
	if (committing)
		pos_spool_write();
}

/* Called at the end of a transaction. */
static void
transaction_event(XactEvent event, void *arg)
{
	switch (event)
	{
		case XACT_EVENT_PRE_COMMIT:
		case XACT_EVENT_PRE_PREPARE:
			write_captured(true);
			committing = true;
			if (spool != NULL && spool->file != NULL)
			{
				BufFileClose(spool->file);
				spool->file = NULL;
				spool->base = spool->now.written = spool->now.end = 0;
				resetStringInfo(&spool->tail);
			}
			break;
		case XACT_EVENT_COMMIT:
		case XACT_EVENT_PREPARE:
		case XACT_EVENT_ABORT:
			spool = NULL;		/* went, or goes, with the transaction */
			committing = false;
			break;
		default:
			break;
	}
}

/* Called at the end of a subtransaction. */
static void
subtransaction_event(SubXactEvent event, SubTransactionId mine,
					 SubTransactionId parent, void *arg)
{
	int			level = GetCurrentTransactionNestLevel();
	Mark	   *top = spool != NULL ? spool->marks : NULL;

	if (top == NULL || top->level < level)
		return;
	if (event == SUBXACT_EVENT_ABORT_SUB)
	{
		spool->now = top->state;
		spool->base = Min(spool->base, spool->now.end);
		spool->tail.len = spool->now.end - spool->base;
	}
	else if (event == SUBXACT_EVENT_COMMIT_SUB)
	{
		/* its rows are the parent's, whose own mark is further back */
		top->level--;
		if (top->level > 1 &&
			(top->below == NULL || top->below->level < top->level))
			return;
	}
	else
		return;
	spool->marks = top->below;
	pfree(top);
}
