/* SPDX-License-Identifier: MIT */
/* Times: nanoseconds of CLOCK_MONOTONIC, the clock that the BPF programs read. */
#ifndef KT_STEP_CLOCK_H
#define KT_STEP_CLOCK_H

#include <stdint.h>
#include <time.h>

static uint64_t clock_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static uint64_t since(uint64_t now, uint64_t then)
{
	return now > then ? now - then : 0;
}

static uint64_t least(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

static uint64_t most(uint64_t a, uint64_t b)
{
	return a > b ? a : b;
}

#endif
