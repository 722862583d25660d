/* SPDX-License-Identifier: MIT */
/* The type Field: a descriptor that reads one field of an event. */
#ifndef KT_EVENTS_FIELD_H
#define KT_EVENTS_FIELD_H

#include "value.h"

static PyObject *field_get(PyObject *self, PyObject *event, PyObject *Py_UNUSED(owner))
{
	const Field *field = (Field *)self;

	if (!event) { /* asked of the class */
		Py_INCREF(self);
		return self;
	}
	if (!PyObject_TypeCheck(event, event_type))
		return PyErr_Format(PyExc_TypeError, "read field: %R is not an event", event);
	if (field->end > Py_SIZE(event))
		return PyErr_Format(option_error,
				    "read field: the event has %zd bytes, the field ends at %zd",
				    Py_SIZE(event), field->end);
	return field_value(field, (Event *)event);
}

static int field_set(PyObject *Py_UNUSED(self), PyObject *Py_UNUSED(event),
		     PyObject *Py_UNUSED(value))
{
	PyErr_SetString(PyExc_AttributeError, "change field: events are immutable");
	return -1;
}

static bool refuse_field(const Field *field, const char *cause)
{
	char kind[2] = { field->kind, 0 };

	PyErr_Format(option_error, "describe field: kind '%s' of %zd bytes at %zd: %s", kind,
		     field->size, field->offset, cause);
	return false;
}

static bool check_place(const Field *field)
{
	if (!strchr("usUS?fcbn", field->kind))
		return refuse_field(field, "no such kind");
	if (field->offset < 0 || field->size < REST || field->offset > MOST_BYTES ||
	    field->size > MOST_BYTES)
		return refuse_field(field, "no such place");
	return true;
}

static bool take_counts(Field *field, PyObject *shape)
{
	Py_ssize_t dimensions = PyTuple_Size(shape), i, count;

	if (dimensions > DIMENSIONS)
		return refuse_field(field, "no such shape");
	for (i = 0; i < dimensions; i++) {
		count = PyLong_AsSsize_t(PyTuple_GetItem(shape, i));
		if (count == -1 && PyErr_Occurred()) {
			if (!PyErr_ExceptionMatches(PyExc_OverflowError))
				return false;
			PyErr_Clear();
			count = REST - 1;
		}
		if (count < (i ? 0 : REST) || count > MOST_BYTES)
			return refuse_field(field, "no such shape");
		field->counts[i] = count;
	}
	field->dimensions = (int)dimensions;
	return true;
}

static bool take_shape(Field *field, PyObject *shape)
{
	bool flexible = field->size == REST;
	int64_t bytes = flexible ? 0 : field->size;
	int i;

	if (!take_counts(field, shape))
		return false;
	if (field->dimensions && bytes <= 0)
		return refuse_field(field, "no arrays of nothing");
	for (i = field->dimensions; i--;) {
		field->strides[i] = (Py_ssize_t)bytes;
		flexible |= field->counts[i] == REST;
		bytes *= field->counts[i] == REST ? 0 : field->counts[i];
		if (bytes > MOST_BYTES)
			return refuse_field(field, "no such shape");
	}
	/* Where the record ends before a flexible array, none of it is there. */
	field->end = flexible && field->dimensions ? 0 : field->offset + (Py_ssize_t)bytes;
	return true;
}

static bool is_event_class(PyObject *type)
{
	return PyType_Check(type) && PyType_IsSubtype((PyTypeObject *)type, event_type);
}

/* Reading then needs to check nothing but the event's own length. */
static bool check_reading(Field *field)
{
	Py_ssize_t size = field->size;
	int open;
	bool number = strchr("usUS?f", field->kind) != NULL;

	if (size == REST && number)
		return refuse_field(field, "no number can be the rest of a record");
	if (field->kind == 'n' && (!field->convert || !is_event_class(field->convert)))
		return refuse_field(field, "no event class to convert to");
	if (field->kind == 'n') {
		open = is_open((PyTypeObject *)field->convert);
		if (open < 0)
			return false;
		field->open = open;
	}
	if (field->bit_size) {
		if (!strchr("us?", field->kind) || field->dimensions || field->bit_size > 64 ||
		    field->bit_offset > 63)
			return refuse_field(field, "no such bit field");
		field->end = field->offset + (field->bit_offset + field->bit_size + 7) / 8;
	} else if (number && size != 8 && size != 4 &&
		   (field->kind == 'f' || (size != 2 && size != 1))) {
		return refuse_field(field, "no such number");
	}
	field->plain = number && !field->bit_size && !field->dimensions && !field->convert;
	return true;
}

static PyObject *field_new(PyTypeObject *type, PyObject *args, PyObject *kw)
{
	static char *names[] = { "offset",   "size",  "kind",    "bit_offset",
				 "bit_size", "shape", "convert", NULL };
	PyObject *given = NULL, *shape, *convert = Py_None;
	Py_ssize_t offset, size, bit_offset = 0, bit_size = 0;
	const char *kind;
	Field *field;
	bool fits;

	if (!PyArg_ParseTupleAndKeywords(args, kw, "nns|nnOO", names, &offset, &size, &kind,
					 &bit_offset, &bit_size, &given, &convert))
		return NULL;
	shape = given ? PySequence_Tuple(given) : PyTuple_New(0);
	field = shape ? PyObject_GC_New(Field, type) : NULL;
	if (!field) {
		Py_XDECREF(shape);
		return NULL;
	}
	memset((char *)field + sizeof(PyObject), 0, sizeof(*field) - sizeof(PyObject));
	field->offset = offset;
	field->size = size;
	field->kind = kind[0] && !kind[1] ? kind[0] : '\1'; /* no kind, and no end of a list */
	/* What is negative is too much, too. */
	field->bit_offset = (size_t)bit_offset > 64 ? 64 : (unsigned int)bit_offset;
	field->bit_size = (size_t)bit_size > 64 ? 65 : (unsigned int)bit_size;
	if (convert != Py_None) {
		Py_INCREF(convert);
		field->convert = convert;
	}
	PyObject_GC_Track(field);
	fits = check_place(field) && take_shape(field, shape) && check_reading(field);
	Py_DECREF(shape);
	if (!fits)
		Py_CLEAR(field);
	return (PyObject *)field;
}

static PyObject *field_kind(PyObject *self, void *Py_UNUSED(closure))
{
	return PyUnicode_FromStringAndSize(&((Field *)self)->kind, 1);
}

static PyObject *field_shape(PyObject *self, void *Py_UNUSED(closure))
{
	const Field *field = (Field *)self;
	PyObject *shape = PyTuple_New(field->dimensions);
	int i;

	for (i = 0; shape && i < field->dimensions; i++) {
		PyObject *count = PyLong_FromSsize_t(field->counts[i]);

		if (!count || PyTuple_SetItem(shape, i, count) < 0)
			Py_CLEAR(shape);
	}
	return shape;
}

static int field_traverse(PyObject *self, visitproc visit, void *arg)
{
	Py_VISIT(Py_TYPE(self));
	Py_VISIT(((Field *)self)->convert);
	return 0;
}

/* `convert` stays while the field can be read: an 'n' field relies on it. */
static void field_dealloc(PyObject *self)
{
	PyTypeObject *type = Py_TYPE(self);

	PyObject_GC_UnTrack(self);
	Py_XDECREF(((Field *)self)->convert);
	PyObject_GC_Del(self);
	Py_DECREF(type);
}

static PyMemberDef field_members[] = {
	{ "offset", T_PYSSIZET, offsetof(Field, offset), READONLY, "Bytes before it." },
	{ "size", T_PYSSIZET, offsetof(Field, size), READONLY, "Bytes of one element." },
	{ "bit_offset", T_UINT, offsetof(Field, bit_offset), READONLY, "Bits before it." },
	{ "bit_size", T_UINT, offsetof(Field, bit_size), READONLY, "0: not a bit field." },
	{ "convert", T_OBJECT, offsetof(Field, convert), READONLY, "What the raw value goes to." },
	{ NULL, 0, 0, 0, NULL },
};

static PyGetSetDef field_getset[] = {
	{ "kind", field_kind, NULL, "How the bytes are read.", NULL },
	{ "shape", field_shape, NULL, "The counts of elements.", NULL },
	{ NULL, NULL, NULL, NULL, NULL },
};

static PyType_Slot field_slots[] = {
	{ Py_tp_doc, "Read one field of an event: a descriptor, immutable and thread-safe." },
	{ Py_tp_new, field_new },
	{ Py_tp_dealloc, field_dealloc },
	{ Py_tp_traverse, field_traverse },
	{ Py_tp_members, field_members },
	{ Py_tp_getset, field_getset },
	{ Py_tp_descr_get, field_get },
	{ Py_tp_descr_set, field_set },
	{ 0, NULL },
};

static PyType_Spec field_spec = { "kerneltrace_core._native._events.Field", sizeof(Field), 0,
				  SHARED_FLAGS | Py_TPFLAGS_HAVE_GC, field_slots };

#endif
