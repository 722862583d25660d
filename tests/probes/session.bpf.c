/* SPDX-License-Identifier: MIT OR GPL-2.0 */
/* What a whole session is tested with: two rings, variables of each section, programs that fail. */
#include <linux/bpf.h>
#include <asm/unistd.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include <kerneltrace/kt_event.h>
#include <kerneltrace/kt_filter.h>

struct call_event {
	struct kt_header header;
	__u64 number;
};
KT_EVENT(call_event, 1);

struct flood_event {
	struct kt_header header;
	__u64 number;
	__u64 rest[4];
};
KT_EVENT(flood_event, 2);

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 18);
} calls SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 16);
} flood SEC(".maps");

const volatile __u64 every = 1;
__u64 number = 100;
__u64 failed;
char last_comm[16];

KT_PROBE(on_call);
KT_PROBE(on_flood);

SEC("tp_btf/sys_enter")
int BPF_PROG(on_call, void *registers, long call)
{
	struct call_event *event;
	__u64 now;

	if (call != __NR_getppid || !kt_wanted(on_call))
		return 0;
	bpf_get_current_comm(last_comm, sizeof(last_comm));
	now = number++; /* one thread calls; a fetch and add would need Linux 5.12 */
	if (now % every)
		return 0;
	event = kt_reserve(on_call, &calls, call_event);
	if (!event) {
		__sync_fetch_and_add(&failed, 1);
		return 0;
	}
	event->number = now;
	kt_submit(on_call, event);
	return 0;
}

/* Many records for each call of the traced process. */
SEC("?tp_btf/sys_exit")
int BPF_PROG(on_flood, void *registers, long result)
{
	if (!kt_wanted(on_flood))
		return 0;
	for (int i = 0; i < 64; i++) {
		struct flood_event *event = kt_reserve(on_flood, &flood, flood_event);

		if (!event)
			continue;
		event->number = i;
		for (int j = 0; j < 4; j++)
			event->rest[j] = j;
		kt_submit(on_flood, event);
	}
	return 0;
}

SEC("?fentry/do_nothing_that_there_is")
int BPF_PROG(on_nothing)
{
	return 0;
}

/* The verifier refuses it: the pointer may be NULL. */
SEC("?tp_btf/sys_enter")
int BPF_PROG(on_refusal, void *registers, long call)
{
	__u32 key = 0;
	__u8 *found = bpf_map_lookup_elem(&kt_filter_tgids, &key);

	return *found;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
