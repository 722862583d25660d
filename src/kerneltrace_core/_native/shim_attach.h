/* SPDX-License-Identifier: MIT */
/*
 * Attaching by the kernel's own calls. libbpf's versions hide which step failed, and the one that
 * this is built with may know less than the running kernel. Each returns 0 or a negative errno.
 *
 * What a call makes it stores itself, through `held`: a signal handler may raise before Python has
 * looked at a result, and what was only a result would stay attached for ever. Who frees that
 * memory ends what is in it.
 */
#ifndef KT_SHIM_ATTACH_H
#define KT_SHIM_ATTACH_H

#include <stddef.h>
#include <stdint.h>

struct bpf_link;
struct bpf_program;

void kt_descriptor_close(int *held); /* and forget it; a negative one is none */

/* bpf(BPF_RAW_TRACEPOINT_OPEN); name NULL: where the program was loaded for (tp_btf, fentry, lsm). */
int kt_tracepoint_open(int program_fd, const char *name, int *held);

/* bpf(BPF_LINK_CREATE); target is a descriptor or an interface's index, as the type says. */
int kt_link_create(int program_fd, int target, int attach_type, uint32_t flags, uint64_t cookie,
		   int *held);

/* uprobe_multi (6.6); counters and cookies may be NULL, pid 0 is every process. */
int kt_link_uprobes(int program_fd, const char *path, const uint64_t *offsets,
		    const uint64_t *counters, const uint64_t *cookies, uint32_t count, int pid,
		    int is_return, int *held);

/* A link that libbpf makes, as it reads the program's section. */
struct kt_held_link {
	struct bpf_link *link;
	int process;
};

int kt_section_attach(const struct bpf_program *program, struct kt_held_link *held);
/* Detach and forget. In a forked child only its descriptor is closed: destroying a link may tell
 * the kernel to stop it for everybody. */
int kt_held_link_end(struct kt_held_link *held);
void kt_held_link_free(struct kt_held_link *held);

/* What perf_event_open(2) is asked for; what is 0 is left out. */
struct kt_perf {
	uint32_t type;
	uint64_t config;
	const char *name; /* a path or function for config1, else config1 itself */
	uint64_t config1;
	uint64_t config2;
	uint64_t period; /* events, or samples a second if by_frequency */
	int by_frequency;
	int inherit; /* 1: threads made later (5.13); 2: child processes too */
	int pid;     /* -1: all */
	int cpu;     /* -1: all */
};

int kt_perf_open(const struct kt_perf *wanted, int *held); /* opened disabled */
int kt_perf_enable(int perf_fd);
int kt_perf_set_program(int perf_fd, int program_fd); /* before perf links (5.15) */

/* A filter of the clsact qdisc, where there are no tcx links (before 6.6). */
struct kt_held_filter {
	uint32_t handle; /* 0: none */
	uint32_t priority;
	int made_hook; /* the interface had no such qdisc */
};

int kt_tc_hook_create(int interface, struct kt_held_filter *held); /* 0 also if there is one */
int kt_tc_hook_destroy(int interface);
int kt_tc_attach(int interface, int egress, int program_fd, struct kt_held_filter *held);
int kt_tc_detach(int interface, int egress, struct kt_held_filter *held); /* and forget it */

#endif
