package agreement

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/yaml"

	"github.com/heddle-mesh/heddle/api/v1alpha1"
	"github.com/heddle-mesh/heddle/internal/kube"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

const trustDomain = "example.org"

// The words that objects and connections are made of are few, so that rules match often.
var (
	applicationPorts = []uint16{80, 443, 8080}
	policyPorts      = []v1alpha1.Port{80, 443, 8080, 15008, 15009}
	identities       = []string{
		"spiffe://example.org/ns/shop/sa/web", "spiffe://example.org/ns/shop/sa/db", "spiffe://example.org/ns/bank/sa/web",
		"spiffe://other.org/ns/shop/sa/web", "spiffe://other.org/job", "spiffe://third.org/ns/shop/sa/web", "spiffe://example.org/ns/shop/sa/web/x", "spiffe://example.org/node/n1", "spiffe://example.org",
		"spiffe://example.org/ns/shop/sa/server", waypointIdentity, waypointIdentity,
	}
	patterns = []string{
		"spiffe://example.org/ns/shop/sa/web", "spiffe://example.org/ns/shop/sa/db", "spiffe://example.org/ns/bank/sa/web",
		"spiffe://example.org/ns/*/sa/web", "spiffe://example.org/ns/shop/sa/*", "spiffe://example.org/ns/*", "spiffe://example.org/*",
		"spiffe://other.org/*", "spiffe://other.org/ns/shop/sa/web", "spiffe://third.org/*", "spiffe://example.org/*/shop/*/web", "spiffe://example.org/ns/*/sa/web/*", "spiffe://example.org/ns/*/sa/*/x",
		"spiffe://example.org/ns/shop/*", "spiffe://example.org/node/*", "spiffe://example.org/ns/*/sa/*",
	}
	accounts   = []string{"web", "db", "bank/web", "shop/web", "server"}
	blocks     = []v1alpha1.AddressBlock{"10.0.0.0/8", "10.1.0.0/16", "10.1.2.3/32", "10.66.1.0/24", "0.0.0.0/0", "fd00::/8", "2001:db8::1/128", "::/0", "192.0.2.0/25"}
	namespaces = []string{"shop", "bank"}
)

func some[T comparable](r *rand.Rand, most int, from []T) (out []T) {
	for range r.IntN(most + 1) {
		if v := one(r, from...); !slices.Contains(out, v) {
			out = append(out, v)
		}
	}
	return out
}

func one[T any](r *rand.Rand, from ...T) T { return from[r.IntN(len(from))] }

// state is one whole configuration.
type state struct {
	objects         kube.Objects
	mesh            *v1alpha1.Mesh
	server, client  *v1alpha1.Workload
	authentications []*v1alpha1.PeerAuthentication
	policies        []*v1alpha1.AuthorizationPolicy
	// waypoint says that the Service of shop/server is behind shop/waypoint, route what is written for it; nil for nothing.
	waypoint bool
	route    *gatewayv1.HTTPRoute
}

// generate makes a configuration in which shop/server, at the given addresses, is what is
// connected to, and shop/client is beside it on the node.
func generate(r *rand.Rand, server, client placed) *state {
	s := &state{mesh: &v1alpha1.Mesh{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.MeshName}}}
	s.mesh.Spec.TrustDomain = trustDomain
	s.mesh.Spec.ClusterRanges = []v1alpha1.AddressBlock{"10.66.0.0/16", "fd66::/16"}
	s.mesh.Spec.Defaults.PeerAuthentication = one(r, "", v1alpha1.PeerAuthenticationStrict, v1alpha1.PeerAuthenticationPermissive)
	if r.IntN(4) == 0 {
		s.mesh.Spec.RevokedIdentities = []string{one(r, identities...)}
	}
	s.mesh.Spec.Egress.UDP = one(r, nil, &v1alpha1.UDPEgress{}, udpEgress(r), udpEgress(r))
	if r.IntN(2) == 0 {
		s.mesh.Spec.Federation = []v1alpha1.FederatedDomain{{TrustDomain: "other.org", Endpoint: "https://bundle.other.org", Profile: v1alpha1.FederationWeb}}
	}
	s.server = server.workload("server", "server")
	s.server.Labels = map[string]string{"app": one(r, "web", "db"), "serves": "server"}
	if r.IntN(2) == 0 {
		s.server.Labels["tier"] = "1"
	}
	s.server.Spec.ProbePorts = one(r, nil, []v1alpha1.Port{80}, []v1alpha1.Port{443, 8080})
	s.client = client.workload("client", one(r, "web", "db"))
	for i := range r.IntN(5) {
		s.authentications = append(s.authentications, authentication(r, i))
	}
	s.waypoint = r.IntN(4) > 0
	about := r.IntN(2) == 0
	for i := range r.IntN(9) {
		p := policy(r, i)
		if s.policies = append(s.policies, p); about {
			aboutRequests(r, p)
		}
	}
	if r.IntN(2) == 0 { // often enough, some datagrams are let in
		udp := v1alpha1.ProtocolUDP
		p := &v1alpha1.AuthorizationPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "udp"}}
		p.Spec.Rules = []v1alpha1.Rule{{To: []v1alpha1.Destination{{Protocol: &udp, Ports: policyPorts[1:]}}}}
		s.policies = append(s.policies, p)
	}
	s.collect()
	return s
}

// udpEgress lets some of what goes outside over UDP out.
func udpEgress(r *rand.Rand) *v1alpha1.UDPEgress {
	e := &v1alpha1.UDPEgress{Mode: one(r, "", v1alpha1.EgressAllow, v1alpha1.EgressDeny)}
	if e.Mode == v1alpha1.EgressAllow {
		e.Ports = some(r, 2, leavingPorts[1:4])
	}
	for _, namespace := range some(r, 2, []string{"shop", "bank"}) {
		ns := v1alpha1.NamespaceUDPEgress{Namespace: namespace, Mode: one(r, v1alpha1.EgressAllow, v1alpha1.EgressAllow, v1alpha1.EgressDeny)}
		if ns.Mode == v1alpha1.EgressAllow {
			ns.Ports = some(r, 2, leavingPorts[1:4])
		}
		e.Namespaces = append(e.Namespaces, ns)
	}
	return e
}

// leavingPorts are those of datagrams to who is not in the mesh: the second to the fourth may be opened by
// themselves.
var leavingPorts = []v1alpha1.Port{65535, 123, 443, 8125, 4789, 8472}

// decideLeaving is what docs/configuration.md says under "Datagrams that leave the mesh", of
// a datagram of shop/server.
func (s *state) decideLeaving(to netip.AddrPort) mesh.Reason {
	leaves := slices.Contains([]string{"192.0.2.1", "203.0.113.4", "10.67.0.1", "2001:db8::1", "fd00::1"}, to.Addr().String())
	e := s.mesh.Spec.Egress.UDP
	if !leaves || slices.Contains([]uint16{4789, 8472}, to.Port()) {
		return mesh.ReasonKernelUDP
	}
	if slices.Contains(s.mesh.Spec.RevokedIdentities, "spiffe://"+trustDomain+"/ns/shop/sa/server") {
		return mesh.ReasonIdentityRevoked
	}
	if e == nil {
		return mesh.ReasonEgressDenied
	}
	mode, ports := e.Mode, e.Ports
	for _, ns := range e.Namespaces {
		if ns.Namespace == "shop" {
			mode, ports = ns.Mode, ns.Ports
		}
	}
	if mode != v1alpha1.EgressAllow || len(ports) > 0 && !slices.Contains(ports, v1alpha1.Port(to.Port())) {
		return mesh.ReasonEgressDenied
	}
	return mesh.ReasonEgressAllowed
}

// collect makes objects of the parts, in no particular order.
func (s *state) collect() {
	o := &s.objects
	o.Meshes = []kube.Sourced[v1alpha1.Mesh]{{Value: s.mesh}}
	for _, name := range namespaces {
		ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{v1alpha1.LabelMesh: v1alpha1.MeshEnabled}}}
		o.Namespaces = append(o.Namespaces, kube.Sourced[corev1.Namespace]{Value: ns})
	}
	o.Services = s.services()
	if s.route != nil {
		o.HTTPRoutes = []kube.Sourced[gatewayv1.HTTPRoute]{{Value: s.route}}
	}
	for _, w := range []*v1alpha1.Workload{s.server, s.client, waypointWorkload()} {
		o.Workloads = append(o.Workloads, kube.Sourced[v1alpha1.Workload]{Value: w})
	}
	for _, a := range s.authentications {
		o.PeerAuthentications = append(o.PeerAuthentications, kube.Sourced[v1alpha1.PeerAuthentication]{Value: a})
	}
	for _, p := range s.policies {
		o.AuthorizationPolicies = append(o.AuthorizationPolicies, kube.Sourced[v1alpha1.AuthorizationPolicy]{Value: p})
	}
}

// String is the configuration as YAML, for whom the test has failed.
func (s *state) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "# behind a waypoint: %v\n", s.waypoint)
	objects := append([]any{s.mesh.Spec, s.server.Labels, s.server.Spec, s.client.Spec}, append(anys(s.authentications), anys(s.policies)...)...)
	if s.route != nil {
		objects = append(objects, s.route.Spec)
	}
	for _, object := range objects {
		text, err := yaml.Marshal(object)
		if err != nil {
			return err.Error()
		}
		fmt.Fprintf(&b, "---\n%s", text)
	}
	return b.String()
}

func anys[T any](in []T) (out []any) {
	for _, v := range in {
		out = append(out, v)
	}
	return out
}

// placed is where a workload runs.
type placed struct {
	netns     string
	addresses []netip.Addr
}

func (p placed) workload(name, account string) *v1alpha1.Workload {
	w := &v1alpha1.Workload{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name}}
	w.Spec.Node, w.Spec.ServiceAccount, w.Spec.NetworkNamespace = nodeName, account, p.netns
	for _, a := range p.addresses {
		w.Spec.Addresses = append(w.Spec.Addresses, a.String())
	}
	return w
}

func selector(r *rand.Rand) *v1alpha1.Selector {
	return one(r, nil,
		&v1alpha1.Selector{MatchLabels: map[string]v1alpha1.LabelValue{"app": "web"}},
		&v1alpha1.Selector{MatchLabels: map[string]v1alpha1.LabelValue{"app": "db"}},
		&v1alpha1.Selector{MatchLabels: map[string]v1alpha1.LabelValue{"app": "web", "tier": "1"}})
}

func meta(r *rand.Rand, i int) metav1.ObjectMeta {
	return metav1.ObjectMeta{
		Namespace: one(r, "shop", "shop", "shop", "bank"), Name: fmt.Sprintf("%c%d", 'a'+rune(r.IntN(26)), i),
		CreationTimestamp: metav1.NewTime(time.Unix(1_700_000_000+int64(r.IntN(3)), 0)),
	}
}

func authentication(r *rand.Rand, i int) *v1alpha1.PeerAuthentication {
	mode := func() v1alpha1.PeerAuthenticationMode {
		return one(r, v1alpha1.PeerAuthenticationStrict, v1alpha1.PeerAuthenticationPermissive)
	}
	a := &v1alpha1.PeerAuthentication{ObjectMeta: meta(r, i)}
	a.Spec.Selector = selector(r)
	for _, port := range applicationPorts {
		if r.IntN(4) == 0 {
			a.Spec.PortModes = append(a.Spec.PortModes, v1alpha1.PortMode{Port: v1alpha1.Port(port), Mode: mode()})
		}
	}
	if len(a.Spec.PortModes) == 0 || r.IntN(2) == 0 {
		a.Spec.Mode = mode()
	}
	return a
}

func policy(r *rand.Rand, i int) *v1alpha1.AuthorizationPolicy {
	p := &v1alpha1.AuthorizationPolicy{ObjectMeta: meta(r, i)}
	p.Spec.Selector = selector(r)
	p.Spec.Action = one(r, "", v1alpha1.ActionAllow, v1alpha1.ActionDeny, v1alpha1.ActionAudit)
	for range r.IntN(4) {
		p.Spec.Rules = append(p.Spec.Rules, rule(r))
	}
	if len(p.Spec.Rules) == 0 && (p.Spec.Action == v1alpha1.ActionDeny || p.Spec.Action == v1alpha1.ActionAudit) {
		p.Spec.Rules = []v1alpha1.Rule{rule(r)} // without rules these two are refused
	}
	if r.IntN(2) == 0 {
		datagrams(r, p)
	}
	return p
}

// datagrams makes some of a policy's rules be about UDP.
func datagrams(r *rand.Rand, p *v1alpha1.AuthorizationPolicy) {
	udp, tcp := v1alpha1.ProtocolUDP, v1alpha1.ProtocolTCP
	for i := range p.Spec.Rules {
		if r.IntN(2) == 0 {
			continue
		}
		to := v1alpha1.Destination{Protocol: one(r, &udp, &udp, &tcp), Ports: some(r, 3, policyPorts), NotPorts: some(r, 1, policyPorts)}
		if *to.Protocol == udp && cmp.Or(p.Spec.Action, v1alpha1.ActionAllow) == v1alpha1.ActionAllow && len(to.Ports) == 0 {
			to.Ports = policyPorts // without ports these are refused
		}
		if p.Spec.Rules[i].To = append(p.Spec.Rules[i].To, to); r.IntN(2) == 0 {
			p.Spec.Rules[i].To = []v1alpha1.Destination{to}
		}
	}
}

func rule(r *rand.Rand) (out v1alpha1.Rule) {
	for range r.IntN(3) {
		from := v1alpha1.Source{
			NotIdentities: some(r, 1, patterns), Namespaces: some(r, 1, namespaces),
			IPBlocks: some(r, 1, blocks),
		}
		if r.IntN(3) == 0 {
			from.NotNamespaces, from.NotIPBlocks = some(r, 1, namespaces), some(r, 1, blocks)
		}
		if r.IntN(2) == 0 {
			from.Identities = some(r, 2, patterns)
		} else {
			from.ServiceAccounts = some(r, 2, accounts)
		}
		if r.IntN(2) == 0 {
			from.Namespaces, from.IPBlocks, from.NotIdentities = nil, nil, nil
		}
		if len(from.Identities)+len(from.ServiceAccounts)+len(from.NotIdentities)+len(from.Namespaces)+len(from.NotNamespaces)+len(from.IPBlocks)+len(from.NotIPBlocks) == 0 {
			from.Namespaces = []string{one(r, namespaces...)}
		}
		out.From = append(out.From, from)
	}
	for range r.IntN(2) {
		to := v1alpha1.Destination{Ports: some(r, 2, policyPorts), NotPorts: some(r, 1, policyPorts)}
		if len(to.Ports)+len(to.NotPorts) == 0 {
			to.Ports = policyPorts[:1]
		}
		out.To = append(out.To, to)
	}
	return out
}

// asked is a connection to shop/server.
type asked struct {
	peer    string // the identity that was proved; "" for plaintext
	source  netip.Addr
	port    uint16
	kubelet bool // a socket of kubelet's, on the node
	udp     bool // a datagram; peer is then whose address source is
	// request is one of the connection's, as its workload gets it; nil where nobody sees any.
	request *message
}

// foreign is of another trust domain.
func (a asked) foreign() bool {
	return a.peer != "" && !strings.HasPrefix(a.peer+"/", "spiffe://"+trustDomain+"/")
}

func (a asked) String() string {
	who := a.peer
	if a.udp {
		return fmt.Sprintf("a datagram of %q from %s to port %d", who, a.source, a.port)
	}
	if who == "" {
		who = "plaintext"
	}
	if a.kubelet {
		who = "kubelet, plaintext"
	}
	return fmt.Sprintf("%s from %s to port %d", who, a.source, a.port)
}

// The documentation of the API, from here on: every policy, every rule, nothing shared with
// what it is compared to.

// strict is what api/v1alpha1/peerauthentication.go says.
func (s *state) strict(port uint16) bool {
	all := slices.Clone(s.authentications)
	slices.SortFunc(all, func(a, b *v1alpha1.PeerAuthentication) int {
		return cmp.Or(a.CreationTimestamp.Time.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Name, b.Name))
	})
	for _, ofPort := range []bool{true, false} {
		for _, selected := range []bool{true, false} {
			for _, a := range all {
				if a.Namespace != "shop" || (a.Spec.Selector != nil) != selected || !s.selects(a.Spec.Selector) {
					continue
				}
				if !ofPort && a.Spec.Mode != "" {
					return a.Spec.Mode == v1alpha1.PeerAuthenticationStrict
				}
				for _, pm := range a.Spec.PortModes {
					if ofPort && uint16(pm.Port) == port {
						return pm.Mode == v1alpha1.PeerAuthenticationStrict
					}
				}
			}
		}
	}
	return s.mesh.Spec.Defaults.PeerAuthentication != v1alpha1.PeerAuthenticationPermissive
}

// selects reports whether a selector picks shop/server.
func (s *state) selects(selector *v1alpha1.Selector) bool {
	if selector == nil {
		return true
	}
	for key, value := range selector.MatchLabels {
		if have, ok := s.server.Labels[key]; !ok || have != string(value) {
			return false
		}
	}
	return true
}

// dropped reports whether the gate must not let a connection's first segment in.
func (s *state) dropped(a asked) bool {
	return a.peer == "" && !s.probe(a) && s.strict(a.port)
}

func (s *state) probe(a asked) bool {
	return a.kubelet && slices.Contains(s.server.Spec.ProbePorts, v1alpha1.Port(a.port))
}

// decide is what docs/configuration.md says.
func (s *state) decide(a asked) mesh.Decision {
	no := func(why mesh.Reason) mesh.Decision { return mesh.Decision{Reason: why, Rule: -1} }
	revoked := func(id string) bool { return slices.Contains(s.mesh.Spec.RevokedIdentities, id) }
	server := "spiffe://" + trustDomain + "/ns/shop/sa/server"
	switch {
	case a.peer != "" && (revoked(a.peer) || revoked(server)):
		return no(mesh.ReasonIdentityRevoked)
	case a.foreign() && !slices.ContainsFunc(s.mesh.Spec.Federation, func(d v1alpha1.FederatedDomain) bool { return strings.HasPrefix(a.peer, "spiffe://"+d.TrustDomain+"/") }):
		return no(mesh.ReasonNotFederated)
	case slices.Contains([]uint16{15001, 15006, 15008, 15009, 15053}, a.port):
		return no(mesh.ReasonReservedPort)
	case s.probe(a):
		return mesh.Decision{Verdict: mesh.VerdictAllow, Reason: mesh.ReasonProbe, Rule: -1}
	case a.peer == "" && s.strict(a.port):
		return no(mesh.ReasonStrictPlaintext)
	case revoked(server):
		return no(mesh.ReasonIdentityRevoked)
	}
	d := mesh.Decision{Verdict: mesh.VerdictAllow, Reason: mesh.ReasonNoPolicy, Rule: -1}
	if a.peer == "" {
		d.Reason = mesh.ReasonPermissive
	}
	if s.sentOn(a) {
		d.Reason = mesh.ReasonWaypoint
		return d
	}
	if by, rule := s.first(a, v1alpha1.ActionDeny); by != nil {
		d = mesh.Decision{Reason: mesh.ReasonPolicyDeny, Policy: key(by), Rule: rule}
		if !known(&by.Spec.Rules[rule], a) {
			d.Reason = mesh.ReasonRequestUnseen
		}
	} else if by, rule := s.first(a, v1alpha1.ActionAllow); by != nil {
		d = mesh.Decision{Verdict: mesh.VerdictAllow, Reason: mesh.ReasonPolicyAllow, Policy: key(by), Rule: rule}
	} else if by, rule := s.wouldLetIn(a); by != nil {
		d = mesh.Decision{Reason: mesh.ReasonRequestUnseen, Policy: key(by), Rule: rule}
	} else if a.foreign() {
		d = no(mesh.ReasonForeignIdentity)
	} else if slices.ContainsFunc(s.selecting(v1alpha1.ActionAllow), aboutTCP) {
		d = no(mesh.ReasonPolicyNoMatch)
	}
	for _, p := range s.selecting(v1alpha1.ActionAudit) {
		if matching(p, a) >= 0 {
			d.Audited = append(d.Audited, key(p))
			if d.Verdict == mesh.VerdictAllow {
				d.Verdict = mesh.VerdictAudit
			}
		}
	}
	return d
}

// aboutTCP is false of a policy whose rules are all about UDP.
func aboutTCP(p *v1alpha1.AuthorizationPolicy) bool {
	return len(p.Spec.Rules) == 0 || slices.ContainsFunc(p.Spec.Rules, func(r v1alpha1.Rule) bool {
		return len(r.To) == 0 || slices.ContainsFunc(r.To, func(d v1alpha1.Destination) bool { return !isUDP(&d) })
	})
}

func isUDP(d *v1alpha1.Destination) bool {
	return d.Protocol != nil && *d.Protocol == v1alpha1.ProtocolUDP
}

// decideDatagram is what docs/configuration.md says under "Datagrams".
func (s *state) decideDatagram(a asked) mesh.Decision {
	no := func(why mesh.Reason) mesh.Decision { return mesh.Decision{Reason: why, Rule: -1} }
	opens := slices.ContainsFunc(s.selecting(v1alpha1.ActionAllow), func(p *v1alpha1.AuthorizationPolicy) bool {
		return slices.ContainsFunc(p.Spec.Rules, func(r v1alpha1.Rule) bool {
			return slices.ContainsFunc(r.To, func(d v1alpha1.Destination) bool { return isUDP(&d) })
		})
	})
	switch {
	case a.peer == "" || !opens:
		return no(mesh.ReasonKernelUDP)
	case slices.Contains(s.mesh.Spec.RevokedIdentities, a.peer) || slices.Contains(s.mesh.Spec.RevokedIdentities, "spiffe://"+trustDomain+"/ns/shop/sa/server"):
		return no(mesh.ReasonIdentityRevoked)
	case slices.Contains([]uint16{15001, 15006, 15008, 15009, 15053}, a.port):
		return no(mesh.ReasonReservedPort)
	}
	d := no(mesh.ReasonPolicyNoMatch)
	if by, rule := s.first(a, v1alpha1.ActionDeny); by != nil {
		d = mesh.Decision{Reason: mesh.ReasonPolicyDeny, Policy: key(by), Rule: rule}
	} else if by, rule := s.first(a, v1alpha1.ActionAllow); by != nil {
		d = mesh.Decision{Verdict: mesh.VerdictAllow, Reason: mesh.ReasonPolicyAllow, Policy: key(by), Rule: rule}
	}
	for _, p := range s.selecting(v1alpha1.ActionAudit) {
		if matching(p, a) >= 0 {
			d.Audited = append(d.Audited, key(p))
			if d.Verdict == mesh.VerdictAllow {
				d.Verdict = mesh.VerdictAudit
			}
		}
	}
	return d
}

func key(p *v1alpha1.AuthorizationPolicy) mesh.Key {
	return mesh.Key{Namespace: p.Namespace, Name: p.Name}
}

// selecting returns the policies with an action that are for shop/server, by name.
func (s *state) selecting(action v1alpha1.Action) (out []*v1alpha1.AuthorizationPolicy) {
	for _, p := range s.policies {
		of := cmp.Or(p.Spec.Action, v1alpha1.ActionAllow)
		if p.Namespace == "shop" && of == action && s.selects(p.Spec.Selector) {
			out = append(out, p)
		}
	}
	slices.SortFunc(out, func(a, b *v1alpha1.AuthorizationPolicy) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

func (s *state) first(a asked, action v1alpha1.Action) (*v1alpha1.AuthorizationPolicy, int) {
	for _, p := range s.selecting(action) {
		if rule := matching(p, a); rule >= 0 {
			return p, rule
		}
	}
	return nil, -1
}

func matching(p *v1alpha1.AuthorizationPolicy, a asked) int { return matchingIf(p, a, false) }

// matchingIf is matching, or what would match if a connection of which no request is known had the right one.
func matchingIf(p *v1alpha1.AuthorizationPolicy, a asked, right bool) int {
	return slices.IndexFunc(p.Spec.Rules, func(r v1alpha1.Rule) bool {
		// Nothing but its name lets an identity of another trust domain in.
		named := !a.foreign() || cmp.Or(p.Spec.Action, v1alpha1.ActionAllow) != v1alpha1.ActionAllow
		from := len(r.From) == 0 && named || slices.ContainsFunc(r.From, func(s v1alpha1.Source) bool { return comesFrom(&s, p, a) })
		all := !a.udp || cmp.Or(p.Spec.Action, v1alpha1.ActionAllow) != v1alpha1.ActionAllow
		to := len(r.To) == 0 && all || slices.ContainsFunc(r.To, func(d v1alpha1.Destination) bool {
			port := v1alpha1.Port(a.port)
			return isUDP(&d) == a.udp && (len(d.Ports) == 0 || slices.Contains(d.Ports, port)) && !slices.Contains(d.NotPorts, port) &&
				(right || namesRequest(&d, a.request, cmp.Or(p.Spec.Action, v1alpha1.ActionAllow) == v1alpha1.ActionAllow))
		})
		return from && to
	})
}

func comesFrom(s *v1alpha1.Source, p *v1alpha1.AuthorizationPolicy, a asked) bool {
	namespace := ""
	if parts := strings.Split(a.peer, "/"); len(parts) == 7 && parts[2] == trustDomain && parts[3] == "ns" && parts[5] == "sa" {
		namespace = parts[4]
	}
	is := func(patterns []string) bool {
		return slices.ContainsFunc(patterns, func(pattern string) bool { return matches(pattern, a.peer) })
	}
	account := slices.ContainsFunc(s.ServiceAccounts, func(text string) bool {
		ns, name, qualified := strings.Cut(text, "/")
		if !qualified {
			ns, name = p.Namespace, text
		}
		return a.peer == "spiffe://"+trustDomain+"/ns/"+ns+"/sa/"+name
	})
	in := func(blocks []v1alpha1.AddressBlock) bool {
		return slices.ContainsFunc(blocks, func(b v1alpha1.AddressBlock) bool { return netip.MustParsePrefix(string(b)).Contains(a.source) })
	}
	// What was not proved is nobody's: it lets nobody in, and keeps nobody out of a refusal.
	unproved := cmp.Or(p.Spec.Action, v1alpha1.ActionAllow) != v1alpha1.ActionAllow
	not := func(given, proved, so bool) bool { return !given || proved && !so || !proved && unproved }
	named := !a.foreign() || unproved || is(s.Identities)
	return named && (len(s.Identities) == 0 || is(s.Identities)) && (len(s.ServiceAccounts) == 0 || account) &&
		(len(s.Namespaces) == 0 || slices.Contains(s.Namespaces, namespace)) && (len(s.IPBlocks) == 0 || in(s.IPBlocks)) &&
		not(len(s.NotIdentities) > 0, a.peer != "", is(s.NotIdentities)) &&
		not(len(s.NotNamespaces) > 0, namespace != "", slices.Contains(s.NotNamespaces, namespace)) &&
		(len(s.NotIPBlocks) == 0 || !in(s.NotIPBlocks))
}

func matches(pattern, id string) bool {
	if id == "" {
		return false
	}
	want, have := strings.Split(pattern, "/"), strings.Split(id, "/")
	for i, segment := range want {
		if i >= len(have) || segment != "*" && segment != have[i] {
			return false
		}
	}
	return len(want) == len(have) || want[len(want)-1] == "*"
}
