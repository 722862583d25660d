/* SPDX-License-Identifier: MIT */
/* Loop wait: how much of a gap the record was ready, but the loop did other things. */
#ifndef KT_STEP_LOOP_WAIT_H
#define KT_STEP_LOOP_WAIT_H

#include "callbacks.h"
#include "clock.h"

/* It cannot have become ready before the last poll that slept began to return,
 * and it was ready when the last poll of all returned. True if Python was asked. */
static bool add_loop_wait(struct thread *t, Record *r, PyObject *coro, uint64_t now)
{
	uint64_t gap = since(now, r->left_ns), min = gap, max = gap, ready;
	bool asked = false;

	if (!r->queued) {
		volatile uint64_t *entry = entry_of(t);
		uint64_t poll_ns = entry[POLL_NS];

		max = least(gap, since(now, entry[POLL_SLEEP_NS]));
		min = poll_ns ? least(max, since(now, poll_ns)) : 0;
		/* With several steps it cannot be told which one's readiness ended the gap. */
		if (max - min > r->region->doubt_ns && coro && r->live == 1) {
			ready = ask_ready_at(r->region, coro);
			asked = true;
			if (ready)
				min = max = least(max, most(min, since(now, ready)));
		}
	}
	r->ledger.loop_wait_min_ns += min;
	r->ledger.loop_wait_max_ns += max;
	return asked;
}

#endif
