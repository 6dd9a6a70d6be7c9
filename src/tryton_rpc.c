/*
 * tryton_rpc.c
 *		Calls of a Tryton server's methods: login, sessions, errors.
 *
 * A session of Tryton's lives for days and is only a header of every call; it is
 * asked for when none is there, and once more when the server does not know it
 * any longer.  Who asks with a wrong password is made to wait and then locked out
 * for all, so a refused login is not tried again for a while.
 *
 * Errors come as answers with status 200.  Their texts are translated, so only
 * their names tell what they are.
 */
#include "postgres.h"

#include "access/xact.h"
#include "common/base64.h"
#include "common/hashfn.h"
#include "connection_tryton.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/json.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

/* How often, in milliseconds, what is the same for all calls is asked for again */
#define LEARN_EVERY		600000

/* A server tolerates five refused logins in as many minutes, as delivered */
#define REFUSED_FOR		(100 * 1000)

/* So many connections to its database may be dead when that comes back */
#define MOST_DEAD		10

static int32 last_id = 0;

pos_noreturn static void raise_error(PosTrytonSession *session, PosTrytonCall *call,
									 JsonbValue *error);
static void check_status(PosTrytonSession *session, PosTrytonCall *call,
						 PosHttpAnswer *answer);
static void recognise(PosTrytonSession *session);

/*
 * Around all that waits: an error in between leaves the mark, and the abort of the
 * (sub)transaction gives up the call.
 */
void
pos_tryton_enter(PosTrytonSession *session)
{
	session->busy = GetCurrentTransactionNestLevel();
}

void
pos_tryton_leave(PosTrytonSession *session)
{
	session->busy = 0;
}

/* Begins a call; its arguments come next. */
static void
begin_call(PosTrytonCall *call, const char *method, bool once)
{
	if (call->body.data == NULL)
		initStringInfo(&call->body);
	resetStringInfo(&call->body);
	call->id = ++last_id;
	strlcpy(call->method, method, sizeof(call->method));
	call->once = once;
	appendStringInfo(&call->body, "{\"id\":%d,\"method\":", call->id);
	escape_json(&call->body, method);
	appendStringInfoString(&call->body, ",\"params\":[");
}

/* Completes a call: JSON is UTF8, whatever our encoding is. */
static void
end_call(PosTrytonCall *call)
{
	char	   *body;

	appendStringInfoString(&call->body, "]}");
	body = pg_server_to_any(call->body.data, call->body.len, PG_UTF8);
	if (body == call->body.data)
		return;
	resetStringInfo(&call->body);
	appendStringInfoString(&call->body, body);
	pfree(body);
}

/*
 * It is known that the call at hand changed nothing, or it is not: what is told
 * whoever sent a write.
 */
static void
tell_pending(PosTrytonSession *session, PosTrytonCall *call, bool pending)
{
	if (session->pending != NULL && call->once)
		*session->pending = pending;
}

/* Puts a call on its way. */
static void
post(PosTrytonSession *session, PosTrytonCall *call, const char *authorization)
{
	strlcpy(session->method, call->method, sizeof(session->method));
	PG_TRY();
	{
		pos_http_send(session->http, authorization, call->body.data, call->body.len,
					  call->once);
	}
	PG_CATCH();
	{
		tell_pending(session, call, pos_http_offered(session->http));
		PG_RE_THROW();
	}
	PG_END_TRY();
	tell_pending(session, call, true);
}

/* Remembers what the remote's clock says, to the second. */
static void
set_clock(PosTrytonSession *session, TimestampTz date)
{
	TimestampTz ours = GetCurrentTimestamp();
	int64		offset = date - ours;

	if (date == 0)
		return;
	/* what is not a second is not known */
	session->offset = llabs(offset) < 3 * USECS_PER_SEC / 2 ? 0 : offset;
}

/* Receives an answer.  Returns false if there is none. */
static bool
take(PosTrytonSession *session, PosHttpAnswer *answer)
{
	bool		any = pos_http_receive(session->http, answer);

	if (any)
		set_clock(session, answer->date);
	return any;
}

/* Returns the result of an answer with status 200, or its error. */
static Jsonb *
open_envelope(PosTrytonSession *session, PosTrytonCall *call,
			  PosHttpAnswer *answer, JsonbValue *error)
{
	Jsonb	   *json = pos_tryton_answer(session->options.http.server, answer->body,
										 answer->len);
	JsonbValue	value;
	int64		id;

	error->type = jbvNull;
	if (!pos_tryton_integer(pos_tryton_get(&json->root, "id", &value), &id) ||
		id != call->id)
		pos_tryton_odd(session);
	if (pos_tryton_get(&json->root, "error", error) != NULL && error->type != jbvNull)
		return json;
	error->type = jbvNull;
	if (pos_tryton_get(&json->root, "result", &value) == NULL)
		pos_tryton_odd(session);
	return JsonbValueToJsonb(&value);
}

/* Raises a refusal of a login again that happened lately. */
static void
check_refused(PosTrytonSession *session)
{
	if (session->refused_at != 0 &&
		!TimestampDifferenceExceeds(session->refused_at, GetCurrentTimestamp(),
									REFUSED_FOR))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PASSWORD),
				 errmsg("server \"%s\" refused user \"%s\"",
						session->options.http.server, session->options.user),
				 errdetail("%s Not asked again yet.", session->refusal),
				 errhint("Set another password with ALTER USER MAPPING, or wait for %d s: a server locks out who asks too often.",
						 REFUSED_FOR / 1000)));
}

/* Raises the refusal of a login. */
static void
refused(PosTrytonSession *session, const char *why)
{
	session->refused_at = GetCurrentTimestamp();
	session->refusal = MemoryContextStrdup(session->base.context, why);
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PASSWORD),
			 errmsg("server \"%s\" refused user \"%s\"",
					session->options.http.server, session->options.user),
			 errdetail("%s", why),
			 errhint("User and password are options of the user mapping.")));
}

/* Appends a member to the context of all calls. */
static void
add_to_context(StringInfo context, const char *name, JsonbValue *value)
{
	if (value == NULL || (value->type != jbvNumeric && value->type != jbvString))
		return;
	escape_json(context, name);
	appendStringInfo(context, ":%s,",
					 JsonbToCString(NULL, &JsonbValueToJsonb(value)->root, -1));
}

/* Finds out what is the same for all calls of a session. */
static void
learn(PosTrytonSession *session)
{
	PosTrytonOptions *options = &session->options;
	Jsonb	   *preferences;
	Jsonb	   *rows;
	StringInfoData context;
	JsonbValue	value;
	JsonbValue *row;
	JsonbValue *created;
	char	   *stamp;

	if (session->context != NULL)
		pfree(session->context);
	session->context = MemoryContextStrdup(session->base.context, "\"active_test\":false");
	preferences = pos_tryton_call(session, "model.res.user.get_preferences", "true,");
	initStringInfo(&context);
	if (options->company > 0)
		appendStringInfo(&context, "\"company\":%d,", options->company);
	else
		add_to_context(&context, "company",
					   pos_tryton_get(&preferences->root, "company", &value));
	if (options->language != NULL)
		appendStringInfo(&context, "\"language\":\"%s\",", options->language);
	else
		add_to_context(&context, "language",
					   pos_tryton_get(&preferences->root, "language", &value));
	appendStringInfoString(&context, session->context);
	pfree(session->context);
	session->context = MemoryContextStrdup(session->base.context, context.data);

	/* a database has no identity but when it was made */
	rows = pos_tryton_call(session, "model.ir.lang.search_read",
						   "[],0,1,[[\"id\",\"ASC\"]],[\"create_date\"],");
	row = JB_ROOT_IS_ARRAY(rows) && JB_ROOT_COUNT(rows) == 1 ?
		getIthJsonbValueFromContainer(&rows->root, 0) : NULL;
	created = row == NULL || row->type != jbvBinary ? NULL :
		pos_tryton_get(row->val.binary.data, "create_date", &value);
	if (created == NULL)
		pos_tryton_odd(session);
	stamp = JsonbToCString(NULL, &JsonbValueToJsonb(created)->root, -1);
	session->source =
		MemoryContextStrdup(session->base.context,
							psprintf("%s %08x", options->database,
									 DatumGetUInt32(hash_any((unsigned char *) stamp,
															 strlen(stamp)))));
}

/*
 * Finds out what is the same for all calls, and whether the server still is the one
 * that it was: if not, nothing that is known of it holds, and the run has to begin
 * anew.
 */
static void
recognise(PosTrytonSession *session)
{
	PosTrytonCall call = session->call;
	char	   *source = session->source;
	bool		changed;

	memset(&session->call, 0, sizeof(PosTrytonCall));
	session->learning = true;
	session->source = NULL;
	learn(session);
	session->learned_at = GetCurrentTimestamp();
	session->learning = false;
	if (session->call.body.data != NULL)
		pfree(session->call.body.data);
	session->call = call;
	changed = source != NULL && strcmp(source, session->source) != 0;
	if (source != NULL)
		pfree(source);
	if (changed)
		ereport(ERROR,
				(errcode(ERRCODE_CONNECTION_FAILURE),
				 errmsg("server \"%s\" has another database than before",
						session->options.http.server),
				 errhint("The next run reads all of it.")));
}

/*
 * Logs in, unless the session is.  Errors: invalid_password if the server refuses,
 * which is then not asked again for a while; invalid_catalog_name if it has no such
 * database.
 */
static void
login(PosTrytonSession *session)
{
	PosTrytonOptions *options = &session->options;
	PosTrytonCall call = {0};
	PosHttpAnswer answer;
	JsonbValue	error;
	JsonbValue *id;
	JsonbValue *key;
	Jsonb	   *result;
	char	   *token;
	char	   *encoded;
	int			len;

	if (session->authorization != NULL)
		return;
	check_refused(session);
	begin_call(&call, "common.db.login", false);
	escape_json(&call.body, options->user);
	appendStringInfoString(&call.body, ",{\"password\":");
	escape_json(&call.body, options->password);
	appendStringInfo(&call.body, "},\"%s\"",
					 options->language != NULL ? options->language : "en");
	end_call(&call);
	post(session, &call, NULL);
	if (!take(session, &answer))
		pos_http_fail(session->http);
	explicit_bzero(call.body.data, call.body.len);
	if (answer.status == 401 || answer.status == 403)
		refused(session, "Login or password is wrong.");
	if (answer.status == 429)
		refused(session, "Too many logins have failed there.");
	if (answer.status == 404)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_CATALOG_NAME),
				 errmsg("server \"%s\" has no database \"%s\"", options->http.server,
						options->database)));
	check_status(session, &call, &answer);
	result = open_envelope(session, &call, &answer, &error);
	if (error.type != jbvNull)
	{
		JsonbValue *name = error.type == jbvBinary && JsonContainerIsArray(error.val.binary.data) ?
		getIthJsonbValueFromContainer(error.val.binary.data, 0) : NULL;
		char	   *text = pos_tryton_string(name);

		/* it wants something else than a password */
		if (text !=NULL && strcmp(text, "LoginException") == 0)
			refused(session, "It asks for more than a password.");
		raise_error(session, &call, &error);
	}
	if (JB_ROOT_IS_SCALAR(result) && !JB_ROOT_IS_ARRAY(result))
		refused(session, "Login or password is wrong.");
	id = JB_ROOT_IS_ARRAY(result) && JB_ROOT_COUNT(result) >= 2 ?
		getIthJsonbValueFromContainer(&result->root, 0) : NULL;
	key = id == NULL ? NULL : getIthJsonbValueFromContainer(&result->root, 1);
	if (id == NULL || id->type != jbvNumeric || pos_tryton_string(key) == NULL)
		refused(session, "Login or password is wrong.");
	token = psprintf("%s:%s:%s", options->user,
					 DatumGetCString(DirectFunctionCall1(numeric_out,
														 NumericGetDatum(id->val.numeric))),
					 pos_tryton_string(key));
	token = pg_server_to_any(token, strlen(token), PG_UTF8);
	encoded = MemoryContextAllocZero(session->base.context,
									 strlen("Session ") + pg_b64_enc_len(strlen(token)) + 1);
	strcpy(encoded, "Session ");
	len = pg_b64_encode((void *) token, strlen(token), encoded + strlen("Session "),
						pg_b64_enc_len(strlen(token)));
	if (len < 0 || strpbrk(encoded, "\r\n") != NULL)
		pos_tryton_odd(session);
	session->authorization = encoded;
	session->refused_at = 0;
}

/*
 * Makes a session ready for calls: logged in, and what is the same for all of them
 * known.
 */
void
pos_tryton_open(PosTrytonSession *session)
{
	login(session);
	if (session->source == NULL ||
		TimestampDifferenceExceeds(session->learned_at, GetCurrentTimestamp(), LEARN_EVERY))
		recognise(session);
}

/* Raises the error of a call that got no answer. */
static void
fail(PosTrytonSession *session, PosTrytonCall *call)
{
	tell_pending(session, call, pos_http_offered(session->http));
	pos_http_fail(session->http);
}

/*
 * Raises the error that a status tells, unless it is 200.  A server that fails, or
 * a proxy that gives it up, may be carrying out the call nevertheless.
 */
static void
check_status(PosTrytonSession *session, PosTrytonCall *call, PosHttpAnswer *answer)
{
	const char *server = session->options.http.server;
	long		status = answer->status;
	int			code;
	const char *hint = NULL;

	if (status == 200)
		return;
	tell_pending(session, call, status >= 500 || status == 408);
	if (status == 403)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("server \"%s\" does not let user \"%s\" call \"%s\"", server,
						session->options.user, session->method),
				 errhint("Models of which Tryton shows no view cannot be called; they are reached through fields of others.")));
	switch (status)
	{
		case 301:
		case 302:
		case 303:
		case 307:
		case 308:
			code = ERRCODE_FDW_ERROR;
			hint = "Redirects are not followed. Set option \"url\" of the server to where it really is.";
			break;
		case 408:
		case 429:
		case 502:
		case 503:
		case 504:
			code = ERRCODE_CONNECTION_FAILURE;
			break;
		case 413:
			code = ERRCODE_PROGRAM_LIMIT_EXCEEDED;
			break;
		default:
			code = ERRCODE_FDW_ERROR;
	}
	ereport(ERROR,
			(errcode(code),
			 errmsg("server \"%s\" answered \"%s\" with HTTP status %ld", server,
					session->method, status),
			 hint != NULL ? errhint("%s", hint) : 0));
}

/*
 * Sends a call, whose arguments are JSON, each with a comma behind it.  once: it
 * changes something, and is not repeated unless it is known not to have arrived.
 */
void
pos_tryton_send(PosTrytonSession *session, const char *method,
				const char *params, bool once)
{
	PosTrytonCall *call = &session->call;
	MemoryContext old = MemoryContextSwitchTo(session->base.context);

	begin_call(call, method, once);
	MemoryContextSwitchTo(old);
	appendStringInfo(&call->body, "%s{%s}", params, session->context);
	end_call(call);
	post(session, call, session->authorization);
}

/* Whether an error says that the server's own connection to its database is dead. */
static bool
is_dead(JsonbValue *error)
{
	char	   *text;

	if (error->type != jbvBinary || !JsonContainerIsArray(error->val.binary.data))
		return false;
	text = pos_tryton_string(getIthJsonbValueFromContainer(error->val.binary.data, 0));
	return text !=NULL && strncmp(text, "connection already closed", 25) == 0;
}

/*
 * Waits for the result of the call that was sent, and returns it in the current
 * memory context.  A session that the server has forgotten is renewed; what may be
 * repeated is, if a kept connection was dead.
 */
Jsonb *
pos_tryton_receive(PosTrytonSession *session)
{
	PosTrytonCall *call = &session->call;
	bool		renewed = false;
	bool		repeated = false;
	int			dead = 0;

	for (;;)
	{
		PosHttpAnswer answer;
		JsonbValue	error;
		Jsonb	   *result;

		if (!take(session, &answer))
		{
			if (repeated || !pos_http_reused(session->http) ||
				(call->once && pos_http_offered(session->http)))
				fail(session, call);
			repeated = true;
		}
		else if (answer.status == 401 && !renewed)
		{
			/* it was not carried out */
			renewed = true;
			pfree(session->authorization);
			session->authorization = NULL;
			tell_pending(session, call, false);
			login(session);
			if (!session->learning)
				recognise(session);
		}
		else if (answer.status == 401)
			refused(session, "It does not accept the session that it has just opened.");
		else
		{
			check_status(session, call, &answer);
			result = open_envelope(session, call, &answer, &error);
			if (error.type == jbvNull)
				return result;
			if (call->once || !is_dead(&error) || ++dead > MOST_DEAD)
				raise_error(session, call, &error);
			CHECK_FOR_INTERRUPTS();
		}
		post(session, call, session->authorization);
	}
}

/* Calls a method that changes nothing; returns its result. */
Jsonb *
pos_tryton_call(PosTrytonSession *session, const char *method, const char *params)
{
	pos_tryton_send(session, method, params, false);
	return pos_tryton_receive(session);
}

/* Whether the text of an internal error is about circumstances, not about rows. */
static bool
is_circumstance(const char *text)
{
	static const char *const signs[] = {
		"connection", "could not serialize", "deadlock", "canceling statement",
		"terminating", "memory", "no space left", "timeout", "timed out", "starting up",
		"shutting down", "recovery", "eof detected", "ssl ", "too many clients",
		"could not receive", "could not send", "broken pipe"
	};

	/* a name in quotes is what a dictionary does not have */
	for (int i = 0; i < lengthof(signs) && text[0] != '\''; i++)
		if (strcasestr(text, signs[i]) != NULL)
			return true;
	return false;
}

/*
 * Raises what the remote says went wrong.  An error about what was sent is of a
 * class that is about content: whoever sent several rows may look for the one.
 */
static void
raise_error(PosTrytonSession *session, PosTrytonCall *call, JsonbValue *error)
{
	JsonbContainer *list = error->type == jbvBinary ? error->val.binary.data : NULL;
	bool		is_list = list != NULL && JsonContainerIsArray(list) &&
	JsonContainerSize(list) >= 1;
	char	   *name = is_list ? pos_tryton_string(getIthJsonbValueFromContainer(list, 0)) : NULL;
	JsonbValue *more = is_list && JsonContainerSize(list) > 1 ?
	getIthJsonbValueFromContainer(list, 1) : NULL;
	char	   *message = more != NULL && more->type == jbvString ? pos_tryton_string(more) : NULL;
	char	   *detail = NULL;
	int			code;

	if (name == NULL)
		pos_tryton_odd(session);
	if (more != NULL && more->type == jbvBinary && JsonContainerIsArray(more->val.binary.data))
	{
		JsonbContainer *texts = more->val.binary.data;

		message = pos_tryton_string(getIthJsonbValueFromContainer(texts, 0));
		if (JsonContainerSize(texts) > 1)
			detail = pos_tryton_string(getIthJsonbValueFromContainer(texts, 1));
	}
	if (strcmp(name, "UserError") == 0)
		code = ERRCODE_INTEGRITY_CONSTRAINT_VIOLATION;
	else if (strcmp(name, "UserWarning") == 0)
	{
		/* the first text is the warning's name */
		code = ERRCODE_INTEGRITY_CONSTRAINT_VIOLATION;
		message = psprintf("it asks to confirm: %s", detail != NULL ? detail : "");
		detail = NULL;
	}
	else if (strcmp(name, "ConcurrencyException") == 0)
		code = ERRCODE_T_R_SERIALIZATION_FAILURE;
	else if (strcmp(name, "LoginException") == 0)
		code = ERRCODE_INVALID_PASSWORD;
	else
	{
		code = is_circumstance(name) ? ERRCODE_CONNECTION_FAILURE : ERRCODE_DATA_EXCEPTION;
		message = name;
	}
	/* where its database was lost, that may have been after the commit */
	tell_pending(session, call, code == ERRCODE_CONNECTION_FAILURE);
	if (!call->once && ERRCODE_TO_CATEGORY(code) != ERRCODE_CONNECTION_EXCEPTION)
		code = ERRCODE_FDW_ERROR;	/* no row of ours is at fault */
	while (message != NULL && message[0] != '\0' && message[strlen(message) - 1] == '\n')
		message[strlen(message) - 1] = '\0';
	ereport(ERROR,
			(errcode(code),
			 errmsg("server \"%s\": %s", session->options.http.server,
					message != NULL ? message : name),
			 detail != NULL && detail[0] != '\0' ? errdetail_internal("%s", detail) : 0,
			 errcontext("method \"%s\"", session->method)));
}
