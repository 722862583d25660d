/* SPDX-License-Identifier: MIT OR GPL-2.0 */
/*
 * Group faults: page faults. Off by default: each fault of every process on the
 * machine runs the program. Faults that wait for a disk are counted by sched.
 */
#ifndef KT_REQUESTS_FAULTS_H
#define KT_REQUESTS_FAULTS_H

#include "state.bpf.h"

static __always_inline int kt_fault(void)
{
	struct kt_charge charge;

	if (kt_charge_current(&charge))
		KT_ADD(charge.bank->faults, 1);
	return 0;
}

SEC("tp_btf/page_fault_user")
int BPF_PROG(kt_page_fault_user)
{
	return kt_fault();
}

SEC("tp_btf/page_fault_kernel")
int BPF_PROG(kt_page_fault_kernel)
{
	return kt_fault();
}

#endif
