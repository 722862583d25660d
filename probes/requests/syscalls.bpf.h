/* SPDX-License-Identifier: MIT OR GPL-2.0 */
/*
 * Group syscalls: calls by name, errors, time and bytes.
 * In the mode "count" kt_sys_enter is not loaded: no durations, and every
 * process on the machine pays for one program less.
 */
#ifndef KT_REQUESTS_SYSCALLS_H
#define KT_REQUESTS_SYSCALLS_H

#include "causes.bpf.h"

/* Set before load: kt_sock_send/kt_sock_recv run here (6.3+) and count what
 * moves on sockets; else the descriptor is looked at. */
const volatile bool kt_socket_tracepoints = false;
/* Set before load: the mode "count". */
const volatile bool kt_calls_untimed = false;

SEC("tp_btf/sys_enter")
int BPF_PROG(kt_sys_enter, struct pt_regs *regs, long number)
{
	struct kt_cpu *cpu = kt_calling_cpu(regs);

	if (!cpu)
		return 0;
	cpu->call = number;
	cpu->flags = 0;
	cpu->enter_ns = bpf_ktime_get_ns();
	return 0;
}

static __always_inline void kt_count_bytes(struct kt_cpu *cpu, struct kt_charge *charge,
					   const struct kt_call_info *info, struct pt_regs *regs,
					   long bytes)
{
	bool socket = info->cause == KT_CAUSE_NET;

	if (kt_socket_tracepoints && cpu->flags & KT_ON_SOCKET) /* counted where they were moved */
		return;
	/* Where those who count there are never left out, it was no socket. */
	if (!socket && (!kt_socket_tracepoints || kt_second_copies))
		socket = kt_descriptor_kind(bpf_get_current_task_btf(), KT_REGS_ARG0(regs)) ==
			 KT_S_IFSOCK;
	if (info->flags & KT_CALL_WRITE)
		KT_ADD(*(socket ? &charge->slot->net_tx_bytes : &charge->slot->write_bytes), bytes);
	else
		KT_ADD(*(socket ? &charge->slot->net_rx_bytes : &charge->slot->read_bytes), bytes);
}

static __always_inline int kt_call_ends(struct pt_regs *regs, long result, bool second)
{
	struct kt_cpu *cpu = kt_calling_cpu(regs);
	const struct kt_call_info *info;
	struct kt_charge charge;
	struct kt_call *call;
	__u64 enter = 0, now = 0;

	if (!cpu || !kt_left_out(cpu, KT_RAN_EXIT, second))
		return 0;
	if (!kt_calls_untimed)
		enter = cpu->enter_ns;
	/* Its begin was not seen: registered inside this call; or seccomp has taken
	 * it, or the program was left out, and then it counts, without a time. */
	if (!enter && cpu->flags & KT_INSIDE)
		goto done;
	/* The register's number: rt_sigreturn has changed the thread's own. */
	info = kt_call_info(enter ? cpu->call : KT_REGS_CALL(regs));
	cpu->enter_ns = 0;
	if (!kt_charge_cpu(cpu, &charge))
		goto done;
	call = &charge.slot->call[info->index < KT_CALLS ? info->index : 0];
	KT_ADD(call->calls, 1);
	if (!kt_calls_untimed || info->flags & KT_CALL_POLL)
		now = bpf_ktime_get_ns();
	if (enter)
		KT_ADD(call->ns, now - enter);
	if (info->flags & KT_CALL_POLL)
		charge.thread->poll_ns = now;
	if (result < 0) {
		if (result >= -KT_MAX_ERRNO &&
		    !(result <= -KT_ERESTART_FIRST && result >= -KT_ERESTART_LAST))
			KT_ADD(call->errors, 1);
	} else if (result > 0 && info->flags & (KT_CALL_READ | KT_CALL_WRITE) &&
		   (enter || kt_calls_untimed ||
		    (kt_second_copies && result != KT_REGS_ROLLED_BACK(regs)))) {
		kt_count_bytes(cpu, &charge, info, regs, result);
	}
done:
	cpu->flags &= KT_RAN_EXIT;
	return 0;
}

SEC("tp_btf/sys_exit")
int BPF_PROG(kt_sys_exit, struct pt_regs *regs, long result)
{
	return kt_call_ends(regs, result, false);
}

SEC("tp_btf/sys_exit")
int BPF_PROG(kt_sys_exit_second, struct pt_regs *regs, long result)
{
	return kt_call_ends(regs, result, true);
}

#endif
