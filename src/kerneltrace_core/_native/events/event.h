/* SPDX-License-Identifier: MIT */
/* The type KernelEvent: one record's bytes. Its size varies with them, as that of bytes does. */
#ifndef KT_EVENTS_EVENT_H
#define KT_EVENTS_EVENT_H

#include "types.h"

/*
 * Classes that Python makes are the collector's. An event refers to nothing but
 * its class, so the collector need not visit it: millions may be kept. `open`
 * ones are of a subclass that gave them a __dict__.
 */
static inline PyObject *new_event(PyTypeObject *type, bool open, const char *data, Py_ssize_t size,
				  uint32_t origin)
{
	Event *event;

	if (open)
		event = (Event *)PyType_GenericAlloc(type, size);
	else if (PyType_GetFlags(type) & Py_TPFLAGS_HAVE_GC)
		event = PyObject_GC_NewVar(Event, type, size);
	else
		event = PyObject_NewVar(Event, type, size);
	if (!event)
		return NULL;
	event->origin = origin;
	memcpy(event->data, data, (size_t)size);
	return (PyObject *)event;
}

/* 1: its events have a __dict__; -1: error. */
static int is_open(PyTypeObject *type)
{
	PyObject *offset = PyObject_GetAttr((PyObject *)type, name_dictoffset);
	int open = offset ? PyObject_IsTrue(offset) : -1;

	Py_XDECREF(offset);
	return open;
}

static PyObject *type_name(PyTypeObject *type)
{
	return PyObject_GetAttr((PyObject *)type, name_name);
}

/* Raise `exception` with "make NAME: " before the text. */
static void refuse_event(PyObject *exception, PyTypeObject *type, const char *format, ...)
{
	PyObject *name = type_name(type), *text;
	va_list arguments;

	va_start(arguments, format);
	text = name ? PyUnicode_FromFormatV(format, arguments) : NULL;
	va_end(arguments);
	if (text)
		PyErr_Format(exception, "make %S: %S", name, text);
	Py_XDECREF(text);
	Py_XDECREF(name);
}

/* What the class says about its records. */
static bool layout_of(PyTypeObject *type, Py_ssize_t *size, bool *exact)
{
	PyObject *bytes = PyObject_GetAttr((PyObject *)type, name_size), *flag = NULL;
	bool known = false;
	int truth;

	if (bytes)
		flag = PyObject_GetAttr((PyObject *)type, name_exact);
	if (!flag) {
		if (PyErr_ExceptionMatches(PyExc_AttributeError))
			refuse_event(PyExc_TypeError, type,
				     "its layout is not known "
				     "(a session binds it to an object)");
		goto out;
	}
	*size = PyLong_Check(bytes) ? PyLong_AsSsize_t(bytes) : -1;
	truth = PyObject_IsTrue(flag);
	if (truth < 0)
		goto out;
	if (*size < 0) {
		refuse_event(PyExc_TypeError, type, "a layout of %R bytes", bytes);
		goto out;
	}
	*exact = truth;
	known = true;
out:
	Py_XDECREF(bytes);
	Py_XDECREF(flag);
	return known;
}

static PyObject *event_new(PyTypeObject *type, PyObject *Py_UNUSED(args), PyObject *Py_UNUSED(kw))
{
	refuse_event(PyExc_TypeError, type, "events come from a stream or from from_bytes()");
	return NULL;
}

static PyObject *event_from_bytes(PyObject *cls, PyObject *args, PyObject *kw)
{
	static char *names[] = { "data", "origin", NULL };
	PyTypeObject *type = (PyTypeObject *)cls;
	PyObject *given, *view, *data, *event = NULL;
	long long origin = 0;
	Py_ssize_t size, length;
	int open = is_open(type);
	bool exact;

	if (open < 0 ||
	    !PyArg_ParseTupleAndKeywords(args, kw, "O|L:from_bytes", names, &given, &origin) ||
	    !layout_of(type, &size, &exact))
		return NULL;
	view = PyMemoryView_FromObject(given); /* no number, no list of numbers */
	data = view ? PyBytes_FromObject(view) : NULL;
	Py_XDECREF(view);
	if (!data)
		return NULL;
	length = PyBytes_Size(data);
	if (origin < 0 || origin > UINT32_MAX)
		refuse_event(option_error, type, "origin %lld is not of 32 bits", origin);
	else if (exact ? length != size : length < size)
		refuse_event(option_error, type, "%zd bytes, not %zd%s", length, size,
			     exact ? "" : " or more");
	else
		event = new_event(type, open, PyBytes_AsString(data), length, (uint32_t)origin);
	Py_DECREF(data);
	return event;
}

static PyObject *event_bytes(PyObject *self, PyObject *Py_UNUSED(ignored))
{
	return PyBytes_FromStringAndSize(((Event *)self)->data, Py_SIZE(self));
}

static PyObject *field_names(PyObject *self)
{
	PyObject *names = PyObject_GetAttr((PyObject *)Py_TYPE(self), name_fields), *tuple;

	if (!names)
		return NULL;
	tuple = PySequence_Tuple(names);
	Py_DECREF(names);
	return tuple;
}

static PyObject *event_as_dict(PyObject *self, PyObject *Py_UNUSED(ignored));

/* Steals the reference. Nested events become dicts, also those in tuples. */
static PyObject *plain_value(PyObject *value)
{
	PyObject *plain;
	Py_ssize_t i, count;

	if (value && PyObject_TypeCheck(value, event_type)) {
		plain = event_as_dict(value, NULL);
	} else if (value && PyTuple_Check(value)) {
		count = PyTuple_Size(value);
		plain = PyTuple_New(count);
		for (i = 0; plain && i < count; i++) {
			PyObject *item = PyTuple_GetItem(value, i);

			Py_INCREF(item);
			item = plain_value(item);
			if (!item || PyTuple_SetItem(plain, i, item) < 0)
				Py_CLEAR(plain);
		}
	} else {
		return value;
	}
	Py_DECREF(value);
	return plain;
}

static PyObject *event_as_dict(PyObject *self, PyObject *Py_UNUSED(ignored))
{
	PyObject *names = field_names(self), *dict = names ? PyDict_New() : NULL;
	Py_ssize_t i, count = names ? PyTuple_Size(names) : 0;

	for (i = 0; dict && i < count; i++) {
		PyObject *name = PyTuple_GetItem(names, i);
		PyObject *value = plain_value(PyObject_GetAttr(self, name));

		if (!value || PyDict_SetItem(dict, name, value) < 0)
			Py_CLEAR(dict);
		Py_XDECREF(value);
	}
	Py_XDECREF(names);
	return dict;
}

static PyObject *event_repr(PyObject *self)
{
	PyObject *names = field_names(self), *parts = names ? PyList_New(0) : NULL;
	PyObject *joined = NULL, *name = NULL, *text = NULL;
	Py_ssize_t i, count = names ? PyTuple_Size(names) : 0;

	for (i = 0; parts && i < count; i++) {
		PyObject *field = PyTuple_GetItem(names, i);
		PyObject *value = PyObject_GetAttr(self, field), *part = NULL;

		if (value)
			part = PyUnicode_FromFormat("%S=%R", field, value);
		if (!part || PyList_Append(parts, part) < 0)
			Py_CLEAR(parts);
		Py_XDECREF(part);
		Py_XDECREF(value);
	}
	if (parts)
		joined = PyUnicode_Join(text_comma, parts);
	if (joined)
		name = type_name(Py_TYPE(self));
	if (name)
		text = PyUnicode_FromFormat("%S(%S)", name, joined);
	Py_XDECREF(name);
	Py_XDECREF(joined);
	Py_XDECREF(parts);
	Py_XDECREF(names);
	return text;
}

static PyObject *event_compare(PyObject *self, PyObject *other, int op)
{
	bool equal;

	if (Py_TYPE(self) != Py_TYPE(other) || (op != Py_EQ && op != Py_NE))
		Py_RETURN_NOTIMPLEMENTED;
	equal = Py_SIZE(self) == Py_SIZE(other) &&
		!memcmp(((Event *)self)->data, ((Event *)other)->data, (size_t)Py_SIZE(self));
	return PyBool_FromLong(equal == (op == Py_EQ));
}

static Py_hash_t event_hash(PyObject *self)
{
	PyObject *bytes = event_bytes(self, NULL);
	Py_hash_t hash = bytes ? PyObject_Hash(bytes) : -1;

	Py_XDECREF(bytes);
	return hash;
}

/* Also for __class__: another class's fields would not fit these bytes. */
static int event_setattro(PyObject *self, PyObject *Py_UNUSED(name), PyObject *Py_UNUSED(value))
{
	PyObject *name = type_name(Py_TYPE(self));

	if (name)
		PyErr_Format(PyExc_AttributeError, "change %S: events are immutable", name);
	Py_XDECREF(name);
	return -1;
}

static PyObject *event_copy(PyObject *self, PyObject *Py_UNUSED(memo))
{
	Py_INCREF(self);
	return self;
}

/* Classes made from BTF are in no module: what made them, _reduce_, can make them again. */
static PyObject *event_reduce(PyObject *self, PyObject *Py_UNUSED(ignored))
{
	PyObject *type = (PyObject *)Py_TYPE(self), *maker, *function = NULL, *tail = NULL;
	PyObject *before = NULL, *arguments = NULL, *result = NULL;

	maker = PyObject_GetAttr(type, name_reduce);
	if (maker && PyTuple_Check(maker) && PyTuple_Size(maker)) {
		function = PyTuple_GetItem(maker, 0);
		Py_INCREF(function);
		before = PyTuple_GetSlice(maker, 1, PyTuple_Size(maker));
	} else if (maker || PyErr_ExceptionMatches(PyExc_AttributeError)) {
		PyErr_Clear();
		function = PyObject_GetAttrString(type, "from_bytes");
		before = PyTuple_New(0);
	}
	if (function && before)
		tail = Py_BuildValue("NI", event_bytes(self, NULL), ((Event *)self)->origin);
	if (tail)
		arguments = PySequence_Concat(before, tail);
	if (arguments)
		result = PyTuple_Pack(2, function, arguments);
	Py_XDECREF(arguments);
	Py_XDECREF(tail);
	Py_XDECREF(before);
	Py_XDECREF(function);
	Py_XDECREF(maker);
	return result;
}

static void event_dealloc(PyObject *self)
{
	PyTypeObject *type = Py_TYPE(self);

	if (PyType_GetFlags(type) & Py_TPFLAGS_HAVE_GC)
		PyObject_GC_Del(self);
	else
		PyObject_Free(self);
	Py_DECREF(type);
}

static PyMethodDef event_methods[] = {
	{ "from_bytes", FASTCALL(event_from_bytes), METH_VARARGS | METH_KEYWORDS | METH_CLASS,
	  "Make an event of a record's bytes; OptionError when their number is wrong." },
	{ "as_dict", event_as_dict, METH_NOARGS,
	  "Return the fields by name; nested events become dicts too." },
	{ "__bytes__", event_bytes, METH_NOARGS, "Return the record's bytes." },
	{ "__copy__", event_copy, METH_NOARGS, NULL },
	{ "__deepcopy__", event_copy, METH_O, NULL },
	{ "__reduce__", event_reduce, METH_NOARGS, NULL },
	{ NULL, NULL, 0, NULL },
};

static PyMemberDef event_members[] = {
	{ "origin", T_UINT, offsetof(Event, origin), READONLY,
	  "The CPU for records of a perf buffer, else 0." },
	{ NULL, 0, 0, 0, NULL },
};

static PyType_Slot event_slots[] = {
	{ Py_tp_doc, "Be one record of a ring. Immutable, hashable, thread-safe; pickles." },
	{ Py_tp_new, event_new },
	{ Py_tp_dealloc, event_dealloc },
	{ Py_tp_methods, event_methods },
	{ Py_tp_members, event_members },
	{ Py_tp_setattro, event_setattro },
	{ Py_tp_richcompare, event_compare },
	{ Py_tp_hash, event_hash },
	{ Py_tp_repr, event_repr },
	{ 0, NULL },
};

static PyType_Spec event_spec = { "kerneltrace_core._native._events.KernelEvent", sizeof(Event), 1,
				  SHARED_FLAGS | Py_TPFLAGS_BASETYPE, event_slots };

#endif
