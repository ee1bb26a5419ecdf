package explain

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/client-go/rest"

	access "github.com/heddle-mesh/heddle/cmd/heddle/internal/cluster"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/reach"
	"github.com/heddle-mesh/heddle/internal/kube"
	"github.com/heddle-mesh/heddle/internal/kube/folderroutes"
	"github.com/heddle-mesh/heddle/internal/kube/routes"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/mesh/route"
	"github.com/heddle-mesh/heddle/operator/cluster"
)

// Model is what agents decide by, and what people wrote of it. It is immutable.
type Model struct {
	*mesh.View
	// networkPolicies are the objects, refused what is wrong with them.
	networkPolicies map[mesh.Key]*networkingv1.NetworkPolicy
	refused         []*kube.Problem
	// routes are those that waypoints go by.
	routes []route.Route
}

// Written is what people wrote. What cannot be compiled is left out when it is a
// cluster's, and an error when it is a folder's.
type Written struct {
	*kube.Objects
	Cluster bool
	// Routing has a cluster's routes; nil for those of Objects.
	Routing *routes.Objects
}

// Model compiles what is written, as the operator does.
func (w Written) Model() (*Model, error) {
	compile := kube.Compile
	if w.Cluster {
		compile = kube.CompileEach
	}
	compiled, err := compile(w.Objects)
	if err != nil {
		return nil, err
	}
	m, err := modelOf(w.Objects, compiled)
	if err == nil {
		m.routes = w.routes()
	}
	return m, err
}

// routes compiles what is written of routes: those that cannot be served are left out, as nothing is known of how they were before.
func (w Written) routes() []route.Route {
	in := w.Routing
	if in == nil {
		in, _ = folderroutes.Objects(w.Objects)
	}
	return routes.Compile(in, nil).Routes
}

// Refused are the problems of what was left out.
func (m *Model) Refused() []*kube.Problem { return m.refused }

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
	m := &Model{View: view, networkPolicies: map[mesh.Key]*networkingv1.NetworkPolicy{}, refused: compiled.Refused}
	for _, p := range objects.NetworkPolicies {
		m.networkPolicies[mesh.Key{Namespace: p.Value.Namespace, Name: p.Value.Name}] = p.Value
	}
	return m, nil
}

// ReadFolder reads a folder, whose policies may name UDP where that is said.
func ReadFolder(folder string, experimentalUDP bool) (Written, error) {
	objects, err := kube.LoadDir(folder)
	if err == nil {
		objects.ExperimentalUDP = experimentalUDP
	}
	return Written{Objects: objects}, err
}

// readBound bounds how long a cluster's objects are read.
const readBound = time.Minute

// Of reads the objects of a folder; or, without one, of the mesh that is meant: a local
// mesh, or a cluster. Flag is the one that names a folder.
func Of(ctx context.Context, m *reach.Mesh, folder, flag string) (Written, error) {
	udp := m.ExperimentalUDP
	if folder == "" && !m.OnCluster() {
		running, err := m.Local()
		if err != nil {
			return Written{}, fmt.Errorf("%w; or name a folder with %s", err, flag)
		}
		folder, udp = running.Status().Folder, udp || running.ExperimentalUDP
	}
	if folder != "" {
		return ReadFolder(folder, udp)
	}
	c, err := access.Connect(m.Cluster)
	if err != nil {
		return Written{}, err
	}
	if _, err := c.Core.Discovery().ServerVersion(); err != nil { // said at once, in place of after the bound
		return Written{}, c.Explain("ask the cluster for its version", err)
	}
	ctx, cancel := context.WithTimeout(ctx, readBound)
	defer cancel()
	written, err := ReadCluster(ctx, c.Config())
	if err == nil {
		written.ExperimentalUDP = udp
	}
	return written, err
}

// ReadCluster reads a cluster's objects, as the operator does.
func ReadCluster(ctx context.Context, cfg *rest.Config) (Written, error) {
	cfg.Timeout = 0 // watches last
	source := cluster.NewSource(cfg, slog.New(slog.DiscardHandler))
	running, cancel := context.WithCancel(ctx)
	var g errgroup.Group
	g.Go(func() error { return source.Run(running) })
	err := await(ctx, source.Synced)
	cancel()
	if failed := g.Wait(); failed != nil {
		return Written{}, fmt.Errorf("read the cluster: %w", failed)
	}
	if err != nil {
		return Written{}, err
	}
	objects, _ := source.Objects()
	routing := source.Routing()
	return Written{objects, true, &routing.Objects}, nil
}

// await waits until synced is nil.
func await(ctx context.Context, synced func() error) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := synced()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("read the cluster: %w: %w; remedy: this needs the rights list and watch of these, and an installation of Heddle", ctx.Err(), err)
		case <-tick.C:
		}
	}
}
