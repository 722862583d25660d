/* SPDX-License-Identifier: MIT OR GPL-2.0 */
/*
 * System calls that are counted by name, and what is known of each.
 *
 *   KT_CALL(name, cause, flags)
 *
 * cause: why a thread that blocks in the call is off CPU, when neither the wait
 * itself (in_iowait) nor the kind of descriptor says it better.
 * flags: KT_CALL_FD, the first argument is a descriptor whose kind decides the
 * cause; KT_CALL_READ / _WRITE, a positive result is a number of bytes moved;
 * KT_CALL_POLL, the call an event loop sleeps in.
 *
 * A call's index is its place in this list, from 1; 0 is "every other call".
 * requests/layout.py holds the same names in the same order (tested).
 * Names that an architecture does not have are left out there; the index stays.
 */
#ifndef KT_CALLS_H
#define KT_CALLS_H

#define KT_CALL_FD 1
#define KT_CALL_READ 2
#define KT_CALL_WRITE 4
#define KT_CALL_POLL 8

#define KT_CALL_LIST(KT_CALL) \
	KT_CALL(read, OTHER, KT_CALL_FD | KT_CALL_READ) \
	KT_CALL(write, OTHER, KT_CALL_FD | KT_CALL_WRITE) \
	KT_CALL(pread64, OTHER, KT_CALL_FD | KT_CALL_READ) \
	KT_CALL(pwrite64, OTHER, KT_CALL_FD | KT_CALL_WRITE) \
	KT_CALL(readv, OTHER, KT_CALL_FD | KT_CALL_READ) \
	KT_CALL(writev, OTHER, KT_CALL_FD | KT_CALL_WRITE) \
	KT_CALL(preadv, OTHER, KT_CALL_FD | KT_CALL_READ) \
	KT_CALL(pwritev, OTHER, KT_CALL_FD | KT_CALL_WRITE) \
	KT_CALL(preadv2, OTHER, KT_CALL_FD | KT_CALL_READ) \
	KT_CALL(pwritev2, OTHER, KT_CALL_FD | KT_CALL_WRITE) \
	KT_CALL(sendfile, OTHER, KT_CALL_FD | KT_CALL_WRITE) \
	KT_CALL(splice, PIPE, 0) \
	KT_CALL(copy_file_range, DISK, KT_CALL_WRITE) \
	KT_CALL(open, DISK, 0) \
	KT_CALL(openat, DISK, 0) \
	KT_CALL(openat2, DISK, 0) \
	KT_CALL(creat, DISK, 0) \
	KT_CALL(close, OTHER, 0) \
	KT_CALL(stat, DISK, 0) \
	KT_CALL(lstat, DISK, 0) \
	KT_CALL(fstat, OTHER, 0) \
	KT_CALL(newfstatat, DISK, 0) \
	KT_CALL(statx, DISK, 0) \
	KT_CALL(access, DISK, 0) \
	KT_CALL(faccessat2, DISK, 0) \
	KT_CALL(readlink, DISK, 0) \
	KT_CALL(readlinkat, DISK, 0) \
	KT_CALL(getdents64, DISK, 0) \
	KT_CALL(lseek, OTHER, 0) \
	KT_CALL(truncate, DISK, 0) \
	KT_CALL(ftruncate, DISK, 0) \
	KT_CALL(fallocate, DISK, 0) \
	KT_CALL(unlink, DISK, 0) \
	KT_CALL(unlinkat, DISK, 0) \
	KT_CALL(rename, DISK, 0) \
	KT_CALL(renameat, DISK, 0) \
	KT_CALL(renameat2, DISK, 0) \
	KT_CALL(mkdir, DISK, 0) \
	KT_CALL(mkdirat, DISK, 0) \
	KT_CALL(rmdir, DISK, 0) \
	KT_CALL(fsync, DISK, 0) \
	KT_CALL(fdatasync, DISK, 0) \
	KT_CALL(sync_file_range, DISK, 0) \
	KT_CALL(sync, DISK, 0) \
	KT_CALL(syncfs, DISK, 0) \
	KT_CALL(flock, LOCK, 0) \
	KT_CALL(fcntl, LOCK, 0) \
	KT_CALL(ioctl, OTHER, 0) \
	KT_CALL(futex, LOCK, 0) \
	KT_CALL(futex_waitv, LOCK, 0) \
	KT_CALL(semop, LOCK, 0) \
	KT_CALL(semtimedop, LOCK, 0) \
	KT_CALL(nanosleep, SLEEP, 0) \
	KT_CALL(clock_nanosleep, SLEEP, 0) \
	KT_CALL(pause, SLEEP, 0) \
	KT_CALL(sched_yield, OTHER, 0) \
	KT_CALL(poll, POLL, KT_CALL_POLL) \
	KT_CALL(ppoll, POLL, KT_CALL_POLL) \
	KT_CALL(select, POLL, KT_CALL_POLL) \
	KT_CALL(pselect6, POLL, KT_CALL_POLL) \
	KT_CALL(epoll_wait, POLL, KT_CALL_POLL) \
	KT_CALL(epoll_pwait, POLL, KT_CALL_POLL) \
	KT_CALL(epoll_pwait2, POLL, KT_CALL_POLL) \
	KT_CALL(epoll_ctl, OTHER, 0) \
	KT_CALL(io_uring_enter, POLL, KT_CALL_POLL) \
	KT_CALL(socket, OTHER, 0) \
	KT_CALL(connect, NET, 0) \
	KT_CALL(accept, NET, 0) \
	KT_CALL(accept4, NET, 0) \
	KT_CALL(sendto, NET, KT_CALL_WRITE) \
	KT_CALL(recvfrom, NET, KT_CALL_READ) \
	KT_CALL(sendmsg, NET, KT_CALL_WRITE) \
	KT_CALL(recvmsg, NET, KT_CALL_READ) \
	KT_CALL(sendmmsg, NET, 0) \
	KT_CALL(recvmmsg, NET, 0) \
	KT_CALL(shutdown, NET, 0) \
	KT_CALL(setsockopt, OTHER, 0) \
	KT_CALL(getsockopt, OTHER, 0) \
	KT_CALL(mmap, OTHER, 0) \
	KT_CALL(munmap, OTHER, 0) \
	KT_CALL(mprotect, OTHER, 0) \
	KT_CALL(madvise, OTHER, 0) \
	KT_CALL(brk, OTHER, 0) \
	KT_CALL(fork, OTHER, 0) \
	KT_CALL(vfork, CHILD, 0) \
	KT_CALL(clone, OTHER, 0) \
	KT_CALL(clone3, OTHER, 0) \
	KT_CALL(execve, DISK, 0) \
	KT_CALL(wait4, CHILD, 0) \
	KT_CALL(waitid, CHILD, 0) \
	KT_CALL(getrandom, OTHER, 0) \
	KT_CALL(pipe2, OTHER, 0) \
	KT_CALL(getpid, OTHER, 0) \
	KT_CALL(getppid, OTHER, 0) \
	KT_CALL(rt_sigprocmask, OTHER, 0)

#define KT_CALL_ENUM(name, cause, flags) KT_CALL_##name,
enum kt_call_index { KT_CALL_other, KT_CALL_LIST(KT_CALL_ENUM) KT_CALL_END };

_Static_assert(KT_CALL_END == 96, "abi: KT_CALLS");

#endif
