/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#ifndef HEDDLE_CLOCK_H
#define HEDDLE_CLOCK_H

/* The time of a packet, for less than the kernel asks for it. */

#include "kernel.h"

/* CLOCK_MONOTONIC_COARSE as a CPU read it last, and jiffies when it did. */
struct clock {
	__u64 jiffies;
	__u64 ns;
};

/* The clock as each CPU has it. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct clock);
} clocks SEC(".maps");

/*
 * CLOCK_MONOTONIC_COARSE, which goes on when jiffies do (kernel/time/tick-sched.c,
 * tick_do_update_jiffies64): until then a CPU remembers what it was, since jiffies cost
 * one load. They go first, so it may be that of the tick before for one tick. An
 * interrupt between the two stores finds old jiffies, and reads anew.
 */
static __always_inline __u64 coarse_ns(void)
{
	__u64 jiffies = bpf_jiffies64();
	__u32 zero = 0;
	struct clock *clock = bpf_map_lookup_elem(&clocks, &zero);

	if (!clock)
		return bpf_ktime_get_coarse_ns();
	if (clock->jiffies != jiffies) {
		clock->ns = bpf_ktime_get_coarse_ns();
		barrier();
		clock->jiffies = jiffies;
	}
	return clock->ns;
}

#endif
