/* SPDX-License-Identifier: MIT OR GPL-2.0 */
/*
 * Group net: bytes on sockets and TCP retransmissions.
 * kt_sock_send and kt_sock_recv (6.3+) are loaded for group syscalls as well:
 * they tell kt_sys_exit that a read or write was on a socket.
 */
#ifndef KT_REQUESTS_NET_H
#define KT_REQUESTS_NET_H

#include "state.bpf.h"

/* The request that used a socket last; retransmissions happen in interrupts. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct kt_owner);
} kt_sockets SEC(".maps");

/* Set before load: group net is on. */
const volatile bool kt_own_sockets = false;

static __always_inline bool kt_is_tcp(struct sock *sk)
{
	__u16 family = sk->__sk_common.skc_family;

	return (family == KT_AF_INET || family == KT_AF_INET6) && sk->sk_protocol == KT_IPPROTO_TCP;
}

static __always_inline void kt_own_socket(struct sock *sk, struct kt_cpu *cpu,
					  struct kt_charge *charge)
{
	struct kt_owner *owner =
		bpf_sk_storage_get(&kt_sockets, sk, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);

	if (owner)
		kt_own_charged(owner, cpu, charge);
}

static __always_inline int kt_sent(struct sock *sk, int result, bool second)
{
	struct kt_cpu *cpu = kt_registered_cpu();
	struct kt_charge charge;

	if (!cpu || !kt_left_out(cpu, KT_RAN_SEND, second))
		return 0;
	cpu->flags |= KT_ON_SOCKET;
	if (result <= 0 || !kt_charge_cpu(cpu, &charge))
		return 0;
	KT_ADD(charge.slot->net_tx_bytes, result);
	if (kt_own_sockets && kt_is_tcp(sk))
		kt_own_socket(sk, cpu, &charge);
	return 0;
}

SEC("tp_btf/sock_send_length")
int BPF_PROG(kt_sock_send, struct sock *sk, int result, int flags)
{
	return kt_sent(sk, result, false);
}

SEC("tp_btf/sock_send_length")
int BPF_PROG(kt_sock_send_second, struct sock *sk, int result, int flags)
{
	return kt_sent(sk, result, true);
}

static __always_inline int kt_received(int result, int flags, bool second)
{
	struct kt_cpu *cpu = kt_registered_cpu();
	struct kt_charge charge;

	if (!cpu || !kt_left_out(cpu, KT_RAN_RECV, second))
		return 0;
	cpu->flags |= KT_ON_SOCKET;
	/* Peeked bytes are read again. */
	if (result <= 0 || flags & KT_MSG_PEEK)
		return 0;
	if (kt_charge_cpu(cpu, &charge))
		KT_ADD(charge.slot->net_rx_bytes, result);
	return 0;
}

SEC("tp_btf/sock_recv_length")
int BPF_PROG(kt_sock_recv, struct sock *sk, int result, int flags)
{
	return kt_received(result, flags, false);
}

SEC("tp_btf/sock_recv_length")
int BPF_PROG(kt_sock_recv_second, struct sock *sk, int result, int flags)
{
	return kt_received(result, flags, true);
}

/* connect(2), in its caller's context: a SYN that is never answered is
 * retransmitted before anything was sent. */
static __always_inline int kt_connects(struct sock *sk, int after)
{
	struct kt_cpu *cpu;
	struct kt_charge charge;

	if (after != KT_TCP_SYN_SENT || !kt_is_tcp(sk))
		return 0;
	cpu = kt_registered_cpu();
	if (cpu && kt_charge_cpu(cpu, &charge))
		kt_own_socket(sk, cpu, &charge);
	return 0;
}

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(kt_inet_sock_set_state, struct sock *sk, int before, int after)
{
	return kt_connects(sk, after);
}

/* Done twice it is done once. */
SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(kt_inet_sock_set_state_second, struct sock *sk, int before, int after)
{
	return kt_connects(sk, after);
}

SEC("tp_btf/tcp_retransmit_skb")
int BPF_PROG(kt_tcp_retransmit, struct sock *sk)
{
	struct kt_owner *owner = bpf_sk_storage_get(&kt_sockets, sk, 0, 0);
	struct kt_slot *slot = owner ? kt_slot_owned(owner) : NULL;

	if (slot)
		KT_ADD(slot->tcp_retransmits, 1);
	return 0;
}

#endif
