/* SPDX-License-Identifier: MIT */
/* Calls what is for GPL-compatible programs alone, and does not say that it is one. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

SEC("raw_tp/sys_enter")
int reads(void *ctx)
{
	__u64 word = 0;

	bpf_probe_read_kernel(&word, sizeof(word), ctx);
	return word;
}
