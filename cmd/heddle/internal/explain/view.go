package explain

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"slices"

	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/client-go/rest"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/explain/asked"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/explain/routed"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/reach"
	"github.com/heddle-mesh/heddle/internal/kube"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/mesh/datagram"
)

// Model is what agents decide by, and what people wrote of it. It is immutable.
type Model struct {
	*mesh.View
	// networkPolicies are the objects, refused what is wrong with them.
	networkPolicies map[mesh.Key]*networkingv1.NetworkPolicy
	refused         []*kube.Problem
	// aliases are Services of type ExternalName, and what they name.
	aliases  map[mesh.Key]string
	warnings []*kube.Problem
	// waypoints is what waypoints decide by, who are told of no NetworkPolicies; routes are those that they go by.
	waypoints *mesh.View
	routes    asked.Routes
	udp       bool
}

// Written is what people wrote. What cannot be compiled is left out when it is a
// cluster's, and an error when it is a folder's, as is what an API server would refuse.
type Written struct {
	*kube.Objects
	// Unfit is what an API server would refuse of objects that came from no cluster.
	Unfit   routed.Unfit
	Cluster bool
	// Routing has a cluster's routes; nil for those of Objects.
	Routing *routed.Objects
}

// Model compiles what is written, as the operator does.
func (w Written) Model() (*Model, error) {
	compile := kube.Compile
	if w.Cluster {
		compile = kube.CompileEach
	}
	objects, routes := *w.Objects, routed.Of(w.Objects, w.Routing)
	routed.Relay(&objects, routes)
	compiled, err := compile(&objects)
	if !w.Cluster {
		err = w.Unfit.Beyond(err)
	}
	if err != nil {
		return nil, err
	}
	if w.Cluster {
		compiled.Refused = w.Unfit.Among(compiled.Refused)
	}
	m, err := modelOf(&objects, compiled)
	if err == nil {
		m.routes = routes
	}
	return m, err
}

// Refused are the problems of what was left out.
func (m *Model) Refused() []*kube.Problem { return m.refused }

// Warnings are about what is in force, and unlikely to do what is meant.
func (m *Model) Warnings() []*kube.Problem { return m.warnings }

// At is what becomes of a connection to one workload. A nil src is a client that the
// mesh does not know, which only its address tells. Behind is the address and port of a
// service for which the workload is asked as its waypoint; zero for itself.
func (m *Model) At(src *mesh.Workload, client netip.Addr, w *mesh.Workload, port uint16, behind netip.AddrPort) Endpoint {
	if behind.IsValid() {
		port = mesh.WaypointPort
	}
	return m.endpoint(src, client, w, netip.Addr{}, port, behind)
}

// Requests are the policies about requests of the workloads that a service has behind
// its waypoint, which is asked for its address and port: on what these say of a connection,
// its requests decide.
func (m *Model) Requests(src *mesh.Workload, behind netip.AddrPort) (found []*mesh.Policy) {
	workloads := m.Past(src, behind).Candidates
	for _, p := range m.Policies() {
		if p.Action != mesh.ActionAudit && p.AboutRequests() && slices.ContainsFunc(workloads, func(w *mesh.Workload) bool { return p.Selects(w.Namespace, w.Labels) }) {
			found = append(found, p)
		}
	}
	return found
}

// BehindWaypoint is what a service's waypoint decides about a client of the mesh at the workloads behind it, as far as that is so
// whatever the client asks for; the waypoint is asked for the service's address and port.
func (m *Model) BehindWaypoint(src *mesh.Workload, client netip.Addr, behind netip.AddrPort) *Behind {
	w, c := m.asking(src, client, behind)
	return w.Behind(c)
}

// asking is the waypoint that a client asks for a service's address and port, and the client as that knows it: it has the
// address from which its agent has heard.
func (m *Model) asking(src *mesh.Workload, client netip.Addr, behind netip.AddrPort) (*asked.Waypoint, *asked.Client) {
	w := &asked.Waypoint{View: m.waypoints, Routes: m.routes}
	if s, ok := m.ServiceAt(behind.Addr()); ok {
		w.Service = s.Waypoint
	}
	if own, ok := src.AddressFor(behind.Addr(), nil); ok && (!client.IsValid() || client.Is4() != behind.Addr().Is4()) {
		client = own
	}
	return w, &asked.Client{Addr: netip.AddrPortFrom(client, 0), To: behind, ID: src.Identity, Namespace: mesh.NamespaceOf(m.Settings().TrustDomain, src.Identity), Workload: src.Key}
}

// UDP reports whether policies may be about UDP. Where not, nothing passes over it, and
// nothing is to be said about it.
func (m *Model) UDP() bool { return m.udp }

// Datagram is what becomes of a conversation over UDP with an address and port, as
// datagram.AuthorizeTo has it. A nil src is a client that the mesh does not know.
func (m *Model) Datagram(src *mesh.Workload, to netip.AddrPort) (d mesh.Decision, service, at mesh.Key) {
	if src == nil {
		return mesh.Decision{Verdict: mesh.VerdictDeny, Reason: mesh.ReasonKernelUDP, Rule: -1}, service, at
	}
	return datagram.AuthorizeTo(m.View, src, to)
}

// Out is what becomes of a connection to an address that was no workload's.
func (m *Model) Out(src *mesh.Workload, client netip.Addr, to netip.AddrPort) *Answer {
	a := &Answer{Source: endOf(src, client, 0), Destination: target{address: to}.end()}
	a.decide(m, src, client, target{address: to})
	return a
}

func modelOf(objects *kube.Objects, compiled *kube.Compiled) (*Model, error) {
	view, err := compiled.View("explain")
	if err != nil {
		return nil, err
	}
	m := &Model{View: view, waypoints: view, networkPolicies: map[mesh.Key]*networkingv1.NetworkPolicy{}, aliases: aliasesOf(objects), refused: compiled.Refused, warnings: compiled.Warnings, udp: objects.UDPByIdentity}
	if len(objects.NetworkPolicies) > 0 {
		each := *compiled
		each.Network = mesh.Network{}
		if m.waypoints, err = each.View("explain"); err != nil {
			return nil, err
		}
	}
	for _, p := range objects.NetworkPolicies {
		m.networkPolicies[mesh.Key{Namespace: p.Value.Namespace, Name: p.Value.Name}] = p.Value
	}
	return m, nil
}

// ReadFolder reads a folder, whose policies may name UDP where that is said.
func ReadFolder(folder string, udpByIdentity bool) (Written, error) {
	return readNamed(nil, folder, udpByIdentity)
}

func readNamed(in io.Reader, folder string, udpByIdentity bool) (Written, error) {
	objects, unfit, err := routed.ReadFolder(in, folder)
	if err == nil {
		objects.UDPByIdentity = udpByIdentity
	}
	return Written{Objects: objects, Unfit: unfit}, err
}

// Of reads the objects of a folder, or of standard input in place of "-"; or, without one, of the mesh that is meant: a local
// mesh, or a cluster, whose operators say whether policies may name UDP. Flag is the one that
// names a folder.
func Of(ctx context.Context, m *reach.Mesh, folder, flag string) (Written, error) {
	udp := m.UDPByIdentity
	if folder == "" && !m.OnCluster() {
		running, err := m.Local()
		if err != nil {
			return Written{}, fmt.Errorf("%w; or name a folder with %s", err, flag)
		}
		written, err := ReadFolder(running.Status().Folder, udp || running.UDPByIdentity)
		written.Unfit = nil // its operator has taken it
		return written, err
	}
	if folder != "" {
		return readNamed(m.In, folder, udp)
	}
	objects, routing, err := routed.Connect(ctx, m.Cluster, udp, func(err error) {
		fmt.Fprintf(m.Log, "heddle: policies about UDP are not taken, without --udp-by-identity: whether the operator does is not known: %v\n", err)
	})
	return Written{Objects: objects, Cluster: true, Routing: routing}, err
}

// ReadCluster reads a cluster's objects, as an operator does whose policies may not name UDP.
func ReadCluster(ctx context.Context, cfg *rest.Config) (Written, error) {
	objects, routing, err := routed.ReadCluster(ctx, cfg, false)
	return Written{Objects: objects, Cluster: true, Routing: routing}, err
}
