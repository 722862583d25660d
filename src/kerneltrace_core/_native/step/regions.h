/* SPDX-License-Identifier: MIT */
/* The type Region: the memory shared with the BPF programs, its entries and slots. */
#ifndef KT_STEP_REGIONS_H
#define KT_STEP_REGIONS_H

#include "records.h"
#include "slots.h"
#include "threads.h"

static PyObject *region_open(PyObject *self, PyObject *Py_UNUSED(ignored))
{
	return new_record((Region *)self);
}

static PyObject *region_bind(PyObject *self, PyObject *arg)
{
	Region *region = (Region *)self;
	Py_ssize_t index = PyNumber_AsSsize_t(arg, PyExc_OverflowError);
	struct thread *t;

	if (index == -1 && PyErr_Occurred())
		return NULL;
	if (index < -1 || index >= region->threads)
		return PyErr_Format(PyExc_ValueError, "bind thread: no entry %zd (-1 to %zd)",
				    index, region->threads - 1);
	t = this_thread();
	if (!t)
		return NULL;
	bind_thread(t, region, index < 0 ? NULL : (uint64_t *)region->base + index * THREAD_WORDS);
	Py_RETURN_NONE;
}

static PyObject *region_unbind(PyObject *self, PyObject *Py_UNUSED(ignored))
{
	if (here && here->region == (Region *)self)
		bind_thread(here, NULL, NULL);
	Py_RETURN_NONE;
}

static PyObject *region_bound(PyObject *self, PyObject *Py_UNUSED(ignored))
{
	return PyBool_FromLong(here && here->region == (Region *)self);
}

static PyObject *region_late(PyObject *self, PyObject *Py_UNUSED(ignored))
{
	Region *region = (Region *)self;
	PyObject *sums = PyBytes_FromStringAndSize((char *)region->late, region->slot_bytes);
	uint32_t slot;

	for (slot = SLOT_FIRST; sums && region->memory && slot < region->next_fresh; slot++)
		add_residual(region, slot, (uint64_t *)PyBytes_AsString(sums));
	return sums;
}

static PyObject *region_forget(PyObject *self, PyObject *Py_UNUSED(ignored))
{
	Py_CLEAR(((Region *)self)->memory);
	Py_RETURN_NONE;
}

/* Py_buffer is not in the limited API of 3.10: ask the memoryview's attributes. */
static bool check_memory(Region *region)
{
	PyObject *nbytes = PyObject_GetAttrString(region->memory, "nbytes");
	PyObject *readonly = PyObject_GetAttrString(region->memory, "readonly");
	Py_ssize_t size = nbytes ? PyLong_AsSsize_t(nbytes) : -1;
	bool writable = readonly == Py_False;

	Py_XDECREF(nbytes);
	Py_XDECREF(readonly);
	if (PyErr_Occurred())
		return false;
	if (!writable)
		PyErr_SetString(PyExc_ValueError, "open region: the memory is read-only");
	else if (region->threads < 1 || region->slots < SLOT_FIRST || region->slots > (1 << 24) ||
		 region->slot_bytes < SLOT_WORDS_MIN * 8 || region->slot_bytes > (1 << 24) ||
		 region->slot_bytes % 8 || region->slots_offset % 8 ||
		 (uintptr_t)region->base % 8 || !region->base ||
		 region->threads > region->slots_offset / (THREAD_WORDS * 8) ||
		 region->slots_offset > size ||
		 region->slots * region->slot_bytes > size - region->slots_offset)
		PyErr_Format(PyExc_ValueError,
			     "open region: %zd threads and %zd slots of %zd bytes at %zd "
			     "do not fit %zd bytes",
			     region->threads, region->slots, region->slot_bytes,
			     region->slots_offset, size);
	return !PyErr_Occurred();
}

static PyObject *region_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
	static char *names[] = { "memory",       "address",    "threads",  "slots",
				 "slots_offset", "slot_bytes", "register", NULL };
	Py_ssize_t threads, slots, slots_offset, slot_bytes;
	PyObject *memory, *register_thread;
	unsigned long long address;
	Region *region;

	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OKnnnnO", names, &memory, &address,
					 &threads, &slots, &slots_offset, &slot_bytes,
					 &register_thread))
		return NULL;
	region = PyObject_GC_New(Region, type);
	if (!region)
		return NULL;
	memset(&region->memory, 0, sizeof(*region) - offsetof(Region, memory));
	region->base = (char *)(uintptr_t)address;
	region->threads = threads;
	region->slots = slots;
	region->slots_offset = slots_offset;
	region->slot_bytes = slot_bytes;
	region->doubt_ns = 1000000;
	region->next_fresh = SLOT_FIRST;
	Py_INCREF(register_thread);
	region->register_thread = register_thread;
	region->memory = PyMemoryView_FromObject(memory);
	if (!region->memory || !check_memory(region))
		goto refused;
	region->rest = PyMem_Calloc((size_t)slots, sizeof(*region->rest));
	region->copies = PyMem_Calloc((size_t)slots, sizeof(*region->copies));
	region->sent = PyMem_Calloc((size_t)slots, sizeof(*region->sent));
	region->late = PyMem_Calloc(1, (size_t)slot_bytes);
	if (!region->rest || !region->copies || !region->sent || !region->late) {
		PyErr_NoMemory();
		goto refused;
	}
	PyObject_GC_Track(region);
	return (PyObject *)region;
refused:
	Py_DECREF(region);
	return NULL;
}

/* Not the memory: the collector would release the view before the records that
 * are garbage too have stored their last into it. Nothing leads back from it. */
static int region_traverse(PyObject *self, visitproc visit, void *arg)
{
	Region *region = (Region *)self;

	Py_VISIT(Py_TYPE(self));
	Py_VISIT(region->register_thread);
	Py_VISIT(region->sampler);
	Py_VISIT(region->ready_at);
	return 0;
}

static int region_clear(PyObject *self)
{
	Region *region = (Region *)self;

	Py_CLEAR(region->register_thread);
	Py_CLEAR(region->sampler);
	Py_CLEAR(region->ready_at);
	return 0;
}

static void region_dealloc(PyObject *self)
{
	PyTypeObject *type = Py_TYPE(self);
	Region *region = (Region *)self;
	Py_ssize_t slot;

	PyObject_GC_UnTrack(self);
	region_clear(self);
	for (slot = 0; region->copies && slot < region->slots; slot++)
		Py_XDECREF(region->copies[slot]);
	PyMem_Free(region->copies);
	PyMem_Free(region->sent);
	PyMem_Free(region->rest);
	PyMem_Free(region->late);
	Py_XDECREF(region->memory);
	PyObject_GC_Del(self);
	Py_DECREF(type);
}

static PyMethodDef region_methods[] = {
	{ "open", region_open, METH_NOARGS, "Take a slot and return its Record." },
	{ "bind", region_bind, METH_O, "Give this thread entry `index`; -1: a private one." },
	{ "unbind", region_unbind, METH_NOARGS, "Clear this thread's cell and leave it." },
	{ "bound", region_bound, METH_NOARGS, "Tell whether this thread is bound here." },
	{ "late", region_late, METH_NOARGS, "Return what closed slots got after their copy." },
	{ "forget", region_forget, METH_NOARGS, "Never touch the memory again." },
	{ NULL, NULL, 0, NULL },
};

static PyMemberDef region_members[] = {
	{ "sampler", T_OBJECT, offsetof(Region, sampler), 0, "called at each border, or None" },
	{ "ready_at", T_OBJECT, offsetof(Region, ready_at), 0, "asked when in doubt, or None" },
	{ "doubt_ns", T_ULONGLONG, offsetof(Region, doubt_ns), 0, "doubt worth asking about" },
	{ "slots_open", T_UINT, offsetof(Region, slots_open), READONLY, "slots in use" },
	{ "slots_exhausted", T_ULONGLONG, offsetof(Region, slots_exhausted), READONLY,
	  "how often open() found no slot" },
	{ NULL, 0, 0, 0, NULL },
};

static PyType_Slot region_slots[] = {
	{ Py_tp_doc, "The memory shared with the BPF programs: thread entries and slots." },
	{ Py_tp_new, region_new },
	{ Py_tp_methods, region_methods },
	{ Py_tp_members, region_members },
	{ Py_tp_traverse, region_traverse },
	{ Py_tp_clear, region_clear },
	{ Py_tp_dealloc, region_dealloc },
	{ 0, NULL },
};

static PyType_Spec region_spec = { "kerneltrace_core._native._step.Region", sizeof(Region), 0,
				   SHARED_FLAGS, region_slots };

#endif
