//go:build ignore
// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only

/*
 * Steers the connections of an enrolled pod to the agent's listeners in the
 * pod's network namespace. No packet is rewritten: getsockname of an accepted
 * connection is its original destination.
 */

#include "maps.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define IPPROTO_TCP 6
#define LOOPBACK_IFINDEX 1

struct {
	__uint(type, BPF_MAP_TYPE_SOCKMAP);
	__uint(max_entries, SLOTS);
	__type(key, __u32);
	__type(value, __u64);
} listeners SEC(".maps");

static __always_inline int assign(struct bpf_sk_lookup *ctx, __u32 slot)
{
	struct bpf_sock *listener;
	long err;

	if (ctx->family == AF_INET6)
		slot++;
	listener = bpf_map_lookup_elem(&listeners, &slot);
	if (!listener)
		return SK_DROP; /* the agent is not there: fail closed */
	err = bpf_sk_assign(ctx, listener, 0);
	bpf_sk_release(listener);
	return err ? SK_DROP : SK_PASS;
}

SEC("sk_lookup")
int redirect(struct bpf_sk_lookup *ctx)
{
	struct tuple t = {};
	struct pod_config *pod;
	__u32 *state;

	if (ctx->protocol != IPPROTO_TCP)
		return SK_PASS;
	if (ctx->family == AF_INET) {
		map_ipv4(&t.local, ctx->local_ip4);
		map_ipv4(&t.remote, ctx->remote_ip4);
		/* Or the branches merge to one load at a computed offset, which the verifier refuses. */
		barrier();
	} else {
		t.local.word[0] = ctx->local_ip6[0];
		t.local.word[1] = ctx->local_ip6[1];
		t.local.word[2] = ctx->local_ip6[2];
		t.local.word[3] = ctx->local_ip6[3];
		t.remote.word[0] = ctx->remote_ip6[0];
		t.remote.word[1] = ctx->remote_ip6[1];
		t.remote.word[2] = ctx->remote_ip6[2];
		t.remote.word[3] = ctx->remote_ip6[3];
	}
	t.local_port = ctx->local_port;
	t.remote_port = bpf_ntohs(ctx->remote_port);

	/* The pod talks to itself. The gate drops packets from the wire that claim to. */
	if (same_address(&t.local, &t.remote) || is_loopback(&t.local))
		return SK_PASS;
	state = bpf_map_lookup_elem(&passthru, &t);
	if (state && *state == PASSTHRU_CONNECTING)
		return SK_PASS;
	pod = pod_configuration();
	if (!pod)
		return SK_DROP;
	if (ctx->ingress_ifindex > LOOPBACK_IFINDEX) {
		/* sk_lookup says eth0 for the pod's own address too, on lo: see passthru. */
		if (ctx->local_port == pod->tunnel_port)
			return assign(ctx, SLOT_TUNNEL4);
		return assign(ctx, SLOT_INBOUND4);
	}
	if (is_pod_address(pod, &t.local))
		return SK_PASS;
	return assign(ctx, SLOT_OUTBOUND4);
}
