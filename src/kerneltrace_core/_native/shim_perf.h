/* SPDX-License-Identifier: MIT */
/*
 * Consumers of perf buffers, over what the kernel maps or what a test laid out.
 * Layout and memory order: include/uapi/linux/perf_event.h of the kernel.
 */
#ifndef KT_SHIM_PERF_H
#define KT_SHIM_PERF_H

#include "shim_frames.h"

#include <stdint.h>

/* One CPU's part of a perf buffer. */
struct kt_perf_ring {
	const uint64_t *head;
	uint64_t *tail; /* written by us alone */
	const uint8_t *data;
	uint64_t size; /* a power of two */
	uint32_t cpu;
	int fd;
	void *mapping;
	uint64_t mapped;
	int process; /* that mapped it: no other has it */
	int sized;   /* samples with struct kt_header are as long as it says */
};

/* Open and map a CPU's part, and put it into the map. 0 or -errno. */
int kt_perf_ring_open(int map_fd, uint32_t cpu, uint32_t pages, struct kt_perf_ring *perf);
/* Give everything back, and forget it; a forked child has only a descriptor to close. */
int kt_perf_ring_close(struct kt_perf_ring *perf);
void kt_perf_ring_free(struct kt_perf_ring *perf); /* a destructor: a negative fd is none */
/*
 * Take up to `limit` samples as frames. The kernel pads a sample, and counts the padding as its
 * length: 4 more than a multiple of 8. If the samples are `sized` it is taken off again.
 */
int kt_perf_ring_drain(const struct kt_perf_ring *perf, void *out, uint64_t out_size,
		       uint64_t limit, struct kt_drained *result);
uint64_t kt_perf_ring_pending(const struct kt_perf_ring *perf);

#endif
