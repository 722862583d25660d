/* SPDX-License-Identifier: MIT */
/*
 * Consumers of BPF ring buffers, over plain memory: what the kernel maps, or what a test laid out.
 * Layout and memory order: Documentation/bpf/ringbuf.rst of the kernel.
 */
#ifndef KT_SHIM_RING_H
#define KT_SHIM_RING_H

#include "shim_frames.h"

#include <stdint.h>

struct kt_ring {
	uint64_t *consumer; /* written by us alone */
	const uint64_t *producer;
	const uint8_t *data; /* twice in a row, so that no record is torn */
	uint64_t size;       /* of the data once, a power of two */
	int process;         /* that mapped it: no other has it */
};

/* What makes a record one of a type, as events' Selector has it. */
struct kt_wanted {
	uint32_t size;
	int tag_offset; /* negative: no tag */
	uint32_t tag_size;
	uint32_t tags_count;
	const uint64_t *tags;
};

/* Map the pages of a ring buffer, not for forked children. 0 or -errno. */
int kt_ring_map(int map_fd, struct kt_ring *ring);
/* Unmap, and forget it; nothing is mapped in a forked child. */
int kt_ring_unmap(struct kt_ring *ring);
void kt_ring_free(struct kt_ring *ring); /* a destructor */

/* Take up to `limit` records as frames. 0, or -EBADMSG for what no kernel writes. */
int kt_ring_drain(const struct kt_ring *ring, void *out, uint64_t out_size, uint64_t limit,
		  struct kt_drained *result);
/*
 * Take up to `limit` records without headers, wanted->size bytes each. Stops before the
 * first record that is not wanted, which sets `more`.
 */
int kt_ring_drain_strided(const struct kt_ring *ring, const struct kt_wanted *wanted, void *out,
			  uint64_t limit, struct kt_drained *result);
/* Bytes between the positions, headers and what is still being written included. */
uint64_t kt_ring_pending(const struct kt_ring *ring);
/* Look for a record for so long; 1 if there is one. */
int kt_ring_spin(const struct kt_ring *ring, uint64_t nanoseconds);

/* Copy the frames that are wanted; returns their bytes. out has as many bytes as frames. */
uint64_t kt_frames_select(const void *frames, uint64_t size, const struct kt_wanted *wanted,
			  int exact, void *out);

/* Type and max_entries of a map. 0 or -errno. */
int kt_map_shape(int map_fd, uint32_t *type, uint32_t *entries);

#endif
