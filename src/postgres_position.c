/*
 * postgres_position.c
 *		Up to where a table of a remote PostgreSQL has been read.
 *
 * A transaction stamps its rows when it starts and shows them when it commits, so
 * "changed since" alone loses what is committed late.  A position therefore has
 * two sides.
 *
 * The value of the change columns, by their type:
 *
 *		timestamptz		the start of the oldest transaction that may still write,
 *						see pos_pg_query_clock
 *		xid8			the oldest running transaction
 *		timestamp, date	the greatest value less the server's overlap; values
 *						beyond any clock do not count
 *		others			the greatest value that was there before the oldest
 *						running transaction began: what lies between that and the
 *						greatest is still to be waited for ("ahead")
 *
 * And the oldest transaction running when the table was last read, "seen".  Every
 * row version carries the number of the transaction that made it (xmin), and what
 * was made by older ones has been read: of the rows that changed since the value
 * only the others travel.  (It has to be the oldest running one, not the
 * snapshot's list: subtransactions are not in that.)  From time to time a sweep
 * looks for them without asking for the value at all: that finds whatever the
 * value cannot tell, as where running transactions cannot be seen, where a clock
 * was set back, where somebody keeps the stamp.
 *
 * Both hold for the tables that were read, the partitions of a partitioned one.
 * Another that has come in the place of one, or was attached, has rows that may be
 * older than all that: they are read whatever they say, once.  And the value holds
 * for the type that the change columns had.
 *
 * Numbers of transactions never go back but where a master was put back to an older
 * state: what it has committed since may have numbers that were seen, of others.  Such
 * a position is none.  Mostly another timeline tells, but not of files copied back.
 *
 * Nobody else looks into a position.  It is kept as JSON, so that a person can.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "connection_postgres.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/datetime.h"
#include "utils/json.h"
#include "utils/jsonb.h"
#include "utils/timestamp.h"

/* How far transaction numbers may lie apart to be compared as xid */
#define COMPARABLE	"1000000000"

/* No clock is further ahead of UTC, and no sane stamp */
#define FURTHEST_ZONE	"interval '15 h'"

struct PosPgPosition
{
	char	   *log;			/* identity of the change log, see
								 * postgres_log.c; "": there was none */
	char	   *snapshot;		/* in which the table was last read, with that */
	char	   *changed;		/* value of the change columns */
	char	   *seen;			/* xid8; "": xmin cannot be read */
	char	   *tables;			/* those that were read, see PosPgRelation */
	char	   *type;			/* of the change columns; "": there are none */
	char	   *swept;			/* xid8: seen by the last sweep */
	TimestampTz swept_at;		/* by the remote's clock */
	char	   *ahead;			/* value that takes the place of changed; "":
								 * changed itself has to be waited for */
	char	   *ahead_end;		/* xid8: when all older ones have ended; "":
								 * nothing is waited for */
	bool		sweep;			/* this read is a sweep */
	bool		verified;		/* it is time to have a look at the table, of
								 * which the log tells all else */
};

static char *
member(Jsonb *object, const char *name)
{
	JsonbValue	buf;
	JsonbValue *value = getKeyJsonValueFromContainer(&object->root, name,
													 strlen(name), &buf);

	return value == NULL || value->type != jbvString ? "" :
		pnstrdup(value->val.string.val, value->val.string.len);
}

static TimestampTz
time_of(const char *text)
{
	return DatumGetTimestampTz(DirectFunctionCall3(timestamptz_in,
												   CStringGetDatum(text),
												   ObjectIdGetDatum(InvalidOid),
												   Int32GetDatum(-1)));
}

/*
 * Reads the positions of tables that have one which belongs to this source, into
 * the current memory context.
 */
void
pos_pg_positions_read(PosPgSession *session, PosTable **tables, int ntables)
{
	for (int i = 0; i < ntables; i++)
	{
		PosTable   *table = tables[i];
		PosPgPosition *position;
		Jsonb	   *json;

		table->known = NULL;
		if (table->position == NULL || table->source == NULL ||
			session->source == NULL || strcmp(table->source, session->source) != 0)
			continue;
		json = DatumGetJsonbP(DirectFunctionCall1(jsonb_in,
												  CStringGetDatum(table->position)));
		position = palloc0(sizeof(PosPgPosition));
		position->log = member(json, "log");
		position->snapshot = member(json, "snapshot");
		position->changed = member(json, "changed");
		position->seen = member(json, "seen");
		position->tables = member(json, "tables");
		position->type = member(json, "type");
		position->swept = member(json, "swept");
		position->swept_at = time_of(member(json, "swept_at"));
		position->ahead = member(json, "ahead");
		position->ahead_end = member(json, "ahead_end");
		table->known = position;
	}
}

/*
 * Returns the tables that hold rows of a described one and were not read, as a list
 * of numbers for SQL, or NULL.  Who may not read xmin may not read tableoid either.
 */
static char *
new_tables(PosPgRelation *relation, PosPgPosition *position)
{
	StringInfoData list;

	if (!relation->versions || strcmp(relation->tables, position->tables) == 0)
		return NULL;
	initStringInfo(&list);
	for (const char *p = relation->tables; *p != '\0';)
	{
		size_t		len = strcspn(p, " ");

		if (!pos_pg_has_word(position->tables, p, len))
			appendStringInfo(&list, "%s%.*s", list.len > 0 ? ", " : "", (int) len, p);
		p += len + (p[len] == ' ');
	}
	return list.len > 0 ? list.data : NULL;
}

/* The type of a table's change columns, "" if it has none. */
static const char *
type_name(PosPgSession *session, PosTable *table)
{
	return table->nchange == 0 ? "" :
		pos_pg_attribute(pos_pg_relation(session, table->remote),
						 table->change[0])->basename;
}

/*
 * Compares positions with the tables, now that these have been described: a position
 * of another type, or of a future that is lost, is none, and a table that has other
 * parts has changed.
 */
void
pos_pg_positions_compare(PosPgSession *session, PosTable **tables, int ntables)
{
	for (int i = 0; i < ntables; i++)
	{
		PosTable   *table = tables[i];
		PosPgPosition *position = table->known;

		if (position == NULL || pos_pg_describe_changes(session, table) != NULL)
			continue;
		if (strcmp(position->type, type_name(session, table)) != 0 ||
			strtou64(position->seen, NULL, 10) > session->oldest)
			table->known = NULL;
		if (table->known == NULL ||
			new_tables(pos_pg_relation(session, table->remote), position) != NULL)
			table->changed = true;
	}
}

/* The value to compare change columns with, NULL if all rows are to be read. */
const char *
pos_pg_position_value(PosTable *table)
{
	PosPgPosition *position = table->known;

	return position == NULL || position->changed[0] == '\0' ? NULL :
		position->changed;
}

/*
 * The snapshot since which the table's log tells what has changed, NULL if it
 * does not.
 */
const char *
pos_pg_position_snapshot(PosPgSession *session, PosTable *table)
{
	PosPgPosition *position = table->known;

	if (position == NULL || position->log[0] == '\0' ||
		!pos_pg_log_usable(session, table) ||
		strcmp(position->log, pos_pg_relation(session, table->remote)->log) != 0)
		return NULL;
	return position->snapshot;
}

/* The log does not reach back to that. */
void
pos_pg_position_unlogged(PosTable *table)
{
	PosPgPosition *position = table->known;

	position->log = "";
}

/*
 * Whether a table has to be read without asking for the value, now that the
 * remote's clock is known.  It then counts as changed.
 */
bool
pos_pg_position_sweeps(PosPgSession *session, PosTable *table)
{
	PosPgPosition *position = table->known;
	PosPgRelation *relation = pos_pg_relation(session, table->remote);
	TimestampTz due;

	if (position == NULL || relation == NULL || !relation->exists)
		return false;
	if (pos_pg_position_snapshot(session, table) == NULL &&
		(!relation->versions || position->swept[0] == '\0'))
		return false;
	due = TimestampTzPlusMilliseconds(position->swept_at,
									  session->options.sweep);
	if (pos_pg_position_snapshot(session, table) != NULL)
		return position->verified =
			(session->options.sweep > 0 && session->now >= due) ||
			position->swept_at > session->now;
	position->sweep =
		(session->options.sweep > 0 && session->now >= due) ||
	/* the clock was set back */
		(pos_pg_change_type(session, table) == TIMESTAMPTZOID &&
		 time_of(position->changed) > session->now) ||
		position->swept_at > session->now ||
		(position->ahead_end[0] != '\0' && position->ahead[0] == '\0');

	return position->sweep;
}

/*
 * Appends that a row version was made by no transaction before this one.
 *
 * A row that is visible is older than the next transaction, so the age is taken
 * without its sign: a frozen row keeps its number, and after 2^31 transactions its
 * age is negative.
 */
static void
append_since(StringInfo sql, const char *xid)
{
	uint64		n = strtou64(xid, NULL, 10);

	appendStringInfo(sql, "age(xmin)::int8 & 4294967295 <= (SELECT CASE WHEN"
					 " pg_snapshot_xmin(pg_current_snapshot())::text::int8"
					 " - " UINT64_FORMAT " BETWEEN 0 AND " COMPARABLE
					 " THEN age('%u'::xid) ELSE 4294967295 END)", n, (uint32) n);
}

/*
 * Appends what tells the rows of a table that have to be read by its position,
 * which it has.
 */
void
pos_pg_position_append(StringInfo sql, PosPgSession *session, PosTable *table)
{
	PosPgPosition *position = table->known;
	PosPgRelation *relation = pos_pg_relation(session, table->remote);
	char	   *new = new_tables(relation, position);

	if (pos_pg_position_snapshot(session, table) != NULL)
		pos_pg_log_append_rows(sql, session, table,
							   psprintf("%s::pg_snapshot", quote_literal_cstr(position->snapshot)));
	else if (position->sweep)
		append_since(sql, position->swept);
	else
	{
		appendStringInfoChar(sql, '(');
		pos_pg_append_changed(sql, relation, table,
							  quote_literal_cstr(position->changed));
		if (relation->versions && position->seen[0] != '\0')
		{
			appendStringInfoString(sql, " AND ");
			append_since(sql, position->seen);
		}
		appendStringInfoChar(sql, ')');
	}
	if (new != NULL)
		appendStringInfo(sql, " OR tableoid IN (%s)", new);
}

/*
 * The type of a table's change columns, InvalidOid if it has none.
 */
Oid
pos_pg_change_type(PosPgSession *session, PosTable *table)
{
	PosPgRelation *relation = pos_pg_relation(session, table->remote);

	return table->nchange == 0 ? InvalidOid :
		pos_pg_attribute(relation, table->change[0])->type;
}

/* A timestamp in a form that means the same whatever anybody's settings. */
static char *
time_string(TimestampTz time)
{
	struct pg_tm tm;
	fsec_t		fsec;
	char		buf[MAXDATELEN + 1];

	if (timestamp2tm(time, NULL, &tm, &fsec, NULL, NULL) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_DATETIME_VALUE_OUT_OF_RANGE),
				 errmsg("timestamp out of range")));
	tm.tm_isdst = 0;			/* UTC is a time zone, too, and is to be said */
	EncodeDateTime(&tm, fsec, true, 0, NULL, USE_ISO_DATES, buf);

	return pstrdup(buf);
}

/* Why nothing is missed of a table. */
PosExact
pos_pg_position_exact(PosPgSession *session, PosTable *table)
{
	PosPgRelation *relation = pos_pg_relation(session, table->remote);
	Oid			type;

	if (pos_pg_log_usable(session, table))
		return POS_EXACT_LOG;
	if (table->nchange == 0 || pos_pg_position_value(table) == NULL)
		return POS_EXACT_COMPARED;
	if (relation == NULL || pos_pg_describe_changes(session, table) != NULL)
		return POS_EXACT_OVERLAP;
	type = pos_pg_change_type(session, table);
	return type == XID8OID || (type == TIMESTAMPTZOID && session->sees_running) ?
		POS_EXACT_RUNNING : POS_EXACT_OVERLAP;
}

/*
 * Asks for the snapshot's oldest running and next transaction, and for every
 * table with change columns for a value of them, as text, and whether the table
 * has no row at or after it.
 */
char *
pos_pg_positions_query(PosPgSession *session, PosTable **tables, int ntables)
{
	StringInfoData sql;

	initStringInfo(&sql);
	appendStringInfoString(&sql, "SELECT pg_snapshot_xmin(pg_current_snapshot())::text,"
						   " pg_snapshot_xmax(pg_current_snapshot())::text,"
						   " pg_current_snapshot()::text");
	for (int i = 0; i < ntables; i++)
	{
		PosTable   *table = tables[i];
		PosPgRelation *relation = pos_pg_relation(session, table->remote);
		Oid			type = pos_pg_change_type(session, table);
		const char *cap = NULL;

		if (!OidIsValid(type))
			continue;
		appendStringInfoString(&sql, ", ");

		if (type == TIMESTAMPTZOID)
			cap = psprintf("timestamptz '%s'", time_string(session->complete));
		else if (type == XID8OID)
			cap = "pg_snapshot_xmin(pg_current_snapshot())";

		if (cap != NULL)
		{
			appendStringInfo(&sql, "%s::text, NOT EXISTS (SELECT FROM %s WHERE ",
							 cap, relation->sql);
			pos_pg_append_changed(&sql, relation, table, cap);
			appendStringInfoChar(&sql, ')');
		}
		else if (type == TIMESTAMPOID || type == DATEOID)
		{
			appendStringInfoChar(&sql, '(');
			pos_pg_append_greatest(&sql, relation, table,
								   "(now() AT TIME ZONE 'UTC' + " FURTHEST_ZONE ")");
			appendStringInfo(&sql, " - interval '%d ms')::%s::text, false",
							 session->options.overlap,
							 type == DATEOID ? "date" : "timestamp");
		}
		else
		{
			appendStringInfoChar(&sql, '(');
			pos_pg_append_greatest(&sql, relation, table, NULL);
			appendStringInfoString(&sql, ")::text, false");
		}
	}

	return sql.data;
}

/* Whether transaction number a is at least b. */
static bool
reaches(const char *a, const char *b)
{
	return strtou64(a, NULL, 10) >= strtou64(b, NULL, 10);
}

/*
 * Numbers do not tell when they are shown, so the greatest one counts only when
 * every transaction that ran when it was read has ended.  Returns whether
 * anything is waited for in another way than before.
 */
static bool
wait_for_numbers(PosPgPosition *next, PosPgPosition *old, char *greatest,
				 const char *xmin, char *xmax)
{
	next->changed = old == NULL ? greatest : old->changed;
	if (old == NULL || (old->swept[0] == '\0' && old->ahead_end[0] == '\0'))
	{
		next->ahead = "";
		next->ahead_end = xmax;
		return true;
	}
	if (old->ahead_end[0] != '\0' && !reaches(xmin, old->ahead_end))
	{
		next->ahead = old->ahead;
		next->ahead_end = old->ahead_end;
		return false;
	}
	if (old->ahead[0] != '\0')
		next->changed = old->ahead;
	next->ahead = greatest;
	next->ahead_end = xmax;

	/* nothing moves in a table at rest */
	return old->ahead_end[0] == '\0' || strcmp(old->changed, greatest) != 0 ||
		strcmp(old->ahead, greatest) != 0;
}

static void
append_member(StringInfo buf, const char *name, const char *value)
{
	if (value[0] == '\0')
		return;
	appendStringInfo(buf, "%s\"%s\": ", buf->len > 1 ? ", " : "", name);
	escape_json(buf, value);
}

/*
 * Takes the answer to pos_pg_positions_query: fills the tables' next positions, in
 * the current memory context.
 */
void
pos_pg_positions_receive(PosPgSession *session, PosTable **tables, int ntables)
{
	PGresult   *res = session->result;
	char	   *xmin;
	char	   *xmax;
	char	   *snapshot;
	int			column = 3;

	for (int i = 0; i < ntables; i++)
		column += tables[i]->nchange == 0 ? 0 : 2;
	pos_pg_expect_row(session, column);
	xmin = PQgetvalue(res, 0, 0);
	xmax = PQgetvalue(res, 0, 1);
	snapshot = PQgetvalue(res, 0, 2);
	column = 3;
	for (int i = 0; i < ntables; i++)
	{
		PosTable   *table = tables[i];
		PosPgPosition *old = table->known;
		PosPgPosition next = {.ahead = "",.ahead_end = ""};
		PosPgRelation *relation = pos_pg_relation(session, table->remote);
		bool		versions = relation->versions;
		bool		swept;
		Oid			type;
		StringInfoData buf;

		bool		logged = pos_pg_log_usable(session, table);
		bool		was_logged = pos_pg_position_snapshot(session, table) != NULL;

		if (table->nchange == 0 && !logged)
			continue;
		type = pos_pg_change_type(session, table);
		swept = old == NULL || old->sweep || old->verified;
		next.changed = table->nchange == 0 ? NULL : PQgetvalue(res, 0, column);
		/* the log is asked since the snapshot, which has to move */
		table->settled = logged || was_logged || (versions && swept) || old == NULL ||
			strcmp(old->tables, relation->tables) != 0 ||
			(table->nchange > 0 && PQgetvalue(res, 0, column + 1)[0] == 't');
		if (table->nchange == 0)
			next.changed = "";
		else if (PQgetisnull(res, 0, column))
			next.changed = old == NULL ? NULL : old->changed;
		else if (versions && type != TIMESTAMPTZOID && type != XID8OID &&
				 type != TIMESTAMPOID && type != DATEOID &&
				 wait_for_numbers(&next, old, next.changed, xmin, xmax))
			table->settled = true;
		column += table->nchange == 0 ? 0 : 2;
		if (next.changed == NULL && !logged)
			continue;

		initStringInfo(&buf);
		appendStringInfoChar(&buf, '{');
		if (next.changed != NULL)
			append_member(&buf, "changed", next.changed);
		if (logged)
		{
			append_member(&buf, "log", relation->log);
			append_member(&buf, "snapshot", snapshot);
		}
		append_member(&buf, "tables", relation->tables);
		append_member(&buf, "type", type_name(session, table));
		append_member(&buf, "seen", versions ? xmin : "");
		append_member(&buf, "swept", !versions ? "" : swept ? xmin : old->swept);
		append_member(&buf, "swept_at",
					  time_string(swept ? session->now : old->swept_at));
		append_member(&buf, "ahead", next.ahead);
		append_member(&buf, "ahead_end", next.ahead_end);
		appendStringInfoChar(&buf, '}');
		table->next_position = buf.data;
	}
}

/*
 * A row was read of a table.  What has been seen need not be seen again: the next
 * position is worth storing.
 */
void
pos_pg_position_seen(PosPgSession *session, PosTable *table)
{
	if (table->next_position != NULL && !table->settled)
		table->settled = pos_pg_relation(session, table->remote)->versions;
}
