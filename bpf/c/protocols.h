/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#ifndef HEDDLE_PROTOCOLS_H
#define HEDDLE_PROTOCOLS_H

/*
 * The tables of everything that is not TCP. What is not listed is dropped.
 *
 *   protocol                   outbound                        inbound
 *   ARP                        sender is the pod (or a probe)  well-formed, sender is not the pod
 *   ND: RS, NS, NA             own or link-local source, hop   as outbound, of anybody
 *                              limit 255, its exact length,
 *                              to where it is due; see
 *                              check_solicitation
 *   ND: RA                     -                               hop limit 255
 *   MLD report, done           router alert, hop limit 1, its  as outbound
 *                              exact length, to where it is
 *                              due; see check_mld
 *   MLD query                  -                               router alert, hop limit 1
 *   ICMP errors                no: they carry the pod's bytes  quote a flow, a conversation or a DNS query of
 *                                                              the pod
 *   ICMP echo                  if configured                   if configured
 *   UDP to port 53             unless denied; when captured,   replies within 30 s
 *                              from the agent's sockets only
 *   other UDP                  if a rule or the configuration  as outbound
 *                              says so, see datagrams.h
 */

#include "account.h"
#include "datagrams.h"
#include "stamps.h"

/* Groups in one report. A pod has one for each of its addresses, and those that it listens to. */
#define MOST_MLD_RECORDS 16

#define ICMP_ECHO_REPLY 0
#define ICMP_UNREACHABLE 3
#define ICMP_ECHO 8
#define ICMP_TIME_EXCEEDED 11
#define ICMP_PARAMETER_PROBLEM 12

#define ICMPV6_UNREACHABLE 1
#define ICMPV6_PARAMETER_PROBLEM 4
#define ICMPV6_ECHO 128
#define ICMPV6_ECHO_REPLY 129
#define MLD_QUERY 130
#define MLD_REPORT 131
#define MLD_DONE 132
#define ND_ROUTER_SOLICITATION 133
#define ND_ROUTER_ADVERTISEMENT 134
#define ND_NEIGHBOUR_SOLICITATION 135
#define ND_NEIGHBOUR_ADVERTISEMENT 136
#define MLD2_REPORT 143

/* Options of neighbour discovery (RFC 4861, section 4.6; RFC 3971, section 5.3.2). */
#define ND_SOURCE_LINK_ADDRESS 1
#define ND_TARGET_LINK_ADDRESS 2
#define ND_NONCE 14
#define ND_OPTION_LEN 8 /* of each of them on Ethernet */
/* Flags of an advertisement: router, solicited, override. */
#define ND_FLAGS 0xe0000000
#define ND_SOLICITED 0x40000000

/* UDP tuples that the pod opened. An LRU: an evicted one costs a DNS retry. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 2048);
	__type(key, struct tuple);
	__type(value, __u64); /* time of the last datagram out, ns */
} datagrams SEC(".maps");

struct arp_packet {
	__be16 hardware_type;
	__be16 protocol_type;
	__u8 hardware_length;
	__u8 protocol_length;
	__be16 operation;
	__u8 sender_hardware[6];
	__be32 sender;
	__u8 target_hardware[6];
	__be32 target;
} __attribute__((packed));

/* ICMPv6 and MLD, what reports of both versions begin with (RFC 2710, section 3; RFC 3810, section 5.2). */
struct mld_header {
	__u8 type;
	__u8 code;
	__be16 checksum;
	__be16 delay;   /* of a query; 0 in all others */
	__be16 records; /* of MLDv2; 0 before */
};

/* What solicitations and neighbour advertisements begin with (RFC 4861, sections 4.1, 4.3 and 4.4). */
struct nd_header {
	__u8 type;
	__u8 code;
	__be16 checksum;
	__be32 flags; /* R, S and O of an advertisement; reserved otherwise */
};

struct mld_record {
	__u8 type;
	__u8 auxiliary_length;
	__be16 sources;
	struct address group;
};

static __always_inline enum drop_reason
check_arp(struct __sk_buff *skb, struct packet *p, struct pod_config *pod, enum direction direction)
{
	struct address sender;
	struct arp_packet arp;
	bool own;

	if (bpf_skb_load_bytes(skb, ETH_LEN, &arp, sizeof(arp)))
		return DROP_MALFORMED;
	if (arp.hardware_type != bpf_htons(1) || arp.protocol_type != bpf_htons(ETHERTYPE_IPV4) ||
	    arp.hardware_length != 6 || arp.protocol_length != 4)
		return DROP_MALFORMED;
	map_ipv4(&sender, arp.sender);
	if (direction == OUTBOUND) {
		p->tuple.local = sender;
		map_ipv4(&p->tuple.remote, arp.target);
	} else {
		p->tuple.remote = sender;
		map_ipv4(&p->tuple.local, arp.target);
	}
	own = is_pod_address(pod, &sender);
	if (direction == INBOUND)
		return own ? DROP_FORGED_SOURCE : DROP_NONE;
	if (p->length != sizeof(arp))
		return DROP_MALFORMED;
	/* Sender 0 is a probe (RFC 5227). */
	return own || !arp.sender ? DROP_NONE : DROP_FORGED_SOURCE;
}

static __always_inline bool is_link_local(const struct address *a)
{
	return (bpf_ntohl(a->word[0]) & 0xffc00000) == 0xfe800000;
}

static __always_inline bool is_unspecified(const struct address *a)
{
	return !a->word[0] && !a->word[1] && !a->word[2] && !a->word[3];
}

/* May the pod speak as this address in neighbour discovery? */
static __always_inline bool is_neighbour(struct pod_config *pod, const struct address *a)
{
	return is_link_local(a) || is_pod_address(pod, a);
}

static __always_inline bool is_link_group(const struct address *a, __u32 last)
{
	return a->word[0] == bpf_htonl(0xff020000) && !a->word[1] && !a->word[2] && a->word[3] == bpf_htonl(last);
}

/* MLDv1: one group, which a report goes to itself, and a done to all routers (RFC 2710, section 8). */
static __always_inline bool is_mld1(struct __sk_buff *skb, const struct packet *p, const struct address *to, __u8 type)
{
	struct address group;

	if (p->length + ETH_LEN - p->l4 != sizeof(struct mld_header) + sizeof(group) ||
	    bpf_skb_load_bytes(skb, p->l4 + sizeof(struct mld_header), &group, sizeof(group)))
		return false;
	if (type == MLD_DONE)
		return is_link_group(to, 2) && bpf_ntohl(group.word[0]) >> 24 == 0xff;
	return same_address(to, &group);
}

/*
 * MLDv2: records of one group each, to ff02::16 (RFC 3810, section 5.2.14).
 * Neither auxiliary data, which nothing defines, nor sources: what a pod may say
 * freely are never more than the 15 bytes of a group.
 */
static __always_inline bool is_mld2(struct __sk_buff *skb, const struct packet *p, const struct address *to, __u32 records)
{
	struct mld_record record;
	__u32 i;

	if (!records || records > MOST_MLD_RECORDS || !is_link_group(to, 0x16) ||
	    p->length + ETH_LEN - p->l4 != sizeof(struct mld_header) + records * sizeof(record))
		return false;
	for (i = 0; i < MOST_MLD_RECORDS && i < records; i++) {
		if (bpf_skb_load_bytes(skb, p->l4 + sizeof(struct mld_header) + i * sizeof(record), &record, sizeof(record)))
			return false;
		if (record.type < 1 || record.type > 6 || record.auxiliary_length || record.sources ||
		    bpf_ntohl(record.group.word[0]) >> 24 != 0xff)
			return false;
	}
	return true;
}

/*
 * MLD's reports and dones, to ff02::/16 only, so that they do not leave the link.
 * Neighbours on it get them all, and their gates let them in: nothing but what the
 * protocol says fits in.
 */
static __noinline int check_mld(struct __sk_buff *skb, struct packet *p, const struct address *to)
{
	struct mld_header header;
	bool fits;

	if (!p || !to || !p->router_alert || p->hop_limit != 1 || bpf_ntohl(to->word[0]) >> 16 != 0xff02)
		return DROP_ICMP;
	if (bpf_skb_load_bytes(skb, p->l4, &header, sizeof(header)) || header.code || header.delay)
		return DROP_ICMP;
	if (header.type == MLD2_REPORT)
		fits = is_mld2(skb, p, to, bpf_ntohs(header.records));
	else
		fits = !header.records && is_mld1(skb, p, to, header.type);
	return fits ? DROP_NONE : DROP_ICMP;
}

static __always_inline bool is_group(const struct address *a)
{
	return bpf_ntohl(a->word[0]) >> 24 == 0xff;
}

static __always_inline bool is_solicited_group(const struct address *a, const struct address *target)
{
	return a->word[0] == bpf_htonl(0xff020000) && !a->word[1] && a->word[2] == bpf_htonl(1) &&
	       a->word[3] == (target->word[3] | bpf_htonl(0xff000000));
}

/*
 * Is this where such a message goes? A solicitation without a source asks whether an
 * address is free. An advertisement that nobody asked for goes to all nodes, or all
 * routers (RFC 9131).
 */
static __always_inline bool
is_due(const struct nd_header *header, const struct address *to, const struct address *target, bool nobody)
{
	if (header->type == ND_ROUTER_SOLICITATION)
		return is_link_group(to, 2);
	if (is_group(target))
		return false;
	if (header->type == ND_NEIGHBOUR_SOLICITATION)
		return is_solicited_group(to, target) || (!nobody && same_address(to, target));
	if (nobody)
		return false;
	return !is_group(to) || (!(header->flags & bpf_htonl(ND_SOLICITED)) && (is_link_group(to, 1) || is_link_group(to, 2)));
}

/* Only what Linux sends: one option at most, the sender's address on the link, or the nonce of RFC 7527. */
static __always_inline bool fits_option(struct __sk_buff *skb, __u32 at, __u32 length, __u8 type, bool nobody)
{
	__u8 option[2];

	if (!length)
		return true;
	if (length != ND_OPTION_LEN || bpf_skb_load_bytes(skb, at, option, sizeof(option)) || option[1] != 1)
		return false;
	if (type == ND_NEIGHBOUR_ADVERTISEMENT)
		return option[0] == ND_TARGET_LINK_ADDRESS;
	if (nobody)
		return type == ND_NEIGHBOUR_SOLICITATION && option[0] == ND_NONCE;
	return option[0] == ND_SOURCE_LINK_ADDRESS;
}

/*
 * Solicitations and neighbour advertisements, of which target is read. A node forwards
 * those to an address elsewhere as any packet: but for the six bytes of an option, and
 * the target of an advertisement, which may_claim judges, no byte is the pod's to choose.
 */
static __noinline int
check_solicitation(struct __sk_buff *skb, struct packet *p, struct address *target, enum direction direction)
{
	const struct address *from, *to;
	__u32 length, fixed = sizeof(struct nd_header);
	struct nd_header header;
	bool nobody;

	if (!p || !target || p->router_alert || p->hop_limit != 255 || bpf_skb_load_bytes(skb, p->l4, &header, sizeof(header)))
		return DROP_ICMP;
	if (header.code || header.flags & (header.type == ND_NEIGHBOUR_ADVERTISEMENT ? bpf_htonl(~ND_FLAGS) : ~0U))
		return DROP_ICMP;
	if (header.type != ND_ROUTER_SOLICITATION) {
		if (bpf_skb_load_bytes(skb, p->l4 + sizeof(header), target, sizeof(*target)))
			return DROP_MALFORMED;
		fixed += sizeof(*target);
	}
	length = p->length + ETH_LEN - p->l4;
	from = direction == OUTBOUND ? &p->tuple.local : &p->tuple.remote;
	to = direction == OUTBOUND ? &p->tuple.remote : &p->tuple.local;
	nobody = is_unspecified(from);
	if (length < fixed || !is_due(&header, to, target, nobody) ||
	    !fits_option(skb, p->l4 + fixed, length - fixed, header.type, nobody))
		return DROP_ICMP;
	return DROP_NONE;
}

/*
 * May the pod say that it has the target, or ask whether it may take it? In a
 * link-local address all but ten bits are free: where it goes to one address, it is the
 * source, too, as it is with Linux, and no router forwards that (RFC 4291, section 2.5.6).
 */
static __always_inline bool
may_claim(struct pod_config *pod, const struct address *from, const struct address *target)
{
	if (is_link_local(target))
		return is_unspecified(from) || same_address(from, target);
	return is_pod_address(pod, target);
}

/* Neighbour discovery and MLD from the pod. */
static __always_inline enum drop_reason
check_neighbour_outbound(struct __sk_buff *skb, struct packet *p, struct pod_config *pod, __u8 type)
{
	bool nobody = is_unspecified(&p->tuple.local);
	struct address target = {};
	int reason;

	if (!nobody && !is_neighbour(pod, &p->tuple.local))
		return DROP_FORGED_SOURCE;
	switch (type) {
	case MLD_REPORT:
	case MLD_DONE:
	case MLD2_REPORT:
		return check_mld(skb, p, &p->tuple.remote);
	case ND_ROUTER_SOLICITATION:
	case ND_NEIGHBOUR_SOLICITATION:
	case ND_NEIGHBOUR_ADVERTISEMENT:
		reason = check_solicitation(skb, p, &target, OUTBOUND);
		if (reason)
			return reason;
		break;
	default:
		return DROP_ICMP;
	}
	if (type == ND_NEIGHBOUR_ADVERTISEMENT || (type == ND_NEIGHBOUR_SOLICITATION && nobody))
		return may_claim(pod, &p->tuple.local, &target) ? DROP_NONE : DROP_FORGED_SOURCE;
	return DROP_NONE;
}

static __always_inline enum drop_reason check_neighbour_inbound(struct __sk_buff *skb, struct packet *p, __u8 type)
{
	struct address target = {};

	switch (type) {
	case MLD_REPORT:
	case MLD_DONE:
	case MLD2_REPORT:
		return check_mld(skb, p, &p->tuple.local);
	case MLD_QUERY:
		return p->router_alert && p->hop_limit == 1 ? DROP_NONE : DROP_ICMP;
	case ND_ROUTER_SOLICITATION:
	case ND_NEIGHBOUR_SOLICITATION:
	case ND_NEIGHBOUR_ADVERTISEMENT:
		return check_solicitation(skb, p, &target, INBOUND);
	case ND_ROUTER_ADVERTISEMENT:
		return !p->router_alert && p->hop_limit == 255 ? DROP_NONE : DROP_ICMP;
	}
	return DROP_ICMP;
}

/*
 * An ICMP error passes inbound when what it quotes is a packet of the pod:
 * path MTU discovery needs these, nobody else does.
 */
static __noinline int check_quoted(struct __sk_buff *skb, struct packet *p, __u32 flags)
{
	struct tuple quoted = {};
	struct ipv4_header ip;
	struct ipv6_header ip6;
	__be16 ports[2];
	__u32 at;
	__u8 proto;

	if (!p)
		return DROP_ICMP;
	at = p->l4 + 8;
	if (p->ethertype == ETHERTYPE_IPV4) {
		if (bpf_skb_load_bytes(skb, at, &ip, sizeof(ip)) || ip.version_ihl != 0x45)
			return DROP_ICMP;
		map_ipv4(&quoted.local, ip.source);
		map_ipv4(&quoted.remote, ip.destination);
		proto = ip.protocol;
		at += sizeof(ip);
	} else {
		if (bpf_skb_load_bytes(skb, at, &ip6, sizeof(ip6)))
			return DROP_ICMP;
		quoted.local = ip6.source;
		quoted.remote = ip6.destination;
		proto = ip6.next_header;
		at += sizeof(ip6);
	}
	if (bpf_skb_load_bytes(skb, at, ports, sizeof(ports)))
		return DROP_ICMP;
	quoted.local_port = bpf_ntohs(ports[0]);
	quoted.remote_port = bpf_ntohs(ports[1]);
	if (proto == PROTO_TCP && (bpf_map_lookup_elem(&flows, &quoted) || bpf_map_lookup_elem(&transient, &quoted)))
		return DROP_NONE;
	if (proto == PROTO_UDP && bpf_map_lookup_elem(&datagrams, &quoted))
		return DROP_NONE;
	if (proto == PROTO_UDP && (flags & POD_DATAGRAMS) && has_conversation(&quoted, flags, bpf_ktime_get_coarse_ns()))
		return DROP_NONE;
	return DROP_ICMP;
}

static __always_inline bool is_error(struct packet *p, __u8 type)
{
	if (p->ethertype == ETHERTYPE_IPV4)
		return type == ICMP_UNREACHABLE || type == ICMP_TIME_EXCEEDED || type == ICMP_PARAMETER_PROBLEM;
	return type >= ICMPV6_UNREACHABLE && type <= ICMPV6_PARAMETER_PROBLEM;
}

static __always_inline bool is_echo(struct packet *p, __u8 type)
{
	if (p->ethertype == ETHERTYPE_IPV4)
		return type == ICMP_ECHO || type == ICMP_ECHO_REPLY;
	return type == ICMPV6_ECHO || type == ICMPV6_ECHO_REPLY;
}

static __always_inline enum drop_reason
check_icmp(struct __sk_buff *skb, struct packet *p, struct pod_config *pod, enum direction direction)
{
	__u8 type;

	if (p->l4 + 8 > p->length + ETH_LEN || bpf_skb_load_bytes(skb, p->l4, &type, sizeof(type)))
		return DROP_MALFORMED;
	if (is_echo(p, type)) {
		if (!(pod->flags & POD_ALLOW_ECHO) || p->router_alert)
			return DROP_ICMP;
		if (direction == OUTBOUND && !is_pod_address(pod, &p->tuple.local))
			return DROP_FORGED_SOURCE;
		return DROP_NONE;
	}
	if (direction == INBOUND && is_error(p, type) && !p->router_alert)
		return check_quoted(skb, p, pod->flags);
	if (p->ethertype == ETHERTYPE_IPV4)
		return DROP_ICMP;
	return direction == OUTBOUND ? check_neighbour_outbound(skb, p, pod, type)
				     : check_neighbour_inbound(skb, p, type);
}

/*
 * Does the packet go where its socket is connected to? The pod's netfilter, which is
 * its own root's to command, sees what the agent sends before the gate does, and could
 * have given it another destination. Its source is the pod's in any case; the port of
 * a socket that was closed is 0 while its last segments are on their way.
 */
static __always_inline bool is_for_peer_of(struct bpf_sock *sk, const struct packet *p)
{
	const struct address *to = &p->tuple.remote;
	__u32 different;

	if (bpf_ntohs(sk->dst_port) != p->tuple.remote_port)
		return false;
	if (p->ethertype == ETHERTYPE_IPV4)
		return sk->dst_ip4 == to->word[3];
	/* One load each, at the offset that it has: the verifier knows no pointer into a socket. */
	different = ((volatile struct bpf_sock *)sk)->dst_ip6[0] ^ to->word[0];
	different |= ((volatile struct bpf_sock *)sk)->dst_ip6[1] ^ to->word[1];
	different |= ((volatile struct bpf_sock *)sk)->dst_ip6[2] ^ to->word[2];
	different |= ((volatile struct bpf_sock *)sk)->dst_ip6[3] ^ to->word[3];
	return !different;
}

/* From a UDP socket that the agent made to ask for the pod? A raw one that carries UDP is none. */
static __always_inline bool is_agents_datagram(struct __sk_buff *skb, const struct packet *p)
{
	struct bpf_sock *sk = skb->sk, *full;
	struct stamp *stamp;

	if (!sk)
		return false;
	full = bpf_sk_fullsock(sk);
	if (!full || full->type != SOCK_DGRAM || full->protocol != PROTO_UDP)
		return false;
	stamp = bpf_sk_storage_get(&stamps, full, NULL, 0);
	return stamp && stamp->class == CLASS_PLAINTEXT && (!full->dst_port || is_for_peer_of(full, p));
}

static __always_inline enum drop_reason
check_udp(struct __sk_buff *skb, struct packet *p, struct pod_config *pod, enum direction direction, bool counting, __u64 now)
{
	__u64 *opened;

	if (direction == OUTBOUND) {
		if (!is_pod_address(pod, &p->tuple.local))
			return DROP_FORGED_SOURCE;
		if (!(pod->flags & POD_ALLOW_UDP) && (p->tuple.remote_port != DNS_PORT || (pod->flags & POD_DENY_DNS)))
			return pod->flags & POD_DATAGRAMS ? check_conversation(p, OUTBOUND, counting, pod->flags, now) : DROP_UDP;
		if (p->tuple.remote_port == DNS_PORT && (pod->flags & POD_CAPTURE_DNS) && !is_agents_datagram(skb, p))
			return DROP_UNSTAMPED;
		bpf_map_update_elem(&datagrams, &p->tuple, &now, BPF_ANY);
		return DROP_NONE;
	}
	if (is_pod_address(pod, &p->tuple.remote))
		return DROP_FORGED_SOURCE;
	if (pod->flags & POD_ALLOW_UDP)
		return DROP_NONE;
	opened = bpf_map_lookup_elem(&datagrams, &p->tuple);
	if (opened && now - *opened < DATAGRAM_REPLY_WINDOW)
		return DROP_NONE;
	if (!(pod->flags & POD_DATAGRAMS) || !is_pod_address(pod, &p->tuple.local))
		return DROP_UDP;
	return check_conversation(p, INBOUND, counting, pod->flags, now);
}

/* Everything that is not TCP. Sets the kind that it counts as. */
static __always_inline enum drop_reason
check_other(struct __sk_buff *skb, struct packet *p, struct pod_config *pod, enum direction direction,
	    bool counting, __u64 now, enum flow_kind *kind)
{
	*kind = FLOW_CONTROL;
	if (p->ethertype == ETHERTYPE_ARP)
		return check_arp(skb, p, pod, direction);
	if (p->ethertype == ETHERTYPE_IPV4 && p->proto == PROTO_ICMP)
		return check_icmp(skb, p, pod, direction);
	if (p->ethertype == ETHERTYPE_IPV6 && p->proto == PROTO_ICMPV6)
		return check_icmp(skb, p, pod, direction);
	if (p->proto == PROTO_UDP) {
		*kind = FLOW_DATAGRAM;
		return check_udp(skb, p, pod, direction, counting, now);
	}
	return DROP_PROTOCOL;
}

#endif
