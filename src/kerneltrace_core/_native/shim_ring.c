/* SPDX-License-Identifier: MIT */
#include "shim_ring.h"

#include <bpf/bpf.h>
#include <errno.h>
#include <linux/bpf.h>
#include <linux/perf_event.h>
#include <stdbool.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define HEADER 8
#define LENGTH (~(BPF_RINGBUF_BUSY_BIT | BPF_RINGBUF_DISCARD_BIT))
/* The position is given back so often: a program that waits for space gets it soon, and the
 * cache line that it reads is not taken from it at every record. */
#define GIVE_BACK 4096

#define AHEAD 1024

#define ALWAYS_INLINE inline __attribute__((always_inline))

static ALWAYS_INLINE uint64_t round_up(uint64_t bytes)
{
	return (bytes + 7) & ~7ULL;
}

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

static ALWAYS_INLINE uint8_t *begin_frame(uint8_t *to, uint32_t length, uint32_t origin)
{
	__builtin_memcpy(to, &length, 4);
	__builtin_memcpy(to + 4, &origin, 4);
	return to + HEADER;
}

static ALWAYS_INLINE void clear_padding(uint8_t *payload, uint64_t length)
{
	for (uint64_t at = length; at & 7; at++)
		payload[at] = 0;
}

/* ---- ring buffers --------------------------------------------------------- */

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

	if (munmap(ring->consumer, page) || munmap((void *)ring->producer, page + 2 * ring->size))
		return -errno;
	return 0;
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
		uint64_t step = HEADER + round_up(length);

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
			const uint8_t *from = ring->data + (position & (ring->size - 1)) + HEADER;

			if (result->records == limit || out_size < step) {
				result->needed = result->records || !limit ? 0 : step;
				result->more = 1;
				break;
			}
			to = begin_frame(to, length, 0);
			copy_words(to, from, step - HEADER);
			clear_padding(to, length);
			to += step - HEADER;
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
	uint64_t size = wanted->size, step = HEADER + round_up(size);
	bool whole = !(size & 7);
	uint32_t header;
	int code = 0;

	while (ready(ring, position, &end, &header)) {
		uint64_t this_step = HEADER + round_up(header & LENGTH);
		const uint8_t *from = ring->data + (position & (ring->size - 1)) + HEADER;

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
				copy_words(out, from, step - HEADER);
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

	while (end - from >= HEADER) {
		uint32_t length;
		uint64_t step;

		__builtin_memcpy(&length, from, 4);
		step = HEADER + round_up(length);
		if (step > (uint64_t)(end - from))
			break;
		if ((exact ? length == wanted->size : length >= wanted->size) &&
		    (!tag_size || wanted->tag_offset + tag_size <= length) &&
		    is_wanted(from + HEADER, wanted, tag_size)) {
			memcpy(to, from, step);
			to += step;
		}
		from += step;
	}
	return to - (uint8_t *)out;
}

/* ---- perf buffers ----------------------------------------------------------- */

int kt_perf_ring_open(int map_fd, uint32_t cpu, uint32_t pages, struct kt_perf_ring *perf)
{
	struct perf_event_attr attr = {
		.type = PERF_TYPE_SOFTWARE,
		.size = sizeof(attr),
		.config = PERF_COUNT_SW_BPF_OUTPUT,
		.sample_type = PERF_SAMPLE_RAW,
		.sample_period = 1,
		.wakeup_events = 1,
	};
	uint64_t page = sysconf(_SC_PAGESIZE);
	struct perf_event_mmap_page *control;
	int code;

	perf->cpu = cpu;
	perf->mapping = MAP_FAILED;
	perf->fd = syscall(SYS_perf_event_open, &attr, -1, cpu, -1, PERF_FLAG_FD_CLOEXEC);
	if (perf->fd < 0)
		return -errno;
	perf->mapped = page * (pages + 1);
	perf->mapping = mmap(NULL, perf->mapped, PROT_READ | PROT_WRITE, MAP_SHARED, perf->fd, 0);
	if (perf->mapping == MAP_FAILED)
		goto failed;
	/* The kernel does so by itself; it costs nothing to say it. */
	if (madvise(perf->mapping, perf->mapped, MADV_DONTFORK))
		goto failed;
	control = perf->mapping;
	perf->head = (const uint64_t *)&control->data_head;
	perf->tail = (uint64_t *)&control->data_tail;
	perf->data = (uint8_t *)perf->mapping + page;
	perf->size = page * pages;
	if (bpf_map_update_elem(map_fd, &cpu, &perf->fd, BPF_ANY) ||
	    ioctl(perf->fd, PERF_EVENT_IOC_ENABLE, 0))
		goto failed;
	return 0;
failed:
	code = -errno;
	kt_perf_ring_close(perf);
	return code;
}

int kt_perf_ring_close(struct kt_perf_ring *perf)
{
	int code = 0;

	if (perf->mapping != MAP_FAILED && munmap(perf->mapping, perf->mapped))
		code = -errno;
	perf->mapping = MAP_FAILED;
	/* The map lets go of the event when its last descriptor of ours is closed. */
	if (perf->fd >= 0 && close(perf->fd) && !code)
		code = -errno;
	perf->fd = -1;
	return code;
}

static void copy_around(const struct kt_perf_ring *perf, uint64_t position, void *out,
			uint64_t bytes)
{
	uint64_t at = position & (perf->size - 1);
	uint64_t first = bytes < perf->size - at ? bytes : perf->size - at;

	memcpy(out, perf->data + at, first);
	memcpy((uint8_t *)out + first, perf->data, bytes - first);
}

int kt_perf_ring_drain(const struct kt_perf_ring *perf, void *out, uint64_t out_size,
		       uint64_t limit, struct kt_drained *result)
{
	uint64_t position = __atomic_load_n(perf->tail, __ATOMIC_RELAXED);
	uint64_t end = __atomic_load_n(perf->head, __ATOMIC_ACQUIRE);
	uint8_t *to = out;
	int code = 0;

	memset(result, 0, sizeof(*result));
	while (position != end) {
		struct perf_event_header header;

		copy_around(perf, position, &header, sizeof(header));
		if (header.size < sizeof(header) || header.size > end - position) {
			code = -EBADMSG;
			break;
		}
		if (header.type == PERF_RECORD_SAMPLE) {
			uint32_t length;
			uint64_t step;

			copy_around(perf, position + sizeof(header), &length, sizeof(length));
			if (header.size < sizeof(header) + 4 ||
			    length > header.size - sizeof(header) - 4) {
				code = -EBADMSG;
				break;
			}
			step = HEADER + round_up(length);
			if (result->records == limit || out_size < step) {
				result->needed = result->records || !limit ? 0 : step;
				result->more = 1;
				break;
			}
			to = begin_frame(to, length, perf->cpu);
			copy_around(perf, position + sizeof(header) + 4, to, length);
			clear_padding(to, length);
			to += step - HEADER;
			out_size -= step;
			result->records++;
		} else if (header.type == PERF_RECORD_LOST) {
			uint64_t lost[2];

			if (header.size < sizeof(header) + sizeof(lost)) {
				code = -EBADMSG;
				break;
			}
			copy_around(perf, position + sizeof(header), lost, sizeof(lost));
			result->lost += lost[1];
		} else {
			result->discarded++;
		}
		position += header.size;
	}
	/* All reads of the data before the store: the kernel overwrites it then. */
	__atomic_store_n(perf->tail, position, __ATOMIC_RELEASE);
	result->bytes = to - (uint8_t *)out;
	return code;
}

uint64_t kt_perf_ring_pending(const struct kt_perf_ring *perf)
{
	return __atomic_load_n(perf->head, __ATOMIC_ACQUIRE) -
	       __atomic_load_n(perf->tail, __ATOMIC_RELAXED);
}
