/* SPDX-License-Identifier: MIT */
/*
 * The type Exchange: the `send` that an ASGI application gets. Every message of
 * every response passes through it, and nearly all are only looked at.
 */
#ifndef KT_STEP_EXCHANGES_H
#define KT_STEP_EXCHANGES_H

#include "steps.h"

static PyObject *name_type, *name_status, *name_more_body, *name_start, *name_get;
static PyObject *name_body, *name_pathsend, *name_zerocopysend;

/* -1 with an exception set. The names in a server are the same objects, nearly always. */
static int is_name(PyObject *object, PyObject *name)
{
	return object == name ? 1 : PyObject_RichCompareBool(object, name, Py_EQ);
}

/* Whether a message of this type may carry the end of a response. */
static int is_body(PyObject *type)
{
	PyObject *names[] = { name_body, name_pathsend, name_zerocopysend };
	int found = 0;

	for (size_t i = 0; i < 3 && !found; i++)
		found = is_name(type, names[i]);
	return found;
}

/* not message.get("more_body"); -1 with an exception set. */
static int is_last(PyObject *message)
{
	PyObject *more;
	int truth;

	if (PyDict_Check(message)) {
		more = PyDict_GetItemWithError(message, name_more_body);
		if (!more)
			return PyErr_Occurred() ? -1 : 1;
		truth = PyObject_IsTrue(more);
	} else {
		more = PyObject_CallMethodObjArgs(message, name_get, name_more_body, NULL);
		if (!more)
			return -1;
		truth = PyObject_IsTrue(more);
		Py_DECREF(more);
	}
	return truth < 0 ? -1 : !truth;
}

/* Notes the status; returns the message to send, a new reference. */
static PyObject *begin_response(Exchange *exchange, PyObject *message)
{
	PyObject *status = PyObject_GetItem(message, name_status);

	if (!status)
		return NULL;
	set_object(&exchange->status_code, status);
	Py_DECREF(status);
	if (!is_none(exchange->on_start))
		return PyObject_CallFunctionObjArgs(exchange->on_start, message, NULL);
	Py_INCREF(message);
	return message;
}

/* What is awaited until the last message is sent, and then freezes the reading.
 * A coroutine is driven as it is; what else can be awaited is left to Python. */
static PyObject *mark_after(Exchange *exchange, PyObject *sending)
{
	PyObject *record = exchange->reading->record, *module, *waiting;

	if (record && Py_TYPE(record) == record_type &&
	    PyType_GetSlot(Py_TYPE(sending), Py_am_send) &&
	    PyType_GetSlot(Py_TYPE(sending), Py_am_await))
		return new_step((Record *)record, sending, exchange->reading);
	module = PyImport_ImportModule("kerneltrace_core._native.awaiting");
	waiting = module ? PyObject_CallMethod(module, "await_and_mark", "OO", sending,
					       (PyObject *)exchange->reading)
			 : NULL;
	Py_XDECREF(module);
	return waiting;
}

static PyObject *exchange_send(PyObject *self, PyObject *message)
{
	Exchange *exchange = (Exchange *)self;
	PyObject *type = PyObject_GetItem(message, name_type), *sending, *waiting;
	int starts, last = 0;

	if (!type)
		return NULL;
	starts = is_name(type, name_start);
	if (!starts)
		last = is_body(type);
	Py_DECREF(type);
	if (last > 0)
		last = is_last(message);
	if (starts < 0 || last < 0)
		return NULL;
	if (starts)
		message = begin_response(exchange, message);
	else
		Py_INCREF(message);
	if (!message)
		return NULL;
	sending = PyObject_CallFunctionObjArgs(exchange->send, message, NULL);
	Py_DECREF(message);
	if (!sending || !last)
		return sending;
	waiting = mark_after(exchange, sending);
	Py_DECREF(sending);
	return waiting;
}

static PyObject *exchange_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
	PyObject *reading, *send, *on_start;
	Exchange *exchange;

	if (kwargs && PyDict_Size(kwargs))
		return PyErr_Format(PyExc_TypeError, "Exchange takes no keywords");
	if (!PyArg_UnpackTuple(args, "Exchange", 3, 3, &reading, &send, &on_start))
		return NULL;
	if (!PyObject_TypeCheck(reading, reading_type))
		return PyErr_Format(PyExc_TypeError, "make exchange: %R is not a Reading", reading);
	exchange = PyObject_GC_New(Exchange, type);
	if (!exchange)
		return NULL;
	Py_INCREF(reading);
	Py_INCREF(send);
	Py_INCREF(on_start);
	exchange->reading = (Reading *)reading;
	exchange->send = send;
	exchange->on_start = on_start;
	exchange->status_code = NULL;
	PyObject_GC_Track(exchange);
	return (PyObject *)exchange;
}

static int exchange_traverse(PyObject *self, visitproc visit, void *arg)
{
	Exchange *exchange = (Exchange *)self;

	Py_VISIT(Py_TYPE(self));
	Py_VISIT(exchange->reading);
	Py_VISIT(exchange->send);
	Py_VISIT(exchange->on_start);
	Py_VISIT(exchange->status_code);
	return 0;
}

/* Leaves the reading and `send`, which are never NULL: whoever still holds this may call it. */
static int exchange_clear(PyObject *self)
{
	Exchange *exchange = (Exchange *)self;

	Py_CLEAR(exchange->on_start);
	Py_CLEAR(exchange->status_code);
	return 0;
}

static void exchange_dealloc(PyObject *self)
{
	PyTypeObject *type = Py_TYPE(self);
	Exchange *exchange = (Exchange *)self;

	PyObject_GC_UnTrack(self);
	exchange_clear(self);
	Py_DECREF(exchange->send);
	Py_DECREF(exchange->reading);
	PyObject_GC_Del(self);
	Py_DECREF(type);
}

static PyMethodDef exchange_methods[] = {
	{ "send", exchange_send, METH_O, "Send a message; the last one freezes the reading." },
	{ NULL, NULL, 0, NULL },
};

static PyMemberDef exchange_members[] = {
	{ "status_code", T_OBJECT, offsetof(Exchange, status_code), READONLY,
	  "of the response; None before it begins" },
	{ NULL, 0, 0, 0, NULL },
};

static PyType_Slot exchange_slots[] = {
	{ Py_tp_doc, "The send of one request: how its response begins and ends." },
	{ Py_tp_new, exchange_new },
	{ Py_tp_methods, exchange_methods },
	{ Py_tp_members, exchange_members },
	{ Py_tp_traverse, exchange_traverse },
	{ Py_tp_clear, exchange_clear },
	{ Py_tp_dealloc, exchange_dealloc },
	{ 0, NULL },
};

static PyType_Spec exchange_spec = { "kerneltrace_core._native._step.Exchange", sizeof(Exchange), 0,
				     SHARED_FLAGS, exchange_slots };

#endif
