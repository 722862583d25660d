/* SPDX-License-Identifier: MIT */
/* Walking over records, and judging them. */
#ifndef KT_EVENTS_RECORDS_H
#define KT_EVENTS_RECORDS_H

#include "types.h"

struct record {
	const char *payload;
	uint32_t length, origin;
};

/* 1, 0 at the end, or -1 and OptionError where the frames end within a record. */
static inline int next_record(const char **at, const char *end, const char *begin,
			      struct record *record)
{
	size_t left = (size_t)(end - *at);
	uint64_t padded;

	if (!left)
		return 0;
	if (left >= HEADER) {
		memcpy(&record->length, *at, 4);
		memcpy(&record->origin, *at + 4, 4);
	} else {
		record->length = 0;
	}
	padded = ((uint64_t)record->length + 7) & ~7ull;
	if (left < HEADER || left - HEADER < padded) {
		PyErr_Format(option_error,
			     "read frames: the record at byte %zd is of %u bytes, "
			     "and %zu are left with its header",
			     (Py_ssize_t)(*at - begin), record->length, left);
		return -1;
	}
	record->payload = *at + HEADER;
	*at = record->payload + padded;
	return 1;
}

static inline uint64_t read_unsigned(const char *at, uint32_t size)
{
	uint8_t u8;
	uint16_t u16;
	uint32_t u32;
	uint64_t u64;

	switch (size) {
	case 1:
		memcpy(&u8, at, 1);
		return u8;
	case 2:
		memcpy(&u16, at, 2);
		return u16;
	case 4:
		memcpy(&u32, at, 4);
		return u32;
	default:
		memcpy(&u64, at, 8);
		return u64;
	}
}

static bool one_of_the_others(const struct rule *rule, uint64_t tag)
{
	Py_ssize_t i;

	for (i = 1; i < rule->count; i++)
		if (rule->tags[i] == tag)
			return true;
	return false;
}

static inline int judge(const struct rule *rule, const struct record *record)
{
	uint64_t tag;

	if (rule->tag_offset >= 0) {
		if (record->length < rule->tag_end)
			return WRONG_LENGTH;
		tag = read_unsigned(record->payload + rule->tag_offset, rule->tag_size);
		if (!rule->count || (tag != rule->first && !one_of_the_others(rule, tag)))
			return OTHER_TAG;
	}
	if (rule->exact ? record->length == rule->length : record->length >= rule->size)
		return MATCH;
	return WRONG_LENGTH;
}

static bool frames_of(PyObject *arg, const char **begin, const char **end)
{
	Py_ssize_t size;
	char *bytes;

	if (!PyBytes_Check(arg)) {
		PyErr_Format(PyExc_TypeError, "read frames: %R is not bytes", Py_TYPE(arg));
		return false;
	}
	if (PyBytes_AsStringAndSize(arg, &bytes, &size) < 0)
		return false;
	*begin = bytes;
	*end = bytes + size;
	return true;
}

#endif
