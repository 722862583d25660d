/* SPDX-License-Identifier: MIT */
/* Cells: where a thread says, with one store, for whom it works. */
#ifndef KT_STEP_CELLS_H
#define KT_STEP_CELLS_H

#include "types.h"

#include <unistd.h>

static volatile uint64_t *entry_of(struct thread *t)
{
	return t->region && t->region->memory ? t->entry : t->hidden;
}

/* A record of another region, or a closed one, is never published. */
static void publish(struct thread *t, Record *owner, int bank)
{
	uint64_t value = 0;

	if (owner && owner->value && owner->region == t->region)
		value = owner->value | (uint64_t)bank << BANK_SHIFT;
	entry_of(t)[CELL] = value;
}

/* To be called before what the kernel has charged is compared with time measured here.
 *
 * It says that this thread is off its CPU, which runs: it has not seen the switch back, as on
 * machines that hide a process from tracing. At a system call it looks, and charges the time
 * off CPU until then. The call is nobody's. */
static void be_seen(struct thread *t)
{
	volatile uint64_t *entry = entry_of(t);
	uint64_t cell;

	if (!entry[OFF_NS])
		return;
	cell = entry[CELL];
	entry[CELL] = 0;
	getegid(); /* any call would do */

	/* Should nobody be looking (any more). */
	entry[OFF_NS] = 0;
	entry[CELL] = cell;
}

static int bank_of(struct thread *t, Record *owner)
{
	return owner && owner->home != t->serial ? THREADS : HOME;
}

static void bind_thread(struct thread *t, Region *region, uint64_t *entry)
{
	Region *before = t->region;

	entry_of(t)[CELL] = 0;
	Py_XINCREF(region);
	t->region = region;
	t->entry = entry ? entry : t->hidden;
	publish(t, t->owner, t->bank);
	Py_XDECREF(before);
}

#endif
