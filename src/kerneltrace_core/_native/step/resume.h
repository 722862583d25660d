/* SPDX-License-Identifier: MIT */
/* Resuming a step: its coroutine's send, throw and close, each as a visit to its record. */
#ifndef KT_STEP_RESUME_H
#define KT_STEP_RESUME_H

#include "borders.h"
#include "readings.h"
#include "threads.h"

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

/* One that marks is a stretch of another step: it counts for nothing. */
static void step_set_live(Step *step, bool live)
{
	if (step->live != live && !step->marks) {
		step->live = live;
		step->record->live += live ? 1 : -1;
	}
}

/* `yielded` is NULL when the coroutine returned, raised or was closed. */
static void step_end(Step *step, struct thread *t, struct visit *visit, PyObject *yielded)
{
	/* Not only downwards: an error such as "already executing" ends nothing. */
	step_set_live(step, yielded != NULL);
	if (yielded == Py_None && !step->queued && !step->marks) {
		step->queued = true;
		step->record->queued++;
	}
	leave(t, visit);
	if (step->nests)
		Py_LeaveRecursiveCall();
}

/* The coroutine has returned, perhaps by a StopIteration that is under way. */
static void step_mark(Step *step)
{
	PyObject *type, *value, *traceback;

	if (!step->marks)
		return;
	PyErr_Fetch(&type, &value, &traceback);
	if (!mark_reading(step->marks))
		PyErr_WriteUnraisable((PyObject *)step->marks);
	PyErr_Restore(type, value, traceback);
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
	if (outcome == PYGEN_RETURN)
		step_mark(step);
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
	if (!result && PyErr_ExceptionMatches(PyExc_StopIteration))
		step_mark(step);
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

#endif
