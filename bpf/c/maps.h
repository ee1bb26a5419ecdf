/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#ifndef HEDDLE_MAPS_H
#define HEDDLE_MAPS_H

#include "kernel.h"
#include "types.h"

/* Maps of a pod, pinned in the pod's folder. */

/* Index of the slot of config in use: the other one is written, then this flips. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} active SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, struct pod_config);
} config SEC(".maps");

/* Live connections. Only admitted handshakes get in, so nobody outside fills it. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct tuple);
	__type(value, struct flow);
} flows SEC(".maps");

/*
 * Half-open connections and closed ones. An LRU: a SYN flood churns this map
 * and leaves the live connections alone.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, struct tuple);
	__type(value, struct flow);
} transient SEC(".maps");

/* Tuples of the agent's connections to the app: local is the app's end. Never an LRU. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct tuple);
	__type(value, __u32); /* enum passthru_state */
} passthru SEC(".maps");

/* Counters of the pod. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct counters);
} counted SEC(".maps");

static __always_inline struct pod_config *pod_configuration(void)
{
	__u32 zero = 0;
	__u32 *slot = bpf_map_lookup_elem(&active, &zero);
	__u32 index;

	if (!slot)
		return NULL;
	index = *slot & 1;
	return bpf_map_lookup_elem(&config, &index);
}

static __always_inline bool same_address(const struct address *a, const struct address *b)
{
	/* The last word differs most often. */
	return a->word[3] == b->word[3] && a->word[0] == b->word[0] &&
	       a->word[1] == b->word[1] && a->word[2] == b->word[2];
}

static __always_inline bool is_pod_address(const struct pod_config *pod, const struct address *a)
{
	for (__u32 i = 0; i < MAX_ADDRESSES; i++) {
		if (i >= pod->address_count)
			return false;
		if (same_address(&pod->addresses[i], a))
			return true;
	}
	return false;
}

static __always_inline void map_ipv4(struct address *to, __be32 from)
{
	to->word[0] = 0;
	to->word[1] = 0;
	to->word[2] = bpf_htonl(0xffff);
	to->word[3] = from;
}

static __always_inline bool is_ipv4(const struct address *a)
{
	return !a->word[0] && !a->word[1] && a->word[2] == bpf_htonl(0xffff);
}

static __always_inline bool is_loopback(const struct address *a)
{
	if (is_ipv4(a))
		return (bpf_ntohl(a->word[3]) >> 24) == 127;
	return !a->word[0] && !a->word[1] && !a->word[2] && a->word[3] == bpf_htonl(1);
}

#endif
