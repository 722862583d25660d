/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "shim_share.h"
#include "shim_maps.h"

#include <bpf/bpf.h>
#include <dirent.h>
#include <errno.h>
#include <linux/bpf.h>
#include <linux/capability.h>
#include <linux/securebits.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

/* ---- regions ------------------------------------------------------------- */

#define KT_ENOTSUPP 524 /* the kernel's own, of no C library */

static int place_each(int outer_fd, uint32_t first, const int *inner_fds, uint32_t count)
{
	for (uint32_t i = 0; i < count; i++) {
		uint32_t key = first + i;

		if (bpf_map_update_elem(outer_fd, &key, &inner_fds[i], BPF_ANY))
			return -errno;
	}
	return 0;
}

int kt_map_place(int outer_fd, uint32_t first, const int *inner_fds, uint32_t count)
{
	LIBBPF_OPTS(bpf_map_batch_opts, options);
	uint32_t done = count;
	uint32_t *keys;
	int result;

	if (count < 2)
		return place_each(outer_fd, first, inner_fds, count);
	keys = malloc(count * sizeof(*keys));
	if (!keys)
		return -ENOMEM;
	for (uint32_t i = 0; i < count; i++)
		keys[i] = first + i;
	result = bpf_map_update_batch(outer_fd, keys, inner_fds, &done, &options) ? -errno : 0;
	free(keys);
	if (result == -KT_ENOTSUPP || result == -ENOTSUP || result == -EINVAL)
		result = place_each(outer_fd, first, inner_fds, count);
	return result;
}

int kt_region_fits(int map_fd, size_t size)
{
	struct kt_map_info info;
	int code = kt_map_info(map_fd, &info);

	if (code < 0)
		return code;
	return info.type == BPF_MAP_TYPE_ARRAY && info.max_entries == 1 &&
	       info.value_size == size && (info.flags & BPF_F_MMAPABLE);
}

void kt_zero(void *address, size_t size)
{
	memset(address, 0, size);
}

/* ---- joining ------------------------------------------------------------- */

static int connect_packets(const char *address, size_t length, int timeout_ms)
{
	struct timeval limit = { .tv_sec = timeout_ms / 1000, .tv_usec = timeout_ms % 1000 * 1000 };
	struct sockaddr_un to = { .sun_family = AF_UNIX };
	bool abstract = length && address[0] == '@';
	size_t whole = offsetof(struct sockaddr_un, sun_path) + length + !abstract;
	int fd, error;

	if (whole > sizeof(to))
		return -ENAMETOOLONG;
	memcpy(to.sun_path, address, length);
	if (abstract)
		to.sun_path[0] = 0;
	fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	/* Not non-blocking: then a connect to a full backlog fails at once. */
	if (setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit)) ||
	    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit)) ||
	    connect(fd, (struct sockaddr *)&to, whole)) {
		error = -errno;
		close(fd);
		return error;
	}
	return fd;
}

static int receive(int fd, struct kt_answer *answer)
{
	char control[CMSG_SPACE(sizeof(answer->fds))] __attribute__((aligned(8)));
	struct iovec packet = { .iov_base = answer->packet, .iov_len = sizeof(answer->packet) };
	struct msghdr message = { .msg_iov = &packet,
				  .msg_iovlen = 1,
				  .msg_control = control,
				  .msg_controllen = sizeof(control) };
	ssize_t length = recvmsg(fd, &message, MSG_CMSG_CLOEXEC);
	struct cmsghdr *part;

	if (length < 0)
		return -errno;
	answer->length = length;
	answer->truncated = (message.msg_flags & MSG_CTRUNC) != 0;
	part = CMSG_FIRSTHDR(&message);
	if (part && part->cmsg_level == SOL_SOCKET && part->cmsg_type == SCM_RIGHTS) {
		size_t bytes = part->cmsg_len - CMSG_LEN(0);

		memcpy(answer->fds, CMSG_DATA(part), bytes);
		answer->fd_count = bytes / sizeof(int);
	}
	return 0;
}

int kt_ask(const char *address, size_t address_length, int uid, const char *request, size_t length,
	   int timeout_ms, struct kt_answer *answer)
{
	struct ucred peer;
	socklen_t size = sizeof(peer);
	int fd, result = 0;

	answer->uid = -1;
	answer->truncated = answer->fd_count = answer->length = 0;
	fd = connect_packets(address, address_length, timeout_ms);
	if (fd < 0)
		return fd == -EAGAIN ? -ETIMEDOUT : fd;
	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size)) {
		result = -errno;
	} else {
		answer->uid = peer.uid;
		/* Who hands descriptors over decides what this process maps: nobody else may. */
		if (peer.uid != 0 && peer.uid != (uid_t)uid)
			result = -EACCES;
		else if (send(fd, request, length, MSG_NOSIGNAL) < 0)
			result = -errno;
		else
			result = receive(fd, answer);
	}
	close(fd);
	return result == -EAGAIN ? -ETIMEDOUT : result;
}

/* ---- privileges ---------------------------------------------------------- */

int kt_capabilities_drop(void)
{
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct none[_LINUX_CAPABILITY_U32S_3];

	/* Ambient first: it goes with the inheritable set, but is older kernels' to refuse. */
	prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
	memset(none, 0, sizeof(none));
	return syscall(SYS_capset, &header, none) ? -errno : 0;
}

void kt_capabilities_bar(void)
{
	/* The bits first: they need CAP_SETPCAP in the permitted set alone, and so does the rest,
	 * which what is gone from the bounding set does not take away. */
	prctl(PR_SET_SECUREBITS, SECURE_ALL_BITS | SECURE_ALL_LOCKS, 0, 0, 0);
	for (int bit = 0; bit < 64; bit++)
		prctl(PR_CAPBSET_DROP, bit, 0, 0, 0);
}

static volatile int dropping_error;
static volatile int dropping_done;

static void drop_here(int signal_number)
{
	int saved = errno;
	int result;

	kt_capabilities_bar();
	result = kt_capabilities_drop();

	(void)signal_number;
	if (result)
		dropping_error = result;
	__atomic_add_fetch(&dropping_done, 1, __ATOMIC_SEQ_CST);
	errno = saved;
}

static int free_signal(void)
{
	for (int number = SIGRTMAX; number >= SIGRTMIN; number--) {
		struct sigaction action;

		if (!sigaction(number, NULL, &action) && action.sa_handler == SIG_DFL &&
		    !(action.sa_flags & SA_SIGINFO))
			return number;
	}
	return -EBUSY;
}

/* Whether a thread can use or regain a capability; false when it has ended. */
static bool holds_capability(const char *thread)
{
	char path[64], line[256];
	bool holds = false;
	FILE *file;

	snprintf(path, sizeof(path), "/proc/self/task/%.20s/status", thread);
	file = fopen(path, "re");
	if (!file)
		return false;
	while (fgets(line, sizeof(line), file))
		if (!strncmp(line, "CapPrm:", 7) || !strncmp(line, "CapInh:", 7))
			holds |= strtoull(line + 7, NULL, 16) != 0;
	fclose(file);
	return holds;
}

/* Signal every thread that still holds one; how many there were, or -errno. */
static int signal_holders(int number)
{
	DIR *threads = opendir("/proc/self/task");
	struct dirent *entry;
	int count = 0;

	if (!threads)
		return -errno;
	while ((entry = readdir(threads))) {
		if (entry->d_name[0] == '.' || !holds_capability(entry->d_name))
			continue;
		count++;
		syscall(SYS_tgkill, getpid(), atoi(entry->d_name), number);
	}
	closedir(threads);
	return count;
}

static long now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

int kt_capabilities_drop_everywhere(int timeout_ms)
{
	static pthread_mutex_t one = PTHREAD_MUTEX_INITIALIZER;
	struct sigaction action = { .sa_handler = drop_here, .sa_flags = SA_RESTART };
	struct sigaction before;
	long end = now_ms() + timeout_ms;
	int number, left = 0;

	pthread_mutex_lock(&one);
	dropping_error = 0;
	number = free_signal();
	if (number < 0 || sigaction(number, &action, &before)) {
		pthread_mutex_unlock(&one);
		return number < 0 ? number : -errno;
	}
	/* Again until a look finds none: a thread may have begun another meanwhile. */
	do {
		struct timespec pause = { .tv_nsec = 1000000 };

		left = signal_holders(number);
		if (left)
			nanosleep(&pause, NULL);
	} while (left > 0 && !dropping_error && now_ms() < end);
	/* A thread that blocks signals may take it later: then it must not end the process. */
	if (left == 0)
		sigaction(number, &before, NULL);
	pthread_mutex_unlock(&one);
	if (left < 0)
		return left;
	if (dropping_error)
		return dropping_error;
	return left ? -ETIMEDOUT : 0;
}
