//go:build ignore
// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only

/*
 * The gate: what may leave and enter an enrolled pod. It sits on the host side
 * of the pod's veth, where the pod's NET_ADMIN and NET_RAW cannot reach it,
 * with a twin on the pod's eth0 for networks whose fast paths skip the host
 * side. It needs nothing of the agent's process: with the agent dead it keeps
 * dropping.
 *
 * Out: TCP from stamped sockets, and the few segments that the kernel sends
 * without a full socket, if they are bare and belong to a known flow. In:
 * SYNs to the tunnel, to PERMISSIVE ports and from kubelet's probes, and
 * segments of flows that such a handshake opened. There is no rule "not a SYN
 * passes". The rest is in protocols.h.
 */

#include "maps.h"
#include "stamps.h"
#include "clock.h"
#include "account.h"
#include "protocols.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* Ports of the pod that differ from its default, or that probes declare. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1024);
	__type(key, __u16);
	__type(value, __u32); /* enum port_flags */
} ports SEC(".maps");

/* For Go: types that no map names. */
const struct service *service_type __attribute__((unused));
const struct datagram_rule *datagram_rule_type __attribute__((unused));
const struct block *block_type __attribute__((unused));
const struct conversation *conversation_type __attribute__((unused));
const struct drop_record *drop_record_type __attribute__((unused));
const enum drop_reason *drop_reason_type __attribute__((unused));
const enum direction *direction_type __attribute__((unused));
const enum hook *hook_type __attribute__((unused));
const enum stamp_class *stamp_class_type __attribute__((unused));
const enum flow_kind *flow_kind_type __attribute__((unused));
const enum pod_flags *pod_flags_type __attribute__((unused));
const enum port_flags *port_flags_type __attribute__((unused));
const enum passthru_state *passthru_state_type __attribute__((unused));
const enum slot *slot_type __attribute__((unused));
const enum dns_slot *dns_slot_type __attribute__((unused));
const enum served *served_type __attribute__((unused));
const struct enrolled *enrolled_type __attribute__((unused));

static __always_inline struct flow *find_flow(struct tuple *t)
{
	struct flow *flow = bpf_map_lookup_elem(&flows, t);

	return flow ? flow : bpf_map_lookup_elem(&transient, t);
}

/* Moves a flow that is over to the LRU, where its last retransmissions still pass. */
static __noinline int retire(struct tuple *t, struct flow *flow)
{
	struct flow over;

	if (!t || !flow)
		return 0;
	over = *flow;
	bpf_map_update_elem(&transient, t, &over, BPF_ANY);
	bpf_map_delete_elem(&flows, t);
	return 0;
}

/* Notes a packet in its flow. Only the hook that counts does, lest bytes count twice. */
static __always_inline void refresh_outbound(struct passage *q, struct flow *flow)
{
	flow->last_seen = q->now;
	__sync_fetch_and_add(&flow->bytes_out, q->p.length);
	if (flow->fin_in == 2)
		flow->fin_in = 0; /* the reset was not for real */
	if (!(q->p.flags & (TCP_FIN | TCP_RST)))
		return;
	flow->fin_out = 1;
	/* Its own RST ends a connection at once; one from the wire may be forged, and waits for ExpireFlows. */
	if (flow->fin_in || (q->p.flags & TCP_RST))
		retire(&q->p.tuple, flow);
}

static __always_inline void refresh_inbound(struct passage *q, struct flow *flow)
{
	flow->last_seen = q->now;
	__sync_fetch_and_add(&flow->bytes_in, q->p.length);
	if (q->p.flags & TCP_RST) {
		flow->fin_in = 2;
	} else if (q->p.flags & TCP_FIN) {
		flow->fin_in = 1;
		if (flow->fin_out)
			retire(&q->p.tuple, flow);
	}
}

static __always_inline bool counts(struct pod_config *pod, __u32 hook)
{
	bool twin = hook == HOOK_POD_OUTBOUND || hook == HOOK_POD_INBOUND;

	return twin == !!(pod->flags & POD_COUNT_IN_POD);
}

/* The kind of the flow that a stamped socket may open, or FLOW_NONE. */
static __always_inline enum flow_kind kind_opened_by(__u32 class)
{
	switch (class) {
	case CLASS_TUNNEL:
		return FLOW_TUNNEL;
	case CLASS_PLAINTEXT:
	case CLASS_AGENT:
		return FLOW_EGRESS;
	}
	return FLOW_NONE;
}

static __always_inline enum drop_reason open_flow(struct passage *q, enum flow_kind kind)
{
	struct flow fresh = {.last_seen = q->now, .kind = kind, .bytes_out = q->p.length};

	if (bpf_map_update_elem(&flows, &q->p.tuple, &fresh, BPF_ANY))
		return DROP_BUDGET;
	q->kind = kind;
	return DROP_NONE;
}

/*
 * A segment that the kernel sent without a full socket: the ACK of TIME_WAIT,
 * the RST to a late segment. Bare, and of a known flow.
 */
static __noinline int check_kernel(struct __sk_buff *skb, struct passage *q, struct pod_config *pod)
{
	struct flow *flow;

	if (!q || !pod)
		return DROP_UNSTAMPED;
	if (q->p.payload || (q->p.flags & ~(TCP_ACK | TCP_RST)) || !q->p.flags || !is_bare(skb, &q->p))
		return DROP_UNSTAMPED;
	flow = find_flow(&q->p.tuple);
	if (!flow || (flow->half == 1))
		return DROP_NO_FLOW;
	if (flow->kind == FLOW_GRANDFATHERED && q->now > flow->deadline)
		return DROP_NO_FLOW;
	q->kind = flow->kind;
	if (counts(pod, q->hook))
		refresh_outbound(q, flow);
	return DROP_NONE;
}

/*
 * A segment of a full, stamped socket, which the pod's own netfilter has not sent
 * elsewhere. One that has ended has no ports any more: what is left of it is as the
 * kernel's own.
 */
static __always_inline enum drop_reason
check_stamped(struct __sk_buff *skb, struct passage *q, struct pod_config *pod, struct bpf_sock *full, __u32 class)
{
	enum flow_kind opens = kind_opened_by(class);
	struct flow *flow;

	if (class == CLASS_LOCAL)
		return DROP_UNSTAMPED; /* between agent and app: has no business on the wire */
	if (!is_for_peer_of(full, &q->p))
		return check_kernel(skb, q, pod);
	if (q->p.flags & TCP_SYN) {
		if (q->p.payload)
			return DROP_SYN_PAYLOAD;
		return opens ? open_flow(q, opens) : DROP_UNSTAMPED;
	}
	flow = find_flow(&q->p.tuple);
	if (!flow) {
		/* The client of a connection whose entry a policy took must be told that it is over. */
		if (class == CLASS_INBOUND && (q->p.flags & TCP_RST) && !q->p.payload) {
			q->kind = FLOW_PERMISSIVE;
			return DROP_NONE;
		}
		/* A live socket of the agent may have lost its entry; its last RST needs none. */
		if (!opens)
			return DROP_NO_FLOW;
		q->kind = opens;
		return q->p.flags & TCP_RST ? DROP_NONE : open_flow(q, opens);
	}
	if (opens)
		flow->kind = opens;
	else if (class == CLASS_GRANDFATHERED && (flow->kind != FLOW_GRANDFATHERED || q->now > flow->deadline))
		return DROP_NO_FLOW;
	q->kind = flow->kind;
	if (counts(pod, q->hook))
		refresh_outbound(q, flow);
	return DROP_NONE;
}

/*
 * A SYN-ACK that a listener's request socket sends, or with syncookies the
 * kernel without any socket (class 0): the SYN must have been admitted.
 */
static __always_inline enum drop_reason check_syn_ack(struct passage *q, __u32 class)
{
	struct flow fresh = {.last_seen = q->now, .kind = FLOW_TUNNEL, .half = 2};
	struct flow *flow;

	if (q->p.payload)
		return DROP_SYN_PAYLOAD;
	if (class != CLASS_NONE && class != CLASS_TUNNEL && class != CLASS_INBOUND)
		return DROP_UNSTAMPED;
	flow = bpf_map_lookup_elem(&transient, &q->p.tuple);
	if (flow && flow->half) {
		flow->half = 2;
		q->kind = flow->kind;
		return DROP_NONE;
	}
	if (class != CLASS_TUNNEL)
		return DROP_NO_FLOW;
	/* Evicted by a flood in the meantime. */
	bpf_map_update_elem(&transient, &q->p.tuple, &fresh, BPF_ANY);
	q->kind = FLOW_TUNNEL;
	return DROP_NONE;
}

/* A SYN-ACK that no request socket is behind. */
static __always_inline enum drop_reason check_cookie(struct __sk_buff *skb, struct passage *q)
{
	return is_cookie(skb, &q->p) ? check_syn_ack(q, CLASS_NONE) : DROP_UNSTAMPED;
}

/*
 * The kernel's control socket, which sends for connections that have no socket
 * any more. Packet sockets and IPPROTO_RAW ones differ from it; a raw TCP
 * socket of the pod has the pod's cgroup, unless the host has no cgroup2 for
 * pods: then its bare segments on a known flow pass, which carry no payload.
 */
static __always_inline bool is_control_socket(struct __sk_buff *skb, struct bpf_sock *full)
{
	return full->type == SOCK_RAW && full->protocol == PROTO_TCP &&
	       (full->family == AF_INET || full->family == AF_INET6) &&
	       bpf_skb_cgroup_id(skb) == ROOT_CGROUP;
}

/* TCP from the pod. Which sockets the kernel shows here: measured on 6.1, 6.12 and 6.18. */
static __always_inline enum drop_reason
check_tcp_outbound(struct __sk_buff *skb, struct passage *q, struct pod_config *pod)
{
	bool syn_ack = (q->p.flags & (TCP_SYN | TCP_ACK)) == (TCP_SYN | TCP_ACK);
	struct bpf_sock *sk, *full, *listener;
	struct stamp *stamp;

	if (!is_pod_address(pod, &q->p.tuple.local))
		return DROP_FORGED_SOURCE;
	sk = skb->sk;
	if (!sk)
		return syn_ack ? check_cookie(skb, q) : check_kernel(skb, q, pod);
	full = bpf_sk_fullsock(sk);
	if (full) {
		stamp = bpf_sk_storage_get(&stamps, full, NULL, 0);
		if (stamp && full->type == SOCK_STREAM)
			return check_stamped(skb, q, pod, full, stamp->class);
		if (is_control_socket(skb, full))
			return syn_ack ? check_cookie(skb, q) : check_kernel(skb, q, pod);
		return DROP_UNSTAMPED;
	}
	if (sk->state == TCP_NEW_SYN_RECV && syn_ack) {
		listener = bpf_get_listener_sock(sk);
		stamp = listener ? bpf_sk_storage_get(&stamps, listener, NULL, 0) : NULL;
		return stamp ? check_syn_ack(q, stamp->class) : DROP_UNSTAMPED;
	}
	return check_kernel(skb, q, pod);
}

/* May plaintext from the wire open a connection to this port, and as what? */
static __always_inline enum flow_kind
kind_admitted(struct __sk_buff *skb, struct pod_config *pod, __u16 port)
{
	__u32 *entry = bpf_map_lookup_elem(&ports, &port);
	__u32 flags = entry ? *entry : 0;
	__u64 cgroup;

	if ((flags & PORT_PROBE) && pod->kubelet_cgroup > ROOT_CGROUP) {
		cgroup = bpf_skb_cgroup_id(skb);
		if (cgroup == pod->kubelet_cgroup)
			return FLOW_PROBE;
	}
	if (flags & PORT_STRICT)
		return FLOW_NONE;
	if ((flags & PORT_PERMISSIVE) || (pod->flags & POD_PERMISSIVE))
		return FLOW_PERMISSIVE;
	return FLOW_NONE;
}

/* Has it the tuple of a connection between the agent and the pod? */
static __always_inline bool is_passthru(struct passage *q)
{
	return bpf_map_lookup_elem(&passthru, &q->p.tuple);
}

/* A SYN from the wire. */
static __always_inline enum drop_reason
check_syn_inbound(struct __sk_buff *skb, struct passage *q, struct pod_config *pod)
{
	struct flow fresh = {.last_seen = q->now, .bytes_in = q->p.length, .half = 1};
	struct flow *flow;

	if (q->p.payload)
		return DROP_SYN_PAYLOAD;
	if (q->p.tuple.local_port == pod->tunnel_port) {
		fresh.kind = FLOW_TUNNEL;
	} else {
		fresh.kind = kind_admitted(skb, pod, q->p.tuple.local_port);
		if (!fresh.kind && q->hook == HOOK_POD_INBOUND) {
			/* The sender's socket may be gone here, but the host side saw it. */
			flow = bpf_map_lookup_elem(&transient, &q->p.tuple);
			fresh.kind = flow && flow->half == 1 ? flow->kind : FLOW_NONE;
		}
		if (!fresh.kind)
			return DROP_PLAINTEXT_INBOUND;
	}
	if (is_passthru(q))
		return DROP_PASSTHRU_REUSE;
	bpf_map_update_elem(&transient, &q->p.tuple, &fresh, BPF_ANY);
	q->kind = fresh.kind;
	return DROP_NONE;
}

/* A half-open connection whose SYN-ACK was answered becomes a flow. */
static __always_inline enum drop_reason promote(struct passage *q, struct flow *half)
{
	struct flow fresh = {.last_seen = q->now, .kind = half->kind};

	fresh.bytes_in = q->p.length;
	if (bpf_map_update_elem(&flows, &q->p.tuple, &fresh, BPF_NOEXIST))
		return DROP_BUDGET;
	bpf_map_delete_elem(&transient, &q->p.tuple);
	q->kind = fresh.kind;
	return DROP_NONE;
}

/* TCP to the pod that no flow is known for: a SYN, or nothing good. */
static __always_inline enum drop_reason
check_unknown_inbound(struct __sk_buff *skb, struct passage *q, struct pod_config *pod)
{
	if (!is_pod_address(pod, &q->p.tuple.local))
		return DROP_NO_FLOW; /* flooded by a bridge */
	if (is_pod_address(pod, &q->p.tuple.remote) || is_loopback(&q->p.tuple.remote))
		return DROP_FORGED_SOURCE;
	if ((q->p.flags & (TCP_SYN | TCP_ACK)) == TCP_SYN)
		return check_syn_inbound(skb, q, pod);
	return is_passthru(q) ? DROP_PASSTHRU_REUSE : DROP_NO_FLOW;
}

/* TCP to the pod. Flows exist for good addresses only, so theirs need no second look. */
static __always_inline enum drop_reason
check_tcp_inbound(struct __sk_buff *skb, struct passage *q, struct pod_config *pod)
{
	bool opens = (q->p.flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
	struct flow *flow = opens ? NULL : find_flow(&q->p.tuple);

	if (!flow || flow->half == 1)
		return check_unknown_inbound(skb, q, pod);
	if (flow->half == 2 && !(q->p.flags & TCP_RST))
		return promote(q, flow);
	if (flow->kind == FLOW_GRANDFATHERED && q->now > flow->deadline)
		return DROP_NO_FLOW;
	q->kind = flow->kind;
	if (counts(pod, q->hook))
		refresh_inbound(q, flow);
	return DROP_NONE;
}

static __always_inline int gate(struct __sk_buff *skb, enum hook hook, enum direction direction)
{
	struct passage q = {.hook = hook};
	struct pod_config *pod = pod_configuration();
	struct counters *c = pod_counters();
	enum drop_reason reason;
	enum flow_kind kind;

	if (!pod || !c)
		return DROP;
	c->seen[hook]++;
	q.now = coarse_ns();
	reason = parse(skb, &q.p, direction);
	if (!reason && is_tcp(&q.p)) {
		reason = direction == OUTBOUND ? check_tcp_outbound(skb, &q, pod)
					       : check_tcp_inbound(skb, &q, pod);
	} else if (!reason) {
		reason = check_other(skb, &q.p, pod, direction, counts(pod, hook), q.now, &kind);
		q.kind = kind;
	}
	if (reason)
		return drop(&q, c, pod->pod, reason);
	if (counts(pod, hook) && q.kind < FLOW_KINDS)
		count_passed(&q.p, c, q.kind, direction, q.now);
	return NEXT;
}

SEC("tc")
int host_outbound(struct __sk_buff *skb)
{
	return gate(skb, HOOK_HOST_OUTBOUND, OUTBOUND);
}

SEC("tc")
int host_inbound(struct __sk_buff *skb)
{
	return gate(skb, HOOK_HOST_INBOUND, INBOUND);
}

SEC("tc")
int pod_outbound(struct __sk_buff *skb)
{
	return gate(skb, HOOK_POD_OUTBOUND, OUTBOUND);
}

SEC("tc")
int pod_inbound(struct __sk_buff *skb)
{
	return gate(skb, HOOK_POD_INBOUND, INBOUND);
}
