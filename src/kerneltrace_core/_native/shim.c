/* SPDX-License-Identifier: MIT */
#include "shim.h"

#include <bpf/bpf.h>
#include <bpf/btf.h>
#include <bpf/libbpf.h>
#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

/* ---- log capture -------------------------------------------------------- */

#define KT_LOG_BYTES (256 * 1024) /* a verifier log with its useful end */

/* Each of libbpf's messages begins with this and its level as a digit. */
#define KT_LOG_MARK "\x02"

static __thread char *log_text;
static __thread size_t log_used;
static __thread int log_debug;
static pthread_key_t log_key; /* frees it when its thread ends */
static int log_key_made;
static pthread_once_t log_once = PTHREAD_ONCE_INIT;

static void make_log_key(void)
{
	log_key_made = !pthread_key_create(&log_key, free);
}

static void log_written(int written)
{
	if (written > 0) {
		log_used += written;
		if (log_used > KT_LOG_BYTES - 1)
			log_used = KT_LOG_BYTES - 1;
	}
}

/* Keeps the newest half when full: the end of a verifier log tells. */
static int log_line(enum libbpf_print_level level, const char *format, va_list arguments)
{
	if (!log_text || (level == LIBBPF_DEBUG && !log_debug))
		return 0;
	if (log_used > KT_LOG_BYTES / 2) {
		size_t keep = log_used / 2;

		memmove(log_text, log_text + log_used - keep, keep);
		log_used = keep;
	}
	log_written(snprintf(log_text + log_used, KT_LOG_BYTES - log_used, KT_LOG_MARK "%d",
			     (int)level));
	log_written(vsnprintf(log_text + log_used, KT_LOG_BYTES - log_used, format, arguments));
	return 0;
}

void kt_log_begin(int debug)
{
	log_debug = debug;
	libbpf_set_print(log_line);
	if (!log_text) {
		pthread_once(&log_once, make_log_key);
		log_text = malloc(KT_LOG_BYTES);
		if (log_key_made)
			pthread_setspecific(log_key, log_text);
	}
	log_used = 0;
	if (log_text)
		log_text[0] = 0;
}

const char *kt_log_end(void)
{
	static __thread char empty[1];

	return log_text ? log_text : empty;
}

/* ---- calls whose options are structs ------------------------------------ */

int kt_object_open(const void *bytes, size_t size, const char *name, const char *btf_path,
		   struct bpf_object **held)
{
	LIBBPF_OPTS(bpf_object_open_opts, options, .object_name = name,
		    .btf_custom_path = btf_path);

	*held = bpf_object__open_mem(bytes, size, &options);
	return *held ? 0 : -errno;
}

void kt_object_free(struct bpf_object **held)
{
	struct bpf_object *object = *held;

	*held = NULL;
	bpf_object__close(object);
}

static int can_open(int wanted)
{
	int *opened = calloc(wanted, sizeof(*opened));
	int result = opened ? 0 : -ENOMEM;
	int count = 0;

	while (!result && count < wanted) {
		int fd = count ? fcntl(opened[0], F_DUPFD_CLOEXEC, 0) : eventfd(0, EFD_CLOEXEC);

		if (fd < 0)
			result = -errno;
		else
			opened[count++] = fd;
	}
	while (count > 0)
		close(opened[--count]);
	free(opened);
	return result;
}

/* What libbpf opens beside maps and programs: types, and for a moment its questions. */
#define KT_DESCRIPTORS_BESIDE 8

/* From libbpf 1.4 on a map has its descriptor when the object is opened, before there is a map. */
static bool maps_hold_descriptors(void)
{
	return libbpf_major_version() > 1 || libbpf_minor_version() >= 4;
}

/*
 * libbpf asks the kernel what it knows when it first needs the answer, and takes a lack of
 * descriptors for a no, which it keeps for the life of the process. So there must be enough before.
 */
int kt_object_load(struct bpf_object *object)
{
	int wanted = KT_DESCRIPTORS_BESIDE;
	struct bpf_program *program;
	struct bpf_map *map;
	int result;

	bpf_object__for_each_program (program, object)
		wanted += bpf_program__autoload(program);
	bpf_object__for_each_map (map, object)
		wanted += !maps_hold_descriptors() && bpf_map__autocreate(map) &&
			  bpf_map__fd(map) < 0;
	result = can_open(wanted);
	return result ? result : bpf_object__load(object);
}

void kt_object_close_unloaded(struct bpf_object **held)
{
	struct bpf_program *program;
	struct bpf_map *map;

	if (!*held)
		return;
	bpf_object__for_each_program (program, *held)
		bpf_program__set_autoload(program, false);
	bpf_object__for_each_map (map, *held)
		bpf_map__set_autocreate(map, false);
	bpf_object__load(*held);
	kt_object_free(held);
}

int kt_program_run(int program_fd, void *context, size_t size)
{
	LIBBPF_OPTS(bpf_test_run_opts, options, .ctx_in = context, .ctx_size_in = size);

	return bpf_prog_test_run_opts(program_fd, &options) ? -errno : 0;
}

int kt_tracepoint_arguments(const struct btf *btf, const char *name)
{
	char typedef_name[128];
	const struct btf_type *type;
	int id;

	snprintf(typedef_name, sizeof(typedef_name), "btf_trace_%s", name);
	id = btf__find_by_name_kind(btf, typedef_name, BTF_KIND_TYPEDEF);
	if (id < 0)
		return -ENOENT;
	type = btf__type_by_id(btf, btf__type_by_id(btf, id)->type); /* pointer */
	type = type ? btf__type_by_id(btf, type->type) : NULL;       /* to function */
	if (!type || !btf_is_func_proto(type))
		return -EINVAL;
	return btf_vlen(type) - 1; /* the first is the tracepoint's private data */
}

int kt_variable(const struct bpf_object *object, const char *section, const char *name,
		unsigned int *offset, unsigned int *size)
{
	const struct btf *btf = bpf_object__btf(object);
	int id = btf ? btf__find_by_name_kind(btf, section, BTF_KIND_DATASEC) : -ENOENT;
	const struct btf_type *type = id < 0 ? NULL : btf__type_by_id(btf, id);
	const struct btf_var_secinfo *variable = type ? btf_var_secinfos(type) : NULL;

	for (int i = 0; type && i < btf_vlen(type); i++, variable++) {
		const struct btf_type *var = btf__type_by_id(btf, variable->type);

		if (strcmp(btf__name_by_offset(btf, var->name_off), name))
			continue;
		*offset = variable->offset;
		*size = variable->size;
		return 0;
	}
	return -ENOENT;
}

int kt_map_create_array(const char *name, unsigned int value_size)
{
	LIBBPF_OPTS(bpf_map_create_opts, options, .map_flags = BPF_F_MMAPABLE);
	int fd = bpf_map_create(BPF_MAP_TYPE_ARRAY, name, 4, value_size, 1, &options);

	return fd < 0 ? -errno : fd;
}

int kt_map_create_array_of_maps(const char *name, unsigned int entries, int inner_fd)
{
	LIBBPF_OPTS(bpf_map_create_opts, options, .inner_map_fd = inner_fd);
	int fd = bpf_map_create(BPF_MAP_TYPE_ARRAY_OF_MAPS, name, 4, 4, entries, &options);

	return fd < 0 ? -errno : fd;
}

void kt_trim(void)
{
#ifdef __GLIBC__
	malloc_trim(0);
#endif
}

/* ---- regions ------------------------------------------------------------- */

#define KT_REGIONS 64

/* Live mappings, for the child of a fork. Entries are added and removed by one
 * thread at a time (the lock); the child is alone. */
static struct {
	void *address;
	size_t size;
} regions[KT_REGIONS];
static pthread_mutex_t regions_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t regions_once = PTHREAD_ONCE_INIT;

static void *map_private(void *address, size_t size)
{
	int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | (address ? MAP_FIXED : 0);
	void *result = mmap(address, size, PROT_READ | PROT_WRITE, flags, -1, 0);

	return result == MAP_FAILED ? NULL : result;
}

static void forget_in_child(void)
{
	for (int i = 0; i < KT_REGIONS; i++) {
		if (regions[i].address)
			map_private(regions[i].address, regions[i].size);
		regions[i].address = NULL;
	}
	pthread_mutex_init(&regions_lock, NULL);
}

static void watch_forks(void)
{
	pthread_atfork(NULL, NULL, forget_in_child);
}

void *kt_region_map(int map_fd, size_t size)
{
	void *address;
	int slot;

	pthread_once(&regions_once, watch_forks);
	pthread_mutex_lock(&regions_lock);
	for (slot = 0; slot < KT_REGIONS && regions[slot].address; slot++)
		;
	if (slot == KT_REGIONS) {
		pthread_mutex_unlock(&regions_lock);
		errno = ENOSPC;
		return NULL;
	}
	address = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, map_fd, 0);
	if (address != MAP_FAILED) {
		regions[slot].size = size;
		regions[slot].address = address;
	}
	pthread_mutex_unlock(&regions_lock);
	return address == MAP_FAILED ? NULL : address;
}

void *kt_region_anonymous(size_t size)
{
	return map_private(NULL, size);
}

int kt_region_forget(void *address, size_t size)
{
	int result;

	pthread_mutex_lock(&regions_lock);
	for (int i = 0; i < KT_REGIONS; i++)
		if (regions[i].address == address)
			regions[i].address = NULL;
	result = map_private(address, size) ? 0 : -errno;
	pthread_mutex_unlock(&regions_lock);
	return result;
}
