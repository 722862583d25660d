/* SPDX-License-Identifier: MIT */
/* The type Reader, in a `for`: frames in, one event at a time out. The next one is the hot loop. */
#ifndef KT_EVENTS_READER_H
#define KT_EVENTS_READER_H

#include "event.h"
#include "selector.h"

static void drop_frames(Reader *reader)
{
	PyObject *frames = reader->now.frames;

	memset(&reader->now, 0, sizeof(reader->now));
	Py_XDECREF(frames);
}

/* Checked when it came. */
static bool begin_batch(Reader *reader, PyObject *batch)
{
	struct batch *now = &reader->now;
	PyObject *frames = PyTuple_GetItem(batch, 0);

	drop_frames(reader);
	if (!frames_of(frames, &now->begin, &now->end))
		return false;
	now->at = now->begin;
	now->skip = PyLong_AsSsize_t(PyTuple_GetItem(batch, 1));
	now->take = PyLong_AsSsize_t(PyTuple_GetItem(batch, 2));
	Py_INCREF(frames);
	now->frames = frames;
	return true;
}

static bool check_batch(PyObject *batch)
{
	Py_ssize_t counts[2], i;

	if (!PyTuple_Check(batch) || PyTuple_Size(batch) != 3 ||
	    !PyBytes_Check(PyTuple_GetItem(batch, 0))) {
		PyErr_Format(PyExc_TypeError, "read events: refill returned %R, not a batch",
			     Py_TYPE(batch));
		return false;
	}
	for (i = 0; i < 2; i++) {
		PyObject *count = PyTuple_GetItem(batch, i + 1);

		if (!PyLong_Check(count)) {
			PyErr_SetString(PyExc_TypeError,
					"read events: refill returned a batch without counts");
			return false;
		}
		counts[i] = PyLong_AsSsize_t(count);
		if (counts[i] == -1 && PyErr_Occurred())
			return false;
	}
	if (counts[0] >= 0 && counts[1] >= 0)
		return true;
	PyErr_Format(option_error, "read events: cannot skip %zd and take %zd", counts[0],
		     counts[1]);
	return false;
}

/* While one batch is in hand the next one waits: another thread or task asked for it too. */
static bool adopt(Reader *reader, PyObject *batch)
{
	if (!check_batch(batch))
		return false;
	if (!reader->now.frames)
		return begin_batch(reader, batch);
	if (!reader->later)
		reader->later = PyList_New(0);
	return reader->later && !PyList_Append(reader->later, batch);
}

/* False without an error: there is none. */
static bool begin_later_batch(Reader *reader)
{
	PyObject *batch;
	bool begun;

	drop_frames(reader);
	if (!reader->later || !PyList_Size(reader->later))
		return false;
	batch = PyList_GetItem(reader->later, 0);
	Py_INCREF(batch);
	begun = !PyList_SetSlice(reader->later, 0, 1, NULL) && begin_batch(reader, batch);
	Py_DECREF(batch);
	return begun;
}

static PyObject *deliver(Reader *reader, const struct record *record)
{
	Py_ssize_t size = reader->keep == REST ? (Py_ssize_t)record->length : reader->keep;
	PyObject *frames = reader->now.frames, *event;

	Py_INCREF(frames); /* the allocation may run the collector, and that anything */
	event = new_event(reader->type, reader->open, record->payload, size, record->origin);
	Py_DECREF(frames);
	reader->delivered += event != NULL;
	return event;
}

/* The next event of the frames in hand; NULL without an error: they are used up. */
static PyObject *next_in_hand(Reader *reader)
{
	struct batch *now = &reader->now;
	struct record record;
	int found;

	do {
		while (now->take) {
			found = next_record(&now->at, now->end, now->begin, &record);
			if (found < 0) {
				drop_frames(reader);
				return NULL;
			}
			if (!found)
				break;
			if (judge(&reader->selector->rule, &record) != MATCH)
				continue;
			if (now->skip) {
				now->skip--;
				continue;
			}
			now->take--;
			return deliver(reader, &record);
		}
	} while (now->frames && begin_later_batch(reader));
	return NULL;
}

static PyObject *reader_next(PyObject *self)
{
	Reader *reader = (Reader *)self;
	PyObject *event, *batch;
	bool adopted;

	while (!(event = next_in_hand(reader))) {
		if (PyErr_Occurred())
			return NULL;
		batch = PyObject_CallFunctionObjArgs(reader->refill, NULL);
		if (!batch)
			return NULL;
		if (batch ==
		    Py_None) { /* the end, unless another thread was given more meanwhile */
			Py_DECREF(batch);
			return next_in_hand(reader);
		}
		adopted = adopt(reader, batch);
		Py_DECREF(batch);
		if (!adopted)
			return NULL;
	}
	return event;
}

static PyObject *reader_new(PyTypeObject *type, PyObject *args, PyObject *kw)
{
	static char *names[] = { "cls", "selector", "refill", "arefill", NULL };
	PyObject *cls, *selector, *refill, *arefill;
	Py_ssize_t size;
	Reader *reader;
	bool exact;
	int open;

	if (!PyArg_ParseTupleAndKeywords(args, kw, "OOOO:Reader", names, &cls, &selector, &refill,
					 &arefill))
		return NULL;
	if (!PyType_Check(cls) || !PyType_IsSubtype((PyTypeObject *)cls, event_type))
		return PyErr_Format(PyExc_TypeError, "read events: %R is not an event class", cls);
	if (Py_TYPE(selector) != selector_type)
		return PyErr_Format(PyExc_TypeError, "read events: %R is not a Selector", selector);
	open = is_open((PyTypeObject *)cls);
	if (open < 0 || !layout_of((PyTypeObject *)cls, &size, &exact))
		return NULL;
	if ((Py_ssize_t)((Selector *)selector)->rule.size < size)
		return PyErr_Format(option_error,
				    "read events: records of %u bytes are too short for %R, "
				    "which has %zd",
				    ((Selector *)selector)->rule.size, cls, size);
	reader = PyObject_GC_New(Reader, type);
	if (!reader)
		return NULL;
	memset((char *)reader + sizeof(PyObject), 0, sizeof(*reader) - sizeof(PyObject));
	Py_INCREF(cls);
	Py_INCREF(selector);
	Py_INCREF(refill);
	Py_INCREF(arefill);
	reader->type = (PyTypeObject *)cls;
	reader->selector = (Selector *)selector;
	reader->refill = refill;
	reader->arefill = arefill;
	reader->open = open;
	reader->keep = exact ? size : REST;
	PyObject_GC_Track(reader);
	return (PyObject *)reader;
}

static Py_ssize_t count_unread(const Reader *reader)
{
	Py_ssize_t unread = reader->now.take, i;

	for (i = 0; reader->later && i < PyList_Size(reader->later); i++)
		unread += PyLong_AsSsize_t(PyTuple_GetItem(PyList_GetItem(reader->later, i), 2));
	return unread;
}

static PyObject *reader_unread(PyObject *self, void *Py_UNUSED(closure))
{
	return PyLong_FromSsize_t(count_unread((Reader *)self));
}

static PyObject *reader_discard(PyObject *self, PyObject *Py_UNUSED(ignored))
{
	Reader *reader = (Reader *)self;
	Py_ssize_t unread = count_unread(reader);

	Py_CLEAR(reader->later);
	drop_frames(reader);
	return PyLong_FromSsize_t(unread);
}

static PyObject *itself(PyObject *self)
{
	Py_INCREF(self);
	return self;
}

static int reader_traverse(PyObject *self, visitproc visit, void *arg)
{
	Reader *reader = (Reader *)self;

	Py_VISIT(Py_TYPE(self));
	Py_VISIT(reader->type);
	Py_VISIT(reader->selector);
	Py_VISIT(reader->refill);
	Py_VISIT(reader->arefill);
	Py_VISIT(reader->later);
	Py_VISIT(reader->ready);
	return 0;
}

/* Cycles go through what it calls; and that is tested before a call, for it may still be used. */
static int reader_clear(PyObject *self)
{
	Reader *reader = (Reader *)self;
	PyObject *refill = reader->refill, *arefill = reader->arefill;

	Py_INCREF(Py_None);
	Py_INCREF(Py_None);
	reader->refill = reader->arefill = Py_None; /* calling it is an error, no crash */
	Py_XDECREF(refill);
	Py_XDECREF(arefill);
	Py_CLEAR(reader->ready);
	return 0;
}

static void reader_dealloc(PyObject *self)
{
	PyTypeObject *type = Py_TYPE(self);
	Reader *reader = (Reader *)self;

	PyObject_GC_UnTrack(self);
	drop_frames(reader);
	Py_XDECREF(reader->later);
	Py_XDECREF(reader->ready);
	Py_XDECREF(reader->refill);
	Py_XDECREF(reader->arefill);
	Py_XDECREF(reader->selector);
	Py_XDECREF(reader->type);
	PyObject_GC_Del(self);
	Py_DECREF(type);
}

#endif
