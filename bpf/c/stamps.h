/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#ifndef HEDDLE_STAMPS_H
#define HEDDLE_STAMPS_H

#include "kernel.h"
#include "types.h"

/*
 * The stamp of a socket: one map for the node, pinned, so that stamps outlive
 * the agent. Accepted sockets inherit their listener's (BPF_F_CLONE). No
 * workload can write it: that needs this map.
 */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC | BPF_F_CLONE);
	__type(key, int);
	__type(value, struct stamp);
} stamps SEC(".maps");

#endif
