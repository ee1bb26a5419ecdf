/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#ifndef HEDDLE_REASONS_H
#define HEDDLE_REASONS_H

/*
 * Why the gate dropped a packet. DROP_X_Y is the word KernelXY of mesh.Reason;
 * a test keeps the two lists equal. Append only: the numbers are in pinned maps.
 */
enum drop_reason {
	DROP_NONE,
	DROP_UNSTAMPED,         /* TCP, or captured DNS, from a socket that is not the agent's */
	DROP_FORGED_SOURCE,     /* source is not one of the pod's addresses, or pretends to be from outside */
	DROP_NO_FLOW,           /* kernel packet without a flow, or a segment of no known flow */
	DROP_PLAINTEXT_INBOUND, /* plaintext from the wire to a STRICT port */
	DROP_PASSTHRU_REUSE,    /* from the wire, on a tuple the agent uses towards the app */
	DROP_PROTOCOL,          /* a protocol the gate's table does not pass */
	DROP_FRAGMENT,          /* IP fragment */
	DROP_IP_OPTIONS,        /* IPv4 options */
	DROP_EXTENSION_HEADER,  /* IPv6 extension header */
	DROP_MALFORMED,         /* headers truncated or inconsistent */
	DROP_UDP,               /* UDP that no rule allows */
	DROP_ICMP,              /* ICMP type that the table does not pass */
	DROP_BUDGET,            /* the pod's flow table is full */
	DROP_SYN_PAYLOAD,       /* data on a SYN (fast open) */
	DROP_REASONS,           /* keep last of those that counters have */

	/*
	 * Not of the gate, and counted by no pinned map, whose size would change: the
	 * redirect refused a connection to a service that nobody serves. The word is
	 * mesh.Reason's own.
	 */
	REFUSED_NO_ENDPOINT = 0x80,
};

#endif
