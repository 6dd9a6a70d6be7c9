/*
 * http.c
 *		One POST at a time to one server, over libcurl.
 *
 * Owns libcurl: nobody else includes it.  Knows nothing of what is sent.
 *
 * What a hostile or broken server can do to us is bounded here: answers by bytes
 * (after decompression), headers by bytes, waiting by time, all of it by
 * interrupts.  Redirects are not followed, proxies and .netrc of the environment
 * not used, TLS is verified.
 *
 * libcurl repeats a POST by itself if a kept connection dies before the first
 * byte of an answer.  It cannot if the body comes from a function that does not
 * rewind: whether something is sent twice is the caller's decision.
 *
 * No callback of libcurl's may throw: it would leave libcurl's own frames.
 */
#include "postgres.h"

#include <curl/curl.h>

#include "compat.h"
#include "http.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/ipc.h"
#include "storage/pmsignal.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

/* Bytes of an answer that are kept for the next one */
#define KEPT_BYTES		(1024 * 1024)

/* Bytes of all headers of an answer */
#define MOST_HEADERS	(64 * 1024)

/*
 * libcurl waits for its own sockets, of which there may be several, so it is not
 * our latch that wakes us: interrupts are looked for every so many milliseconds.
 */
#define SLICE			100

struct PosHttp
{
	PosHttpOptions options;
	MemoryContext context;		/* of the buffers */
	CURLM	   *multi;
	CURL	   *easy;
	struct curl_slist *headers;
	char		error[CURL_ERROR_SIZE];

	const char *body;			/* what is left to send */
	Size		left;
	bool		running;		/* a call is on its way */
	bool		offered;		/* some of its body may have been sent */
	bool		reused;			/* on a connection that was there before */
	CURLcode	code;			/* how it ended */

	char	   *answer;
	Size		len;
	Size		allocated;
	Size		header_bytes;
	time_t		date;
	bool		too_big;
	bool		no_memory;
	uint64		received;
};

/* Takes bytes of the answer; less than all of them ends the call. */
static size_t
take_body(char *data, size_t size, size_t n, void *arg)
{
	PosHttp    *http = arg;
	Size		bytes = size * n;

	http->received += bytes;
	if (bytes > http->options.most - http->len)
	{
		http->too_big = true;
		return 0;
	}
	if (http->len + bytes + 1 > http->allocated)
	{
		Size		allocated = Max(http->allocated, 8192);
		char	   *larger;

		while (allocated < http->len + bytes + 1)
			allocated *= 2;
		larger = MemoryContextAllocExtended(http->context, allocated,
											MCXT_ALLOC_HUGE | MCXT_ALLOC_NO_OOM);
		if (larger == NULL)
		{
			http->no_memory = true;
			return 0;
		}
		if (http->len > 0)
			memcpy(larger, http->answer, http->len);
		if (http->answer != NULL)
			pfree(http->answer);
		http->answer = larger;
		http->allocated = allocated;
	}
	memcpy(http->answer + http->len, data, bytes);
	http->len += bytes;
	return bytes;
}

/* Takes one header line. */
static size_t
take_header(char *data, size_t size, size_t n, void *arg)
{
	PosHttp    *http = arg;
	Size		bytes = size * n;
	char		value[64];

	http->received += bytes;
	http->header_bytes += bytes;
	if (http->header_bytes > MOST_HEADERS)
	{
		http->too_big = true;
		return 0;
	}
	if (bytes > 5 && pg_strncasecmp(data, "date:", 5) == 0)
	{
		strlcpy(value, data + 5, Min(bytes - 4, sizeof(value)));
		http->date = curl_getdate(value, NULL);
	}
	return bytes;
}

/* Gives bytes of the body. */
static size_t
give_body(char *data, size_t size, size_t n, void *arg)
{
	PosHttp    *http = arg;
	Size		bytes = Min(size * n, http->left);

	http->offered = true;
	memcpy(data, http->body, bytes);
	http->body += bytes;
	http->left -= bytes;
	return bytes;
}

/*
 * Makes a client, in the current memory context; pos_http_close frees what memory
 * contexts do not.  Does not connect.
 */
PosHttp *
pos_http_make(const PosHttpOptions *options)
{
	PosHttp    *http = palloc0(sizeof(PosHttp));

	http->options = *options;
	http->context = CurrentMemoryContext;
	return http;
}

pos_noreturn static void out_of_memory(void);

static void
out_of_memory(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_OUT_OF_MEMORY),
			 errmsg("out of memory")));
}

#define SET(option, value) \
	do { \
		if (curl_easy_setopt(http->easy, option, value) != CURLE_OK) \
			elog(ERROR, "libcurl does not know " #option); \
	} while (0)

/* Makes libcurl's handles, on the first call. */
static void
make_handles(PosHttp *http)
{
	static bool initialized = false;

	if (!initialized && curl_global_init(CURL_GLOBAL_DEFAULT) != CURLE_OK)
		out_of_memory();
	initialized = true;
	http->multi = curl_multi_init();
	http->easy = curl_easy_init();
	if (http->multi == NULL || http->easy == NULL)
		out_of_memory();

	SET(CURLOPT_URL, http->options.url);
#if LIBCURL_VERSION_NUM >= 0x075500
	SET(CURLOPT_PROTOCOLS_STR, "http,https");
#else
	SET(CURLOPT_PROTOCOLS, (long) (CURLPROTO_HTTP | CURLPROTO_HTTPS));
#endif
	SET(CURLOPT_FOLLOWLOCATION, 0L);
	SET(CURLOPT_PROXY, "");
	SET(CURLOPT_NOSIGNAL, 1L);
	SET(CURLOPT_SSL_VERIFYPEER, 1L);
	SET(CURLOPT_SSL_VERIFYHOST, 2L);
	if (http->options.cafile != NULL)
	{
		SET(CURLOPT_CAINFO, http->options.cafile);
		SET(CURLOPT_CAPATH, NULL);
	}
	SET(CURLOPT_HTTP_VERSION, (long) CURL_HTTP_VERSION_1_1);
	SET(CURLOPT_ACCEPT_ENCODING, "");
	SET(CURLOPT_USERAGENT, "possync");
	SET(CURLOPT_ERRORBUFFER, http->error);
	SET(CURLOPT_WRITEFUNCTION, take_body);
	SET(CURLOPT_WRITEDATA, http);
	SET(CURLOPT_HEADERFUNCTION, take_header);
	SET(CURLOPT_HEADERDATA, http);
	SET(CURLOPT_READFUNCTION, give_body);
	SET(CURLOPT_READDATA, http);
	SET(CURLOPT_POST, 1L);
}

/* Takes the call off libcurl, whose connection is closed if it had not ended. */
static void
detach(PosHttp *http)
{
	if (http->running)
		(void) curl_multi_remove_handle(http->multi, http->easy);
	http->running = false;
}

/* Lets libcurl do what it can without waiting; true when the call has ended. */
static bool
perform(PosHttp *http)
{
	int			running;
	int			messages;
	CURLMsg    *message;
	CURLMcode	code = curl_multi_perform(http->multi, &running);

	if (code != CURLM_OK)
		elog(ERROR, "libcurl: %s", curl_multi_strerror(code));
	while ((message = curl_multi_info_read(http->multi, &messages)) != NULL)
		if (message->msg == CURLMSG_DONE)
		{
			long		connects = 0;

			http->code = message->data.result;
			(void) curl_easy_getinfo(http->easy, CURLINFO_NUM_CONNECTS, &connects);
			http->reused = connects == 0;
			detach(http);
		}
	return !http->running;
}

/* Waits for a while, or until libcurl can go on; answers interrupts. */
static void
wait_briefly(PosHttp *http)
{
	pgstat_report_wait_start(PG_WAIT_EXTENSION);
	(void) curl_multi_poll(http->multi, NULL, 0, SLICE, NULL);
	pgstat_report_wait_end();
	if (!PostmasterIsAlive())
		proc_exit(1);
	CHECK_FOR_INTERRUPTS();
}

static char *
time_in_words(int milliseconds)
{
	return milliseconds % 1000 == 0 ? psprintf("%d s", milliseconds / 1000) :
		psprintf("%d ms", milliseconds);
}

/*
 * Ends a call whose time is over.  What the other side did with it nobody knows,
 * unless nothing was offered.
 */
static void
timed_out(PosHttp *http, bool connecting)
{
	int			timeout = connecting ? http->options.connect_timeout :
	http->options.call_timeout;

	detach(http);
	ereport(ERROR,
			(errcode(connecting ? ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION :
					 ERRCODE_CONNECTION_FAILURE),
			 connecting ? errmsg("could not connect to server \"%s\"", http->options.server) :
			 errmsg("server \"%s\" does not answer", http->options.server),
			 errdetail("It did not answer within %s.", time_in_words(timeout)),
			 errhint("Option \"%s\" of the server sets the limit.",
					 connecting ? "connect_timeout" : "call_timeout")));
}

/*
 * Sends a call and does not wait for the answer.  authorization is the value of
 * that header, or NULL.  body has to live until the answer is received.  once: on
 * a connection of its own.  An error of the connection is told by
 * pos_http_receive; errors if nothing is connected within connect_timeout.
 */
void
pos_http_send(PosHttp *http, const char *authorization, const char *body,
			  Size len, bool once)
{
	TimestampTz deadline;
	char	   *line = authorization == NULL ? NULL :
	psprintf("Authorization: %s", authorization);
	struct curl_slist *headers;

	if (http->easy == NULL)
		make_handles(http);
	Assert(!http->running);
	curl_slist_free_all(http->headers);
	http->headers = curl_slist_append(NULL, "Content-Type: application/json");
	headers = http->headers == NULL ? NULL : curl_slist_append(http->headers, "Expect:");
	if (headers != NULL && line != NULL)
		headers = curl_slist_append(http->headers, line);
	if (headers == NULL)
		out_of_memory();
	SET(CURLOPT_HTTPHEADER, http->headers);
	SET(CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t) len);
	SET(CURLOPT_FRESH_CONNECT, once ? 1L : 0L);
	SET(CURLOPT_FORBID_REUSE, once ? 1L : 0L);
	http->body = body;
	http->left = len;
	http->offered = http->too_big = http->no_memory = false;
	http->len = http->header_bytes = 0;
	if (http->allocated > KEPT_BYTES)
	{
		pfree(http->answer);
		http->answer = NULL;
		http->allocated = 0;
	}
	http->date = 0;
	http->error[0] = '\0';
	http->code = CURLE_OK;
	if (curl_multi_add_handle(http->multi, http->easy) != CURLM_OK)
		out_of_memory();
	http->running = true;

	/* connecting does not go on while we do other things */
	deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
										   http->options.connect_timeout);
	while (!perform(http) && !http->offered)
	{
		if (http->options.connect_timeout > 0 && GetCurrentTimestamp() >= deadline)
			timed_out(http, true);
		wait_briefly(http);
	}
}

/* Receives what has arrived, without waiting. */
void
pos_http_pump(PosHttp *http)
{
	if (http->running)
		(void) perform(http);
}

/*
 * Waits for the answer to the call that was sent.  Returns false if there is none:
 * pos_http_fail tells why.  Errors if it does not come within call_timeout.
 */
bool
pos_http_receive(PosHttp *http, PosHttpAnswer *answer)
{
	TimestampTz deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
													   http->options.call_timeout);

	while (http->running && !perform(http))
	{
		if (http->options.call_timeout > 0 && GetCurrentTimestamp() >= deadline)
			timed_out(http, false);
		wait_briefly(http);
	}
	if (http->code != CURLE_OK)
		return false;
	(void) curl_easy_getinfo(http->easy, CURLINFO_RESPONSE_CODE, &answer->status);
	if (http->answer == NULL)
		http->answer = MemoryContextAlloc(http->context, http->allocated = 8192);
	http->answer[http->len] = '\0';
	answer->body = http->answer;
	answer->len = http->len;
	answer->date = http->date <= 0 ? 0 : time_t_to_timestamptz(http->date);
	return true;
}

/* Whether the server may have got some of the last call. */
bool
pos_http_offered(PosHttp *http)
{
	return http->offered;
}

/* Whether the last call went over a connection that was there before. */
bool
pos_http_reused(PosHttp *http)
{
	return http->reused;
}

/* Raises the error of a call that got no answer. */
void
pos_http_fail(PosHttp *http)
{
	const char *message = http->error[0] != '\0' ? http->error :
	curl_easy_strerror(http->code);

	if (http->no_memory)
		out_of_memory();
	if (http->too_big)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("server \"%s\" sent an answer of more than %zu bytes",
						http->options.server, http->options.most),
				 errhint("Option \"max_answer\" of the server sets the limit, \"page_size\" how many rows one answer holds.")));
	ereport(ERROR,
			(errcode(http->offered ? ERRCODE_CONNECTION_FAILURE :
					 ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION),
			 http->offered ? errmsg("connection to server \"%s\" was lost", http->options.server) :
			 errmsg("could not connect to server \"%s\"", http->options.server),
			 errdetail_internal("%s", message)));
}

/* Bytes received since the client was made */
uint64
pos_http_received(PosHttp *http)
{
	return http->received;
}

/* Gives up the call on its way, if there is one.  Does not throw. */
void
pos_http_cancel(PosHttp *http)
{
	detach(http);
}

/* Closes the connection and frees what is libcurl's.  Does not throw. */
void
pos_http_close(PosHttp *http)
{
	detach(http);
	if (http->easy != NULL)
		curl_easy_cleanup(http->easy);
	if (http->multi != NULL)
		(void) curl_multi_cleanup(http->multi);
	curl_slist_free_all(http->headers);
	http->easy = NULL;
	http->multi = NULL;
	http->headers = NULL;
}
