/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#ifndef HEDDLE_TYPES_H
#define HEDDLE_TYPES_H

#include <linux/types.h>
#include "reasons.h"

/*
 * Types that the programs and the Go handle share. Go gets them from BTF;
 * nothing here is mirrored by hand. "Outbound" and "inbound" are seen from the
 * pod. Addresses are IPv6 or IPv4-mapped, in network order; ports are in host
 * order.
 */

#define MAX_ADDRESSES 8
#define DNS_PORT 53

enum direction {
	OUTBOUND,
	INBOUND,
	DIRECTIONS, /* keep last */
};

/* Which of the gate's four hooks. */
enum hook {
	HOOK_HOST_OUTBOUND, /* tc ingress of the host side of the veth */
	HOOK_HOST_INBOUND,  /* tc egress of the host side */
	HOOK_POD_OUTBOUND,  /* tc egress of the pod's eth0 */
	HOOK_POD_INBOUND,   /* tc ingress of the pod's eth0 */
	HOOKS,              /* keep last */
};

/* What a stamped socket is for. */
enum stamp_class {
	CLASS_NONE,
	CLASS_AGENT,         /* any socket of the agent; counted as plaintext */
	CLASS_TUNNEL,        /* mutual TLS to a peer, dialled or accepted */
	CLASS_PLAINTEXT,     /* dialled: egress that policy allows */
	CLASS_LOCAL,         /* between agent and app; never leaves the pod */
	CLASS_INBOUND,       /* accepted by the inbound plaintext listener */
	CLASS_GRANDFATHERED, /* the app's own, open before enrolment */
	CLASSES,             /* keep last */
};

struct stamp {
	__u32 class;     /* enum stamp_class */
	__u32 enrolment; /* grandfathered: the pod_config.enrolment that seeded its flow */
};

/* What a packet that passed was; also the kind of a flow. */
enum flow_kind {
	FLOW_NONE,
	FLOW_TUNNEL,
	FLOW_EGRESS,        /* plaintext out, from the agent */
	FLOW_PROBE,         /* kubelet to a declared port */
	FLOW_PERMISSIVE,    /* plaintext in, the port is PERMISSIVE */
	FLOW_GRANDFATHERED,
	FLOW_DATAGRAM,      /* UDP: DNS, what datagram_rules let pass, or all of it when the pod is configured so */
	FLOW_CONTROL,       /* ARP, neighbour discovery, ICMP */
	FLOW_KINDS,         /* keep last */
};

struct address {
	__u32 word[4];
};

/* 36 bytes, no padding: it is a map key. */
struct tuple {
	struct address local; /* the pod's end */
	struct address remote;
	__u16 local_port;
	__u16 remote_port;
};

/* An address and a port of a service. 20 bytes: it is a map key, and pad is 0. */
struct service {
	struct address address;
	__u16 port;
	__u16 pad;
};

/* Whether a socket of the pod listened at a connection's port when that was grandfathered. */
enum served {
	SERVED_UNKNOWN, /* an earlier version did not ask */
	SERVED_BY_POD,
	SERVED_ELSEWHERE,
};

/*
 * One TCP connection of the pod. Each direction writes fields of its own only,
 * so no lock is needed.
 */
struct flow {
	__u64 last_seen; /* ns, CLOCK_MONOTONIC_COARSE */
	__u64 deadline;  /* grandfathered: passes until then; else 0 */
	__u64 bytes_out; /* IP bytes */
	__u64 bytes_in;
	__u8 kind;       /* enum flow_kind */
	__u8 fin_out;    /* FIN or RST seen from the pod */
	__u8 fin_in;     /* FIN (1) or RST (2) seen from the wire */
	__u8 half;       /* 1: SYN came in; 2: SYN-ACK went out; 0: not half-open */
	__u8 served;     /* grandfathered: enum served */
	__u8 pad[3];
};

/*
 * Who may open a conversation of datagrams with the pod (inbound), or the pod with
 * whom (outbound). 20 bytes, no padding: it is a map key.
 */
struct datagram_rule {
	struct address remote;
	__u16 port;     /* of who did not open it: the pod's own of an inbound one */
	__u8 direction; /* enum direction of the datagram that opens it */
	__u8 outside;   /* 1: with whoever is outside; remote is 0, and so is port for all of them */
};

/*
 * What look.bpf.c says of a table of rules: how many there are, and the sum of one number
 * of each, which seed makes another one.
 */
struct digest {
	__u64 seed; /* in */
	__u64 sum;
	__u64 rules;
};

/* As in ../digest.go: odd, with as many ones as zeros, in no pattern (the golden ratio's bits). */
#define DIGEST_FACTOR 0x9E3779B97F4A7C15ULL

/* A block of addresses: the key of a trie, where the longest one that matches decides. */
struct block {
	__u32 length; /* bits of the address that count, of 128 */
	struct address address;
};

/* Datagrams between two ports, by enum direction. */
struct conversation {
	__u64 opened; /* ns, CLOCK_MONOTONIC_COARSE, as the others */
	__u64 asked;  /* the last datagram of who opened it */
	__u64 last_seen;
	__u64 packets[DIRECTIONS];
	__u64 bytes[DIRECTIONS]; /* of payload */
	__u8 direction; /* of who opened it */
	__u8 pad[7];
};

/* pod_config.flags */
enum pod_flags {
	POD_PERMISSIVE = 1,   /* plaintext passes on ports without an entry of their own */
	POD_COUNT_IN_POD = 2, /* the eth0 twin counts, because there is no host side */
	POD_ALLOW_UDP = 4,    /* all UDP, not only DNS */
	POD_ALLOW_ECHO = 8,   /* ICMP echo */
	POD_DENY_DNS = 16,    /* not even DNS */
	POD_CAPTURE_DNS = 32, /* DNS goes to the agent, and leaves from the agent only */
	POD_DATAGRAMS = 64,   /* datagram_rules hold; whoever does not set it has not kept them */
	POD_OUTSIDE = 128,    /* so does outside, with the rules that go by it */
};

struct pod_config {
	__u64 kubelet_cgroup;   /* 0: no probe rule */
	__u64 grandfather_for;  /* ns */
	__u32 pod;              /* id in drop records */
	__u32 flags;            /* enum pod_flags */
	__u32 address_count;
	__u32 enrolment;        /* changes when the pod is enrolled anew, not when an agent restarts */
	__u32 host_ifindex;     /* where the gate hangs; the programs do not read it */
	__u16 tunnel_port;
	__u16 pad;
	struct address addresses[MAX_ADDRESSES];
};

/* Flags of a port of the pod. */
enum port_flags {
	PORT_PERMISSIVE = 1,
	PORT_STRICT = 2,
	PORT_PROBE = 4,
};

/* State of a passthru tuple. */
enum passthru_state {
	PASSTHRU_CONNECTING = 1, /* redirect passes it, the gate drops it */
	PASSTHRU_HELD = 2,       /* connected: it opens nothing, and the gate drops it still */
};

struct count {
	__u64 packets;
	__u64 bytes; /* IP bytes */
};

/* Per CPU. */
struct counters {
	__u64 seen[HOOKS];
	struct count passed[FLOW_KINDS][DIRECTIONS];
	struct count dropped[DROP_REASONS][DIRECTIONS];
	__u64 lost;        /* drop records that were not written */
	__u64 window;      /* start of the rate window of drop records, ns */
	__u64 in_window;   /* records in it */
};

/* Who plaintext was exchanged with. */
struct peer {
	struct address remote;
	__u16 port;     /* outbound: the remote port; inbound: the pod's port */
	__u8 direction; /* enum direction of the packet that opened it */
	__u8 kind;      /* enum flow_kind */
};

/* Who was dropped and why. */
struct drop_peer {
	struct address remote;
	__u16 port;
	__u8 direction;
	__u8 reason; /* enum drop_reason */
	__u8 proto;
	__u8 pad[3];
};

struct tally {
	__u64 packets;
	__u64 bytes;
	__u64 last_seen;
};

/*
 * What a CPU dropped last, and how often in a row: drop_peers has it once something else
 * is dropped there. Per CPU.
 */
struct last_drop {
	struct drop_peer peer;
	struct tally tally; /* no packets: none, yet */
};

/*
 * One record of the drop ring. 56 bytes, no padding: with the ring's header it is one
 * cache line. Those of an earlier version have the direction where the hook is, which is
 * the same number at the host side, and 8 bytes more, of which the first says whether it
 * was the pod's side.
 */
struct drop_record {
	__u64 time;   /* ns, CLOCK_MONOTONIC_COARSE */
	__u32 pod;
	__u32 length; /* IP bytes */
	struct address source;
	struct address destination;
	__u16 source_port;
	__u16 destination_port;
	__u8 reason;    /* enum drop_reason */
	__u8 hook;      /* enum hook */
	__u8 proto;     /* IP protocol; 0 when not even that could be read */
	__u8 tcp_flags;
};

/* What one enrolment pass did; written by the iterator through its sequence file. */
struct enrolled {
	__u8 state; /* TCP state of the socket */
	__u8 marked;
	__u8 seeded;
	__u8 family;
};

/* Slots of the listeners map. */
enum slot {
	SLOT_OUTBOUND4,
	SLOT_OUTBOUND6,
	SLOT_INBOUND4,
	SLOT_INBOUND6,
	SLOT_TUNNEL4,
	SLOT_TUNNEL6,
	SLOTS, /* keep last */
};

/* Slots of the names map. */
enum dns_slot {
	DNS_DATAGRAM4,
	DNS_DATAGRAM6,
	DNS_STREAM4,
	DNS_STREAM6,
	DNS_SLOTS, /* keep last */
};

#endif
