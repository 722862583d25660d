/* SPDX-License-Identifier: MIT OR GPL-2.0 */
/* Why a thread that is being switched out blocks, and what a descriptor is. */
#ifndef KT_REQUESTS_CAUSES_H
#define KT_REQUESTS_CAUSES_H

#include "state.bpf.h"
#include "kt_calls.h"
#include <asm/unistd.h>

#define KT_CALL_NUMBERS 512

struct kt_call_info {
	__u8 index;
	__u8 cause;
	__u16 flags;
};

/* Calls that asm-generic (arm64, riscv) does without. Their entries land beyond
 * the numbers that are looked up. */
#define KT_NO_NUMBER KT_CALL_NUMBERS
#ifndef __NR_open
#define __NR_open KT_NO_NUMBER
#define __NR_creat KT_NO_NUMBER
#define __NR_stat KT_NO_NUMBER
#define __NR_lstat KT_NO_NUMBER
#define __NR_access KT_NO_NUMBER
#define __NR_readlink KT_NO_NUMBER
#define __NR_unlink KT_NO_NUMBER
#define __NR_rename KT_NO_NUMBER
#define __NR_mkdir KT_NO_NUMBER
#define __NR_rmdir KT_NO_NUMBER
#define __NR_pause KT_NO_NUMBER
#define __NR_poll KT_NO_NUMBER
#define __NR_select KT_NO_NUMBER
#define __NR_epoll_wait KT_NO_NUMBER
#define __NR_fork KT_NO_NUMBER
#define __NR_vfork KT_NO_NUMBER
#endif
#ifndef __NR_renameat
#define __NR_renameat KT_NO_NUMBER
#endif
#ifndef __NR_newfstatat
#define __NR_newfstatat KT_NO_NUMBER
#endif

#pragma clang diagnostic push
#pragma clang diagnostic ignored "-Winitializer-overrides"
#define KT_CALL_ENTRY(name, cause_, flags_) \
	[__NR_##name] = { KT_CALL_##name, KT_CAUSE_##cause_, flags_ },
const struct kt_call_info kt_call_infos[KT_CALL_NUMBERS + 1] = { KT_CALL_LIST(KT_CALL_ENTRY) };
#pragma clang diagnostic pop

static __always_inline const struct kt_call_info *kt_call_info(__u32 number)
{
	/* A mask bounds it for the verifier; it also takes off the bit that marks
	 * the x32 ABI, whose numbers mean the same. */
	return &kt_call_infos[number & (KT_CALL_NUMBERS - 1)];
}

/* The S_IFMT bits of a descriptor of task, 0 if it has none such. */
static __always_inline __u16 kt_descriptor_kind(struct task_struct *task, __u64 descriptor)
{
	/* Read, not followed: see kt_has_storage. */
	struct fdtable *table = BPF_CORE_READ(task, files, fdt);
	struct file **files, *file = NULL;

	if (!table || descriptor >= BPF_CORE_READ(table, max_fds))
		return 0;
	files = BPF_CORE_READ(table, fd);
	if (bpf_probe_read_kernel(&file, sizeof(file), &files[(__u32)descriptor]) || !file)
		return 0;
	return BPF_CORE_READ(file, f_inode, i_mode) & KT_S_IFMT;
}

/*
 * Why the current thread is about to block: at sched_switch it is still the one
 * that is switched out. Global, so that the verifier looks at it by itself and
 * not once for each way that leads here, which takes milliseconds of load time.
 *
 * Order matters. A page fault inside a system call shows that call's registers,
 * so the wait's own in_iowait is asked before the descriptor; a pipe or socket
 * in I/O wait is the fault of a page that had to be read.
 */
__noinline int kt_cause_of_current(void)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct pt_regs *regs = (struct pt_regs *)bpf_task_pt_regs(task);
	long number = KT_REGS_CALL(regs);
	const struct kt_call_info *info;
	bool io_wait;
	__u16 kind = 0;

	if (number < 0)
		return KT_CAUSE_FAULT;
	info = kt_call_info(number);
	if (info->cause == KT_CAUSE_POLL)
		return KT_CAUSE_POLL;
	if (info->flags & KT_CALL_FD)
		kind = kt_descriptor_kind(task, KT_REGS_ARG0(regs));
	/* A bit field: a direct read has no offset that the verifier accepts. */
	io_wait = BPF_CORE_READ_BITFIELD_PROBED(task, in_iowait);
	if (io_wait)
		return kind == KT_S_IFSOCK || kind == KT_S_IFIFO ? KT_CAUSE_FAULT : KT_CAUSE_DISK;
	switch (kind) {
	case KT_S_IFSOCK:
		return KT_CAUSE_NET;
	case KT_S_IFIFO:
		return KT_CAUSE_PIPE;
	case KT_S_IFREG:
	case KT_S_IFBLK:
	case KT_S_IFDIR:
		return KT_CAUSE_DISK;
	}
	return info->cause;
}

#endif
