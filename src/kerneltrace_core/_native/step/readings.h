/* SPDX-License-Identifier: MIT */
/*
 * The type Reading: a record's block, live until it is frozen. KernelStats is made
 * of it: here is what every request needs of that, and none of its decoding.
 */
#ifndef KT_STEP_READINGS_H
#define KT_STEP_READINGS_H

#include "blocks.h"

static bool is_none(PyObject *object)
{
	return !object || object == Py_None;
}

static void set_object(PyObject **place, PyObject *object)
{
	PyObject *before = *place;

	Py_INCREF(object);
	*place = object;
	Py_XDECREF(before);
}

/* Freezes the block as of now, if there is none yet. False with an exception set. */
static bool mark_reading(Reading *reading)
{
	PyObject *record = reading->record, *block;

	if (!is_none(reading->block) || is_none(record))
		return true;
	Py_INCREF(record);
	block = Py_TYPE(record) == record_type ? take_block((Record *)record, false)
					       : PyObject_CallMethod(record, "mark", NULL);
	Py_DECREF(record);
	if (!block)
		return false;
	set_object(&reading->block, block);
	Py_DECREF(block);
	return true;
}

static void freeze_reading(Reading *reading, PyObject *whole)
{
	set_object(&reading->whole, whole);
	if (is_none(reading->block))
		set_object(&reading->block, whole);
}

static PyObject *reading_mark(PyObject *self, PyObject *Py_UNUSED(ignored))
{
	if (!mark_reading((Reading *)self))
		return NULL;
	Py_RETURN_NONE;
}

static PyObject *reading_freeze(PyObject *self, PyObject *whole)
{
	freeze_reading((Reading *)self, whole);
	Py_RETURN_NONE;
}

static PyObject *reading_finish(PyObject *self, PyObject *Py_UNUSED(ignored))
{
	Reading *reading = (Reading *)self;
	PyObject *record = reading->record, *whole;

	if (is_none(record))
		Py_RETURN_NONE;
	Py_INCREF(record);
	whole = Py_TYPE(record) == record_type ? close_record((Record *)record)
					       : PyObject_CallMethod(record, "close", NULL);
	if (whole) {
		freeze_reading(reading, whole);
		set_object(&reading->record, Py_None);
		Py_DECREF(whole);
	}
	Py_DECREF(record);
	if (!whole)
		return NULL;
	Py_RETURN_NONE;
}

static int reading_init(PyObject *self, PyObject *args, PyObject *kwargs)
{
	Reading *reading = (Reading *)self;
	PyObject *record, *measures;

	if (kwargs && PyDict_Size(kwargs)) {
		PyErr_SetString(PyExc_TypeError, "Reading takes no keywords");
		return -1;
	}
	if (!PyArg_UnpackTuple(args, "Reading", 2, 2, &record, &measures))
		return -1;
	set_object(&reading->record, record);
	set_object(&reading->measures, measures);
	set_object(&reading->phase, name_response);
	return 0;
}

static int reading_traverse(PyObject *self, visitproc visit, void *arg)
{
	Reading *reading = (Reading *)self;

	Py_VISIT(Py_TYPE(self));
	Py_VISIT(reading->record);
	Py_VISIT(reading->measures);
	Py_VISIT(reading->block);
	Py_VISIT(reading->whole);
	Py_VISIT(reading->phase);
	return 0;
}

static int reading_clear(PyObject *self)
{
	Reading *reading = (Reading *)self;

	Py_CLEAR(reading->record);
	Py_CLEAR(reading->measures);
	Py_CLEAR(reading->block);
	Py_CLEAR(reading->whole);
	Py_CLEAR(reading->phase);
	return 0;
}

static void reading_dealloc(PyObject *self)
{
	PyTypeObject *type = Py_TYPE(self);
	freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);

	PyObject_GC_UnTrack(self);
	if (((Reading *)self)->weakrefs)
		PyObject_ClearWeakRefs(self);
	reading_clear(self);
	release(self);
	Py_DECREF(type);
}

static PyMethodDef reading_methods[] = {
	{ "mark", reading_mark, METH_NOARGS,
	  "End the response phase now; later calls do nothing." },
	{ "freeze", reading_freeze, METH_O, "Take the final block." },
	{ "finish", reading_finish, METH_NOARGS,
	  "Close the record and freeze its final block; a second call does nothing." },
	{ NULL, NULL, 0, NULL },
};

static PyMemberDef reading_members[] = {
	{ "__weaklistoffset__", T_PYSSIZET, offsetof(Reading, weakrefs), READONLY, NULL },
	{ "record", T_OBJECT, offsetof(Reading, record), 0, "while it is open" },
	{ "_measures", T_OBJECT, offsetof(Reading, measures), 0, NULL },
	{ "_block", T_OBJECT, offsetof(Reading, block), 0, NULL },
	{ "_whole", T_OBJECT, offsetof(Reading, whole), 0, NULL },
	{ "_phase", T_OBJECT, offsetof(Reading, phase), 0, NULL },
	{ NULL, 0, 0, 0, NULL },
};

static PyType_Slot reading_slots[] = {
	{ Py_tp_doc, "A record's block, live until it is frozen." },
	{ Py_tp_new, PyType_GenericNew },
	{ Py_tp_init, reading_init },
	{ Py_tp_methods, reading_methods },
	{ Py_tp_members, reading_members },
	{ Py_tp_traverse, reading_traverse },
	{ Py_tp_clear, reading_clear },
	{ Py_tp_dealloc, reading_dealloc },
	{ 0, NULL },
};

static PyType_Spec reading_spec = { "kerneltrace_core._native._step.Reading", sizeof(Reading), 0,
				    SHARED_FLAGS | Py_TPFLAGS_BASETYPE, reading_slots };

#endif
