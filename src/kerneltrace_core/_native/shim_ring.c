/* SPDX-License-Identifier: MIT */
#include "shim_ring.h"

#include <bpf/bpf.h>
#include <errno.h>
#include <linux/bpf.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define LENGTH (~(BPF_RINGBUF_BUSY_BIT | BPF_RINGBUF_DISCARD_BIT))
/* The position is given back so often: a program that waits for space gets it soon, and the
 * cache line that it reads is not taken from it at every record. */
#define GIVE_BACK 4096

#define AHEAD 1024

/* Records are short: cheaper than a call of memcpy. Rounds up: both sides have the space. */
static ALWAYS_INLINE void copy_words(uint8_t *to, const uint8_t *from, uint64_t bytes)
{
	if (bytes > 512) {
		memcpy(to, from, bytes);
		return;
	}
	for (; bytes >= 32; bytes -= 32, to += 32, from += 32)
		__builtin_memcpy(to, from, 32);
	for (; bytes; bytes -= 8, to += 8, from += 8)
		__builtin_memcpy(to, from, 8);
}

int kt_map_shape(int map_fd, uint32_t *type, uint32_t *entries)
{
	struct bpf_map_info info = {};
	uint32_t size = sizeof(info);

	if (bpf_obj_get_info_by_fd(map_fd, &info, &size))
		return -errno;
	*type = info.type;
	*entries = info.max_entries;
	return 0;
}

int kt_ring_map(int map_fd, struct kt_ring *ring)
{
	uint64_t page = sysconf(_SC_PAGESIZE);
	uint32_t type, size;
	void *consumer, *rest;
	int code = kt_map_shape(map_fd, &type, &size);

	if (code)
		return code;
	if (type != BPF_MAP_TYPE_RINGBUF)
		return -EINVAL;
	consumer = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_SHARED, map_fd, 0);
	if (consumer == MAP_FAILED)
		return -errno;
	rest = mmap(NULL, page + 2ULL * size, PROT_READ, MAP_SHARED, map_fd, page);
	if (rest == MAP_FAILED) {
		code = -errno;
		munmap(consumer, page);
		return code;
	}
	ring->consumer = consumer;
	ring->producer = rest;
	ring->data = (uint8_t *)rest + page;
	ring->size = size;
	ring->process = getpid();
	/* A forked child that drained the ring would take the records from its parent. */
	if (madvise(consumer, page, MADV_DONTFORK) ||
	    madvise(rest, page + 2ULL * size, MADV_DONTFORK)) {
		code = -errno;
		kt_ring_unmap(ring);
	}
	return code;
}

int kt_ring_unmap(struct kt_ring *ring)
{
	uint64_t page = sysconf(_SC_PAGESIZE);
	uint64_t *consumer = ring->consumer;

	ring->consumer = NULL;
	if (!consumer || ring->process != getpid())
		return 0;
	if (munmap(consumer, page) || munmap((void *)ring->producer, page + 2 * ring->size))
		return -errno;
	return 0;
}

void kt_ring_free(struct kt_ring *ring)
{
	kt_ring_unmap(ring);
}

static ALWAYS_INLINE uint32_t header_at(const struct kt_ring *ring, uint64_t position)
{
	const void *header = ring->data + (position & (ring->size - 1));

	return __atomic_load_n((const uint32_t *)header, __ATOMIC_ACQUIRE);
}

static ALWAYS_INLINE uint64_t produced(const struct kt_ring *ring)
{
	return __atomic_load_n(ring->producer, __ATOMIC_ACQUIRE);
}

static ALWAYS_INLINE void give_back(const struct kt_ring *ring, uint64_t position)
{
	__atomic_store_n(ring->consumer, position, __ATOMIC_RELEASE);
}

/*
 * Tell whether a record is ready at the position, and up to where there are records. The kernel
 * wakes a reader only if it sees that the reader had come up to the record it commits, so
 * before "no" the position is stored, and then (the fence) the record is looked at again.
 */
static ALWAYS_INLINE bool ready(const struct kt_ring *ring, uint64_t position, uint64_t *end,
				uint32_t *header)
{
	if (__builtin_expect(position != *end, 1)) {
		/* The CPU's own prefetching ends with each page. */
		__builtin_prefetch(ring->data + (position & (ring->size - 1)) + AHEAD);
		*header = header_at(ring, position);
		if (__builtin_expect(!(*header & BPF_RINGBUF_BUSY_BIT), 1))
			return true;
	}
	give_back(ring, position);
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	*end = produced(ring);
	if (position == *end)
		return false;
	*header = header_at(ring, position);
	return !(*header & BPF_RINGBUF_BUSY_BIT);
}

int kt_ring_drain(const struct kt_ring *ring, void *out, uint64_t out_size, uint64_t limit,
		  struct kt_drained *result)
{
	uint64_t position = __atomic_load_n(ring->consumer, __ATOMIC_RELAXED);
	uint64_t begin = position, given = position, end = produced(ring);
	uint8_t *to = out;
	uint32_t header;
	int code = 0;

	memset(result, 0, sizeof(*result));
	while (ready(ring, position, &end, &header)) {
		uint64_t length = header & LENGTH;
		uint64_t step = KT_FRAME_HEADER + round_up(length);

		if (step > end - position || step > ring->size) {
			code = -EBADMSG;
			break;
		}
		/* Nothing but discarded records, for ever: let the caller breathe. */
		if (position - begin >= ring->size) {
			result->more = 1;
			break;
		}
		if (header & BPF_RINGBUF_DISCARD_BIT) {
			result->discarded++;
		} else {
			const uint8_t *from =
				ring->data + (position & (ring->size - 1)) + KT_FRAME_HEADER;

			if (result->records == limit || out_size < step) {
				result->needed = result->records || !limit ? 0 : step;
				result->more = 1;
				break;
			}
			to = begin_frame(to, length, 0);
			copy_words(to, from, step - KT_FRAME_HEADER);
			clear_padding(to, length);
			to += step - KT_FRAME_HEADER;
			out_size -= step;
			result->records++;
		}
		position += step;
		if (position - given >= GIVE_BACK)
			give_back(ring, given = position);
	}
	give_back(ring, position);
	result->bytes = to - (uint8_t *)out;
	return code;
}

static ALWAYS_INLINE bool is_wanted(const uint8_t *payload, const struct kt_wanted *wanted,
				    uint32_t tag_size)
{
	uint64_t tag = 0;

	if (!tag_size)
		return true;
		/* Native order: the first bytes are the low ones on the machines we are built for. */
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
	__builtin_memcpy(&tag, payload + wanted->tag_offset, tag_size);
#else
	__builtin_memcpy((uint8_t *)&tag + 8 - tag_size, payload + wanted->tag_offset, tag_size);
#endif
	for (uint32_t i = 0; i < wanted->tags_count; i++)
		if (wanted->tags[i] == tag)
			return true;
	return false;
}

static ALWAYS_INLINE int drain_strided(const struct kt_ring *ring, const struct kt_wanted *wanted,
				       uint32_t tag_size, uint8_t *out, uint64_t limit,
				       struct kt_drained *result)
{
	uint64_t position = __atomic_load_n(ring->consumer, __ATOMIC_RELAXED);
	uint64_t begin = position, given = position, end = produced(ring);
	uint64_t size = wanted->size, step = KT_FRAME_HEADER + round_up(size);
	bool whole = !(size & 7);
	uint32_t header;
	int code = 0;

	while (ready(ring, position, &end, &header)) {
		uint64_t this_step = KT_FRAME_HEADER + round_up(header & LENGTH);
		const uint8_t *from = ring->data + (position & (ring->size - 1)) + KT_FRAME_HEADER;

		if (this_step > end - position || this_step > ring->size) {
			code = -EBADMSG;
			break;
		}
		if (position - begin >= ring->size) {
			result->more = 1;
			break;
		}
		if (header & BPF_RINGBUF_DISCARD_BIT) {
			result->discarded++;
		} else {
			if (result->records == limit || header != size ||
			    !is_wanted(from, wanted, tag_size)) {
				result->more = 1;
				break;
			}
			/* The last record's copy may not go beyond the end. */
			if (whole)
				copy_words(out, from, step - KT_FRAME_HEADER);
			else
				memcpy(out, from, size);
			out += size;
			result->records++;
		}
		position += this_step;
		if (position - given >= GIVE_BACK)
			give_back(ring, given = position);
	}
	give_back(ring, position);
	result->bytes = result->records * size;
	return code;
}

int kt_ring_drain_strided(const struct kt_ring *ring, const struct kt_wanted *wanted, void *out,
			  uint64_t limit, struct kt_drained *result)
{
	uint32_t tag_size = wanted->tag_offset < 0 ? 0 : wanted->tag_size;

	memset(result, 0, sizeof(*result));
	if (tag_size && (uint64_t)wanted->tag_offset + tag_size > wanted->size)
		return -EINVAL;
	switch (tag_size) { /* one loop each: the width is a constant in it */
	case 0:
		return drain_strided(ring, wanted, 0, out, limit, result);
	case 1:
		return drain_strided(ring, wanted, 1, out, limit, result);
	case 2:
		return drain_strided(ring, wanted, 2, out, limit, result);
	case 4:
		return drain_strided(ring, wanted, 4, out, limit, result);
	case 8:
		return drain_strided(ring, wanted, 8, out, limit, result);
	}
	return -EINVAL;
}

uint64_t kt_ring_pending(const struct kt_ring *ring)
{
	return produced(ring) - __atomic_load_n(ring->consumer, __ATOMIC_RELAXED);
}

static uint64_t now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000000000ULL + time.tv_nsec;
}

int kt_ring_spin(const struct kt_ring *ring, uint64_t nanoseconds)
{
	uint64_t deadline = now() + nanoseconds;
	uint64_t position = __atomic_load_n(ring->consumer, __ATOMIC_RELAXED);

	do {
		for (int i = 0; i < 64; i++) {
			if (produced(ring) != position &&
			    !(header_at(ring, position) & BPF_RINGBUF_BUSY_BIT))
				return 1;
#if defined(__x86_64__)
			__builtin_ia32_pause();
#elif defined(__aarch64__)
			__asm__ volatile("yield");
#endif
		}
	} while (now() < deadline);
	return 0;
}

uint64_t kt_frames_select(const void *frames, uint64_t size, const struct kt_wanted *wanted,
			  int exact, void *out)
{
	const uint8_t *from = frames, *end = from + size;
	uint32_t tag_size = wanted->tag_offset < 0 ? 0 : wanted->tag_size;
	uint8_t *to = out;

	while (end - from >= KT_FRAME_HEADER) {
		uint32_t length;
		uint64_t step;

		__builtin_memcpy(&length, from, 4);
		step = KT_FRAME_HEADER + round_up(length);
		if (step > (uint64_t)(end - from))
			break;
		if ((exact ? length == wanted->size : length >= wanted->size) &&
		    (!tag_size || wanted->tag_offset + tag_size <= length) &&
		    is_wanted(from + KT_FRAME_HEADER, wanted, tag_size)) {
			memcpy(to, from, step);
			to += step;
		}
		from += step;
	}
	return to - (uint8_t *)out;
}
