/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#ifndef HEDDLE_RECORD_H
#define HEDDLE_RECORD_H

/* Records of what was dropped and refused, for the agent to read. */

#include "maps.h"

#define RECORD_WINDOW 100000000ULL /* 100 ms */
#define RECORDS_PER_WINDOW 100     /* per pod and CPU: a pod must not drown its neighbours' */
#define REFUSALS_PER_WINDOW 20     /* of these: who is refused must not hide what is dropped */

/* Drop records of the node. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 18);
} drops SEC(".maps");

static __always_inline struct counters *pod_counters(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&counted, &zero);
}

static __always_inline bool may_record(struct counters *c, __u64 now, __u64 most)
{
	if (now - c->window > RECORD_WINDOW) {
		c->window = now;
		c->in_window = 0;
	}
	if (c->in_window >= most)
		return false;
	c->in_window++;
	return true;
}

/* A record to fill in wholly and submit; NULL, and counted as lost, when the window has most already. */
static __always_inline struct drop_record *new_record(struct counters *c, __u32 pod, __u64 now, __u64 most)
{
	struct drop_record *record = NULL;

	if (may_record(c, now, most))
		record = bpf_ringbuf_reserve(&drops, sizeof(*record), 0);
	if (!record) {
		c->lost++;
		return NULL;
	}
	record->time = now;
	record->pod = pod;
	return record;
}

#endif
