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
 * requests/pystep.py and the modules it is made of are the same in Python, kept
 * as fallback and as oracle: a change here is a change there. The layout of the
 * region is kt_region.h.
 *
 * The GIL protects all state. What calls into Python (the sampler, ready_at,
 * register, the release of a reference) may let other threads run, so nothing
 * is left half updated across such a call.
 *
 * All of it is one translation unit, in headers of static functions, from the
 * bottom up: a border is crossed twice for each resumption, so it must be
 * inlined, and the state is nobody else's.
 */
#include "step/types.h"
#include "step/clock.h"
#include "step/slots.h"
#include "step/cells.h"
#include "step/callbacks.h"
#include "step/ledger.h"
#include "step/blocks.h"
#include "step/loop_wait.h"
#include "step/borders.h"
#include "step/threads.h"
#include "step/readings.h"
#include "step/resume.h"
#include "step/steps.h"
#include "step/records.h"
#include "step/regions.h"
#include "step/exchanges.h"

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

static PyObject *module_push(PyObject *Py_UNUSED(module), PyObject *arg)
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

static PyObject *module_pop(PyObject *Py_UNUSED(module), PyObject *arg)
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

static PyObject *module_current(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
	return owner_or_none(here ? here->owner : NULL);
}

static PyObject *module_read_cell(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
	return PyLong_FromUnsignedLongLong(here ? entry_of(here)[CELL] : 0);
}

static PyObject *module_cell_address(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
	bool seen = here && entry_of(here) != here->hidden;

	return PyLong_FromUnsignedLongLong(seen ? (uintptr_t)here->entry : 0);
}

static PyObject *module_difference(PyObject *Py_UNUSED(module), PyObject *args)
{
	PyObject *earlier, *later, *kept;

	if (!PyArg_UnpackTuple(args, "difference", 3, 3, &earlier, &later, &kept))
		return NULL;
	return subtract_blocks(earlier, later, kept);
}

static PyMethodDef module_methods[] = {
	{ "push", module_push, METH_O,
	  "Let this thread work for a record; return the owner before." },
	{ "pop", module_pop, METH_O, "Restore the owner that push() returned." },
	{ "current", module_current, METH_NOARGS, "Return the record this thread works for." },
	{ "read_cell", module_read_cell, METH_NOARGS, "Return the value of this thread's cell." },
	{ "difference", module_difference, METH_VARARGS,
	  "Subtract a block from a later one, but for the words that are kept." },
	{ "cell_address", module_cell_address, METH_NOARGS, "Return its address; 0: private." },
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

/* Strings that are compared or looked up for each request, made once. */
static bool intern_names(void)
{
	static const struct {
		PyObject **name;
		const char *text;
	} names[] = {
		{ &name_throw, "throw" },
		{ &name_close, "close" },
		{ &name_send, "send" },
		{ &name_here, capsule_name },
		{ &name_response, "response" },
		{ &name_type, "type" },
		{ &name_status, "status" },
		{ &name_more_body, "more_body" },
		{ &name_get, "get" },
		{ &name_start, "http.response.start" },
		{ &name_body, "http.response.body" },
		{ &name_pathsend, "http.response.pathsend" },
		{ &name_zerocopysend, "http.response.zerocopysend" },
	};

	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		*names[i].name = PyUnicode_InternFromString(names[i].text);
		if (!*names[i].name)
			return false;
	}
	return true;
}

PyMODINIT_FUNC PyInit__step(void)
{
	PyObject *module = PyModule_Create(&module_def);
	PyObject *abc = PyImport_ImportModule("collections.abc"), *coroutine = NULL, *done = NULL;

	if (!module || !abc || !intern_names())
		goto out;
	region_type = add_type(module, "Region", &region_spec);
	record_type = add_type(module, "Record", &record_spec);
	step_type = add_type(module, "Step", &step_spec);
	reading_type = add_type(module, "Reading", &reading_spec);
	exchange_type = add_type(module, "Exchange", &exchange_spec);
	if (!region_type || !record_type || !step_type || !reading_type || !exchange_type)
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
