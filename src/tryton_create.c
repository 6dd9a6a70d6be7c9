/*
 * tryton_create.c
 *		New rows on their way to a Tryton server.
 *
 * Rows that belong to one that is new, too, go with it in the same call, nested, so
 * that they arrive together or not at all: those that refer to it by the many2one
 * field of which it has the one2many.  What else a new row refers to is made in an
 * earlier call.
 */
#include "postgres.h"

#include "access/xact.h"
#include "connection_tryton.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/hsearch.h"
#include "utils/json.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

/* A row to be inserted */
typedef struct NewRow NewRow;

struct NewRow
{
	PosStep    *step;
	int			row;
	char	   *model;
	JsonbContainer *values;		/* names and texts */
	int64		key;			/* that it was given; < 0: provisional */
	int64		id;				/* 0: not there yet */
	NewRow	   *parent;			/* that it goes with */
	const char *by;				/* our field that refers to that */
	const char *as;				/* its field that lists us */
	List	   *children;		/* of NewRow */
	List	   *links;			/* of PosTrytonLink: records that it is linked
								 * with */
};

/* Provisional keys are the same for no two rows, whatever their models. */
typedef struct NewRowEntry
{
	int64		key;			/* must be first */
	NewRow	   *node;
} NewRowEntry;

/* Returns how old a provisional key is, in milliseconds. */
int64
pos_tryton_key_age(PosTrytonSession *session, int64 key)
{
	return (GetCurrentTimestamp() + session->offset) / 1000 - (-key >> POS_TRYTON_KEY_BITS);
}

/* Returns how long we wait for a call, or believe that one takes, in milliseconds. */
int
pos_tryton_longest_call(PosTrytonSession *session)
{
	return session->options.http.call_timeout > 0 ? session->options.http.call_timeout :
		Max(session->options.overlap, 1000);
}

/* Returns the row of this write that a provisional key was given to, or NULL. */
static NewRow *
find_node(PosTrytonWrite *w, int64 key)
{
	NewRowEntry *entry = key >= 0 ? NULL : hash_search(w->rows, &key, HASH_FIND, NULL);

	return entry == NULL ? NULL : entry->node;
}

/*
 * Returns the id that a key of a model stands for; 0 if that is not known yet.  A row
 * that is no more at the remote may have been made anew by this write.
 */
int64
pos_tryton_id(PosTrytonWrite *w, const char *model, int64 key)
{
	NewRow	   *node = find_node(w, key);
	ListCell   *lc;

	foreach(lc, w->renewed)
	{
		NewRow	   *row = lfirst(lc);

		if (row->key == key && strcmp(row->model, model) == 0)
			return row->id;
	}
	if (key >= 0)
		return key;
	if (node == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_TRIGGERED_ACTION_EXCEPTION),
				 errmsg("a row refers to one that is not at server \"%s\"",
						w->session->options.http.server)));
	return node->id;
}

/* Begins with a write. */
void
pos_tryton_create_begin(PosTrytonWrite *w)
{
	HASHCTL		ctl = {0};

	ctl.keysize = sizeof(int64);
	ctl.entrysize = sizeof(NewRowEntry);
	ctl.hcxt = CurrentMemoryContext;
	w->rows = hash_create("possync new rows", 256, &ctl,
						  HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
}

/* Takes the rows of a step that inserts. */
void
pos_tryton_create_take(PosTrytonWrite *w, PosStep *step)
{
	char	   *model;
	char	   *field;
	bool		links = pos_tryton_is_link(step->table->remote, &model, &field);
	JsonbContainer *rows = pos_tryton_rows(step);

	step->affected = 0;
	step->nanswers = 0;
	step->row = palloc(Max(step->nrows, 1) * sizeof(int));
	step->given = palloc(Max(step->nrows, 1) * step->table->nkey * sizeof(char *));
	step->answers = palloc(Max(step->nrows, 1) * step->table->nkey * sizeof(char *));
	for (int i = 0; i < step->nrows; i++)
		if (links)
		{
			PosTrytonLink *link = palloc0(sizeof(PosTrytonLink));

			link->step = step;
			link->row = i;
			link->field = field;
			link->origin = pos_tryton_key(pos_tryton_row(rows, i), "origin");
			link->target = pos_tryton_key(pos_tryton_row(rows, i), "target");
			w->links = lappend(w->links, link);
		}
		else
		{
			NewRow	   *node = palloc0(sizeof(NewRow));

			node->step = step;
			node->row = i;
			node->model = model;
			node->values = pos_tryton_row(rows, i);
			node->key = pos_tryton_key(node->values, "id");
			w->all = lappend(w->all, node);
			if (node->key < 0)
			{
				NewRowEntry *entry = hash_search(w->rows, &node->key, HASH_ENTER, NULL);

				entry->node = node;
			}
		}
}

/* Returns what a column refers to, if it is a many2one field; else 0. */
static int64
key_of_reference(PosTrytonWrite *w, NewRow *node, const char *column)
{
	return strcmp(pos_tryton_column(w->session, node->model, column)->type, "many2one") == 0 ?
		pos_tryton_key(node->values, column) : 0;
}

/* Whether a row goes with another, or with one that does. */
static bool
goes_with(NewRow *node, NewRow *other)
{
	for (; node != NULL; node = node->parent)
		if (node == other)
			return true;
	return false;
}

/*
 * Lets a row go with one that it refers to and that is new, too, if there is one
 * that lists it.
 */
static void
nest(PosTrytonWrite *w, NewRow *node)
{
	for (int i = 0; i < node->step->ncolumns && node->parent == NULL; i++)
	{
		const char *column = node->step->columns[i];
		NewRow	   *parent;
		const char *as;

		if (strcmp(column, "id") == 0)
			continue;
		parent = find_node(w, key_of_reference(w, node, column));
		if (parent == NULL || goes_with(parent, node))
			continue;
		as = pos_tryton_inverse(w->session, parent->model, node->model, column);
		if (as == NULL)
			continue;
		node->parent = parent;
		node->by = column;
		node->as = as;
		parent->children = lappend(parent->children, node);
	}
}

/* Whether all that a row refers to is there, its parent aside; and for its children. */
static bool
is_ready(PosTrytonWrite *w, NewRow *node)
{
	ListCell   *lc;

	check_stack_depth();
	for (int i = 0; i < node->step->ncolumns; i++)
	{
		const char *column = node->step->columns[i];

		if (strcmp(column, "id") != 0 &&
			(node->by == NULL || strcmp(column, node->by) != 0) &&
			key_of_reference(w, node, column) < 0 &&
			pos_tryton_id(w, node->model, key_of_reference(w, node, column)) == 0)
			return false;
	}
	foreach(lc, node->links)
		if (pos_tryton_id(w, "", ((PosTrytonLink *) lfirst(lc))->target) == 0)
		return false;
	foreach(lc, node->children)
		if (!is_ready(w, lfirst(lc)))
		return false;
	return true;
}

static void append_node(PosTrytonWrite *w, StringInfo buf, NewRow *node);

/* Appends the commands that make a row's children, and link it. */
static void
append_children(PosTrytonWrite *w, StringInfo buf, NewRow *node)
{
	List	   *done = NIL;
	ListCell   *lc;
	ListCell   *other;

	foreach(lc, node->children)
	{
		const char *as = ((NewRow *) lfirst(lc))->as;
		bool		first = true;

		if (list_member_ptr(done, as))
			continue;
		done = lappend(done, unconstify(char *, as));
		appendStringInfo(buf, "%s\"%s\":[[\"create\",[", buf->data[buf->len - 1] == '{' ? "" : ",", as);
		foreach(other, node->children)
			if (((NewRow *) lfirst(other))->as == as)
		{
			appendStringInfoString(buf, first ? "" : ",");
			append_node(w, buf, lfirst(other));
			first = false;
		}
		appendStringInfoString(buf, "]]]");
	}
	foreach(lc, node->links)
	{
		PosTrytonLink *link = lfirst(lc);
		bool		first = true;

		if (list_member_ptr(done, link->field))
			continue;
		done = lappend(done, link->field);
		appendStringInfo(buf, "%s\"%s\":[[\"add\",[", buf->data[buf->len - 1] == '{' ? "" : ",",
						 link->field);
		foreach(other, node->links)
		{
			PosTrytonLink *same = lfirst(other);

			if (same->field != link->field)
				continue;
			appendStringInfo(buf, "%s" INT64_FORMAT, first ? "" : ",", pos_tryton_id(w, "", same->target));
			first = false;
		}
		appendStringInfoString(buf, "]]]");
	}
}

/* Whether rows are recognised by a column. */
static bool
is_match(PosTable *table, const char *column)
{
	for (int i = 0; i < table->nmatch; i++)
		if (strcmp(table->match[i], column) == 0)
			return true;
	return false;
}

/* Appends a row as JSON, with all that goes with it. */
static void
append_node(PosTrytonWrite *w, StringInfo buf, NewRow *node)
{
	appendStringInfoChar(buf, '{');
	for (int i = 0; i < node->step->ncolumns; i++)
	{
		const char *column = node->step->columns[i];
		char	   *text = pos_tryton_text(node->values, column);

		/*
		 * what is null has the model's default, unless that would hide the
		 * row
		 */
		if ((text !=NULL || is_match(node->step->table, column)) &&
			strcmp(column, "id") != 0 &&
			(node->by == NULL || strcmp(column, node->by) != 0))
			pos_tryton_append_value(w, buf, node->model, column, text);
	}
	append_children(w, buf, node);
	appendStringInfoChar(buf, '}');
}

/* Counts a row and all that goes with it. */
static int
count_node(NewRow *node)
{
	int			n = 1;
	ListCell   *lc;

	foreach(lc, node->children)
		n += count_node(lfirst(lc));
	return n;
}

/* Takes note of the id that a row has got. */
static void
set_id(PosTrytonWrite *w, NewRow *node, int64 id)
{
	PosStep    *step = node->step;

	node->id = id;
	step->affected++;
	if (node->key == id)
		return;
	if (node->key > 0)
		w->renewed = lappend(w->renewed, node);
	step->row[step->nanswers] = node->row;
	step->given[step->nanswers] = psprintf(INT64_FORMAT, node->key);
	step->answers[step->nanswers++] = psprintf(INT64_FORMAT, id);
}

static int
compare_ids(const ListCell *a, const ListCell *b)
{
	int64		x = *(int64 *) lfirst(a);
	int64		y = *(int64 *) lfirst(b);

	return x < y ? -1 : x > y;
}

/*
 * Gives a row's children of one field the ids of those that are listed there: ids
 * are given in the order in which records are made.
 */
static void
take_children(PosTrytonWrite *w, NewRow *node, const char *as, JsonbValue *list)
{
	List	   *ids = NIL;
	int			next = 0;
	ListCell   *lc;

	if (list == NULL || list->type != jbvBinary || !JsonContainerIsArray(list->val.binary.data))
		pos_tryton_odd(w->session);
	for (int i = 0; i < JsonContainerSize(list->val.binary.data); i++)
	{
		int64	   *id = palloc(sizeof(int64));

		if (!pos_tryton_integer(getIthJsonbValueFromContainer(list->val.binary.data, i), id))
			pos_tryton_odd(w->session);
		ids = lappend(ids, id);
	}
	list_sort(ids, compare_ids);
	foreach(lc, node->children)
		next += ((NewRow *) lfirst(lc))->as == as;
	if (next != list_length(ids))
		ereport(ERROR,
				(errcode(ERRCODE_INTEGRITY_CONSTRAINT_VIOLATION),
				 errmsg("server \"%s\" has made %d records of field \"%s\" where %d were sent",
						w->session->options.http.server, list_length(ids), as, next),
				 errhint("They are looked for by their match fields.")));
	next = 0;
	foreach(lc, node->children)
		if (((NewRow *) lfirst(lc))->as == as)
		set_id(w, lfirst(lc), *(int64 *) list_nth(ids, next++));
}

/* Finds out the ids of what went with rows of one model. */
static void
read_children(PosTrytonWrite *w, List *nodes)
{
	StringInfoData params;
	StringInfoData fields;
	List	   *names = NIL;
	List	   *children = NIL;
	Jsonb	   *rows;
	NewRow	   *first = NULL;
	ListCell   *lc;
	ListCell   *name;

	initStringInfo(&params);
	initStringInfo(&fields);
	appendStringInfoChar(&params, '[');
	foreach(lc, nodes)
	{
		NewRow	   *node = lfirst(lc);

		if (node->children == NIL)
			continue;
		appendStringInfo(&params, "%s" INT64_FORMAT, first == NULL ? "" : ",", node->id);
		first = first == NULL ? node : first;
		foreach(name, node->children)
		{
			const char *as = ((NewRow *) lfirst(name))->as;

			if (list_member_ptr(names, as))
				continue;
			names = lappend(names, unconstify(char *, as));
			appendStringInfo(&fields, "%s\"%s\"", fields.len > 0 ? "," : "", as);
		}
		children = list_concat(children, node->children);
	}
	if (first == NULL)
		return;
	appendStringInfo(&params, "],[%s],", fields.data);
	rows = pos_tryton_call(w->session, psprintf("model.%s.read", first->model), params.data);
	if (!JB_ROOT_IS_ARRAY(rows))
		pos_tryton_odd(w->session);
	for (int i = 0; i < JB_ROOT_COUNT(rows); i++)
	{
		JsonbContainer *row = pos_tryton_row(&rows->root, i);
		JsonbValue	value;
		int64		id;

		if (!pos_tryton_integer(pos_tryton_get(row, "id", &value), &id))
			pos_tryton_odd(w->session);
		foreach(lc, nodes)
		{
			NewRow	   *node = lfirst(lc);

			if (node->id != id || node->children == NIL)
				continue;
			foreach(name, names)
			{
				bool		any = false;
				ListCell   *child;

				foreach(child, node->children)
					any = any || ((NewRow *) lfirst(child))->as == lfirst(name);
				if (any)
					take_children(w, node, lfirst(name),
								  pos_tryton_get(row, lfirst(name), &value));
			}
		}
	}

	/* those of other models in calls of their own */
	while (children != NIL)
	{
		List	   *same = NIL;
		List	   *others = NIL;

		foreach(lc, children)
			if (strcmp(((NewRow *) lfirst(lc))->model, ((NewRow *) linitial(children))->model) == 0)
			same = lappend(same, lfirst(lc));
		else
			others = lappend(others, lfirst(lc));
		read_children(w, same);
		children = others;
	}
}

/* Makes the records of some rows in one call. */
static void
create(PosTrytonWrite *w, List *nodes)
{
	NewRow	   *first = linitial(nodes);
	StringInfoData params;
	Jsonb	   *ids;
	ListCell   *lc;

	initStringInfo(&params);
	appendStringInfoChar(&params, '[');
	foreach(lc, nodes)
	{
		if (foreach_current_index(lc) > 0)
			appendStringInfoChar(&params, ',');
		append_node(w, &params, lfirst(lc));
		if (((NewRow *) lfirst(lc))->key < 0 &&
			pos_tryton_key_age(w->session, ((NewRow *) lfirst(lc))->key) >
			pos_tryton_longest_call(w->session))
			ereport(ERROR,
					(errcode(ERRCODE_CONNECTION_FAILURE),
					 errmsg("sending rows to server \"%s\" takes too long",
							w->session->options.http.server),
					 errhint("Fewer rows in one call take less: option \"batch_size\" of the server.")));
	}
	appendStringInfoString(&params, "],");
	ids = pos_tryton_change(w, first->model, "create", params.data);
	if (!JB_ROOT_IS_ARRAY(ids) || JB_ROOT_COUNT(ids) != list_length(nodes))
		pos_tryton_odd(w->session);
	foreach(lc, nodes)
	{
		int64		id;

		if (!pos_tryton_integer(getIthJsonbValueFromContainer(&ids->root,
															  foreach_current_index(lc)), &id))
			pos_tryton_odd(w->session);
		set_id(w, lfirst(lc), id);
	}
	read_children(w, nodes);
}

/* Makes the records of rows that can be; returns whether there were any to be made. */
static bool
create_ready(PosTrytonWrite *w, bool *any)
{
	List	   *nodes = NIL;
	int			n = 0;
	bool		left = false;
	ListCell   *lc;

	*any = false;
	foreach(lc, w->all)
	{
		NewRow	   *node = lfirst(lc);

		left = left || node->id == 0;
		if (node->id != 0 || node->parent != NULL)
			continue;
		if (nodes != NIL && (((NewRow *) linitial(nodes))->step != node->step ||
							 n >= w->session->options.batch_size))
		{
			create(w, nodes);
			nodes = NIL;
			n = 0;
		}
		if (!is_ready(w, node))
			continue;
		nodes = lappend(nodes, node);
		n += count_node(node);
		*any = true;
	}
	if (nodes != NIL)
		create(w, nodes);
	return left;
}

/*
 * Lets rows that keep those waiting with which they were to go, go by themselves:
 * they refer to these twice, or to others that go with them.  Returns whether there
 * are any.
 */
static bool
part(PosTrytonWrite *w)
{
	bool		any = false;
	ListCell   *lc;

	foreach(lc, w->all)
	{
		NewRow	   *node = lfirst(lc);

		if (node->id != 0 || node->parent == NULL || is_ready(w, node))
			continue;
		node->parent->children = list_delete_ptr(node->parent->children, node);
		node->parent = NULL;
		node->by = node->as = NULL;
		any = true;
	}
	return any;
}

/* Makes the records of all rows to be inserted, parents first. */
static void
create_all(PosTrytonWrite *w)
{
	bool		any;

	while (create_ready(w, &any))
		if (!any && !part(w))
			ereport(ERROR,
					(errcode(ERRCODE_TRIGGERED_ACTION_EXCEPTION),
					 errmsg("rows that refer to each other cannot be created at server \"%s\"",
							w->session->options.http.server),
					 errhint("Let one of them refer to the other only after both are there.")));
}

/* Lets rows that have a key of the remote's, and are still there, be as they are. */
static void
find_present(PosTrytonWrite *w)
{
	const char *model = NULL;
	StringInfoData params;
	ListCell   *lc;

	foreach(lc, w->all)
	{
		NewRow	   *node = lfirst(lc);
		ListCell   *other;
		Jsonb	   *ids;
		int			n = 0;

		if (node->key < 0 || node->id != 0 || (model != NULL && strcmp(model, node->model) == 0))
			continue;
		model = node->model;
		initStringInfo(&params);
		appendStringInfoString(&params, "[[\"id\",\"in\",[");
		foreach(other, w->all)
			if (((NewRow *) lfirst(other))->key > 0 &&
				strcmp(((NewRow *) lfirst(other))->model, model) == 0)
			appendStringInfo(&params, "%s" INT64_FORMAT, n++ > 0 ? "," : "",
							 ((NewRow *) lfirst(other))->key);
		appendStringInfoString(&params, "]]],");
		ids = pos_tryton_call(w->session, psprintf("model.%s.search", model), params.data);
		for (int i = 0; JB_ROOT_IS_ARRAY(ids) && i < JB_ROOT_COUNT(ids); i++)
		{
			int64		id;

			if (!pos_tryton_integer(getIthJsonbValueFromContainer(&ids->root, i), &id))
				pos_tryton_odd(w->session);
			foreach(other, w->all)
				if (((NewRow *) lfirst(other))->key == id &&
					strcmp(((NewRow *) lfirst(other))->model, model) == 0)
				((NewRow *) lfirst(other))->id = id;
		}
	}
}

/*
 * Sees to rows of link tables: those of new records have gone with them.
 */
static void
link_all(PosTrytonWrite *w)
{
	List	   *left = NIL;
	ListCell   *lc;

	foreach(lc, w->links)
	{
		PosTrytonLink *link = lfirst(lc);
		PosStep    *step = link->step;
		int			n = step->nanswers;
		char	   *model;
		char	   *field;
		PosTrytonLink *next = lnext(w->links, lc) == NULL ? NULL : lfirst(lnext(w->links, lc));

		step->affected++;
		if (link->origin < 0 || link->target < 0)
		{
			step->row[n] = link->row;
			for (int i = 0; i < 2; i++)
			{
				bool		origin = strcmp(step->table->columns[i].remote, "origin") == 0;
				int64		given = origin ? link->origin : link->target;

				step->given[2 * n + i] = psprintf(INT64_FORMAT, given);
				step->answers[2 * n + i] = psprintf(INT64_FORMAT, pos_tryton_id(w, "", given));
			}
			step->nanswers++;
		}
		if (find_node(w, link->origin) == NULL)
			left = lappend(left, link);
		if (left == NIL || (next != NULL && next->step == step))
			continue;
		(void) pos_tryton_is_link(step->table->remote, &model, &field);
		pos_tryton_change_links(w, model, left, "add");
		left = NIL;
	}
}

/* Carries out all that inserts. */
void
pos_tryton_create(PosTrytonWrite *w)
{
	ListCell   *lc;

	if (w->all == NIL && w->links == NIL)
		return;
	find_present(w);
	foreach(lc, w->all)
		if (((NewRow *) lfirst(lc))->id == 0)
		nest(w, lfirst(lc));
	foreach(lc, w->links)
	{
		PosTrytonLink *link = lfirst(lc);
		NewRow	   *origin = find_node(w, link->origin);

		if (origin != NULL)
			origin->links = lappend(origin->links, link);
	}
	create_all(w);
	link_all(w);
}
