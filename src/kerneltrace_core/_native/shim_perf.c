/* SPDX-License-Identifier: MIT */
#include "shim_perf.h"

#include <bpf/bpf.h>
#include <errno.h>
#include <linux/bpf.h>
#include <linux/perf_event.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

/* As in kt_event.h. */
struct kt_header {
	uint16_t type, size;
	uint32_t cpu;
	uint64_t time_ns, request;
};

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
	perf->process = getpid();
	perf->fd = syscall(SYS_perf_event_open, &attr, -1, cpu, -1, PERF_FLAG_FD_CLOEXEC);
	if (perf->fd < 0)
		return -errno;
	perf->mapped = page * (pages + 1);
	perf->mapping = mmap(NULL, perf->mapped, PROT_READ | PROT_WRITE, MAP_SHARED, perf->fd, 0);
	if (perf->mapping == MAP_FAILED) {
		perf->mapping = NULL;
		goto failed;
	}
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

	if (perf->mapping && perf->process == getpid() && munmap(perf->mapping, perf->mapped))
		code = -errno;
	perf->mapping = NULL;
	/* The map lets go of the event when its last descriptor of ours is closed. */
	if (perf->fd >= 0 && close(perf->fd) && !code)
		code = -errno;
	perf->fd = -1;
	return code;
}

void kt_perf_ring_free(struct kt_perf_ring *perf)
{
	kt_perf_ring_close(perf);
}

static void copy_around(const struct kt_perf_ring *perf, uint64_t position, void *out,
			uint64_t bytes)
{
	uint64_t at = position & (perf->size - 1);
	uint64_t first = bytes < perf->size - at ? bytes : perf->size - at;

	memcpy(out, perf->data + at, first);
	memcpy((uint8_t *)out + first, perf->data, bytes - first);
}

/* What a sample's header says is its length, where the rest can be nothing but padding. Samples
 * without our header may be among them: of those few have this CPU in its place, too. */
static uint32_t own_length(const struct kt_perf_ring *perf, const uint8_t *sample, uint32_t length)
{
	struct kt_header header;

	if (length < sizeof(header))
		return length;
	memcpy(&header, sample, sizeof(header));
	if (header.cpu != perf->cpu || header.size < sizeof(header) || header.size > length ||
	    length - header.size >= 8)
		return length;
	return header.size;
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
			step = KT_FRAME_HEADER + round_up(length);
			if (result->records == limit || out_size < step) {
				result->needed = result->records || !limit ? 0 : step;
				result->more = 1;
				break;
			}
			copy_around(perf, position + sizeof(header) + 4, to + KT_FRAME_HEADER,
				    length);
			if (perf->sized) {
				length = own_length(perf, to + KT_FRAME_HEADER, length);
				step = KT_FRAME_HEADER + round_up(length);
			}
			to = begin_frame(to, length, perf->cpu);
			clear_padding(to, length);
			to += step - KT_FRAME_HEADER;
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
