/* SPDX-License-Identifier: MIT OR GPL-2.0 */
/*
 * What the request programs remember, and how they find the slot to charge.
 *
 *   task storage (struct kt_task)   everything about one registered thread
 *   register     (struct kt_cpu)    the part of it that the system-call path
 *                                   needs, for the thread that is on this CPU
 *   region       (struct kt_region) cells and counters, shared with the process
 *
 * The register is saved and loaded by sched_switch like a CPU register. It
 * makes a bystander's system call cost one array lookup: task storage on that
 * path costs twice as much.
 */
#ifndef KT_REQUESTS_STATE_H
#define KT_REQUESTS_STATE_H

#include <linux/bpf.h>
#include "kt_kernel.h"
#include "kt_region.h"
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

#define KT_CPUS 8192 /* set to the machine's number of possible CPUs before load */

/* Set before load: number of slots - 1, as in the regions' value size. */
const volatile __u32 kt_slot_mask = KT_SLOTS - 1;

struct kt_cpu {
	__u32 process; /* index + 1; 0: the thread on this CPU is a bystander */
	__u32 thread;
	__u64 enter_ns;  /* of the system call it is in; 0: in none */
	__u32 call;      /* number of that call */
	__u32 flags;     /* KT_INSIDE, KT_ON_SOCKET, KT_RAN_... */
	__u64 bystander; /* registers of a thread that is known to be one; 0: of nobody */
	__u32 epoch;
	__u32 pad;
	__u64 spare[3];
};

struct kt_task {
	__u32 process;
	__u32 thread;
	__u64 enter_ns;
	__u32 call;
	__u32 flags;
	__u64 off_ns; /* switched out since; 0 while on a CPU */
	__u64 cell;   /* whom it worked for then */
	__u64 wake_ns;
	__u64 run_delay_ns; /* the scheduler's own sum of run queue time, then */
	__u32 cause;
	__u32 epoch; /* of the process as a member */
};

/* A request that work in flight (a bio, a socket, a child) belongs to. */
struct kt_owner {
	__u64 cell;
	__u64 since_ns;
	__u32 process;
	__u32 epoch;
};

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct kt_task);
} kt_tasks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, KT_CPUS);
	__type(key, __u32);
	__type(value, struct kt_cpu);
} kt_cpus SEC(".maps");

/* value_size, not a type: clang emits a type used only here as a forward
 * declaration, and libbpf then cannot tell its size. */
struct kt_region_map {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__uint(key_size, 4);
	__uint(value_size, sizeof(struct kt_region));
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, KT_PROCESSES);
	__type(key, __u32);
	__array(values, struct kt_region_map);
} kt_regions SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, KT_PROCESSES);
	__type(key, __u32);
	__type(value, struct kt_member);
} kt_members SEC(".maps");

/* Which index a process has, by its tgid. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, KT_PROCESSES);
	__type(key, __u32);
	__type(value, __u32);
} kt_tgids SEC(".maps");

/* Of the system call that the thread is in: it was registered inside it. */
#define KT_INSIDE 1
/* The call has moved data on a socket. */
#define KT_ON_SOCKET 2
/* The first program for this event has run, the second has not yet. */
#define KT_RAN_EXIT 4
#define KT_RAN_SEND 8
#define KT_RAN_RECV 16
#define KT_RAN_BIO 32
#define KT_RAN_FORK 64

/*
 * Set before load: kt_..._second are attached, behind the programs whose names
 * they extend. A program at a tracepoint can lose its CPU in its middle since 7.0
 * (a46023d5616e), at one of system calls since 7.2 (439ebd5b5708), and the kernel
 * runs it for no other thread there until it goes on.
 * The second one does then what the first was not run for: to miss an event,
 * two threads must have lost the CPU within nanoseconds of code. kt_sys_enter has
 * none, for every process on the machine would pay for it: a call without its begin
 * is counted, and has no time.
 */
const volatile bool kt_second_copies = false;

/* Whether a program has the event that runs it to itself, as the second one has
 * if the first was left out. `ran`: the event's flag, in the register. */
static __always_inline bool kt_left_out(struct kt_cpu *cpu, __u32 ran, bool second)
{
	if (!second) {
		if (kt_second_copies)
			cpu->flags |= ran;
		return true;
	}
	if (!(cpu->flags & ran))
		return true;
	cpu->flags &= ~ran;
	return false;
}

/* Where a counter goes. slot is never NULL: what has no open request is charged
 * to the slots of unattributed or late work. */
struct kt_charge {
	struct kt_thread *thread;
	struct kt_slot *slot;
	struct kt_bank *bank;
};

#define KT_ADD(counter, amount) __sync_fetch_and_add(&(counter), (amount))

static __always_inline struct kt_cpu *kt_this_cpu(void)
{
	__u32 cpu = bpf_get_smp_processor_id();

	return bpf_map_lookup_elem(&kt_cpus, &cpu);
}

/* The storage of a registered thread, NULL of a bystander. The test of
 * bpf_storage saves bystanders the helper call (40 ns). */
static __always_inline struct kt_task *kt_task_of(struct task_struct *task)
{
	if (!task->bpf_storage)
		return NULL;
	return bpf_task_storage_get(&kt_tasks, task, 0, 0);
}

/* The test beside the switches and wake-ups of the whole machine. It reads the
 * pointer (5 ns): to follow one costs 2 ms of load time each, in which the
 * verifier (6.2 and later) searches all types of the kernel. */
static __always_inline bool kt_has_storage(struct task_struct *task)
{
	return BPF_CORE_READ(task, bpf_storage) != NULL;
}

static __always_inline struct kt_region *kt_region_of(__u32 process)
{
	__u32 zero = 0;
	void *region = bpf_map_lookup_elem(&kt_regions, &process);

	return region ? bpf_map_lookup_elem(region, &zero) : NULL;
}

static __always_inline struct kt_slot *kt_slot_of(struct kt_region *region, __u64 cell)
{
	struct kt_slot *slot = &region->slot[(cell & KT_CELL_SLOT) & kt_slot_mask];

	if (slot->generation != cell >> KT_CELL_GENERATION_SHIFT)
		slot = &region->slot[KT_SLOT_LATE];
	return slot;
}

/* Whether an entry is still the thread's, and not of another member that has the
 * index by now: a process that has left may have threads that nobody took off.
 * The epoch is in the cell's cache line. */
static __always_inline bool kt_entry_is_of(struct kt_thread *entry, __u32 epoch)
{
	return *(volatile __u32 *)&entry->epoch == epoch;
}

/* `cell`: whom to charge; NULL: whom the thread works for now. */
static __always_inline bool kt_charge_thread(__u32 process, __u32 thread, __u32 epoch,
					     const __u64 *cell, struct kt_charge *charge)
{
	struct kt_region *region = kt_region_of(process);
	__u64 value;

	if (!region)
		return false;
	charge->thread = &region->thread[thread & (KT_THREADS - 1)];
	if (!kt_entry_is_of(charge->thread, epoch))
		return false;
	value = cell ? *cell : *(volatile __u64 *)&charge->thread->cell;
	charge->slot = kt_slot_of(region, value);
	charge->bank = &charge->slot->bank[(value >> KT_CELL_BANK_SHIFT) & 1];
	return true;
}

static __always_inline bool kt_charge_cpu(struct kt_cpu *cpu, struct kt_charge *charge)
{
	return kt_charge_thread(cpu->process - 1, cpu->thread, cpu->epoch, NULL, charge);
}

/* Whom the thread worked for when it was switched out. It may work for another by now, if
 * the switch back was not seen. */
static __always_inline bool kt_charge_off(struct kt_task *task, struct kt_charge *charge)
{
	return kt_charge_thread(task->process, task->thread, task->epoch, &task->cell, charge);
}

static __always_inline void kt_switch_in(struct kt_cpu *cpu, struct kt_task *task, __u64 now)
{
	struct kt_charge charge;
	__u64 off = task->off_ns;
	__u64 wake = task->wake_ns;
	__u32 cause = task->cause;

	cpu->enter_ns = task->enter_ns;
	cpu->call = task->call;
	cpu->flags = task->flags;
	cpu->thread = task->thread;
	cpu->epoch = task->epoch;
	cpu->process = task->process + 1;
	if (!off || !kt_charge_off(task, &charge))
		return;
	task->off_ns = 0;
	charge.thread->off_ns = 0;
	if (cause == KT_CAUSE_PREEMPTED) {
		KT_ADD(charge.bank->run_queue_ns, now - off);
		KT_ADD(charge.bank->ctx_involuntary, 1);
		return;
	}
	if (wake < off) /* the wake-up came before the switch was seen */
		wake = now;
	if (cause >= KT_CAUSES) /* for the verifier */
		cause = KT_CAUSE_OTHER;
	KT_ADD(charge.bank->blocked_ns[cause], wake - off);
	KT_ADD(charge.bank->run_queue_ns, now - wake);
	KT_ADD(charge.bank->ctx_voluntary, 1);
	if (cause == KT_CAUSE_FAULT)
		KT_ADD(charge.bank->major_faults, 1);
	if (cause == KT_CAUSE_POLL)
		charge.thread->poll_sleep_ns = now;
}

static __always_inline __u64 kt_run_delay(struct task_struct *task)
{
	return bpf_core_field_exists(task->sched_info.run_delay) ? task->sched_info.run_delay : 0;
}

/* The switch to this task was not seen. The scheduler knows how long it waited
 * for a CPU, so that tells when it was, unless the wake-up was not seen either. */
static __always_inline void kt_switched_in_unseen(struct kt_cpu *cpu, struct task_struct *task,
						  struct kt_task *state, __u64 now)
{
	__u64 runnable = state->cause == KT_CAUSE_PREEMPTED ? state->off_ns : state->wake_ns;
	__u64 in = runnable + (kt_run_delay(task) - state->run_delay_ns);

	kt_switch_in(cpu, state, runnable && in < now ? in : now);
}

/* Not inlined: it is hardly ever called. */
static __noinline int kt_reload(struct kt_cpu *cpu)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct kt_task *state;

	if (!cpu || !kt_has_storage(task))
		return 0;
	state = bpf_task_storage_get(&kt_tasks, task, 0, 0);
	if (!state)
		return 0;
	kt_switched_in_unseen(cpu, task, state, bpf_ktime_get_ns());
	return 1;
}

/* The register, if the thread on this CPU is a registered one, else NULL.
 * The tracepoint of a switch does not fire for every switch on every kernel
 * (guests whose own agent is hidden from tracing, for one), so an empty register
 * is no proof yet. A task without any storage is one. */
static __always_inline struct kt_cpu *kt_registered_cpu(void)
{
	struct kt_cpu *cpu = kt_this_cpu();

	if (!cpu || cpu->process)
		return cpu;
	return kt_reload(cpu) ? cpu : NULL;
}

/* The same on the path of system calls, where `regs` tells threads apart: the
 * thread whose storage was asked for in vain is not asked again. */
static __always_inline struct kt_cpu *kt_calling_cpu(struct pt_regs *regs)
{
	struct kt_cpu *cpu = kt_this_cpu();

	if (!cpu || cpu->process)
		return cpu;
	if (cpu->bystander == (__u64)regs)
		return NULL;
	if (kt_reload(cpu))
		return cpu;
	cpu->bystander = (__u64)regs;
	return NULL;
}

/* The slot of the thread on this CPU; false for a bystander. */
static __always_inline bool kt_charge_current(struct kt_charge *charge)
{
	struct kt_cpu *cpu = kt_registered_cpu();

	if (!cpu)
		return false;
	return kt_charge_cpu(cpu, charge);
}

/* Remember who is current, for work that ends elsewhere. */
static __always_inline void kt_own_charged(struct kt_owner *owner, struct kt_cpu *cpu,
					   struct kt_charge *charge)
{
	owner->cell = *(volatile __u64 *)&charge->thread->cell;
	owner->process = cpu->process - 1;
	owner->epoch = cpu->epoch;
}

static __always_inline struct kt_slot *kt_slot_owned(struct kt_owner *owner)
{
	struct kt_member *member = bpf_map_lookup_elem(&kt_members, &owner->process);
	struct kt_region *region;

	/* The work outlived its process, and another has the index now. */
	if (!member || member->epoch != owner->epoch)
		return NULL;
	region = kt_region_of(owner->process);
	return region ? kt_slot_of(region, owner->cell) : NULL;
}

#endif
