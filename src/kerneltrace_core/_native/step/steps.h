/* SPDX-License-Identifier: MIT */
/* The type Step: a coroutine to everyone, and to who asks for its attributes the wrapped one. */
#ifndef KT_STEP_STEPS_H
#define KT_STEP_STEPS_H

#include "resume.h"

/* NULL and TypeError if `coro` is no coroutine. `marks` may be NULL. */
static PyObject *new_step(Record *record, PyObject *coro, Reading *marks)
{
	Step *step;

	if (!PyType_GetSlot(Py_TYPE(coro), Py_am_send) && !PyObject_HasAttr(coro, name_send))
		return PyErr_Format(PyExc_TypeError, "make step: %R is not a coroutine", coro);
	step = PyObject_GC_New(Step, step_type);
	if (!step)
		return NULL;
	Py_INCREF(coro);
	Py_INCREF(record);
	Py_XINCREF(marks);
	step->weakrefs = NULL;
	step->coro = coro;
	step->record = record;
	step->marks = marks;
	step->live = step->queued = false;
	step->nests = Py_TYPE(coro) == step_type;
	step_set_live(step, true);
	PyObject_GC_Track(step);
	return (PyObject *)step;
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
	Py_VISIT(((Step *)self)->marks);
	return 0;
}

/* Leaves the record: it is needed to the end, and breaks its own cycles. */
static int step_clear(PyObject *self)
{
	Py_CLEAR(((Step *)self)->coro);
	Py_CLEAR(((Step *)self)->marks);
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

static PyType_Spec step_spec = { "kerneltrace_core._native._step.Step", sizeof(Step), 0,
				 MADE_BY_METHOD, step_slots };

#endif
