//go:build ignore
// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only

/*
 * Keeps the connections alive that were open before their pod was enrolled:
 * marks each socket, so that the redirect's rules leave it alone, stamps it
 * and seeds the flow table, so that the gate lets it through until a deadline.
 * Not those to the port of waypoints: the gate drops what is left of them.
 */

#include "maps.h"
#include "stamps.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define EEXIST 17 /* asm-generic/errno-base.h */

const volatile __u32 mark = 0x4d00000;
const volatile __u32 mark_mask = 0xfff00000;
/* Where a waypoint believes what comes first on a connection: only the agent may say it. */
const volatile __u16 waypoint_port = 15009;

/* Ports at which sockets of the pod listen, a bit each. The walk shows these sockets first. */
static __u8 listening[65536 / 8];

/* States of a socket whose connection is up: neither handshake nor LISTEN nor CLOSE. */
static __always_inline bool is_established(__u8 state)
{
	switch (state) {
	case BPF_TCP_ESTABLISHED:
	case BPF_TCP_FIN_WAIT1:
	case BPF_TCP_FIN_WAIT2:
	case BPF_TCP_CLOSE_WAIT:
	case BPF_TCP_LAST_ACK:
	case BPF_TCP_CLOSING:
		return true;
	}
	return false;
}

static __always_inline void read_tuple(struct sock_common *sk, struct tuple *t)
{
	if (sk->skc_family == AF_INET) {
		map_ipv4(&t->local, sk->skc_rcv_saddr);
		map_ipv4(&t->remote, sk->skc_daddr);
	} else {
		for (int i = 0; i < 4; i++) {
			t->local.word[i] = sk->skc_v6_rcv_saddr.in6_u.u6_addr32[i];
			t->remote.word[i] = sk->skc_v6_daddr.in6_u.u6_addr32[i];
		}
	}
	t->local_port = sk->skc_num;
	t->remote_port = bpf_ntohs(sk->skc_dport);
}

/*
 * Marks and stamps one socket; false when it is the agent's own, or when an
 * earlier pass had it: a later one must not move its deadline.
 */
static __always_inline bool adopt(struct sock_common *sk, __u32 enrolment, struct enrolled *done)
{
	struct stamp grandfathered = {.class = CLASS_GRANDFATHERED};
	struct stamp *stamp;
	__u32 value;

	stamp = bpf_sk_storage_get(&stamps, sk, &grandfathered, BPF_SK_STORAGE_GET_F_CREATE);
	if (!stamp || stamp->class != CLASS_GRANDFATHERED || stamp->enrolment == enrolment)
		return false;
	stamp->enrolment = enrolment;
	value = (BPF_CORE_READ((struct sock *)sk, sk_mark) & ~mark_mask) | mark;
	done->marked = !bpf_setsockopt(sk, SOL_SOCKET, SO_MARK, &value, sizeof(value));
	return true;
}

SEC("iter/tcp")
int iter_tcp(struct bpf_iter__tcp *ctx)
{
	struct sock_common *sk = ctx->sk_common;
	struct pod_config *pod = pod_configuration();
	struct enrolled done = {};
	struct flow flow = {};
	struct tuple t = {};
	bool live;
	long err;

	if (!sk || !pod)
		return 0;
	done.state = sk->skc_state;
	if (done.state == BPF_TCP_LISTEN)
		listening[sk->skc_num / 8] |= 1 << sk->skc_num % 8;
	live = is_established(done.state);
	/* Never LISTEN: accepted sockets inherit its mark and would bypass the redirect for good. */
	if (!live && done.state != TCP_TIME_WAIT)
		return 0;
	read_tuple(sk, &t);
	if (!is_pod_address(pod, &t.local) || is_pod_address(pod, &t.remote))
		return 0;
	if (t.local_port == waypoint_port)
		return 0;
	if (live && !adopt(sk, pod->enrolment, &done))
		return 0;
	flow.last_seen = bpf_ktime_get_ns();
	flow.deadline = flow.last_seen + pod->grandfather_for;
	flow.kind = FLOW_GRANDFATHERED;
	flow.served = listening[t.local_port / 8] & 1 << t.local_port % 8 ? SERVED_BY_POD : SERVED_ELSEWHERE;
	if (live) {
		/* Whatever is left of an earlier connection on this tuple goes. */
		done.seeded = !bpf_map_update_elem(&flows, &t, &flow, BPF_ANY);
	} else {
		err = bpf_map_update_elem(&transient, &t, &flow, BPF_NOEXIST);
		/* It has no stamp to say so, but an earlier pass had it. */
		if (err == -EEXIST)
			return 0;
		done.seeded = !err;
	}
	done.family = is_ipv4(&t.local) ? 4 : 6;
	bpf_seq_write(ctx->meta->seq, &done, sizeof(done));
	return 0;
}
