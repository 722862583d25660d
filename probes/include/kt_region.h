/* SPDX-License-Identifier: MIT OR GPL-2.0 */
/*
 * The region: memory that one traced process shares with the BPF programs.
 *
 * A region is the single element of a BPF_F_MMAPABLE array. It begins with one
 * entry per traced thread and goes on with one slot per open request. The
 * process names, with one aligned 64-bit store into its thread's cell, the slot
 * that is to be charged for what happens on that thread from now on; the
 * programs read the cell and add to the slot's counters.
 *
 * This header is read by the BPF programs, by the native binding and (as
 * requests/layout.py, compared by a test) by Python. A change of any size or
 * offset changes KT_ABI.
 */
#ifndef KT_REGION_H
#define KT_REGION_H

#include <linux/types.h>

#define KT_ABI 2

#define KT_THREADS 512 /* entries of struct kt_thread; a power of two */
#define KT_SLOTS 1024  /* slots unless the loader chooses less; a power of two */
#define KT_CALLS 96    /* kinds of system call counted apart, see kt_calls.h */

/* Slots that no request owns. A cell of 0 names the first. */
#define KT_SLOT_UNATTRIBUTED 0 /* the event loop itself, callbacks, idle threads */
#define KT_SLOT_LATE 1         /* work that outlived the request it began in */
#define KT_SLOT_FIRST 2

/* A cell: slot | bank << 31 | generation << 32. */
#define KT_CELL_SLOT 0x7fffffffU
#define KT_CELL_BANK_SHIFT 31
#define KT_CELL_GENERATION_SHIFT 32

/* Where a request's kernel time was spent: on its event loop's thread, or on
 * threads that worked for it. */
enum kt_bank_index {
	KT_BANK_LOOP,
	KT_BANK_THREADS,
	KT_BANKS,
};

/* Why a thread was off CPU. The order is the order of KernelStats.blocked_by. */
enum kt_cause {
	KT_CAUSE_OTHER,
	KT_CAUSE_DISK,
	KT_CAUSE_NET,
	KT_CAUSE_LOCK,
	KT_CAUSE_SLEEP,
	KT_CAUSE_PIPE,
	KT_CAUSE_POLL,
	KT_CAUSE_FAULT,
	KT_CAUSE_CHILD,
	KT_CAUSES,
	KT_CAUSE_PREEMPTED = 15, /* not blocked: run queue time only */
};

struct kt_thread {
	__u64 cell;          /* written by the thread itself, by nobody else */
	__u64 poll_ns;       /* last return of a poll call (0: not measured) */
	__u64 poll_sleep_ns; /* end of the last poll call that slept */
	__u64 off_ns;        /* off CPU since; 0 while on one */
	__u32 epoch;         /* of the member that registered it; another's is not charged */
	__u32 pad;
	__u64 spare[3];
};

struct kt_bank {
	__u64 run_queue_ns;
	__u64 ctx_voluntary;
	__u64 ctx_involuntary;
	__u64 faults; /* minor and major */
	__u64 major_faults;
	__u64 spare[2];
	__u64 blocked_ns[KT_CAUSES];
};

struct kt_call {
	__u64 calls;
	__u64 errors;
	__u64 ns;
};

struct kt_slot {
	__u32 generation; /* equal to the cell's, or the work is late */
	__u32 pad;
	__u64 read_bytes;
	__u64 write_bytes;
	__u64 net_rx_bytes;
	__u64 net_tx_bytes;
	__u64 disk_reads;
	__u64 disk_writes;
	__u64 disk_read_bytes;
	__u64 disk_write_bytes;
	__u64 disk_ns;
	__u64 tcp_retransmits;
	__u64 execs;
	__u64 forks;
	__u64 spare[3];
	struct kt_bank bank[KT_BANKS];
	struct kt_call call[KT_CALLS];
};

struct kt_region {
	struct kt_thread thread[KT_THREADS];
	struct kt_slot slot[KT_SLOTS];
};

/*
 * Members: the processes that share the loaded programs. A member has an index,
 * the same in the map of members and in the map of regions, and keeps it until
 * the kernel sees it exit or become another program.
 */
#define KT_PROCESSES 256

enum kt_member_state {
	KT_MEMBER_FREE,
	KT_MEMBER_LIVE,
	KT_MEMBER_LEFT,  /* lives, and has given up its region; it alone may take it again */
	KT_MEMBER_DEAD,  /* may be taken by anybody with the key */
	KT_MEMBER_TAKEN, /* being taken */
};

struct kt_member {
	__u32 state;
	__u32 tgid;  /* as the first pid namespace has it */
	__u32 epoch; /* counts the members that had this index: what names an older one is stale */
	__u32 pad;
	__u64 key; /* who does not know it cannot take the index */
	__u64 since_ns;
};

enum kt_act {
	KT_ACT_REGISTER, /* the calling thread, at an entry of its process's region */
	KT_ACT_LEAVE,    /* the calling thread */
	KT_ACT_JOIN,     /* the calling process takes an index */
	KT_ACT_QUIT,     /* the calling process keeps its index, and is not charged any more */
};

/* Argument of the SEC("syscall") program that processes and their threads run. */
struct kt_registration {
	__u32 process; /* index of the member */
	__u32 thread;  /* index of the thread's entry in the region */
	__u32 act;
	__u32 done;  /* written by the program: 1 if it did */
	__u64 key;   /* for KT_ACT_JOIN */
	__u32 epoch; /* written by KT_ACT_JOIN; above 1 the index had another member before */
	__u32 pad;
};

_Static_assert(sizeof(struct kt_thread) == 64, "abi");
_Static_assert(sizeof(struct kt_bank) == 128, "abi");
_Static_assert(sizeof(struct kt_call) == 24, "abi");
_Static_assert(sizeof(struct kt_slot) == 2688, "abi");
_Static_assert(sizeof(struct kt_member) == 32, "abi");
_Static_assert(sizeof(struct kt_registration) == 32, "abi");

#endif
