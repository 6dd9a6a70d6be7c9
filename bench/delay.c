/*
 * bench/delay.c
 *		A TCP proxy on 127.0.0.1 that makes the way to a server longer.
 *
 * usage: delay LISTEN-PORT TARGET-PORT ROUND-TRIP-MS [FILE]
 *
 * Every byte is held back for half of the round trip in each direction, in
 * order; how many bytes are on their way at once is bounded only by the
 * buffers, which are large enough that the delay is not a limit of bandwidth.
 * Establishing a connection is not delayed.  It needs no privilege, unlike the
 * kernel's own ways of doing this.
 *
 * Round trips are counted: a client that sends after the server has answered
 * begins a new one, so whatever is sent without waiting costs one.  On SIGUSR1
 * the totals are written to standard output; SIGTERM, SIGINT and the end of
 * the process that started it end it.  With LISTEN-PORT 0 the system chooses
 * the port; the first line of output names it.
 *
 * With FILE, what the client sends is also written to FILE.up and what the server
 * sends to FILE.down: every read as its length, in four bytes of this machine's
 * order, and its bytes.
 */
#define _GNU_SOURCE

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/prctl.h>
#include <sys/socket.h>

#define MAX_LINKS	64

/*
 * What one direction of one link may hold.  16 MB in 10 ms are 1.6 GB/s, more
 * than a server sends.  The memory is touched only as far as it is used.
 */
#define RING_SIZE	(16 * 1024 * 1024)
#define MAX_CHUNKS	8192
#define READ_SIZE	(64 * 1024)

#define NS_PER_S	INT64_C(1000000000)
#define NS_PER_MS	INT64_C(1000000)

/* Bytes up to "end" may leave at "due". */
typedef struct Chunk
{
	uint64_t	end;
	int64_t		due;			/* ns, monotonic clock */
} Chunk;

/*
 * One direction.  received and sent count all bytes ever; their difference is
 * in the ring.  Chunks are counted in the same way.
 */
typedef struct Stream
{
	int			from;
	int			to;
	FILE	   *record;			/* or null */
	char	   *ring;
	Chunk	   *chunks;
	uint64_t	received;
	uint64_t	sent;
	uint64_t	first_chunk;
	uint64_t	next_chunk;
	bool		eof;			/* "from" will send no more */
	bool		done;			/* and "to" has been told so */
	bool		blocked;		/* "to" takes no more for now */
} Stream;

/* A client's connection and ours to the server; unused if up.ring is null. */
typedef struct Link
{
	Stream		up;				/* client to server */
	Stream		down;			/* server to client */
	bool		answered;		/* the server spoke last */
} Link;

static Link links[MAX_LINKS];
static int64_t delay;			/* ns, one way */
static FILE *record_up;
static FILE *record_down;
static struct sockaddr_in target;

static uint64_t round_trips;
static uint64_t bytes_up;
static uint64_t bytes_down;

static volatile sig_atomic_t stop_requested;
static volatile sig_atomic_t report_requested;

static void
handle_signal(int signo)
{
	if (signo == SIGUSR1)
		report_requested = 1;
	else
		stop_requested = 1;
}

static void
die(const char *what)
{
	perror(what);
	exit(1);
}

static int64_t
now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * NS_PER_S + ts.tv_nsec;
}

static void
report(void)
{
	printf("round trips %llu, bytes up %llu, bytes down %llu\n",
		   (unsigned long long) round_trips,
		   (unsigned long long) bytes_up,
		   (unsigned long long) bytes_down);
	fflush(stdout);
}

static void
prepare_socket(int fd)
{
	int			one = 1;

	if (fcntl(fd, F_SETFL, O_NONBLOCK) < 0 ||
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)) < 0)
		die("could not set up a socket");
}

static bool
stream_open(Stream *s, int from, int to, FILE *record)
{
	memset(s, 0, sizeof(*s));
	s->from = from;
	s->to = to;
	s->record = record;
	s->ring = malloc(RING_SIZE);
	s->chunks = malloc(MAX_CHUNKS * sizeof(Chunk));
	return s->ring != NULL && s->chunks != NULL;
}

static void
link_close(Link *l)
{
	close(l->up.from);
	close(l->up.to);
	free(l->up.ring);
	free(l->up.chunks);
	free(l->down.ring);
	free(l->down.chunks);
	memset(l, 0, sizeof(*l));
}

/* Take a new client, if there is room and the server can be reached. */
static void
link_open(int client)
{
	int			server;
	int			i;

	for (i = 0; i < MAX_LINKS && links[i].up.ring != NULL; i++)
		;
	server = socket(AF_INET, SOCK_STREAM, 0);
	if (i == MAX_LINKS || server < 0 ||
		connect(server, (struct sockaddr *) &target, sizeof(target)) < 0)
	{
		close(client);
		if (server >= 0)
			close(server);
		return;
	}
	prepare_socket(client);
	prepare_socket(server);
	links[i].answered = true;
	if (!stream_open(&links[i].up, client, server, record_up) ||
		!stream_open(&links[i].down, server, client, record_down))
		die("out of memory");
}

static bool
stream_has_room(const Stream *s)
{
	return s->received - s->sent <= RING_SIZE - READ_SIZE &&
		s->next_chunk - s->first_chunk < MAX_CHUNKS;
}

/* Read once.  Returns how many bytes came; an end or error ends the stream. */
static size_t
stream_receive(Stream *s)
{
	size_t		at = s->received % RING_SIZE;
	size_t		room = RING_SIZE - at;
	ssize_t		n;
	Chunk	   *c;

	n = read(s->from, s->ring + at, room < READ_SIZE ? room : READ_SIZE);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return 0;
	if (n <= 0)
	{
		s->eof = true;
		return 0;
	}
	if (s->record != NULL)
	{
		uint32_t	len = n;

		if (fwrite(&len, sizeof(len), 1, s->record) != 1 ||
			fwrite(s->ring + at, n, 1, s->record) != 1)
			die("could not record");
	}
	s->received += n;
	c = &s->chunks[s->next_chunk++ % MAX_CHUNKS];
	c->end = s->received;
	c->due = now() + delay;
	return n;
}

/* Send what is due.  Returns false if the receiver is gone. */
static bool
stream_send(Stream *s)
{
	int64_t		t = now();

	s->blocked = false;
	while (s->first_chunk < s->next_chunk)
	{
		Chunk	   *c = &s->chunks[s->first_chunk % MAX_CHUNKS];
		size_t		at = s->sent % RING_SIZE;
		size_t		len = c->end - s->sent;
		ssize_t		n;

		if (c->due > t)
			return true;
		if (len > RING_SIZE - at)
			len = RING_SIZE - at;
		n = send(s->to, s->ring + at, len, MSG_NOSIGNAL);
		if (n < 0)
		{
			s->blocked = (errno == EAGAIN || errno == EINTR);
			return s->blocked;
		}
		s->sent += n;
		if (s->sent == c->end)
			s->first_chunk++;
	}
	if (s->eof && !s->done)
	{
		shutdown(s->to, SHUT_WR);
		s->done = true;
	}
	return true;
}

/*
 * Fill in the two entries of a stream, and bring forward *wake (ns) to when it
 * has something to send.  An entry without interest gets no descriptor, else
 * poll would report a hang-up again and again.
 */
static void
stream_watch(const Stream *s, struct pollfd *fds, int64_t *wake)
{
	fds[0].fd = !s->eof && stream_has_room(s) ? s->from : -1;
	fds[0].events = POLLIN;
	fds[1].fd = s->blocked ? s->to : -1;
	fds[1].events = POLLOUT;
	if (!s->blocked && s->first_chunk < s->next_chunk)
	{
		int64_t		due = s->chunks[s->first_chunk % MAX_CHUNKS].due;

		if (due < *wake)
			*wake = due;
	}
}

/* Move bytes of a link; fds are its four entries, up and down. */
static void
link_serve(Link *l, const struct pollfd *fds)
{
	size_t		n;

	if (fds[0].fd >= 0 && fds[0].revents && (n = stream_receive(&l->up)) > 0)
	{
		bytes_up += n;
		if (l->answered)
			round_trips++;
		l->answered = false;
	}
	if (fds[2].fd >= 0 && fds[2].revents && (n = stream_receive(&l->down)) > 0)
	{
		bytes_down += n;
		l->answered = true;
	}
	if (!stream_send(&l->up) || !stream_send(&l->down) ||
		(l->up.done && l->down.done))
		link_close(l);
}

static void
serve(int listener, const sigset_t *unblocked)
{
	struct pollfd fds[1 + 4 * MAX_LINKS];

	while (!stop_requested)
	{
		int64_t		wake = INT64_MAX;
		struct timespec timeout;
		struct timespec *wait = NULL;
		int			i;

		fds[0].fd = listener;
		fds[0].events = POLLIN;
		for (i = 0; i < MAX_LINKS; i++)
		{
			struct pollfd *f = &fds[1 + 4 * i];

			f[0].fd = f[1].fd = f[2].fd = f[3].fd = -1;
			if (links[i].up.ring == NULL)
				continue;
			stream_watch(&links[i].up, f, &wake);
			stream_watch(&links[i].down, f + 2, &wake);
		}
		if (wake != INT64_MAX)
		{
			wake -= now();
			if (wake < 0)
				wake = 0;
			timeout.tv_sec = wake / NS_PER_S;
			timeout.tv_nsec = wake % NS_PER_S;
			wait = &timeout;
		}
		if (ppoll(fds, 1 + 4 * MAX_LINKS, wait, unblocked) < 0)
		{
			if (errno != EINTR)
				die("ppoll");
			if (report_requested)
			{
				report_requested = 0;
				report();
			}
			continue;
		}
		for (i = 0; i < MAX_LINKS; i++)
			if (links[i].up.ring != NULL)
				link_serve(&links[i], &fds[1 + 4 * i]);
		if (fds[0].revents)
		{
			int			client = accept(listener, NULL, NULL);

			if (client >= 0)
				link_open(client);
		}
	}
}

static FILE *
open_record(const char *name, const char *suffix)
{
	char		path[4096];
	FILE	   *file;

	snprintf(path, sizeof(path), "%s%s", name, suffix);
	file = fopen(path, "w");
	if (file == NULL)
		die(path);
	return file;
}

static int
listen_on(int port)
{
	struct sockaddr_in addr = {.sin_family = AF_INET};
	socklen_t	len = sizeof(addr);
	int			one = 1;
	int			fd = socket(AF_INET, SOCK_STREAM, 0);

	addr.sin_port = htons(port);
	addr.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	if (fd < 0 ||
		setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)) < 0 ||
		bind(fd, (struct sockaddr *) &addr, sizeof(addr)) < 0 ||
		listen(fd, MAX_LINKS) < 0 ||
		getsockname(fd, (struct sockaddr *) &addr, &len) < 0)
		die("could not listen");
	printf("listening on port %d\n", ntohs(addr.sin_port));
	fflush(stdout);
	return fd;
}

int
main(int argc, char **argv)
{
	struct sigaction action = {.sa_handler = handle_signal};
	sigset_t	handled;
	sigset_t	unblocked;
	int			listener;

	if (argc != 4 && argc != 5)
	{
		fprintf(stderr, "usage: %s LISTEN-PORT TARGET-PORT ROUND-TRIP-MS [FILE]\n",
				argv[0]);
		return 2;
	}
	if (argc == 5)
	{
		record_up = open_record(argv[4], ".up");
		record_down = open_record(argv[4], ".down");
	}
	delay = (int64_t) (atof(argv[3]) * NS_PER_MS / 2);
	target.sin_family = AF_INET;
	target.sin_port = htons(atoi(argv[2]));
	target.sin_addr.s_addr = htonl(INADDR_LOOPBACK);

	/* Signals arrive only while ppoll waits, so none is missed. */
	sigemptyset(&handled);
	sigaddset(&handled, SIGTERM);
	sigaddset(&handled, SIGINT);
	sigaddset(&handled, SIGUSR1);
	sigprocmask(SIG_BLOCK, &handled, &unblocked);
	sigaction(SIGTERM, &action, NULL);
	sigaction(SIGINT, &action, NULL);
	sigaction(SIGUSR1, &action, NULL);
	prctl(PR_SET_PDEATHSIG, SIGTERM);

	listener = listen_on(atoi(argv[1]));
	serve(listener, &unblocked);
	report();
	return 0;
}
