/*
 * fault.h
 *		Points at which a test can make things go wrong.
 */
#ifndef POSSYNC_FAULT_H
#define POSSYNC_FAULT_H

/* in fault.c */
extern void pos_fault_init(void);
extern void pos_fault_point(const char *name);

#endif							/* POSSYNC_FAULT_H */
