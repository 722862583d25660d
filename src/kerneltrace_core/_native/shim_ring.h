/* SPDX-License-Identifier: MIT */
/*
 * Consumers of BPF ring buffers and perf buffers, over plain memory: what the
 * kernel maps, or what a test laid out. Both write frames: u32 length, u32
 * origin, payload, zeroes up to a multiple of 8; in native byte order.
 *
 * Layouts and memory order: Documentation/bpf/ringbuf.rst and
 * include/uapi/linux/perf_event.h of the kernel.
 */
#ifndef KT_SHIM_RING_H
#define KT_SHIM_RING_H

#include <stddef.h>
#include <stdint.h>

struct kt_ring {
	uint64_t *consumer; /* written by us alone */
	const uint64_t *producer;
	const uint8_t *data; /* twice in a row, so that no record is torn */
	uint64_t size;       /* of the data once, a power of two */
};

struct kt_drained {
	uint64_t bytes;     /* written to out */
	uint64_t records;   /* written to out */
	uint64_t discarded; /* skipped: the program gave them up, or they are no samples */
	uint64_t lost;      /* perf buffers: what the kernel says it had no space for */
	uint64_t needed;    /* out is too small for the next record: its bytes; else 0 */
	int more;           /* something is left that could be drained now */
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
int kt_ring_unmap(struct kt_ring *ring);

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
};

/* Open and map a CPU's part, and put it into the map. 0 or -errno. */
int kt_perf_ring_open(int map_fd, uint32_t cpu, uint32_t pages, struct kt_perf_ring *perf);
int kt_perf_ring_close(struct kt_perf_ring *perf);
/*
 * Take up to `limit` samples as frames. The kernel pads a sample, and counts the padding as its
 * length: 4 more than a multiple of 8.
 */
int kt_perf_ring_drain(const struct kt_perf_ring *perf, void *out, uint64_t out_size,
		       uint64_t limit, struct kt_drained *result);
uint64_t kt_perf_ring_pending(const struct kt_perf_ring *perf);
/* Type and max_entries of a map. 0 or -errno. */
int kt_map_shape(int map_fd, uint32_t *type, uint32_t *entries);

#endif
