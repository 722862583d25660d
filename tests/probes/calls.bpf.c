/* SPDX-License-Identifier: MIT */
/* Counts getppid calls of one process: something to attach whose effect is exact. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <asm/unistd.h>

/* As the initial pid namespace has it; 0: nobody. */
const volatile __s32 traced_tgid = 0;

__u64 calls;
__u64 raw_calls;

static __always_inline int is_traced(void)
{
	return (__s32)(bpf_get_current_pid_tgid() >> 32) == traced_tgid;
}

/* regs, number */
SEC("tp_btf/sys_enter")
int count_calls(__u64 *ctx)
{
	if (is_traced() && ctx[1] == __NR_getppid)
		__sync_fetch_and_add(&calls, 1);
	return 0;
}

SEC("raw_tp/sys_enter")
int count_raw_calls(struct bpf_raw_tracepoint_args *ctx)
{
	if (is_traced() && ctx->args[1] == __NR_getppid)
		__sync_fetch_and_add(&raw_calls, 1);
	return 0;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
