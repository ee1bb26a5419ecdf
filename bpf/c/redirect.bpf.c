//go:build ignore
// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only

/*
 * Steers the connections of an enrolled pod to the agent's listeners in the
 * pod's network namespace, and its DNS queries to the agent's resolver there. No
 * packet is rewritten on the way: getsockname of an accepted connection is its
 * original destination, and a datagram's is in its header (IP_RECVORIGDSTADDR).
 * Only the SYN to a service that nobody serves becomes its own answer: vacant.h.
 */

#include "maps.h"
#include "vacant.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define IPPROTO_TCP 6
#define IPPROTO_UDP 17
#define LOOPBACK_IFINDEX 1

struct {
	__uint(type, BPF_MAP_TYPE_SOCKMAP);
	__uint(max_entries, SLOTS);
	__type(key, __u32);
	__type(value, __u64);
} listeners SEC(".maps");

/* The agent's sockets for DNS: a map of its own, since the other's size is pinned. */
struct {
	__uint(type, BPF_MAP_TYPE_SOCKMAP);
	__uint(max_entries, DNS_SLOTS);
	__type(key, __u32);
	__type(value, __u64);
} names SEC(".maps");

static __always_inline int assign_found(struct bpf_sk_lookup *ctx, struct bpf_sock *socket)
{
	long err;

	if (!socket)
		return SK_DROP; /* the agent is not there: fail closed */
	err = bpf_sk_assign(ctx, socket, 0);
	bpf_sk_release(socket);
	return err ? SK_DROP : SK_PASS;
}

static __always_inline int assign(struct bpf_sk_lookup *ctx, __u32 slot)
{
	if (ctx->family == AF_INET6)
		slot++;
	return assign_found(ctx, bpf_map_lookup_elem(&listeners, &slot));
}

static __always_inline int assign_dns(struct bpf_sk_lookup *ctx, __u32 slot)
{
	if (ctx->family == AF_INET6)
		slot++;
	return assign_found(ctx, bpf_map_lookup_elem(&names, &slot));
}

/* UDP to port 53 that the pod's rules led back to lo. */
static __always_inline int redirect_datagram(struct bpf_sk_lookup *ctx, struct address *local)
{
	struct pod_config *pod = pod_configuration();

	if (!pod)
		return SK_DROP;
	/* What comes from the wire is for one of the pod's addresses, or the gate has dropped it. */
	if (!(pod->flags & POD_CAPTURE_DNS) || is_pod_address(pod, local))
		return SK_PASS;
	return assign_dns(ctx, DNS_DATAGRAM4);
}

SEC("sk_lookup")
int redirect(struct bpf_sk_lookup *ctx)
{
	struct tuple t = {};
	struct pod_config *pod;
	__u32 *state;

	if (ctx->protocol != IPPROTO_TCP && (ctx->protocol != IPPROTO_UDP || ctx->local_port != DNS_PORT))
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
	if (ctx->protocol == IPPROTO_UDP)
		return redirect_datagram(ctx, &t.local);
	state = bpf_map_lookup_elem(&passthru, &t);
	/*
	 * A held tuple has the app's own socket, which is found before this program
	 * runs, or the app's end is gone: then no listener may answer. The agent's
	 * would, and its mark leads that reset to the wire, past the agent's socket.
	 */
	if (state)
		return *state == PASSTHRU_CONNECTING ? SK_PASS : SK_DROP;
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
	if (ctx->local_port == DNS_PORT && (pod->flags & POD_CAPTURE_DNS))
		return assign_dns(ctx, DNS_STREAM4);
	return assign(ctx, SLOT_OUTBOUND4);
}

SEC("tc")
int refuse(struct __sk_buff *skb)
{
	return refuse_vacant(skb);
}
