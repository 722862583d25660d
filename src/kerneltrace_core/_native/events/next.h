/* SPDX-License-Identifier: MIT */
/*
 * The type Reader, in an `async for`, and what it awaits.
 *
 * While there are frames, awaiting gives an event without an exception and
 * without a new object: the reader keeps one awaitable and hands it out again
 * as soon as nobody else has it. It takes an event from the frames when it is
 * awaited, not when it is made: one that is dropped takes none with it.
 */
#ifndef KT_EVENTS_NEXT_H
#define KT_EVENTS_NEXT_H

#include "reader.h"

static PyObject *new_next(void)
{
	Next *next = PyObject_GC_New(Next, next_type);

	if (!next)
		return NULL;
	next->reader = NULL;
	next->inner = NULL;
	next->ended = false;
	PyObject_GC_Track(next);
	return (PyObject *)next;
}

static PyObject *reader_anext(PyObject *self)
{
	Reader *reader = (Reader *)self;
	PyObject *next = reader->ready;

	if (next && Py_REFCNT(next) == 1) {
		Py_INCREF(next);
	} else {
		next = new_next();
		if (!next)
			return NULL;
		if (!reader->ready) {
			Py_INCREF(next);
			reader->ready = next;
		}
	}
	if (!((Next *)next)->reader) {
		((Next *)next)->ended = false;
		Py_INCREF(self);
		((Next *)next)->reader = reader;
	}
	return next;
}

/* Steals the reference to what arefill() returned: the iterator that `await` would drive. */
static PyObject *awaited(PyObject *awaitable)
{
	PyTypeObject *type = Py_TYPE(awaitable);
	unaryfunc await;
	PyObject *iterator;

	if (PyType_GetSlot(type, Py_am_send)) /* a coroutine itself, or our own kind */
		return awaitable;
	await = (unaryfunc)PyType_GetSlot(type, Py_am_await);
	if (await) {
		iterator = await(awaitable);
		if (iterator && !PyIter_Check(iterator)) {
			PyErr_Format(PyExc_TypeError,
				     "read events: __await__() of %R returned no iterator", type);
			Py_CLEAR(iterator);
		}
	} else {
		iterator = PyErr_Format(PyExc_TypeError,
					"read events: arefill returned %R, not an awaitable", type);
	}
	Py_DECREF(awaitable);
	return iterator;
}

static void next_ends(Next *next)
{
	Py_CLEAR(next->inner);
	Py_CLEAR(next->reader);
}

/* Take what arefill() came to. The end is one only if no other task was given more meanwhile. */
static bool adopt_awaited(Next *next, Reader *reader, PyObject *batch)
{
	bool adopted = true;

	if (batch == Py_None)
		next->ended = true;
	else
		adopted = adopt(reader, batch);
	Py_DECREF(batch);
	return adopted;
}

static bool next_asks(Next *next)
{
	PyObject *awaitable, *iterator;

	if (!next->reader) {
		PyErr_SetString(PyExc_RuntimeError, "read events: closed while awaited");
		return false;
	}
	awaitable = PyObject_CallFunctionObjArgs(next->reader->arefill, NULL);
	iterator = awaitable ? awaited(awaitable) : NULL;

	if (iterator && (next->inner || !next->reader)) { /* it was awaited meanwhile */
		PyErr_SetString(PyExc_RuntimeError, "read events: already being awaited");
		Py_CLEAR(iterator);
	}
	if (iterator)
		next->inner = iterator;
	return iterator != NULL;
}

/* PYGEN_RETURN: it is done, and what it came to is adopted. */
static PySendResult resume_inner(Next *next, Reader *reader, PyObject *arg, PyObject **result)
{
	PyObject *inner = next->inner, *batch;
	PySendResult outcome;

	Py_INCREF(inner);
	outcome = PyIter_Send(inner, arg, &batch);
	Py_DECREF(inner);
	if (outcome == PYGEN_RETURN) {
		Py_CLEAR(next->inner);
		return adopt_awaited(next, reader, batch) ? PYGEN_RETURN : PYGEN_ERROR;
	}
	if (outcome == PYGEN_NEXT) {
		*result = batch;
		/* Whoever waits owns it alone now: it ends with its owner, not with the reader. */
		if (reader->ready == (PyObject *)next)
			Py_CLEAR(reader->ready);
	}
	return outcome;
}

static PySendResult resume(Next *next, Reader *reader, PyObject *arg, PyObject **result)
{
	PySendResult outcome;

	for (;;) {
		if (!next->inner) {
			*result = next_in_hand(reader);
			if (*result)
				return PYGEN_RETURN;
			if (next->ended && !PyErr_Occurred())
				PyErr_SetNone(PyExc_StopAsyncIteration);
			if (PyErr_Occurred() || !next_asks(next))
				return PYGEN_ERROR;
			arg = Py_None;
		}
		outcome = resume_inner(next, reader, arg, result);
		if (outcome != PYGEN_RETURN)
			return outcome;
	}
}

static PySendResult next_resume(PyObject *self, PyObject *arg, PyObject **result)
{
	Next *next = (Next *)self;
	Reader *reader = next->reader;
	PySendResult outcome;

	*result = NULL;
	if (!reader) {
		PyErr_SetString(PyExc_RuntimeError,
				"read events: cannot reuse what was awaited already");
		return PYGEN_ERROR;
	}
	Py_INCREF(reader);
	outcome = resume(next, reader, arg, result);
	if (outcome != PYGEN_NEXT)
		next_ends(next);
	Py_DECREF(reader);
	return outcome;
}

static PyObject *next_send(PyObject *self, PyObject *arg)
{
	PyObject *result;

	if (next_resume(self, arg, &result) == PYGEN_RETURN) {
		PyErr_SetObject(PyExc_StopIteration, result); /* an event: no tuple, no exception */
		Py_CLEAR(result);
	}
	return result;
}

static PyObject *next_iternext(PyObject *self)
{
	return next_send(self, Py_None);
}

/* If the pending error is StopIteration: its value, and no error. */
static PyObject *stopped_value(void)
{
	PyObject *type, *error, *traceback, *value;

	if (!PyErr_ExceptionMatches(PyExc_StopIteration))
		return NULL;
	PyErr_Fetch(&type, &error, &traceback);
	PyErr_NormalizeException(&type, &error, &traceback);
	value = error ? PyObject_GetAttr(error, name_value) : NULL;
	Py_XDECREF(type);
	Py_XDECREF(error);
	Py_XDECREF(traceback);
	return value;
}

static PyObject *raise_thrown(PyObject *const *args, Py_ssize_t count)
{
	PyObject *type = args[0], *value = count > 1 ? args[1] : NULL;

	if (PyExceptionInstance_Check(type))
		PyErr_SetObject((PyObject *)Py_TYPE(type), type);
	else if (PyExceptionClass_Check(type))
		PyErr_SetObject(type, value);
	else
		PyErr_Format(PyExc_TypeError, "throw: %R is not an exception", type);
	return NULL;
}

static PyObject *next_throw(PyObject *self, PyObject *const *args, Py_ssize_t count)
{
	Next *next = (Next *)self;
	PyObject *method = NULL, *inner, *result;

	if (count < 1 || count > 3)
		return PyErr_Format(PyExc_TypeError, "throw expected 1 to 3 arguments, got %zd",
				    count);
	if (next->inner) {
		inner = next->inner;
		Py_INCREF(inner);
		method = PyObject_GetAttr(inner, name_throw);
		Py_DECREF(inner);
		if (!method && !PyErr_ExceptionMatches(PyExc_AttributeError))
			return NULL;
		PyErr_Clear();
	}
	if (!method) {
		next_ends(next);
		return raise_thrown(args, count);
	}
	/* The first NULL ends the list, so this passes on as many as there are. */
	result = PyObject_CallFunctionObjArgs(method, args[0], count > 1 ? args[1] : NULL,
					      count > 2 ? args[2] : NULL, NULL);
	Py_DECREF(method);
	if (result)
		return result;
	result = stopped_value();
	Py_CLEAR(next->inner);
	if (result && next->reader && adopt_awaited(next, next->reader, result))
		return next_send(self, Py_None);
	next_ends(next);
	return NULL;
}

static PyObject *next_close(PyObject *self, PyObject *Py_UNUSED(ignored))
{
	Next *next = (Next *)self;
	PyObject *inner = next->inner, *closed = NULL;

	next->inner = NULL;
	Py_CLEAR(next->reader);
	if (inner && PyObject_HasAttr(inner, name_close)) {
		closed = PyObject_CallMethodObjArgs(inner, name_close, NULL);
		Py_DECREF(inner);
		return closed;
	}
	Py_XDECREF(inner);
	Py_RETURN_NONE;
}

static int next_traverse(PyObject *self, visitproc visit, void *arg)
{
	Py_VISIT(Py_TYPE(self));
	Py_VISIT(((Next *)self)->reader);
	Py_VISIT(((Next *)self)->inner);
	return 0;
}

static int next_clear(PyObject *self)
{
	Py_CLEAR(((Next *)self)->inner);
	Py_CLEAR(((Next *)self)->reader);
	return 0;
}

static void next_dealloc(PyObject *self)
{
	PyTypeObject *type = Py_TYPE(self);

	PyObject_GC_UnTrack(self);
	next_clear(self);
	PyObject_GC_Del(self);
	Py_DECREF(type);
}

static PyMethodDef next_methods[] = {
	{ "send", next_send, METH_O, "Resume what is awaited." },
	{ "throw", FASTCALL(next_throw), METH_FASTCALL, "Throw into what is awaited." },
	{ "close", next_close, METH_NOARGS, "Give up what is awaited." },
	{ NULL, NULL, 0, NULL },
};

static PyType_Slot next_slots[] = {
	{ Py_tp_doc, "The next event, to be awaited. Made by Reader.__anext__()." },
	{ Py_am_await, itself },
	{ Py_am_send, next_resume },
	{ Py_tp_iter, itself },
	{ Py_tp_iternext, next_iternext },
	{ Py_tp_methods, next_methods },
	{ Py_tp_traverse, next_traverse },
	{ Py_tp_clear, next_clear },
	{ Py_tp_dealloc, next_dealloc },
	{ 0, NULL },
};

static PyType_Spec next_spec = { "kerneltrace_core._native._events.Next", sizeof(Next), 0,
				 SHARED_FLAGS | Py_TPFLAGS_HAVE_GC |
					 Py_TPFLAGS_DISALLOW_INSTANTIATION,
				 next_slots };

static PyMethodDef reader_methods[] = {
	{ "discard", reader_discard, METH_NOARGS,
	  "Drop the frames in hand; return how many events they still held." },
	{ "__class_getitem__", (PyCFunction)Py_GenericAlias, METH_O | METH_CLASS, NULL },
	{ NULL, NULL, 0, NULL },
};

static PyMemberDef reader_members[] = {
	{ "delivered", T_ULONGLONG, offsetof(Reader, delivered), READONLY,
	  "How many events it has returned." },
	{ NULL, 0, 0, 0, NULL },
};

static PyGetSetDef reader_getset[] = {
	{ "unread", reader_unread, NULL, "How many events its frames still hold.", NULL },
	{ NULL, NULL, NULL, NULL, NULL },
};

static PyType_Slot reader_slots[] = {
	{ Py_tp_doc, "Iterate over the events of one type, in `for` and in `async for`." },
	{ Py_tp_new, reader_new },
	{ Py_tp_dealloc, reader_dealloc },
	{ Py_tp_traverse, reader_traverse },
	{ Py_tp_clear, reader_clear },
	{ Py_tp_methods, reader_methods },
	{ Py_tp_members, reader_members },
	{ Py_tp_getset, reader_getset },
	{ Py_tp_iter, itself },
	{ Py_tp_iternext, reader_next },
	{ Py_am_aiter, itself },
	{ Py_am_anext, reader_anext },
	{ 0, NULL },
};

static PyType_Spec reader_spec = { "kerneltrace_core._native._events.Reader", sizeof(Reader), 0,
				   SHARED_FLAGS | Py_TPFLAGS_HAVE_GC, reader_slots };

#endif
