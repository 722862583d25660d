/* SPDX-License-Identifier: MIT */
/* Known records into a ring or perf buffer, when a test runs a program. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#define MOST 512

/* What a nibble of `kinds` asks for. */
enum kind { SAMPLE, OTHER, UNKNOWN, MALFORMED, DISCARDED, KINDS };

struct sample {
	__u16 type;
	__u16 size;
	__u32 cpu;
	__u64 time_ns;
	__u64 request;
	__u64 number;
	__u64 rest[4];
};
_Static_assert(sizeof(struct sample) == 64, "a cache line");
/* Else the object does not say what it is made of. */
const struct sample *sample_type __attribute__((unused));

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} events SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERF_EVENT_ARRAY);
	__uint(key_size, 4);
	__uint(value_size, 4);
} perf_events SEC(".maps");

/* By kind: how many there was space for, and how many not. */
__u64 sent[KINDS];
__u64 lost[KINDS];
__u64 number;

static __always_inline void fill(struct sample *sample, __u16 type, __u16 size)
{
	sample->type = type;
	sample->size = size;
	sample->cpu = bpf_get_smp_processor_id();
	sample->request = 0;
	sample->time_ns = bpf_ktime_get_ns();
}

static __always_inline void send_sample(enum kind kind, __u16 type)
{
	struct sample *sample = bpf_ringbuf_reserve(&events, sizeof(*sample), 0);

	if (!sample) {
		lost[kind]++;
		return;
	}
	sample->number = number++;
	for (int i = 0; i < 4; i++)
		sample->rest[i] = i;
	sent[kind]++;
	fill(sample, type, sizeof(*sample));
	if (kind == DISCARDED)
		bpf_ringbuf_discard(sample, 0);
	else
		bpf_ringbuf_submit(sample, 0);
}

static __always_inline void send_short(enum kind kind, __u16 type)
{
	struct sample *sample = bpf_ringbuf_reserve(&events, 32, 0);

	if (!sample) {
		lost[kind]++;
		return;
	}
	sample->number = number++;
	sent[kind]++;
	fill(sample, type, 32);
	bpf_ringbuf_submit(sample, 0);
}

/* Arguments: how many records, and their kinds, a nibble each, from the low end on, in turn. */
SEC("raw_tp/sys_enter")
int produce(struct bpf_raw_tracepoint_args *ctx)
{
	__u64 count = ctx->args[0], kinds = ctx->args[1];

	for (__u32 i = 0; i < MOST; i++) {
		if (i >= count)
			break;
		switch (kinds >> (4 * (i & 15)) & 15) {
		case SAMPLE:
			send_sample(SAMPLE, 1);
			break;
		case OTHER:
			send_short(OTHER, 2);
			break;
		case UNKNOWN:
			send_sample(UNKNOWN, 99);
			break;
		case MALFORMED:
			send_short(MALFORMED, 1);
			break;
		case DISCARDED:
			send_sample(DISCARDED, 1);
			break;
		}
	}
	return 0;
}

/* Arguments: how many. */
SEC("raw_tp/sys_enter")
int produce_perf(struct bpf_raw_tracepoint_args *ctx)
{
	__u64 count = ctx->args[0];

	for (__u32 i = 0; i < MOST; i++) {
		struct sample sample = {};

		if (i >= count)
			break;
		sample.number = number++;
		fill(&sample, 1, sizeof(sample));
		if (bpf_perf_event_output(ctx, &perf_events, BPF_F_CURRENT_CPU, &sample,
					  sizeof(sample)))
			lost[SAMPLE]++;
		else
			sent[SAMPLE]++;
	}
	return 0;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
