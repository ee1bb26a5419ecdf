/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#ifndef HEDDLE_VACANT_H
#define HEDDLE_VACANT_H

/*
 * Refuses a pod's connection to a service that nobody serves, as an address
 * without a listener would: at once, before anybody has accepted it.
 *
 * sk_lookup cannot: it can only drop, and then the kernel sends no reset over
 * IPv4, since the source of that would be no address of the pod's
 * (ip_route_output_key_hash_rcu, net/ipv4/route.c; a socket that is transparent
 * would be excepted, and there is none). So the SYN, which comes back in on lo,
 * is made the reset that answers it, in place: it keeps the route to the pod
 * that it has (loopback_xmit, drivers/net/loopback.c) and reaches the socket
 * that sent it.
 */

#include "maps.h"
#include "packet.h"
#include "record.h"

#define LONGEST_SYN (ETH_LEN + IPV6_LEN + 60)

/*
 * Services that nobody serves, of the whole node. The agent keeps it: what it
 * has no room for, the agent accepts and then resets.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, struct service);
	__type(value, __u32);
} vacant SEC(".maps");

/* Until when the list holds, in ns of CLOCK_MONOTONIC_COARSE: nobody keeps that of an agent that is gone. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} vacant_until SEC(".maps");

static __always_inline bool is_vacant(const struct packet *p, __u64 now)
{
	struct service key = {.address = p->tuple.remote, .port = p->tuple.remote_port};
	__u32 zero = 0;
	__u64 *until;

	if (!bpf_map_lookup_elem(&vacant, &key))
		return false;
	until = bpf_map_lookup_elem(&vacant_until, &zero);
	return until && now < *until;
}

static __always_inline void record_refusal(const struct packet *p, __u32 pod, __u64 now)
{
	struct counters *c = pod_counters();
	struct drop_record *record = c ? new_record(c, pod, now, REFUSALS_PER_WINDOW) : NULL;

	if (!record)
		return;
	record->length = p->length;
	record->source = p->tuple.local;
	record->destination = p->tuple.remote;
	record->source_port = p->tuple.local_port;
	record->destination_port = p->tuple.remote_port;
	record->reason = REFUSED_NO_ENDPOINT;
	record->hook = HOOK_HOST_OUTBOUND; /* it has no hook of the gate, but a direction */
	record->proto = PROTO_TCP;
	record->tcp_flags = p->flags;
	bpf_ringbuf_submit(record, 0);
}

static __always_inline long exchange_ipv4(struct __sk_buff *skb)
{
	const __u32 at = ETH_LEN + offsetof(struct ipv4_header, source);
	__be32 old[2], new[2];
	long err = bpf_skb_load_bytes(skb, at, old, sizeof(old));

	new[0] = old[1];
	new[1] = old[0];
	return err ? err : bpf_skb_store_bytes(skb, at, new, sizeof(new), 0);
}

static __always_inline long exchange_ipv6(struct __sk_buff *skb)
{
	const __u32 at = ETH_LEN + offsetof(struct ipv6_header, source);
	struct address old[2], new[2];
	long err = bpf_skb_load_bytes(skb, at, old, sizeof(old));

	new[0] = old[1];
	new[1] = old[0];
	return err ? err : bpf_skb_store_bytes(skb, at, new, sizeof(new), 0);
}

/*
 * Makes a SYN the reset that answers it (RFC 9293, section 3.10.7.1). That the
 * addresses change places changes no checksum. The SYN's options stay: they say
 * nothing in a reset.
 */
static __always_inline int make_reset(struct __sk_buff *skb, const struct packet *p)
{
	const bool ipv4 = p->ethertype == ETHERTYPE_IPV4;
	const __u32 at = ipv4 ? ETH_LEN + IPV4_LEN : ETH_LEN + IPV6_LEN;
	struct tcp_header old, new;
	__s64 change;

	if (bpf_skb_load_bytes(skb, at, &old, sizeof(old)))
		return DROP;
	new = old;
	new.source = old.destination;
	new.destination = old.source;
	new.sequence = 0;
	new.acknowledgement = bpf_htonl(bpf_ntohl(old.sequence) + 1);
	new.flags = TCP_RST | TCP_ACK;
	new.window = 0;
	change = bpf_csum_diff((__be32 *)&old, sizeof(old), (__be32 *)&new, sizeof(new), 0);
	/* What fails in between must not go on as it is: the client sends its SYN again. */
	if ((ipv4 ? exchange_ipv4(skb) : exchange_ipv6(skb)) ||
	    bpf_skb_store_bytes(skb, at, &new, sizeof(new), 0) ||
	    bpf_l4_csum_replace(skb, at + offsetof(struct tcp_header, checksum), 0, change, 0))
		return DROP;
	return NEXT;
}

/* The tc program of the pod's lo, as packets come back in. */
static __always_inline int refuse_vacant(struct __sk_buff *skb)
{
	struct packet p = {};
	struct pod_config *pod;
	__u64 now;

	/* Nearly all that passes here is data. */
	if (skb->len > LONGEST_SYN || parse(skb, &p, OUTBOUND) || !is_tcp(&p) || (p.flags & (TCP_SYN | TCP_ACK)) != TCP_SYN)
		return NEXT;
	now = bpf_ktime_get_coarse_ns();
	pod = pod_configuration();
	if (!pod || !is_vacant(&p, now) || !is_pod_address(pod, &p.tuple.local))
		return NEXT;
	if (p.tuple.remote_port == DNS_PORT && (pod->flags & POD_CAPTURE_DNS))
		return NEXT; /* the agent answers */
	record_refusal(&p, pod->pod, now);
	return make_reset(skb, &p);
}

#endif
