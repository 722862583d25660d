/* SPDX-License-Identifier: MIT */
/* Count frames of one type on interfaces, and refuse connections to one port in a cgroup. */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define TEST_TYPE 0x88b5 /* local experimental */
#define TC_ACT_OK 0

__s32 traced_tgid; /* unused: frames have no process */
__s64 xdp_frames, tc_frames, connects, refused_port;

SEC("xdp")
int on_xdp(struct xdp_md *ctx)
{
	void *end = (void *)(long)ctx->data_end;
	struct ethhdr *frame = (void *)(long)ctx->data;

	if ((void *)(frame + 1) <= end && frame->h_proto == bpf_htons(TEST_TYPE))
		__sync_fetch_and_add(&xdp_frames, 1);
	return XDP_PASS;
}

SEC("tc")
int on_tc(struct __sk_buff *frame)
{
	if (frame->protocol == bpf_htons(TEST_TYPE))
		__sync_fetch_and_add(&tc_frames, 1);
	return TC_ACT_OK;
}

SEC("cgroup/connect4")
int on_connect(struct bpf_sock_addr *address)
{
	if (bpf_ntohs(address->user_port) != refused_port)
		return 1;
	__sync_fetch_and_add(&connects, 1);
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
