/* SPDX-License-Identifier: MIT OR GPL-2.0 */
/*
 * Who shares these programs: processes join and leave by running kt_register in
 * their own context, so that the kernel, not a number that they give, says who
 * they are. Their death is seen here, whatever they died of.
 */
#ifndef KT_REQUESTS_MEMBERS_H
#define KT_REQUESTS_MEMBERS_H

#include "state.bpf.h"

#define kt_barrier() asm volatile("" ::: "memory")

static __always_inline void kt_member_ends(__u32 tgid)
{
	__u32 *index = bpf_map_lookup_elem(&kt_tgids, &tgid);
	struct kt_member *member;

	if (!index)
		return;
	member = bpf_map_lookup_elem(&kt_members, index);
	if (member && member->tgid == tgid) {
		member->tgid = 0;
		kt_barrier(); /* from then on it is another's */
		member->state = KT_MEMBER_DEAD;
	}
	bpf_map_delete_elem(&kt_tgids, &tgid);
}

static __always_inline void kt_member_dies(struct task_struct *task)
{
	__u32 tgid = task->tgid;

	kt_member_ends(tgid);
}

/* Runs for each thread; the last one to go takes the process with it. */
static __always_inline int kt_exits(struct task_struct *task)
{
	if (BPF_CORE_READ(task, signal, live.counter) == 0)
		kt_member_dies(task);
	return 0;
}

SEC("tp_btf/sched_process_exit")
int BPF_PROG(kt_sched_process_exit, struct task_struct *task)
{
	return kt_exits(task);
}

/* See kt_second_copies. Done twice it is done once. */
SEC("tp_btf/sched_process_exit")
int BPF_PROG(kt_sched_process_exit_second, struct task_struct *task)
{
	return kt_exits(task);
}

/* May be run by several processes at once: the exchange decides. */
static __always_inline void kt_join(struct kt_registration *request, __u32 tgid)
{
	__u32 process = request->process;
	struct kt_member *member = bpf_map_lookup_elem(&kt_members, &process);
	__u32 *index, state;

	if (!member || member->key != request->key)
		return;
	index = bpf_map_lookup_elem(&kt_tgids, &tgid);
	if (!index || *index != process) {
		state = member->state;
		if (state != KT_MEMBER_FREE && state != KT_MEMBER_DEAD)
			return;
		if (__sync_val_compare_and_swap(&member->state, state, KT_MEMBER_TAKEN) != state)
			return;
		/* A process has one index. */
		kt_member_ends(tgid);
		member->tgid = tgid;
		if (bpf_map_update_elem(&kt_tgids, &tgid, &process, BPF_ANY)) {
			member->tgid = 0;
			member->state = state;
			return;
		}
	}
	member->epoch++;
	member->since_ns = bpf_ktime_get_ns();
	kt_barrier();
	member->state = KT_MEMBER_LIVE;
	request->epoch = member->epoch;
	request->done = 1;
}

static __always_inline void kt_register_thread(struct kt_registration *request,
					       struct kt_member *member, struct kt_cpu *cpu,
					       struct task_struct *task)
{
	struct kt_region *region = kt_region_of(request->process);
	struct kt_task *state;

	if (!region)
		return;
	state = bpf_task_storage_get(&kt_tasks, task, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (!state)
		return;
	state->process = request->process;
	state->thread = request->thread;
	state->epoch = member->epoch;
	state->enter_ns = 0; /* as in the register, for this may lose its CPU before it is that */
	state->flags = KT_INSIDE;
	state->off_ns = 0; /* of an earlier registration, if that was given up elsewhere */
	state->wake_ns = 0;
	region->thread[request->thread & (KT_THREADS - 1)].epoch = member->epoch;
	cpu->enter_ns = 0;
	cpu->flags = KT_INSIDE;
	cpu->thread = request->thread;
	cpu->epoch = member->epoch;
	cpu->process = request->process + 1;
	request->done = 1;
}

/* Run by a thread itself: the kernel, not a thread id, says which thread it is. */
SEC("syscall")
int kt_register(struct kt_registration *request)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct kt_cpu *cpu = kt_this_cpu();
	__u32 process = request->process;
	__u32 tgid = task->tgid;
	struct kt_member *member;

	request->done = 0;
	if (!cpu)
		return 0;
	if (request->act == KT_ACT_LEAVE) {
		bpf_task_storage_delete(&kt_tasks, task);
		cpu->process = 0;
		request->done = 1;
		return 0;
	}
	if (request->act == KT_ACT_JOIN) {
		kt_join(request, tgid);
		return 0;
	}
	member = bpf_map_lookup_elem(&kt_members, &process);
	if (!member || member->tgid != tgid || member->state != KT_MEMBER_LIVE)
		return 0;
	if (request->act == KT_ACT_QUIT) {
		member->epoch++;
		member->state = KT_MEMBER_LEFT;
		request->done = 1;
	} else if (request->act == KT_ACT_REGISTER) {
		kt_register_thread(request, member, cpu, task);
	}
	return 0;
}

#endif
