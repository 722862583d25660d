"""The region's layout in numbers, as probes/include/kt_region.h and kt_calls.h have it (tested)."""

from __future__ import annotations

ABI = 2

THREADS = 512
THREAD_BYTES = 64
SLOTS_OFFSET = THREADS * THREAD_BYTES
SLOTS = 1024
SLOT_BYTES = 2688

SLOT_UNATTRIBUTED = 0
SLOT_LATE = 1

# Words of 8 bytes from the beginning of a slot.
READ_BYTES = 1
WRITE_BYTES = 2
NET_RX_BYTES = 3
NET_TX_BYTES = 4
DISK_READS = 5
DISK_WRITES = 6
DISK_READ_BYTES = 7
DISK_WRITE_BYTES = 8
DISK_NS = 9
TCP_RETRANSMITS = 10
EXECS = 11
FORKS = 12

BANK = 16
BANK_WORDS = 16
RUN_QUEUE_NS = 0
CTX_VOLUNTARY = 1
CTX_INVOLUNTARY = 2
FAULTS = 3
MAJOR_FAULTS = 4
BLOCKED_NS = 7

CAUSES = ("other", "disk", "net", "lock", "sleep", "pipe", "poll", "fault", "child")

CALL = BANK + 2 * BANK_WORDS
CALL_WORDS = 3
CALLS = 96
SLOT_WORDS = SLOT_BYTES // 8

# After the slot's words in a block: what user space measured (see requests/pyrecord.py).
START_NS = SLOT_WORDS
END_NS = SLOT_WORDS + 1
RUN_NS = SLOT_WORDS + 2
NESTED_NS = SLOT_WORDS + 3
GAP_NS = SLOT_WORDS + 4
LOOP_WAIT_MIN_NS = SLOT_WORDS + 5
LOOP_WAIT_MAX_NS = SLOT_WORDS + 6
LOOP_BLOCK_MAX_NS = SLOT_WORDS + 7
STEPS = SLOT_WORDS + 8
THREAD_NS = SLOT_WORDS + 9
THREADS_USED = SLOT_WORDS + 10
DETACHED = SLOT_WORDS + 11
FLAGS = SLOT_WORDS + 12
VALUE = SLOT_WORDS + 13
BLOCK_WORDS = SLOT_WORDS + 16

CALL_NAMES = tuple(  # words in a text: a list of 96 literals reads worse
    """
    other
    read write pread64 pwrite64 readv writev preadv pwritev preadv2 pwritev2 sendfile splice
    copy_file_range
    open openat openat2 creat close stat lstat fstat newfstatat statx access faccessat2 readlink
    readlinkat getdents64 lseek truncate ftruncate fallocate unlink unlinkat rename renameat
    renameat2 mkdir mkdirat rmdir
    fsync fdatasync sync_file_range sync syncfs
    flock fcntl ioctl futex futex_waitv semop semtimedop nanosleep clock_nanosleep pause sched_yield
    poll ppoll select pselect6 epoll_wait epoll_pwait epoll_pwait2 epoll_ctl io_uring_enter
    socket connect accept accept4 sendto recvfrom sendmsg recvmsg sendmmsg recvmmsg shutdown
    setsockopt getsockopt
    mmap munmap mprotect madvise brk
    fork vfork clone clone3 execve wait4 waitid
    getrandom pipe2 getpid getppid rt_sigprocmask
    """.split()  # noqa: SIM905
)
CALL_INDEX = {name: index for index, name in enumerate(CALL_NAMES)}
