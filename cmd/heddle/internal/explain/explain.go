// Package explain says what happens to a connection, and why, by asking the model
// that agents decide by: where it is routed, how it travels, which policy and
// rule decide. It opens no connection, and knows nothing of what is broken:
// whether agents run, or networks pass packets, is for others to say.
//
// Its functions may be called from any goroutine.
package explain

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/explain/asked"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/mesh/datagram"
)

// The paths of a connection.
const (
	PathTunnel    = "tunnel"    // mutual TLS between nodes
	PathSplice    = "splice"    // on one node, between two identities
	PathPlaintext = "plaintext" // as the application sent it
	PathRefused   = "refused"
)

// Answer is what happens to a connection.
type Answer struct {
	Source      End `json:"source"`
	Destination End `json:"destination"`
	// Route is "workload", "egress", "reject" or "hold".
	Route string `json:"route"`
	// Waypoint is NAMESPACE/NAME of the service's waypoint, where the connection goes to
	// that: the endpoints are its.
	Waypoint string `json:"waypoint,omitempty"`
	// Behind is what the waypoint decides at the workloads behind it, whatever the connection's requests
	// are; nil where the connection does not come to one. Where it refuses, or where some of the
	// workloads do, so do Verdict and Reason.
	Behind *asked.Behind `json:"behind,omitempty"`
	// Requests are the policies, NAMESPACE/NAME, about requests that the waypoint asks: where these
	// decide, the verdict is about the connection alone.
	Requests []string `json:"requests,omitempty"`
	// Request is what becomes of the request that was asked about; nil without one.
	Request *asked.Answer `json:"request,omitempty"`
	// Verdict is "allow", "deny", or "mixed" when endpoints differ; Reason is one
	// of mesh.Reasons, of the first endpoint that is refused, if one is.
	Verdict string `json:"verdict"`
	Reason  string `json:"reason"`
	// Endpoints are those that may take the connection.
	Endpoints []Endpoint `json:"endpoints"`
	// NetworkPolicies are those of the source, of a connection out of the mesh.
	NetworkPolicies []NetworkPolicy `json:"networkPolicies,omitempty"`
	// Notes say what to do, or what is easily overlooked.
	Notes []string `json:"notes"`
}

// End is one end of a connection, as it was asked for.
type End struct {
	// Service and Workload are NAMESPACE/NAME; Service is what was dialled.
	Service  string `json:"service,omitempty"`
	Workload string `json:"workload,omitempty"`
	Identity string `json:"identity,omitempty"`
	Node     string `json:"node,omitempty"`
	Address  string `json:"address,omitempty"`
	Port     uint16 `json:"port,omitempty"`
	Enrolled bool   `json:"enrolled"`
	// DNS is who answers the source's name queries, "agent" or "server"; "" when the
	// Mesh does not say, or the source is not in the mesh.
	DNS string `json:"dns,omitempty"`
	// Certificate is the SVID by which its agent proves it; nil when no agent said.
	Certificate *Certificate `json:"certificate,omitempty"`
}

// Certificate is an SVID that an agent holds.
type Certificate struct {
	Serial   string    `json:"serial"`
	NotAfter time.Time `json:"notAfter"`
}

// Secured is the key exchange of a tunnel connection that there was.
type Secured struct {
	KeyExchange string `json:"keyExchange"`
	PostQuantum bool   `json:"postQuantum"`
	// At is the beginning of the flow that tells it.
	At time.Time `json:"at"`
}

// Endpoint is a workload that may take the connection.
type Endpoint struct {
	End
	// Mode is that of the port, "" for a workload outside the mesh.
	Mode string `json:"mode,omitempty"`
	// Path is one of the constants Path....
	Path    string `json:"path"`
	Verdict string `json:"verdict"`
	Reason  string `json:"reason"`
	// Policy is NAMESPACE/NAME of the policy that decided, Rule its rule from 0.
	Policy string `json:"policy,omitempty"`
	Rule   *int   `json:"rule,omitempty"`
	// NetworkPolicies are those that isolate the source, and then those that isolate
	// the endpoint: of either, one that admits the connection is enough.
	NetworkPolicies []NetworkPolicy `json:"networkPolicies,omitempty"`
	// Audited are AUDIT policies that matched, Selecting all policies that the
	// workload is selected by, as "ALLOW shop/web".
	Audited   []string `json:"audited,omitempty"`
	Selecting []string `json:"selecting,omitempty"`
	// Secured is that of the newest connection of the source with it; nil when agents
	// know of none, or were not asked.
	Secured *Secured `json:"secured,omitempty"`
}

// Denied reports whether the connection, or one of those that it may become, is
// refused, or the request that was asked about.
func (a *Answer) Denied() bool {
	return a.Verdict != "allow" || a.Request != nil && a.Request.Verdict != "allow"
}

// Explain says what happens to a connection of source to destination. A source is
// NAMESPACE/NAME of a pod or Workload, of a Service (one of its pods), or the
// beginning of a pod's name; an address, which may be outside the mesh; or a SPIFFE ID,
// which may be of another trust domain. A
// destination is one of these, of SPIFFE IDs those of declared workloads of another trust
// domain, or a service's host name; with :PORT, which may be
// left out where a service has one port only. Its errors are about these two.
func Explain(m *Model, source, destination string) (*Answer, error) {
	return ExplainRequest(m, source, destination, nil)
}

// ExplainRequest is Explain, and says what becomes of one request of the connection; nil of none.
func ExplainRequest(m *Model, source, destination string, r *asked.Request) (*Answer, error) {
	src, client, note, err := findSource(m.View, source)
	if err != nil {
		return nil, err
	}
	target, err := findDestination(m, destination)
	if err != nil {
		return nil, err
	}
	a := &Answer{Source: endOf(src, client, 0), Endpoints: []Endpoint{}, Notes: []string{}}
	for _, text := range []string{note, target.note} {
		if text != "" {
			a.Notes = append(a.Notes, text)
		}
	}
	a.Source.DNS = namesOf(src)
	a.Destination = target.end()
	behind := a.decide(m, src, client, target)
	if r != nil {
		err = a.request(m, src, client, target, behind, r)
	}
	return a, err
}

func endOf(w *mesh.Workload, addr netip.Addr, port uint16) End {
	end := End{Port: port}
	if addr.IsValid() {
		end.Address = addr.String()
	}
	if w != nil {
		end.Node, end.Enrolled = w.Node, w.Enrolled
		if w.Key != (mesh.Key{}) { // else only its identity is known
			end.Workload = w.Key.String()
		}
		if w.Enrolled { // nothing proves the identity of one that is not
			end.Identity = w.Identity.String()
		}
	}
	return end
}

// namesOf says who answers a workload's name queries.
func namesOf(w *mesh.Workload) string {
	switch {
	case w == nil || !w.Enrolled:
	case w.DNS == mesh.DNSCapture:
		return "agent"
	case w.DNS == mesh.DNSDirect:
		return "server"
	}
	return ""
}

// decide routes the connection, and authorizes it at each of its candidates. It returns the address and port of the service
// that a waypoint is asked for; zero for none.
func (a *Answer) decide(m *Model, src *mesh.Workload, client netip.Addr, target target) netip.AddrPort {
	route := m.Route(src, target.address)
	if src == nil || !src.Enrolled { // nobody on the way takes it to a waypoint
		route = m.Past(src, target.address)
	}
	if target.service != nil && !target.address.Addr().IsValid() {
		route = headless(m.View, target)
	}
	if route.Service != nil {
		a.Destination.Service = route.Service.Key.String()
	}
	behind := netip.AddrPort{}
	if s := route.Service; s != nil && route.Port == mesh.WaypointPort && (route.Waypoint != nil || route.Reason == mesh.ReasonNoEndpoint) {
		a.Waypoint, behind = s.Waypoint.String(), target.address
	}
	inMesh := src != nil && src.Enrolled
	a.Reason = route.Reason.String()
	switch route.Kind {
	case mesh.RouteWorkload:
		a.Route = "workload"
		for _, w := range route.Candidates {
			a.Endpoints = append(a.Endpoints, m.endpoint(src, client, w, target.address.Addr(), route.PortOf(w), behind))
		}
		if s := route.Service; s != nil && s.Sticky && len(a.Endpoints) > 1 {
			a.Notes = append(a.Notes, "the service keeps a client with one of its endpoints (sessionAffinity)")
		}
		if a.Waypoint != "" {
			a.Notes = append(a.Notes, "through waypoint "+a.Waypoint+": policies of the service's own workloads are asked there, about each request; they admit the waypoint")
			a.requests(m, src, behind)
		}
		a.conclude()
		a.askBehind(m, src, client, behind)
		a.beyond(m, src, route.Candidates[0])
	case mesh.RouteEgress:
		a.Route, a.Verdict = "egress", "allow"
		a.Notes = append(a.Notes, "the destination is outside the mesh: it is reached in plaintext")
		if inMesh {
			a.leave(m, src, target.address)
		}
	case mesh.RouteHold:
		a.Route, a.Verdict = "hold", "deny"
		a.Notes = append(a.Notes, "the address is in the mesh's cluster ranges, and nobody's: an agent waits up to a second for somebody to have it, and refuses")
	default:
		a.Route, a.Verdict = "reject", "deny"
	}
	if !inMesh && a.Route != "workload" {
		// No agent is on the way.
		a.Verdict = "allow"
		a.Notes = []string{neitherEnd}
	}
	a.Notes = append(append(a.Notes, m.datagrams(src, target, route)...), hint(a)...)
	return behind
}

const neitherEnd = "neither end is in the mesh: Heddle has no say in this connection"

// dependsOnRequest begins the note that a request, which was not asked about, decides.
const dependsOnRequest = "what becomes of a request depends on the request: "

// requests names the policies about requests that are asked at a service's waypoint.
func (a *Answer) requests(m *Model, src *mesh.Workload, behind netip.AddrPort) {
	for _, p := range m.Requests(src, behind) {
		a.Requests = append(a.Requests, p.Key.String())
	}
	if len(a.Requests) > 0 {
		a.Notes = append(a.Notes, dependsOnRequest+"AuthorizationPolicies about requests are asked at the waypoint: "+strings.Join(a.Requests, ", ")+
			"; --method, --path, --host and --header ask about one; `heddle flows --direction request` shows what it decided")
	}
}

// askBehind asks what the waypoint does for the client, if the connection comes to it.
func (a *Answer) askBehind(m *Model, src *mesh.Workload, client netip.Addr, behind netip.AddrPort) {
	if !behind.IsValid() || a.Verdict == "deny" {
		return
	}
	a.Behind = m.BehindWaypoint(src, client, behind)
	switch b := a.Behind; {
	case b.Verdict == asked.Deny, b.Verdict == asked.Mixed && a.Verdict == "allow":
		a.Verdict, a.Reason = b.Verdict, b.Reason
	case b.Verdict == asked.ByRequest && len(a.Requests) == 0:
		a.Notes = append(a.Notes, dependsOnRequest+"routes say to which workloads it goes, and not all of these let it in; --method, --path, --host and --header ask about one")
	}
}

// headless routes to the endpoints of a service without an address, as its name
// is resolved to them.
func headless(view *mesh.View, t target) mesh.Route {
	route := mesh.Route{Service: t.service, Port: t.address.Port(), Reason: mesh.ReasonNoEndpoint}
	for _, key := range t.service.Endpoints {
		if w, ok := view.Workload(key); ok && (w.Ready || t.service.Unready) && len(w.Addresses) > 0 {
			route.Kind = mesh.RouteWorkload
			route.Candidates = append(route.Candidates, w)
		}
	}
	return route
}

// endpoint is what becomes of the connection at one workload; behind is the service's
// address and port that a waypoint is asked for.
func (m *Model) endpoint(src *mesh.Workload, client netip.Addr, w *mesh.Workload, dialled netip.Addr, port uint16, behind netip.AddrPort) Endpoint {
	addr, ok := w.AddressFor(dialled, src)
	e := Endpoint{End: endOf(w, addr, port), Path: PathRefused, Verdict: "deny"}
	if !ok {
		e.Reason = mesh.ReasonPeerUnreachable.String()
		return e
	}
	inMesh := src != nil && src.Enrolled
	if inMesh {
		server := netip.AddrPortFrom(addr, port)
		e.NetworkPolicies = m.judge(egress, src, addr, server)
		if decision, ok := m.Leaves(src, server); !ok {
			e.Reason, e.Policy = decision.Reason.String(), decision.Policy.String()
			return e
		}
	}
	switch {
	case m.Foreign(w.Identity):
		m.beyond(&e, src, w)
		return e
	case !w.Enrolled && inMesh && m.Egress(src) != mesh.ReasonEgressAllowed:
		e.Reason = m.Egress(src).String()
		return e
	case !w.Enrolled:
		e.Path, e.Verdict, e.Reason = PathPlaintext, "allow", mesh.ReasonEgressAllowed.String()
		if !inMesh {
			e.Reason = "" // nobody decides
		}
		return e
	}
	m.authorize(&e, src, client, w, addr, behind)
	return e
}

// datagrams says what becomes of UDP to the same address and port, as the gates decide
// it, where policies of whoever has it, or is behind it, say anything of that, or where it
// is nobody's in the mesh.
func (m *Model) datagrams(src *mesh.Workload, t target, route mesh.Route) (notes []string) {
	if src == nil {
		return nil
	}
	if route.Reason == mesh.ReasonEgressAllowed || route.Reason == mesh.ReasonEgressDenied || route.Reason == mesh.ReasonIdentityRevoked {
		if note := m.datagramsOutside(src, t.address); note != "" {
			notes = append(notes, note)
		}
		return notes
	}
	if len(m.Receivers()) == 0 {
		return nil
	}
	dialled := []netip.AddrPort{t.address}
	if !t.address.Addr().IsValid() { // a headless service
		dialled = nil
		for _, w := range route.Candidates {
			if addr, ok := w.AddressFor(netip.Addr{}, src); ok {
				dialled = append(dialled, netip.AddrPortFrom(addr, t.address.Port()))
			}
		}
	}
	for _, to := range dialled {
		d, service, at := datagram.AuthorizeTo(m.View, src, to)
		if !m.saysOfUDP(service, at) {
			continue
		}
		note := fmt.Sprintf("over UDP, to port %d of %v: %v, %v", to.Port(), at, d.Verdict, d.Reason)
		if service != (mesh.Key{}) {
			note = fmt.Sprintf("over UDP, to port %d of service %v: %v, %v", to.Port(), service, d.Verdict, d.Reason)
			if d.Verdict == mesh.VerdictDeny && at != (mesh.Key{}) {
				note += fmt.Sprintf(" at its endpoint %v", at)
			} else if d.Verdict == mesh.VerdictDeny {
				note += ": the service has no such port over UDP, or it may lead to somebody whom the mesh does not count"
			}
		}
		if d.Rule >= 0 {
			note += fmt.Sprintf(" (policy %v, rule %d)", d.Policy, d.Rule)
		}
		notes = append(notes, note)
	}
	return notes
}

// saysOfUDP reports whether policies of a workload, or of an endpoint of a service, are
// about UDP.
func (m *Model) saysOfUDP(service, at mesh.Key) bool {
	keys := []mesh.Key{at}
	if s, ok := m.Service(service); ok {
		keys = s.Endpoints
	}
	return slices.ContainsFunc(keys, func(key mesh.Key) bool {
		w, ok := m.Workload(key)
		return ok && len(w.Datagrams) > 0
	})
}

// authorize is what the endpoint's own agent says.
func (m *Model) authorize(e *Endpoint, src *mesh.Workload, client netip.Addr, w *mesh.Workload, addr netip.Addr, behind netip.AddrPort) {
	port := e.Port
	e.Mode = w.ModeOf(port).String()
	connection := mesh.Connection{Source: client, Destination: w, Port: port, Behind: behind}
	path := PathPlaintext
	if src != nil && src.Enrolled {
		connection.Peer = src.Identity
		if own, ok := src.AddressFor(addr, w); ok {
			connection.Source = own
		}
		path = PathTunnel
		if src.Node == w.Node {
			path = PathSplice
		}
	}
	e.NetworkPolicies = append(e.NetworkPolicies, m.judge(ingress, w, connection.Source, netip.AddrPortFrom(addr, port))...)
	permit, decision := m.Authorize(connection)
	if permit.Valid() {
		e.Path, e.Verdict = path, "allow"
	}
	e.Reason = decision.Reason.String()
	if decision.Policy != (mesh.Key{}) {
		e.Policy = decision.Policy.String()
	}
	if decision.Rule >= 0 {
		e.Rule = &decision.Rule
	}
	for _, key := range decision.Audited {
		e.Audited = append(e.Audited, key.String())
	}
	e.Selecting = asked.Selecting(m.View, w)
}

// conclude sums the endpoints up.
func (a *Answer) conclude() {
	first := a.Endpoints[0]
	a.Verdict, a.Reason = first.Verdict, first.Reason
	for _, e := range a.Endpoints {
		if e.Verdict != a.Verdict && a.Verdict != "mixed" {
			a.Verdict = "mixed"
		}
		if e.Verdict == "deny" && first.Verdict == "allow" {
			a.Reason, first = e.Reason, e
		}
	}
}

// hint says what to do about a refusal.
func hint(a *Answer) []string {
	if !a.Denied() {
		return nil
	}
	var e Endpoint
	if i := slices.IndexFunc(a.Endpoints, func(e Endpoint) bool { return e.Verdict == "deny" && e.Reason == a.Reason }); i >= 0 {
		e = a.Endpoints[i]
	} else if a.Behind != nil && a.Behind.Verdict != asked.Allow {
		return a.hintBehind()
	}
	switch a.Reason {
	case mesh.ReasonStrictPlaintext.String():
		return []string{"the source has no identity of the mesh, and the port takes no plaintext: enroll the source, or let the port be PERMISSIVE by a PeerAuthentication"}
	case mesh.ReasonPolicyNoMatch.String():
		return []string{unmatched(e.Selecting)}
	case mesh.ReasonForeignIdentity.String():
		return []string{"an identity of another trust domain is let in by an ALLOW policy that names it, in from.identities, and by nothing else"}
	case mesh.ReasonNotFederated.String():
		return []string{"spec.federation of the Mesh does not have the source's trust domain: its certificates are not believed"}
	case mesh.ReasonRequestUnseen.String():
		return []string{"AuthorizationPolicy " + e.Policy + " is about requests, which nobody sees on this connection: connect to the address of a Service that is behind a waypoint (the label heddle.dev/waypoint), not to the pod's own"}
	case mesh.ReasonPolicyDeny.String():
		return []string{"AuthorizationPolicy " + e.Policy + " is to DENY it"}
	case mesh.ReasonServicePortUndefined.String():
		return []string{"the service has no such port"}
	case mesh.ReasonNoEndpoint.String():
		if a.Waypoint != "" {
			return []string{"the service is reached through waypoint " + a.Waypoint + ", of which no enrolled pod is ready, or which is not there: `kubectl get pods` with the selector of its Service says; " +
				`heddle.dev/waypoint-bypass: "true" on the Service or its namespace would let connections past it`}
		}
		return []string{"no pod of the service is ready, or none has a port of the name that the target is: `kubectl get pods` with its selector says which", "connections of pods in the mesh are refused at once, in the kernel (connection refused)"}
	case mesh.ReasonEgressDenied.String():
		return []string{"spec.egress of the Mesh refuses plaintext for the source's namespace"}
	case mesh.ReasonIdentityRevoked.String():
		return []string{"spec.revokedIdentities of the Mesh names the source, or the destination"}
	case mesh.ReasonNetworkPolicyEgress.String():
		return isolated(egress, append(e.NetworkPolicies, a.NetworkPolicies...), a.Route == "egress")
	case mesh.ReasonNetworkPolicyIngress.String():
		return isolated(ingress, e.NetworkPolicies, a.Source.Workload == "")
	case mesh.ReasonReservedPort.String():
		return []string{"the port is the agent's own inside enrolled pods: let the application listen elsewhere"}
	}
	return nil
}
