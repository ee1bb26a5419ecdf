package mesh_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"pgregory.net/rapid"

	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/mesh/request"
)

// naive is the specification of Authorize written down as plainly as possible:
// every policy, every rule, no index, nothing shared with the real one.
type naive struct {
	settings  mesh.Settings
	workloads []mesh.Workload
	services  []mesh.Service
	policies  []mesh.Policy // sorted by key
}

func (n naive) authorize(c mesh.Connection) mesh.Decision {
	deny := func(r mesh.Reason) mesh.Decision { return mesh.Decision{Reason: r, Rule: -1} }
	if c.Destination == nil {
		return deny(mesh.ReasonUnknownDestination)
	}
	i := slices.IndexFunc(n.workloads, func(w mesh.Workload) bool { return w.Key == c.Destination.Key })
	if i < 0 {
		return deny(mesh.ReasonUnknownDestination)
	}
	w := n.workloads[i]
	plaintext := c.Peer == spiffeid.ID{}
	mode, ok := w.PortModes[c.Port]
	if !ok {
		mode = w.Mode
	}
	switch {
	case !plaintext && (slices.Contains(n.settings.RevokedIdentities, c.Peer) || slices.Contains(n.settings.RevokedIdentities, w.Identity)):
		return deny(mesh.ReasonIdentityRevoked)
	case !plaintext && n.foreign(c) && !slices.ContainsFunc(n.settings.Federation, func(d mesh.FederatedDomain) bool { return d.TrustDomain == c.Peer.TrustDomain() }):
		return deny(mesh.ReasonNotFederated)
	case c.Behind.IsValid() && (plaintext || c.Port != 15009 || !w.Enrolled || !c.Former && !n.behind(c.Behind, w.Key)):
		return deny(mesh.ReasonAuthorityMismatch)
	case !c.Behind.IsValid() && w.Enrolled && slices.Contains([]uint16{15001, 15006, 15008, 15009, 15053}, c.Port):
		return deny(mesh.ReasonReservedPort)
	case plaintext && c.Probe && slices.Contains(w.ProbePorts, c.Port):
		return mesh.Decision{Verdict: mesh.VerdictAllow, Reason: mesh.ReasonProbe, Rule: -1}
	case plaintext && mode == mesh.ModeStrict:
		return deny(mesh.ReasonStrictPlaintext)
	case slices.Contains(n.settings.RevokedIdentities, w.Identity):
		return deny(mesh.ReasonIdentityRevoked)
	}
	d := mesh.Decision{Verdict: mesh.VerdictAllow, Reason: mesh.ReasonNoPolicy, Rule: -1}
	if plaintext {
		d.Reason = mesh.ReasonPermissive
	}
	selected := slices.ContainsFunc(n.policies, func(p mesh.Policy) bool { return n.selects(p, w) })
	if c.Behind.IsValid() || !plaintext && (selected || n.foreign(c)) && n.sentOn(w, c.Peer, c.Port) {
		d.Reason = mesh.ReasonWaypoint
		return d
	}
	if p, rule := n.first(mesh.ActionDeny, w, c); p != nil {
		d = mesh.Decision{Reason: mesh.ReasonPolicyDeny, Policy: p.Key, Rule: rule}
		if !n.known(*p, rule, c) {
			d.Reason = mesh.ReasonRequestUnseen
		}
	} else if p, rule := n.first(mesh.ActionAllow, w, c); p != nil {
		d = mesh.Decision{Verdict: mesh.VerdictAllow, Reason: mesh.ReasonPolicyAllow, Policy: p.Key, Rule: rule}
	} else if c.Former && !n.foreign(c) && n.allows(w) {
		d = mesh.Decision{Verdict: mesh.VerdictAllow, Reason: mesh.ReasonWaypoint, Rule: -1}
	} else if p, rule := n.wouldAllow(w, c); p != nil {
		d = mesh.Decision{Reason: mesh.ReasonRequestUnseen, Policy: p.Key, Rule: rule}
	} else if n.foreign(c) {
		d = deny(mesh.ReasonForeignIdentity)
	} else if n.allows(w) {
		d = deny(mesh.ReasonPolicyNoMatch)
	}
	for _, p := range n.policies {
		if p.Action == mesh.ActionAudit && n.selects(p, w) && n.rule(p, c) >= 0 {
			d.Audited = append(d.Audited, p.Key)
			if d.Verdict == mesh.VerdictAllow {
				d.Verdict = mesh.VerdictAudit
			}
		}
	}
	return d
}

func (n naive) allows(w mesh.Workload) bool {
	return slices.ContainsFunc(n.policies, func(p mesh.Policy) bool { return p.Action == mesh.ActionAllow && n.selects(p, w) })
}

// wouldAllow is the first ALLOW policy, with its rule, that lets some request of a connection in.
func (n naive) wouldAllow(w mesh.Workload, c mesh.Connection) (*mesh.Policy, int) {
	if c.Request != nil {
		return nil, -1
	}
	for i := range n.policies {
		p := n.policies[i]
		if p.Action != mesh.ActionAllow || !n.selects(p, w) {
			continue
		}
		p.Rules = slices.Clone(p.Rules)
		for r := range p.Rules {
			p.Rules[r].To = slices.Clone(p.Rules[r].To)
			for j := range p.Rules[r].To {
				p.Rules[r].To[j].Requests = nil
			}
		}
		if rule := n.rule(p, c); rule >= 0 {
			return &n.policies[i], rule
		}
	}
	return nil, -1
}

// known says whether a rule that matches does so whatever the requests of a connection are.
func (n naive) known(p mesh.Policy, rule int, c mesh.Connection) bool {
	r := p.Rules[rule]
	return c.Request != nil || len(r.To) == 0 || slices.ContainsFunc(r.To, func(d mesh.Destination) bool { return d.Requests == nil && n.port(d, c) })
}

func (n naive) port(d mesh.Destination, c mesh.Connection) bool {
	return (len(d.Ports) == 0 || slices.Contains(d.Ports, c.Port)) && !slices.Contains(d.NotPorts, c.Port)
}

// request says whether the requests that an entry names are c's: what is not known lets nobody in.
func (n naive) request(d mesh.Destination, action mesh.Action, c mesh.Connection) bool {
	m, r := d.Requests, c.Request
	switch {
	case m == nil:
		return true
	case r == nil:
		return action != mesh.ActionAllow && !c.Former
	}
	if r.Method == "CONNECT" && (action != mesh.ActionAllow || !slices.Contains(m.Methods, "CONNECT")) {
		return action != mesh.ActionAllow
	}
	any := func(list []string, is string) bool {
		return slices.ContainsFunc(list, func(p string) bool {
			switch {
			case strings.HasSuffix(p, "*"):
				return strings.HasPrefix(is, p[:len(p)-1])
			case strings.HasPrefix(p, "*"):
				return strings.HasSuffix(is, p[1:])
			}
			return is == p
		})
	}
	texts := func(list []request.Pattern) (all []string) {
		for _, p := range list {
			all = append(all, string(p))
		}
		return all
	}
	host := strings.ToLower(strings.TrimSuffix(strings.Split(r.Host, ":")[0], "."))
	ok := (len(m.Hosts) == 0 || any(texts(m.Hosts), host)) && !any(texts(m.NotHosts), host)
	ok = ok && (len(m.Methods) == 0 || any(m.Methods, r.Method)) && !any(m.NotMethods, r.Method)
	if len(m.Paths)+len(m.NotPaths) > 0 {
		if r.Path() == "" {
			ok = ok && (action != mesh.ActionAllow || slices.Contains(m.Paths, "*") && len(m.NotPaths) == 0)
		} else {
			ok = ok && (len(m.Paths) == 0 || any(texts(m.Paths), r.Path())) && !any(texts(m.NotPaths), r.Path())
		}
	}
	for _, h := range m.Headers {
		named, others := 0, 0
		for _, line := range r.Headers {
			if !strings.EqualFold(line.Name, h.Name) {
				continue
			}
			if len(h.Values) == 0 || any(texts(h.Values), line.Value) {
				named++
			} else {
				others++
			}
		}
		ok = ok && named > 0 && (action != mesh.ActionAllow || others == 0)
	}
	return ok
}

// service returns the service of a name, and whether there is one.
func (n naive) service(key mesh.Key) (mesh.Service, bool) {
	i := slices.IndexFunc(n.services, func(s mesh.Service) bool { return s.Key == key })
	if i < 0 {
		return mesh.Service{}, false
	}
	return n.services[i], true
}

// behind says whether a workload is one of the waypoint of the service at an address and
// port: waypoint, workload and service are of one namespace.
func (n naive) behind(at netip.AddrPort, w mesh.Key) bool {
	for _, s := range n.services {
		has := slices.ContainsFunc(s.Ports, func(p mesh.ServicePort) bool { return p.Port == at.Port() })
		if !slices.Contains(s.Addresses, at.Addr().Unmap()) || !has || s.Waypoint.Namespace != s.Namespace {
			continue
		}
		waypoint, ok := n.service(s.Waypoint)
		return ok && w.Namespace == s.Namespace && slices.Contains(waypoint.Endpoints, w)
	}
	return false
}

// sentOn says whether a client is the waypoint of a service that leads to a port of a
// workload: all of one namespace, and the client as the identity of an enrolled workload.
func (n naive) sentOn(w mesh.Workload, client spiffeid.ID, port uint16) bool {
	for _, s := range n.services {
		waypoint, ok := n.service(s.Waypoint)
		if !ok || s.Waypoint.Namespace != s.Namespace || w.Namespace != s.Namespace || !slices.Contains(s.Endpoints, w.Key) {
			continue
		}
		leads := false
		for _, p := range s.Ports {
			leads = leads || p.TargetPort == port && (p.Only == nil || slices.Contains(p.Only, w.Key))
			for _, e := range p.Elsewhere {
				leads = leads || e.TargetPort == port && slices.Contains(e.Endpoints, w.Key)
			}
		}
		is := slices.ContainsFunc(n.workloads, func(from mesh.Workload) bool {
			return slices.Contains(waypoint.Endpoints, from.Key) && from.Namespace == s.Namespace && from.Enrolled && from.Identity == client
		})
		if leads && is {
			return true
		}
	}
	return false
}

func (n naive) selects(p mesh.Policy, w mesh.Workload) bool {
	for k, v := range p.Selector {
		if got, ok := w.Labels[k]; !ok || got != v {
			return false
		}
	}
	return p.Namespace == w.Namespace
}

func (n naive) first(a mesh.Action, w mesh.Workload, c mesh.Connection) (*mesh.Policy, int) {
	for i := range n.policies {
		if p := &n.policies[i]; p.Action == a && n.selects(*p, w) {
			if r := n.rule(*p, c); r >= 0 {
				return p, r
			}
		}
	}
	return nil, -1
}

func (n naive) rule(p mesh.Policy, c mesh.Connection) int {
	for i, r := range p.Rules {
		from := len(r.From) == 0 && (p.Action != mesh.ActionAllow || !n.foreign(c))
		for _, s := range r.From {
			from = from || n.source(s, p.Action, c)
		}
		to := len(r.To) == 0
		for _, d := range r.To {
			to = to || n.port(d, c) && n.request(d, p.Action, c)
		}
		if from && to {
			return i
		}
	}
	return -1
}

func (n naive) foreign(c mesh.Connection) bool {
	return !c.Peer.IsZero() && c.Peer.TrustDomain() != n.settings.TrustDomain
}

func (n naive) source(s mesh.Source, action mesh.Action, c mesh.Connection) bool {
	if action == mesh.ActionAllow && n.foreign(c) && len(s.Identities) == 0 {
		return false
	}
	namespace := ""
	if parts := strings.Split(c.Peer.Path(), "/"); len(parts) == 5 && parts[1] == "ns" && parts[3] == "sa" && c.Peer.MemberOf(n.settings.TrustDomain) {
		namespace = parts[2]
	}
	ids := func(list []mesh.IdentityPattern) bool {
		return slices.ContainsFunc(list, func(p mesh.IdentityPattern) bool { return naiveMatch(string(p), c.Peer.String()) })
	}
	blocks := func(list []netip.Prefix) bool {
		return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(c.Source.Unmap()) })
	}
	not := func(given, known, matches bool) bool {
		return !given || known && !matches || !known && action != mesh.ActionAllow
	}
	return (len(s.Identities) == 0 || ids(s.Identities)) &&
		(len(s.Namespaces) == 0 || namespace != "" && slices.Contains(s.Namespaces, namespace)) &&
		(len(s.IPBlocks) == 0 || blocks(s.IPBlocks)) &&
		not(len(s.NotIdentities) > 0, !c.Peer.IsZero(), ids(s.NotIdentities)) &&
		not(len(s.NotNamespaces) > 0, namespace != "", slices.Contains(s.NotNamespaces, namespace)) &&
		not(len(s.NotIPBlocks) > 0, c.Source.IsValid(), blocks(s.NotIPBlocks))
}

func naiveMatch(pattern, id string) bool {
	want, have := strings.Split(pattern, "/"), strings.Split(id, "/")
	if id == "" {
		return false
	}
	for i, segment := range want {
		if i >= len(have) || segment != "*" && segment != have[i] {
			return false
		}
	}
	return len(want) == len(have) || want[len(want)-1] == "*"
}

// The generators draw from so few words that rules match often.

func genIdentity(t *rapid.T) spiffeid.ID {
	return spiffeid.RequireFromString(rapid.SampledFrom([]string{
		"spiffe://example.org/ns/shop/sa/web", "spiffe://example.org/ns/shop/sa/db", "spiffe://example.org/ns/bank/sa/web",
		"spiffe://other.org/ns/shop/sa/web", "spiffe://third.org/ns/shop/sa/web", "spiffe://other.org/job", "spiffe://example.org/ns/shop/sa/web/x", "spiffe://example.org/node/n1", "spiffe://example.org",
	}).Draw(t, "identity"))
}

func genPattern() *rapid.Generator[mesh.IdentityPattern] {
	return rapid.SampledFrom([]mesh.IdentityPattern{
		"spiffe://example.org/ns/shop/sa/web", "spiffe://example.org/ns/shop/sa/db", "spiffe://example.org/ns/bank/sa/web",
		"spiffe://example.org/ns/*/sa/web", "spiffe://example.org/ns/shop/sa/*", "spiffe://example.org/ns/*", "spiffe://example.org/*",
		"spiffe://other.org/*", "spiffe://other.org/ns/shop/sa/web", "spiffe://third.org/*", "spiffe://example.org/*/shop/*/web", "spiffe://example.org/ns/*/sa/web/*",
		"spiffe://example.org/ns/*/sa/*/x", "spiffe://example.org/ns/shop/sa/*/x", "spiffe://example.org/ns/shop/*",
		"spiffe://example.org/ns/shop/sa/web/x", "spiffe://example.org/node/*", "spiffe://example.org/ns/*/sa/*",
	})
}

func genPrefix() *rapid.Generator[netip.Prefix] {
	return rapid.Map(rapid.SampledFrom([]string{"10.0.0.0/8", "10.1.0.0/16", "10.1.2.3/32", "0.0.0.0/0", "fd00::/8", "::/0"}), netip.MustParsePrefix)
}

func genPolicy(t *rapid.T) mesh.Policy {
	namespaces := rapid.SampledFrom([]string{"shop", "bank"})
	ports := rapid.SliceOfN(rapid.SampledFrom([]uint16{80, 443, 15008}), 0, 2)
	source := rapid.Custom(func(t *rapid.T) mesh.Source {
		return mesh.Source{
			Identities:    rapid.SliceOfN(genPattern(), 0, 2).Draw(t, "ids"),
			NotIdentities: rapid.SliceOfN(genPattern(), 0, 1).Draw(t, "notIDs"),
			Namespaces:    rapid.SliceOfN(namespaces, 0, 2).Draw(t, "namespaces"),
			NotNamespaces: rapid.SliceOfN(namespaces, 0, 1).Draw(t, "notNamespaces"),
			IPBlocks:      rapid.SliceOfN(genPrefix(), 0, 1).Draw(t, "blocks"),
			NotIPBlocks:   rapid.SliceOfN(genPrefix(), 0, 1).Draw(t, "notBlocks"),
		}
	})
	destination := rapid.Custom(func(t *rapid.T) mesh.Destination {
		return mesh.Destination{Ports: ports.Draw(t, "ports"), NotPorts: ports.Draw(t, "notPorts"), Requests: genMatch(t)}
	})
	rule := rapid.Custom(func(t *rapid.T) mesh.Rule {
		return mesh.Rule{From: rapid.SliceOfN(source, 0, 3).Draw(t, "from"), To: rapid.SliceOfN(destination, 0, 2).Draw(t, "to")}
	})
	return mesh.Policy{
		Key:      mesh.Key{Namespace: namespaces.Draw(t, "namespace"), Name: rapid.StringMatching(`[a-z]{2}`).Draw(t, "name")},
		Action:   rapid.SampledFrom([]mesh.Action{mesh.ActionAllow, mesh.ActionDeny, mesh.ActionAudit}).Draw(t, "action"),
		Selector: rapid.SampledFrom([]map[string]string{nil, {"app": "web"}, {"app": "db"}, {"app": "web", "tier": "1"}}).Draw(t, "selector"),
		Rules:    rapid.SliceOfN(rule, 0, 3).Draw(t, "rules"),
	}
}

// genMatch draws what an entry says of requests, most often nothing. Each reader takes them for
// the same: what readers differ in is package request's to test.
func genMatch(t *rapid.T) *mesh.RequestMatch {
	if rapid.IntRange(0, 2).Draw(t, "requests") > 0 {
		return nil
	}
	patterns := func(of ...request.Pattern) *rapid.Generator[[]request.Pattern] {
		return rapid.SliceOfN(rapid.SampledFrom(of), 0, 2)
	}
	hosts, paths := patterns("a.b", "*.b", "a*", "*"), patterns("/x", "/x/*", "*y", "*")
	methods := rapid.SliceOfN(rapid.SampledFrom([]string{"GET", "POST"}), 0, 1)
	m := &mesh.RequestMatch{
		Hosts: hosts.Draw(t, "hosts"), NotHosts: hosts.Draw(t, "notHosts"), Methods: methods.Draw(t, "methods"), NotMethods: methods.Draw(t, "notMethods"),
		Paths: paths.Draw(t, "paths"), NotPaths: paths.Draw(t, "notPaths"),
	}
	for range rapid.IntRange(0, 1).Draw(t, "headers") {
		m.Headers = append(m.Headers, request.HeaderMatch{Name: "x-a", Values: patterns("1", "2*", "*3").Draw(t, "values")})
	}
	if m.Validate() != nil { // nothing is said
		return nil
	}
	return m
}

func genRequest(t *rapid.T) *mesh.Request {
	if rapid.Bool().Draw(t, "no request") {
		return nil
	}
	r := &mesh.Request{Host: rapid.SampledFrom([]string{"a.b", "A.B:80", "c.b.", "a.b.c"}).Draw(t, "host"), Method: rapid.SampledFrom([]string{"GET", "POST", "CONNECT"}).Draw(t, "method")}
	r.SetPath(rapid.SampledFrom([]string{"/x", "/x/y", "/y", ""}).Draw(t, "path"))
	for range rapid.IntRange(0, 2).Draw(t, "lines") {
		r.Headers = append(r.Headers, mesh.RequestHeader{Name: rapid.SampledFrom([]string{"x-a", "X-A", "x-b"}).Draw(t, "name"), Value: rapid.SampledFrom([]string{"1", "23", "3", ""}).Draw(t, "value")})
	}
	return r
}

func genWorkload(namespace, name, addr string) *rapid.Generator[mesh.Workload] {
	mode := rapid.SampledFrom([]mesh.Mode{mesh.ModeStrict, mesh.ModePermissive})
	return rapid.Custom(func(t *rapid.T) mesh.Workload {
		w := workload(namespace, name, addr)
		w.Enrolled = rapid.Bool().Draw(t, "enrolled")
		w.Mode = mode.Draw(t, "mode")
		w.PortModes = rapid.MapOfN(rapid.SampledFrom([]uint16{80, 443}), mode, 0, 2).Draw(t, "portModes")
		w.ProbePorts = rapid.SliceOfNDistinct(rapid.SampledFrom([]uint16{80, 443}), 0, 1, rapid.ID).Draw(t, "probes")
		if rapid.Bool().Draw(t, "tier") {
			w.Labels["tier"] = "1"
		}
		return w
	})
}

// genServices draws services of both namespaces whose endpoints and waypoints are of
// either, as whoever may write a service can write down others' workloads.
func genServices(t *rapid.T) (all []mesh.Service) {
	keys := rapid.SliceOfNDistinct(rapid.SampledFrom([]mesh.Key{{Namespace: "shop", Name: "web"}, {Namespace: "shop", Name: "db"}, {Namespace: "bank", Name: "web"}}), 0, 3, rapid.ID)
	names := []mesh.Key{{Namespace: "shop", Name: "a"}, {Namespace: "shop", Name: "b"}, {Namespace: "bank", Name: "a"}, {Namespace: "bank", Name: "b"}}
	for i, name := range names {
		if rapid.IntRange(0, 3).Draw(t, "no service") == 0 {
			continue
		}
		s := mesh.Service{Key: name, Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 96, 0, byte(i + 1)})}, Endpoints: mesh.SortedKeys(keys.Draw(t, "endpoints")),
			Ports: []mesh.ServicePort{{Port: 80, TargetPort: rapid.SampledFrom([]uint16{80, 443, 15009}).Draw(t, "target")}}}
		if rapid.Bool().Draw(t, "waypoint") {
			s.Waypoint = rapid.SampledFrom(names).Draw(t, "waypoint")
		}
		if rapid.Bool().Draw(t, "only some") {
			s.Ports[0].Only = mesh.SortedKeys(keys.Draw(t, "only"))
			if rapid.Bool().Draw(t, "elsewhere") {
				s.Ports[0].Elsewhere = []mesh.PortElsewhere{{TargetPort: 443, Endpoints: mesh.SortedKeys(keys.Draw(t, "elsewhere"))}}
			}
		}
		all = append(all, s)
	}
	return all
}

// TestAuthorizeIsTheSpecification holds the indexed evaluator to the naive one.
func TestAuthorizeIsTheSpecification(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := naive{settings: settings(), policies: rapid.SliceOfNDistinct(rapid.Custom(genPolicy), 0, 8, func(p mesh.Policy) mesh.Key { return p.Key }).Draw(t, "policies")}
		if rapid.Bool().Draw(t, "revoke") {
			n.settings.RevokedIdentities = []spiffeid.ID{genIdentity(t)}
		}
		if rapid.Bool().Draw(t, "federate") {
			n.settings.Federation = []mesh.FederatedDomain{{TrustDomain: spiffeid.RequireTrustDomainFromString("other.org")}}
		}
		n.workloads = []mesh.Workload{
			genWorkload("shop", "web", "10.0.0.1").Draw(t, "shop/web"),
			genWorkload("shop", "db", "10.0.0.2").Draw(t, "shop/db"),
			genWorkload("bank", "web", "10.0.0.3").Draw(t, "bank/web"),
		}
		n.services = genServices(t)
		v, err := mesh.NewView("r", n.settings, n.workloads, n.services, n.policies)
		if err != nil {
			t.Fatal(err)
		}
		n.isSent(t, v)
		slices.SortFunc(n.policies, func(a, b mesh.Policy) int { return a.Key.Compare(b.Key) })
		addrs := rapid.Map(rapid.SampledFrom([]string{"10.1.2.3", "10.9.9.9", "::ffff:10.1.2.3", "192.0.2.1", "fd00::1", "2001:db8::1"}), netip.MustParseAddr)
		for range 20 {
			c := mesh.Connection{
				Source:      addrs.Draw(t, "source"),
				Destination: rapid.SampledFrom(v.Workloads()).Draw(t, "destination"),
				Port:        rapid.SampledFrom([]uint16{80, 443, 15008}).Draw(t, "port"),
				Probe:       rapid.Bool().Draw(t, "probe"),
			}
			if rapid.Bool().Draw(t, "tls") {
				c.Peer = genIdentity(t)
			}
			if rapid.IntRange(0, 4).Draw(t, "asked") == 0 {
				c.Port, c.Behind = mesh.WaypointPort, netip.MustParseAddrPort(rapid.SampledFrom([]string{"10.96.0.1:80", "10.96.0.2:80", "10.96.0.3:80", "[::ffff:10.96.0.4]:80", "10.96.0.1:81", "10.0.0.2:80"}).Draw(t, "behind"))
			}
			c.Request = genRequest(t)
			c.Former = rapid.IntRange(0, 4).Draw(t, "former") == 0
			if rapid.IntRange(0, 9).Draw(t, "no source") == 0 {
				c.Source = netip.Addr{}
			}
			want := n.authorize(c)
			permit, got := v.Authorize(c)
			if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
				t.Fatalf("peer %v, source %v, %v port %d (-specification +evaluator):\n%s", c.Peer, c.Source, c.Destination.Key, c.Port, diff)
			}
			if allowed := want.Verdict != mesh.VerdictDeny; permit.Valid() != allowed {
				t.Fatalf("permit valid is %v with verdict %v", permit.Valid(), want.Verdict)
			} else if allowed && (permit.Peer() != c.Peer || permit.Port() != c.Port || permit.Destination() != c.Destination) {
				t.Fatalf("permit %v is not about connection %v", permit, c)
			}
		}
	})
}

// isSent holds what a View lists of its waypoints to what is said of each.
func (n naive) isSent(t *rapid.T, v *mesh.View) {
	want := map[mesh.Sent]bool{}
	for _, w := range n.workloads {
		is, _ := v.Workload(w.Key)
		for _, client := range n.workloads {
			for _, port := range []uint16{80, 443, 15009} {
				if n.sentOn(w, client.Identity, port) {
					want[mesh.Sent{To: w.Key, Client: client.Identity, Port: port}] = true
				}
				if got := v.SentOn(is, client.Identity, port); got != n.sentOn(w, client.Identity, port) {
					t.Fatalf("%v to %v at %d: sent on %v", client.Key, w.Key, port, got)
				}
			}
		}
	}
	if diff := cmp.Diff(want, v.Sent("n1"), cmpopts.EquateEmpty()); diff != "" {
		t.Fatalf("sent on (-specification +view):\n%s", diff)
	}
}

// TestPatternIsTheSpecification holds the matcher that does not allocate to the
// naive one.
func TestPatternIsTheSpecification(t *testing.T) {
	segment := rapid.SampledFrom([]string{"ns", "sa", "a", "b"})
	rapid.Check(t, func(t *rapid.T) {
		pattern := "spiffe://example.org"
		for _, s := range rapid.SliceOfN(rapid.OneOf(segment, rapid.Just("*")), 1, 4).Draw(t, "pattern") {
			pattern += "/" + s
		}
		id, err := spiffeid.FromSegments(domain(), rapid.SliceOfN(segment, 0, 5).Draw(t, "id")...)
		if err != nil {
			t.Fatal(err)
		}
		p := mesh.IdentityPattern(pattern)
		if err := p.Validate(); err != nil {
			t.Fatal(err)
		}
		if got, want := p.Match(id), naiveMatch(pattern, id.String()); got != want {
			t.Fatalf("%s matches %s: %v, want %v", pattern, id, got, want)
		}
	})
}
