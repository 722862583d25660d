/* SPDX-License-Identifier: MIT */
/* A library to be traced: functions, and static tracepoints as <sys/sdt.h> would make them. */

#define STATIC_TRACEPOINT(name, semaphore, arguments, ...) \
	asm volatile("990: nop\n" \
		     ".pushsection .note.stapsdt,\"\",\"note\"\n" \
		     ".balign 4\n" \
		     ".4byte 992f-991f, 994f-993f, 3\n" \
		     "991: .asciz \"stapsdt\"\n" \
		     "992: .balign 4\n" \
		     "993: .8byte 990b\n" \
		     ".8byte _.stapsdt.base\n" \
		     ".8byte " semaphore "\n" \
		     ".asciz \"kttest\"\n" \
		     ".asciz \"" name "\"\n" \
		     ".asciz \"" arguments "\"\n" \
		     "994: .balign 4\n" \
		     ".popsection\n" \
		     ".ifndef _.stapsdt.base\n" \
		     ".pushsection .stapsdt.base,\"aG\",\"progbits\",.stapsdt.base,comdat\n" \
		     ".weak _.stapsdt.base\n" \
		     ".hidden _.stapsdt.base\n" \
		     "_.stapsdt.base: .space 1\n" \
		     ".size _.stapsdt.base, 1\n" \
		     ".popsection\n" \
		     ".endif\n" ::__VA_ARGS__)

/* The kernel counts here who traces "gated". */
__attribute__((section(".probes"), visibility("hidden"))) volatile unsigned short gated_semaphore;

__attribute__((noinline)) int traced_twice(int value)
{
	asm volatile("");
	return 2 * value;
}

__attribute__((noinline)) static int traced_local(int value)
{
	asm volatile("");
	return value + 1;
}

int traced_plus_one(int value)
{
	return traced_local(value);
}

/* A register, memory, a constant. */
__attribute__((noinline)) void traced_forms(int first, long second)
{
	volatile long kept = second;

	STATIC_TRACEPOINT("forms", "0", "-4@%0 8@%1 -4@%2", "r"(first), "m"(kept), "n"(-7));
}

__attribute__((noinline)) void traced_gated(int value)
{
	if (gated_semaphore)
		STATIC_TRACEPOINT("gated", "gated_semaphore", "-4@%0", "r"(value));
}

int traced_is_gated(void)
{
	return gated_semaphore;
}

/* One name, two places, of which each has its argument elsewhere. */
__attribute__((noinline)) void traced_two_places(int value)
{
	volatile int kept = value;

	STATIC_TRACEPOINT("two", "0", "-4@%0", "r"(value));
	STATIC_TRACEPOINT("two", "0", "-4@%0", "m"(kept));
}

#if defined(__x86_64__)
/* Memory at a register and an index, as compilers write an element of an array. */
__attribute__((noinline)) void traced_indexed(int first, const long *numbers, long index)
{
	STATIC_TRACEPOINT("indexed", "0", "-4@%k0 8@8(%1,%2,8) -4@$%c3", "r"(first), "r"(numbers),
			  "r"(index), "n"(-7));
}
#endif
