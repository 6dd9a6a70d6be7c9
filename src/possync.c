/*
 * possync.c
 *		Loading of the module.
 */
#include "possync.h"

#include "fmgr.h"

PG_MODULE_MAGIC;
