/* SPDX-License-Identifier: MIT */
/* Operations on BPF maps for which libbpf's own functions take structs. */
#ifndef KT_SHIM_MAPS_H
#define KT_SHIM_MAPS_H

#include <stdint.h>

struct kt_map_info {
	uint32_t type, id, key_size, value_size, max_entries, flags;
	char name[17]; /* with its NUL */
};

/* Describe the map of a descriptor. 0 or -errno. */
int kt_map_info(int map_fd, struct kt_map_info *info);

struct kt_map_plan {
	const char *name;
	uint32_t type, key_size, value_size, max_entries, flags;
	int inner_fd; /* what a map of maps will hold; negative: it is none */
};

/* Open what is pinned at a path, with BPF_F_RDONLY or 0. Its descriptor or -errno. */
int kt_pinned_open(const char *path, uint32_t flags);

/* Create a map without BTF. Its descriptor or -errno. */
int kt_map_create(const struct kt_map_plan *plan);

/*
 * Read up to *count entries, and delete them if `take`. `from` is NULL for the first batch, then
 * what the last one wrote to `next`. 0, or -errno: ENOENT with the last entries, ENOSPC when a
 * bucket has more than *count. *count: how many there are.
 * flags: of each lookup, BPF_F_LOCK or 0.
 */
int kt_map_batch(int map_fd, const void *from, void *next, void *keys, void *values,
		 uint32_t *count, uint64_t flags, int take);

#endif
