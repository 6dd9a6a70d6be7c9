/*
 * links.h
 *		Rows of synchronize_translation, found by their keys.
 */
#ifndef POSSYNC_LINKS_H
#define POSSYNC_LINKS_H

#include "model.h"

/* Columns of synchronize_translation */
enum
{
	POS_COL_MODEL, POS_COL_DECISION, POS_COL_RUN, POS_COL_REMOTE, POS_COL_LOCAL, POS_COL_REMOTE_TEXT,
	POS_COL_LOCAL_TEXT, POS_COL_GONE, POS_NCOLS
};

/* Its indexes */
typedef enum
{
	POS_LINK_REMOTE, POS_LINK_LOCAL, POS_LINK_REMOTE_TEXT, POS_LINK_LOCAL_TEXT,
	POS_LINK_GONE, POS_LINK_INDEXES
} PosLinkIndex;

/* What the table knows of a key; if the model is covered, just the other key */
typedef struct PosLink
{
	Datum		other;			/* the key on the other side */
	bool		matched;		/* the row was here before */
	bool		gone;			/* its counterpart has been deleted */
	int32		run;			/* the run that linked the two */
} PosLink;

typedef struct PosLinks PosLinks;

/* in links.c */
extern PosLinks *pos_links_open(Relation rel);
extern void pos_links_close(PosLinks *links);
extern void pos_links_leave(PosLinks *links);
extern void pos_links_return(PosLinks *links);
extern Oid	pos_links_index(PosLinkIndex which);
extern PosLinkIndex pos_links_index_of(PosModel *model, bool remote);
extern bool pos_links_has_any(PosLinks *links, PosModel *model, PosLinkIndex which);
extern int64 pos_links_last(PosLinks *links, PosModel *model, PosLinkIndex which);
extern bool pos_links_find(PosLinks *links, PosModel *model, bool remote, Datum key,
						   PosLink *link);

#endif							/* POSSYNC_LINKS_H */
