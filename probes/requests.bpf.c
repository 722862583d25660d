// SPDX-License-Identifier: MIT OR GPL-2.0
/*
 * What the kernel does for each request of a traced process, as counters.
 * No event leaves the kernel: the process reads its region.
 */
#include "requests/sched.bpf.h"
#include "requests/syscalls.bpf.h"
#include "requests/net.bpf.h"
#include "requests/block.bpf.h"
#include "requests/faults.bpf.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";
