/* SPDX-License-Identifier: MIT */
/*
 * For which request does this thread work at this moment, and since when.
 *
 * Each OS thread has one owner, the Record it works for, and publishes it with
 * one store into its cell, which the BPF programs read. The owner changes at
 * borders: a Step (a coroutine that belongs to a record) changes it around each
 * resumption, push() and pop() around a stretch of plain code. Every border
 * reads the clock once and charges the time since the last one to the owner
 * that ends there, so a record's ledger sums to its wall time by construction:
 *
 *	end - start == run + nested + gap
 *
 * The clock is read before the store on the way in and after it on the way
 * out: the time booked here always contains the window that the kernel sees.
 *
 * requests/pystep.py is the same in Python, kept as fallback and as oracle: a
 * change here is a change there. The layout of the region is kt_region.h.
 *
 * The GIL protects all state. What calls into Python (the sampler, ready_at,
 * register, the release of a reference) may let other threads run, so nothing
 * is left half updated across such a call.
 */
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
#include <time.h>

enum { CELL, POLL_NS, POLL_SLEEP_NS, OFF_NS, THREAD_WORDS = 8 };    /* of a thread's entry */
enum { NET_TX_BYTES = 4, DISK_READS, DISK_WRITES, SLOT_WORDS_MIN }; /* of a slot */
enum { HOME, THREADS };                                             /* banks */

#define BANK_SHIFT 31
#define GENERATION_SHIFT 32
#define SLOT_FIRST 2   /* 0: unattributed, 1: late */
#define REST_SLOTS 16  /* closed slots that rest before one of them is used again */
#define FLAG_NO_SLOT 1 /* all slots were taken: no kernel counters */
#define FLAG_UNSEEN 2  /* some work was done by a thread that the kernel does not watch */

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
	PyObject *weakrefs, *coro;
	Record *record;
	bool live, queued, nests;
} Step;

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

static PyTypeObject *region_type, *record_type, *step_type;
static PyObject *name_throw, *name_close, *name_send, *name_here;
static const char capsule_name[] = "kerneltrace_core._native._step.thread";

/* Found through the OS thread and not bound to a coroutine when it is made:
 * one event loop may run on several threads, one after the other. */
static __thread struct thread *here;

static uint64_t clock_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static uint64_t since(uint64_t now, uint64_t then)
{
	return now > then ? now - then : 0;
}

static uint64_t least(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

/* ---- threads ---- */

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

static int bank_of(struct thread *t, Record *owner)
{
	return owner && owner->home != t->serial ? THREADS : HOME;
}

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

static void sample(struct thread *t, uint64_t now)
{
	PyObject *sampler = t->region ? t->region->sampler : NULL;
	PyObject *type, *value, *traceback, *result;

	if (!sampler || sampler == Py_None)
		return;
	PyErr_Fetch(&type, &value, &traceback); /* a step may be leaving with one */
	Py_INCREF(sampler);
	result = PyObject_CallFunction(sampler, "KK", (unsigned long long)entry_of(t)[CELL],
				       (unsigned long long)now);
	if (!result)
		PyErr_WriteUnraisable(sampler);
	Py_XDECREF(result);
	Py_DECREF(sampler);
	PyErr_Restore(type, value, traceback);
}

static void restore(struct thread *t, Record *entered, Record *previous)
{
	uint64_t now, stay;

	publish(t, previous, bank_of(t, previous));
	now = clock_ns();
	previous = change_owner(t, previous, now);
	if (entered && entered->home == t->serial && entered->depth && --entered->depth == 0) {
		stay = now - entered->entered_ns;
		entered->ledger.nested_ns +=
			stay - (entered->ledger.run_ns - entered->entered_run_ns);
		if (stay > entered->ledger.loop_block_max_ns)
			entered->ledger.loop_block_max_ns = stay;
		entered->left_ns = now;
	}
	Py_XDECREF(previous);
}

/* Destructor of the capsule in the thread's state dictionary. Runs with the
 * GIL, but after a fork on another thread than the one that is gone. */
static void thread_ended(PyObject *capsule)
{
	struct thread *t = PyCapsule_GetPointer(capsule, capsule_name);

	if (here == t)
		here = NULL;
	if (t->owner)
		restore(t, t->owner, NULL);
	publish(t, NULL, HOME);
	Py_XDECREF(t->region);
	PyMem_Free(t);
}

static struct thread *this_thread(void)
{
	static uint64_t last_serial;
	PyObject *state, *capsule;
	struct thread *t = here;

	if (t)
		return t;
	t = PyMem_Calloc(1, sizeof(*t));
	if (!t) {
		PyErr_NoMemory();
		return NULL;
	}
	t->entry = t->hidden;
	t->serial = ++last_serial;
	state = PyThreadState_GetDict();
	capsule = PyCapsule_New(t, capsule_name, thread_ended);
	if (!capsule || (state && PyDict_SetItem(state, name_here, capsule) < 0)) {
		if (capsule)
			Py_DECREF(capsule); /* frees t */
		else
			PyMem_Free(t);
		return NULL;
	}
	/* Without a dictionary the thread is being torn down: what is left of it leaks. */
	if (state)
		Py_DECREF(capsule);
	here = t;
	return t;
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

/* First work for this region on this thread: let Python register it. Whatever
 * comes of that, the thread is bound afterwards, so it is asked only once. */
static void join_region(struct thread *t, Region *region)
{
	PyObject *register_thread = region->register_thread, *result;

	if (register_thread && !t->registering) {
		t->registering = true;
		Py_INCREF(register_thread);
		result = PyObject_CallObject(register_thread, NULL);
		t->registering = false;
		if (!result)
			PyErr_WriteUnraisable(register_thread);
		Py_XDECREF(result);
		Py_DECREF(register_thread);
	}
	if (t->region != region)
		bind_thread(t, region, NULL);
}

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

/* ---- borders ---- */

static uint64_t ask_ready_at(Record *r, PyObject *coro)
{
	PyObject *ready_at = r->region->ready_at, *result;
	unsigned long long ready = 0;

	Py_INCREF(ready_at);
	result = PyObject_CallFunctionObjArgs(ready_at, coro, NULL);
	if (result)
		ready = PyLong_AsUnsignedLongLong(result);
	if (!result || (ready == (unsigned long long)-1 && PyErr_Occurred())) {
		PyErr_WriteUnraisable(ready_at);
		ready = 0;
	}
	Py_XDECREF(result);
	Py_DECREF(ready_at);
	return ready;
}

/* Bounds of the time for which the record was ready but the loop did other
 * things: it cannot have become ready before the last poll that slept began to
 * return, and it was ready when the last poll of all returned. */
static void add_loop_wait(struct thread *t, Record *r, PyObject *coro, uint64_t now)
{
	uint64_t gap = since(now, r->left_ns), min = gap, max = gap, ready;
	PyObject *ready_at = r->region->ready_at;

	if (!r->queued) {
		volatile uint64_t *entry = entry_of(t);
		uint64_t poll_ns = entry[POLL_NS];

		max = least(gap, since(now, entry[POLL_SLEEP_NS]));
		min = poll_ns ? least(max, since(now, poll_ns)) : 0;
		/* With several steps it cannot be told which one's readiness ended the gap. */
		if (max - min > r->region->doubt_ns && coro && r->live == 1 && ready_at &&
		    ready_at != Py_None) {
			ready = ask_ready_at(r, coro);
			if (ready && since(now, ready) < max)
				max = since(now, ready) > min ? since(now, ready) : min;
			if (ready)
				min = max;
		}
	}
	r->ledger.loop_wait_min_ns += min;
	r->ledger.loop_wait_max_ns += max;
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

/* Begin to work for `r` (NULL: nobody). A closed record's work is nobody's. */
static void enter(struct thread *t, Record *r, PyObject *coro, struct visit *visit)
{
	uint64_t now;

	visit->border = false;
	if (r && !r->closed && t->region != r->region && r->region->memory)
		join_region(t, r->region);
	if (r && r->closed)
		r = NULL;
	if (t->owner == r)
		return;

	now = clock_ns();
	sample(t, now);
	if (r && r->home == t->serial && !r->depth)
		add_loop_wait(t, r, coro, now);
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

static void leave(struct thread *t, struct visit *visit)
{
	PyObject *sampler = t->region ? t->region->sampler : NULL;

	if (!visit->border)
		return;
	if (sampler)
		sample(t, clock_ns()); /* reads the cell, so before the store */
	restore(t, visit->entered, visit->previous);
}

/* ---- Step ---- */

static bool step_begin(Step *step, struct thread **t, struct visit *visit)
{
	if (!step->coro) {
		PyErr_SetString(PyExc_RuntimeError, "resume step: it was cleared by the collector");
		return false;
	}
	*t = this_thread();
	if (!*t)
		return false;
	/* Between coroutines the interpreter watches the depth; between steps nobody. */
	if (step->nests && Py_EnterRecursiveCall(" while resuming a step"))
		return false;
	enter(*t, step->record, step->coro, visit);
	if (step->queued) {
		step->queued = false;
		step->record->queued--;
	}
	return true;
}

static void step_set_live(Step *step, bool live)
{
	if (step->live != live) {
		step->live = live;
		step->record->live += live ? 1 : -1;
	}
}

/* `yielded` is NULL when the coroutine returned, raised or was closed. */
static void step_end(Step *step, struct thread *t, struct visit *visit, PyObject *yielded)
{
	/* Not only downwards: an error such as "already executing" ends nothing. */
	step_set_live(step, yielded != NULL);
	if (yielded == Py_None && !step->queued) {
		step->queued = true;
		step->record->queued++;
	}
	leave(t, visit);
	if (step->nests)
		Py_LeaveRecursiveCall();
}

static PySendResult step_resume(PyObject *self, PyObject *arg, PyObject **result)
{
	Step *step = (Step *)self;
	struct thread *t;
	struct visit visit;
	PySendResult outcome;

	*result = NULL;
	if (!step_begin(step, &t, &visit))
		return PYGEN_ERROR;
	outcome = PyIter_Send(step->coro, arg, result);
	step_end(step, t, &visit, outcome == PYGEN_NEXT ? *result : NULL);
	return outcome;
}

/* Turn a returned value into StopIteration. Calling the type keeps a tuple in
 * one piece, and an exception that was returned from being raised itself. */
static PyObject *stop_iteration(PyObject *value)
{
	PyObject *stop;

	if (PyTuple_Check(value) || PyExceptionInstance_Check(value)) {
		stop = PyObject_CallFunctionObjArgs(PyExc_StopIteration, value, NULL);
		if (stop)
			PyErr_SetObject(PyExc_StopIteration, stop);
		Py_XDECREF(stop);
	} else {
		PyErr_SetObject(PyExc_StopIteration, value);
	}
	Py_DECREF(value);
	return NULL;
}

static PyObject *step_next(PyObject *self)
{
	PyObject *result;

	if (step_resume(self, Py_None, &result) != PYGEN_RETURN)
		return result;
	if (result != Py_None)
		return stop_iteration(result);
	Py_DECREF(result); /* for tp_iternext NULL alone means: returned None */
	return NULL;
}

static PyObject *step_send(PyObject *self, PyObject *arg)
{
	PyObject *result;

	if (step_resume(self, arg, &result) == PYGEN_RETURN)
		return stop_iteration(result);
	return result;
}

static PyObject *step_throw(PyObject *self, PyObject *const *args, Py_ssize_t count)
{
	Step *step = (Step *)self;
	PyObject *result;
	struct thread *t;
	struct visit visit;

	if (count < 1 || count > 3)
		return PyErr_Format(PyExc_TypeError, "throw expected 1 to 3 arguments, got %zd",
				    count);
	if (!step_begin(step, &t, &visit))
		return NULL;
	/* The first NULL ends the list, so this passes on as many as there are. */
	result = PyObject_CallMethodObjArgs(step->coro, name_throw, args[0],
					    count > 1 ? args[1] : NULL, count > 2 ? args[2] : NULL,
					    NULL);
	step_end(step, t, &visit, result);
	return result;
}

static PyObject *step_close(PyObject *self, PyObject *Py_UNUSED(ignored))
{
	Step *step = (Step *)self;
	PyObject *result;
	struct thread *t;
	struct visit visit;

	if (!step_begin(step, &t, &visit))
		return NULL;
	result = PyObject_CallMethodObjArgs(step->coro, name_close, NULL);
	step_end(step, t, &visit, NULL);
	return result;
}

static PyObject *step_self(PyObject *self)
{
	Py_INCREF(self);
	return self;
}

/* cr_frame, cr_await, cr_running, cr_code, gi_*, __qualname__ ... of the coroutine. */
static PyObject *step_getattro(PyObject *self, PyObject *name)
{
	PyObject *value = PyObject_GenericGetAttr(self, name), *coro = ((Step *)self)->coro;

	if (value || !coro || !PyErr_ExceptionMatches(PyExc_AttributeError))
		return value;
	PyErr_Clear();
	return PyObject_GetAttr(coro, name);
}

static PyObject *step_repr(PyObject *self)
{
	PyObject *coro = ((Step *)self)->coro;

	return coro ? PyObject_Repr(coro) : PyUnicode_FromString("<step, cleared>");
}

static int step_traverse(PyObject *self, visitproc visit, void *arg)
{
	Py_VISIT(Py_TYPE(self));
	Py_VISIT(((Step *)self)->coro);
	Py_VISIT(((Step *)self)->record);
	return 0;
}

/* Leaves the record: it is needed to the end, and breaks its own cycles. */
static int step_clear(PyObject *self)
{
	Py_CLEAR(((Step *)self)->coro);
	return 0;
}

static void step_dealloc(PyObject *self)
{
	PyTypeObject *type = Py_TYPE(self);
	Step *step = (Step *)self;

	PyObject_GC_UnTrack(self);
	if (step->weakrefs)
		PyObject_ClearWeakRefs(self);
	step_set_live(step, false);
	step->record->queued -= step->queued;
	step_clear(self);
	Py_DECREF(step->record);
	PyObject_GC_Del(self);
	Py_DECREF(type);
}

/* ---- slots ---- */

static uint64_t *slot_words(Region *region, uint32_t slot)
{
	return (uint64_t *)(region->base + region->slots_offset +
			    (Py_ssize_t)slot * region->slot_bytes);
}

/* 0 is left out: a slot that is being zeroed then fits no cell. */
static uint32_t generation_after(uint32_t generation)
{
	return generation + 1 ? generation + 1 : 1;
}

static void set_generation(Region *region, uint32_t slot, uint32_t generation)
{
	__atomic_store_n((uint32_t *)slot_words(region, slot), generation, __ATOMIC_RELEASE);
}

static void add_residual(Region *region, uint32_t slot, uint64_t *sums)
{
	PyObject *copy = region->copies[slot];
	uint64_t *words = slot_words(region, slot);
	uint64_t *copied = copy == Py_None ? NULL : (uint64_t *)PyBytes_AsString(copy);
	Py_ssize_t i;

	for (i = 1; i < region->slot_bytes / 8; i++)
		sums[i] += words[i] - (copied ? copied[i] : 0);
}

/* 0 when all are taken. Slots are reused first-in first-out, so that one rests
 * as long as possible, but from a small set that stays in the caches. */
static uint32_t take_slot(Region *region)
{
	uint32_t slot;

	if (!region->memory)
		return 0;
	if (region->resting <= REST_SLOTS && region->next_fresh < region->slots)
		return region->next_fresh++;
	if (!region->resting) {
		region->slots_exhausted++;
		return 0;
	}
	slot = region->rest[region->first];
	region->first = (region->first + 1) % (uint32_t)region->slots;
	region->resting--;
	if (region->copies[slot]) {
		add_residual(region, slot, region->late);
		Py_DECREF(region->copies[slot]);
		region->copies[slot] = NULL;
	}
	return slot;
}

/* Steals the reference to `copy`. */
static void give_slot(Region *region, uint32_t slot, PyObject *copy)
{
	region->rest[(region->first + region->resting++) % (uint32_t)region->slots] = slot;
	region->copies[slot] = copy;
	region->slots_open--;
}

/* ---- Record ---- */

static uint32_t slot_of(Record *r)
{
	return (uint32_t)r->value;
}

static void retire_generation(Record *r)
{
	set_generation(r->region, slot_of(r),
		       generation_after((uint32_t)(r->value >> GENERATION_SHIFT)));
}

/* Complete the ledger up to now, with what is still under way. */
static void read_ledger(Record *r, struct ledger *out)
{
	uint64_t now = clock_ns(), off, stay;
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
	if (r->depth) {
		stay = now - r->entered_ns;
		out->nested_ns += stay - (out->run_ns - r->entered_run_ns);
		if (stay > out->loop_block_max_ns)
			out->loop_block_max_ns = stay;
	} else if (r->home) {
		out->gap_ns += now - r->left_ns;
	}
}

static PyObject *take_block(Record *r, bool final)
{
	Py_ssize_t size = r->region->slot_bytes;
	struct ledger ledger;
	PyObject *block;
	char *bytes;

	if (r->closed) {
		PyErr_SetString(PyExc_ValueError, "read record: it was closed before");
		return NULL;
	}
	block = PyBytes_FromStringAndSize(NULL, size + (Py_ssize_t)sizeof(ledger));
	if (!block)
		return NULL;
	bytes = PyBytes_AsString(block);
	if (r->value && r->region->memory) {
		if (final)
			retire_generation(r); /* before the copy: what follows is late */
		memcpy(bytes, slot_words(r->region, slot_of(r)), (size_t)size);
	} else {
		memset(bytes, 0, (size_t)size);
	}
	read_ledger(r, &ledger); /* after the copy: time contains the counters */
	if (final)
		ledger.detached = ledger.in_flight;
	memcpy(bytes + size, &ledger, sizeof(ledger));
	return block;
}

static PyObject *record_read(PyObject *self, PyObject *Py_UNUSED(ignored))
{
	return take_block((Record *)self, false);
}

static PyObject *record_close(PyObject *self, PyObject *Py_UNUSED(ignored))
{
	Record *r = (Record *)self;
	PyObject *block = take_block(r, true), *copy = NULL;
	uint64_t *words;

	if (!block)
		return NULL;
	if (r->value) {
		words = (uint64_t *)PyBytes_AsString(block);
		/* Only then can the kernel still be adding to the slot. */
		if (r->region->memory &&
		    (r->live || r->active || r->depth || r->ledger.threads || words[NET_TX_BYTES] ||
		     words[DISK_READS] || words[DISK_WRITES])) {
			Py_INCREF(block);
			copy = block;
		}
		give_slot(r->region, slot_of(r), copy);
	}
	r->closed = true;
	r->value = 0;
	return block;
}

static PyObject *record_step(PyObject *self, PyObject *coro)
{
	Step *step;

	if (!PyType_GetSlot(Py_TYPE(coro), Py_am_send) && !PyObject_HasAttr(coro, name_send))
		return PyErr_Format(PyExc_TypeError, "make step: %R is not a coroutine", coro);
	step = PyObject_GC_New(Step, step_type);
	if (!step)
		return NULL;
	Py_INCREF(coro);
	Py_INCREF(self);
	step->weakrefs = NULL;
	step->coro = coro;
	step->record = (Record *)self;
	step->live = step->queued = false;
	step->nests = Py_TYPE(coro) == step_type;
	step_set_live(step, true);
	PyObject_GC_Track(step);
	return (PyObject *)step;
}

static int record_traverse(PyObject *self, visitproc visit, void *arg)
{
	Py_VISIT(Py_TYPE(self));
	Py_VISIT(((Record *)self)->info);
	Py_VISIT(((Record *)self)->region);
	return 0;
}

/* Leaves the region, which breaks its own cycles, until the slot is given back. */
static int record_clear(PyObject *self)
{
	Py_CLEAR(((Record *)self)->info);
	return 0;
}

static void record_dealloc(PyObject *self)
{
	PyTypeObject *type = Py_TYPE(self);
	Record *r = (Record *)self;

	PyObject_GC_UnTrack(self);
	if (r->weakrefs)
		PyObject_ClearWeakRefs(self);
	if (r->value) { /* never closed: nobody read the counters, all of it is late */
		if (r->region->memory)
			retire_generation(r);
		Py_INCREF(Py_None);
		give_slot(r->region, slot_of(r), Py_None);
	}
	record_clear(self);
	PyMem_Free(r->helpers);
	Py_DECREF(r->region);
	PyObject_GC_Del(self);
	Py_DECREF(type);
}

/* ---- Region ---- */

static PyObject *region_open(PyObject *self, PyObject *Py_UNUSED(ignored))
{
	Region *region = (Region *)self;
	Record *r = PyObject_GC_New(Record, record_type);
	uint32_t slot, generation;

	if (!r)
		return NULL;
	memset(&r->weakrefs, 0, sizeof(*r) - offsetof(Record, weakrefs));
	Py_INCREF(region);
	r->region = region;
	slot = take_slot(region);
	if (slot) {
		generation = generation_after(*(uint32_t *)slot_words(region, slot));
		memset(slot_words(region, slot), 0, (size_t)region->slot_bytes);
		set_generation(region, slot, generation);
		r->value = slot | (uint64_t)generation << GENERATION_SHIFT;
		region->slots_open++;
	} else {
		r->ledger.flags = FLAG_NO_SLOT;
	}
	PyObject_GC_Track(r);
	return (PyObject *)r;
}

static PyObject *region_bind(PyObject *self, PyObject *arg)
{
	Region *region = (Region *)self;
	Py_ssize_t index = PyNumber_AsSsize_t(arg, PyExc_OverflowError);
	struct thread *t;

	if (index == -1 && PyErr_Occurred())
		return NULL;
	if (index < -1 || index >= region->threads)
		return PyErr_Format(PyExc_ValueError, "bind thread: no entry %zd (-1 to %zd)",
				    index, region->threads - 1);
	t = this_thread();
	if (!t)
		return NULL;
	bind_thread(t, region, index < 0 ? NULL : (uint64_t *)region->base + index * THREAD_WORDS);
	Py_RETURN_NONE;
}

static PyObject *region_unbind(PyObject *self, PyObject *Py_UNUSED(ignored))
{
	if (here && here->region == (Region *)self)
		bind_thread(here, NULL, NULL);
	Py_RETURN_NONE;
}

static PyObject *region_bound(PyObject *self, PyObject *Py_UNUSED(ignored))
{
	return PyBool_FromLong(here && here->region == (Region *)self);
}

static PyObject *region_late(PyObject *self, PyObject *Py_UNUSED(ignored))
{
	Region *region = (Region *)self;
	PyObject *sums = PyBytes_FromStringAndSize((char *)region->late, region->slot_bytes);
	uint32_t slot;

	for (slot = SLOT_FIRST; sums && region->memory && slot < region->next_fresh; slot++)
		if (region->copies[slot])
			add_residual(region, slot, (uint64_t *)PyBytes_AsString(sums));
	return sums;
}

static PyObject *region_forget(PyObject *self, PyObject *Py_UNUSED(ignored))
{
	Py_CLEAR(((Region *)self)->memory);
	Py_RETURN_NONE;
}

/* Py_buffer is not in the limited API of 3.10: ask the memoryview's attributes. */
static bool check_memory(Region *region)
{
	PyObject *nbytes = PyObject_GetAttrString(region->memory, "nbytes");
	PyObject *readonly = PyObject_GetAttrString(region->memory, "readonly");
	Py_ssize_t size = nbytes ? PyLong_AsSsize_t(nbytes) : -1;
	bool writable = readonly == Py_False;

	Py_XDECREF(nbytes);
	Py_XDECREF(readonly);
	if (PyErr_Occurred())
		return false;
	if (!writable)
		PyErr_SetString(PyExc_ValueError, "open region: the memory is read-only");
	else if (region->threads < 1 || region->slots < SLOT_FIRST || region->slots > (1 << 24) ||
		 region->slot_bytes < SLOT_WORDS_MIN * 8 || region->slot_bytes > (1 << 24) ||
		 region->slot_bytes % 8 || region->slots_offset % 8 ||
		 (uintptr_t)region->base % 8 || !region->base ||
		 region->threads > region->slots_offset / (THREAD_WORDS * 8) ||
		 region->slots_offset > size ||
		 region->slots * region->slot_bytes > size - region->slots_offset)
		PyErr_Format(PyExc_ValueError,
			     "open region: %zd threads and %zd slots of %zd bytes at %zd "
			     "do not fit %zd bytes",
			     region->threads, region->slots, region->slot_bytes,
			     region->slots_offset, size);
	return !PyErr_Occurred();
}

static PyObject *region_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
	static char *names[] = { "memory",       "address",    "threads",  "slots",
				 "slots_offset", "slot_bytes", "register", NULL };
	Py_ssize_t threads, slots, slots_offset, slot_bytes;
	PyObject *memory, *register_thread;
	unsigned long long address;
	Region *region;

	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OKnnnnO", names, &memory, &address,
					 &threads, &slots, &slots_offset, &slot_bytes,
					 &register_thread))
		return NULL;
	region = PyObject_GC_New(Region, type);
	if (!region)
		return NULL;
	memset(&region->memory, 0, sizeof(*region) - offsetof(Region, memory));
	region->base = (char *)(uintptr_t)address;
	region->threads = threads;
	region->slots = slots;
	region->slots_offset = slots_offset;
	region->slot_bytes = slot_bytes;
	region->doubt_ns = 1000000;
	region->next_fresh = SLOT_FIRST;
	Py_INCREF(register_thread);
	region->register_thread = register_thread;
	region->memory = PyMemoryView_FromObject(memory);
	if (!region->memory || !check_memory(region))
		goto refused;
	region->rest = PyMem_Calloc((size_t)slots, sizeof(*region->rest));
	region->copies = PyMem_Calloc((size_t)slots, sizeof(*region->copies));
	region->late = PyMem_Calloc(1, (size_t)slot_bytes);
	if (!region->rest || !region->copies || !region->late) {
		PyErr_NoMemory();
		goto refused;
	}
	PyObject_GC_Track(region);
	return (PyObject *)region;
refused:
	Py_DECREF(region);
	return NULL;
}

/* Not the memory: the collector would release the view before the records that
 * are garbage too have stored their last into it. Nothing leads back from it. */
static int region_traverse(PyObject *self, visitproc visit, void *arg)
{
	Region *region = (Region *)self;

	Py_VISIT(Py_TYPE(self));
	Py_VISIT(region->register_thread);
	Py_VISIT(region->sampler);
	Py_VISIT(region->ready_at);
	return 0;
}

static int region_clear(PyObject *self)
{
	Region *region = (Region *)self;

	Py_CLEAR(region->register_thread);
	Py_CLEAR(region->sampler);
	Py_CLEAR(region->ready_at);
	return 0;
}

static void region_dealloc(PyObject *self)
{
	PyTypeObject *type = Py_TYPE(self);
	Region *region = (Region *)self;
	Py_ssize_t slot;

	PyObject_GC_UnTrack(self);
	region_clear(self);
	for (slot = 0; region->copies && slot < region->slots; slot++)
		Py_XDECREF(region->copies[slot]);
	PyMem_Free(region->copies);
	PyMem_Free(region->rest);
	PyMem_Free(region->late);
	Py_XDECREF(region->memory);
	PyObject_GC_Del(self);
	Py_DECREF(type);
}

/* ---- module ---- */

static PyObject *owner_or_none(Record *owner)
{
	PyObject *result = owner ? (PyObject *)owner : Py_None;

	Py_INCREF(result);
	return result;
}

static bool as_record(PyObject *arg, Record **record)
{
	*record = arg == Py_None ? NULL : (Record *)arg;
	if (!*record || Py_TYPE(arg) == record_type)
		return true;
	PyErr_Format(PyExc_TypeError, "change owner: %R is neither a Record nor None", arg);
	return false;
}

static PyObject *step_push(PyObject *Py_UNUSED(module), PyObject *arg)
{
	struct thread *t = this_thread();
	struct visit visit;
	PyObject *previous;
	Record *record;

	if (!t || !as_record(arg, &record))
		return NULL;
	enter(t, record, NULL, &visit);
	if (!visit.border)
		return owner_or_none(t->owner);
	previous = owner_or_none(visit.previous);
	Py_XDECREF(visit.previous); /* what pop() restores, the caller keeps */
	return previous;
}

static PyObject *step_pop(PyObject *Py_UNUSED(module), PyObject *arg)
{
	struct thread *t = this_thread();
	struct visit visit;

	if (!t || !as_record(arg, &visit.previous))
		return NULL;
	visit.entered = t->owner;
	visit.border = visit.entered != visit.previous;
	if (visit.border)
		Py_XINCREF(visit.previous);
	leave(t, &visit);
	Py_RETURN_NONE;
}

static PyObject *step_current(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
	return owner_or_none(here ? here->owner : NULL);
}

static PyObject *step_read_cell(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
	return PyLong_FromUnsignedLongLong(here ? entry_of(here)[CELL] : 0);
}

static PyObject *step_cell_address(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
	bool seen = here && entry_of(here) != here->hidden;

	return PyLong_FromUnsignedLongLong(seen ? (uintptr_t)here->entry : 0);
}

#define FASTCALL(function) ((PyCFunction)(void (*)(void))(function))

static PyMethodDef step_methods[] = {
	{ "send", step_send, METH_O, "Resume the coroutine with a value, as its record." },
	{ "throw", FASTCALL(step_throw), METH_FASTCALL,
	  "Throw into the coroutine, as its record." },
	{ "close", step_close, METH_NOARGS, "Close the coroutine, as its record." },
	{ NULL, NULL, 0, NULL },
};

static PyMemberDef step_members[] = {
	{ "__weaklistoffset__", T_PYSSIZET, offsetof(Step, weakrefs), READONLY, NULL },
	{ NULL, 0, 0, 0, NULL },
};

static PyType_Slot step_slots[] = {
	{ Py_tp_doc, "A coroutine that runs as a record. Made by Record.step()." },
	{ Py_am_await, step_self },
	{ Py_am_send, step_resume },
	{ Py_tp_iter, step_self },
	{ Py_tp_iternext, step_next },
	{ Py_tp_methods, step_methods },
	{ Py_tp_members, step_members },
	{ Py_tp_getattro, step_getattro },
	{ Py_tp_repr, step_repr },
	{ Py_tp_traverse, step_traverse },
	{ Py_tp_clear, step_clear },
	{ Py_tp_dealloc, step_dealloc },
	{ 0, NULL },
};

static PyMethodDef record_methods[] = {
	{ "step", record_step, METH_O, "Wrap a coroutine: each of its steps runs as this record." },
	{ "mark", record_read, METH_NOARGS, "Return a block of this moment." },
	{ "snapshot", record_read, METH_NOARGS, "Return a block of this moment." },
	{ "close", record_close, METH_NOARGS, "Return the final block and give the slot back." },
	{ NULL, NULL, 0, NULL },
};

static PyMemberDef record_members[] = {
	{ "__weaklistoffset__", T_PYSSIZET, offsetof(Record, weakrefs), READONLY, NULL },
	{ "value", T_ULONGLONG, offsetof(Record, value), READONLY,
	  "slot | generation << 32, or 0" },
	{ "region", T_OBJECT, offsetof(Record, region), READONLY, "the region that made it" },
	{ "info", T_OBJECT, offsetof(Record, info), 0, "any object; None at first" },
	{ NULL, 0, 0, 0, NULL },
};

static PyType_Slot record_slots[] = {
	{ Py_tp_doc, "What one request costs. Made by Region.open()." },
	{ Py_tp_methods, record_methods },
	{ Py_tp_members, record_members },
	{ Py_tp_traverse, record_traverse },
	{ Py_tp_clear, record_clear },
	{ Py_tp_dealloc, record_dealloc },
	{ 0, NULL },
};

static PyMethodDef region_methods[] = {
	{ "open", region_open, METH_NOARGS, "Take a slot and return its Record." },
	{ "bind", region_bind, METH_O, "Give this thread entry `index`; -1: a private one." },
	{ "unbind", region_unbind, METH_NOARGS, "Clear this thread's cell and leave it." },
	{ "bound", region_bound, METH_NOARGS, "Tell whether this thread is bound here." },
	{ "late", region_late, METH_NOARGS, "Return what closed slots got after their copy." },
	{ "forget", region_forget, METH_NOARGS, "Never touch the memory again." },
	{ NULL, NULL, 0, NULL },
};

static PyMemberDef region_members[] = {
	{ "sampler", T_OBJECT, offsetof(Region, sampler), 0, "called at each border, or None" },
	{ "ready_at", T_OBJECT, offsetof(Region, ready_at), 0, "asked when in doubt, or None" },
	{ "doubt_ns", T_ULONGLONG, offsetof(Region, doubt_ns), 0, "doubt worth asking about" },
	{ "slots_open", T_UINT, offsetof(Region, slots_open), READONLY, "slots in use" },
	{ "slots_exhausted", T_ULONGLONG, offsetof(Region, slots_exhausted), READONLY,
	  "how often open() found no slot" },
	{ NULL, 0, 0, 0, NULL },
};

static PyType_Slot region_slots[] = {
	{ Py_tp_doc, "The memory shared with the BPF programs: thread entries and slots." },
	{ Py_tp_new, region_new },
	{ Py_tp_methods, region_methods },
	{ Py_tp_members, region_members },
	{ Py_tp_traverse, region_traverse },
	{ Py_tp_clear, region_clear },
	{ Py_tp_dealloc, region_dealloc },
	{ 0, NULL },
};

#define SHARED_FLAGS (Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE)
#define MADE_BY_METHOD (SHARED_FLAGS | Py_TPFLAGS_DISALLOW_INSTANTIATION)

static PyType_Spec step_spec = { "kerneltrace_core._native._step.Step", sizeof(Step), 0,
				 MADE_BY_METHOD, step_slots };
static PyType_Spec record_spec = { "kerneltrace_core._native._step.Record", sizeof(Record), 0,
				   MADE_BY_METHOD, record_slots };
static PyType_Spec region_spec = { "kerneltrace_core._native._step.Region", sizeof(Region), 0,
				   SHARED_FLAGS, region_slots };

static PyMethodDef module_methods[] = {
	{ "push", step_push, METH_O,
	  "Let this thread work for a record; return the owner before." },
	{ "pop", step_pop, METH_O, "Restore the owner that push() returned." },
	{ "current", step_current, METH_NOARGS, "Return the record this thread works for." },
	{ "read_cell", step_read_cell, METH_NOARGS, "Return the value of this thread's cell." },
	{ "cell_address", step_cell_address, METH_NOARGS, "Return its address; 0: private." },
	{ NULL, NULL, 0, NULL },
};

static struct PyModuleDef module_def = {
	.m_base = PyModuleDef_HEAD_INIT,
	.m_name = "_step",
	.m_doc = "Which request this thread works for, and what that costs in time.",
	.m_size = -1, /* state is per process: an interpreter of its own gets the Python twin */
	.m_methods = module_methods,
};

static PyTypeObject *add_type(PyObject *module, const char *name, PyType_Spec *spec)
{
	PyObject *type = PyType_FromSpec(spec);

	if (type && PyModule_AddObjectRef(module, name, type) < 0)
		Py_CLEAR(type);
	return (PyTypeObject *)type;
}

PyMODINIT_FUNC PyInit__step(void)
{
	PyObject *module = PyModule_Create(&module_def);
	PyObject *abc = PyImport_ImportModule("collections.abc"), *coroutine = NULL, *done = NULL;

	if (!module || !abc)
		goto out;
	name_throw = PyUnicode_InternFromString("throw");
	name_close = PyUnicode_InternFromString("close");
	name_send = PyUnicode_InternFromString("send");
	name_here = PyUnicode_InternFromString(capsule_name);
	region_type = add_type(module, "Region", &region_spec);
	record_type = add_type(module, "Record", &record_spec);
	step_type = add_type(module, "Step", &step_spec);
	if (!name_throw || !name_close || !name_send || !name_here || !region_type ||
	    !record_type || !step_type)
		goto out;
	coroutine = PyObject_GetAttrString(abc, "Coroutine");
	if (coroutine)
		done = PyObject_CallMethod(coroutine, "register", "O", step_type);
out:
	Py_XDECREF(coroutine);
	Py_XDECREF(abc);
	if (!done)
		Py_CLEAR(module);
	Py_XDECREF(done);
	return module;
}
