/* SPDX-License-Identifier: MIT */
/* What sharing the programs among processes needs: many regions at once, and privileges given up. */
#ifndef KT_SHIM_SHARE_H
#define KT_SHIM_SHARE_H

#include <stddef.h>
#include <stdint.h>

/*
 * Put maps into a map of maps at first, first + 1 and so on. With one call of the
 * kernel, which then waits for RCU once and not for each (5.17, else one by one).
 * 0 or -errno.
 */
int kt_map_place(int outer_fd, uint32_t first, const int *inner_fds, uint32_t count);

/* 1 if a descriptor is of a region of that size, 0 if of another map, -errno if of no map. */
int kt_region_fits(int map_fd, size_t size);

#define KT_ANSWER_BYTES 8192
#define KT_ANSWER_FDS 64 /* more than any set of programs has; the kernel's own limit is 253 */

struct kt_answer {
	int uid;       /* who serves, -1 until that is known */
	int truncated; /* descriptors were lost on the way */
	int fd_count;
	int length;
	int fds[KT_ANSWER_FDS]; /* close-on-exec, and the caller's to close */
	char packet[KT_ANSWER_BYTES];
};

/*
 * Send a request to the Unix socket of packets at an address (@name: an abstract one) and take
 * the answer. Only root or uid may serve it: another is told nothing. Waits for timeout_ms
 * at most for each of three steps. 0; -EACCES if another uid serves it; -ETIMEDOUT; -EINTR, with
 * nothing left open, for the caller to look after its signals and ask again; or -errno.
 */
int kt_ask(const char *address, size_t address_length, int uid, const char *request, size_t length,
	   int timeout_ms, struct kt_answer *answer);

/* Zero memory without the interpreter's lock. */
void kt_zero(void *address, size_t size);

/*
 * Have no program that this thread runs get a capability, not even as uid 0. Does as much of it
 * as is allowed: without CAP_SETPCAP nothing.
 */
void kt_capabilities_bar(void);

/* Give up every capability of the calling thread, in every set. 0 or -errno. */
int kt_capabilities_drop(void);

/*
 * Both of it for every thread of the process. Each does it itself, in a handler of a signal that
 * nobody uses. 0; -EBUSY if every such signal is used; -ETIMEDOUT if a thread did not get to it
 * in time (it then still has its capabilities); or -errno.
 */
int kt_capabilities_drop_everywhere(int timeout_ms);

#endif
