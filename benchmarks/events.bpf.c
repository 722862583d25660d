/* SPDX-License-Identifier: MIT OR GPL-2.0 */
/* Fill a ring with records of 64 bytes, and stamp a record at each getppid of one process. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include <kerneltrace/kt_event.h>

#define AT_ONCE 2048

struct record {
	struct kt_header header;
	__u64 number;
	__u64 rest[4];
};
_Static_assert(sizeof(struct record) == 64, "a cache line");
KT_EVENT(record, 1);

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4 << 20);
} events SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 16);
} moments SEC(".maps");

KT_PROBE(fill);
KT_PROBE(stamp);

const volatile __u32 process;
const volatile __s64 call;

static __always_inline int send(void *ring, __u64 number)
{
	struct record *record = kt_reserve(fill, ring, record);

	if (!record)
		return 0;
	record->number = number;
	for (int i = 0; i < 4; i++)
		record->rest[i] = i;
	kt_submit(fill, record);
	return 1;
}

SEC("syscall")
int fill(__u64 *sent)
{
	__u64 done = 0;

	for (int i = 0; i < AT_ONCE; i++)
		done += send(&events, i);
	*sent = done;
	return 0;
}

SEC("tp_btf/sys_enter")
int BPF_PROG(stamp, void *registers, long number)
{
	if (number == call && bpf_get_current_pid_tgid() >> 32 == process)
		send(&moments, 0);
	return 0;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
