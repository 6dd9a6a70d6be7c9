/*
 * pairs.c
 *		A map from int8 to int8 for keys that come in ascending order, in some
 *		three bytes for each.
 *
 * A first load makes millions of keys here for millions of keys there, and both
 * come from sequences.  A block holds its first pair as it is, and the others as
 * differences from the one before, 7 bits to a byte.  What is looked for in the
 * order in which it was put is found in the block found last.
 */
#include "possync.h"

#include "pairs.h"
#include "utils/memutils.h"

/* A block, and how many are allocated at once */
#define BLOCK_BYTES		128
#define CHUNK_BLOCKS	256

/* Two differences need no more bytes than these */
#define MAX_PAIR_BYTES	20

typedef struct Block
{
	int64		first_from;
	int64		first_to;
	int32		used;			/* bytes */
	uint8		bytes[BLOCK_BYTES - 20];
} Block;

struct PosPairs
{
	MemoryContext context;
	int64		last_from;
	int64		last_to;
	int			nblocks;
	int			found;			/* number of the block found last */
	int			nchunks;		/* there is room for */
	Block	  **chunks;
};

/* Returns an empty map that lives in a memory context. */
PosPairs *
pos_pairs_create(MemoryContext context)
{
	PosPairs   *pairs = MemoryContextAllocZero(context, sizeof(PosPairs));

	pairs->context = context;
	return pairs;
}

static Block *
get_block(PosPairs *pairs, int number)
{
	return &pairs->chunks[number / CHUNK_BLOCKS][number % CHUNK_BLOCKS];
}

/* Appends a block that begins with a pair. */
static void
add_block(PosPairs *pairs, int64 from, int64 to)
{
	int			chunk = pairs->nblocks / CHUNK_BLOCKS;
	Block	   *block;

	if (chunk == pairs->nchunks)
	{
		pairs->nchunks = Max(2 * pairs->nchunks, 16);
		pairs->chunks = pairs->chunks == NULL ?
			MemoryContextAlloc(pairs->context, pairs->nchunks * sizeof(Block *)) :
			repalloc(pairs->chunks, pairs->nchunks * sizeof(Block *));
	}
	if (pairs->nblocks % CHUNK_BLOCKS == 0)
		pairs->chunks[chunk] = MemoryContextAlloc(pairs->context,
												  CHUNK_BLOCKS * sizeof(Block));
	block = get_block(pairs, pairs->nblocks++);
	block->first_from = from;
	block->first_to = to;
	block->used = 0;
}

static void
put_number(Block *block, uint64 number)
{
	while (number >= 0x80)
	{
		block->bytes[block->used++] = (uint8) number | 0x80;
		number >>= 7;
	}
	block->bytes[block->used++] = (uint8) number;
}

static uint64
get_number(const uint8 **p)
{
	uint64		number = 0;
	int			shift = 0;

	while (**p & 0x80)
	{
		number |= (uint64) (*(*p)++ & 0x7f) << shift;
		shift += 7;
	}
	return number | (uint64) *(*p)++ << shift;
}

/*
 * Appends a pair.  Returns false, and does nothing, unless from is greater than
 * any before.
 */
bool
pos_pairs_put(PosPairs *pairs, int64 from, int64 to)
{
	Block	   *block;
	uint64		step;

	if (pairs->nblocks > 0 && from <= pairs->last_from)
		return false;
	block = pairs->nblocks > 0 ? get_block(pairs, pairs->nblocks - 1) : NULL;
	if (block == NULL || block->used > (int) sizeof(block->bytes) - MAX_PAIR_BYTES)
		add_block(pairs, from, to);
	else
	{
		/* small steps down are small numbers, too: the sign comes last */
		step = (uint64) to - (uint64) pairs->last_to;
		put_number(block, (uint64) from - (uint64) pairs->last_from);
		put_number(block, step << 1 ^ -(step >> 63));
	}
	pairs->last_from = from;
	pairs->last_to = to;
	return true;
}

/* Whether a key can only be in a block. */
static bool
covers(PosPairs *pairs, int number, int64 from)
{
	return number < pairs->nblocks &&
		get_block(pairs, number)->first_from <= from &&
		(number + 1 == pairs->nblocks ||
		 from < get_block(pairs, number + 1)->first_from);
}

/* Returns the number of the last block that begins at or before a key, or -1. */
static int
find_block(PosPairs *pairs, int64 from)
{
	int			low = -1;
	int			high = pairs->nblocks;

	if (covers(pairs, pairs->found, from))
		return pairs->found;
	if (covers(pairs, pairs->found + 1, from))
		return pairs->found + 1;
	while (high - low > 1)
	{
		int			middle = low + (high - low) / 2;

		if (get_block(pairs, middle)->first_from <= from)
			low = middle;
		else
			high = middle;
	}
	return low;
}

/* Finds what belongs to a key; returns false if there is nothing. */
bool
pos_pairs_find(PosPairs *pairs, int64 from, int64 *to)
{
	int			number = find_block(pairs, from);
	const Block *block;
	const uint8 *p;
	uint64		at;
	uint64		value;

	if (number < 0)
		return false;
	pairs->found = number;
	block = get_block(pairs, number);
	at = (uint64) block->first_from;
	value = (uint64) block->first_to;
	p = block->bytes;
	while ((int64) at < from && p < block->bytes + block->used)
	{
		uint64		step;

		at += get_number(&p);
		step = get_number(&p);
		value += step >> 1 ^ -(step & 1);
	}
	*to = (int64) value;
	return (int64) at == from;
}
