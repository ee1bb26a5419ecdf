package operator

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/fips"
	"github.com/heddle-mesh/heddle/internal/identity"
	"github.com/heddle-mesh/heddle/internal/identity/nodeauth"
	"github.com/heddle-mesh/heddle/internal/identity/trustfeed"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/operator/rotation"
)

// openTrust makes what agents follow, and what rotates.
func (p *parts) openTrust() (err error) {
	p.trust, err = trustfeed.NewServer(trustfeed.ServerConfig{Authenticate: nodeauth.PeerNode, Authority: p.authority.Said, Logger: p.cfg.Logger})
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
	if err := errors.Join(p.registry.Register(p.authority.Collector()), p.registry.Register(fips.Collector())); err != nil {
		return fmt.Errorf("register metrics: %w", err)
	}
	return nil
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
// joined lately.
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
		if _, ok := nodes[r.Node]; ok || r.End == nil || r.End.Revoked {
			continue
		}
		if len(view.OnNode(r.Node)) > 0 || time.Since(r.End.At) < identity.DefaultNodeTTL {
			nodes[r.Node] = rotation.Node{Name: r.Node}
		}
	}
	return rotation.Fleet{Nodes: slices.Collect(maps.Values(nodes))}
}

// fleet is everybody whom a rotation waits for: the other replicas, the nodes that
// have an agent's pod, and those whose agents are or were connected and that are
// there still.
func (a *peers) fleet(ctx context.Context) rotation.Fleet {
	k := a.parts.cfg.Kubernetes
	nodes := nodesOfReports(a.parts.trust.Reports())
	var f rotation.Fleet
	for _, r := range askAll(ctx, a, func(ctx context.Context, c meshpb.OperatorAdminClient) (*meshpb.CertificatesResponse, error) {
		return c.Certificates(ctx, &meshpb.CertificatesRequest{Own: true}) // what it knows by itself
	}) {
		f.Replicas = append(f.Replicas, replicaOf(r))
		for _, n := range r.answer.GetNodes() {
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
		if a.parts.source.HasNode(name) {
			f.Nodes = append(f.Nodes, n)
		}
	}
	return f
}

func replicaOf(r answered[*meshpb.CertificatesResponse]) rotation.Replica {
	out := rotation.Replica{Name: cmp.Or(r.answer.GetReplica(), r.address), Err: r.err}
	if out.Problem = r.answer.GetProblem(); out.Problem != "" {
		out.Err = errors.New(out.Problem)
	}
	for _, c := range r.answer.GetAuthority() {
		if c.GetKind() == rotation.KindRoot && c.GetTrusted() {
			out.Roots = append(out.Roots, c.GetSha256())
		}
		if c.GetSigns() {
			out.Issuer = c.GetSha256()
		}
	}
	return out
}

// Certificates implements meshpb.OperatorAdminServer.
func (a *adminService) Certificates(ctx context.Context, req *meshpb.CertificatesRequest) (*meshpb.CertificatesResponse, error) {
	p := a.parts
	keyring := p.authority.Keyring()
	out := &meshpb.CertificatesResponse{TrustDomain: p.authority.TrustDomain().Name(), Replica: p.replica(), Issuer: p.issuer()}
	if problem := p.problem(); problem != nil {
		out.Problem = problem.Error()
	}
	for _, c := range keyring.Certificates() {
		sum := sha256.Sum256(c.Cert.Raw)
		out.Authority = append(out.Authority, &meshpb.AuthorityCertificate{Sha256: sum[:], Kind: c.Kind, Subject: c.Cert.Subject.String(),
			Serial: c.Cert.SerialNumber.Text(16), NotBeforeNs: c.Cert.NotBefore.UnixNano(), NotAfterNs: c.Cert.NotAfter.UnixNano(),
			Key: identity.KeyType(c.Cert), Signs: c.Signs, Trusted: c.Trusted})
	}
	own := map[string]*meshpb.NodeCertificates{}
	for _, r := range p.trust.Reports() {
		own[r.Node] = &meshpb.NodeCertificates{Node: r.Node, Connected: r.Connected, ReportedNs: nanos(r.Received), Report: r.Report}
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
		out.Rotation = rotationState(keyring.Record, keyring.Progress(fleet))
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
	return &meshpb.RotateCertificatesResponse{Rotation: rotationState(record, progress)}, nil
}

func rotationState(r rotation.Record, p rotation.Progress) *meshpb.RotationState {
	out := &meshpb.RotationState{Kind: r.Kind, Stage: r.Stage, Aborting: r.Aborting, StartedNs: nanos(r.Started), SinceNs: nanos(r.Since),
		Nodes: uint32(p.Nodes), Done: uint32(p.Done), Without: r.Without, EndedNs: nanos(r.Ended), Ended: r.How}
	for _, w := range p.Waiting {
		out.Waiting = append(out.Waiting, &meshpb.RotationWait{Part: w.Part, Name: w.Name, Reason: w.Reason, Forcible: w.Forcible})
	}
	return out
}
