/* SPDX-License-Identifier: MIT */
/*
 * What a border calls in Python: a region's sampler, ready_at and register.
 *
 * Each may run any code, even replace itself, hence the references. What it
 * raises itself is reported and has no other effect: there is no caller to go
 * to. But a signal handler runs wherever the main thread happens to be, and
 * what that raises (KeyboardInterrupt, a time limit) is the application's: it
 * is raised again as soon as the border is behind us.
 */
#ifndef KT_STEP_CALLBACKS_H
#define KT_STEP_CALLBACKS_H

#include "cells.h"

/* Asked of kerneltrace_core._native.handlers; if that cannot be asked: no. */
static bool raised_by_handler(PyObject *exception)
{
	PyObject *module = PyImport_ImportModule("kerneltrace_core._native.handlers");
	PyObject *answer = module ? PyObject_CallMethod(module, "raised_by_handler", "O", exception)
				  : NULL;
	bool yes = answer && PyObject_IsTrue(answer) == 1;

	PyErr_Clear();
	Py_XDECREF(answer);
	Py_XDECREF(module);
	return yes;
}

static int raise_again(void *exception)
{
	PyObject *value = exception;

	PyErr_SetObject((PyObject *)Py_TYPE(value), value);
	Py_DECREF(value);
	return -1;
}

/* What a callback has raised: its own failure is reported, a signal handler's exception goes on.
 * Signal handlers and pending calls run in the same thread, the main one. */
static void told(PyObject *callback)
{
	PyObject *type, *value, *traceback;

	PyErr_Fetch(&type, &value, &traceback);
	PyErr_NormalizeException(&type, &value, &traceback);
	if (value && traceback)
		PyException_SetTraceback(value, traceback);
	if (value && raised_by_handler(value)) {
		Py_INCREF(value);
		if (!Py_AddPendingCall(raise_again, value)) {
			Py_XDECREF(type);
			Py_DECREF(value);
			Py_XDECREF(traceback);
			return;
		}
		Py_DECREF(value); /* no room: then at least it is seen */
	}
	PyErr_Restore(type, value, traceback);
	PyErr_WriteUnraisable(callback);
}

static PyObject *sampler_of(struct thread *t)
{
	PyObject *sampler = t->region ? t->region->sampler : NULL;

	return sampler == Py_None ? NULL : sampler;
}

static void sample(struct thread *t, uint64_t now)
{
	PyObject *sampler = sampler_of(t), *type, *value, *traceback, *result;

	if (!sampler)
		return;
	PyErr_Fetch(&type, &value, &traceback); /* a step may be leaving with one */
	Py_INCREF(sampler);
	result = PyObject_CallFunction(sampler, "KK", (unsigned long long)entry_of(t)[CELL],
				       (unsigned long long)now);
	if (!result)
		told(sampler);
	Py_XDECREF(result);
	Py_DECREF(sampler);
	PyErr_Restore(type, value, traceback);
}

/* When what the coroutine waits for became ready; 0: not known. */
static uint64_t ask_ready_at(Region *region, PyObject *coro)
{
	PyObject *ready_at = region->ready_at, *result;
	unsigned long long ready = 0;

	if (!ready_at || ready_at == Py_None)
		return 0;
	Py_INCREF(ready_at);
	result = PyObject_CallFunctionObjArgs(ready_at, coro, NULL);
	if (result)
		ready = PyLong_AsUnsignedLongLong(result);
	if (!result || (ready == (unsigned long long)-1 && PyErr_Occurred())) {
		told(ready_at);
		ready = 0;
	}
	Py_XDECREF(result);
	Py_DECREF(ready_at);
	return ready;
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
			told(register_thread);
		Py_XDECREF(result);
		Py_DECREF(register_thread);
	}
	if (t->region != region)
		bind_thread(t, region, NULL);
}

#endif
