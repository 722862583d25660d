/* SPDX-License-Identifier: MIT */
/* Maps of every kind, and programs that do known things with them when a test runs one. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

enum color { RED = 1, GREEN = 2 };

struct flow {
	__u32 address;
	__u16 port;
	__u8 protocol;
	char name[9];
};

struct totals {
	__u64 bytes;
	__u32 packets;
	enum color color;
	__s32 parts[3];
};
_Static_assert(sizeof(struct totals) == 32, "with 4 bytes of padding at the end");

struct three {
	__u32 numbers[3];
};

struct prefix {
	__u32 bits;
	__u8 address[4];
};

#define MAP(kind, type_of_key, type_of_value, entries) \
	struct { \
		__uint(type, BPF_MAP_TYPE_##kind); \
		__type(key, type_of_key); \
		__type(value, type_of_value); \
		__uint(max_entries, entries); \
	}

MAP(HASH, struct flow, struct totals, 64) flows SEC(".maps");
MAP(HASH, __u32, __u64, 4) few SEC(".maps");
MAP(ARRAY, __u32, __u64, 16) results SEC(".maps");
MAP(PERCPU_ARRAY, __u32, __u64, 4) slots_here SEC(".maps");
MAP(PERCPU_ARRAY, __u32, struct three, 4) threes_here SEC(".maps");
MAP(PERCPU_HASH, __u32, struct three, 8) threes_by_key SEC(".maps");
MAP(ARRAY, __u32, __u64, 16) latencies SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct three);
	__uint(max_entries, 1000);
} shared SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct prefix);
	__type(value, __u32);
	__uint(max_entries, 16);
} routes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_QUEUE);
	__type(value, __u64);
	__uint(max_entries, 3);
} line SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_STACK);
	__type(value, __u64);
	__uint(max_entries, 3);
} pile SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_STACK_TRACE);
	__uint(key_size, 4);
	__uint(value_size, 32 * 8);
	__uint(max_entries, 64);
} stacks SEC(".maps");

struct inner {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, 2);
} first_inner SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__type(key, __u32);
	__uint(max_entries, 4);
	__array(values, struct inner);
} by_index SEC(".maps") = { .values = { [1] = &first_inner } };

struct {
	__uint(type, BPF_MAP_TYPE_HASH_OF_MAPS);
	__type(key, __u64);
	__uint(max_entries, 4);
	__array(values, struct inner);
} by_key SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(key_size, 4);
	__uint(value_size, 4);
	__uint(max_entries, 4);
} jumps SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} ring SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERF_EVENT_ARRAY);
	__uint(key_size, 4);
	__uint(value_size, 4);
} perf SEC(".maps");

static __always_inline void tell(__u32 index, __u64 value)
{
	bpf_map_update_elem(&results, &index, &value, BPF_ANY);
}

/* Arguments: key, what to add. On the CPU that runs it, to all per-CPU maps. */
SEC("raw_tp/sys_enter")
int add_here(struct bpf_raw_tracepoint_args *ctx)
{
	__u32 key = ctx->args[0], by = ctx->args[1];
	struct three *three, fresh = {};
	__u64 *slot = bpf_map_lookup_elem(&slots_here, &key);

	if (slot)
		*slot += by;
	three = bpf_map_lookup_elem(&threes_here, &key);
	if (three) {
		three->numbers[0] += by;
		three->numbers[2] += 2 * by;
	}
	bpf_map_update_elem(&threes_by_key, &key, &fresh, BPF_NOEXIST);
	three = bpf_map_lookup_elem(&threes_by_key, &key);
	if (three) {
		three->numbers[0] += by;
		three->numbers[2] += 3 * by;
	}
	tell(0, bpf_get_smp_processor_id());
	return 0;
}

/* Stores a known entry, and tells what it finds under the key that user space is to have stored. */
SEC("raw_tp/sys_enter")
int exchange_flow(struct bpf_raw_tracepoint_args *ctx)
{
	struct flow mine = { .address = 0x0100007f, .port = 80, .protocol = 6, .name = "kernel" };
	struct flow theirs = { .address = 0x0200007f, .port = 443, .protocol = 17, .name = "user" };
	struct totals totals = {
		.bytes = 1ULL << 40, .packets = 7, .color = GREEN, .parts = { -1, 0, 1 }
	};
	struct totals *found = bpf_map_lookup_elem(&flows, &theirs);

	bpf_map_update_elem(&flows, &mine, &totals, BPF_ANY);
	if (!found)
		return 0;
	tell(1, found->bytes);
	tell(2, found->packets);
	tell(3, found->color);
	tell(4, (__u64)(__s64)found->parts[1]);
	return 0;
}

/* Argument: an address in network byte order, as it lies in memory. */
SEC("raw_tp/sys_enter")
int route(struct bpf_raw_tracepoint_args *ctx)
{
	struct prefix key = { .bits = 32 };
	__u32 address = ctx->args[0], *found;

	__builtin_memcpy(key.address, &address, sizeof(address));
	found = bpf_map_lookup_elem(&routes, &key);
	tell(0, found ? *found : ~0ULL);
	return 0;
}

/* Takes one value out of the queue and pushes two: 70 and 71; pushes 80 and 81 on the stack. */
SEC("raw_tp/sys_enter")
int push_and_pop(struct bpf_raw_tracepoint_args *ctx)
{
	__u64 value = 0;

	bpf_map_pop_elem(&line, &value);
	tell(0, value);
	value = 70;
	bpf_map_push_elem(&line, &value, 0);
	value = 71;
	bpf_map_push_elem(&line, &value, 0);
	value = 80;
	bpf_map_push_elem(&pile, &value, 0);
	value = 81;
	bpf_map_push_elem(&pile, &value, 0);
	return 0;
}

SEC("raw_tp/sys_enter")
int keep_stack(struct bpf_raw_tracepoint_args *ctx)
{
	tell(0, (__s64)bpf_get_stackid(ctx, &stacks, 0));
	/* Forbidden flags, for a failure with a known name. */
	tell(1, (__s64)bpf_get_stackid(ctx, &stacks, 1ULL << 20));
	return 0;
}

/* Arguments: index in by_index, key in by_key. Adds 1 to element 0 of each inner map. */
SEC("raw_tp/sys_enter")
int add_inside(struct bpf_raw_tracepoint_args *ctx)
{
	__u32 index = ctx->args[0], zero = 0;
	__u64 key = ctx->args[1], *slot;
	void *inner = bpf_map_lookup_elem(&by_index, &index);

	if (inner) {
		slot = bpf_map_lookup_elem(inner, &zero);
		if (slot)
			*slot += 1;
	}
	inner = bpf_map_lookup_elem(&by_key, &key);
	if (inner) {
		slot = bpf_map_lookup_elem(inner, &zero);
		if (slot)
			*slot += 1;
	}
	return 0;
}

SEC("raw_tp/sys_enter")
int landed(struct bpf_raw_tracepoint_args *ctx)
{
	tell(0, 1);
	return 0;
}

SEC("raw_tp/sys_enter")
int jump(struct bpf_raw_tracepoint_args *ctx)
{
	tell(0, 0);
	bpf_tail_call(ctx, &jumps, 2);
	tell(0, 2);
	return 0;
}

/* Reads what user space wrote through memory, and writes back. */
SEC("raw_tp/sys_enter")
int through_memory(struct bpf_raw_tracepoint_args *ctx)
{
	__u32 index = 999;
	struct three *three = bpf_map_lookup_elem(&shared, &index);

	if (!three)
		return 0;
	tell(0, three->numbers[1]);
	three->numbers[2] = three->numbers[1] + 1;
	return 0;
}

/* Argument: a latency, counted in its power of two. */
SEC("raw_tp/sys_enter")
int measure(struct bpf_raw_tracepoint_args *ctx)
{
	__u64 value = ctx->args[0], *count;
	__u32 slot = 0;

	for (int i = 0; i < 15; i++)
		if (value >> (slot + 1))
			slot++;
	count = bpf_map_lookup_elem(&latencies, &slot);
	if (count)
		__sync_fetch_and_add(count, 1);
	return 0;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
