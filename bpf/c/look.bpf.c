//go:build ignore
// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only

/*
 * Says in a few bytes what is in a pod's table of rules, so that the agent need not
 * read it all to see that nobody has changed it: reading is six times the work.
 */

#include "rules.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* The sum of the rules' numbers does not depend on their order, and changes by one rule's with it. */
static long add_rule(void *table, const struct datagram_rule *rule, void *value, struct digest *d)
{
	const __u32 *word = (const void *)rule;
	__u64 h = d->seed;

	_Static_assert(sizeof(*rule) == 5 * sizeof(*word), "a rule has five words");
	(void)table;
	(void)value;
	h = (h ^ ((__u64)word[1] << 32 | word[0])) * DIGEST_FACTOR;
	h ^= h >> 32;
	h = (h ^ ((__u64)word[3] << 32 | word[2])) * DIGEST_FACTOR;
	h ^= h >> 32;
	h = (h ^ word[4]) * DIGEST_FACTOR;
	h ^= h >> 32;
	d->sum += h * DIGEST_FACTOR;
	d->rules++;
	return 0;
}

SEC("syscall")
int digest_rules(struct digest *out)
{
	struct digest d = {.seed = out->seed};
	__u32 zero = 0;
	void *rules = bpf_map_lookup_elem(&datagram_rules, &zero);

	if (rules)
		bpf_for_each_map_elem(rules, add_rule, &d, 0);
	*out = d;
	return 0;
}
