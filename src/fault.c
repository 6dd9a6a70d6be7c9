/*
 * fault.c
 *		Points at which a test can make things go wrong.
 *
 * possync.fault is a developer's setting for superusers: 'kill: push written'
 * makes the process that reaches this point kill itself as kill -9 would,
 * 'error: ...' raises an error, 'exit: ...' ends the process as if its backend
 * had been terminated.
 */
#include "possync.h"

#include <signal.h>

#include "fault.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "utils/guc.h"

static char *fault = NULL;

/* Defines the setting; called when the module is loaded. */
void
pos_fault_init(void)
{
	DefineCustomStringVariable("possync.fault",
							   "Makes something go wrong at a named point, for tests.",
							   "\"kill\", \"exit\" or \"error\", a colon, and the name of the point.",
							   &fault, "", PGC_SUSET,
							   GUC_NOT_IN_SAMPLE | GUC_NO_SHOW_ALL,
							   NULL, NULL, NULL);
}

/* Does what possync.fault asks for if this is its point. */
void
pos_fault_point(const char *name)
{
	const char *at;

	if (fault == NULL || fault[0] == '\0')
		return;
	at = strstr(fault, ": ");
	if (at == NULL || strcmp(at + 2, name) != 0)
		return;
	switch (fault[0])
	{
		case 'k':
			kill(MyProcPid, SIGKILL);
			break;
		case 'e':
			if (fault[1] == 'x')
				proc_exit(1);
			ereport(ERROR,
					(errcode(ERRCODE_CONNECTION_FAILURE),
					 errmsg("fault at \"%s\"", name)));
			break;
	}
}
