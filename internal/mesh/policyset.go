package mesh

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/internal/mesh/netpolicy"
)

// compiledPolicy is a policy taken apart into clauses.
type compiledPolicy struct {
	policy  *Policy
	clauses []*clause
}

// clause is one rule with one of its sources, or with none: rule r matches
// when one of its clauses does. Clauses are what the index holds.
type clause struct {
	policy *Policy
	rule   int
	order  uint64 // policies by key, then rules: the first match decides
	from   *Source
	to     []Destination
	keys   []indexKey // where a policySet files it; none: under everyone
}

// indexKey is a value that one of the three indexes of a policySet has.
type indexKey struct {
	index indexKind
	value string
}

type indexKind uint8

const (
	indexIdentity  indexKind = iota // the whole SPIFFE ID
	indexNamespace                  // NAMESPACE of the path /ns/NAMESPACE/sa/ACCOUNT
	indexAccount                    // ACCOUNT of that path
	indexKinds
)

func compilePolicy(p *Policy, order int) *compiledPolicy {
	c := &compiledPolicy{policy: p}
	for i := range p.Rules {
		rule := &p.Rules[i]
		base := clause{policy: p, rule: i, order: uint64(order)<<32 | uint64(i), to: rule.To}
		if len(rule.From) == 0 {
			one := base
			one.from = &Source{}
			c.clauses = append(c.clauses, &one)
			continue
		}
		for j := range rule.From {
			one := base
			one.from = &rule.From[j]
			one.keys = indexKeys(one.from)
			c.clauses = append(c.clauses, &one)
		}
	}
	return c
}

// indexKeys returns keys of which a peer must have at least one for the source
// to match; none when there are no such keys.
func indexKeys(s *Source) []indexKey {
	var keys []indexKey
	for _, pattern := range s.Identities {
		key, ok := patternKey(pattern)
		if !ok {
			keys = nil
			break
		}
		if !slices.Contains(keys, key) {
			keys = append(keys, key)
		}
	}
	if len(keys) > 0 {
		return keys
	}
	for _, namespace := range s.Namespaces {
		if key := (indexKey{indexNamespace, namespace}); !slices.Contains(keys, key) {
			keys = append(keys, key)
		}
	}
	return keys
}

// patternKey returns the most telling key that everything has which a pattern
// matches.
func patternKey(p IdentityPattern) (indexKey, bool) {
	if p.Exact() {
		return indexKey{indexIdentity, string(p)}, true
	}
	_, path, _ := strings.Cut(strings.TrimPrefix(string(p), "spiffe://"), "/")
	namespace, account := nameParts("/" + path)
	switch {
	case account != "" && !strings.Contains(account, "*"):
		return indexKey{indexAccount, account}, true
	case namespace != "" && namespace != "*":
		return indexKey{indexNamespace, namespace}, true
	}
	return indexKey{}, false
}

func (c *clause) match(a *attributes) bool {
	return matchPort(c.to, a.port) && c.from.match(a, c.policy.Action)
}

func matchPort(to []Destination, port uint16) bool {
	if len(to) == 0 {
		return true
	}
	for i := range to {
		d := &to[i]
		if len(d.Ports) > 0 && !slices.Contains(d.Ports, port) {
			continue
		}
		if !slices.Contains(d.NotPorts, port) {
			return true
		}
	}
	return false
}

func (s *Source) match(a *attributes, action Action) bool {
	// What is not proved satisfies a negative everywhere but in an ALLOW.
	unproved := action != ActionAllow
	if len(s.Identities) > 0 && !matchIdentity(s.Identities, a.peer) {
		return false
	}
	if len(s.NotIdentities) > 0 {
		if a.peer.IsZero() {
			if !unproved {
				return false
			}
		} else if matchIdentity(s.NotIdentities, a.peer) {
			return false
		}
	}
	if len(s.Namespaces) > 0 && (a.namespace == "" || !slices.Contains(s.Namespaces, a.namespace)) {
		return false
	}
	if len(s.NotNamespaces) > 0 {
		if a.namespace == "" {
			if !unproved {
				return false
			}
		} else if slices.Contains(s.NotNamespaces, a.namespace) {
			return false
		}
	}
	if len(s.IPBlocks) > 0 && !matchBlock(s.IPBlocks, a.source) {
		return false
	}
	if len(s.NotIPBlocks) > 0 {
		if !a.source.IsValid() {
			return unproved
		}
		return !matchBlock(s.NotIPBlocks, a.source)
	}
	return true
}

func matchIdentity(patterns []IdentityPattern, id spiffeid.ID) bool {
	for _, p := range patterns {
		if string(p) == id.String() || p.Match(id) {
			return true
		}
	}
	return false
}

func matchBlock(blocks []netip.Prefix, addr netip.Addr) bool {
	for _, block := range blocks {
		if block.Contains(addr) {
			return true
		}
	}
	return false
}

// policySet returns the index of the policies that select a workload of this
// View. It is built when first asked for; two goroutines may build it at once,
// and they build the same.
func (v *View) policySet(w *Workload) *policySet {
	if set, ok := v.policySets.Load(w); ok {
		return set.(*policySet)
	}
	set := newPolicySet(v.compiled[w.Namespace], w.Labels)
	if !v.network.Empty() {
		set.network = v.network.For(w.Namespace, w.Labels)
	}
	v.policySets.Store(w, set)
	return set
}

// policySet is an index of the policies that select one workload. A clause is
// filed under keys of which a matching peer must have one: an identity, or the
// namespace or account in it. A connection looks into the buckets of its peer's
// keys and into that of clauses without keys; the index only leaves out what
// cannot match, clause.match decides.
type policySet struct {
	empty    bool // no policy selects the workload
	allows   bool // at least one ALLOW policy does
	everyone bucket
	index    [indexKinds]map[string]*bucket
	network  *netpolicy.Rules // of NetworkPolicies; nil when the View has none
}

// bucket holds clauses by action, each list in their order.
type bucket [ActionAudit + 1][]*clause

// buckets are those that one connection looks into; entries may be nil.
type buckets [indexKinds + 1]*bucket

func newPolicySet(policies []*compiledPolicy, labels map[string]string) *policySet {
	set := &policySet{empty: true}
	for _, p := range policies {
		if !selects(p.policy.Selector, labels) {
			continue
		}
		set.empty = false
		set.allows = set.allows || p.policy.Action == ActionAllow
		for _, c := range p.clauses {
			set.file(c)
		}
	}
	return set
}

func (s *policySet) file(c *clause) {
	if len(c.keys) == 0 {
		s.everyone[c.policy.Action] = append(s.everyone[c.policy.Action], c)
		return
	}
	for _, key := range c.keys {
		if s.index[key.index] == nil {
			s.index[key.index] = map[string]*bucket{}
		}
		b := s.index[key.index][key.value]
		if b == nil {
			b = &bucket{}
			s.index[key.index][key.value] = b
		}
		b[c.policy.Action] = append(b[c.policy.Action], c)
	}
}

// Selects reports whether w is one of the workloads that the policy is for: of
// its namespace, with the labels of its selector.
func (p *Policy) Selects(w *Workload) bool {
	return p.Namespace == w.Namespace && selects(p.Selector, w.Labels)
}

func selects(selector, labels map[string]string) bool {
	for k, v := range selector {
		if have, ok := labels[k]; !ok || have != v {
			return false
		}
	}
	return true
}

// lookUp returns the buckets of a peer.
func (s *policySet) lookUp(peer spiffeid.ID) buckets {
	found := buckets{&s.everyone}
	if peer.IsZero() {
		return found
	}
	if index := s.index[indexIdentity]; len(index) > 0 {
		found[1] = index[peer.String()]
	}
	namespaces, accounts := s.index[indexNamespace], s.index[indexAccount]
	if len(namespaces) == 0 && len(accounts) == 0 {
		return found
	}
	namespace, account := nameParts(peer.Path())
	if namespace != "" && len(namespaces) > 0 {
		found[2] = namespaces[namespace]
	}
	if account != "" && len(accounts) > 0 {
		found[3] = accounts[account]
	}
	return found
}

func (s *policySet) decide(a *attributes) Decision {
	buckets := s.lookUp(a.peer)
	decision := Decision{Verdict: VerdictAllow, Reason: defaultReason(a.peer.IsZero()), Rule: -1}
	if c := firstMatch(&buckets, ActionDeny, a); c != nil {
		decision = Decision{Verdict: VerdictDeny, Reason: ReasonPolicyDeny, Policy: c.policy.Key, Rule: c.rule}
	} else if s.allows {
		decision = Decision{Verdict: VerdictDeny, Reason: ReasonPolicyNoMatch, Rule: -1}
		if c := firstMatch(&buckets, ActionAllow, a); c != nil {
			decision = Decision{Verdict: VerdictAllow, Reason: ReasonPolicyAllow, Policy: c.policy.Key, Rule: c.rule}
		}
	}
	if audited := auditing(&buckets, a); len(audited) > 0 {
		decision.Audited = audited
		if decision.Verdict == VerdictAllow {
			decision.Verdict = VerdictAudit
		}
	}
	return decision
}

// firstMatch returns the matching clause of the lowest order, or nil. Each list
// is in order, so its first match is its lowest, and no list needs to be
// searched past the best of the others.
func firstMatch(buckets *buckets, action Action, a *attributes) *clause {
	var best *clause
	for _, b := range buckets {
		if b == nil {
			continue
		}
		for _, c := range b[action] {
			if best != nil && c.order >= best.order {
				break
			}
			if c.match(a) {
				best = c
				break
			}
		}
	}
	return best
}

// auditing returns the keys of the AUDIT policies that match, sorted.
func auditing(buckets *buckets, a *attributes) []Key {
	var keys []Key
	for _, b := range buckets {
		if b == nil {
			continue
		}
		for _, c := range b[ActionAudit] {
			if c.match(a) {
				keys = append(keys, c.policy.Key)
			}
		}
	}
	slices.SortFunc(keys, Key.Compare)
	return slices.Compact(keys)
}
