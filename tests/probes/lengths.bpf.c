/* SPDX-License-Identifier: MIT */
/* Records of every length from their struct's on, through a perf buffer. */
#include <kerneltrace/kt_event.h>
#include <kerneltrace/kt_filter.h>
#include <asm/unistd.h>

#define MOST 16

struct text_event {
	struct kt_header header;
	__u32 length;
	char text[]; /* flexible, and before the end that sizeof says */
};
KT_EVENT(text_event, 1);

struct plain_event {
	struct kt_header header;
	__u64 number;
};
KT_EVENT(plain_event, 2);
KT_PROBE(on_call);

struct {
	__uint(type, BPF_MAP_TYPE_PERF_EVENT_ARRAY);
	__uint(key_size, 4);
	__uint(value_size, 4);
} events SEC(".maps");

__u64 calls;

SEC("tp_btf/sys_enter")
int on_call(__u64 *ctx)
{
	struct {
		struct kt_header header;
		__u32 length;
		char text[MOST];
	} sent = {};
	struct plain_event plain = {};
	__u64 length = calls & (MOST - 1);
	/* One too short, by fewer bytes than are added to it. */
	__u32 missing = length == 7 ? 3 : 0;

	if (ctx[1] != __NR_getppid || !kt_wanted(on_call))
		return 0;
	sent.length = length;
	plain.number = calls++;
	__builtin_memset(sent.text, 'x', MOST);
	kt_fill(&sent, text_event);
	kt_output(on_call, ctx, &events, &sent,
		  __builtin_offsetof(struct text_event, text) + length);
	kt_fill(&plain, plain_event);
	kt_output(on_call, ctx, &events, &plain, sizeof(plain) - missing);
	return 0;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
