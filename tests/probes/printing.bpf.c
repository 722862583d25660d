/* SPDX-License-Identifier: MIT */
/* Writes lines to the trace log when a test runs it. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#define MOST 64

/* Arguments: how many lines; a number that the test knows them by. */
SEC("raw_tp/sys_enter")
int print(struct bpf_raw_tracepoint_args *ctx)
{
	for (__u32 i = 0; i < MOST && i < ctx->args[0]; i++)
		bpf_printk("kerneltrace %llu: line %u", ctx->args[1], i);
	return 0;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
