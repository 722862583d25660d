/* SPDX-License-Identifier: MIT */
/* Threads: the state of each, made at its first border and freed when it ends. */
#ifndef KT_STEP_THREADS_H
#define KT_STEP_THREADS_H

#include "borders.h"

static const char capsule_name[] = "kerneltrace_core._native._step.thread";

/* Destructor of the capsule in the thread's state dictionary. Runs with the
 * GIL, but after a fork on another thread than the one that is gone. */
static void thread_ended(PyObject *capsule)
{
	struct thread *t = PyCapsule_GetPointer(capsule, capsule_name);

	if (here == t)
		here = NULL;
	if (t->owner)
		restore(t, t->owner, NULL);
	bind_thread(t, NULL, NULL);
	PyMem_Free(t);
}

static struct thread *this_thread(void)
{
	static uint64_t last_serial;
	PyObject *state, *capsule;
	struct thread *t = here;

	if (t)
		return t;
	t = PyMem_Calloc(1, sizeof(*t));
	if (!t) {
		PyErr_NoMemory();
		return NULL;
	}
	t->entry = t->hidden;
	t->serial = ++last_serial;
	state = PyThreadState_GetDict();
	capsule = PyCapsule_New(t, capsule_name, thread_ended);
	if (!capsule || (state && PyDict_SetItem(state, name_here, capsule) < 0)) {
		if (capsule)
			Py_DECREF(capsule); /* frees t */
		else
			PyMem_Free(t);
		return NULL;
	}
	/* Without a dictionary the thread is being torn down: what is left of it leaks. */
	if (state)
		Py_DECREF(capsule);
	here = t;
	return t;
}

#endif
