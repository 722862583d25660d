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
