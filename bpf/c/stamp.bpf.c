//go:build ignore
// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only

/*
 * Stamps every inet socket that is created in the agent's cgroup, from before
 * its first packet, so that the agent cannot forget one.
 */

#include "stamps.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

SEC("cgroup/sock_create")
int sock_create(struct bpf_sock *sk)
{
	struct stamp agent = {.class = CLASS_AGENT};

	/* Without a stamp the socket can do nothing in a pod: no need to refuse it here. */
	bpf_sk_storage_get(&stamps, sk, &agent, BPF_SK_STORAGE_GET_F_CREATE);
	return 1;
}
