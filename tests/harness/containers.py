"""What a container puts around a process: a read-only root, a filter of system calls."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import textwrap

from kerneltrace_core.kernel.support import Support

__all__ = ["DENIED", "READ_ONLY", "can", "filtered", "libseccomp"]

# The root and what is mounted below it cannot be written to; there is no bpffs and no tracefs.
READ_ONLY = """
mount --make-rprivate / || exit 1
mount -t tmpfs -o ro none /sys/fs/bpf
mount -t tmpfs -o ro none /sys/kernel/tracing 2>/dev/null
for folder in /tmp /run /dev/shm /var/tmp; do
    mount --bind $folder $folder && mount -o remount,bind,ro $folder
done
mount --bind / / ; mount -o remount,bind,ro /
exec "$@"
"""

# What Docker's default profile denies unless capabilities are added, by its documentation. bpf and
# perf_event_open come back with CAP_BPF and CAP_PERFMON.
DENIED = """
acct add_key clock_adjtime clock_settime create_module delete_module finit_module get_kernel_syms
get_mempolicy init_module ioperm iopl io_uring_enter io_uring_register io_uring_setup kcmp
kexec_file_load kexec_load keyctl lookup_dcookie mbind mount move_pages name_to_handle_at nfsservctl
open_by_handle_at pivot_root process_vm_readv process_vm_writev ptrace query_module quotactl reboot
request_key set_mempolicy setns settimeofday swapon swapoff sysfs umount2 unshare uselib userfaultfd
ustat
"""
FILTER = """
import ctypes, errno, os, sys
library = ctypes.CDLL("libseccomp.so.2")
library.seccomp_init.restype = ctypes.c_void_p
library.seccomp_init.argtypes = [ctypes.c_uint32]
library.seccomp_rule_add_array.argtypes = [
    ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p
]
library.seccomp_load.argtypes = [ctypes.c_void_p]
ALLOW, ERRNO = 0x7FFF0000, 0x00050000
rules = library.seccomp_init(ALLOW)
for name in sys.argv[1].split():
    number = library.seccomp_syscall_resolve_name(name.encode())
    if number >= 0:
        assert library.seccomp_rule_add_array(rules, ERRNO | errno.EPERM, number, 0, None) == 0
assert library.seccomp_load(rules) == 0
os.execvp(sys.argv[2], sys.argv[2:])
"""


def libseccomp() -> Support:
    """Tell whether filters can be made here, for ``require``."""
    try:
        ctypes.CDLL("libseccomp.so.2")
    except OSError as error:
        return Support.no(str(error))
    return Support.yes()


def filtered(denied: str) -> tuple[str, ...]:
    """Return what a command is put behind that may not make these system calls."""
    return (sys.executable, "-c", textwrap.dedent(FILTER), denied)


def can(*prefix: str) -> Support:
    """Tell whether a program runs behind a command."""
    if os.geteuid() != 0 or shutil.which(prefix[0]) is None:
        return Support.no(f"needs root and {prefix[0]}")
    done = subprocess.run([*prefix, "true"], capture_output=True, text=True, check=False)
    last = (done.stderr.strip() or "?").splitlines()[-1]
    return Support.no(last) if done.returncode else Support.yes()
