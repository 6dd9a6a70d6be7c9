/*
 * image.h
 *		Images of rows, as they wait in the queue.
 */
#ifndef POSSYNC_IMAGE_H
#define POSSYNC_IMAGE_H

#include "lib/stringinfo.h"
#include "model.h"
#include "utils/rel.h"

typedef struct PosImageReader PosImageReader;

/* in image.c */
extern List *pos_image_labels(Relation rel);
extern char *pos_image_stranger(text *image, List *labels);
extern void pos_image_append_column(StringInfo sql, PosField *field);
extern void pos_image_append_value(StringInfo sql, const char *alias,
								   PosField *field);
extern PosImageReader *pos_image_prepare(PosModel *model);
extern void pos_image_read(PosImageReader *reader, Datum image, Datum *values,
						   bool *nulls);

#endif							/* POSSYNC_IMAGE_H */
