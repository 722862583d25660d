/* SPDX-License-Identifier: MIT */
/* Records of one size, copied one after the other: what columns are views of. */
#ifndef KT_EVENTS_PACK_H
#define KT_EVENTS_PACK_H

#include "selector.h"

/* Without the call that memcpy() of an unknown size is. Reads and writes no byte beyond. */
static inline char *copy_record(char *to, const char *from, size_t size)
{
	for (; size >= 32; size -= 32, to += 32, from += 32)
		memcpy(to, from, 32);
	for (; size >= 8; size -= 8, to += 8, from += 8)
		memcpy(to, from, 8);
	for (; size; size--)
		*to++ = *from++;
	return to;
}

/* How many; -1: the frames are malformed. There is room for as many as they can hold. */
static Py_ssize_t pack_records(const struct rule *rule, const char *begin, const char *end,
			       Py_ssize_t skip, Py_ssize_t take, char *to)
{
	Py_ssize_t packed = 0;
	const char *at = begin;
	struct record record;
	int found;

	while (packed < take && (found = next_record(&at, end, begin, &record))) {
		if (found < 0)
			return -1;
		if (judge(rule, &record) != MATCH)
			continue;
		if (skip) {
			skip--;
			continue;
		}
		to = copy_record(to, record.payload, rule->size);
		packed++;
	}
	return packed;
}

static PyObject *module_pack(PyObject *Py_UNUSED(module), PyObject *args)
{
	PyObject *frames, *selector, *packed;
	Py_ssize_t skip, take, most, found;
	const char *begin, *end;
	const struct rule *rule;

	if (!PyArg_ParseTuple(args, "OO!nn:pack", &frames, selector_type, &selector, &skip, &take))
		return NULL;
	rule = &((Selector *)selector)->rule;
	if (!rule->exact)
		return PyErr_Format(option_error, "pack records: their lengths differ "
						  "(the selector is not exact)");
	if (skip < 0 || take < 0)
		return PyErr_Format(option_error, "pack records: cannot skip %zd and take %zd",
				    skip, take);
	if (!frames_of(frames, &begin, &end))
		return NULL;
	/* What the frames can hold, so that a wish for more costs no memory. */
	most = (end - begin) / (Py_ssize_t)(HEADER + (((uint64_t)rule->length + 7) & ~7ull));
	most = take < most ? take : most;
	packed = PyByteArray_FromStringAndSize(NULL, most * (Py_ssize_t)rule->size);
	if (!packed)
		return NULL;
	found = pack_records(rule, begin, end, skip, take, PyByteArray_AsString(packed));
	if (found < 0 ||
	    (found < most && PyByteArray_Resize(packed, found * (Py_ssize_t)rule->size) < 0))
		Py_CLEAR(packed);
	return packed;
}

#endif
