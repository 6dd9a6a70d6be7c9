/*
 * tryton_write.c
 *		Rows on their way to a Tryton server.
 *
 * There is no transaction over several calls, a call that makes records tells their
 * ids only when it has, and nothing names a call that was made before.  So keys
 * that are asked for ahead are provisional: negative numbers that tell when they
 * were made.  Whatever happens to a call, the rows it was for are looked for by
 * their match fields before they are sent again, and not sent again before the
 * server cannot be at work on them any longer.
 */
#include "postgres.h"

#include "access/xact.h"
#include "connection_tryton.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/json.h"
#include "utils/timestamp.h"

/* Records that a method is called for at once */
#define CALL_ROWS		50

/* Makes provisional keys, by the server's clock as far as that is known. */
static void
make_keys(PosTrytonSession *session, PosStep *step)
{
	static int64 last = 0;
	int64		now = ((GetCurrentTimestamp() + session->offset) / 1000) << POS_TRYTON_KEY_BITS;

	step->nanswers = step->nrows;
	step->answers = palloc(Max(step->nrows, 1) * sizeof(char *));
	for (int i = 0; i < step->nrows; i++)
	{
		last = Min(last - 1, -now);
		step->answers[i] = psprintf(INT64_FORMAT, last);
	}
}

/* See connection.h: settled */
bool
pos_tryton_settled(PosConnection *connection, const char *key)
{
	PosTrytonSession *session = (PosTrytonSession *) connection;
	PosTrytonOptions *options = &session->options;
	int64		age = pos_tryton_key_age(session, strtoll(key, NULL, 10));

	/*
	 * It was sent when it was as old as create allows, after a login perhaps;
	 * a clock that was set back says as much as one that was set forward.
	 */
	return llabs(age) >= options->overlap + 2 * ((int64) pos_tryton_longest_call(session) +
												 options->http.connect_timeout);
}

/* Returns a member of a row that is a remote key. */
int64
pos_tryton_key(JsonbContainer *row, const char *name)
{
	char	   *text = pos_tryton_text(row, name);

	return text == NULL ? 0 : DatumGetInt64(DirectFunctionCall1(int8in, CStringGetDatum(text)));
}

/* Returns a step's rows. */
JsonbContainer *
pos_tryton_rows(PosStep *step)
{
	return &DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum(step->rows)))->root;
}

JsonbContainer *
pos_tryton_row(JsonbContainer *rows, int i)
{
	JsonbValue *row = getIthJsonbValueFromContainer(rows, i);

	/* an answer may have anything there */
	return row != NULL && row->type == jbvBinary ? row->val.binary.data : NULL;
}

/* Appends a field and its value as JSON; text NULL: null. */
void
pos_tryton_append_value(PosTrytonWrite *w, StringInfo buf, const char *model, const char *column,
						const char *text)
{
	PosTrytonField *field = pos_tryton_column(w->session, model, column);

	if (text !=NULL && strcmp(field->type, "many2one") == 0)
		text = psprintf(INT64_FORMAT, pos_tryton_id(w, field->relation, strtoll(text, NULL, 10)));

	if (buf->data[buf->len - 1] != '{')
		appendStringInfoChar(buf, ',');
	escape_json(buf, column);
	appendStringInfoChar(buf, ':');
	pos_tryton_append_json(buf, field, text);
}

/*
 * Calls a method that changes something.  What is known about it if that fails,
 * tryton_rpc.c tells.
 */
Jsonb *
pos_tryton_change(PosTrytonWrite *w, const char *model, const char *method, const char *params)
{
	Jsonb	   *result;

	pos_tryton_send(w->session, psprintf("model.%s.%s", model, method), params, true);
	result = pos_tryton_receive(w->session);
	*w->session->pending = false;
	return result;
}

/* Links records, or parts them, that are there: one command for each. */
void
pos_tryton_change_links(PosTrytonWrite *w, const char *model, List *links, const char *command)
{
	StringInfoData params;
	int			n = 0;
	ListCell   *lc;

	initStringInfo(&params);
	foreach(lc, links)
	{
		PosTrytonLink *link = lfirst(lc);

		appendStringInfo(&params, "[" INT64_FORMAT "],{\"%s\":[[\"%s\",[" INT64_FORMAT "]]]},",
						 pos_tryton_id(w, "", link->origin), link->field, command, pos_tryton_id(w, "", link->target));
		if (++n < w->session->options.batch_size && lnext(links, lc) != NULL)
			continue;
		(void) pos_tryton_change(w, model, "write", params.data);
		resetStringInfo(&params);
		n = 0;
	}
}

/* Carries out a step that updates. */
static void
update(PosTrytonWrite *w, PosStep *step)
{
	char	   *model;
	char	   *field;
	JsonbContainer *rows = pos_tryton_rows(step);
	StringInfoData params;
	int			n = 0;

	if (pos_tryton_is_link(step->table->remote, &model, &field))
		return;
	initStringInfo(&params);
	for (int i = 0; i < step->nrows; i++)
	{
		JsonbContainer *row = pos_tryton_row(rows, i);

		appendStringInfo(&params, "[" INT64_FORMAT "],{", pos_tryton_id(w, model, pos_tryton_key(row, "id")));
		for (int j = 0; j < step->ncolumns; j++)
			if (strcmp(step->columns[j], "id") != 0)
				pos_tryton_append_value(w, &params, model, step->columns[j],
										pos_tryton_text(row, step->columns[j]));
		appendStringInfoString(&params, "},");
		if (++n < w->session->options.batch_size && i + 1 < step->nrows)
			continue;
		(void) pos_tryton_change(w, model, "write", params.data);
		step->affected += n;
		resetStringInfo(&params);
		n = 0;
	}
}

/* Carries out a step that deletes; what is not there any more is deleted. */
static void
delete(PosTrytonWrite *w, PosStep *step)
{
	char	   *model;
	char	   *field;
	bool		links = pos_tryton_is_link(step->table->remote, &model, &field);
	JsonbContainer *rows = pos_tryton_rows(step);
	StringInfoData params;
	List	   *parted = NIL;
	int			n = 0;

	initStringInfo(&params);
	for (int i = 0; i < step->nrows; i++)
	{
		JsonbContainer *row = pos_tryton_row(rows, i);
		PosTrytonLink *link = palloc0(sizeof(PosTrytonLink));

		if (links)
		{
			link->field = field;
			link->origin = pos_tryton_key(row, "origin");
			link->target = pos_tryton_key(row, "target");
			parted = lappend(parted, link);
		}
		else
			appendStringInfo(&params, "%s" INT64_FORMAT, n++ > 0 ? "," : "[",
							 pos_tryton_id(w, model, pos_tryton_key(row, "id")));
	}
	step->affected = step->nrows;
	if (parted != NIL)
		pos_tryton_change_links(w, model, parted, "remove");
	if (n == 0)
		return;
	appendStringInfoString(&params, "],");
	(void) pos_tryton_change(w, model, "delete", params.data);
}

/* Whether a state is one of those in a list, "confirmed|done". */
static bool
is_one_of(const char *state, const char *states)
{
	for (;; states++)
	{
		Size		len = strcspn(states, "|");

		if (strlen(state) == len && memcmp(state, states, len) == 0)
			return true;
		states += len;
		if (*states == '\0')
			return false;
	}
}

/*
 * Errors if records are not in one of some states: a method that is called in the
 * wrong one does nothing, and says nothing.
 */
static void
verify(PosTrytonWrite *w, const char *model, const char *ids, const char *method,
	   const char *states)
{
	Jsonb	   *rows = pos_tryton_call(w->session, psprintf("model.%s.read", model),
									   psprintf("[%s],[\"state\"],", ids));

	if (!JB_ROOT_IS_ARRAY(rows))
		pos_tryton_odd(w->session);
	for (int i = 0; i < JB_ROOT_COUNT(rows); i++)
	{
		char	   *state = pos_tryton_text(pos_tryton_row(&rows->root, i), "state");

		if (state == NULL || !is_one_of(state, states))
			ereport(ERROR,
					(errcode(ERRCODE_TRIGGERED_ACTION_EXCEPTION),
					 errmsg("a record of %s is in state \"%s\" after \"%s\"", model,
							state == NULL ? "" : state, method),
					 errdetail("Expected is %s.", states)));
	}
}

/* Calls a step's methods for some records. */
static void
call_for(PosTrytonWrite *w, PosStep *step, const char *model, const char *ids)
{
	for (int i = 0; i < step->ncolumns; i++)
	{
		char	   *method = pstrdup(step->columns[i]);
		char	   *states = strchr(method, '=');

		if (states != NULL)
			*states++ = '\0';
		(void) pos_tryton_change(w, model, method, psprintf("[%s],", ids));
		if (states != NULL)
			verify(w, model, ids, method, states);
	}
}

/* Carries out a step that calls methods, which may take their time. */
static void
call_methods(PosTrytonWrite *w, PosStep *step)
{
	char	   *model;
	char	   *field;
	JsonbContainer *rows = pos_tryton_rows(step);
	StringInfoData ids;

	if (pos_tryton_is_link(step->table->remote, &model, &field))
		return;
	initStringInfo(&ids);
	for (int i = 0; i < step->nrows; i++)
	{
		appendStringInfo(&ids, "%s" INT64_FORMAT, ids.len > 0 ? "," : "",
						 pos_tryton_id(w, model, pos_tryton_key(pos_tryton_row(rows, i), "id")));
		if ((i + 1) % CALL_ROWS != 0 && i + 1 < step->nrows)
			continue;
		call_for(w, step, model, ids.data);
		resetStringInfo(&ids);
	}
}

/* See connection.h: send */
void
pos_tryton_write_send(PosConnection *connection, PosStep **steps, int nsteps,
					  bool *pending)
{
	PosTrytonSession *session = (PosTrytonSession *) connection;

	session->steps = steps;
	session->nsteps = nsteps;
	session->pending = pending;
	*pending = false;
	session->received_before = pos_http_received(session->http);
}

/* See connection.h: pump */
void
pos_tryton_write_pump(PosConnection *connection)
{
	/* all of it happens in receive */
}

/*
 * See connection.h: receive.  Inserts are taken together, as one may go with
 * another; they come before updates and deletes, unless these were asked for first.
 */
void
pos_tryton_write_receive(PosConnection *connection)
{
	PosTrytonSession *session = (PosTrytonSession *) connection;
	PosTrytonWrite w = {.session = session};

	pos_tryton_create_begin(&w);
	pos_tryton_enter(session);
	connection->level = GetCurrentTransactionNestLevel();
	for (int i = 0; i < session->nsteps; i++)
	{
		PosStep    *step = session->steps[i];

		if (step->kind == POS_STEP_KEYS)
		{
			make_keys(session, step);
			continue;
		}
		pos_tryton_open(session);
		if (step->kind == POS_STEP_INSERT)
			pos_tryton_create_take(&w, step);
		if (step->kind != POS_STEP_INSERT || i + 1 == session->nsteps ||
			session->steps[i + 1]->kind != POS_STEP_INSERT)
		{
			pos_tryton_create(&w);
			w.all = w.links = NIL;
		}
		switch (step->kind)
		{
			case POS_STEP_MATCH:
				pos_tryton_match(session, step);
				break;
			case POS_STEP_EXPECT:
				pos_tryton_expect(session, step);
				break;
			case POS_STEP_UPDATE:
				update(&w, step);
				break;
			case POS_STEP_CALL:
				call_methods(&w, step);
				break;
			case POS_STEP_DELETE:
				delete(&w, step);
				break;
			default:
				break;
		}
	}
	session->steps = NULL;
	session->pending = NULL;
	pos_tryton_leave(session);
}

/* See connection.h: abandon */
void
pos_tryton_write_abandon(PosConnection *connection)
{
	PosTrytonSession *session = (PosTrytonSession *) connection;

	session->steps = NULL;
	session->pending = NULL;
	pos_http_cancel(session->http);
}
