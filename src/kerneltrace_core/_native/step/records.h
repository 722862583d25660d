/* SPDX-License-Identifier: MIT */
/* The type Record: one request, which is read as blocks until it is closed. */
#ifndef KT_STEP_RECORDS_H
#define KT_STEP_RECORDS_H

#include "blocks.h"
#include "slots.h"
#include "steps.h"

/* Takes a slot if one is free; without one it still keeps its ledger. */
static PyObject *new_record(Region *region)
{
	Record *r = PyObject_GC_New(Record, record_type);

	if (!r)
		return NULL;
	memset(&r->weakrefs, 0, sizeof(*r) - offsetof(Record, weakrefs));
	Py_INCREF(region);
	r->region = region;
	r->value = take_slot(region);
	if (!r->value)
		r->ledger.flags = FLAG_NO_SLOT;
	PyObject_GC_Track(r);
	return (PyObject *)r;
}

static PyObject *record_read(PyObject *self, PyObject *Py_UNUSED(ignored))
{
	return take_block((Record *)self, false);
}

static PyObject *record_close(PyObject *self, PyObject *Py_UNUSED(ignored))
{
	return close_record((Record *)self);
}

static PyObject *record_step(PyObject *self, PyObject *coro)
{
	return new_step((Record *)self, coro, NULL);
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
			retire_generation(r->region, r->value);
		Py_INCREF(Py_None);
		give_slot(r->region, r->value, Py_None, 0);
	}
	record_clear(self);
	PyMem_Free(r->helpers);
	Py_DECREF(r->region);
	PyObject_GC_Del(self);
	Py_DECREF(type);
}

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

static PyType_Spec record_spec = { "kerneltrace_core._native._step.Record", sizeof(Record), 0,
				   MADE_BY_METHOD, record_slots };

#endif
