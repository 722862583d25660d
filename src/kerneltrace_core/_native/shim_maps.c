/* SPDX-License-Identifier: MIT */
#include "shim_maps.h"

#include <bpf/bpf.h>
#include <errno.h>
#include <linux/bpf.h>
#include <string.h>

int kt_map_info(int map_fd, struct kt_map_info *info)
{
	struct bpf_map_info found;
	uint32_t size = sizeof(found);
	int code;

	memset(&found, 0, sizeof(found));
	code = bpf_obj_get_info_by_fd(map_fd, &found, &size);
	if (code < 0)
		return code;
	info->type = found.type;
	info->id = found.id;
	info->key_size = found.key_size;
	info->value_size = found.value_size;
	info->max_entries = found.max_entries;
	info->flags = found.map_flags;
	memset(info->name, 0, sizeof(info->name));
	memcpy(info->name, found.name, sizeof(found.name));
	return 0;
}

int kt_pinned_open(const char *path, uint32_t flags)
{
	LIBBPF_OPTS(bpf_obj_get_opts, options, .file_flags = flags);

	return bpf_obj_get_opts(path, &options);
}

int kt_map_create(const struct kt_map_plan *plan)
{
	LIBBPF_OPTS(bpf_map_create_opts, options, .map_flags = plan->flags);

	if (plan->inner_fd >= 0)
		options.inner_map_fd = plan->inner_fd;
	return bpf_map_create(plan->type, plan->name, plan->key_size, plan->value_size,
			      plan->max_entries, &options);
}

int kt_map_batch(int map_fd, const void *from, void *next, void *keys, void *values,
		 uint32_t *count, uint64_t flags, int take)
{
	LIBBPF_OPTS(bpf_map_batch_opts, options, .elem_flags = flags);

	if (take)
		return bpf_map_lookup_and_delete_batch(map_fd, (void *)from, next, keys, values,
						       count, &options);
	return bpf_map_lookup_batch(map_fd, (void *)from, next, keys, values, count, &options);
}
