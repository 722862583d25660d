/* SPDX-License-Identifier: MIT */
/* Arguments as an object compiled with usdt.bpf.h of libbpf 1.7 reads them: memory at an index. */
#include <linux/bpf.h>
#include <linux/ptrace.h>
#include <stdbool.h>
#include <bpf/bpf_helpers.h>

#define MAX_ARGUMENTS 12
#define AT_INDEX 3

/* Bit fields of different types, each in a unit of its own type: 24 bytes. */
enum argument_type { FORCE_INT = -1 };

struct argument {
	__u64 value;
	enum argument_type type : 8;
	__u16 index : 12;
	__u16 scale : 4;
	__u8 reserved : 8;
	short offset;
	bool is_signed;
	char bitshift;
};

struct spec {
	struct argument arguments[MAX_ARGUMENTS];
	__u64 cookie;
	short count;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 16);
	__type(key, int);
	__type(value, struct spec);
} __bpf_usdt_specs SEC(".maps");

__s32 traced_tgid;
__s64 hits, arguments, first_sum, second_sum, third_sum;

static __always_inline struct argument *argument_of(void *ctx, int number)
{
	int key = bpf_get_attach_cookie(ctx);
	struct spec *spec = bpf_map_lookup_elem(&__bpf_usdt_specs, &key);

	if (!spec || number >= spec->count)
		return NULL;
	arguments = spec->count;
	return &spec->arguments[number];
}

static __always_inline __s64 read_register(void *ctx, int offset)
{
	__s64 value = 0;

	bpf_probe_read_kernel(&value, sizeof(value), ctx + offset);
	return value;
}

SEC("usdt")
int on_usdt(struct pt_regs *ctx)
{
	struct argument *found;
	__s64 value = 0;

	if ((__s32)(bpf_get_current_pid_tgid() >> 32) != traced_tgid)
		return 0;
	__sync_fetch_and_add(&hits, 1);
	found = argument_of(ctx, 0);
	if (found)
		__sync_fetch_and_add(&first_sum, (__s32)read_register(ctx, found->offset));
	found = argument_of(ctx, 1);
	if (found && found->type == AT_INDEX) {
		__s64 base = read_register(ctx, found->offset);
		__s64 index = read_register(ctx, found->index);

		bpf_probe_read_user(&value, sizeof(value),
				    (void *)(base + (index << found->scale) + found->value));
		__sync_fetch_and_add(&second_sum, value);
	}
	found = argument_of(ctx, 2);
	if (found)
		__sync_fetch_and_add(&third_sum, found->value);
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
