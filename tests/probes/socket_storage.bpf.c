/* SPDX-License-Identifier: MIT */
/* A value for each socket that user space gives one. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, __u64);
} marks SEC(".maps");

char LICENSE[] SEC("license") = "Dual MIT/GPL";
