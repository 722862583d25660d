/* SPDX-License-Identifier: MIT OR GPL-2.0 */
/*
 * Records that kerneltrace reads by type, and counters from which no loss is missing.
 *
 *	#include <kerneltrace/kt_event.h>	(a vmlinux.h, if you use one, before it)
 *
 *	struct open_event {
 *		struct kt_header header;
 *		__s32 fd;
 *		char path[60];
 *	};
 *	KT_EVENT(open_event, 1);
 *	KT_PROBE(trace_open);
 *
 *	SEC("tp_btf/sys_exit")
 *	int trace_open(__u64 *ctx)
 *	{
 *		struct open_event *event = kt_reserve(trace_open, &events, open_event);
 *
 *		if (!event)
 *			return 0;
 *		...
 *		kt_submit(trace_open, event);
 *		return 0;
 *	}
 *
 * For each program, when none is running: seen = submitted + lost + discarded.
 * The members of a record that nobody fills hold what was in the ring before.
 *
 * Least kernel: 5.8 with a ring buffer, 5.5 with a perf buffer. clang 12. This header brings the
 * map kt_counters (2.5 KB for each CPU), used or not; libbpf loads no static maps, which could be
 * left out. The program's license must be compatible with the GPL ("Dual MIT/GPL" is).
 */
#ifndef KERNELTRACE_KT_EVENT_H
#define KERNELTRACE_KT_EVENT_H

/* A vmlinux.h has all of these types. */
#ifndef __VMLINUX_H__
#include <linux/types.h>
#include <linux/bpf.h>
#endif
#include <bpf/bpf_helpers.h>

/* What every record begins with. */
struct kt_header {
	__u16 type; /* the tag of KT_EVENT */
	__u16 size; /* of the record, this header included, in bytes */
	__u32 cpu;
	__u64 time_ns; /* CLOCK_MONOTONIC */
	__u64 request; /* slot | generation << 32 where one is known, else 0 */
};
_Static_assert(sizeof(struct kt_header) == 24, "abi: struct kt_header");

#define KT_RECORD_MAX 65535

/* A variable that is there to be found in the object, by its name and type. */
#define KT_MARK __attribute__((used))

/* After a struct whose first member is `struct kt_header header`: gives it its tag, 1 to 65535. */
#define KT_EVENT(name, tag) KT_EVENT_NUMBERED(name, tag)
#define KT_EVENT_NUMBERED(name, tag) \
	_Static_assert(__builtin_offsetof(struct name, header) == 0, \
		       "kerneltrace: " #name " must begin with struct kt_header header"); \
	_Static_assert(sizeof(struct name) <= KT_RECORD_MAX, \
		       "kerneltrace: " #name " is larger than 65535 bytes"); \
	_Static_assert((tag) > 0 && (tag) <= 65535, \
		       "kerneltrace: the tag of " #name " must be in 1..65535"); \
	enum { kt_tag_##name = tag }; \
	KT_MARK const struct name *const kt_event_##tag##_##name = 0

#define KT_PROBES 64

/* One cell for each CPU and program. */
struct kt_counters {
	__u64 seen;      /* records that were to be sent */
	__u64 submitted; /* sent */
	__u64 lost;      /* no room in the buffer */
	__u64 discarded; /* given up by the program */
	__u64 filtered;  /* runs that kt_wanted() ended; of no record, so not among seen */
};
_Static_assert(sizeof(struct kt_counters) == 40, "abi: struct kt_counters");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, KT_PROBES);
	__type(key, __u32);
	__type(value, struct kt_counters);
} kt_counters SEC(".maps");

/*
 * At file scope, once for each program that the other macros name: gives it its counters.
 * KT_PROBE_AT says which ones, for an object that is linked from several files.
 */
#define KT_PROBE(program) KT_PROBE_AT(program, __COUNTER__)
#define KT_PROBE_AT(program, index) KT_PROBE_NUMBERED(program, index)
#define KT_PROBE_NUMBERED(program, index) \
	_Static_assert((index) < KT_PROBES, "kerneltrace: more than 64 programs with KT_PROBE"); \
	enum { kt_index_##program = index }; \
	KT_MARK const __u32 kt_probe_##index##_##program = index

/*
 * Atomic although each CPU has its own: since 5.12 a program can be preempted, and on raw
 * tracepoints interrupted, by a run of itself on the same CPU, between load and store.
 */
#define kt_count(program, counter) \
	do { \
		__u32 kt_key = kt_index_##program; \
		struct kt_counters *kt_cell = bpf_map_lookup_elem(&kt_counters, &kt_key); \
		if (kt_cell) \
			__sync_fetch_and_add(&kt_cell->counter, 1); \
	} while (0)

static __always_inline void kt_fill_header(struct kt_header *header, __u16 type, __u16 size)
{
	header->type = type;
	header->size = size;
	header->cpu = bpf_get_smp_processor_id();
	header->time_ns = bpf_ktime_get_ns();
	header->request = 0;
}

/* Fill the header of a struct of your own, for kt_output and kt_ring_output. */
#define kt_fill(event, name) kt_fill_header(&(event)->header, kt_tag_##name, sizeof(struct name))

/* Reserve a struct in a ring buffer: a pointer, its header filled, or NULL: lost, and counted. */
#define kt_reserve(program, ring, name) \
	({ \
		struct name *kt_record; \
		kt_count(program, seen); \
		kt_record = bpf_ringbuf_reserve(ring, sizeof(struct name), 0); \
		if (kt_record) \
			kt_fill(kt_record, name); \
		else \
			kt_count(program, lost); \
		kt_record; \
	})

/* Send what was reserved. Counted before: what a reader has got was counted. */
#define kt_submit(program, event) kt_submit_flags(program, event, 0)
#define kt_submit_flags(program, event, flags) \
	do { \
		kt_count(program, submitted); \
		bpf_ringbuf_submit(event, flags); \
	} while (0)

/* Give up what was reserved. */
#define kt_discard(program, event) \
	do { \
		kt_count(program, discarded); \
		bpf_ringbuf_discard(event, 0); \
	} while (0)

/* Count a record of kt_length bytes as sent or as lost, by what the helper says; 0: sent. */
#define kt_sent(program, event, length, send) \
	({ \
		__u64 kt_length = (length); \
		long kt_error; \
		(event)->header.size = kt_length; \
		kt_count(program, seen); \
		kt_error = (send); \
		if (kt_error) \
			kt_count(program, lost); \
		else \
			kt_count(program, submitted); \
		kt_error; \
	})

/*
 * Copy a struct, filled by kt_fill, into this CPU's perf buffer. The length may be smaller than the
 * struct, for records of varying length; the verifier wants to see its bounds.
 */
#define kt_output(program, ctx, buffer, event, length) \
	kt_sent(program, event, length, \
		bpf_perf_event_output(ctx, buffer, BPF_F_CURRENT_CPU, event, kt_length))

/* The same into a ring buffer. */
#define kt_ring_output(program, ring, event, length) \
	kt_sent(program, event, length, bpf_ringbuf_output(ring, event, kt_length, 0))

#endif
