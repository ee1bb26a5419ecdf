package operator

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/discovery"
	"github.com/heddle-mesh/heddle/internal/fips"
	"github.com/heddle-mesh/heddle/internal/identity"
	"github.com/heddle-mesh/heddle/internal/identity/jointoken"
	"github.com/heddle-mesh/heddle/internal/identity/trustfeed"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/operator/federation"
	"github.com/heddle-mesh/heddle/operator/issuing"
	"github.com/heddle-mesh/heddle/operator/jwtauthority"
	"github.com/heddle-mesh/heddle/operator/replicas"
	"github.com/heddle-mesh/heddle/operator/rotation"
)

// openIssuing makes what signs for agents; of cfg there is what only the caller knows.
func (p *parts) openIssuing(cfg issuing.Config, store *mesh.Store) (err error) {
	withheld := ""
	if p.cfg.SPIRE != nil {
		withheld = "the keys of trust domain " + p.authority.TrustDomain().Name() + "'s JWT-SVIDs are SPIRE's; ask SPIRE's own Workload API for them"
	}
	if p.issuing.jwts, err = jwtauthority.New(jwtauthority.Config{Live: p.authority, Withheld: withheld, Times: p.cfg.JWT, Logger: p.cfg.Logger}); err != nil {
		return err
	}
	cfg.Issuer, cfg.JWTs, cfg.View = p.authority, p.issuing.jwts, func() issuing.Snapshot { return store.View() }
	cfg.ConfigurationKeys, cfg.Logger, cfg.Registerer = p.configurationKeys(), p.cfg.Logger, p.registry
	if p.issuing.Server, err = issuing.New(cfg); err != nil {
		return err
	}
	return p.register(p.issuing.jwts.Collector())
}

// said is what agents are told of the authority.
func (p *parts) said() (trustfeed.Said, <-chan struct{}) {
	said, changed := p.authority.Said()
	said.JWT = p.issuing.jwts.Said()
	return said, changed
}

func (p *parts) register(all ...prometheus.Collector) error {
	for _, c := range all {
		if err := p.registry.Register(c); err != nil {
			return fmt.Errorf("register metrics: %w", err)
		}
	}
	return nil
}

// openTrust makes what agents follow, and what rotates.
func (p *parts) openTrust(kept federation.Store, store *mesh.Store) (err error) {
	if err := p.openFederation(kept, store.Snapshot); err != nil {
		return err
	}
	p.trust.Server, err = trustfeed.NewServer(trustfeed.ServerConfig{Authenticate: p.trust.callers.Node, Authority: p.said, Federation: p.federation.Said,
		TellGated: p.cfg.UDPByIdentity, Logger: p.cfg.Logger})
	if err != nil {
		return err
	}
	p.rotator, err = rotation.NewRotator(rotation.RotatorConfig{Live: p.authority, Fleet: p.fleet, Settle: p.cfg.Settle, Issuer: p.issuer(), Logger: p.cfg.Logger})
	if err != nil {
		return err
	}
	if err := p.openSPIRE(); err != nil {
		return err
	}
	return p.register(p.authority.Collector(), fips.Collector())
}

// nodesOfReports are the nodes that agents report of.
func nodesOfReports(reports []trustfeed.Report) map[string]rotation.Node {
	nodes := map[string]rotation.Node{}
	for _, r := range reports {
		nodes[r.Node] = rotation.Node{Name: r.Node, Connected: r.Connected, Since: r.Since, Report: r.Report}
	}
	return nodes
}

// folderFleet is everybody whom a rotation waits for: the nodes whose agents were
// connected since the start, those that have workloads and joined, and those that
// joined lately; nobody whose identity is revoked, who is told nothing.
func (p *parts) folderFleet(view *mesh.View) rotation.Fleet {
	nodes := nodesOfReports(p.trust.Reports())
	for _, n := range p.discovery.Nodes() {
		if _, ok := nodes[n.Node]; !ok {
			nodes[n.Node] = rotation.Node{Name: n.Node, Connected: n.Connected > 0, Since: n.Since}
		}
	}
	// A list that cannot be read leaves nobody out that is connected, or was.
	records, _ := p.tokens.List()
	for _, r := range records {
		_, known := nodes[r.Node]
		// A waypoint has no certificate that could be of an old root.
		if _, _, waypoint := jointoken.WaypointOf(r.Node); known || waypoint || r.End == nil || r.End.Revoked {
			continue
		}
		if len(view.OnNode(r.Node)) > 0 || time.Since(r.End.At) < identity.DefaultNodeTTL {
			nodes[r.Node] = rotation.Node{Name: r.Node}
		}
	}
	maps.DeleteFunc(nodes, func(name string, _ rotation.Node) bool { return p.trust.callers.Revoked(name) })
	return rotation.Fleet{Nodes: slices.Collect(maps.Values(nodes)), Overlap: p.overlap(), Waypoints: p.waypointsLearn(view, joinedLearn)}
}

// How long waypoints have to learn of a new root. One that joined is told when it connects
// again, at once; in a pod it is the kubelet that brings the new text, a minute or two after.
const (
	joinedLearn  = 30 * time.Second
	mountedLearn = 3 * time.Minute
)

// waypointsLearn is learn when there are waypoints, else zero.
func (p *parts) waypointsLearn(view *mesh.View, learn time.Duration) time.Duration {
	named := func(s *mesh.Service) bool { return s.Waypoint != mesh.Key{} }
	connected := func(n discovery.NodeStatus) bool { return n.Connected > 0 }
	if view != nil && slices.ContainsFunc(view.Services(), named) || slices.ContainsFunc(p.discovery.Waypoints(), connected) {
		return learn
	}
	return 0
}

// fleet is everybody whom a rotation waits for: the other replicas, the nodes that
// have an agent's pod, and those whose agents are or were connected and that are
// there still; nobody whose identity is revoked, who is told nothing.
func (a *peers) fleet(ctx context.Context) rotation.Fleet {
	k := a.parts.cfg.Kubernetes
	nodes := nodesOfReports(a.parts.trust.Reports())
	f := rotation.Fleet{Overlap: a.parts.overlap(), Waypoints: a.parts.waypointsLearn(a.parts.view(), mountedLearn)}
	for _, r := range replicas.Ask(ctx, a.Replicas, func(ctx context.Context, _ string, c meshpb.OperatorAdminClient) (*meshpb.CertificatesResponse, error) {
		return c.Certificates(ctx, &meshpb.CertificatesRequest{Own: true}) // what it knows by itself
	}) {
		f.Replicas = append(f.Replicas, rotation.ReplicaOf(r.Address, r.Answer, r.Err))
		for _, n := range r.Answer.GetNodes() {
			known, ok := nodes[n.GetNode()]
			if !ok || n.GetConnected() && !known.Connected || n.GetReportedNs() > 0 && known.Report == nil {
				nodes[n.GetNode()] = rotation.Node{Name: n.GetNode(), Connected: n.GetConnected() || known.Connected, Report: n.GetReport()}
			}
		}
	}
	objects, _ := a.parts.source.Objects()
	for _, pod := range objects.Pods {
		if pod.Namespace == k.Namespace && pod.ServiceAccount == k.AgentAccount && pod.Node != "" && !pod.Finished {
			if _, ok := nodes[pod.Node]; !ok {
				nodes[pod.Node] = rotation.Node{Name: pod.Node}
			}
		}
	}
	for name, n := range nodes {
		if a.parts.source.HasNode(name) && !a.parts.trust.callers.Revoked(name) {
			f.Nodes = append(f.Nodes, n)
		}
	}
	return f
}

// Certificates implements meshpb.OperatorAdminServer.
func (a *adminService) Certificates(ctx context.Context, req *meshpb.CertificatesRequest) (*meshpb.CertificatesResponse, error) {
	p := a.parts
	keyring := p.authority.Keyring()
	out := &meshpb.CertificatesResponse{TrustDomain: p.authority.TrustDomain().Name(), Replica: p.replica(), Issuer: p.issuer(), CertManager: p.authority.Keeper(), Federation: federation.Bundles(p.federation.Known())}
	if problem := p.problem(); problem != nil {
		out.Problem = problem.Error()
	}
	out.Authority = keyring.Said()
	p.issuing.jwts.Describe(out)
	own := map[string]*meshpb.NodeCertificates{}
	for _, r := range p.trust.Reports() {
		own[r.Node] = &meshpb.NodeCertificates{Node: r.Node, Connected: r.Connected, ReportedNs: meshpb.Nanos(r.Received), Report: r.Report}
	}
	if !req.GetOwn() {
		fleet := p.fleet(ctx)
		if p.spire != nil && out.Problem == "" { // which the replica that leads knows of
			out.Problem = problemOf(fleet.Replicas)
		}
		for _, n := range fleet.Nodes {
			if known := own[n.Name]; known == nil || !known.GetConnected() && n.Connected || known.GetReport() == nil {
				own[n.Name] = &meshpb.NodeCertificates{Node: n.Name, Connected: n.Connected, Report: n.Report}
			}
		}
		out.Rotation = rotation.State(keyring.Record, p.rotator.Progress(keyring, fleet))
	}
	out.Nodes = slices.SortedFunc(maps.Values(own), func(a, b *meshpb.NodeCertificates) int { return cmp.Compare(a.GetNode(), b.GetNode()) })
	return out, nil
}

// problemOf is what the first replica says that has one.
func problemOf(replicas []rotation.Replica) string {
	for _, r := range replicas {
		if r.Problem != "" {
			return fmt.Sprintf("replica %s: %s", r.Name, r.Problem)
		}
	}
	return ""
}

// replica is the name of this one; "" where there is but one.
func (p *parts) replica() string {
	if p.cfg.Kubernetes == nil {
		return ""
	}
	return p.cfg.Kubernetes.Replica
}

// RotateCertificates implements meshpb.OperatorAdminServer.
func (a *adminService) RotateCertificates(ctx context.Context, req *meshpb.RotateCertificatesRequest) (*meshpb.RotateCertificatesResponse, error) {
	var record rotation.Record
	var progress rotation.Progress
	var err error
	switch rotator := a.parts.rotator; req.GetAction() {
	case meshpb.RotateCertificatesRequest_ACTION_BEGIN:
		record, progress, err = rotator.Begin(ctx, req.GetKind(), req.GetDryRun())
	case meshpb.RotateCertificatesRequest_ACTION_ABORT:
		record, progress, err = rotator.Abort(ctx, req.GetDryRun())
	case meshpb.RotateCertificatesRequest_ACTION_FORCE:
		record, progress, err = rotator.Force(ctx, req.GetDryRun())
	default:
		return nil, status.Errorf(codes.InvalidArgument, "action %v is not known to this operator", req.GetAction())
	}
	switch {
	case errors.Is(err, rotation.ErrRefused):
		return nil, status.Error(codes.FailedPrecondition, err.Error())
	case errors.Is(err, rotation.ErrConflict):
		return nil, status.Errorf(codes.Aborted, "%v; remedy: try again", err)
	case err != nil:
		a.parts.cfg.Logger.ErrorContext(ctx, "rotation does not change", "action", req.GetAction().String(), "error", err)
		return nil, status.Error(codes.Internal, err.Error())
	}
	return &meshpb.RotateCertificatesResponse{Rotation: rotation.State(record, progress)}, nil
}
