/* SPDX-License-Identifier: MIT */
/*
 * Typed events out of the frames that a ring hands up.
 *
 * A Reader walks over frames and makes an event of each record that its
 * Selector matches: one allocation and one copy of the record's bytes. A Field
 * reads one number out of them when it is asked for. Nothing is decoded that
 * nobody looks at, and an event kept keeps no frames.
 *
 * events/pyevents.py and the modules it is made of are the same in Python, kept
 * as fallback and as oracle: a change here is a change there.
 *
 * The GIL protects all state. What calls into Python (refill, arefill, convert,
 * the release of a reference) may let other threads run, so nothing is left
 * half updated across such a call.
 *
 * All of it is one translation unit, in headers of static functions, from the
 * bottom up: the loop over records must be inlined.
 */
#include "events/types.h"
#include "events/records.h"
#include "events/selector.h"
#include "events/pack.h"
#include "events/event.h"
#include "events/value.h"
#include "events/field.h"
#include "events/reader.h"
#include "events/next.h"

static PyMethodDef module_methods[] = {
	{ "pack", module_pack, METH_VARARGS,
	  "Copy matching records one after the other: pack(frames, selector, skip, take)." },
	{ NULL, NULL, 0, NULL },
};

static struct PyModuleDef module_def = {
	.m_base = PyModuleDef_HEAD_INIT,
	.m_name = "_events",
	.m_doc = "Typed events out of the frames that a ring hands up.",
	.m_size = -1, /* state is per process: an interpreter of its own gets the Python twin */
	.m_methods = module_methods,
};

static PyTypeObject *add_type(PyObject *module, const char *name, PyType_Spec *spec)
{
	PyObject *type = PyType_FromSpec(spec);

	if (type && PyModule_AddObjectRef(module, name, type) < 0)
		Py_CLEAR(type);
	return (PyTypeObject *)type;
}

static bool intern_names(void)
{
	return (name_size = PyUnicode_InternFromString("_size_")) &&
	       (name_exact = PyUnicode_InternFromString("_exact_")) &&
	       (name_fields = PyUnicode_InternFromString("_fields_")) &&
	       (name_reduce = PyUnicode_InternFromString("_reduce_")) &&
	       (name_dictoffset = PyUnicode_InternFromString("__dictoffset__")) &&
	       (name_name = PyUnicode_InternFromString("__name__")) &&
	       (name_value = PyUnicode_InternFromString("value")) &&
	       (name_throw = PyUnicode_InternFromString("throw")) &&
	       (name_close = PyUnicode_InternFromString("close")) &&
	       (text_comma = PyUnicode_InternFromString(", "));
}

static bool add_types(PyObject *module)
{
	return (selector_type = add_type(module, "Selector", &selector_spec)) &&
	       (event_type = add_type(module, "KernelEvent", &event_spec)) &&
	       (field_type = add_type(module, "Field", &field_spec)) &&
	       (reader_type = add_type(module, "Reader", &reader_spec)) &&
	       (next_type = (PyTypeObject *)PyType_FromSpec(&next_spec));
}

PyMODINIT_FUNC PyInit__events(void)
{
	PyObject *module = PyModule_Create(&module_def);
	PyObject *errors = PyImport_ImportModule("kerneltrace_core.errors");

	if (errors)
		option_error = PyObject_GetAttrString(errors, "OptionError");
	Py_XDECREF(errors);
	if (module && (!option_error || !intern_names() || !add_types(module)))
		Py_CLEAR(module);
	return module;
}
