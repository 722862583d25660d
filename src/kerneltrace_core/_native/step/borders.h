/* SPDX-License-Identifier: MIT */
/*
 * Borders: a thread's owner changes, and the time since the last border is charged.
 *
 * The clock is read before the store on the way in and after it on the way out:
 * the time booked here always contains the window that the kernel sees. It is read as
 * late as can be, for a switch between the two is not in that window and would pass for
 * time on the CPU.
 */
#ifndef KT_STEP_BORDERS_H
#define KT_STEP_BORDERS_H

#include "callbacks.h"
#include "cells.h"
#include "clock.h"
#include "ledger.h"
#include "loop_wait.h"

/* Charges the owner that ends here. Takes over the caller's reference to the new
 * one and hands out the old one's: releasing it may run Python. */
static Record *change_owner(struct thread *t, Record *owner, uint64_t now)
{
	Record *before = t->owner;

	if (before) {
		if (t->bank == HOME)
			before->ledger.run_ns += now - t->since_ns;
		else
			before->ledger.thread_ns += now - t->since_ns;
		*t->link = t->next;
		if (t->next)
			t->next->link = t->link;
	}
	t->owner = owner;
	t->bank = bank_of(t, owner);
	t->since_ns = now;
	if (owner) {
		t->next = owner->active;
		t->link = &owner->active;
		if (t->next)
			t->next->link = &t->next;
		owner->active = t;
	}
	return before;
}

/* Begin to work for `r` (NULL: nobody). A closed record's work is nobody's. */
static void enter(struct thread *t, Record *r, PyObject *coro, struct visit *visit)
{
	bool asked = false;
	uint64_t now;

	visit->border = false;
	if (r && !r->closed && t->region != r->region && r->region->memory)
		join_region(t, r->region);
	if (r && r->closed)
		r = NULL;
	if (t->owner == r)
		return;

	be_seen(t);
	now = clock_ns();
	sample(t, now);
	if (r && r->home == t->serial && !r->depth)
		asked = add_loop_wait(t, r, coro, now);
	/* That took time. What a sampler was told, though, ends when it was told. */
	if (asked && !sampler_of(t))
		now = clock_ns();
	/* What was called in Python may have been here, too. */
	if (now < t->since_ns)
		now = t->since_ns;

	visit->border = true;
	visit->entered = r;
	if (r)
		begin_visit(t, r, now);
	Py_XINCREF(r);
	visit->previous = change_owner(t, r, now);
	publish(t, r, t->bank);
}

static void restore(struct thread *t, Record *entered, Record *previous)
{
	uint64_t now;

	be_seen(t);
	publish(t, previous, bank_of(t, previous));
	now = clock_ns();
	previous = change_owner(t, previous, now);
	if (entered)
		end_visit(t, entered, now);
	Py_XDECREF(previous);
}

static void leave(struct thread *t, struct visit *visit)
{
	if (!visit->border)
		return;
	if (sampler_of(t))
		sample(t, clock_ns()); /* reads the cell, so before the store */
	restore(t, visit->entered, visit->previous);
}

#endif
