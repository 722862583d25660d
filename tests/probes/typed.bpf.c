/* SPDX-License-Identifier: MIT */
/* For generated code: an event, maps and variables of every kind that it gives a type to. */
#include <kerneltrace/kt_event.h>
#include <kerneltrace/kt_filter.h>
#include <asm/unistd.h>

enum parity { EVEN, ODD };

struct call {
	__u32 number;
	__be16 port;
	__u16 class;
};

struct count {
	__u64 calls;
	enum parity last;
	char comm[16];
};

struct call_event {
	struct kt_header header;
	struct call call;
	enum parity parity;
	__s32 negative : 10;
	char comm[16];
};
KT_EVENT(call_event, 7);
KT_PROBE(on_call);

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 16);
} events SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__type(key, struct call);
	__type(value, struct count);
} counts SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, __u64);
} by_parity SEC(".maps");

const volatile __u32 first = 0;
__u32 seen;

SEC("tp_btf/sys_enter")
int on_call(__u64 *ctx)
{
	struct call call = { .number = __NR_getppid, .port = __builtin_bswap16(443), .class = 9 };
	struct call_event *event;
	struct count *count;
	__u64 *total;
	__u32 key;

	if (ctx[1] != __NR_getppid || !kt_wanted(on_call))
		return 0;
	/* Not the addition's result, which programs are given from Linux 5.12 on. */
	key = (first + seen) & 1;
	__sync_fetch_and_add(&seen, 1);
	total = bpf_map_lookup_elem(&by_parity, &key);
	if (total)
		(*total)++;
	count = bpf_map_lookup_elem(&counts, &call);
	if (count) {
		__sync_fetch_and_add(&count->calls, 1);
		count->last = key;
	}
	event = kt_reserve(on_call, &events, call_event);
	if (!event)
		return 0;
	event->call = call;
	event->parity = key;
	event->negative = -5;
	bpf_get_current_comm(event->comm, sizeof(event->comm));
	kt_submit(on_call, event);
	return 0;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
