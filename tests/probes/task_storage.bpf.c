/* SPDX-License-Identifier: MIT */
/* A value for the task that runs the program. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct task_struct;

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, __u64);
} notes SEC(".maps");

/* Argument: the value. */
SEC("raw_tp/sys_enter")
int note(struct bpf_raw_tracepoint_args *ctx)
{
	struct task_struct *task = bpf_get_current_task_btf();
	__u64 *value = bpf_task_storage_get(&notes, task, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);

	if (value)
		*value = ctx->args[0];
	return 0;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
