/*
 * shared.h
 *		What possync's processes know of each other, in shared memory.
 */
#ifndef POSSYNC_SHARED_H
#define POSSYNC_SHARED_H

/* What a process does */
typedef enum PosProcessKind
{
	POS_PROCESS_NONE,
	POS_PROCESS_LAUNCHER,
	POS_PROCESS_SCHEDULER,		/* of a database */
	POS_PROCESS_RUNNER			/* of one role's jobs with a server, in one
								 * direction */
} PosProcessKind;

/* Why a process is woken */
#define POS_WAKE_QUEUED		0x01	/* something was queued */
#define POS_WAKE_CONFIG		0x02	/* configuration changed */

/* A process, or one that is about to start */
typedef struct PosProcess
{
	PosProcessKind kind;
	Oid			database;
	Oid			role;			/* of a runner */
	Oid			server;			/* of a runner */
	bool		push;			/* of a runner: its direction */
	int			pid;			/* 0: not yet */
	bool		done;			/* it ended because there was nothing to do */
	bool		left;			/* it has ended: its slot may be taken */
} PosProcess;

/* in shared.c */
extern void pos_shared_init(void);
extern bool pos_shared_exists(void);
extern int	pos_shared_reserve(PosProcess *process, uint64 *tenancy);
extern void pos_shared_release(int slot, uint64 tenancy);
extern void pos_shared_enter(int slot);
extern bool pos_shared_is_done(int slot, uint64 tenancy);
extern void pos_shared_set_done(void);
extern uint32 pos_shared_woken(void);
extern bool pos_shared_is_woken(void);
extern void pos_shared_wake(Oid database, uint32 why);
extern void pos_shared_wake_at_commit(uint32 why);
extern int	pos_shared_processes(PosProcess *processes, int most);
extern void pos_shared_vacate(Oid database);
extern bool pos_shared_is_vacated(Oid database);
extern bool pos_shared_take_announced(Oid *database);

#endif							/* POSSYNC_SHARED_H */
