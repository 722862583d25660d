/* SPDX-License-Identifier: MIT */
/* From bytes to values: numbers, bits, text, nested events, tuples of them. */
#ifndef KT_EVENTS_VALUE_H
#define KT_EVENTS_VALUE_H

#include "event.h"
#include "records.h"

static inline uint64_t from_network(uint64_t value, Py_ssize_t size)
{
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
	return __builtin_bswap64(value) >> (64 - 8 * size);
#else
	return size ? value : 0;
#endif
}

static inline int64_t with_sign(uint64_t value, unsigned int bits)
{
	return (int64_t)(value << (64 - bits)) >> (64 - bits);
}

static PyObject *float_value(const char *at, Py_ssize_t size)
{
	float narrow;
	double wide;

	if (size == 4) {
		memcpy(&narrow, at, 4);
		return PyFloat_FromDouble((double)narrow);
	}
	memcpy(&wide, at, 8);
	return PyFloat_FromDouble(wide);
}

static inline PyObject *number_value(char kind, const char *at, Py_ssize_t size)
{
	uint64_t value;

	if (kind == 'f')
		return float_value(at, size);
	value = read_unsigned(at, (uint32_t)size);
	if (kind == 'U' || kind == 'S')
		value = from_network(value, size);
	if (kind == 's' || kind == 'S')
		return PyLong_FromLongLong(with_sign(value, 8 * (unsigned int)size));
	if (kind == '?')
		return PyBool_FromLong(value != 0);
	return PyLong_FromUnsignedLongLong(value);
}

/* The bits of at most 9 bytes, read as one number of the machine's byte order. */
static PyObject *bits_value(const Field *field, const char *at)
{
	unsigned int bytes = (field->bit_offset + field->bit_size + 7) / 8, i;
	unsigned int shift = field->bit_offset % 8, first = field->bit_offset / 8;
	uint64_t value = 0;

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
	for (i = 0; first + i < bytes && i < 8; i++)
		value |= (uint64_t)(uint8_t)at[first + i] << (8 * i);
	value >>= shift;
	if (shift && first + 8 < bytes)
		value |= (uint64_t)(uint8_t)at[first + 8] << (64 - shift);
#else
	unsigned int right = 8 * bytes - field->bit_offset - field->bit_size;

	(void)shift;
	for (i = first; i + 1 < bytes; i++)
		value = value << 8 | (uint8_t)at[i];
	value = value << (8 - right) | (uint8_t)at[bytes - 1] >> right;
#endif
	if (field->bit_size < 64)
		value &= (1ull << field->bit_size) - 1;
	if (field->kind == 's')
		return PyLong_FromLongLong(with_sign(value, field->bit_size));
	if (field->kind == '?')
		return PyBool_FromLong(value != 0);
	return PyLong_FromUnsignedLongLong(value);
}

/* Steals the reference to `raw`. */
static PyObject *converted(const Field *field, PyObject *raw)
{
	PyObject *value;

	if (!raw || !field->convert)
		return raw;
	if (PyDict_Check(field->convert)) {
		value = PyDict_GetItemWithError(field->convert, raw);
		if (!value)
			return PyErr_Occurred() ? (Py_DECREF(raw), NULL) : raw;
		Py_INCREF(value);
	} else {
		value = PyObject_CallFunctionObjArgs(field->convert, raw, NULL);
	}
	Py_DECREF(raw);
	return value;
}

static PyObject *element_value(const Field *field, const Event *event, const char *at,
			       Py_ssize_t size)
{
	const char *zero;

	switch (field->kind) {
	case 'n':
		return new_event((PyTypeObject *)field->convert, field->open, at, size,
				 event->origin);
	case 'c':
		zero = size ? memchr(at, 0, (size_t)size) : NULL;
		return converted(field, PyUnicode_DecodeUTF8(at, zero ? zero - at : size,
							     "backslashreplace"));
	case 'b':
		return converted(field, PyBytes_FromStringAndSize(at, size));
	default:
		return converted(field, number_value(field->kind, at, size));
	}
}

static PyObject *array_value(const Field *field, const Event *event, const char *at, int dimension,
			     Py_ssize_t count)
{
	PyObject *values = PyTuple_New(count), *value;
	bool last = dimension + 1 == field->dimensions;
	Py_ssize_t i;

	for (i = 0; values && i < count; i++, at += field->strides[dimension]) {
		value = last ? element_value(field, event, at, field->size)
			     : array_value(field, event, at, dimension + 1,
					   field->counts[dimension + 1]);
		if (!value || PyTuple_SetItem(values, i, value) < 0)
			Py_CLEAR(values);
	}
	return values;
}

/* Of a field that is in the event as far as its end. */
static PyObject *field_value(const Field *field, const Event *event)
{
	const char *at = event->data + field->offset;
	Py_ssize_t left = Py_SIZE(event) - field->offset, count;

	if (field->plain)
		return number_value(field->kind, at, field->size);
	if (field->bit_size)
		return converted(field, bits_value(field, at));
	if (!field->dimensions)
		return element_value(field, event, at, field->size == REST ? left : field->size);
	count = field->counts[0];
	if (count == REST)
		count = left > 0 && field->strides[0] ? left / field->strides[0] : 0;
	return array_value(field, event, at, 0, count);
}

#endif
