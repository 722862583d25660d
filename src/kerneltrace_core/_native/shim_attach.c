/* SPDX-License-Identifier: MIT */
#include "shim_attach.h"

#include <bpf/libbpf.h>
#include <errno.h>
#include <linux/bpf.h>
#include <linux/perf_event.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define TRACE_UPROBE_MULTI 48
#define UPROBE_MULTI_RETURN 1

/* Parts of union bpf_attr, include/uapi/linux/bpf.h; the header here may be older than the kernel. */
struct tracepoint_open {
	uint64_t name;
	uint32_t program_fd;
	uint32_t padding;
};

struct link_create {
	uint32_t program_fd;
	uint32_t target;
	uint32_t attach_type;
	uint32_t flags;
	union {
		uint64_t cookie;
		struct {
			uint64_t path;
			uint64_t offsets;
			uint64_t counters;
			uint64_t cookies;
			uint32_t count;
			uint32_t flags;
			uint32_t pid;
			uint32_t padding;
		} uprobes;
	};
};

static int bpf_call(int command, void *attr, size_t size)
{
	long result = syscall(__NR_bpf, command, attr, size);

	return result < 0 ? -errno : (int)result;
}

static int hold(long descriptor, int *held)
{
	if (descriptor < 0)
		return (int)descriptor;
	*held = (int)descriptor;
	return 0;
}

void kt_descriptor_close(int *held)
{
	int descriptor = *held;

	*held = -1;
	if (descriptor >= 0)
		close(descriptor);
}

int kt_tracepoint_open(int program_fd, const char *name, int *held)
{
	struct tracepoint_open attr = { .name = (uintptr_t)name, .program_fd = program_fd };

	return hold(bpf_call(BPF_RAW_TRACEPOINT_OPEN, &attr, sizeof(attr)), held);
}

int kt_link_create(int program_fd, int target, int attach_type, uint32_t flags, uint64_t cookie,
		   int *held)
{
	struct link_create attr;

	memset(&attr, 0, sizeof(attr));
	attr.program_fd = program_fd;
	attr.target = target;
	attr.attach_type = attach_type;
	attr.flags = flags;
	attr.cookie = cookie;
	return hold(bpf_call(BPF_LINK_CREATE, &attr, sizeof(attr)), held);
}

int kt_link_uprobes(int program_fd, const char *path, const uint64_t *offsets,
		    const uint64_t *counters, const uint64_t *cookies, uint32_t count, int pid,
		    int is_return, int *held)
{
	struct link_create attr;

	memset(&attr, 0, sizeof(attr));
	attr.program_fd = program_fd;
	attr.attach_type = TRACE_UPROBE_MULTI;
	attr.uprobes.path = (uintptr_t)path;
	attr.uprobes.offsets = (uintptr_t)offsets;
	attr.uprobes.counters = (uintptr_t)counters;
	attr.uprobes.cookies = (uintptr_t)cookies;
	attr.uprobes.count = count;
	attr.uprobes.pid = pid;
	attr.uprobes.flags = is_return ? UPROBE_MULTI_RETURN : 0;
	return hold(bpf_call(BPF_LINK_CREATE, &attr, sizeof(attr)), held);
}

int kt_section_attach(const struct bpf_program *program, struct kt_held_link *held)
{
	held->process = getpid();
	held->link = bpf_program__attach(program);
	return held->link ? 0 : -errno;
}

int kt_held_link_end(struct kt_held_link *held)
{
	struct bpf_link *link = held->link;

	held->link = NULL;
	if (link && held->process != getpid())
		return close(bpf_link__fd(link)) ? -errno : 0;
	return bpf_link__destroy(link);
}

void kt_held_link_free(struct kt_held_link *held)
{
	kt_held_link_end(held);
}

int kt_perf_open(const struct kt_perf *wanted, int *held)
{
	struct perf_event_attr attr;
	long result;

	memset(&attr, 0, sizeof(attr));
	attr.size = sizeof(attr);
	attr.type = wanted->type;
	attr.config = wanted->config;
	attr.config1 = wanted->name ? (uintptr_t)wanted->name : wanted->config1;
	attr.config2 = wanted->config2;
	attr.sample_period = wanted->period; /* a union with sample_freq */
	attr.freq = !!wanted->by_frequency;
	attr.inherit = !!wanted->inherit;
	attr.inherit_thread = wanted->inherit == 1;
	attr.disabled = 1;
	result = syscall(__NR_perf_event_open, &attr, wanted->pid, wanted->cpu, -1,
			 PERF_FLAG_FD_CLOEXEC);
	return hold(result < 0 ? -errno : result, held);
}

int kt_perf_enable(int perf_fd)
{
	return ioctl(perf_fd, PERF_EVENT_IOC_ENABLE, 0) ? -errno : 0;
}

int kt_perf_set_program(int perf_fd, int program_fd)
{
	return ioctl(perf_fd, PERF_EVENT_IOC_SET_BPF, program_fd) ? -errno : 0;
}

int kt_tc_hook_create(int interface, struct kt_held_filter *held)
{
	LIBBPF_OPTS(bpf_tc_hook, hook, .ifindex = interface, .attach_point = BPF_TC_INGRESS);
	int code = bpf_tc_hook_create(&hook);

	held->made_hook = !code;
	return code == -EEXIST ? 0 : code;
}

int kt_tc_hook_destroy(int interface)
{
	LIBBPF_OPTS(bpf_tc_hook, hook, .ifindex = interface,
		    .attach_point = BPF_TC_INGRESS | BPF_TC_EGRESS);

	return bpf_tc_hook_destroy(&hook);
}

int kt_tc_attach(int interface, int egress, int program_fd, struct kt_held_filter *held)
{
	LIBBPF_OPTS(bpf_tc_hook, hook, .ifindex = interface,
		    .attach_point = egress ? BPF_TC_EGRESS : BPF_TC_INGRESS);
	LIBBPF_OPTS(bpf_tc_opts, options, .prog_fd = program_fd);
	int code = bpf_tc_attach(&hook, &options);

	if (!code) {
		held->handle = options.handle;
		held->priority = options.priority;
	}
	return code;
}

int kt_tc_detach(int interface, int egress, struct kt_held_filter *held)
{
	LIBBPF_OPTS(bpf_tc_hook, hook, .ifindex = interface,
		    .attach_point = egress ? BPF_TC_EGRESS : BPF_TC_INGRESS);
	LIBBPF_OPTS(bpf_tc_opts, options, .handle = held->handle, .priority = held->priority);

	held->handle = 0;
	return bpf_tc_detach(&hook, &options);
}
