package mesh

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// viewBuilder collects a View, and everything that is wrong with its parts.
type viewBuilder struct {
	view  *View
	byKey map[Key]*Workload
	errs  []error
}

func (b *viewBuilder) errorf(format string, args ...any) {
	b.errs = append(b.errs, fmt.Errorf(format, args...))
}

func (b *viewBuilder) addSettings() {
	s := &b.view.settings
	if s.TrustDomain.IsZero() {
		b.errorf("settings: trust domain is empty")
	}
	for _, block := range s.ClusterRanges {
		if err := checkBlock(block); err != nil {
			b.errorf("settings: cluster range: %w", err)
		}
	}
	for _, id := range s.RevokedIdentities {
		if id.IsZero() {
			b.errorf("settings: an identity to revoke is empty")
		}
		b.view.revoked[id] = struct{}{}
	}
}

func (b *viewBuilder) addWorkload(w *Workload) {
	if err := checkKey(w.Key); err != nil {
		b.errorf("workload %v: %w", w.Key, err)
		return
	}
	if _, twice := b.byKey[w.Key]; twice {
		b.errorf("workload %v: defined twice", w.Key)
		return
	}
	b.checkWorkload(w)
	b.byKey[w.Key] = w
	b.view.workloads = append(b.view.workloads, w)
	b.view.nodes[w.Node] = append(b.view.nodes[w.Node], w)
	if !plain(w.Addresses) {
		w.Addresses = PlainAddresses(w.Addresses)
	}
	b.claim(w.Addresses, addressOwner(len(b.view.workloads)-1))
}

func (b *viewBuilder) checkWorkload(w *Workload) {
	if w.Node == "" {
		b.errorf("workload %v: node is empty", w.Key)
	}
	if b.view.settings.TrustDomain.IsZero() {
		return // said already
	}
	if w.hasOwnIdentity(b.view.settings.TrustDomain) {
		return
	}
	want, err := IdentityFor(b.view.settings.TrustDomain, w.Namespace, w.ServiceAccount)
	switch {
	case err != nil:
		b.errorf("workload %v: %w", w.Key, err)
	case w.Identity != want:
		b.errorf("workload %v: identity is %q, want %q", w.Key, w.Identity, want)
	}
}

// hasOwnIdentity reports whether the workload has the identity that IdentityFor
// gives, without making that: every View asks it of every workload. When it is
// false, IdentityFor says why.
func (w *Workload) hasOwnIdentity(td spiffeid.TrustDomain) bool {
	namespace, account := nameParts(w.Identity.Path())
	return w.Identity.MemberOf(td) && namespace != "" && account != "" && namespace == w.Namespace && account == w.ServiceAccount && !strings.Contains(account, "/")
}

func (b *viewBuilder) addService(s *Service) {
	if err := checkKey(s.Key); err != nil {
		b.errorf("service %v: %w", s.Key, err)
		return
	}
	if _, twice := b.view.serviceByKey[s.Key]; twice {
		b.errorf("service %v: defined twice", s.Key)
		return
	}
	for i, p := range s.Ports {
		if p.Port == 0 || p.TargetPort == 0 {
			b.errorf("service %v: port %d to %d: ports begin at 1", s.Key, p.Port, p.TargetPort)
		}
		if slices.ContainsFunc(s.Ports[:i], func(q ServicePort) bool { return q.Port == p.Port }) {
			b.errorf("service %v: port %d is defined twice", s.Key, p.Port)
		}
	}
	entry := &serviceEntry{service: s}
	if !ascending(s.Endpoints) {
		s.Endpoints = SortedKeys(s.Endpoints)
	}
	for _, key := range s.Endpoints {
		w, ok := b.byKey[key]
		if !ok || !w.Ready || len(w.Addresses) == 0 {
			continue
		}
		entry.ready = append(entry.ready, w)
		if !w.Enrolled {
			entry.readyPlain = append(entry.readyPlain, w)
		}
	}
	entry.ready, entry.readyPlain = slices.Clip(entry.ready), slices.Clip(entry.readyPlain)
	if s.Prefer != AnyDistance {
		entry.near = nearness(entry.ready, s.Prefer)
	}
	b.view.serviceByKey[s.Key] = entry
	b.view.services = append(b.view.services, s)
	b.view.entries = append(b.view.entries, entry)
	if !plain(s.Addresses) {
		s.Addresses = PlainAddresses(s.Addresses)
	}
	b.claim(s.Addresses, ^addressOwner(len(b.view.services)-1))
}

// claim records the owner of addresses; each belongs to one object only.
func (b *viewBuilder) claim(addrs []netip.Addr, owner addressOwner) {
	for i, addr := range addrs {
		switch {
		case !addr.IsValid() || addr.Zone() != "" || addr.IsUnspecified() || addr.IsLoopback() || addr.IsMulticast():
			b.errorf("%s: address %v is not a unicast address of its own", b.view.describe(owner), addr)
			continue
		case i > 0 && addrs[i-1] == addr:
			b.errorf("%s: address %v is given twice", b.view.describe(owner), addr)
			continue
		}
		if other, taken := b.view.addresses[addr]; taken {
			b.errorf("address %v is used twice: by %s and by %s", addr, b.view.describe(other), b.view.describe(owner))
			continue
		}
		b.view.addresses[addr] = owner
	}
}

func (b *viewBuilder) addPolicy(p *Policy) {
	if err := checkKey(p.Key); err != nil {
		b.errorf("policy %v: %w", p.Key, err)
		return
	}
	if n := len(b.view.policies); n > 0 && b.view.policies[n-1].Key == p.Key {
		b.errorf("policy %v: defined twice", p.Key)
		return
	}
	if err := p.validate(); err != nil {
		b.errorf("policy %v: %w", p.Key, err)
		return
	}
	b.view.policies = append(b.view.policies, p)
	order := len(b.view.policies)
	b.view.compiled[p.Namespace] = append(b.view.compiled[p.Namespace], compilePolicy(p, order))
}

func (p *Policy) validate() error {
	var errs []error
	if p.Action > ActionAudit {
		errs = append(errs, fmt.Errorf("action %d is unknown", p.Action))
	}
	for i, rule := range p.Rules {
		for j, from := range rule.From {
			if err := from.validate(); err != nil {
				errs = append(errs, fmt.Errorf("rule %d, source %d: %w", i, j, err))
			}
		}
		for j, to := range rule.To {
			if slices.Contains(to.Ports, 0) || slices.Contains(to.NotPorts, 0) {
				errs = append(errs, fmt.Errorf("rule %d, destination %d: ports begin at 1", i, j))
			}
		}
	}
	return errors.Join(errs...)
}

func (s *Source) validate() error {
	var errs []error
	for _, list := range [][]IdentityPattern{s.Identities, s.NotIdentities} {
		for _, p := range list {
			errs = append(errs, p.Validate())
		}
	}
	for _, list := range [][]netip.Prefix{s.IPBlocks, s.NotIPBlocks} {
		for _, block := range list {
			errs = append(errs, checkBlock(block))
		}
	}
	for _, list := range [][]string{s.Namespaces, s.NotNamespaces} {
		if slices.Contains(list, "") {
			errs = append(errs, errors.New("a namespace is empty"))
		}
	}
	return errors.Join(errs...)
}

// checkBlock refuses what no unmapped address could be in.
func checkBlock(block netip.Prefix) error {
	switch {
	case !block.IsValid():
		return fmt.Errorf("address block %v is invalid", block)
	case block.Addr().Is4In6():
		return fmt.Errorf("address block %v is an IPv4 block written as IPv6: write it as IPv4", block)
	}
	return nil
}

func checkKey(k Key) error {
	if k.Namespace == "" || k.Name == "" {
		return errors.New("namespace or name is empty")
	}
	if strings.Contains(k.Namespace, "/") || strings.Contains(k.Name, "/") {
		return errors.New(`namespace or name has a "/" in it`) // Key.String would be ambiguous
	}
	return nil
}

// PlainAddresses returns addresses as a View has them: unmapped and sorted.
func PlainAddresses(addrs []netip.Addr) []netip.Addr {
	unmapped := make([]netip.Addr, len(addrs))
	for i, addr := range addrs {
		unmapped[i] = addr.Unmap()
	}
	slices.SortFunc(unmapped, netip.Addr.Compare)
	return unmapped
}

// plain reports whether PlainAddresses would change nothing. What other Views
// share must not be written to.
func plain(addrs []netip.Addr) bool {
	return !slices.ContainsFunc(addrs, netip.Addr.Is4In6) && slices.IsSortedFunc(addrs, netip.Addr.Compare)
}

// SortedKeys returns keys as a View has the endpoints of a service: sorted, each
// once.
func SortedKeys(keys []Key) []Key {
	sorted := slices.Clone(keys)
	slices.SortFunc(sorted, Key.Compare)
	return slices.Compact(sorted)
}

// ascending reports whether SortedKeys would change nothing.
func ascending(keys []Key) bool {
	for i := 1; i < len(keys); i++ {
		if keys[i-1].Compare(keys[i]) >= 0 {
			return false
		}
	}
	return true
}
