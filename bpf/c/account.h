/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#ifndef HEDDLE_ACCOUNT_H
#define HEDDLE_ACCOUNT_H

/* What passed and what was dropped: counters, bounded tables of who, drop records. */

#include "maps.h"
#include "packet.h"
#include "record.h"

/* One packet on its way through a hook. */
struct passage {
	struct packet p;
	__u64 now;
	__u32 hook;
	__u32 kind; /* what it passed as: enum flow_kind */
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 512);
	__type(key, struct peer);
	__type(value, struct tally);
} plaintext_peers SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 512);
	__type(key, struct drop_peer);
	__type(value, struct tally);
} drop_peers SEC(".maps");

/*
 * Repeats of a drop, which most are, cost neither a look-up in drop_peers nor an atomic
 * operation on what all CPUs write.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct last_drop);
} last_drops SEC(".maps");

static __always_inline void add_tally(struct tally *tally, const struct tally *more)
{
	__sync_fetch_and_add(&tally->packets, more->packets);
	__sync_fetch_and_add(&tally->bytes, more->bytes);
	tally->last_seen = more->last_seen;
}

/* Notes who a packet of plaintext went to or came from. */
static __noinline int note_peer(struct packet *p, __u32 kind, __u32 direction, __u64 now)
{
	struct peer key = {.direction = direction, .kind = kind};
	struct tally first = {.packets = 1, .last_seen = now};
	struct tally *tally;

	if (!p)
		return 0;
	key.remote = p->tuple.remote;
	/* The service's port, not the client's: those would fill the table. */
	key.port = kind == FLOW_PROBE || kind == FLOW_PERMISSIVE ? p->tuple.local_port : p->tuple.remote_port;
	if (kind == FLOW_GRANDFATHERED && p->tuple.local_port < p->tuple.remote_port)
		key.port = p->tuple.local_port;
	if (kind == FLOW_DATAGRAM && (p->flags & DATAGRAM_SERVED))
		key.port = p->tuple.local_port;
	first.bytes = p->length;
	tally = bpf_map_lookup_elem(&plaintext_peers, &key);
	if (tally) {
		add_tally(tally, &first);
		return 0;
	}
	/* A full table evicts its oldest row; the counters stay right. */
	bpf_map_update_elem(&plaintext_peers, &key, &first, BPF_ANY);
	return 0;
}

/* Counts a packet that passes. */
static __always_inline void
count_passed(struct packet *p, struct counters *c, enum flow_kind kind, enum direction direction, __u64 now)
{
	struct count *count = &c->passed[kind][direction];

	count->packets++;
	count->bytes += p->length;
	if (kind != FLOW_TUNNEL && kind != FLOW_CONTROL)
		note_peer(p, kind, direction, now);
}

static __always_inline bool same_drop(const struct drop_peer *a, const struct drop_peer *b)
{
	return same_address(&a->remote, &b->remote) && a->port == b->port && a->direction == b->direction &&
	       a->reason == b->reason && a->proto == b->proto;
}

/* Moves a CPU's repeats to the table of all. */
static __noinline int settle(struct last_drop *last)
{
	struct tally *tally;

	if (!last || !last->tally.packets)
		return 0;
	tally = bpf_map_lookup_elem(&drop_peers, &last->peer);
	if (tally)
		add_tally(tally, &last->tally);
	else
		bpf_map_update_elem(&drop_peers, &last->peer, &last->tally, BPF_ANY);
	return 0;
}

static __always_inline void note_drop_peer(struct packet *p, __u32 reason, __u32 direction, __u64 now)
{
	struct drop_peer key = {.reason = reason, .direction = direction, .proto = p->proto};
	__u32 zero = 0;
	struct last_drop *last = bpf_map_lookup_elem(&last_drops, &zero);

	if (!last)
		return;
	key.remote = p->tuple.remote;
	key.port = direction == INBOUND ? p->tuple.local_port : p->tuple.remote_port;
	if (!same_drop(&last->peer, &key)) {
		settle(last);
		last->peer = key;
		last->tally.packets = 0;
		last->tally.bytes = 0;
	}
	last->tally.packets++;
	last->tally.bytes += p->length;
	last->tally.last_seen = now;
}

/* Counts and records a packet that is dropped, and returns the verdict. */
static __noinline int drop(struct passage *q, struct counters *c, __u32 pod, __u32 reason)
{
	struct drop_record *record;
	struct packet *p;
	__u32 direction;

	if (!q || !c || reason >= DROP_REASONS)
		return DROP;
	p = &q->p;
	direction = q->hook == HOOK_HOST_OUTBOUND || q->hook == HOOK_POD_OUTBOUND ? OUTBOUND : INBOUND;
	c->dropped[reason][direction].packets++;
	c->dropped[reason][direction].bytes += p->length;
	note_drop_peer(p, reason, direction, q->now);
	record = new_record(c, pod, q->now, RECORDS_PER_WINDOW);
	if (!record)
		return DROP;
	record->length = p->length;
	record->source = direction == OUTBOUND ? p->tuple.local : p->tuple.remote;
	record->destination = direction == OUTBOUND ? p->tuple.remote : p->tuple.local;
	record->source_port = direction == OUTBOUND ? p->tuple.local_port : p->tuple.remote_port;
	record->destination_port = direction == OUTBOUND ? p->tuple.remote_port : p->tuple.local_port;
	record->reason = reason;
	record->hook = q->hook;
	record->proto = p->proto;
	record->tcp_flags = p->flags;
	bpf_ringbuf_submit(record, 0);
	return DROP;
}

#endif
