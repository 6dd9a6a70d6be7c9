/*
 * tryton_page.c
 *		Rows of a model, page by page, in the order of their ids.
 *
 * The next page is asked for as soon as it is known where it begins, and made
 * there while the rows of the one before are dealt with here.
 */
#include "postgres.h"

#include "connection_tryton.h"
#include "miscadmin.h"
#include "utils/memutils.h"

/*
 * A server may give less than it is asked for: no sensible one less than this.  A
 * page that is shorter, or shorter than one that it has given, is the last.
 */
#define LEAST_LIMIT 100

/* Rows dealt with until what arrives is taken in */
#define PUMP_ROWS	64

/*
 * Begins to read rows of a table's model, in the current memory context: those
 * that a domain (JSON clauses, each with a comma behind) describes, with fields
 * (JSON names, likewise), so many a page.  whole: that one is missing would be taken
 * for its deletion, so the last page is an empty one.
 */
PosTrytonPages *
pos_tryton_pages(PosTable *table, const char *domain, const char *fields, int size,
				 bool whole)
{
	PosTrytonPages *pages = palloc0(sizeof(PosTrytonPages));

	(void) pos_tryton_is_link(table->remote, &pages->model, &pages->link);
	pages->domain = domain;
	pages->fields = pages->link == NULL ? fields : psprintf("\"%s\",", pages->link);
	pages->size = size;
	pages->whole = whole;
	pages->last = PG_INT64_MIN;
	pages->more = true;
	pages->page_context = AllocSetContextCreate(CurrentMemoryContext,
												"possync page",
												ALLOCSET_DEFAULT_SIZES);
	return pages;
}

/* Sends the call for the next page. */
static void
ask(PosTrytonSession *session, PosTrytonPages *pages)
{
	StringInfoData params;

	initStringInfo(&params);
	appendStringInfo(&params, "[%s", pages->domain);
	if (pages->last != PG_INT64_MIN)
		appendStringInfo(&params, "[\"id\",\">\"," INT64_FORMAT "]", pages->last);
	else if (params.len > 1)
		params.len--;
	appendStringInfo(&params, "],0,%d,[[\"id\",\"ASC\"]],[%s\"id\"],", pages->size,
					 pages->fields);
	pos_tryton_send(session, psprintf("model.%s.search_read", pages->model),
					params.data, false);
	pages->asked = true;
}

/* Returns a row's id; errors if it has none. */
static int64
id_of(PosTrytonSession *session, JsonbValue *row)
{
	JsonbValue	value;
	int64		id;

	if (row == NULL || row->type != jbvBinary ||
		!pos_tryton_integer(pos_tryton_get(row->val.binary.data, "id", &value), &id))
		pos_tryton_odd(session);
	return id;
}

/*
 * Receives a page and asks for the next.  No page may have rows of one before:
 * whoever sends them would go on for ever.
 */
static void
turn(PosTrytonSession *session, PosTrytonPages *pages)
{
	MemoryContext old;
	int64		last = pages->last;

	if (!pages->asked)
		ask(session, pages);
	MemoryContextReset(pages->page_context);
	old = MemoryContextSwitchTo(pages->page_context);
	pages->asked = false;
	pages->rows = &pos_tryton_receive(session)->root;
	if (!JsonContainerIsArray(pages->rows) || JsonContainerIsScalar(pages->rows) ||
		JsonContainerSize(pages->rows) > pages->size)
		pos_tryton_odd(session);
	pages->nrows = JsonContainerSize(pages->rows);
	pages->row = 0;
	for (int i = 0; i < pages->nrows; i++)
	{
		int64		id = id_of(session, getIthJsonbValueFromContainer(pages->rows, i));

		if (id <= last && last != PG_INT64_MIN)
			pos_tryton_odd(session);
		pages->last = Max(pages->last, id);
	}
	pages->more = pages->nrows > 0 &&
		(pages->whole || pages->nrows == pages->size ||
		 pages->nrows >= Max(session->most_rows, LEAST_LIMIT));
	session->most_rows = Max(session->most_rows, pages->nrows);
	if (pages->more)
		ask(session, pages);
	MemoryContextSwitchTo(old);
}

/* Takes the next row as the current one.  Returns false after the last. */
static bool
next_row(PosTrytonSession *session, PosTrytonPages *pages)
{
	while (pages->row == pages->nrows)
	{
		if (!pages->more)
			return false;
		turn(session, pages);
	}
	if (pages->row % PUMP_ROWS == 0)
		pos_http_pump(session->http);
	pages->current = getIthJsonbValueFromContainer(pages->rows, pages->row++)->val.binary.data;
	return true;
}

/*
 * Returns the next row, which lives until the one after the next is asked for.  Of
 * a link table there is one for every record that is linked, whose id comes in
 * *link.  Returns false after the last.
 */
bool
pos_tryton_next(PosTrytonSession *session, PosTrytonPages *pages,
				JsonbContainer **row, int64 *link)
{
	MemoryContext old;
	bool		any = true;

	CHECK_FOR_INTERRUPTS();
	*link = 0;
	old = MemoryContextSwitchTo(pages->page_context);
	if (pages->link == NULL)
		any = next_row(session, pages);
	else
	{
		while (any && pages->links_at == pages->nlinks)
		{
			JsonbValue	value;
			JsonbValue *list;

			any = next_row(session, pages);
			if (!any)
				break;
			list = pos_tryton_get(pages->current, pages->link, &value);
			if (list == NULL || list->type != jbvBinary ||
				!JsonContainerIsArray(list->val.binary.data))
				pos_tryton_odd(session);
			pages->links = list->val.binary.data;
			pages->nlinks = JsonContainerSize(pages->links);
			pages->links_at = 0;
		}
		if (any && !pos_tryton_integer(getIthJsonbValueFromContainer(pages->links,
																	 pages->links_at++), link))
			pos_tryton_odd(session);
	}
	*row = pages->current;
	MemoryContextSwitchTo(old);
	return any;
}
