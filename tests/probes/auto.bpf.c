/* SPDX-License-Identifier: MIT */
/* Programs whose sections say where they belong, and some whose sections do not. */
#include <linux/bpf.h>
#include <asm/unistd.h>
#include <bpf/bpf_helpers.h>

__s32 traced_tgid;
__s64 tracepoint_hits, raw_hits, btf_hits, uprobe_hits, kprobe_hits, ksyscall_hits;

static __always_inline int count(__s64 *hits)
{
	if ((__s32)(bpf_get_current_pid_tgid() >> 32) == traced_tgid)
		__sync_fetch_and_add(hits, 1);
	return 0;
}

SEC("tp/syscalls/sys_enter_getppid")
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

SEC("uprobe/libc.so.6:getppid")
int on_uprobe(void *ctx)
{
	return count(&uprobe_hits);
}

SEC("?kprobe/vfs_read")
int on_kprobe(void *ctx)
{
	return count(&kprobe_hits);
}

SEC("?ksyscall/getppid")
int on_ksyscall(void *ctx)
{
	return count(&ksyscall_hits);
}

SEC("syscall")
int run_only(void *ctx)
{
	return 0;
}

SEC("?uprobe")
int nowhere(void *ctx)
{
	return 0;
}

SEC("?perf_event")
int no_rate(void *ctx)
{
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
