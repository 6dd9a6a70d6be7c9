/*
 * tree.c
 *		From the catalog to the dependency tree: which models take part in a
 *		synchronization, in which order, and how their foreign keys are
 *		translated.
 *
 * A tree is its root, the children that belong to the root (and theirs), and
 * all that these refer to through foreign keys whose columns are copied.
 * Models that refer to each other in a circle form one component (Tarjan's
 * strongly connected components, which come out with what others depend on
 * first); a component of one model is the ordinary case.
 *
 * Foreign keys are read from the catalog every time: what is configured is
 * only which columns are copied.
 */
#include "possync.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/partition.h"
#include "catalog/pg_class.h"
#include "catalog/pg_constraint.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "miscadmin.h"
#include "model.h"
#include "rewrite/rewriteHandler.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

/* How far a foreign key to a foreign key is followed */
#define MAX_CHAIN 8

static PosField *
find_field(PosModel *model, AttrNumber attnum)
{
	for (int i = 0; i < model->nfields; i++)
		if (model->fields[i].attnum == attnum)
			return &model->fields[i];
	return NULL;
}

/*
 * Reads a model's fields, if they were not before, opens its table, and completes
 * them by what the catalog says of their columns.
 */
static void
open_model(PosModel *model)
{
	TupleDesc	desc;

	if (model->opened)
		return;
	model->opened = true;
	pos_config_fields(model);
	model->rel = try_table_open(model->relid, AccessShareLock);
	if (model->rel == NULL)
		return;

	desc = RelationGetDescr(model->rel);
	for (int i = 0; i < model->nfields; i++)
	{
		PosField   *field = &model->fields[i];

		for (int a = 0; a < desc->natts; a++)
		{
			Form_pg_attribute attr = TupleDescAttr(desc, a);

			if (attr->attisdropped ||
				strcmp(NameStr(attr->attname), field->name) != 0)
				continue;
			field->attnum = attr->attnum;
			field->type = attr->atttypid;
			field->base = getBaseType(attr->atttypid);
			field->typmod = attr->atttypmod;
			field->collation = attr->attcollation;
			field->notnull = attr->attnotnull;
			if (attr->attgenerated)
				field->copy = false;
		}
	}
	model->local_int = model->nkey == 1 && pos_key_is_integer(model->key[0]->base);
	model->table_sql =
		psprintf("%s%s", model->rel->rd_rel->relkind == RELKIND_RELATION ? "ONLY " : "",
				 quote_qualified_identifier(get_namespace_name(RelationGetNamespace(model->rel)),
											RelationGetRelationName(model->rel)));
}

/*
 * Returns the foreign keys of a model's table, as a copy: the catalog cache may
 * drop its own list at any look-up.
 */
static List *
foreign_keys(PosModel *model)
{
	return copyObject(RelationGetFKeyList(model->rel));
}

/*
 * Whether a foreign key takes part: some of its columns are transferred, and
 * the others have a fixed value here.
 */
static bool
takes_part(PosModel *model, ForeignKeyCacheInfo *fk)
{
	bool		any = false;

	for (int i = 0; i < fk->nkeys; i++)
	{
		PosField   *field = find_field(model, fk->conkey[i]);

		if (field == NULL || !(field->copy || field->fixed != NULL))
			return false;
		any = any || field->copy;
	}
	return any;
}

/*
 * Whether a foreign key is the shadow that one to a partitioned table has for
 * every partition.
 */
static bool
is_shadow(ForeignKeyCacheInfo *fk)
{
	HeapTuple	tuple = SearchSysCache1(CONSTROID,
										ObjectIdGetDatum(fk->conoid));
	bool		result;

	if (!HeapTupleIsValid(tuple))
		return false;
	result = OidIsValid(((Form_pg_constraint) GETSTRUCT(tuple))->conparentid);
	ReleaseSysCache(tuple);
	return result;
}

/*
 * Returns the table that a foreign key refers to, InvalidOid if that is said by
 * another one.  A partition stands for the table that it is a part of.
 */
static Oid
referenced_table(ForeignKeyCacheInfo *fk)
{
	if (!get_rel_relispartition(fk->confrelid))
		return fk->confrelid;
	return is_shadow(fk) ? InvalidOid :
		llast_oid(get_partition_ancestors(fk->confrelid));
}

/*
 * Returns the model that a foreign key refers to, opened, or NULL.
 */
static PosModel *
referenced_model(PosTree *tree, ForeignKeyCacheInfo *fk)
{
	Oid			relid = referenced_table(fk);
	PosModel   *model = OidIsValid(relid) ? pos_config_of_table(tree, relid) : NULL;

	if (model != NULL)
		open_model(model);
	return model;
}

/*
 * Adds a reference by the given foreign key columns to the parent's key, and
 * makes it the supplier of every field that has none.
 */
static void
add_reference(PosModel *model, PosModel *parent, Oid constraint,
			  int nfields, AttrNumber *columns, AttrNumber *referenced)
{
	PosReference *reference = palloc0(sizeof(PosReference));

	reference->constraint = constraint;
	reference->parent = parent;
	reference->nfields = nfields;
	reference->fields = palloc(nfields * sizeof(PosField *));
	reference->parts = palloc(nfields * sizeof(int));
	reference->staged = -1;
	for (int i = 0; i < nfields; i++)
	{
		reference->fields[i] = find_field(model, columns[i]);
		reference->parts[i] = pos_key_part(parent, referenced[i]);
		if (reference->fields[i]->copy && reference->fields[i]->supplier == NULL)
			reference->fields[i]->supplier = reference;
	}
	model->references = lappend(model->references, reference);
}

/*
 * Finds the columns that refer to wanted ones of the parent, and those in turn
 * that these refer to.  Returns their number; 0 if all are supplied already.
 */
static int
pick_columns(PosModel *model, int n, AttrNumber *columns,
			 AttrNumber *referenced, int nwanted, AttrNumber *wanted,
			 AttrNumber *next, AttrNumber *picked, AttrNumber *picked_next)
{
	int			npicked = 0;
	bool		news = false;

	for (int w = 0; w < nwanted; w++)
		for (int i = 0; i < n; i++)
			if (referenced[i] == wanted[w])
			{
				PosField   *field = find_field(model, columns[i]);

				news = news || (field->copy && field->supplier == NULL);
				picked[npicked] = columns[i];
				picked_next[npicked++] = next[w];
				break;
			}
	return news ? npicked : 0;
}

static void follow_columns(PosTree *tree, PosModel *model, int n,
						   AttrNumber *columns, PosModel *parent,
						   AttrNumber *referenced, int depth);

/*
 * Follows columns through one foreign key of the parent, which they refer to
 * the columns of: to all of them or, if not whole, to some.
 */
static void
follow_foreign_key(PosTree *tree, PosModel *model, int n, AttrNumber *columns,
				   PosModel *parent, AttrNumber *referenced, int depth,
				   ForeignKeyCacheInfo *fk, bool whole)
{
	AttrNumber	picked[INDEX_MAX_KEYS];
	AttrNumber	picked_next[INDEX_MAX_KEYS];
	int			npicked = pick_columns(model, n, columns, referenced, fk->nkeys,
									   fk->conkey, fk->confkey, picked,
									   picked_next);
	PosModel   *next;

	if (npicked == 0 || (whole && npicked < fk->nkeys) ||
		!takes_part(parent, fk))
		return;
	next = referenced_model(tree, fk);
	if (next != NULL && next != parent)
		follow_columns(tree, model, npicked, picked, next, picked_next,
					   depth + 1);
}

/*
 * Columns that refer to columns which are not just the parent's key: those that
 * are the key are a reference to it.  Others may refer to a third model there,
 * together or alone, directly or through more models; then so do these here.
 * What is left is copied like any other value.
 *
 * As in find_references, keys of more columns come last.
 */
static void
follow_columns(PosTree *tree, PosModel *model, int n, AttrNumber *columns,
			   PosModel *parent, AttrNumber *referenced, int depth)
{
	AttrNumber	key[INDEX_MAX_KEYS];
	AttrNumber	picked[INDEX_MAX_KEYS];
	List	   *fks;
	ListCell   *lc;

	for (int i = 0; i < parent->nkey; i++)
		key[i] = parent->key[i]->attnum;
	if (pick_columns(model, n, columns, referenced, parent->nkey, key, key,
					 picked, key) == parent->nkey)
		add_reference(model, parent, InvalidOid, parent->nkey, picked, key);
	if (parent->rel == NULL || depth == MAX_CHAIN)
		return;
	fks = foreign_keys(parent);
	for (int nkeys = 1; nkeys <= n; nkeys++)
		foreach(lc, fks)
			if (((ForeignKeyCacheInfo *) lfirst(lc))->nkeys == nkeys)
			follow_foreign_key(tree, model, n, columns, parent, referenced,
							   depth, lfirst(lc), true);
	foreach(lc, fks)
		follow_foreign_key(tree, model, n, columns, parent, referenced, depth,
						   lfirst(lc), false);
}

/* Turns one foreign key into references. */
static void
resolve_foreign_key(PosTree *tree, PosModel *model, ForeignKeyCacheInfo *fk,
					PosModel *parent)
{
	bool		whole = fk->nkeys == parent->nkey;

	for (int i = 0; i < fk->nkeys; i++)
		whole = whole && pos_key_part(parent, fk->confkey[i]) >= 0;
	if (whole)
		add_reference(model, parent, fk->conoid, fk->nkeys, fk->conkey,
					  fk->confkey);
	else
		follow_columns(tree, model, fk->nkeys, fk->conkey, parent,
					   fk->confkey, 0);
}

/*
 * Finds the references of one model.  Keys of more columns come last, so that
 * a column shared by several foreign keys is supplied by its own.
 */
static void
find_references(PosTree *tree, PosModel *model)
{
	List	   *fks = foreign_keys(model);
	ListCell   *lc;

	for (int nkeys = 1; nkeys <= INDEX_MAX_KEYS; nkeys++)
		foreach(lc, fks)
	{
		ForeignKeyCacheInfo *fk = lfirst(lc);
		PosModel   *parent;

		if (fk->nkeys != nkeys || !takes_part(model, fk))
			continue;
		parent = referenced_model(tree, fk);
		if (parent == NULL)
			continue;
		if (parent->on_unknown == POS_IGNORE)
		{
			/* its rows are never here: nothing to refer to */
			for (int i = 0; i < fk->nkeys; i++)
				find_field(model, fk->conkey[i])->copy = false;
			continue;
		}
		model->depends = list_append_unique_ptr(model->depends, parent);
		resolve_foreign_key(tree, model, fk, parent);
	}
}

/* Tarjan's algorithm over the models that one leads to. */
typedef struct Walk
{
	PosTree    *tree;
	List	   *stack;
	int			next_index;
} Walk;

static void visit(Walk *walk, PosModel *model);

static void
follow(Walk *walk, PosModel *from, PosModel *to)
{
	if (to->index == 0)
	{
		visit(walk, to);
		from->lowlink = Min(from->lowlink, to->lowlink);
	}
	else if (to->on_stack)
		from->lowlink = Min(from->lowlink, to->index);
}

static void
visit(Walk *walk, PosModel *model)
{
	PosComponent *component;
	PosModel   *member;
	ListCell   *lc;

	check_stack_depth();
	open_model(model);
	if (model->rel != NULL)
		find_references(walk->tree, model);
	model->index = model->lowlink = ++walk->next_index;
	model->on_stack = true;
	walk->stack = lappend(walk->stack, model);

	foreach(lc, model->depends)
		follow(walk, model, lfirst(lc));

	if (model->lowlink != model->index)
		return;

	/*
	 * model is the first of its component; the rest of the stack belongs to
	 * it
	 */
	component = palloc0(sizeof(PosComponent));
	do
	{
		member = llast(walk->stack);
		walk->stack = list_delete_last(walk->stack);
		member->on_stack = false;
		member->component = component;
		/* the order in which rows arrive, hence the tree's */
		component->models = lappend(component->models, member);
		walk->tree->models = lappend(walk->tree->models, member);
	} while (member != model);
	component->inner = list_length(component->models) > 1 ||
		list_member_ptr(model->depends, model);
	walk->tree->components = lappend(walk->tree->components, component);
}

/* Adds a model's children, and theirs, in the order of the walk. */
static void
visit_children(Walk *walk, PosModel *model)
{
	ListCell   *lc;

	foreach(lc, pos_config_children(walk->tree, model))
	{
		PosModel   *child = lfirst(lc);

		if (child->index != 0)
			continue;
		visit(walk, child);
		visit_children(walk, child);
	}
}

static void
mark_inner_references(PosTree *tree)
{
	ListCell   *lc;
	ListCell   *lc2;

	foreach(lc, tree->models)
	{
		PosModel   *model = lfirst(lc);

		foreach(lc2, model->references)
		{
			PosReference *reference = lfirst(lc2);

			reference->inner =
				reference->parent->component == model->component;
		}
	}
}

/*
 * Loads the tree of a root model: configuration, local catalog, order; with
 * all, every other model of its server too.  Errors when there is no such
 * model; everything else that may be wrong is left to pos_tree_check.
 *
 * Models are read as the walk comes to them, so what this costs does not depend on
 * how many others there are.
 */
PosTree *
pos_tree_load(const char *name, bool all)
{
	PosTree    *tree = palloc0(sizeof(PosTree));
	Walk		walk = {.tree = tree};
	ListCell   *lc;

	PushActiveSnapshot(GetTransactionSnapshot());
	tree->root = pos_config_root(tree, name);
	visit(&walk, tree->root);
	visit_children(&walk, tree->root);
	if (all)
		foreach(lc, pos_config_models(tree))
			if (((PosModel *) lfirst(lc))->index == 0)
			visit(&walk, lfirst(lc));
	mark_inner_references(tree);
	PopActiveSnapshot();
	return tree;
}

/* Closes the tables of a tree; locks stay. */
void
pos_tree_close(PosTree *tree)
{
	ListCell   *lc;

	foreach(lc, tree->configured)
	{
		PosModel   *model = lfirst(lc);

		if (model->rel != NULL)
			table_close(model->rel, NoLock);
	}
}

/* Whether rows of a model's table are still told apart by its key. */
static bool
is_unique(PosModel *model)
{
	Bitmapset  *key = NULL;
	bool		unique = false;
	ListCell   *lc;

	for (int i = 0; i < model->nkey; i++)
		key = bms_add_member(key, model->key[i]->attnum);
	foreach(lc, RelationGetIndexList(model->rel))
	{
		Relation	index = index_open(lfirst_oid(lc), AccessShareLock);
		Form_pg_index form = index->rd_index;
		Bitmapset  *columns = NULL;

		for (int i = 0; i < form->indnkeyatts; i++)
			columns = bms_add_member(columns, form->indkey.values[i]);
		unique = unique ||
			(form->indisunique && form->indimmediate && form->indisvalid &&
			 RelationGetIndexPredicate(index) == NIL &&
			 bms_equal(columns, key));
		bms_free(columns);
		index_close(index, NoLock);
	}
	return unique;
}

/* Adds a sentence for whatever keeps a model's key from being one. */
static List *
check_key(PosModel *model, List *sentences)
{
	bool		complete = true;

	for (int i = 0; i < model->nkey; i++)
	{
		PosField   *field = model->key[i];

		if (field->attnum == 0)
			sentences = lappend(sentences,
								psprintf("key column \"%s\" of table %s does not exist any more",
										 field->name, model->name));
		else if (!pos_compat_has_no_nulls(RelationGetDescr(model->rel), field->attnum))
			sentences = lappend(sentences,
								psprintf("key column \"%s\" of table %s may be null; ALTER TABLE ... ALTER COLUMN ... SET NOT NULL",
										 field->name, model->name));
		else if (field->fixed != NULL)
			sentences = lappend(sentences,
								psprintf("key column \"%s\" of table %s has a fixed value",
										 field->name, model->name));
		complete = complete && field->attnum != 0;
	}
	if (complete && !is_unique(model))
		sentences = lappend(sentences,
							psprintf("table %s has no primary key or unique constraint over its key columns any more",
									 model->name));
	return sentences;
}

/* Whether a table is one of the tree's. */
static bool
is_in_tree(PosTree *tree, Oid relid)
{
	PosModel   *model = pos_config_known(tree, relid);

	return model != NULL && model->component != NULL;
}

/* Adds a sentence for every foreign key that leads out of the configuration. */
static List *
check_foreign_keys(PosTree *tree, PosModel *model, List *sentences)
{
	ListCell   *lc;

	foreach(lc, foreign_keys(model))
	{
		ForeignKeyCacheInfo *fk = lfirst(lc);
		Oid			relid = referenced_table(fk);

		if (!OidIsValid(relid) || !takes_part(model, fk) ||
			is_in_tree(tree, relid))
			continue;
		sentences = lappend(sentences,
							psprintf("table %s refers to %s, which is not configured for server \"%s\"; call possync_add_model('%s', server => '%s') again, or leave column \"%s\" out",
									 model->name,
									 get_rel_name(fk->confrelid),
									 tree->server, model->name, tree->server,
									 find_field(model, fk->conkey[0])->name));
	}
	return sentences;
}

/* Whether a type is a domain that refuses nulls, itself or one it is over. */
static bool
refuses_null(Oid type)
{
	while (get_typtype(type) == TYPTYPE_DOMAIN)
	{
		HeapTuple	tuple = SearchSysCache1(TYPEOID, ObjectIdGetDatum(type));
		bool		notnull;

		if (!HeapTupleIsValid(tuple))
			elog(ERROR, "cache lookup failed for type %u", type);
		notnull = ((Form_pg_type) GETSTRUCT(tuple))->typnotnull;
		type = ((Form_pg_type) GETSTRUCT(tuple))->typbasetype;
		ReleaseSysCache(tuple);
		if (notnull)
			return true;
	}
	return false;
}

/* Adds a sentence for every column that a new row needs and nobody supplies. */
static List *
check_required(PosModel *model, List *sentences)
{
	TupleDesc	desc = RelationGetDescr(model->rel);

	for (int a = 0; a < desc->natts; a++)
	{
		Form_pg_attribute attr = TupleDescAttr(desc, a);
		PosField   *field;
		bool		is_key;

		if (attr->attisdropped || attr->attgenerated ||
			!(attr->attnotnull || refuses_null(attr->atttypid)) ||
			build_column_default(model->rel, attr->attnum) != NULL)
			continue;
		field = find_field(model, attr->attnum);
		if (field != NULL && (field->copy || field->fixed != NULL))
			continue;
		is_key = field != NULL && field->is_key;
		sentences = lappend(sentences,
							psprintf("column \"%s\" of table %s must not be null, has no default, and is neither copied nor fixed; give it %s possync_set_field('%s', '%s', %s)",
									 NameStr(attr->attname), model->name,
									 is_key ? "a default again, or copy it with" : "a value with",
									 model->name, NameStr(attr->attname),
									 is_key ? "copy => true" : "fixed => ..."));
	}
	return sentences;
}

/*
 * Compares the configuration of a model with the local catalog.  Returns a
 * sentence for everything that does not fit, NIL if all is well.
 */
List *
pos_tree_check(PosTree *tree, PosModel *model)
{
	List	   *sentences = NIL;

	if (model->rel == NULL)
		return list_make1(psprintf("the local table of model \"%s\" does not exist any more; remove the model with possync_remove_model(%s, forget => true)",
								   model->name, quote_literal_cstr(model->name)));
	sentences = check_key(model, sentences);
	for (int i = 0; i < model->nfields; i++)
		if (model->fields[i].attnum == 0 && !model->fields[i].is_key)
			sentences = lappend(sentences,
								psprintf("column \"%s\" of table %s does not exist any more",
										 model->fields[i].name, model->name));
	if (model->on_delete == POS_DELETE_DEACTIVATE &&
		get_attnum(model->relid, model->inactive_field) == InvalidAttrNumber)
		sentences = lappend(sentences,
							psprintf("column \"%s\" of table %s, which tells that a row is deactivated, does not exist any more; name another one with possync_set_model(%s, inactive_field => ...)",
									 model->inactive_field, model->name,
									 quote_literal_cstr(model->name)));
	if (model->on_unknown == POS_IGNORE)
		return sentences;
	sentences = check_foreign_keys(tree, model, sentences);
	if (model->on_unknown != POS_MATCH_ONLY)
		sentences = check_required(model, sentences);
	return sentences;
}
