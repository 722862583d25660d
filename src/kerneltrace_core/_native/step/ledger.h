/* SPDX-License-Identifier: MIT */
/*
 * The ledger: a record's time, which always sums to end - start.
 *
 * run grows at borders, nested at the end of an activation, gap at the beginning
 * of the next; who reads it adds what is still under way.
 */
#ifndef KT_STEP_LEDGER_H
#define KT_STEP_LEDGER_H

#include "cells.h"
#include "clock.h"

static void note_helper(Record *r, uint64_t serial)
{
	uint64_t i, count = r->ledger.threads, *helpers;

	for (i = count; i-- > 0;)
		if (r->helpers[i] == serial)
			return;
	if (!(count & (count - 1))) { /* full at 0, 1, 2, 4, 8 ... */
		helpers = PyMem_Realloc(r->helpers, (count ? 2 * count : 1) * sizeof(*helpers));
		if (!helpers)
			return;
		r->helpers = helpers;
	}
	r->helpers[count] = serial;
	r->ledger.threads++;
}

static void begin_visit(struct thread *t, Record *r, uint64_t now)
{
	if (r->region != t->region || entry_of(t) == t->hidden)
		r->ledger.flags |= FLAG_UNSEEN;
	if (!r->home) {
		r->home = t->serial;
		r->ledger.start_ns = r->left_ns = now;
	}
	if (r->home != t->serial) {
		note_helper(r, t->serial);
		return;
	}
	if (r->depth++)
		return;
	r->ledger.steps++;
	r->ledger.gap_ns += now - r->left_ns;
	r->entered_ns = now;
	r->entered_run_ns = r->ledger.run_ns;
}

/* Of the outermost activation: its time up to now that other owners had. */
static void add_activation(struct ledger *ledger, Record *r, uint64_t now)
{
	uint64_t stay = now - r->entered_ns;

	ledger->nested_ns += stay - (ledger->run_ns - r->entered_run_ns);
	ledger->loop_block_max_ns = most(ledger->loop_block_max_ns, stay);
}

static void end_visit(struct thread *t, Record *r, uint64_t now)
{
	if (r->home != t->serial || !r->depth || --r->depth)
		return;
	add_activation(&r->ledger, r, now);
	r->left_ns = now;
}

/* Complete the ledger up to now, with what is still under way. */
static void read_ledger(Record *r, struct ledger *out)
{
	uint64_t now = clock_ns(), off;
	struct thread *t;

	*out = r->ledger;
	if (!r->home)
		out->start_ns = now;
	out->end_ns = now;
	out->value = r->value;
	out->in_flight = r->live;
	for (t = r->active; t; t = t->next) {
		if (t->bank == HOME) {
			out->run_ns += now - t->since_ns;
			continue;
		}
		/* The kernel charges time off CPU when it ends: then it will be late. */
		off = entry_of(t)[OFF_NS];
		out->thread_ns += since(off ? least(off, now) : now, t->since_ns);
		out->in_flight++;
	}
	if (r->depth)
		add_activation(out, r, now);
	else if (r->home)
		out->gap_ns += now - r->left_ns;
}

#endif
