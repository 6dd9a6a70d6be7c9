/*
 * launcher.h
 *		The processes that run what is scheduled.
 */
#ifndef POSSYNC_LAUNCHER_H
#define POSSYNC_LAUNCHER_H

/* in launcher.c */
extern void pos_launcher_register(void);

/* in commands.c */
extern void pos_commands_init(void);

#endif							/* POSSYNC_LAUNCHER_H */
