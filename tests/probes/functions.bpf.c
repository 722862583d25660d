/* SPDX-License-Identifier: MIT */
/* Kernel functions by every way to attach to them, around pread(2) and open(2). */
#include <linux/bpf.h>
#include <linux/errno.h>
#include <linux/ptrace.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

struct file;

__s32 traced_tgid;
__s64 kprobe_hits, kprobe_bytes, kretprobe_hits, kretprobe_bytes;
__s64 kprobe_multi_hits, kprobe_multi_bytes, kretprobe_multi_hits, kretprobe_multi_bytes;
__s64 fentry_hits, fentry_bytes, fexit_hits, fexit_bytes;
__s64 fmod_ret_hits, lsm_hits, denied;

static __always_inline int is_traced(void)
{
	return (__s32)(bpf_get_current_pid_tgid() >> 32) == traced_tgid;
}

static __always_inline void count(__s64 *hits, __s64 *bytes, __s64 more)
{
	if (!is_traced())
		return;
	__sync_fetch_and_add(hits, 1);
	__sync_fetch_and_add(bytes, more);
}

SEC("kprobe")
int on_kprobe(struct pt_regs *ctx)
{
	count(&kprobe_hits, &kprobe_bytes, PT_REGS_PARM3(ctx));
	return 0;
}

SEC("kretprobe")
int on_kretprobe(struct pt_regs *ctx)
{
	count(&kretprobe_hits, &kretprobe_bytes, PT_REGS_RC(ctx));
	return 0;
}

SEC("kprobe.multi/vfs_read")
int on_kprobe_multi(struct pt_regs *ctx)
{
	count(&kprobe_multi_hits, &kprobe_multi_bytes, PT_REGS_PARM3(ctx));
	return 0;
}

SEC("kretprobe.multi/vfs_read")
int on_kretprobe_multi(struct pt_regs *ctx)
{
	count(&kretprobe_multi_hits, &kretprobe_multi_bytes, PT_REGS_RC(ctx));
	return 0;
}

SEC("fentry")
int BPF_PROG(on_fentry, struct file *file, char *buffer, __u64 size)
{
	count(&fentry_hits, &fentry_bytes, size);
	return 0;
}

SEC("fexit/vfs_read")
int BPF_PROG(on_fexit, struct file *file, char *buffer, __u64 size, void *place, __s64 result)
{
	count(&fexit_hits, &fexit_bytes, result);
	return 0;
}

static __always_inline int deny(__s64 *hits)
{
	if (!is_traced() || !denied)
		return 0;
	__sync_fetch_and_add(hits, 1);
	return -EPERM;
}

SEC("fmod_ret/security_file_open")
int BPF_PROG(on_fmod_ret, struct file *file, int result)
{
	return deny(&fmod_ret_hits);
}

SEC("lsm/file_open")
int BPF_PROG(on_lsm, struct file *file)
{
	return deny(&lsm_hits);
}

char LICENSE[] SEC("license") = "GPL";
