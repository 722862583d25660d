/* SPDX-License-Identifier: MIT */
/* Values with a lock; no program here takes it, tracing programs may not. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct pair {
	struct bpf_spin_lock lock;
	__u32 padding;
	__u64 first[16];
	__u64 second;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, __u32);
	__type(value, struct pair);
	__uint(max_entries, 8);
} table SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct pair);
	__uint(max_entries, 8);
} array SEC(".maps");

char LICENSE[] SEC("license") = "Dual MIT/GPL";
