/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#ifndef HEDDLE_DATAGRAMS_H
#define HEDDLE_DATAGRAMS_H

/*
 * UDP between pods, where policy says so. What policy comes to are rules: which
 * address may send to which port, with which the agent fills a table of the
 * pod's. The pod's first datagram to an address and port, or theirs to the pod,
 * needs one and opens a conversation; answers pass while the conversation is
 * young and its rule is there. Both tables are made when a pod gets its first
 * rule: without one, no memory is spent, and nothing passes.
 *
 * Where the Mesh says so, the pod may open conversations with whoever is not in
 * it: by rules for all of those, to addresses that a third table has as open.
 */

#include "maps.h"
#include "packet.h"
#include "rules.h"

#define NANOSECONDS_PER_SECOND 1000000000ULL
#define DATAGRAM_REPLY_WINDOW (30 * NANOSECONDS_PER_SECOND)

/* One slot. An LRU: an evicted conversation costs an answer, until who opened it goes on. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(values, struct {
		__uint(type, BPF_MAP_TYPE_LRU_HASH);
		__uint(max_entries, 4096);
		__type(key, struct tuple);
		__type(value, struct conversation);
	});
} conversations SEC(".maps");

/* One slot. Which blocks of addresses are outside, 1, or inside, 0: rules of the former open nothing else. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(values, struct {
		__uint(type, BPF_MAP_TYPE_LPM_TRIE);
		__uint(map_flags, BPF_F_NO_PREALLOC);
		__uint(max_entries, 4098);
		__type(key, struct block);
		__type(value, __u32);
	});
} outside SEC(".maps");

static __always_inline void *conversation_table(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&conversations, &zero);
}

/*
 * Ports that no rule opens outside. 53 is as DNS is; by VXLAN (4789, 8472, 4790 with
 * other protocols in it) and Geneve (6081) a node would take, and pass on, what
 * nobody has looked at, from whomever it claims to be.
 */
static __always_inline bool is_closed_port(__u16 port)
{
	switch (port) {
	case 0: /* stands for the others, in rules */
	case DNS_PORT:
	case 4789:
	case 4790:
	case 6081:
	case 8472:
		return true;
	}
	return false;
}

/* May the pod open this conversation because nobody of the mesh is at its other end? */
static __noinline int leads_outside(const struct tuple *t)
{
	struct datagram_rule rule = {.direction = OUTBOUND, .outside = 1};
	struct block block = {.length = 128};
	__u32 zero = 0, *open;
	void *rules, *blocks;

	if (!t || is_closed_port(t->remote_port))
		return false;
	rules = bpf_map_lookup_elem(&datagram_rules, &zero);
	blocks = bpf_map_lookup_elem(&outside, &zero);
	if (!rules || !blocks)
		return false;
	if (!bpf_map_lookup_elem(rules, &rule)) {
		rule.port = t->remote_port;
		if (!bpf_map_lookup_elem(rules, &rule))
			return false;
	}
	block.address = t->remote;
	open = bpf_map_lookup_elem(blocks, &block);
	return open && *open;
}

/* May a conversation between these two be opened in this direction? */
static __always_inline bool has_rule(const struct tuple *t, __u32 opened, __u32 flags)
{
	struct datagram_rule rule = {.remote = t->remote, .direction = opened};
	__u32 zero = 0;
	void *rules = bpf_map_lookup_elem(&datagram_rules, &zero);

	rule.port = opened == OUTBOUND ? t->remote_port : t->local_port;
	if (rules && bpf_map_lookup_elem(rules, &rule))
		return true;
	return (flags & POD_OUTSIDE) && opened == OUTBOUND && leads_outside(t);
}

/* Signed: another CPU may have written a tick later than now. */
static __always_inline bool is_young(const struct conversation *c, __u64 now)
{
	return (__s64)(now - c->asked) < (__s64)DATAGRAM_REPLY_WINDOW;
}

/* Is there a conversation of this tuple in which an answer would pass? For errors that quote one. */
static __always_inline bool has_conversation(struct tuple *t, __u32 flags, __u64 now)
{
	void *table = conversation_table();
	struct conversation *c = table ? bpf_map_lookup_elem(table, t) : NULL;

	return c && is_young(c, now) && has_rule(t, c->direction, flags);
}

static __always_inline void
count_datagram(struct conversation *c, const struct packet *p, __u32 direction, __u64 now)
{
	c->last_seen = now;
	__sync_fetch_and_add(&c->packets[direction & 1], 1);
	__sync_fetch_and_add(&c->bytes[direction & 1], p->payload);
}

/*
 * A datagram of a pod that has rules. Each one asks for the rule, an answer for
 * that of the conversation, so that nothing outlives a rule that is gone; what is
 * no answer then may have a rule of its own, and opens the conversation anew.
 */
static __noinline int check_conversation(struct packet *p, __u32 direction, __u32 counting, __u32 flags, __u64 now)
{
	void *table = conversation_table();
	struct conversation fresh = {};
	struct conversation *c;

	if (!p || !table)
		return DROP_UDP;
	c = bpf_map_lookup_elem(table, &p->tuple);
	if (c && c->direction != direction && is_young(c, now) && has_rule(&p->tuple, c->direction, flags)) {
		/* An answer. */
	} else if (!has_rule(&p->tuple, direction, flags)) {
		return DROP_UDP;
	} else if (c && c->direction == direction) {
		c->asked = now;
	} else {
		fresh.opened = now;
		fresh.asked = now;
		fresh.direction = direction;
		if (bpf_map_update_elem(table, &p->tuple, &fresh, BPF_ANY))
			return DROP_BUDGET;
		c = bpf_map_lookup_elem(table, &p->tuple);
	}
	if (c && c->direction == INBOUND)
		p->flags = DATAGRAM_SERVED;
	if (c && counting)
		count_datagram(c, p, direction, now);
	return DROP_NONE;
}

#endif
