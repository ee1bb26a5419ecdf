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
)

// naive is the specification of Authorize written down as plainly as possible:
// every policy, every rule, no index, nothing shared with the real one.
type naive struct {
	settings  mesh.Settings
	workloads []mesh.Workload
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
	case w.Enrolled && slices.Contains([]uint16{15001, 15006, 15008, 15053}, c.Port):
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
	if p, rule := n.first(mesh.ActionDeny, w, c); p != nil {
		d = mesh.Decision{Reason: mesh.ReasonPolicyDeny, Policy: p.Key, Rule: rule}
	} else if p, rule := n.first(mesh.ActionAllow, w, c); p != nil {
		d = mesh.Decision{Verdict: mesh.VerdictAllow, Reason: mesh.ReasonPolicyAllow, Policy: p.Key, Rule: rule}
	} else if slices.ContainsFunc(n.policies, func(p mesh.Policy) bool { return p.Action == mesh.ActionAllow && n.selects(p, w) }) {
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
		from := len(r.From) == 0
		for _, s := range r.From {
			from = from || n.source(s, p.Action, c)
		}
		to := len(r.To) == 0
		for _, d := range r.To {
			to = to || (len(d.Ports) == 0 || slices.Contains(d.Ports, c.Port)) && !slices.Contains(d.NotPorts, c.Port)
		}
		if from && to {
			return i
		}
	}
	return -1
}

func (n naive) source(s mesh.Source, action mesh.Action, c mesh.Connection) bool {
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
		"spiffe://other.org/ns/shop/sa/web", "spiffe://example.org/ns/shop/sa/web/x", "spiffe://example.org/node/n1", "spiffe://example.org",
	}).Draw(t, "identity"))
}

func genPattern() *rapid.Generator[mesh.IdentityPattern] {
	return rapid.SampledFrom([]mesh.IdentityPattern{
		"spiffe://example.org/ns/shop/sa/web", "spiffe://example.org/ns/shop/sa/db", "spiffe://example.org/ns/bank/sa/web",
		"spiffe://example.org/ns/*/sa/web", "spiffe://example.org/ns/shop/sa/*", "spiffe://example.org/ns/*", "spiffe://example.org/*",
		"spiffe://other.org/*", "spiffe://example.org/*/shop/*/web", "spiffe://example.org/ns/*/sa/web/*",
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
		return mesh.Destination{Ports: ports.Draw(t, "ports"), NotPorts: ports.Draw(t, "notPorts")}
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

// TestAuthorizeIsTheSpecification holds the indexed evaluator to the naive one.
func TestAuthorizeIsTheSpecification(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := naive{settings: settings(), policies: rapid.SliceOfNDistinct(rapid.Custom(genPolicy), 0, 8, func(p mesh.Policy) mesh.Key { return p.Key }).Draw(t, "policies")}
		if rapid.Bool().Draw(t, "revoke") {
			n.settings.RevokedIdentities = []spiffeid.ID{genIdentity(t)}
		}
		n.workloads = []mesh.Workload{
			genWorkload("shop", "web", "10.0.0.1").Draw(t, "shop/web"),
			genWorkload("shop", "db", "10.0.0.2").Draw(t, "shop/db"),
			genWorkload("bank", "web", "10.0.0.3").Draw(t, "bank/web"),
		}
		v, err := mesh.NewView("r", n.settings, n.workloads, nil, n.policies)
		if err != nil {
			t.Fatal(err)
		}
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
