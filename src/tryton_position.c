/*
 * tryton_position.c
 *		Up to where a model has been read.
 *
 * A record is stamped with the start of the transaction that wrote it, and may be
 * committed long after others that were stamped later; which transactions run
 * nobody tells.  So a position is not a time but a window: a time since which, and
 * what was seen of the rows stamped since then, as a number and a sum of hashes of
 * id and stamp.  A poll asks for the stamps in the window; if they are the same,
 * nothing has changed.  The window begins "overlap" before the last stamp seen.
 * Once so much time has passed since that was seen, on our clock, nobody runs who
 * could add to it, and it begins with the last stamp.  No clock of the server's is
 * compared with ours but to tell that a stamp is one of the future.
 *
 * What is committed even later is found by a sweep, which reads all rows.
 *
 * A stamp is that of the row or, if columns are taken from records that it refers
 * to, the latest of all.  What a many2many field links has none: a link table's
 * window is all of it.
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "connection_tryton.h"
#include "datatype/timestamp.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/timestamp.h"

/* A window of fewer rows is not made smaller for its own sake */
#define SMALL_WINDOW	1000

typedef struct Stamp
{
	int64		id;
	int64		stamp;			/* microseconds since 1970 */
} Stamp;

/* A window: times in microseconds since 1970 */
typedef struct Window
{
	int64		since;
	int64		top;			/* the last stamp seen */
	int64		rows;
	uint64		hash;
	int64		at;				/* our clock when top was seen */
	int64		swept;			/* our clock when all was read */
} Window;

struct PosTrytonPosition
{
	bool		valid;			/* there is an old one */
	Window		old;
	bool		link;
	bool		sweeps;			/* all is read, whatever the old one says */
	bool		whole;			/* all is read */
	bool		settles;		/* the same rows, and a smaller window */
	List	   *prefixes;		/* paths (char *) to records that columns come
								 * from */

	/* what is seen */
	int64		begun;			/* our clock */
	int64		started;		/* our clock when its rows were asked for */
	int64		top;
	int64		rows;			/* since the old position */
	uint64		hash;
	Stamp	   *stamps;			/* not older than overlap before top */
	int			nstamps;
	int			maxstamps;
	char	   *buffer;			/* of the next position, the caller's */
};

/* Bytes of a position, at most */
#define POSITION_BYTES	256

/* Our clock, in microseconds since 1970 */
static int64
our_time(void)
{
	return GetCurrentTimestamp() +
		(POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * USECS_PER_DAY;
}

/* Reads an integer member of a position. */
static bool
member(Jsonb *json, const char *name, int64 *result)
{
	JsonbValue	value;
	char	   *text = pos_tryton_string(pos_tryton_get(&json->root, name, &value));
	char	   *end;

	if (text == NULL)
		return false;
	*result = strtoll(text, &end, 10);
	return *end == '\0' && end != text;
}

/* Reads a stored position; returns false if it is none of ours. */
static bool
read_window(const char *text, Window *window)
{
	Jsonb	   *json;
	int64		hash;

	if (text[0] != '{')
		return false;
	json = DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum(text)));
	if (!member(json, "since", &window->since) || !member(json, "top", &window->top) ||
		!member(json, "rows", &window->rows) || !member(json, "hash", &hash) ||
		!member(json, "at", &window->at) || !member(json, "swept", &window->swept))
		return false;
	window->hash = (uint64) hash;
	return true;
}

static void
write_window(char *buffer, Window *window)
{
	snprintf(buffer, POSITION_BYTES,
			 "{\"since\":\"" INT64_FORMAT "\",\"top\":\"" INT64_FORMAT "\",\"rows\":\"" INT64_FORMAT
			 "\",\"hash\":\"" INT64_FORMAT "\",\"at\":\"" INT64_FORMAT "\",\"swept\":\"" INT64_FORMAT "\"}",
			 window->since, window->top, window->rows, (int64) window->hash,
			 window->at, window->swept);
}

/* Adds the path to a record to those whose stamps count. */
static void
add_prefix(PosTrytonPosition *position, char *prefix)
{
	ListCell   *lc;

	/* describe will say what it thinks of such a name */
	if (strspn(prefix, "abcdefghijklmnopqrstuvwxyz0123456789_.") != strlen(prefix))
		return;
	foreach(lc, position->prefixes)
		if (strcmp(lfirst(lc), prefix) == 0)
		return;
	position->prefixes = lappend(position->prefixes, prefix);
}

/* The time that no stamp can be later than, give or take what a Date header tells */
static int64
latest_stamp(PosTrytonSession *session)
{
	return our_time() + session->offset + 2 * USECS_PER_SEC;
}

/*
 * Whether a window begins too late: a clock was wrong when it was made, and nobody
 * knows what was written since.
 */
static bool
is_of_the_future(PosTrytonSession *session, Window *window)
{
	return window->since > latest_stamp(session) - session->options.overlap * INT64CONST(1000);
}

/*
 * Reads the positions of tables that are to be read, in the current memory context.
 */
void
pos_tryton_positions_read(PosTrytonSession *session, PosTable **tables, int ntables)
{
	for (int i = 0; i < ntables; i++)
	{
		PosTable   *table = tables[i];
		PosTrytonPosition *position = palloc0(sizeof(PosTrytonPosition));
		char	   *model;
		char	   *link;

		table->known = position;
		position->begun = our_time();
		position->link = pos_tryton_is_link(table->remote, &model, &link);
		position->valid = table->position != NULL && table->source != NULL &&
			strcmp(table->source, session->source) == 0 &&
			read_window(table->position, &position->old);
		position->sweeps = position->valid && !position->link &&
			session->options.sweep > 0 &&
			(position->old.swept > position->begun ||
			 position->begun - position->old.swept >= session->options.sweep * INT64CONST(1000));
		position->valid = position->valid && !is_of_the_future(session, &position->old);
		for (int j = 0; j < table->ncolumns && !position->link; j++)
			for (const char *dot = strchr(table->columns[j].remote, '.'); dot != NULL;
				 dot = strchr(dot + 1, '.'))
				add_prefix(position, pnstrdup(table->columns[j].remote,
											  dot - table->columns[j].remote));
	}
}

/* Appends a time as JSON. */
static void
append_time(StringInfo buf, int64 time)
{
	struct pg_tm tm;
	fsec_t		fsec;
	Timestamp	timestamp = time -
	(POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * USECS_PER_DAY;

	if (timestamp2tm(timestamp, NULL, &tm, &fsec, NULL, NULL) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_DATETIME_VALUE_OUT_OF_RANGE),
				 errmsg("timestamp out of range")));
	appendStringInfo(buf, "{\"__class__\":\"datetime\",\"year\":%d,\"month\":%d,\"day\":%d,"
					 "\"hour\":%d,\"minute\":%d,\"second\":%d,\"microsecond\":%d}",
					 tm.tm_year, tm.tm_mon, tm.tm_mday, tm.tm_hour, tm.tm_min,
					 tm.tm_sec, (int) fsec);
}

/* Appends the clause for rows that are stamped since a time. */
static void
append_since(StringInfo buf, PosTrytonPosition *position, int64 since)
{
	ListCell   *lc;

	appendStringInfoString(buf, "[\"OR\"");
	appendStringInfoString(buf, ",[\"create_date\",\">=\",");
	append_time(buf, since);
	appendStringInfoString(buf, "],[\"write_date\",\">=\",");
	append_time(buf, since);
	appendStringInfoChar(buf, ']');
	foreach(lc, position->prefixes)
	{
		appendStringInfo(buf, ",[\"%s.create_date\",\">=\",", (char *) lfirst(lc));
		append_time(buf, since);
		appendStringInfo(buf, "],[\"%s.write_date\",\">=\",", (char *) lfirst(lc));
		append_time(buf, since);
		appendStringInfoChar(buf, ']');
	}
	appendStringInfoChar(buf, ']');
}

/* Returns the fields that tell a row's stamp, as JSON names with commas behind. */
static void
append_stamp_fields(StringInfo buf, PosTrytonPosition *position)
{
	ListCell   *lc;

	appendStringInfoString(buf, "\"_timestamp\",");
	foreach(lc, position->prefixes)
		appendStringInfo(buf, "\"%s._timestamp\",", (char *) lfirst(lc));
}

/* Reads a stamp, "1795489295.813045"; what has never been stamped is of 1970. */
static int64
parse_stamp(PosTrytonSession *session, JsonbValue *value)
{
	char	   *text;
	char	   *end;
	int64		stamp;
	int64		unit = 100000;

	if (value == NULL || value->type == jbvNull)
		return 0;
	text = pos_tryton_string(value);

	if (text == NULL)
		pos_tryton_odd(session);
	stamp = strtoll(text, &end, 10) * USECS_PER_SEC;
	if (*end == '.')
		for (end++; isdigit((unsigned char) *end); end++, unit /= 10)
			stamp += (*end - '0') * unit;
	if (*end != '\0' || end == text ||stamp < 0 || stamp > INT64CONST(253402300799000000))
		pos_tryton_odd(session);
	return stamp;
}

/* Returns the stamp of the record that a path leads to, 0 if it leads nowhere. */
static int64
stamp_at(PosTrytonSession *session, JsonbContainer *row, const char *path)
{
	JsonbValue	value;

	while (*path != '\0')
	{
		Size		len = strcspn(path, ".");
		JsonbValue *next = pos_tryton_get(row, psprintf("%.*s.", (int) len, path), &value);

		if (next == NULL || next->type != jbvBinary)
			return 0;
		row = next->val.binary.data;
		path += len + (path[len] == '.');
	}
	return parse_stamp(session, pos_tryton_get(row, "_timestamp", &value));
}

/* Returns when a row was written last. */
static int64
stamp_of(PosTrytonSession *session, PosTrytonPosition *position, JsonbContainer *row)
{
	int64		stamp = stamp_at(session, row, "");
	ListCell   *lc;

	foreach(lc, position->prefixes)
		stamp = Max(stamp, stamp_at(session, row, lfirst(lc)));
	return stamp;
}

static uint64
hash_of(int64 id, int64 stamp)
{
	int64		both[2] = {id, stamp};

	return hash_bytes_extended((unsigned char *) both, sizeof(both), 0);
}

/* Makes room for more stamps, by forgetting old ones if that is enough. */
static void
make_room(PosTrytonPosition *position, int64 overlap, MemoryContext context)
{
	int			kept = 0;

	for (int i = 0; i < position->nstamps; i++)
		if (position->stamps[i].stamp >= position->top - overlap)
			position->stamps[kept++] = position->stamps[i];
	position->nstamps = kept;
	if (kept <= position->maxstamps / 2 && position->maxstamps > 0)
		return;
	position->maxstamps = Max(position->maxstamps * 2, 256);
	position->stamps = position->stamps == NULL ?
		MemoryContextAllocHuge(context, position->maxstamps * sizeof(Stamp)) :
		repalloc_huge(position->stamps, position->maxstamps * sizeof(Stamp));
}

/* Takes note of a row; link is what a link table's row refers to. */
void
pos_tryton_position_seen(PosTrytonSession *session, PosTable *table,
						 JsonbContainer *row, int64 link)
{
	PosTrytonPosition *position = table->known;
	JsonbValue	value;
	int64		id;
	int64		stamp;
	MemoryContext old;

	MemoryContextReset(session->row_context);
	old = MemoryContextSwitchTo(session->row_context);
	if (!pos_tryton_integer(pos_tryton_get(row, "id", &value), &id))
		pos_tryton_odd(session);
	stamp = position->link ? link : stamp_of(session, position, row);
	MemoryContextSwitchTo(old);
	if (position->link || !position->valid || position->whole || stamp >= position->old.since)
	{
		position->rows++;
		position->hash += hash_of(id, stamp);
	}
	if (position->link)
		return;
	position->top = Max(position->top, stamp);
	if (position->nstamps == position->maxstamps)
		make_room(position, session->options.overlap * INT64CONST(1000) +
				  our_time() - position->started, session->read_context);
	position->stamps[position->nstamps].id = id;
	position->stamps[position->nstamps++].stamp = stamp;
}

/* Forgets what was seen: it is read again. */
static void
forget_seen(PosTrytonPosition *position)
{
	position->rows = position->nstamps = 0;
	position->hash = position->top = 0;
}

/*
 * Finds out whether a table that has a position changed since then.  One call, if
 * its window is no larger than a page.
 */
void
pos_tryton_poll(PosTrytonSession *session, PosTable *table)
{
	PosTrytonPosition *position = table->known;
	StringInfoData domain;
	StringInfoData fields;
	PosTrytonPages *pages;
	JsonbContainer *row;
	int64		link;

	table->changed = true;
	if (!position->valid || position->sweeps || table->nretry > 0 ||
		table->compared != POS_COMPARED_NOT)
		return;
	initStringInfo(&domain);
	initStringInfo(&fields);
	if (!position->link)
	{
		append_since(&domain, position, position->old.since);
		appendStringInfoChar(&domain, ',');
		append_stamp_fields(&fields, position);
	}
	pages = pos_tryton_pages(table, domain.data, fields.data,
							 session->options.page_size * 5, false);
	while (pos_tryton_next(session, pages, &row, &link))
		pos_tryton_position_seen(session, table, row, link);
	table->changed = position->rows != position->old.rows ||
		position->hash != position->old.hash;
	if (!table->changed && !position->link && position->rows > SMALL_WINDOW &&
		position->old.since < position->old.top &&
		position->old.at <= position->begun &&
		position->begun - position->old.at >= session->options.overlap * INT64CONST(1000))
		table->changed = position->settles = true;
	else
		forget_seen(position);
}

/* Whether all rows of a table are read, whatever they are stamped. */
bool
pos_tryton_is_swept(PosTable *table)
{
	PosTrytonPosition *position = table->known;

	return position->link || !position->valid || position->sweeps;
}

/* Appends the clause for rows to be read in any case. */
static void
append_retry(StringInfo buf, PosTable *table)
{
	appendStringInfoString(buf, "[\"id\",\"in\",[");
	for (int i = 0; i < table->nretry; i++)
		appendStringInfo(buf, "%s%s", i > 0 ? "," : "", table->retry[i * table->nkey]);
	appendStringInfoString(buf, "]]");
}

/*
 * Returns what is to be read of a table, in the current memory context; NULL if
 * that is nothing.  buffer is for the next position.
 */
PosTrytonPages *
pos_tryton_position_pages(PosTrytonSession *session, PosTable *table, char *buffer)
{
	PosTrytonPosition *position = table->known;
	StringInfoData domain;
	StringInfoData fields;

	position->buffer = buffer;
	position->started = our_time();
	if (position->settles && table->scope == POS_SCOPE_CHANGED)
		return NULL;
	forget_seen(position);
	position->settles = false;
	position->whole = pos_tryton_is_swept(table) || table->scope == POS_SCOPE_ALL;
	initStringInfo(&domain);
	initStringInfo(&fields);
	if (!position->whole && table->scope == POS_SCOPE_CHOSEN && table->nretry == 0)
		return NULL;
	if (!position->whole)
	{
		if (table->nretry > 0)
			appendStringInfoString(&domain, "[\"OR\",");
		if (table->scope != POS_SCOPE_CHOSEN)
			append_since(&domain, position, position->old.since);
		if (table->nretry > 0 && table->scope != POS_SCOPE_CHOSEN)
			appendStringInfoChar(&domain, ',');
		if (table->nretry > 0)
		{
			append_retry(&domain, table);
			appendStringInfoChar(&domain, ']');
		}
		appendStringInfoChar(&domain, ',');
	}
	if (!position->link)
		append_stamp_fields(&fields, position);
	for (int i = 0; i < table->ncolumns; i++)
		if (strcmp(table->columns[i].remote, "id") != 0)
			appendStringInfo(&fields, "\"%s\",", table->columns[i].remote);
	return pos_tryton_pages(table, domain.data, fields.data, session->options.page_size,
							position->whole);
}

/* Decides the next position of a table all of whose rows have been delivered. */
void
pos_tryton_position_end(PosTrytonSession *session, PosTable *table)
{
	PosTrytonPosition *position = table->known;
	int64		overlap = session->options.overlap * INT64CONST(1000);
	Window		window = {0};
	int64		top;

	if (!position->whole && table->scope == POS_SCOPE_CHOSEN)
		return;
	if (position->valid && !position->whole)
		window = position->old;
	if (position->whole)
		window.swept = position->begun;
	top = Min(position->top, latest_stamp(session));
	window.top = Min(window.top, latest_stamp(session));
	if (top > window.top || window.at == 0)
	{
		window.top = top;
		window.at = our_time();
	}

	/* rows that were passed may have been written while others were read */
	window.since = position->settles ? window.top :
		Max(window.since, window.top - overlap - (our_time() - position->started));
	window.rows = position->link ? position->rows : 0;
	window.hash = position->link ? position->hash : 0;
	for (int i = 0; i < position->nstamps; i++)
		if (position->stamps[i].stamp >= window.since)
		{
			window.rows++;
			window.hash += hash_of(position->stamps[i].id, position->stamps[i].stamp);
		}
	write_window(position->buffer, &window);
	table->next_position = position->buffer;
	table->settled = table->position == NULL ||
		strcmp(table->position, position->buffer) != 0;
}

/* Bytes that pos_tryton_position_pages needs for the next position */
Size
pos_tryton_position_size(void)
{
	return POSITION_BYTES;
}
