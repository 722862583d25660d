/* SPDX-License-Identifier: MIT */
/*
 * The smallest engine on PyContext_AddWatcher (CPython 3.14) that does what a step does: at each
 * switch of the context it looks up whose request runs, and if that has changed, takes the time and
 * publishes the cell. Not in the limited API: this is built for one version of CPython.
 */
#include <Python.h>
#include <time.h>

static PyObject *variable;
static int watcher = -1;
static unsigned long long current, since, held_ns, switches;
static volatile unsigned long long published;

static unsigned long long now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000ULL + now.tv_nsec;
}

static int on_event(PyContextEvent event, PyObject *context)
{
	unsigned long long cell = 0, now;
	PyObject *value = NULL;

	(void)context;
	if (event != Py_CONTEXT_SWITCHED)
		return 0;
	switches++;
	if (PyContextVar_Get(variable, NULL, &value) < 0)
		return -1;
	if (value) {
		if (value != Py_None)
			cell = PyLong_AsUnsignedLongLong(value);
		Py_DECREF(value);
	}
	if (cell == current)
		return 0;
	now = now_ns();
	if (current)
		held_ns += now - since;
	since = now;
	published = current = cell;
	return 0;
}

static PyObject *watch(PyObject *module, PyObject *wanted)
{
	(void)module;
	Py_INCREF(wanted);
	variable = wanted;
	held_ns = switches = 0;
	watcher = PyContext_AddWatcher(on_event);
	return watcher < 0 ? NULL : PyLong_FromLong(watcher);
}

static PyObject *unwatch(PyObject *module, PyObject *ignored)
{
	(void)module;
	(void)ignored;
	if (PyContext_ClearWatcher(watcher) < 0)
		return NULL;
	Py_CLEAR(variable);
	return Py_BuildValue("KK", switches, held_ns);
}

static PyMethodDef methods[] = {
	{ "watch", watch, METH_O, "Begin to watch a context variable." },
	{ "unwatch", unwatch, METH_NOARGS, "End; return the switches seen and the ns held." },
	{ NULL, NULL, 0, NULL },
};

static struct PyModuleDef definition = {
	PyModuleDef_HEAD_INIT, "context_watcher", NULL, -1, methods, NULL, NULL, NULL, NULL
};

PyMODINIT_FUNC PyInit_context_watcher(void)
{
	return PyModule_Create(&definition);
}
