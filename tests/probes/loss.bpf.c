/* SPDX-License-Identifier: MIT */
/* Records into buffers that are too small, counted by kt_event.h, when a test runs a program. */
#include <kerneltrace/kt_event.h>

#define MOST 256

struct flood_event {
	struct kt_header header;
	__u64 number;
	__u64 rest[4];
};
_Static_assert(sizeof(struct flood_event) == 64, "a cache line");
KT_EVENT(flood_event, 7);

struct long_event {
	struct kt_header header;
	__u64 numbers[16];
};
_Static_assert(sizeof(struct long_event) == 152, "no padding");
KT_EVENT(long_event, 300);

KT_PROBE(flood);
KT_PROBE(flood_perf);
KT_PROBE(flood_lengths);

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} events SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERF_EVENT_ARRAY);
	__uint(key_size, 4);
	__uint(value_size, 4);
} perf_events SEC(".maps");

/* Runs of one thread alone. */
__u64 number;

__u64 interrupts;

/* Arguments: how many records; each nth is given up, 0: none. */
SEC("raw_tp/sys_enter")
int flood(struct bpf_raw_tracepoint_args *ctx)
{
	__u64 count = ctx->args[0], nth = ctx->args[1];

	for (__u32 i = 0; i < MOST && i < count; i++) {
		struct flood_event *event = kt_reserve(flood, &events, flood_event);

		if (!event)
			continue;
		event->number = number++;
		for (int word = 0; word < 4; word++)
			event->rest[word] = word;
		if (nth && event->number % nth == nth - 1)
			kt_discard(flood, event);
		else
			kt_submit(flood, event);
	}
	return 0;
}

/* Arguments: how many records. */
SEC("raw_tp/sys_enter")
int flood_perf(struct bpf_raw_tracepoint_args *ctx)
{
	__u64 count = ctx->args[0];

	for (__u32 i = 0; i < MOST && i < count; i++) {
		struct flood_event event = { .number = i };

		kt_fill(&event, flood_event);
		kt_output(flood_perf, ctx, &perf_events, &event, sizeof(event));
	}
	return 0;
}

/* Arguments: how many records; they have 1, 2, .. 16 numbers in turn. */
SEC("raw_tp/sys_enter")
int flood_lengths(struct bpf_raw_tracepoint_args *ctx)
{
	__u64 count = ctx->args[0];
	struct long_event event = {};

	for (int i = 0; i < 16; i++)
		event.numbers[i] = i;
	for (__u32 i = 0; i < MOST && i < count; i++) {
		__u32 length = sizeof(struct kt_header) + 8 * (1 + (i & 15));

		kt_fill(&event, long_event);
		kt_ring_output(flood_lengths, &events, &event, length);
	}
	return 0;
}

/* In the midst of flood, on its CPU, counts as if it were flood. */
SEC("perf_event")
int interrupt(void *ctx)
{
	kt_count(flood, seen);
	kt_count(flood, lost);
	__sync_fetch_and_add(&interrupts, 1);
	return 0;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
