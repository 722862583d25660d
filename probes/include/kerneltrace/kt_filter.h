/* SPDX-License-Identifier: MIT OR GPL-2.0 */
/*
 * Whose events a session wants: processes, threads, control groups, users.
 *
 *	#include <kerneltrace/kt_event.h>
 *	#include <kerneltrace/kt_filter.h>
 *
 *	if (!kt_wanted(trace_open))
 *		return 0;
 *
 * asks about the task that runs now, so is for programs that run on behalf of one (not XDP, TC).
 * Python writes the maps, before the first program is attached and whenever it likes; a change
 * holds from the next event on. As long as it wrote nothing, everything is wanted.
 *
 * Process and thread numbers are those that the session's pid namespace has for them: its own
 * tasks and those of namespaces within. User numbers are those of the initial user namespace.
 *
 * Least kernel: 5.5. clang 12. This header brings six maps (about 500 KB) and three programs,
 * which are loaded only by a session that follows forks.
 */
#ifndef KERNELTRACE_KT_FILTER_H
#define KERNELTRACE_KT_FILTER_H

#include <kerneltrace/kt_event.h>
#include <bpf/bpf_core_read.h>

/* struct kt_filter.flags: what of a task must be in the set of that kind; 0: anything goes. */
#define KT_FILTER_TGIDS 1
#define KT_FILTER_TIDS 2
#define KT_FILTER_CGROUPS 4
#define KT_FILTER_UIDS 8
/* Children of processes in the set join it. */
#define KT_FILTER_FOLLOW 16

struct kt_filter {
	__u32 flags;
	__u32 pid_namespace; /* its inode number, as /proc/self/ns/pid has it */
	__u64 unfollowed;    /* processes for which kt_filter_tgids had no room */
};
_Static_assert(sizeof(struct kt_filter) == 16, "abi: struct kt_filter");

/* Python writes the first element, the programs count in the second. */
#define KT_FILTER_SETTINGS 0
#define KT_FILTER_LOSSES 1

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, struct kt_filter);
} kt_filter SEC(".maps");

/*
 * Sets, preallocated as tracing programs want them before 6.1. The value of a process is the one
 * that Python named and that it descends from, maybe itself; other values say nothing.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__type(value, __u32);
} kt_filter_tgids SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, __u32);
	__type(value, __u8);
} kt_filter_tids SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 256);
	__type(key, __u64);
	__type(value, __u8);
} kt_filter_cgroups SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 256);
	__type(key, __u32);
	__type(value, __u8);
} kt_filter_uids SEC(".maps");

/* Processes that end: from their number in the initial pid namespace to that in kt_filter_tgids. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, __u32);
	__type(value, __u32);
} kt_filter_ended SEC(".maps");

/* The few members that are read; what stands behind ___ is nothing to the loader. */
#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct ns_common___kt {
	unsigned int inum;
};

struct pid_namespace___kt {
	struct ns_common___kt ns;
};

struct upid___kt {
	int nr;
	struct pid_namespace___kt *ns;
};

struct pid___kt {
	unsigned int level;
	struct upid___kt numbers[1]; /* level + 1 of them */
};

struct atomic___kt {
	int counter;
};

struct signal_struct___kt {
	struct atomic___kt live;
};

struct kernfs_node___kt {
	__u64 id;
};

struct cgroup___kt;

struct cgroup_subsys_state___kt {
	struct cgroup___kt *cgroup;
	struct cgroup_subsys_state___kt *parent;
};

struct cgroup___kt {
	struct cgroup_subsys_state___kt self;
	struct kernfs_node___kt *kn;
};

struct css_set___kt {
	struct cgroup___kt *dfl_cgrp;
};

struct task_struct___kt {
	__u32 pid;
	__u32 tgid;
	struct task_struct___kt *group_leader;
	struct pid___kt *thread_pid;
	struct signal_struct___kt *signal;
	struct css_set___kt *cgroups;
};

#pragma clang attribute pop

/* include/linux/proc_ns.h, and MAX_PID_NS_LEVEL of include/linux/pid_namespace.h */
#define KT_INITIAL_PID_NAMESPACE 0xEFFFFFFCu
#define KT_PID_LEVELS 33
/* How many control groups are asked: a task's own and those around it. */
#define KT_CGROUP_LEVELS 32

#define KT_MAYBE_UNUSED __attribute__((unused))

/* A task's numbers in one pid namespace; 0 where it has none there. */
struct kt_ids {
	__u32 tgid;
	__u32 tid;
};

static __always_inline struct upid___kt *kt_number_at(struct pid___kt *pid, __u32 level)
{
	void *first = __builtin_preserve_access_index(&pid->numbers[0]);

	return first + level * bpf_core_type_size(struct upid___kt);
}

static __noinline KT_MAYBE_UNUSED __u64 kt_ids_in(struct task_struct___kt *task, __u32 inum)
{
	struct pid___kt *pid = BPF_CORE_READ(task, thread_pid);
	__u32 deepest = BPF_CORE_READ(pid, level);

/* From its own namespace outwards: mostly the first one is the session's. */
#pragma clang loop unroll(disable)
	for (__u32 step = 0; step < KT_PID_LEVELS && step <= deepest; step++) {
		__u32 level = deepest - step;
		struct upid___kt *number = kt_number_at(pid, level);
		struct pid___kt *leader;
		__u32 tid;

		if (BPF_CORE_READ(number, ns, ns.inum) != inum)
			continue;
		tid = BPF_CORE_READ(number, nr);
		/* Threads of a process are in one namespace. */
		leader = BPF_CORE_READ(task, group_leader, thread_pid);
		number = kt_number_at(leader, level);
		return (__u64)BPF_CORE_READ(number, nr) << 32 | tid;
	}
	return 0;
}

static __always_inline struct kt_ids kt_current_ids(__u32 inum)
{
	__u64 both = bpf_get_current_pid_tgid();

	if (inum != KT_INITIAL_PID_NAMESPACE)
		both = kt_ids_in((void *)bpf_get_current_task(), inum);
	return (struct kt_ids){ .tgid = both >> 32, .tid = both };
}

/*
 * From the task's control group of version 2 outwards. Not bpf_get_current_ancestor_cgroup_id:
 * tracing programs have it since 5.12, 95b861a7935b.
 */
static __noinline KT_MAYBE_UNUSED int kt_cgroup_is_wanted(void)
{
	struct task_struct___kt *task = (void *)bpf_get_current_task();
	struct cgroup_subsys_state___kt *state;
	struct cgroup___kt *own;

	if (!bpf_core_field_exists(task->cgroups)) /* without CONFIG_CGROUPS */
		return 0;
	own = BPF_CORE_READ(task, cgroups, dfl_cgrp);
	state = __builtin_preserve_access_index(&own->self);
#pragma clang loop unroll(disable)
	for (int level = 0; level < KT_CGROUP_LEVELS && state; level++) {
		__u64 id = BPF_CORE_READ(state, cgroup, kn, id);

		if (bpf_map_lookup_elem(&kt_filter_cgroups, &id))
			return 1;
		state = BPF_CORE_READ(state, parent);
	}
	return 0;
}

/* Every kind that is asked for has to fit. */
static __noinline KT_MAYBE_UNUSED int kt_current_is_wanted(__u32 flags, __u32 inum)
{
	if (flags & (KT_FILTER_TGIDS | KT_FILTER_TIDS)) {
		struct kt_ids ids = kt_current_ids(inum);

		if (flags & KT_FILTER_TGIDS && !bpf_map_lookup_elem(&kt_filter_tgids, &ids.tgid))
			return 0;
		if (flags & KT_FILTER_TIDS && !bpf_map_lookup_elem(&kt_filter_tids, &ids.tid))
			return 0;
	}
	if (flags & KT_FILTER_UIDS) {
		__u32 uid = bpf_get_current_uid_gid();

		if (!bpf_map_lookup_elem(&kt_filter_uids, &uid))
			return 0;
	}
	return !(flags & KT_FILTER_CGROUPS) || kt_cgroup_is_wanted();
}

static __always_inline struct kt_filter *kt_filter_at(__u32 key)
{
	return bpf_map_lookup_elem(&kt_filter, &key);
}

static __always_inline int kt_is_wanted(void)
{
	struct kt_filter *filter = kt_filter_at(KT_FILTER_SETTINGS);

	if (!filter || !filter->flags)
		return 1;
	return kt_current_is_wanted(filter->flags, filter->pid_namespace);
}

/* Whether the session wants the events of the task that runs now; counted as filtered if not. */
#define kt_wanted(program) \
	({ \
		int kt_yes = kt_is_wanted(); \
		if (!kt_yes) \
			kt_count(program, filtered); \
		kt_yes; \
	})

/*
 * Children of wanted processes, from before their first instruction on. The argument of a
 * tp_btf program is the tracepoint's: parent, child.
 */
SEC("?tp_btf/sched_process_fork")
int kt_follow_fork(__u64 *ctx)
{
	struct task_struct___kt *child = (void *)ctx[1];
	struct kt_filter *filter = kt_filter_at(KT_FILTER_SETTINGS);
	__u32 *named, root, parent, tgid;

	if (!filter || !(filter->flags & KT_FILTER_FOLLOW))
		return 0;
	parent = kt_current_ids(filter->pid_namespace).tgid;
	tgid = kt_ids_in(child, filter->pid_namespace) >> 32;
	/* A new thread of the same process is none of ours. */
	if (!tgid || tgid == parent)
		return 0;
	named = bpf_map_lookup_elem(&kt_filter_tgids, &parent);
	if (!named) {
		/* A stranger, whose number may be that of one who was wanted and is no more. */
		bpf_map_delete_elem(&kt_filter_tgids, &tgid);
		return 0;
	}
	root = *named;
	if (bpf_map_update_elem(&kt_filter_tgids, &tgid, &root, BPF_ANY)) {
		filter = kt_filter_at(KT_FILTER_LOSSES);
		if (filter)
			__sync_fetch_and_add(&filter->unfollowed, 1);
	}
	return 0;
}

/*
 * A process leaves the set when nothing of it can happen any more, which is some time after its
 * last thread came by here: then its number in the session's namespace is still known.
 */
SEC("?tp_btf/sched_process_exit")
int kt_follow_exit(__u64 *ctx)
{
	struct task_struct___kt *task = (void *)ctx[0];
	struct kt_filter *filter = kt_filter_at(KT_FILTER_SETTINGS);
	__u32 tgid, initial = bpf_get_current_pid_tgid() >> 32;

	if (!filter || !(filter->flags & KT_FILTER_FOLLOW))
		return 0;
	if (BPF_CORE_READ(task, signal, live.counter))
		return 0;
	tgid = kt_current_ids(filter->pid_namespace).tgid;
	if (!bpf_map_lookup_elem(&kt_filter_tgids, &tgid))
		return 0;
	if (bpf_map_update_elem(&kt_filter_ended, &initial, &tgid, BPF_ANY))
		bpf_map_delete_elem(&kt_filter_tgids, &tgid);
	return 0;
}

SEC("?tp_btf/sched_process_free")
int kt_follow_free(__u64 *ctx)
{
	struct task_struct___kt *task = (void *)ctx[0];
	__u32 initial = BPF_CORE_READ(task, tgid), *tgid, ended;

	if (BPF_CORE_READ(task, pid) != initial)
		return 0;
	tgid = bpf_map_lookup_elem(&kt_filter_ended, &initial);
	if (!tgid)
		return 0;
	ended = *tgid;
	bpf_map_delete_elem(&kt_filter_tgids, &ended);
	bpf_map_delete_elem(&kt_filter_ended, &initial);
	return 0;
}

#endif
