/*
 * keys.c
 *		Keys that the remote made for rows to be created there.
 *
 * They come from the remote's own defaults, so that two who create rows never
 * get the same.  Some are made ahead, in the round trip of a write, and spare
 * the next batch a round trip of its own.  What is left of them is lost with the
 * process: numbers of a sequence that nobody uses.
 */
#include "possync.h"

#include "push.h"
#include "utils/memutils.h"

/* Keys made ahead for who sends a few rows at a time, per model */
#define AHEAD_FEW	100

/* Keys of one model that are not used yet */
typedef struct Stock
{
	int16		model;
	char	   *source;			/* identity of the remote; NULL: not known */
	char	   *remote;			/* the table that made them */
	int			ncolumns;		/* columns of each that are made there */
	MemoryContext context;		/* of texts; they are used up from first on */
	int			nkeys;
	int			first;
	char	  **texts;
	int			used;			/* by the batch at hand */
	int			coming;			/* asked for, in a write on its way */
} Stock;

static List *stocks = NIL;

/* Whether a column of a model's key is made at the remote. */
bool
pos_keys_is_made(PosField *field)
{
	return !field->copy && field->supplier == NULL && field->fixed == NULL;
}

/* Whether any column of a model's key is. */
bool
pos_keys_are_made(PosModel *model)
{
	for (int i = 0; i < model->nkey; i++)
		if (pos_keys_is_made(model->key[i]))
			return true;
	return false;
}

static int
count_made(PosModel *model)
{
	int			n = 0;

	for (int i = 0; i < model->nkey; i++)
		n += pos_keys_is_made(model->key[i]);
	return n;
}

/* Throws away what is left of a stock. */
static void
empty(Stock *stock)
{
	MemoryContextReset(stock->context);
	stock->nkeys = stock->first = 0;
	stock->texts = NULL;
}

/* Whether keys that a remote made are good for one; NULL: not known. */
static bool
is_good(Stock *stock, const char *source)
{
	return source == NULL ||
		(stock->source != NULL && strcmp(stock->source, source) == 0);
}

/*
 * Returns the stock of a model, which is empty if what it was for has changed, be it
 * that another server has come in the remote's place, or an older state of it, which
 * gives the same keys to others.
 */
static Stock *
find_stock(PosRun *run, PosModel *model)
{
	const char *source = run->connection->ops->source(run->connection);
	Stock	   *stock = NULL;
	MemoryContext old;
	ListCell   *lc;

	foreach(lc, stocks)
		if (((Stock *) lfirst(lc))->model == model->id)
		stock = lfirst(lc);
	old = MemoryContextSwitchTo(TopMemoryContext);
	if (stock == NULL)
	{
		stock = palloc0(sizeof(Stock));
		stock->model = model->id;
		stock->context = AllocSetContextCreate(TopMemoryContext, "possync keys",
											   ALLOCSET_DEFAULT_SIZES);
		stocks = lappend(stocks, stock);
	}
	if (!is_good(stock, source) || stock->remote == NULL ||
		strcmp(stock->remote, model->remote) != 0 ||
		stock->ncolumns != count_made(model))
	{
		if (stock->source != NULL)
			pfree(stock->source);
		if (stock->remote != NULL)
			pfree(stock->remote);
		stock->source = source == NULL ? NULL : pstrdup(source);
		stock->remote = pstrdup(model->remote);
		stock->ncolumns = count_made(model);
		empty(stock);
	}
	MemoryContextSwitchTo(old);
	return stock;
}

/* Adds a step that makes so many keys for a model. */
static void
add_step(PosModel *model, int n, PosSteps *steps)
{
	PosStep    *step = pos_steps_add(steps, model, POS_STEP_KEYS);

	step->nrows = n;
	for (int i = 0; i < model->nkey; i++)
		if (pos_keys_is_made(model->key[i]))
			step->columns[step->ncolumns++] = model->key[i]->remote;
}

/*
 * Adds a step, if need be, so that n rows of a model can get keys.  If batches of
 * its kind follow, the next one does not have to ask either: it is prepared
 * before the keys arrive that this one asks for ahead.
 */
void
pos_keys_need(PosRun *run, PosModel *model, int n, PosSteps *steps)
{
	Stock	   *stock = find_stock(run, model);
	int			more = run->whole->more && !run->whole->late_keys ?
	pos_batch_coming(run->whole, n, 1) : 0;

	/* they tell when they were made, and cost nothing */
	if (run->whole->late_keys)
		empty(stock);

	stock->used = n;
	if (stock->ncolumns > 0 && n > stock->nkeys - stock->first)
		add_step(model, n + more - (stock->nkeys - stock->first), steps);
}

/*
 * Adds steps that make keys ahead: as many as the next two batches use, if more of
 * its kind follow, else a few.  None for a model that got none now: it may be one
 * that the remote makes no keys for.
 */
void
pos_keys_ahead(PosRun *run, PosBatch *batch, bool more, PosSteps *steps)
{
	ListCell   *lc;

	if (run->whole->late_keys)
		return;
	foreach(lc, batch->models)
	{
		PosModel   *model = lfirst(lc);
		Stock	   *stock = find_stock(run, model);
		int			n = more ? pos_batch_coming(run->whole, stock->used, 2) :
		Min(stock->used, AHEAD_FEW);

		n -= stock->nkeys - stock->first + stock->coming;
		if (stock->ncolumns > 0 && stock->used > 0 && n > 0)
		{
			add_step(model, n, steps);
			stock->coming += n;
		}
	}
}

/* What was asked for ahead and is not here yet will not come. */
void
pos_keys_lost(void)
{
	ListCell   *lc;

	foreach(lc, stocks)
		((Stock *) lfirst(lc))->coming = 0;
}

/* Takes the keys that were made into stock; frees those that are used. */
void
pos_keys_take(PosRun *run, PosSteps *steps)
{
	for (int i = 0; i < steps->nsteps; i++)
	{
		PosStep    *step = steps->steps[i];
		Stock	   *stock;
		int			from;
		int			kept;
		char	  **texts;

		if (step->kind != POS_STEP_KEYS)
			continue;
		stock = find_stock(run, pos_steps_model(run, step));
		stock->coming = Max(stock->coming - step->nrows, 0);
		if (step->nanswers == 0)
			continue;
		from = stock->first * stock->ncolumns;
		kept = stock->nkeys * stock->ncolumns - from;
		texts = MemoryContextAlloc(stock->context,
								   (kept + step->nanswers * stock->ncolumns) * sizeof(char *));
		for (int j = 0; j < from; j++)
			pfree(stock->texts[j]);
		for (int j = 0; j < kept; j++)
			texts[j] = stock->texts[from + j];
		for (int j = 0; j < step->nanswers * stock->ncolumns; j++)
			texts[kept + j] = MemoryContextStrdup(stock->context, step->answers[j]);
		if (stock->texts != NULL)
			pfree(stock->texts);
		stock->texts = texts;
		stock->nkeys += step->nanswers - stock->first;
		stock->first = 0;
	}
}

/*
 * Returns the next key of a model: the texts of its columns that are made at the
 * remote.  Errors if the remote made fewer than were needed.
 */
char	  **
pos_keys_next(PosRun *run, PosModel *model)
{
	Stock	   *stock = find_stock(run, model);

	if (stock->ncolumns > 0 && stock->first == stock->nkeys)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("keys that remote table %s made are those of rows there already",
						model->remote),
				 errhint("Its sequence has fallen behind its rows; set it right there with setval.")));
	return &stock->texts[stock->first++ * stock->ncolumns];
}

/*
 * Rows that were inserted have other keys than those they were sent under, if keys
 * are late: from now on they are translated into these.
 */
void
pos_keys_learn(PosRun *run, PosSteps *steps)
{
	for (int i = 0; i < steps->nsteps; i++)
	{
		PosStep    *step = steps->steps[i];
		PosModel   *model;
		Datum	   *given;
		Datum	   *got;

		if (step->kind != POS_STEP_INSERT || step->nanswers == 0)
			continue;
		model = pos_steps_model(run, step);
		given = palloc(step->nanswers * sizeof(Datum));
		got = palloc(step->nanswers * sizeof(Datum));
		for (int j = 0; j < step->nanswers; j++)
		{
			given[j] = pos_steps_key(model, &step->given[j * model->nkey]);
			got[j] = pos_steps_key(model, &step->answers[j * model->nkey]);
		}
		pos_batch_learn(model, step->nanswers, given, got);
	}
}
