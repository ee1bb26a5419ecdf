package mesh

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/internal/mesh/federation"
	"github.com/heddle-mesh/heddle/internal/mesh/index"
	"github.com/heddle-mesh/heddle/internal/mesh/keyed"
	"github.com/heddle-mesh/heddle/internal/mesh/pattern"
	"github.com/heddle-mesh/heddle/internal/mesh/policy"
	"github.com/heddle-mesh/heddle/internal/mesh/workload"
)

// viewBuilder makes a View of another one and what is different in it, and collects
// everything that is wrong with that.
type viewBuilder struct {
	base, view *View
	byKey      map[Key]*Workload // nil where few are looked up
	owners     *index.Editor[*Workload]
	virtual    *index.Editor[*serviceEntry]
	nodes      *index.Editor[*nodeEntry]
	endpoints  *index.Editor[*Key]
	behind     *index.Editor[behind]
	external   *index.Editor[*serviceEntry]
	errs       []error
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
		if err := policy.CheckBlock(block); err != nil {
			b.errorf("settings: cluster range: %w", err)
		}
	}
	for _, id := range s.RevokedIdentities {
		if id.IsZero() {
			b.errorf("settings: an identity to revoke is empty")
		}
		b.view.revoked[id] = struct{}{}
	}
	b.errs = append(b.errs, federation.Check(s.TrustDomain, s.ClusterRanges, s.Federation)...)
	b.view.foreign = federation.ByAddress(s.Federation)
}

// acceptable returns those objects, sorted, that have names of their own.
func acceptable[T any, P keyed.Object[T]](b *viewBuilder, kind string, put []P) []P {
	put = keyed.Sort(put)
	for i, object := range put {
		err := object.Self().Check()
		if i > 0 && put[i-1].Self() == object.Self() {
			err = errors.New("defined twice")
		}
		if err != nil {
			b.errorf("%s %v: %w", kind, object.Self(), err)
		}
	}
	if len(b.errs) == 0 {
		return put
	}
	return slices.CompactFunc(slices.DeleteFunc(slices.Clone(put), func(o P) bool { return o.Self().Check() != nil }),
		func(a, b P) bool { return a.Self() == b.Self() })
}

// onNode is what is different in the workloads of one node.
type onNode struct {
	put  []*Workload
	gone []Key
}

func (b *viewBuilder) changeWorkloads(put []*Workload, gone []Key) {
	b.view.workloads = keyed.Splice(b.base.workloads, put, gone)
	nodes := map[string]*onNode{}
	at := func(node string) *onNode {
		if nodes[node] == nil {
			nodes[node] = &onNode{}
		}
		return nodes[node]
	}
	forget := func(key Key) {
		if was, ok := b.base.Workload(key); ok {
			at(was.Node).gone = append(at(was.Node).gone, key)
			for _, addr := range was.Addresses {
				b.owners.Remove(index.OfAddress(addr), func(w *Workload) bool { return w == was })
			}
		}
	}
	for _, key := range gone {
		forget(key)
	}
	for _, w := range put {
		forget(w.Key)
		b.checkWorkload(w)
		if !workload.Plain(w.Addresses) {
			w.Addresses = PlainAddresses(w.Addresses)
		}
		at(w.Node).put = append(at(w.Node).put, w)
		if b.byKey != nil {
			b.byKey[w.Key] = w
		}
	}
	for node, change := range nodes {
		slices.SortFunc(change.gone, Key.Compare)
		is := &nodeEntry{node, keyed.Splice(b.base.OnNode(node), change.put, change.gone)}
		b.nodes.Remove(index.OfTexts(node, ""), func(e *nodeEntry) bool { return e.node == node })
		if len(is.workloads) > 0 {
			b.nodes.Add(index.OfTexts(node, ""), is)
		}
	}
}

func (b *viewBuilder) checkWorkload(w *Workload) {
	if w.Node == "" {
		b.errorf("workload %v: node is empty", w.Key)
	}
	for _, p := range w.Datagrams {
		if err := errors.Join(p.Key.Check(), p.Validate()); err != nil {
			b.errorf("workload %v: policy %v about UDP: %w", w.Key, p.Key, err)
		}
	}
	if b.view.settings.TrustDomain.IsZero() {
		return // said already
	}
	if hasOwnIdentity(w, b.view.settings.TrustDomain) {
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
func hasOwnIdentity(w *Workload, td spiffeid.TrustDomain) bool {
	namespace, account := pattern.NameParts(w.Identity.Path())
	return w.Identity.MemberOf(td) && namespace != "" && account != "" && namespace == w.Namespace && account == w.ServiceAccount && !strings.Contains(account, "/")
}

// changeServices also makes anew what is known of services that did not change, but
// have endpoints that did.
func (b *viewBuilder) changeServices(put []*Service, gone []Key, workloads map[Key]bool) []*serviceEntry {
	b.view.services = keyed.Splice(b.base.services, put, gone)
	changed := map[Key]bool{}
	for _, key := range gone {
		changed[key] = true
		if was := b.base.entry(key); was != nil {
			b.forgetService(was)
			b.refer(was.name, was.service.Members(), nil)
			b.countBehind(was.service, -1)
		}
	}
	var fresh []*serviceEntry
	for _, s := range put {
		changed[s.Key] = true
		b.checkService(s)
		name, before := (*Key)(nil), []Key(nil)
		if was := b.base.entry(s.Key); was != nil {
			b.forgetService(was)
			name, before = was.name, was.service.Members()
			b.countBehind(was.service, -1)
		} else {
			name = &Key{Namespace: s.Namespace, Name: s.Name}
		}
		b.refer(name, before, s.Members())
		b.countBehind(s, 1)
		fresh = append(fresh, b.serviceEntry(s, name))
	}
	for key := range workloads {
		for _, name := range b.base.endpoints.Bucket(index.OfTexts(key.Namespace, key.Name)) {
			was := b.base.entry(*name)
			if changed[*name] || was == nil || !keyed.Has(was.service.Members(), key) {
				continue
			}
			changed[*name] = true
			b.forgetService(was)
			fresh = append(fresh, b.serviceEntry(was.service, name))
		}
	}
	fresh = keyed.Sort(fresh)
	b.view.entries = keyed.Splice(b.base.entries, fresh, gone)
	return fresh
}

func (b *viewBuilder) forgetService(was *serviceEntry) {
	for _, addr := range was.service.Addresses {
		b.virtual.Remove(index.OfAddress(addr), func(e *serviceEntry) bool { return e == was })
	}
	was.service.EachExternal(func(addr netip.Addr, port uint16) {
		b.external.Remove(index.OfAddressPort(addr, port), func(e *serviceEntry) bool { return e == was })
	})
}

// refer notes whose endpoints a service has.
func (b *viewBuilder) refer(name *Key, was, is []Key) {
	for _, key := range was {
		if !keyed.Has(is, key) {
			b.endpoints.Remove(index.OfTexts(key.Namespace, key.Name), func(k *Key) bool { return *k == *name })
		}
	}
	for _, key := range is {
		if !keyed.Has(was, key) {
			b.endpoints.Add(index.OfTexts(key.Namespace, key.Name), name)
		}
	}
}

func (b *viewBuilder) checkService(s *Service) {
	b.errs = append(b.errs, s.CheckPorts()...)
	if !keyed.Ascending(s.Endpoints) {
		s.Endpoints = SortedKeys(s.Endpoints)
	}
	if !workload.Plain(s.Addresses) {
		s.Addresses = PlainAddresses(s.Addresses)
	}
	if !workload.Plain(s.External) {
		s.External = PlainAddresses(s.External)
	}
}

func (b *viewBuilder) serviceEntry(s *Service, name *Key) *serviceEntry {
	entry := b.entry(s, s.Endpoints, nil)
	entry.name = name
	for i := range s.Ports {
		if s.Ports[i].Only == nil && s.Ports[i].Elsewhere == nil {
			continue
		}
		if entry.own == nil {
			entry.own = make([]*serviceEntry, len(s.Ports))
		}
		entry.own[i] = b.entry(s, s.Ports[i].Having(), reachableAt(&s.Ports[i]))
	}
	return entry
}

// workloadOf returns one of the View that is built; nil when there is none.
func (b *viewBuilder) workloadOf(key Key) *Workload {
	if b.byKey != nil {
		return b.byKey[key]
	}
	w, _ := b.view.Workload(key)
	return w
}

// reachableAt leaves out those whose number of a port is the agent's own; nil where the
// port has one number, which Route looks at.
func reachableAt(p *ServicePort) func(*Workload) bool {
	if p.Elsewhere == nil {
		return nil
	}
	r := Route{Port: p.TargetPort, elsewhere: p.Elsewhere}
	return func(w *Workload) bool { return !w.Enrolled || !ReservedPort(r.PortOf(w)) }
}

// entry finds who of a service's endpoints takes connections: those that are ready, or,
// while none is, those that leave, as kube-proxy does (KEP-1669).
func (b *viewBuilder) entry(s *Service, endpoints []Key, reachable func(*Workload) bool) *serviceEntry {
	entry := &serviceEntry{service: s}
	var leaving []*Workload
	for _, key := range endpoints {
		w := b.workloadOf(key)
		switch {
		case w == nil || len(w.Addresses) == 0 || reachable != nil && !reachable(w):
		case w.Ready || s.Unready:
			entry.ready = append(entry.ready, w)
		case w.Leaving:
			leaving = append(leaving, w)
		}
	}
	if len(entry.ready) == 0 {
		entry.ready = leaving
	}
	for _, w := range entry.ready {
		if !w.Enrolled {
			entry.readyPlain = append(entry.readyPlain, w)
		}
	}
	mayNot := func(w *Workload) bool { return !w.Enrolled || w.Namespace != s.Namespace }
	if entry.hops = entry.ready; slices.ContainsFunc(entry.ready, mayNot) {
		entry.hops = slices.DeleteFunc(slices.Clone(entry.ready), mayNot)
	}
	entry.ready, entry.readyPlain = slices.Clip(entry.ready), slices.Clip(entry.readyPlain)
	if s.Prefer != AnyDistance {
		entry.near = workload.PlacesOf(entry.ready, leaving, s.Prefer != SameZone, s.Prefer == OnlyNode)
	}
	return entry
}

// unicast checks one address of an object's.
func (b *viewBuilder) unicast(kind string, key Key, before []netip.Addr, addr netip.Addr) bool {
	switch {
	case !addr.IsValid() || addr.Zone() != "" || addr.IsUnspecified() || addr.IsLoopback() || addr.IsMulticast():
		b.errorf("%s %v: address %v is not a unicast address of its own", kind, key, addr)
	case slices.Contains(before, addr):
		b.errorf("%s %v: address %v is given twice", kind, key, addr)
	default:
		return true
	}
	return false
}

// claim checks addresses that are to be an object's; each belongs to one only.
func (b *viewBuilder) claim(kind string, key Key, addrs []netip.Addr, add func(netip.Addr)) {
	for i, addr := range addrs {
		if !b.unicast(kind, key, addrs[:i], addr) {
			continue
		}
		// Another address of its own may have put it into the same bucket.
		if w := workloadAt(b.owners.Index, addr); w != nil && (kind != "workload" || w[0].Key != key) {
			b.errorf("address %v is used twice: by workload %v and by %s %v", addr, w[0].Key, kind, key)
		} else if foreign, ok := b.view.ForeignAt(addr); ok {
			b.errorf("address %v is used twice: by workload %v of another trust domain and by %s %v", addr, foreign.Identity, kind, key)
		} else if s := serviceAt(b.virtual.Index, addr); s != nil && (kind != "service" || s.service.Key != key) {
			b.errorf("address %v is used twice: by service %v and by %s %v", addr, s.service.Key, kind, key)
		} else {
			add(addr)
		}
	}
}

func (b *viewBuilder) claimAll(workloads []*Workload, services []*serviceEntry) {
	for _, w := range workloads {
		b.claim("workload", w.Key, w.Addresses, func(addr netip.Addr) { b.owners.Add(index.OfAddress(addr), w) })
	}
	for _, e := range services {
		b.claim("service", e.service.Key, e.service.Addresses, func(addr netip.Addr) { b.virtual.Add(index.OfAddress(addr), e) })
		for i, addr := range e.service.External { // others may have it, too
			b.unicast("service", e.service.Key, e.service.External[:i], addr)
		}
		e.service.EachExternal(func(addr netip.Addr, port uint16) { b.external.Add(index.OfAddressPort(addr, port), e) })
	}
}

func (b *viewBuilder) changePolicies(put []*Policy, gone []Key) {
	compiled := make([]*policy.Compiled, len(put))
	for i, p := range put {
		if err := p.Validate(); err != nil {
			b.errorf("policy %v: %w", p.Key, err)
		}
		compiled[i] = policy.Compile(p)
	}
	b.view.policies = keyed.Splice(b.base.policies, put, gone)
	b.view.compiled = keyed.Splice(b.base.compiled, compiled, gone)
}

// PlainAddresses returns addresses as a View has them; see package workload.
func PlainAddresses(addrs []netip.Addr) []netip.Addr { return workload.PlainAddresses(addrs) }
