/*
 * possync.h
 *		What every file of possync may use: settings and naming rules.
 *
 * External names are pos_<file>_<verb> and Pos<Thing>; each header names the
 * file in which its functions live.
 */
#ifndef POSSYNC_H
#define POSSYNC_H

#include "postgres.h"

/* Settings, in possync.c */
extern int	pos_clock_offset_max;	/* seconds; -1: none */
extern int	pos_compare_interval;	/* seconds; 0: always, -1: never */
extern int	pos_delete_limit;	/* percent */
extern int	pos_history_keep;	/* minutes; -1: for ever */
extern int	pos_log_keep;		/* minutes; -1: for ever */
extern int	pos_part_rows;		/* 0: no parts */
extern int	pos_retry_max;		/* seconds */
extern int	pos_retry_slow;		/* seconds */

#endif							/* POSSYNC_H */
