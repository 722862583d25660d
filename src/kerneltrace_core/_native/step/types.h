/* SPDX-License-Identifier: MIT */
/*
 * The words, numbers and structs of the step engine, and its state.
 *
 *   cell        one u64 per OS thread: the slot to charge, or 0; see kt_region.h
 *   entry       a thread's words in the region: its cell, and what the kernel
 *               says about the thread
 *   slot        a record's counters in the region, written by the kernel
 *   generation  how often a slot was used; a cell of another one is late
 *   record      one request: the slot it took, and its ledger
 *   ledger      the record's time, measured here
 *   block       a copy of slot and ledger at one moment
 *   reading     what KernelStats is made of: a record's block, live until frozen
 *   exchange    the `send` of one request: it notes how the response begins and
 *               ends
 *   owner       the record a thread works for; NULL: nobody
 *   border      the moment when a thread's owner changes
 *   visit       one stay of a thread with an owner, from border to border
 *   home        the first thread that worked for a record: its event loop's
 *   helper      every other thread that did
 *   activation  a visit of the home thread; they nest. What other owners had of
 *               the outermost one is nested, the time between two such is gap
 *   step        a coroutine that belongs to a record: each resumption is a visit
 *   late        what the kernel added to a slot after the final block's copy
 *   sent        of a closed slot whose copy was given up: it has sent on sockets,
 *               so segments may still be sent again
 */
#ifndef KT_STEP_TYPES_H
#define KT_STEP_TYPES_H

#ifndef Py_LIMITED_API
#define Py_LIMITED_API 0x030a0000
#endif
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { CELL, POLL_NS, POLL_SLEEP_NS, OFF_NS, THREAD_WORDS = 8 }; /* of a thread's entry */
enum {
	NET_TX_BYTES = 4,
	DISK_READS,
	DISK_WRITES,
	TCP_RETRANSMITS = 10,
	SLOT_WORDS_MIN
};                      /* of a slot */
enum { HOME, THREADS }; /* banks */

#define BANK_SHIFT 31
#define GENERATION_SHIFT 32
#define SLOT_FIRST 2   /* 0: unattributed, 1: late */
#define REST_SLOTS 16  /* closed slots that rest before one of them is used again */
#define FLAG_NO_SLOT 1 /* all slots were taken: no kernel counters */
#define FLAG_UNSEEN 2  /* some work was done by a thread that the kernel does not watch */

#define SHARED_FLAGS (Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE)
#define MADE_BY_METHOD (SHARED_FLAGS | Py_TPFLAGS_DISALLOW_INSTANTIATION)

struct ledger {
	uint64_t start_ns, end_ns;
	uint64_t run_ns, nested_ns, gap_ns;
	uint64_t loop_wait_min_ns, loop_wait_max_ns, loop_block_max_ns;
	uint64_t steps;
	uint64_t thread_ns, threads;
	uint64_t detached, flags, value, in_flight;
	uint64_t spare;
};
_Static_assert(sizeof(struct ledger) == 16 * 8, "read by requests/layout.py");

typedef struct {
	PyObject head;
	PyObject *memory; /* a memoryview: pins the buffer; NULL once forgotten */
	PyObject *register_thread, *sampler, *ready_at;
	char *base;
	Py_ssize_t threads, slots, slots_offset, slot_bytes;
	unsigned long long doubt_ns, slots_exhausted;
	unsigned int slots_open;
	uint32_t next_fresh;            /* slots from here on were never used */
	uint32_t *rest, first, resting; /* ring of closed slots */
	PyObject **copies; /* by slot: its final block, None (dropped unread) or NULL */
	uint64_t *sent;    /* by slot: its retransmissions at the copy, and 1; or 0 */
	uint64_t *late;    /* what came after the copies, for slots used again */
} Region;

typedef struct {
	PyObject head;
	PyObject *weakrefs, *info;
	Region *region;
	unsigned long long value;
	bool closed;
	unsigned int live;   /* steps that have not finished */
	unsigned int queued; /* steps that yielded None: ready again at once */
	unsigned int depth;  /* activations on the home thread, one inside the other */
	uint64_t home;       /* serial of the first thread; 0: not begun */
	uint64_t entered_ns, entered_run_ns, left_ns; /* of the last outermost activation */
	struct thread *active;                        /* threads whose owner this is */
	uint64_t *helpers; /* serials of all threads but home that ever were */
	struct ledger ledger;
} Record;

typedef struct {
	PyObject head;
	PyObject *weakrefs;
	PyObject *record; /* a Record, None, or in tests what behaves like one */
	PyObject *measures, *block, *whole, *phase;
} Reading;

typedef struct {
	PyObject head;
	PyObject *weakrefs, *coro;
	Record *record;
	Reading *
		marks; /* frozen when the coroutine returns; not a step of the application's then */
	bool live, queued, nests;
} Step;

typedef struct {
	PyObject head;
	PyObject *send, *on_start, *status_code;
	Reading *reading;
} Exchange;

struct thread {
	Region *region;  /* strong; NULL: not bound */
	uint64_t *entry; /* in the region, or `hidden` */
	Record *owner;   /* strong: a record may be dropped while it is published */
	uint64_t since_ns, serial;
	int bank;
	bool registering;
	struct thread *next, **link;   /* in owner->active */
	uint64_t hidden[THREAD_WORDS]; /* a cell that nobody reads */
};

struct visit { /* one stay with an owner */
	Record *entered, *previous;
	bool border;
};

static PyTypeObject *region_type, *record_type, *step_type, *reading_type, *exchange_type;
static PyObject *name_throw, *name_close, *name_send, *name_here, *name_response;

/* Found through the OS thread and not bound to a coroutine when it is made:
 * one event loop may run on several threads, one after the other. */
static __thread struct thread *here;

#endif
