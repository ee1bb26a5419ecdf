package operator

import (
	"context"
	"maps"
	"net"
	"slices"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/identity"
	"github.com/heddle-mesh/heddle/internal/identity/nodeauth"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/operator/replicas"
	"github.com/heddle-mesh/heddle/operator/report"
)

// peerService answers other replicas on the agents' port: which nodes are
// connected, what they have applied, and which certificates and gates they report. Only the operator's own identity may
// ask; the rest of OperatorAdmin is for the admin socket.
type peerService struct {
	meshpb.UnimplementedOperatorAdminServer
	admin *adminService
}

// Status implements meshpb.OperatorAdminServer.
func (s *peerService) Status(ctx context.Context, req *meshpb.OperatorStateRequest) (*meshpb.OperatorState, error) {
	if err := s.admit(ctx); err != nil {
		return nil, err
	}
	return s.admin.Status(ctx, req)
}

// Certificates implements meshpb.OperatorAdminServer.
func (s *peerService) Certificates(ctx context.Context, _ *meshpb.CertificatesRequest) (*meshpb.CertificatesResponse, error) {
	if err := s.admit(ctx); err != nil {
		return nil, err
	}
	return s.admin.Certificates(ctx, &meshpb.CertificatesRequest{Own: true})
}

// admit refuses whoever is not an operator.
func (s *peerService) admit(ctx context.Context) error {
	want := identity.OperatorID(s.admin.parts.authority.TrustDomain())
	p, ok := peer.FromContext(ctx)
	if !ok {
		return status.Error(codes.Unauthenticated, "no connection to take an identity from")
	}
	if info, ok := p.AuthInfo.(nodeauth.PeerInfo); !ok || info.Peer() != want {
		return status.Errorf(codes.PermissionDenied, "only %s may ask", want)
	}
	return nil
}

// peers asks the other replicas.
type peers struct {
	*replicas.Replicas
	parts *clusterParts
}

func newPeers(p *clusterParts) *peers {
	a := &peers{parts: p}
	own := func() credentials.TransportCredentials {
		return nodeauth.NewClientCredentials(p.authority.Own, p.authority, identity.OperatorID(p.authority.TrustDomain()))
	}
	a.Replicas = replicas.New(a.addresses, own, p.cfg.Logger)
	return a
}

// nodes returns what all nodes and all pods of waypoints have acknowledged and reported, to
// this replica and to the others. A replica that does not answer is left out: its nodes count
// as they were acknowledged elsewhere.
func (a *peers) nodes(ctx context.Context) []report.Node {
	newest := map[string]*meshpb.OperatorNode{}
	take := func(nodes []*meshpb.OperatorNode) {
		for _, n := range nodes {
			known := newest[n.GetName()]
			connected := n.GetConnected() || known.GetConnected() // to any replica
			if known == nil || known.GetAppliedNs() < n.GetAppliedNs() {
				newest[n.GetName()] = n
			}
			newest[n.GetName()].Connected = connected
		}
	}
	take(nodesOf(a.parts.discovery))
	take(waypointsOf(a.parts.discovery))
	pods := podsOf(a.parts.trust.Server)
	for _, r := range replicas.Ask(ctx, a.Replicas, func(ctx context.Context, _ string, c meshpb.OperatorAdminClient) (*meshpb.OperatorState, error) {
		return c.Status(ctx, &meshpb.OperatorStateRequest{})
	}) {
		take(r.Answer.GetNodes()) // nil, which has nothing, of one that does not answer
		take(r.Answer.GetWaypoints())
		pods = append(pods, r.Answer.GetPods()...)
	}
	return acknowledged(slices.Collect(maps.Values(newest)), pods)
}

// acknowledged is what nodes have applied, with the newest of what was reported of each
// one's pods, and whether it is still heard of both.
func acknowledged(nodes []*meshpb.OperatorNode, pods []*meshpb.NodePods) []report.Node {
	newest, reports := map[string]*meshpb.NodePods{}, map[string]bool{}
	for _, p := range pods {
		reports[p.GetNode()] = reports[p.GetNode()] || !p.GetGone()
		if known := newest[p.GetNode()]; known == nil || known.GetReportedNs() < p.GetReportedNs() {
			newest[p.GetNode()] = p
		}
	}
	all := make([]report.Node, 0, len(nodes))
	for _, n := range nodes {
		all = append(all, report.Node{Name: n.GetName(), Revision: n.GetRevision(), Epoch: n.GetEpoch(), Amiss: newest[n.GetName()].GetAmiss(),
			Connected: n.GetConnected(), Reports: reports[n.GetName()]})
	}
	return all
}

// addresses returns those of the other replicas: pods of the same namespace and
// service account as this replica's own.
func (a *peers) addresses() []string {
	k := a.parts.cfg.Kubernetes
	own, ok := a.parts.source.Pod(mesh.Key{Namespace: k.Namespace, Name: k.Replica})
	if !ok {
		return nil // not a pod: there is nobody else
	}
	port := "15012"
	if _, p, err := net.SplitHostPort(a.parts.address); err == nil {
		port = p
	}
	objs, _ := a.parts.source.Objects()
	var all []string
	for _, p := range objs.Pods {
		if p.Namespace == own.Namespace && p.ServiceAccount == own.ServiceAccount && p.Name != own.Name && !p.Finished && len(p.Addresses) > 0 {
			all = append(all, net.JoinHostPort(p.Addresses[0].String(), port))
		}
	}
	return all
}
