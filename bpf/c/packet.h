/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#ifndef HEDDLE_PACKET_H
#define HEDDLE_PACKET_H

/*
 * Reads a frame of the pod into struct packet. Everything that later rules
 * rely on is checked here: header lengths agree with the frame's, no
 * fragments, no options, no extension headers. Protocols that are not TCP are
 * told apart; their tables are in protocols.h.
 */

#include "kernel.h"
#include "types.h"

#define ETH_ADDRESS_LEN 6
#define ETH_LEN 14
#define IPV4_LEN 20
#define IPV6_LEN 40
#define TCP_LEN 20
#define UDP_LEN 8

#define ETHERTYPE_IPV4 0x0800
#define ETHERTYPE_ARP 0x0806
#define ETHERTYPE_IPV6 0x86dd

#define PROTO_ICMP 1
#define PROTO_TCP 6
#define PROTO_UDP 17
#define PROTO_ICMPV6 58

#define NEXT_HOP_BY_HOP 0
#define NEXT_FRAGMENT 44

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_PSH 0x08
#define TCP_ACK 0x10
#define TCP_URG 0x20

struct ipv4_header {
	__u8 version_ihl;
	__u8 tos;
	__be16 total_length;
	__be16 id;
	__be16 fragment;
	__u8 ttl;
	__u8 protocol;
	__be16 checksum;
	__be32 source;
	__be32 destination;
};

struct ipv6_header {
	__be32 version_class_flow;
	__be16 payload_length;
	__u8 next_header;
	__u8 hop_limit;
	struct address source;
	struct address destination;
};

struct tcp_header {
	__be16 source;
	__be16 destination;
	__be32 sequence;
	__be32 acknowledgement;
	__u8 data_offset;
	__u8 flags;
	__be16 window;
	__be16 checksum;
	__be16 urgent;
};

/* packet.flags: the other end opened the conversation, so the port that is served is the pod's. */
#define DATAGRAM_SERVED 1

struct packet {
	struct tuple tuple;
	__u32 length;   /* of the IP packet, without padding of the frame */
	__u32 payload;  /* bytes after the TCP or UDP header */
	__u16 ethertype;
	__u16 l4;       /* offset of the transport header in the frame */
	__u8 proto;     /* of the transport header */
	__u8 flags;     /* TCP; of a datagram in a conversation, DATAGRAM_SERVED */
	__u8 hop_limit;
	__u8 router_alert; /* IPv6 with the hop-by-hop header that MLD has */
};

/* The header at an offset of the frame, or NULL when the linear part ends before. */
static __always_inline void *header_at(struct __sk_buff *skb, __u32 offset, __u32 size)
{
	void *end = (void *)(long)skb->data_end;
	void *header = (void *)(long)skb->data + offset;

	/* The verifier must see this very pointer compared, not offset + size added to another. */
	asm volatile("" : "+r"(header));
	return header + size > end ? NULL : header;
}

/*
 * Makes the headers linear. The stack's own packets have them so; those of
 * packet sockets may not. A short frame that is linear as a whole, such as a bare
 * ACK, has nothing to be pulled.
 */
static __always_inline void linearize(struct __sk_buff *skb)
{
	__u32 wanted = ETH_LEN + IPV6_LEN + TCP_LEN;

	if (skb->len < wanted)
		wanted = skb->len;
	if (header_at(skb, 0, wanted))
		return;
	/* When it fails the headers are missed later, and the frame drops as malformed. */
	bpf_skb_pull_data(skb, wanted);
}

static __always_inline bool is_tcp(const struct packet *p)
{
	return p->proto == PROTO_TCP && p->ethertype != ETHERTYPE_ARP;
}

/* A frame from the pod has no trailer: bytes behind the packet would leave unseen. */
static __always_inline enum drop_reason
check_length(struct __sk_buff *skb, struct packet *p, __u32 header, enum direction direction)
{
	__u32 have = skb->len - ETH_LEN;

	/* BIG TCP carries 0 here; CheckGate refuses links that have it on. */
	if (p->length < header || p->length > have)
		return DROP_MALFORMED;
	if (direction == OUTBOUND && p->length != have)
		return DROP_MALFORMED;
	return DROP_NONE;
}

static __always_inline enum drop_reason
parse_ipv4(struct __sk_buff *skb, struct packet *p, enum direction direction)
{
	const struct ipv4_header *ip = header_at(skb, ETH_LEN, sizeof(*ip));
	struct address *source = direction == OUTBOUND ? &p->tuple.local : &p->tuple.remote;
	struct address *destination = direction == OUTBOUND ? &p->tuple.remote : &p->tuple.local;

	if (!ip || ip->version_ihl >> 4 != 4 || (ip->version_ihl & 15) < 5)
		return DROP_MALFORMED;
	map_ipv4(source, ip->source);
	map_ipv4(destination, ip->destination);
	p->proto = ip->protocol;
	p->length = bpf_ntohs(ip->total_length);
	p->hop_limit = ip->ttl;
	p->l4 = ETH_LEN + IPV4_LEN;
	if ((ip->version_ihl & 15) > 5)
		return DROP_IP_OPTIONS;
	if (ip->fragment & bpf_htons(0x3fff))
		return DROP_FRAGMENT;
	return check_length(skb, p, IPV4_LEN, direction);
}

/*
 * The one extension header that passes: hop-by-hop with router alert before
 * ICMPv6, 8 bytes, as MLD has it (RFC 3810, section 5). Without MLD a snooping
 * bridge stops delivering neighbour solicitations.
 */
static __always_inline bool is_router_alert(struct __sk_buff *skb)
{
	__u8 option[8];

	if (bpf_skb_load_bytes(skb, ETH_LEN + IPV6_LEN, option, sizeof(option)))
		return false;
	return option[0] == PROTO_ICMPV6 && option[1] == 0 && option[2] == 5 && option[3] == 2 &&
	       option[4] == 0 && option[5] == 0 && option[6] == 1 && option[7] == 0;
}

static __always_inline bool is_extension_header(__u8 next)
{
	switch (next) {
	case NEXT_HOP_BY_HOP:
	case 43: /* routing */
	case 51: /* authentication */
	case 60: /* destination options */
	case 135: /* mobility */
	case 139: /* host identity */
	case 140: /* shim6 */
	case 253: /* experiments */
	case 254:
		return true;
	}
	return false;
}

static __always_inline enum drop_reason
parse_ipv6(struct __sk_buff *skb, struct packet *p, enum direction direction)
{
	struct address *source = direction == OUTBOUND ? &p->tuple.local : &p->tuple.remote;
	struct address *destination = direction == OUTBOUND ? &p->tuple.remote : &p->tuple.local;
	const struct ipv6_header *ip = header_at(skb, ETH_LEN, sizeof(*ip));

	if (!ip || (bpf_ntohl(ip->version_class_flow) >> 28) != 6)
		return DROP_MALFORMED;
	*source = ip->source;
	*destination = ip->destination;
	/* A mapped address on the wire would be taken for IPv4 (RFC 4291, section 2.5.5.2). */
	if (is_ipv4(source) || is_ipv4(destination))
		return DROP_MALFORMED;
	p->proto = ip->next_header;
	p->length = IPV6_LEN + bpf_ntohs(ip->payload_length);
	p->hop_limit = ip->hop_limit;
	p->l4 = ETH_LEN + IPV6_LEN;
	if (p->proto == NEXT_FRAGMENT)
		return DROP_FRAGMENT;
	if (p->proto == NEXT_HOP_BY_HOP && is_router_alert(skb)) {
		p->router_alert = 1;
		p->proto = PROTO_ICMPV6;
		p->l4 += 8;
		return check_length(skb, p, IPV6_LEN + 8, direction);
	}
	if (is_extension_header(p->proto))
		return DROP_EXTENSION_HEADER;
	return check_length(skb, p, IPV6_LEN, direction);
}

static __always_inline enum drop_reason
parse_tcp(struct __sk_buff *skb, struct packet *p, enum direction direction)
{
	__u32 available = p->length + ETH_LEN - p->l4;
	/* At most 62; the mask tells the verifier, to which it came back from the stack. */
	const struct tcp_header *tcp = header_at(skb, p->l4 & 127, sizeof(*tcp));
	__u32 header;

	if (!tcp)
		return DROP_MALFORMED;
	header = (tcp->data_offset >> 4) * 4;
	if (header < TCP_LEN || header > available)
		return DROP_MALFORMED;
	p->payload = available - header;
	p->flags = tcp->flags & (TCP_FIN | TCP_SYN | TCP_RST | TCP_PSH | TCP_ACK | TCP_URG);
	p->tuple.local_port = bpf_ntohs(direction == OUTBOUND ? tcp->source : tcp->destination);
	p->tuple.remote_port = bpf_ntohs(direction == OUTBOUND ? tcp->destination : tcp->source);
	/* No stack sends these; they confuse what follows (RFC 9293, section 3.10.7). */
	if ((p->flags & TCP_SYN) && (p->flags & (TCP_FIN | TCP_RST)))
		return DROP_MALFORMED;
	return DROP_NONE;
}

/* The bytes of TCP options. */
static __always_inline __u32 options_length(const struct packet *p)
{
	return p->length + ETH_LEN - p->l4 - p->payload - TCP_LEN;
}

#define OPTION_TIMESTAMPS 0x0101080a /* two NOPs, and the head of 8 bytes */
#define OPTION_SACK_TIMESTAMPS 0x0402080a
#define OPTION_SACK 0x01010402
#define OPTION_SCALE 0x01030300
#define OPTION_MSS 0x02040000

/*
 * Are the options those of segments without a full socket? None, or timestamps
 * (net/ipv4/tcp_ipv4.c, tcp_v4_send_ack; net/ipv6/tcp_ipv6.c, tcp_v6_send_response).
 */
static __always_inline bool is_bare(struct __sk_buff *skb, const struct packet *p)
{
	__u32 length = options_length(p);
	__be32 head;

	if (!length)
		return true;
	return length == 12 && !bpf_skb_load_bytes(skb, p->l4 + TCP_LEN, &head, sizeof(head)) &&
	       head == bpf_htonl(OPTION_TIMESTAMPS);
}

/*
 * Are the options those of a SYN-ACK with a cookie? The segment size, then what the
 * client said, too: timestamps, SACK, a window scale (net/ipv4/tcp_output.c,
 * tcp_synack_options and tcp_options_write).
 */
static __always_inline bool is_cookie(struct __sk_buff *skb, const struct packet *p)
{
	__be32 words[5] = {};
	__u64 length = options_length(p);
	__be32 last;

	/* The verifier must see this very value compared, not another that is made of it. */
	asm volatile("" : "+r"(length));
	if (length > sizeof(words))
		return false;
	asm volatile("" : "+r"(length));
	if (length < 4)
		return false;
	asm volatile("" : "+r"(length));
	if (bpf_skb_load_bytes(skb, p->l4 + TCP_LEN, words, length))
		return false;
	if ((words[0] & bpf_htonl(0xffff0000)) != bpf_htonl(OPTION_MSS))
		return false;
	last = words[1];
	if (words[1] == bpf_htonl(OPTION_SACK_TIMESTAMPS) || words[1] == bpf_htonl(OPTION_TIMESTAMPS)) {
		if (length < 16)
			return false;
		last = words[4];
		length -= 12;
	} else if (words[1] == bpf_htonl(OPTION_SACK)) {
		last = words[2];
		length -= 4;
	}
	return length == 4 || (length == 8 && (last & bpf_htonl(0xffffff00)) == bpf_htonl(OPTION_SCALE));
}

static __always_inline enum drop_reason
parse_udp(struct __sk_buff *skb, struct packet *p, enum direction direction)
{
	__u32 available = p->length + ETH_LEN - p->l4;
	__be16 udp[4]; /* source, destination, length, checksum */

	if (available < UDP_LEN || bpf_skb_load_bytes(skb, p->l4, udp, sizeof(udp)))
		return DROP_MALFORMED;
	if (bpf_ntohs(udp[2]) != available)
		return DROP_MALFORMED;
	p->payload = available - UDP_LEN;
	p->tuple.local_port = bpf_ntohs(udp[direction == OUTBOUND ? 0 : 1]);
	p->tuple.remote_port = bpf_ntohs(udp[direction == OUTBOUND ? 1 : 0]);
	return DROP_NONE;
}

/* Fills p, which must be zero. Whatever was read before a refusal stays, for its record. */
static __always_inline enum drop_reason
parse(struct __sk_buff *skb, struct packet *p, enum direction direction)
{
	const __be16 *type;
	enum drop_reason reason;

	linearize(skb);
	p->length = skb->len;
	type = header_at(skb, 2 * ETH_ADDRESS_LEN, sizeof(*type));
	if (!type)
		return DROP_MALFORMED;
	p->ethertype = bpf_ntohs(*type);
	if (skb->vlan_present)
		return DROP_PROTOCOL;
	switch (p->ethertype) {
	case ETHERTYPE_IPV4:
		reason = parse_ipv4(skb, p, direction);
		break;
	case ETHERTYPE_IPV6:
		reason = parse_ipv6(skb, p, direction);
		break;
	case ETHERTYPE_ARP:
		p->length = skb->len - ETH_LEN;
		return DROP_NONE;
	default:
		return DROP_PROTOCOL;
	}
	if (reason)
		return reason;
	if (p->proto == PROTO_TCP)
		return parse_tcp(skb, p, direction);
	if (p->proto == PROTO_UDP)
		return parse_udp(skb, p, direction);
	return DROP_NONE;
}

#endif
