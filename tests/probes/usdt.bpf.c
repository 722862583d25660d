/* SPDX-License-Identifier: MIT */
/* Static tracepoints with their arguments, and without. */
#include <linux/bpf.h>
#include <linux/ptrace.h>
#include <stdbool.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include <bpf/usdt.bpf.h>

__s32 traced_tgid;
__s64 hits, arguments, first_sum, second_sum, third_sum, plain_hits;

static __always_inline int is_traced(void)
{
	return (__s32)(bpf_get_current_pid_tgid() >> 32) == traced_tgid;
}

SEC("usdt")
int on_usdt(struct pt_regs *ctx)
{
	long value;

	if (!is_traced())
		return 0;
	__sync_fetch_and_add(&hits, 1);
	arguments = bpf_usdt_arg_cnt(ctx);
	if (!bpf_usdt_arg(ctx, 0, &value))
		__sync_fetch_and_add(&first_sum, value);
	if (!bpf_usdt_arg(ctx, 1, &value))
		__sync_fetch_and_add(&second_sum, value);
	if (!bpf_usdt_arg(ctx, 2, &value))
		__sync_fetch_and_add(&third_sum, value);
	return 0;
}

SEC("uprobe")
int on_plain(void *ctx)
{
	if (is_traced())
		__sync_fetch_and_add(&plain_hits, 1);
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
