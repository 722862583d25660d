/* SPDX-License-Identifier: MIT OR GPL-2.0 */
/*
 * The kernel types that the programs read, each with the few members they need.
 *
 * preserve_access_index makes every access a CO-RE relocation: the loader puts
 * in the offset that the running kernel's BTF says. No vmlinux.h: that is
 * 130 000 lines of one kernel, and hides what is relied on.
 */
#ifndef KT_KERNEL_H
#define KT_KERNEL_H

#include <linux/types.h>
#include <stdbool.h>

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct inode {
	__u16 i_mode;
};

struct file {
	struct inode *f_inode;
};

struct fdtable {
	unsigned int max_fds;
	struct file **fd;
};

struct files_struct {
	struct fdtable *fdt;
};

struct bpf_local_storage;

struct sched_info { /* empty without CONFIG_SCHED_INFO */
	unsigned long long run_delay;
};

typedef struct {
	int counter;
} atomic_t;

struct signal_struct {
	atomic_t live; /* threads that have not begun to exit */
};

struct task_struct {
	unsigned int __state; /* 5.14, 2f064a59a11f: "state" before */
	unsigned int in_iowait : 1;
	__s32 pid;
	__s32 tgid;
	struct files_struct *files;
	struct signal_struct *signal;
	struct bpf_local_storage *bpf_storage; /* 5.11 */
	struct sched_info sched_info;
};

struct bvec_iter {
	unsigned int bi_size;
};

struct bio {
	struct bio *bi_next;
	unsigned int bi_opf;
	unsigned short bi_flags;
	struct bvec_iter bi_iter;
};

struct request {
	struct bio *bio;
};

struct sock_common {
	unsigned short skc_family;
};

struct sock {
	struct sock_common __sk_common;
	__u16 sk_protocol; /* 5.6, bf9765145b85: a bit field before */
};

#if defined(__TARGET_ARCH_x86)
struct pt_regs {
	unsigned long di;
	unsigned long orig_ax;
};
#define KT_REGS_CALL(regs) ((long)(regs)->orig_ax)
/* What a call that was rolled back (seccomp trapped it) seems to return. */
#define KT_REGS_ROLLED_BACK(regs) ((long)(regs)->orig_ax)
#define KT_REGS_ARG0(regs) ((regs)->di)
#elif defined(__TARGET_ARCH_arm64)
struct pt_regs {
	__u64 orig_x0;
	__s32 syscallno;
};
#define KT_REGS_CALL(regs) ((long)(regs)->syscallno)
#define KT_REGS_ROLLED_BACK(regs) ((long)(regs)->orig_x0)
#define KT_REGS_ARG0(regs) ((regs)->orig_x0)
#else
#error "which registers hold the system call's number and first argument on this architecture?"
#endif

#pragma clang attribute pop

struct request_queue;
struct sk_buff;
struct linux_binprm;

/* include/linux/tcp_states.h, include/linux/socket.h, include/uapi/linux/in.h */
#define KT_TCP_SYN_SENT 2
#define KT_AF_INET 2
#define KT_AF_INET6 10
#define KT_IPPROTO_TCP 6
#define KT_MSG_PEEK 2

/* include/uapi/linux/stat.h */
#define KT_S_IFMT 0170000
#define KT_S_IFSOCK 0140000
#define KT_S_IFREG 0100000
#define KT_S_IFBLK 0060000
#define KT_S_IFDIR 0040000
#define KT_S_IFIFO 0010000

/* include/linux/blk_types.h: low byte of bi_opf, and bi_flags (1 since 3.x) */
#define KT_REQ_OP_MASK 0xff
#define KT_REQ_OP_READ 0
#define KT_REQ_OP_WRITE 1
#define KT_BIO_CLONED (1 << 1)

/* include/linux/errno.h: "restart me", never seen by the program */
#define KT_ERESTART_FIRST 512
#define KT_ERESTART_LAST 516
#define KT_MAX_ERRNO 4095

#endif
