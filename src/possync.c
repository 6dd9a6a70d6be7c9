/*
 * possync.c
 *		Loading of the module.
 */
#include "possync.h"

#include "fault.h"
#include "fmgr.h"
#include "utils/guc.h"

PG_MODULE_MAGIC;

void		_PG_init(void);

/* Called by PostgreSQL when the module is loaded. */
void
_PG_init(void)
{
	pos_fault_init();
	MarkGUCPrefixReserved("possync");
}
