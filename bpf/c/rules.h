/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#ifndef HEDDLE_RULES_H
#define HEDDLE_RULES_H

#include "kernel.h"
#include "types.h"

/* One slot, for a table of any size: its rules change all at once. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(values, struct {
		__uint(type, BPF_MAP_TYPE_HASH);
		__uint(map_flags, BPF_F_NO_PREALLOC);
		__uint(max_entries, 256);
		__type(key, struct datagram_rule);
		__type(value, __u32);
	});
} datagram_rules SEC(".maps");

#endif
