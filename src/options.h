/*
 * options.h
 *		Options of servers and user mappings, whatever their kind.
 */
#ifndef POSSYNC_OPTIONS_H
#define POSSYNC_OPTIONS_H

#include "nodes/parsenodes.h"

typedef struct PosOption
{
	const char *keyword;		/* NULL ends a list */
	Oid			catalog;		/* on what it may be set */
	bool		passed_on;		/* to the library that connects */
} PosOption;

extern const PosOption *pos_option_find(const PosOption *options,
										const char *keyword, Oid catalog);
extern void pos_option_check(const PosOption *options, const char *keyword,
							 Oid catalog);
extern int	pos_option_time(DefElem *def);
extern int	pos_option_integer(DefElem *def, int least, int most);

#endif							/* POSSYNC_OPTIONS_H */
