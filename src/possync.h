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

#endif							/* POSSYNC_H */
