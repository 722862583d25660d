/* SPDX-License-Identifier: MIT */
/* Blocks: a record's slot and ledger, copied as of one moment, the last one at its end. */
#ifndef KT_STEP_BLOCKS_H
#define KT_STEP_BLOCKS_H

#include "callbacks.h"
#include "clock.h"
#include "ledger.h"
#include "slots.h"

static PyObject *take_block(Record *r, bool final)
{
	Py_ssize_t size = r->region->slot_bytes;
	struct ledger ledger;
	PyObject *block;
	char *bytes;

	if (here)
		be_seen(here);
	/* What a border would have told the sampler; it may even close the record. */
	if (here && here->owner == r)
		sample(here, clock_ns());
	if (r->closed) {
		PyErr_SetString(PyExc_ValueError, "read record: it was closed before");
		return NULL;
	}
	block = PyBytes_FromStringAndSize(NULL, size + (Py_ssize_t)sizeof(ledger));
	if (!block)
		return NULL;
	bytes = PyBytes_AsString(block);
	if (r->value && r->region->memory) {
		/* Before the copy: what follows is late. */
		if (final)
			retire_generation(r->region, r->value);
		memcpy(bytes, slot_words(r->region, slot_of(r->value)), (size_t)size);
	} else {
		memset(bytes, 0, (size_t)size);
	}
	read_ledger(r, &ledger); /* after the copy: time contains the counters */
	if (final)
		ledger.detached = ledger.in_flight;
	memcpy(bytes + size, &ledger, sizeof(ledger));
	return block;
}

/* The final block; the slot is given back. */
static PyObject *close_record(Record *r)
{
	PyObject *block = take_block(r, true), *copy = NULL;
	uint64_t *words, sent = 0;

	if (!block)
		return NULL;
	if (r->value) {
		words = (uint64_t *)PyBytes_AsString(block);
		/* Only then can the kernel still be adding to the slot. */
		if (r->region->memory && (r->live || r->active || r->depth || r->ledger.threads ||
					  words[DISK_READS] || words[DISK_WRITES])) {
			Py_INCREF(block);
			copy = block;
		} else if (r->region->memory && words[NET_TX_BYTES]) {
			sent = words[TCP_RETRANSMITS] + 1; /* and then to this word alone */
		}
		give_slot(r->region, r->value, copy, sent);
	}
	r->closed = true;
	r->value = 0;
	return block;
}

/* A block of the time between two, word by word: the later one's where `kept` is not 0, or where it
 * is smaller, as no counter is. NULL with an exception set. */
static PyObject *subtract_blocks(PyObject *earlier, PyObject *later, PyObject *kept)
{
	Py_ssize_t words, length, i;
	char *before, *after, *keep;
	uint64_t *result, a, b;
	PyObject *block;

	if (PyBytes_AsStringAndSize(kept, &keep, &words) < 0 ||
	    PyBytes_AsStringAndSize(earlier, &before, &length) < 0)
		return NULL;
	if (length != words * 8 || PyBytes_AsStringAndSize(later, &after, &i) < 0 || i != length)
		return PyErr_Occurred() ? NULL
					: PyErr_Format(PyExc_ValueError,
						       "subtract blocks: they are not of one size");
	block = PyBytes_FromStringAndSize(NULL, length);
	if (!block)
		return NULL;
	result = (uint64_t *)PyBytes_AsString(block);
	for (i = 0; i < words; i++) {
		memcpy(&a, before + i * 8, sizeof(a));
		memcpy(&b, after + i * 8, sizeof(b));
		result[i] = keep[i] || b < a ? b : b - a;
	}
	return block;
}

#endif
