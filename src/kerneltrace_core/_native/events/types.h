/* SPDX-License-Identifier: MIT */
/*
 * The words and structs of the event engine, and its types.
 *
 *   frames    what a ring hands up: records, one after the other, in a bytes object
 *   record    u32 length, u32 origin, the payload, zeroes up to a multiple of 8
 *   origin    the CPU for records of a perf buffer, else 0
 *   selector  which records are of one type
 *   event     a copy of one record's payload, read through its class's fields
 *   batch     frames, and which of the matching records in there are to be delivered
 */
#ifndef KT_EVENTS_TYPES_H
#define KT_EVENTS_TYPES_H

#ifndef Py_LIMITED_API
#define Py_LIMITED_API 0x030a0000
#endif
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { HEADER = 8 };                     /* of a record */
enum { MATCH, OTHER_TAG, WRONG_LENGTH }; /* what a record can be to a selector */
enum { REST = -1, DIMENSIONS = 8 };      /* of a field; REST: the record decides */
enum { MOST_BYTES = 1 << 30 };           /* of a field and its place */

#define SHARED_FLAGS (Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE)
#define FASTCALL(function) ((PyCFunction)(void (*)(void))(function))

/* A selector's rule, beside the record's bytes in the loop. */
struct rule {
	uint32_t size, length; /* bytes kept, bytes there */
	bool exact;
	int64_t tag_offset; /* negative: no tag */
	uint32_t tag_size, tag_end;
	Py_ssize_t count;
	uint64_t first, *tags; /* all of them; first of them again, for the usual case */
};

typedef struct {
	PyObject head;
	struct rule rule;
} Selector;

typedef struct {
	PyVarObject head; /* as many items as bytes */
	uint32_t origin, spare;
	char data[];
} Event;
_Static_assert(offsetof(Event, data) == sizeof(Event), "items begin where the base type ends");

typedef struct {
	PyObject head;
	Py_ssize_t offset, size;
	Py_ssize_t end; /* of what must be there: bounds are checked once */
	unsigned int bit_offset, bit_size;
	char kind;
	bool plain; /* a number and nothing else */
	bool open;  /* of a nested event's class: they have a __dict__ */
	int dimensions;
	Py_ssize_t counts[DIMENSIONS];
	Py_ssize_t strides[DIMENSIONS];
	PyObject *convert; /* NULL: nothing */
} Field;

struct batch {
	PyObject *frames; /* NULL: none */
	const char *begin, *at, *end;
	Py_ssize_t skip, take;
};

typedef struct {
	PyObject head;
	PyTypeObject *type;
	bool open; /* of `type`: its events have a __dict__ */
	Selector *selector;
	PyObject *refill, *arefill;
	Py_ssize_t keep; /* bytes of each record; REST: all */
	struct batch now;
	PyObject *later; /* list of batches that came while one was in hand, or NULL */
	PyObject *ready; /* the awaitable that is used again and again, or NULL */
	unsigned long long delivered;
} Reader;

typedef struct {
	PyObject head;
	Reader *reader;  /* NULL: awaited already */
	PyObject *inner; /* what arefill() returned, while it is awaited */
	bool ended;      /* arefill() has no more for it */
} Next;

static PyTypeObject *selector_type, *event_type, *field_type, *reader_type, *next_type;
static PyObject *option_error; /* kerneltrace_core.errors.OptionError */
static PyObject *name_size, *name_exact, *name_fields, *name_reduce, *name_throw, *name_close;
static PyObject *name_dictoffset, *name_value, *name_name, *text_comma;

#endif
