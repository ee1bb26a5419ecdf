package operator

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/admin"
	"github.com/heddle-mesh/heddle/internal/discovery"
	"github.com/heddle-mesh/heddle/internal/fips"
	"github.com/heddle-mesh/heddle/internal/identity/jointoken"
	"github.com/heddle-mesh/heddle/internal/identity/trustfeed"
	"github.com/heddle-mesh/heddle/operator/federation"
	"github.com/heddle-mesh/heddle/operator/publish"
	"github.com/heddle-mesh/heddle/operator/report"
)

// Lifetimes of join tokens.
const (
	defaultTokenLifetime = time.Hour
	maxTokenLifetime     = 7 * 24 * time.Hour
)

// serveAdmin serves the admin socket until ctx ends, and removes it.
func (p *parts) serveAdmin(ctx context.Context) error {
	if err := os.MkdirAll(filepath.Dir(p.cfg.AdminSocket), 0o700); err != nil {
		return fmt.Errorf("make directory of admin socket: %w", err)
	}
	return admin.Serve(ctx, p.cfg.AdminSocket, func(server *grpc.Server) {
		meshpb.RegisterOperatorAdminServer(server, &adminService{parts: p})
	}, p.cfg.Logger)
}

// adminService answers on the admin socket.
type adminService struct {
	meshpb.UnimplementedOperatorAdminServer
	parts *parts
}

// Status implements meshpb.OperatorAdminServer.
func (a *adminService) Status(_ context.Context, req *meshpb.OperatorStateRequest) (*meshpb.OperatorState, error) {
	p := a.parts
	var policies []*meshpb.OperatorPolicy
	leftOut := 0
	if req.GetPolicies() {
		policies, leftOut = report.Bounded(p.policies())
	}
	var apiServer *meshpb.OperatorAPIServer
	if p.apiServer != nil {
		apiServer = p.apiServer()
	}
	root := p.authority.Keyring().Signing.Root()
	sum := sha256.Sum256(root.Raw)
	return &meshpb.OperatorState{
		Fips140:       fips.Describe(),
		Version:       p.cfg.Version,
		StartedNs:     p.started.UnixNano(),
		Address:       p.address,
		Configuration: p.configuration(),
		Authority: &meshpb.OperatorAuthority{
			TrustDomain: p.authority.TrustDomain().Name(), RootSha256: sum[:],
			RootNotBeforeNs: root.NotBefore.UnixNano(), RootNotAfterNs: root.NotAfter.UnixNano(), Issuer: p.issuer(), Roots: uint32(len(p.authority.Roots())),
		},
		Nodes: nodesOf(p.discovery), Waypoints: waypointsOf(p.discovery),
		Pods:     podsOf(p.trust.Server),
		Policies: policies, PoliciesLeftOut: uint32(leftOut),
		ApiServer: apiServer,
		Federated: federation.Reachable(p.federation.Known()),
	}, nil
}

func nodesOf(server *discovery.Server) []*meshpb.OperatorNode {
	var nodes []*meshpb.OperatorNode
	for _, n := range server.Nodes() {
		nodes = append(nodes, nodeOf(n.Node, &n))
	}
	return nodes
}

// waypointsOf has those that are connected: pods that are gone do not come back.
func waypointsOf(server *discovery.Server) []*meshpb.OperatorNode {
	var pods []*meshpb.OperatorNode
	for _, w := range server.Waypoints() {
		if w.Connected > 0 {
			pods = append(pods, nodeOf(w.Waypoint.String()+"/"+w.Replica, &w))
		}
	}
	return pods
}

func nodeOf(name string, n *discovery.NodeStatus) *meshpb.OperatorNode {
	return &meshpb.OperatorNode{Name: name, Connected: n.Connected > 0, SinceNs: meshpb.Nanos(n.Since), Revision: n.Revision, Epoch: n.Epoch,
		AppliedNs: meshpb.Nanos(n.AppliedAt), Error: n.LastError, BehindNs: int64(n.Behind())}
}

// podsOf is what agents have reported of their pods.
func podsOf(server *trustfeed.Server) []*meshpb.NodePods {
	var all []*meshpb.NodePods
	for _, r := range server.Reports() {
		if r.Report != nil {
			all = append(all, &meshpb.NodePods{Node: r.Node, Amiss: r.Report.GetPodsAmiss(), ReportedNs: meshpb.Nanos(r.Received), Gone: !r.Connected})
		}
	}
	return all
}

// folderConfiguration says what is served of a folder.
func folderConfiguration(folder string, s publish.Status) *meshpb.OperatorConfiguration {
	source := "folder"
	if s.FromLastGood {
		source = "last-good"
	}
	return &meshpb.OperatorConfiguration{
		Folder: folder, Revision: s.Revision, Epoch: s.Epoch, AppliedNs: meshpb.Nanos(s.Applied),
		Workloads: uint32(s.Workloads), Services: uint32(s.Services), Policies: uint32(s.Policies),
		Source: source, Problems: s.Problems, RefusedSinceNs: meshpb.Nanos(s.Refused), Warnings: s.Warnings,
	}
}

// clusterConfiguration says what is served of a cluster. What is refused of
// single objects are no problems here: the others are in force.
func clusterConfiguration(now publish.Outcome) *meshpb.OperatorConfiguration {
	out := &meshpb.OperatorConfiguration{Source: "kubernetes"}
	if now.Err != nil {
		out.Problems = []string{now.Err.Error()}
	}
	for _, p := range now.Refused {
		out.Refusals = append(out.Refusals, p.Error())
	}
	out.Warnings = slices.Clone(out.Refusals)
	for _, p := range now.Warnings {
		out.Warnings = append(out.Warnings, p.Error())
	}
	if now.Snapshot != nil {
		view := now.Snapshot.View()
		out.Revision, out.Epoch, out.AppliedNs = view.Revision(), now.Snapshot.Epoch(), meshpb.Nanos(now.Published)
		out.Workloads, out.Services, out.Policies = uint32(len(view.Workloads())), uint32(len(view.Services())), uint32(len(view.Policies()))
	}
	return out
}

func errNoTokens() error {
	return status.Error(codes.FailedPrecondition, "this operator has no join tokens: on Kubernetes, agents join by their pods' service account tokens")
}

// CreateJoinToken implements meshpb.OperatorAdminServer.
func (a *adminService) CreateJoinToken(_ context.Context, req *meshpb.CreateJoinTokenRequest) (*meshpb.CreateJoinTokenResponse, error) {
	p := a.parts
	if p.tokens == nil {
		return nil, errNoTokens()
	}
	lifetime := cmp.Or(time.Duration(req.GetLifetimeSeconds())*time.Second, defaultTokenLifetime)
	if seconds := req.GetLifetimeSeconds(); seconds < 0 || seconds > int64(maxTokenLifetime/time.Second) {
		return nil, status.Errorf(codes.InvalidArgument, "lifetime of %d s: between 1 s and %v is possible", seconds, maxTokenLifetime)
	}
	// The operator proves itself by this root, during a rotation too.
	root := p.authority.Keyring().Own.Pin()
	token, err := jointoken.New(p.authority.TrustDomain(), req.GetNode(), p.cfg.Advertise, root, time.Now().Add(lifetime))
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "create join token: %v", err)
	}
	text, err := token.Text()
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "create join token: %v", err)
	}
	if err := p.tokens.Add(token); err != nil {
		return nil, status.Errorf(codes.Internal, "create join token: %v", err)
	}
	p.cfg.Logger.Info("join token created", "token", token.ID(), "node", token.Node, "expires", token.Expires)
	return &meshpb.CreateJoinTokenResponse{Token: text, Id: token.ID(), ExpiresNs: token.Expires.UnixNano()}, nil
}

// ListJoinTokens implements meshpb.OperatorAdminServer.
func (a *adminService) ListJoinTokens(context.Context, *meshpb.ListJoinTokensRequest) (*meshpb.ListJoinTokensResponse, error) {
	if a.parts.tokens == nil {
		return nil, errNoTokens()
	}
	records, err := a.parts.tokens.List()
	if err != nil {
		return nil, status.Errorf(codes.Internal, "list join tokens: %v", err)
	}
	list := &meshpb.ListJoinTokensResponse{}
	for _, r := range records {
		t := &meshpb.JoinToken{Id: r.ID, Node: r.Node, CreatedNs: meshpb.Nanos(r.Created), ExpiresNs: meshpb.Nanos(r.Expires), State: r.State(time.Now())}
		if r.End != nil {
			t.EndedNs = meshpb.Nanos(r.End.At)
		}
		list.Tokens = append(list.Tokens, t)
	}
	return list, nil
}

// RevokeJoinToken implements meshpb.OperatorAdminServer.
func (a *adminService) RevokeJoinToken(_ context.Context, req *meshpb.RevokeJoinTokenRequest) (*meshpb.RevokeJoinTokenResponse, error) {
	if a.parts.tokens == nil {
		return nil, errNoTokens()
	}
	if err := a.parts.tokens.Revoke(req.GetId()); err != nil {
		if errors.Is(err, jointoken.ErrUnknown) {
			return nil, status.Errorf(codes.NotFound, "revoke join token: %v", err)
		}
		return nil, status.Errorf(codes.FailedPrecondition, "revoke join token: %v", err)
	}
	a.parts.cfg.Logger.Info("join token revoked", "token", req.GetId())
	return &meshpb.RevokeJoinTokenResponse{}, nil
}
