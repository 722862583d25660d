/* SPDX-License-Identifier: MIT */
/* The type Selector. */
#ifndef KT_EVENTS_SELECTOR_H
#define KT_EVENTS_SELECTOR_H

#include "records.h"

static bool take_tags(struct rule *rule, PyObject *tags)
{
	Py_ssize_t i;

	rule->count = PyTuple_Size(tags);
	rule->tags = PyMem_Calloc((size_t)rule->count + 1, sizeof(uint64_t));
	if (!rule->tags) {
		PyErr_NoMemory();
		return false;
	}
	for (i = 0; i < rule->count; i++) {
		PyObject *tag = PyTuple_GetItem(tags, i);
		uint64_t value = PyLong_AsUnsignedLongLong(tag);
		bool failed = PyErr_Occurred() != NULL;

		if (failed && !PyErr_ExceptionMatches(PyExc_OverflowError))
			return false;
		PyErr_Clear();
		if (failed || (rule->tag_size < 8 && value >> (8 * rule->tag_size))) {
			PyErr_Format(option_error,
				     "select records: tag %S does not fit in %u bytes", tag,
				     rule->tag_size);
			return false;
		}
		rule->tags[i] = value;
	}
	rule->first = rule->tags[0];
	return true;
}

static PyObject *selector_new(PyTypeObject *type, PyObject *args, PyObject *kw)
{
	static char *names[] = {
		"size", "exact", "tag_offset", "tag_size", "tags", "padding", NULL
	};
	long long size, tag_offset = -1, tag_size = 0, padding = 0;
	PyObject *given = NULL, *tags = NULL;
	Selector *self = NULL;
	struct rule *rule;
	int exact;

	if (!PyArg_ParseTupleAndKeywords(args, kw, "Lp|LLOL", names, &size, &exact, &tag_offset,
					 &tag_size, &given, &padding))
		return NULL;
	if (size < 0 || size > UINT32_MAX || padding < 0 || padding > UINT32_MAX - size)
		return PyErr_Format(option_error,
				    "select records: no record is of %lld and %lld bytes", size,
				    padding);
	tags = given && tag_offset >= 0 ? PySequence_Tuple(given) : PyTuple_New(0);
	if (!tags)
		return NULL;
	if (tag_offset >= 0 &&
	    ((tag_size != 1 && tag_size != 2 && tag_size != 4 && tag_size != 8) ||
	     tag_offset > size - tag_size)) {
		PyErr_Format(option_error,
			     "select records: no tag of %lld bytes at %lld in %lld bytes", tag_size,
			     tag_offset, size);
		goto out;
	}
	self = PyObject_New(Selector, type);
	if (!self)
		goto out;
	rule = &self->rule;
	memset(rule, 0, sizeof(*rule));
	rule->size = (uint32_t)size;
	rule->length = (uint32_t)(size + padding);
	rule->exact = exact;
	rule->tag_offset = tag_offset < 0 ? -1 : tag_offset;
	rule->tag_size = tag_offset < 0 ? 0 : (uint32_t)tag_size;
	rule->tag_end = tag_offset < 0 ? 0 : (uint32_t)(tag_offset + tag_size);
	if (!take_tags(rule, tags)) {
		Py_DECREF(self);
		self = NULL;
	}
out:
	Py_DECREF(tags);
	return (PyObject *)self;
}

static void selector_dealloc(PyObject *self)
{
	PyTypeObject *type = Py_TYPE(self);

	PyMem_Free(((Selector *)self)->rule.tags);
	PyObject_Free(self);
	Py_DECREF(type);
}

static PyObject *selector_tags(PyObject *self, void *Py_UNUSED(closure))
{
	const struct rule *rule = &((Selector *)self)->rule;
	PyObject *tags = PyTuple_New(rule->count);
	Py_ssize_t i;

	for (i = 0; tags && i < rule->count; i++) {
		PyObject *tag = PyLong_FromUnsignedLongLong(rule->tags[i]);

		if (!tag || PyTuple_SetItem(tags, i, tag) < 0)
			Py_CLEAR(tags);
	}
	return tags;
}

static PyObject *selector_padding(PyObject *self, void *Py_UNUSED(closure))
{
	const struct rule *rule = &((Selector *)self)->rule;

	return PyLong_FromUnsignedLong(rule->length - rule->size);
}

/* The arguments that make it again; equal selectors have equal ones. */
static PyObject *selector_values(PyObject *self)
{
	const struct rule *rule = &((Selector *)self)->rule;
	PyObject *tags = selector_tags(self, NULL);

	if (!tags)
		return NULL;
	return Py_BuildValue("IOLINI", rule->size, rule->exact ? Py_True : Py_False,
			     (long long)rule->tag_offset, rule->tag_size, tags,
			     rule->length - rule->size);
}

static PyObject *selector_count(PyObject *self, PyObject *frames)
{
	const char *begin, *at, *end;
	Py_ssize_t counts[3] = { 0, 0, 0 };
	struct record record;
	int found;

	if (!frames_of(frames, &begin, &end))
		return NULL;
	for (at = begin; (found = next_record(&at, end, begin, &record)) > 0;)
		counts[judge(&((Selector *)self)->rule, &record)]++;
	if (found < 0)
		return NULL;
	return Py_BuildValue("nnn", counts[MATCH], counts[OTHER_TAG], counts[WRONG_LENGTH]);
}

static PyObject *selector_compare(PyObject *self, PyObject *other, int op)
{
	PyObject *own, *others, *result = NULL;

	if (Py_TYPE(other) != selector_type || (op != Py_EQ && op != Py_NE))
		Py_RETURN_NOTIMPLEMENTED;
	own = selector_values(self);
	others = selector_values(other);
	if (own && others)
		result = PyObject_RichCompare(own, others, op);
	Py_XDECREF(own);
	Py_XDECREF(others);
	return result;
}

static Py_hash_t selector_hash(PyObject *self)
{
	PyObject *values = selector_values(self);
	Py_hash_t hash = values ? PyObject_Hash(values) : -1;

	Py_XDECREF(values);
	return hash;
}

static PyObject *selector_repr(PyObject *self)
{
	const struct rule *rule = &((Selector *)self)->rule;
	PyObject *tags = selector_tags(self, NULL), *text;

	if (!tags)
		return NULL;
	text = PyUnicode_FromFormat("Selector(size=%u, exact=%s, tag_offset=%d, tag_size=%u, "
				    "tags=%R, padding=%u)",
				    rule->size, rule->exact ? "True" : "False",
				    (int)rule->tag_offset, rule->tag_size, tags,
				    rule->length - rule->size);
	Py_DECREF(tags);
	return text;
}

static PyObject *selector_reduce(PyObject *self, PyObject *Py_UNUSED(ignored))
{
	PyObject *values = selector_values(self);

	return values ? Py_BuildValue("ON", selector_type, values) : NULL;
}

static PyMethodDef selector_methods[] = {
	{ "count", selector_count, METH_O,
	  "Count the records: of this type, of another tag, of this tag but a wrong length." },
	{ "__reduce__", selector_reduce, METH_NOARGS, NULL },
	{ NULL, NULL, 0, NULL },
};

#define OF_RULE(member) (offsetof(Selector, rule) + offsetof(struct rule, member))
static PyMemberDef selector_members[] = {
	{ "size", T_UINT, OF_RULE(size), READONLY, "Bytes of a record that are kept." },
	{ "exact", T_BOOL, OF_RULE(exact), READONLY, "Whether a longer record is another one." },
	{ "tag_offset", T_LONGLONG, OF_RULE(tag_offset), READONLY, "Negative: no tag." },
	{ "tag_size", T_UINT, OF_RULE(tag_size), READONLY, "Bytes of the tag." },
	{ NULL, 0, 0, 0, NULL },
};

static PyGetSetDef selector_getset[] = {
	{ "tags", selector_tags, NULL, "The tags of this type.", NULL },
	{ "padding", selector_padding, NULL, "Bytes after each record.", NULL },
	{ NULL, NULL, NULL, NULL, NULL },
};

static PyType_Slot selector_slots[] = {
	{ Py_tp_doc, "Say which records are of one type. Immutable; thread-safe." },
	{ Py_tp_new, selector_new },
	{ Py_tp_dealloc, selector_dealloc },
	{ Py_tp_methods, selector_methods },
	{ Py_tp_members, selector_members },
	{ Py_tp_getset, selector_getset },
	{ Py_tp_richcompare, selector_compare },
	{ Py_tp_hash, selector_hash },
	{ Py_tp_repr, selector_repr },
	{ 0, NULL },
};

static PyType_Spec selector_spec = { "kerneltrace_core._native._events.Selector", sizeof(Selector),
				     0, SHARED_FLAGS, selector_slots };

#endif
