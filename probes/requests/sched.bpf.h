/* SPDX-License-Identifier: MIT OR GPL-2.0 */
/*
 * Group sched: time off CPU and its cause, run queue, registration of threads.
 * Always loaded: it saves and loads the register that the other groups use.
 */
#ifndef KT_REQUESTS_SCHED_H
#define KT_REQUESTS_SCHED_H

#include "causes.bpf.h"
#include "members.bpf.h"

static __always_inline void kt_switch_out(struct kt_cpu *cpu, struct kt_task *task,
					  struct task_struct *prev, bool runnable, __u64 now)
{
	struct kt_region *region = kt_region_of(task->process);
	struct kt_thread *entry;

	task->enter_ns = cpu->enter_ns;
	task->call = cpu->call;
	task->flags = cpu->flags;
	task->wake_ns = 0;
	task->run_delay_ns = kt_run_delay(prev);
	task->cause = runnable ? KT_CAUSE_PREEMPTED : kt_cause_of_current();
	task->off_ns = now;
	if (!region)
		return;
	entry = &region->thread[task->thread & (KT_THREADS - 1)];
	if (!kt_entry_is_of(entry, task->epoch))
		return;
	task->cell = *(volatile __u64 *)&entry->cell;
	entry->off_ns = now;
}

static __always_inline int kt_switch(bool preempt, struct task_struct *prev,
				     struct task_struct *next, unsigned int prev_state)
{
	/* Here, and not where they are needed: the verifier comes there in many
	 * ways, and searches all types of the kernel each time. */
	void *of_prev = prev->bpf_storage, *of_next = next->bpf_storage;
	struct kt_cpu *cpu = kt_this_cpu();
	struct kt_task *task;
	__u64 now = 0;

	barrier_var(of_prev);
	barrier_var(of_next);
	if (!cpu)
		return 0;
	cpu->bystander = 0;
	task = of_prev ? bpf_task_storage_get(&kt_tasks, prev, 0, 0) : NULL;
	if (task) {
		now = bpf_ktime_get_ns();
		if (!cpu->process)
			kt_switched_in_unseen(cpu, prev, task, now);
		kt_switch_out(cpu, task, prev, preempt || !prev_state, now);
	}
	task = of_next ? bpf_task_storage_get(&kt_tasks, next, 0, 0) : NULL;
	if (task)
		kt_switch_in(cpu, task, now ?: bpf_ktime_get_ns());
	else
		cpu->process = 0;
	return 0;
}

SEC("tp_btf/sched_switch")
int BPF_PROG(kt_sched_switch, bool preempt, struct task_struct *prev, struct task_struct *next,
	     unsigned int prev_state)
{
	return kt_switch(preempt, prev, next, prev_state);
}

/* Before 5.18 (fa2c3254d7cf) the tracepoint does not say prev's state. */
SEC("tp_btf/sched_switch")
int BPF_PROG(kt_sched_switch_5_17, bool preempt, struct task_struct *prev, struct task_struct *next)
{
	return kt_switch(preempt, prev, next, BPF_CORE_READ(prev, __state));
}

SEC("tp_btf/sched_waking")
int BPF_PROG(kt_sched_waking, struct task_struct *task)
{
	struct kt_task *state = kt_task_of(task);

	if (state && state->off_ns)
		state->wake_ns = bpf_ktime_get_ns();
	return 0;
}

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct kt_owner);
} kt_children SEC(".maps");

/* Runs in the parent. A new thread of the same process is not a fork. */
static __always_inline int kt_forks(struct task_struct *child, bool second)
{
	struct kt_cpu *cpu = kt_registered_cpu();
	struct kt_charge charge;
	struct kt_owner *owner;
	struct kt_owner mine = {};

	if (child->pid != child->tgid || !cpu || !kt_left_out(cpu, KT_RAN_FORK, second) ||
	    !kt_charge_cpu(cpu, &charge))
		return 0;
	kt_own_charged(&mine, cpu, &charge);
	KT_ADD(charge.slot->forks, 1);
	owner = bpf_task_storage_get(&kt_children, child, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (owner)
		*owner = mine;
	return 0;
}

SEC("tp_btf/sched_process_fork")
int BPF_PROG(kt_sched_process_fork, struct task_struct *parent, struct task_struct *child)
{
	return kt_forks(child, false);
}

SEC("tp_btf/sched_process_fork")
int BPF_PROG(kt_sched_process_fork_second, struct task_struct *parent, struct task_struct *child)
{
	return kt_forks(child, true);
}

/* A program started by a request's child is charged to the request. A traced
 * process that becomes another program is not traced any more. */
static __always_inline int kt_executes(void)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct kt_cpu *cpu = kt_this_cpu();
	struct kt_owner *owner;
	struct kt_slot *slot;

	owner = bpf_task_storage_get(&kt_children, task, 0, 0);
	if (owner) {
		slot = kt_slot_owned(owner);
		if (slot)
			KT_ADD(slot->execs, 1);
		bpf_task_storage_delete(&kt_children, task);
	}
	if (kt_has_storage(task) && bpf_task_storage_get(&kt_tasks, task, 0, 0)) {
		bpf_task_storage_delete(&kt_tasks, task);
		if (cpu)
			cpu->process = 0;
	}
	kt_member_dies(task);
	return 0;
}

SEC("tp_btf/sched_process_exec")
int BPF_PROG(kt_sched_process_exec)
{
	return kt_executes();
}

/* Done twice it is done once. */
SEC("tp_btf/sched_process_exec")
int BPF_PROG(kt_sched_process_exec_second)
{
	return kt_executes();
}

#endif
