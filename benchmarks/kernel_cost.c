/* SPDX-License-Identifier: MIT */
/* Loops whose cost is the kernel's: a system call, a switch between two threads. */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static double clock_ns(clockid_t clock)
{
	struct timespec now;

	clock_gettime(clock, &now);
	return (double)now.tv_sec * 1e9 + (double)now.tv_nsec;
}

/* CPU time of one getppid, which does next to nothing in the kernel. */
double syscall_ns(long times)
{
	double begin = clock_ns(CLOCK_THREAD_CPUTIME_ID);
	long i;

	for (i = 0; i < times; i++)
		syscall(SYS_getppid);
	return (clock_ns(CLOCK_THREAD_CPUTIME_ID) - begin) / (double)times;
}

struct game {
	int in, out;
	long times;
};

static void *play(void *argument)
{
	struct game *game = argument;
	char ball;
	long i;

	for (i = 0; i < game->times; i++)
		if (read(game->in, &ball, 1) != 1 || write(game->out, &ball, 1) != 1)
			break;
	return NULL;
}

/* CPU time of one switch: two threads on one CPU hand a byte to each other
 * through pipes, so each byte is a write, a read and a switch. Negative: failed. */
double switch_ns(long times)
{
	int there[2], back[2];
	struct game theirs;
	cpu_set_t before, one;
	pthread_t partner;
	double begin, took = -1;
	char ball = 0;
	long i;

	if (sched_getaffinity(0, sizeof(before), &before))
		return -1;
	CPU_ZERO(&one);
	CPU_SET(sched_getcpu(), &one);
	if (sched_setaffinity(0, sizeof(one), &one)) /* inherited by the partner */
		return -1;
	if (pipe(there) || pipe(back))
		goto done;
	theirs = (struct game){ there[0], back[1], times };
	if (pthread_create(&partner, NULL, play, &theirs))
		goto done;
	begin = clock_ns(CLOCK_PROCESS_CPUTIME_ID);
	for (i = 0; i < times; i++)
		if (write(there[1], &ball, 1) != 1 || read(back[0], &ball, 1) != 1)
			break;
	took = (clock_ns(CLOCK_PROCESS_CPUTIME_ID) - begin) / (double)(2 * times);
	pthread_join(partner, NULL);
	close(there[0]);
	close(there[1]);
	close(back[0]);
	close(back[1]);
done:
	sched_setaffinity(0, sizeof(before), &before);
	return took;
}
