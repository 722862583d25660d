"""Build the extension `_libbpf`: libbpf and our shim through cffi (build time only)."""

from __future__ import annotations

import os
import subprocess
import sysconfig
import tempfile
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).resolve().parent
LIBRARY_FOLDERS = ("/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/local/lib64")
LIBRARIES = ("bpf", "elf", "z")
SHIMS = ("shim", "shim_attach", "shim_maps", "shim_perf", "shim_ring", "shim_share")

DECLARATIONS = """
struct bpf_object; struct bpf_program; struct bpf_map; struct bpf_link; struct btf;

int kt_object_open(const void *bytes, size_t size, const char *name, const char *btf_path,
                   struct bpf_object **held);
void kt_object_free(struct bpf_object **held);
void kt_object_close_unloaded(struct bpf_object **held);
int kt_object_load(struct bpf_object *object);
struct bpf_program *bpf_object__find_program_by_name(const struct bpf_object *, const char *);
struct bpf_map *bpf_object__find_map_by_name(const struct bpf_object *, const char *);

int bpf_program__set_autoload(struct bpf_program *program, bool autoload);
struct bpf_program *bpf_object__next_program(const struct bpf_object *, struct bpf_program *);
const char *bpf_program__name(const struct bpf_program *program);
int bpf_program__fd(const struct bpf_program *program);
int bpf_link__fd(const struct bpf_link *link);
int kt_program_run(int program_fd, void *context, size_t size);

const char *bpf_program__section_name(const struct bpf_program *program);
int bpf_program__type(const struct bpf_program *program);
int bpf_program__expected_attach_type(const struct bpf_program *program);
bool bpf_program__autoload(const struct bpf_program *program);
int bpf_program__set_expected_attach_type(struct bpf_program *program, int type);
int bpf_program__set_attach_target(struct bpf_program *program, int fd, const char *name);

int bpf_obj_get_info_by_fd(int fd, void *info, uint32_t *size);
int bpf_enable_stats(int type);

void kt_descriptor_close(int *held);
int kt_tracepoint_open(int program_fd, const char *name, int *held);
int kt_link_create(int program_fd, int target, int attach_type, uint32_t flags, uint64_t cookie,
                   int *held);
int kt_link_uprobes(int program_fd, const char *path, const uint64_t *offsets,
                    const uint64_t *counters, const uint64_t *cookies, uint32_t count, int pid,
                    int is_return, int *held);
struct kt_held_link { struct bpf_link *link; int process; };
int kt_section_attach(const struct bpf_program *program, struct kt_held_link *held);
int kt_held_link_end(struct kt_held_link *held);
void kt_held_link_free(struct kt_held_link *held);
struct kt_perf {
    uint32_t type; uint64_t config; const char *name; uint64_t config1; uint64_t config2;
    uint64_t period; int by_frequency; int inherit; int pid; int cpu;
};
int kt_perf_open(const struct kt_perf *wanted, int *held);
int kt_perf_enable(int perf_fd);
int kt_perf_set_program(int perf_fd, int program_fd);
struct kt_held_filter { uint32_t handle, priority; int made_hook; };
int kt_tc_hook_create(int interface, struct kt_held_filter *held);
int kt_tc_hook_destroy(int interface);
int kt_tc_attach(int interface, int egress, int program_fd, struct kt_held_filter *held);
int kt_tc_detach(int interface, int egress, struct kt_held_filter *held);

int bpf_map__fd(const struct bpf_map *map);
int bpf_map__set_max_entries(struct bpf_map *map, uint32_t entries);
int bpf_map__set_autocreate(struct bpf_map *map, bool autocreate);
const void *bpf_map__initial_value(struct bpf_map *map, size_t *size);
int kt_variable(const struct bpf_object *object, const char *section, const char *name,
                unsigned int *offset, unsigned int *size);
int bpf_map__reuse_fd(struct bpf_map *map, int fd);
int kt_map_create_array(const char *name, uint32_t value_size);
int kt_map_create_array_of_maps(const char *name, unsigned int entries, int inner_fd);
int bpf_map_update_elem(int fd, const void *key, const void *value, uint64_t flags);
int libbpf_num_possible_cpus(void);

struct kt_map_info { uint32_t type, id, key_size, value_size, max_entries, flags; char name[17]; };
struct kt_map_plan { const char *name; uint32_t type, key_size, value_size, max_entries, flags;
                     int inner_fd; };
int kt_map_info(int map_fd, struct kt_map_info *info);
int kt_map_create(const struct kt_map_plan *plan);
int kt_pinned_open(const char *path, uint32_t flags);
int kt_map_batch(int map_fd, const void *from, void *next, void *keys, void *values,
                 uint32_t *count, uint64_t flags, int take);
int bpf_map_lookup_elem_flags(int fd, const void *key, void *value, uint64_t flags);
int bpf_map_delete_elem(int fd, const void *key);
int bpf_map_lookup_and_delete_elem(int fd, const void *key, void *value);
int bpf_map_get_next_key(int fd, const void *key, void *next_key);
int bpf_map_freeze(int fd);
int bpf_obj_pin(int fd, const char *path);
int bpf_map_get_fd_by_id(uint32_t id);

struct btf *btf__load_vmlinux_btf(void);
struct btf *btf__parse(const char *path, void *extension);
void btf__free(struct btf *btf);
int kt_tracepoint_arguments(const struct btf *btf, const char *name);

int kt_map_place(int outer_fd, uint32_t first, const int *inner_fds, uint32_t count);
static char *const kt_requests_sha256;
int kt_region_fits(int map_fd, size_t size);
struct kt_answer {
    int uid; int truncated; int fd_count; int length; int fds[...]; char packet[...];
};
int kt_ask(const char *address, size_t address_length, int uid, const char *request, size_t length,
           int timeout_ms, struct kt_answer *answer);
void kt_zero(void *address, size_t size);
void kt_capabilities_bar(void);
int kt_capabilities_drop(void);
int kt_capabilities_drop_everywhere(int timeout_ms);

void kt_trim(void);
void kt_log_begin(int debug);
const char *kt_log_end(void);
void *kt_region_map(int map_fd, size_t size);
void *kt_region_anonymous(size_t size);
int kt_region_forget(void *address, size_t size);

struct kt_ring { uint64_t *consumer; const uint64_t *producer; const uint8_t *data;
                 uint64_t size; int process; };
struct kt_drained { uint64_t bytes, records, discarded, lost, needed; int more; };
struct kt_wanted { uint32_t size; int tag_offset; uint32_t tag_size; uint32_t tags_count;
                   const uint64_t *tags; };
struct kt_perf_ring { const uint64_t *head; uint64_t *tail; const uint8_t *data; uint64_t size;
                 uint32_t cpu; int fd; void *mapping; uint64_t mapped; int process, sized; };
int kt_map_shape(int map_fd, uint32_t *type, uint32_t *entries);
int kt_ring_map(int map_fd, struct kt_ring *ring);
int kt_ring_unmap(struct kt_ring *ring);
void kt_ring_free(struct kt_ring *ring);
int kt_ring_drain(const struct kt_ring *ring, void *out, uint64_t out_size, uint64_t limit,
                  struct kt_drained *result);
int kt_ring_drain_strided(const struct kt_ring *ring, const struct kt_wanted *wanted, void *out,
                          uint64_t limit, struct kt_drained *result);
uint64_t kt_ring_pending(const struct kt_ring *ring);
int kt_ring_spin(const struct kt_ring *ring, uint64_t nanoseconds);
uint64_t kt_frames_select(const void *frames, uint64_t size, const struct kt_wanted *wanted,
                          int exact, void *out);
int kt_perf_ring_open(int map_fd, uint32_t cpu, uint32_t pages, struct kt_perf_ring *perf);
int kt_perf_ring_close(struct kt_perf_ring *perf);
void kt_perf_ring_free(struct kt_perf_ring *perf);
int kt_perf_ring_drain(const struct kt_perf_ring *perf, void *out, uint64_t out_size,
                       uint64_t limit, struct kt_drained *result);
uint64_t kt_perf_ring_pending(const struct kt_perf_ring *perf);

#define KT_ABI ...
#define KT_THREADS ...
#define KT_SLOTS ...
#define KT_CALLS ...
static const size_t kt_thread_bytes;
static const size_t kt_slot_bytes;
static const size_t kt_slot_bank;
static const size_t kt_slot_call;
#define KT_PROCESSES ...
static const size_t kt_member_bytes;
static const size_t kt_registration_bytes;
"""

SOURCE = """
#include <stdbool.h>
#include <bpf/bpf.h>
#include <bpf/btf.h>
#include <bpf/libbpf.h>
#include "shim.h"
#include "shim_maps.h"
#include "shim_perf.h"
#include "shim_ring.h"
#include "shim_share.h"
#include "shim_attach.h"
#include "kt_region.h"
static char *const kt_requests_sha256 = KT_REQUESTS_SHA256;
static const size_t kt_thread_bytes = sizeof(struct kt_thread);
static const size_t kt_slot_bytes = sizeof(struct kt_slot);
static const size_t kt_slot_bank = offsetof(struct kt_slot, bank);
static const size_t kt_slot_call = offsetof(struct kt_slot, call);
static const size_t kt_member_bytes = sizeof(struct kt_member);
static const size_t kt_registration_bytes =
    sizeof(struct kt_registration);
"""


def library_folders() -> list[Path]:
    """Name the folders where a distribution keeps its libraries, the multiarch one first."""
    multiarch = sysconfig.get_config_var("MULTIARCH")
    folders = [Path(folder) for folder in LIBRARY_FOLDERS]
    if multiarch:
        folders.insert(0, Path("/usr/lib") / multiarch)
    return folders


def is_position_independent(archive: Path) -> bool:
    """Tell whether an archive can become part of a shared object; Debian's libelf.a cannot."""
    compiler = (sysconfig.get_config_var("CC") or "cc").split()
    with tempfile.TemporaryDirectory() as folder:
        command = [*compiler, "-shared", "-o", str(Path(folder) / "probe.so")]
        command += ["-Wl,--whole-archive", str(archive), "-Wl,--no-whole-archive"]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0


def find_archive(library: str) -> str | None:
    """Return the archive to link a library from, None to link it dynamically."""
    if os.environ.get("KERNELTRACE_DYNAMIC_LIBBPF"):
        return None
    for folder in library_folders():
        archive = folder / f"lib{library}.a"
        if archive.exists():
            return str(archive) if is_position_independent(archive) else None
    return None


def make_ffi() -> FFI:
    """Describe the extension; setuptools compiles it."""
    root = HERE.parents[2]
    archives = {library: find_archive(library) for library in LIBRARIES}
    ffi = FFI()
    ffi.cdef(DECLARATIONS)
    ffi.set_source(
        "kerneltrace_core._native._libbpf",
        SOURCE,
        sources=[os.path.relpath(HERE / f"{name}.c", root) for name in SHIMS],
        depends=[
            *(os.path.relpath(HERE / f"{name}.h", root) for name in (*SHIMS, "shim_frames")),
            "probes/include/kt_region.h",
        ],
        include_dirs=[os.path.relpath(HERE, root), "probes/include"],
        extra_compile_args=["-Wall", "-Wextra"],
        # Archives first: libbpf needs what follows.
        extra_link_args=[path for path in archives.values() if path]
        + [f"-l{library}" for library, path in archives.items() if not path],
    )
    return ffi


ffi = make_ffi()
