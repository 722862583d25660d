/* SPDX-License-Identifier: MIT OR GPL-2.0 */
/*
 * Group block: disk requests of a request, and their time.
 * Attributed where the bio is queued: that runs in the caller's context, while
 * at block_rq_issue an I/O scheduler's worker is current for 4 bytes of 10.
 */
#ifndef KT_REQUESTS_BLOCK_H
#define KT_REQUESTS_BLOCK_H

#include "state.bpf.h"

#define KT_BIOS 8192
#define KT_BIOS_PER_REQUEST 64

/* LRU: a bio whose end is never seen must not fill the map. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, KT_BIOS);
	__type(key, __u64);
	__type(value, struct kt_owner);
} kt_bios SEC(".maps");

static __always_inline int kt_queued(struct bio *bio, bool second)
{
	struct kt_cpu *cpu = kt_registered_cpu();
	struct kt_charge charge;
	struct kt_owner owner = {};
	__u64 key = (__u64)bio;
	__u32 bytes, op;

	if (!cpu || !kt_left_out(cpu, KT_RAN_BIO, second) || !kt_charge_cpu(cpu, &charge))
		return 0;
	kt_own_charged(&owner, cpu, &charge);
	bytes = bio->bi_iter.bi_size;
	/* A flush has no bytes; a clone is a stacked device's share of a bio
	 * that was counted already. */
	if (!bytes || bio->bi_flags & KT_BIO_CLONED)
		return 0;
	op = bio->bi_opf & KT_REQ_OP_MASK;
	if (op == KT_REQ_OP_READ) {
		KT_ADD(charge.slot->disk_reads, 1);
		KT_ADD(charge.slot->disk_read_bytes, bytes);
	} else if (op == KT_REQ_OP_WRITE) {
		KT_ADD(charge.slot->disk_writes, 1);
		KT_ADD(charge.slot->disk_write_bytes, bytes);
	} else {
		return 0;
	}
	owner.since_ns = bpf_ktime_get_ns();
	bpf_map_update_elem(&kt_bios, &key, &owner, BPF_ANY);
	return 0;
}

SEC("tp_btf/block_bio_queue")
int BPF_PROG(kt_block_bio_queue, struct bio *bio)
{
	return kt_queued(bio, false);
}

SEC("tp_btf/block_bio_queue")
int BPF_PROG(kt_block_bio_queue_second, struct bio *bio)
{
	return kt_queued(bio, true);
}

static __always_inline void kt_bio_end(__u64 bio, __u64 now)
{
	struct kt_owner *owner = bpf_map_lookup_elem(&kt_bios, &bio);
	struct kt_slot *slot;

	if (!owner)
		return;
	slot = kt_slot_owned(owner);
	if (slot)
		KT_ADD(slot->disk_ns, now - owner->since_ns);
	bpf_map_delete_elem(&kt_bios, &bio);
}

/* Global, so that the verifier looks at it once and not in each turn of the
 * loop below: that is 20 ms of load time. */
__noinline int kt_bio_done(__u64 bio, __u64 now)
{
	kt_bio_end(bio, now);
	return 0;
}

/* Every bio that this completion covers whole is done. */
SEC("tp_btf/block_rq_complete")
int BPF_PROG(kt_block_rq_complete, struct request *request, int error, unsigned int bytes)
{
	/* Read, not followed: a global function takes numbers, no pointers. */
	struct bio *bio = BPF_CORE_READ(request, bio);
	__u64 now = bpf_ktime_get_ns();
	__s64 left = bytes;

	for (int i = 0; i < KT_BIOS_PER_REQUEST && bio; i++) {
		left -= BPF_CORE_READ(bio, bi_iter.bi_size);
		if (left < 0)
			break;
		kt_bio_done((__u64)bio, now);
		bio = BPF_CORE_READ(bio, bi_next);
	}
	return 0;
}

/* Devices without requests of their own (device mapper, zram, loop on top). */
SEC("tp_btf/block_bio_complete")
int BPF_PROG(kt_block_bio_complete, struct request_queue *queue, struct bio *bio)
{
	kt_bio_end((__u64)bio, bpf_ktime_get_ns());
	return 0;
}

#endif
