/* SPDX-License-Identifier: MIT */
/* Counts the getppid calls of whoever kt_filter.h wants. */
#include <kerneltrace/kt_event.h>
#include <kerneltrace/kt_filter.h>
#include <asm/unistd.h>

KT_PROBE(count_wanted);

__u64 wanted;

/* regs, number */
SEC("tp_btf/sys_enter")
int count_wanted(__u64 *ctx)
{
	/* Not even counted: other calls are no work of the test. */
	if (ctx[1] != __NR_getppid)
		return 0;
	if (!kt_wanted(count_wanted))
		return 0;
	__sync_fetch_and_add(&wanted, 1);
	return 0;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
