/* SPDX-License-Identifier: MIT */
/* Programs that every verifier rejects, each for another reason. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 4);
	__type(key, __u32);
	__type(value, __u64);
} counts SEC(".maps");

SEC("?raw_tp/sys_enter")
int null_pointer(void *ctx)
{
	__u32 key = 1;
	__u64 *count = bpf_map_lookup_elem(&counts, &key);

	*count += 1; /* may be NULL */
	return 0;
}

SEC("?raw_tp/sys_enter")
int out_of_bounds(void *ctx)
{
	__u32 key = 1;
	__u64 *count = bpf_map_lookup_elem(&counts, &key);

	if (count)
		count[3] = 1; /* behind the value */
	return 0;
}

SEC("?raw_tp/sys_enter")
int unknown_helper(void *ctx)
{
	long (*helper)(void) = (void *)65535;

	return helper();
}

char LICENSE[] SEC("license") = "GPL";
