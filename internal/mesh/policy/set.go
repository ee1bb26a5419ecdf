package policy

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/internal/mesh/keyed"
	"github.com/heddle-mesh/heddle/internal/mesh/pattern"
)

// Attributes are what rules look at.
type Attributes struct {
	Peer      spiffeid.ID
	Foreign   bool   // Peer is of another trust domain
	Namespace string // proved by Peer; "" when it proves none
	Source    netip.Addr
	Port      uint16
	// Request is nil when none is known of the connection.
	Request *Request
	// Judged says that the requests of the connection were judged elsewhere: what DENY and
	// AUDIT policies say of requests alone does not match it.
	Judged bool
}

// Seen says how a policy matches.
type Seen uint8

// No, or by what is known, or for want of knowing a request.
const (
	No Seen = iota
	Yes
	Unseen
)

// Compiled is a policy taken apart into clauses.
type Compiled struct {
	policy   *Policy
	clauses  []*clause
	requests bool // it is about them
}

// Self returns the policy's name.
func (p *Compiled) Self() keyed.Key { return p.policy.Key }

// clause is one rule with one of its sources, or with none: rule r matches
// when one of its clauses does. Clauses are what the index holds.
type clause struct {
	policy *Policy
	rule   int
	from   *Source
	to     []Destination
	keys   []indexKey // where a Set files it; none: under everyone
	block  block4     // that its source has to be in
}

// block4 is a block of IPv4 addresses; zero has all addresses in it.
type block4 struct{ bits, mask uint32 }

// onlyBlock returns the block that a source names, where it is one of IPv4 and the only
// one. It is kept with the clause: no policy's own memory has to be read then for what
// rules most clauses out that no key does.
func onlyBlock(s *Source) block4 {
	if len(s.IPBlocks) != 1 || !s.IPBlocks[0].Addr().Is4() {
		return block4{}
	}
	mask := ^uint32(0) << (32 - s.IPBlocks[0].Bits())
	return block4{bits: number(s.IPBlocks[0].Addr()) & mask, mask: mask}
}

// number is an IPv4 address as a number.
func number(a netip.Addr) uint32 {
	four := a.As4()
	return binary.BigEndian.Uint32(four[:])
}

// has reports whether where a connection comes from is in a block.
func (b block4) has(f *from4) bool {
	return b.mask == 0 || f.is4 && f.v4&b.mask == b.bits
}

// from4 is where a connection comes from, where that is an IPv4 address.
type from4 struct {
	v4  uint32
	is4 bool
}

// indexKey is a value that one of the three indexes of a Set has.
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

// before orders clauses, policies by key, then rules: the first match decides.
func (c *clause) before(other *clause) bool {
	if c.policy == other.policy {
		return c.rule < other.rule
	}
	return c.policy.Key.Compare(other.policy.Key) < 0
}

// Compile takes a policy apart.
func Compile(p *Policy) *Compiled {
	c := &Compiled{policy: p, requests: p.AboutRequests()}
	for i := range p.Rules {
		rule := &p.Rules[i]
		base := clause{policy: p, rule: i, to: rule.To}
		if len(rule.From) == 0 {
			one := base
			one.from = &Source{}
			c.clauses = append(c.clauses, &one)
			continue
		}
		for j := range rule.From {
			one := base
			one.from = &rule.From[j]
			one.keys, one.block = indexKeys(one.from), onlyBlock(one.from)
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
func patternKey(p pattern.Pattern) (indexKey, bool) {
	if p.Exact() {
		return indexKey{indexIdentity, string(p)}, true
	}
	_, path, _ := strings.Cut(strings.TrimPrefix(string(p), "spiffe://"), "/")
	namespace, account := pattern.NameParts("/" + path)
	switch {
	case account != "" && !strings.Contains(account, "*"):
		return indexKey{indexAccount, account}, true
	case namespace != "" && namespace != "*":
		return indexKey{indexNamespace, namespace}, true
	}
	return indexKey{}, false
}

// match reports whether a clause matches; unseen has an ALLOW clause match that would if
// its request were one that it names.
func (c *clause) match(a *Attributes, unseen bool) Seen {
	seen := matchTo(c.to, a, c.policy.Action, unseen)
	if seen == No || !c.from.match(a, c.policy.Action) {
		return No
	}
	return seen
}

func matchTo(to []Destination, a *Attributes, action Action, unseen bool) Seen {
	if len(to) == 0 {
		return Yes
	}
	best := No
	for i := range to {
		d := &to[i]
		if len(d.Ports) > 0 && !slices.Contains(d.Ports, a.Port) || slices.Contains(d.NotPorts, a.Port) {
			continue
		}
		switch {
		case d.Requests == nil:
			return Yes
		case a.Request != nil:
			if d.Requests.Match(a.Request, action == Allow) {
				return Yes
			}
		case unseen || action != Allow && !a.Judged:
			best = Unseen
		}
	}
	return best
}

func (s *Source) match(a *Attributes, action Action) bool {
	// What is not proved satisfies a negative everywhere but in an ALLOW.
	unproved := action != Allow
	if a.Foreign && action == Allow && len(s.Identities) == 0 {
		return false // what does not name an identity of another trust domain does not let it in
	}
	// Of what must all be so, what costs least to know comes first.
	if len(s.IPBlocks) > 0 && !matchBlock(s.IPBlocks, a.Source) {
		return false
	}
	if len(s.Identities) > 0 && !matchIdentity(s.Identities, a.Peer) {
		return false
	}
	if len(s.NotIdentities) > 0 {
		if a.Peer.IsZero() {
			if !unproved {
				return false
			}
		} else if matchIdentity(s.NotIdentities, a.Peer) {
			return false
		}
	}
	if len(s.Namespaces) > 0 && (a.Namespace == "" || !slices.Contains(s.Namespaces, a.Namespace)) {
		return false
	}
	if len(s.NotNamespaces) > 0 {
		if a.Namespace == "" {
			if !unproved {
				return false
			}
		} else if slices.Contains(s.NotNamespaces, a.Namespace) {
			return false
		}
	}
	if len(s.NotIPBlocks) > 0 {
		if !a.Source.IsValid() {
			return unproved
		}
		return !matchBlock(s.NotIPBlocks, a.Source)
	}
	return true
}

func matchIdentity(patterns []pattern.Pattern, id spiffeid.ID) bool {
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

// Set is an index of the policies that select one workload. A clause is
// filed under keys of which a matching peer must have one: an identity, or the
// namespace or account in it. A connection looks into the buckets of its peer's
// keys and into that of clauses without keys; the index only leaves out what
// cannot match, clause.match decides.
type Set struct {
	empty    bool // no policy selects the workload
	allows   bool // at least one ALLOW policy does
	requests bool // at least one that does is about requests
	blocks   bool // at least one of their rules is about addresses
	everyone bucket
	index    [indexKinds]map[string]*bucket
}

// Empty reports whether no policy selects the workload.
func (s *Set) Empty() bool { return s.empty }

// Allows reports whether an ALLOW policy selects the workload.
func (s *Set) Allows() bool { return s.allows }

// AboutRequests reports whether a policy that selects the workload wants to know of requests.
func (s *Set) AboutRequests() bool { return s.requests }

// bucket holds clauses by action, each list in their order.
type bucket [Audit + 1][]*clause

// Buckets are those that one connection looks into.
type Buckets struct {
	of   [indexKinds + 1]*bucket // may be nil
	from from4
}

// NewSet makes the index of those policies, sorted by key, that select labels.
func NewSet(policies []*Compiled, labels map[string]string) *Set {
	set := &Set{empty: true}
	for _, p := range policies {
		if !Selects(p.policy.Selector, labels) {
			continue
		}
		set.empty = false
		set.allows = set.allows || p.policy.Action == Allow
		set.requests = set.requests || p.requests
		for _, c := range p.clauses {
			set.file(c)
		}
	}
	return set
}

// ByAddress reports whether the address that a peer comes from may count.
func (s *Set) ByAddress() bool { return s.blocks }

func (s *Set) file(c *clause) {
	s.blocks = s.blocks || len(c.from.IPBlocks)+len(c.from.NotIPBlocks) > 0
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

// Selects reports whether labels have everything that a selector wants.
func Selects(selector, labels map[string]string) bool {
	for k, v := range selector {
		if have, ok := labels[k]; !ok || have != v {
			return false
		}
	}
	return true
}

// LookUp returns where what may match a peer at an address is: what is asked of it then
// has to be of both.
func (s *Set) LookUp(peer spiffeid.ID, source netip.Addr) (found Buckets) {
	if found.of[0] = &s.everyone; source.Is4() {
		found.from = from4{number(source), true}
	}
	if peer.IsZero() {
		return found
	}
	if index := s.index[indexIdentity]; len(index) > 0 {
		found.of[1] = index[peer.String()]
	}
	namespaces, accounts := s.index[indexNamespace], s.index[indexAccount]
	if len(namespaces) == 0 && len(accounts) == 0 {
		return found
	}
	namespace, account := pattern.NameParts(peer.Path())
	if namespace != "" && len(namespaces) > 0 {
		found.of[2] = namespaces[namespace]
	}
	if account != "" && len(accounts) > 0 {
		found.of[3] = accounts[account]
	}
	return found
}

// First returns the policy and the rule of the first clause of an action that matches, and how.
func (b *Buckets) First(action Action, a *Attributes) (name keyed.Key, rule int, seen Seen) {
	return b.firstMatch(action, a, false)
}

// FirstUnseen returns the policy and the rule of the first ALLOW clause that would match a
// connection if its requests were those that the clause names.
func (b *Buckets) FirstUnseen(a *Attributes) (name keyed.Key, rule int, seen Seen) {
	return b.firstMatch(Allow, a, true)
}

// firstMatch returns the first clause that matches. Each list
// is in order, so its first match is its lowest, and no list needs to be
// searched past the best of the others.
func (b *Buckets) firstMatch(action Action, a *Attributes, unseen bool) (name keyed.Key, rule int, seen Seen) {
	var best *clause
	for _, in := range b.of {
		if in == nil {
			continue
		}
		for _, c := range in[action] {
			if best != nil && !c.before(best) {
				break
			}
			if !c.block.has(&b.from) {
				continue
			}
			if is := c.match(a, unseen); is != No {
				best, seen = c, is
				break
			}
		}
	}
	if best == nil {
		return name, 0, No
	}
	return best.policy.Key, best.rule, seen
}

// Auditing returns the keys of the AUDIT policies that match, sorted.
func (b *Buckets) Auditing(a *Attributes) []keyed.Key {
	var keys []keyed.Key
	for _, in := range b.of {
		if in == nil {
			continue
		}
		for _, c := range in[Audit] {
			if c.block.has(&b.from) && c.match(a, false) != No {
				keys = append(keys, c.policy.Key)
			}
		}
	}
	slices.SortFunc(keys, keyed.Key.Compare)
	return slices.Compact(keys)
}
