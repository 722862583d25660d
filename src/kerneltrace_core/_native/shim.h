/* SPDX-License-Identifier: MIT */
/*
 * What the binding needs beside libbpf's own functions: calls whose options are
 * structs, log capture, and memory that stays safe across fork.
 */
#ifndef KT_SHIM_H
#define KT_SHIM_H

#include <stddef.h>

struct bpf_object;
struct btf;

/*
 * What libbpf prints on this thread between begin and end: each message behind
 * "\x02" and its level (0 warning, 1 information, 2 debug, kept if asked for).
 */
void kt_log_begin(int debug);
const char *kt_log_end(void);

/*
 * 0, or a negative errno. btf_path may be NULL: the running kernel's. The object is stored by the
 * call itself, for who frees that memory to free it too: see shim_attach.h.
 */
int kt_object_open(const void *bytes, size_t size, const char *name, const char *btf_path,
		   struct bpf_object **held);
void kt_object_free(struct bpf_object **held); /* and forget it */
/* 0, or a negative errno: -EMFILE, and nothing was tried, without descriptors for all of it. */
int kt_object_load(struct bpf_object *object);

/* Close an object for whose programs targets were looked up, and that was never loaded: libbpf lets
 * go of the BTF of kernel modules, a descriptor for each, at the end of a load alone. Nothing of
 * the object is created by this one. */
void kt_object_close_unloaded(struct bpf_object **held);

/* 0, or a negative errno. The context is read and written back. */
int kt_program_run(int program_fd, void *context, size_t size);

/* Number of arguments of a BTF tracepoint, or -ENOENT. */
int kt_tracepoint_arguments(const struct btf *btf, const char *name);

/* Where a global variable lies in its section (".rodata"); 0 or -errno. */
int kt_variable(const struct bpf_object *object, const char *section, const char *name,
		unsigned int *offset, unsigned int *size);

/* A one-element BPF_F_MMAPABLE array, as regions are; fd or -errno. */
int kt_map_create_array(const char *name, unsigned int value_size);
/* An array of such maps; inner_fd shows their shape. */
int kt_map_create_array_of_maps(const char *name, unsigned int entries, int inner_fd);

/* Give memory that libbpf used and freed back to the system, where that is possible. */
void kt_trim(void);

/*
 * Map a BPF array. In a child after fork(2) the same addresses hold private
 * zeroed memory: a store through an address that the child inherited reaches
 * nobody. NULL and errno on failure.
 */
void *kt_region_map(int map_fd, size_t size);
/* The same memory, private to the process, as kt_region_forget leaves it. */
void *kt_region_anonymous(size_t size);
/* Replace a mapping by private zeroed memory at the same addresses, for good. */
int kt_region_forget(void *address, size_t size);

#endif
