/* SPDX-License-Identifier: MIT */
/* One program for each way to attach; each counts its hits by one process, and keeps a value. */
#include <linux/bpf.h>
#include <linux/ptrace.h>
#include <asm/unistd.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

__s32 traced_tgid;
__s64 tracepoint_hits, raw_hits, btf_hits, exec_hits;
__s64 uprobe_hits, uprobe_sum, uretprobe_hits, uretprobe_sum, other_hits;
__s64 perf_hits, perf_hits_elsewhere;

static __always_inline int is_traced(void)
{
	return (__s32)(bpf_get_current_pid_tgid() >> 32) == traced_tgid;
}

static __always_inline int count(__s64 *hits)
{
	if (is_traced())
		__sync_fetch_and_add(hits, 1);
	return 0;
}

SEC("tracepoint/syscalls/sys_enter_getppid")
int on_tracepoint(void *ctx)
{
	return count(&tracepoint_hits);
}

SEC("raw_tp/sys_enter")
int on_raw(struct bpf_raw_tracepoint_args *ctx)
{
	return ctx->args[1] == __NR_getppid ? count(&raw_hits) : 0;
}

SEC("tp_btf/sys_enter")
int on_btf(__u64 *ctx)
{
	return ctx[1] == __NR_getppid ? count(&btf_hits) : 0;
}

/* Its section says nothing of a target: the spec does. */
SEC("tp_btf")
int on_any_btf(__u64 *ctx)
{
	return count(&exec_hits);
}

SEC("uprobe")
int on_uprobe(struct pt_regs *ctx)
{
	if (is_traced())
		__sync_fetch_and_add(&uprobe_sum, PT_REGS_PARM1(ctx));
	return count(&uprobe_hits);
}

SEC("uretprobe")
int on_uretprobe(struct pt_regs *ctx)
{
	if (is_traced())
		__sync_fetch_and_add(&uretprobe_sum, (int)PT_REGS_RC(ctx));
	return count(&uretprobe_hits);
}

SEC("uprobe")
int on_other(struct pt_regs *ctx)
{
	return count(&other_hits);
}

SEC("perf_event")
int on_perf_event(void *ctx)
{
	if (!is_traced())
		__sync_fetch_and_add(&perf_hits_elsewhere, 1);
	return count(&perf_hits);
}

char LICENSE[] SEC("license") = "GPL";
