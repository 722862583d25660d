/* SPDX-License-Identifier: MIT */
/*
 * What ring buffers and perf buffers are drained into: frames, each a u32 length, a u32 origin and
 * the payload with zeroes up to a multiple of 8; in native byte order.
 */
#ifndef KT_SHIM_FRAMES_H
#define KT_SHIM_FRAMES_H

#include <stdint.h>

struct kt_drained {
	uint64_t bytes;     /* written to out */
	uint64_t records;   /* written to out */
	uint64_t discarded; /* skipped: the program gave them up, or they are no samples */
	uint64_t lost;      /* perf buffers: what the kernel says it had no space for */
	uint64_t needed;    /* out is too small for the next record: its bytes; else 0 */
	int more;           /* something is left that could be drained now */
};

#define KT_FRAME_HEADER 8

#define ALWAYS_INLINE inline __attribute__((always_inline))

static ALWAYS_INLINE uint64_t round_up(uint64_t bytes)
{
	return (bytes + 7) & ~7ULL;
}

static ALWAYS_INLINE uint8_t *begin_frame(uint8_t *to, uint32_t length, uint32_t origin)
{
	__builtin_memcpy(to, &length, 4);
	__builtin_memcpy(to + 4, &origin, 4);
	return to + KT_FRAME_HEADER;
}

static ALWAYS_INLINE void clear_padding(uint8_t *payload, uint64_t length)
{
	for (uint64_t at = length; at & 7; at++)
		payload[at] = 0;
}

#endif
