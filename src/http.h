/*
 * http.h
 *		One POST at a time to one server, over libcurl.
 */
#ifndef POSSYNC_HTTP_H
#define POSSYNC_HTTP_H

#include "datatype/timestamp.h"

typedef struct PosHttp PosHttp;

/* Where a client posts to, and what it bears; strings live as long as it does */
typedef struct PosHttpOptions
{
	const char *server;			/* for messages */
	const char *url;			/* http://... or https://... */
	const char *cafile;			/* certificates to trust; NULL: the system's */
	int			connect_timeout;	/* milliseconds; 0: none */
	int			call_timeout;	/* milliseconds spent waiting; 0: none */
	Size		most;			/* bytes of an answer */
} PosHttpOptions;

typedef struct PosHttpAnswer
{
	long		status;
	char	   *body;			/* ends with a zero byte; good until the next
								 * call */
	Size		len;
	TimestampTz date;			/* the server's clock, full seconds; 0:
								 * unknown */
} PosHttpAnswer;

extern PosHttp *pos_http_make(const PosHttpOptions *options);
extern void pos_http_send(PosHttp *http, const char *authorization,
						  const char *body, Size len, bool once);
extern void pos_http_pump(PosHttp *http);
extern bool pos_http_receive(PosHttp *http, PosHttpAnswer *answer);
extern bool pos_http_offered(PosHttp *http);
extern bool pos_http_reused(PosHttp *http);
extern void pos_http_fail(PosHttp *http);
extern uint64 pos_http_received(PosHttp *http);
extern void pos_http_cancel(PosHttp *http);
extern void pos_http_close(PosHttp *http);

#endif							/* POSSYNC_HTTP_H */
