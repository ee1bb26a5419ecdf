package operator

import (
	"context"
	"log/slog"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/identity"
	"github.com/heddle-mesh/heddle/internal/identity/nodeauth"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/operator/report"
)

// askPeer bounds how long a leader waits for another replica.
const askPeer = 2 * time.Second

// peerService answers other replicas on the agents' port: which nodes are
// connected, what they have applied, and which certificates they report. Only the operator's own identity may
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
	parts *clusterParts

	conns struct {
		sync.Mutex
		byAddress map[string]*grpc.ClientConn
	}
}

func newPeers(p *clusterParts) *peers {
	all := &peers{parts: p}
	all.conns.byAddress = map[string]*grpc.ClientConn{}
	return all
}

// nodes returns what all nodes have acknowledged and reported, to this replica and to
// the others. A replica that does not answer is left out: its nodes count as they
// were acknowledged elsewhere.
func (a *peers) nodes(ctx context.Context) []report.Node {
	newest := map[string]*meshpb.OperatorNode{}
	take := func(nodes []*meshpb.OperatorNode) {
		for _, n := range nodes {
			if known := newest[n.GetName()]; known == nil || known.GetAppliedNs() < n.GetAppliedNs() {
				newest[n.GetName()] = n
			}
		}
	}
	take(nodesOf(a.parts.discovery))
	pods := podsOf(a.parts.trust)
	for _, r := range askAll(ctx, a, func(ctx context.Context, c meshpb.OperatorAdminClient) (*meshpb.OperatorState, error) {
		return c.Status(ctx, &meshpb.OperatorStateRequest{})
	}) {
		r.logFailure(a.parts.cfg.Logger)
		take(r.answer.GetNodes()) // nil, which has nothing, of one that does not answer
		pods = append(pods, r.answer.GetPods()...)
	}
	return acknowledged(slices.Collect(maps.Values(newest)), pods)
}

// acknowledged is what nodes have applied, with the newest of what was reported of each
// one's pods.
func acknowledged(nodes []*meshpb.OperatorNode, pods []*meshpb.NodePods) []report.Node {
	newest := map[string]*meshpb.NodePods{}
	for _, p := range pods {
		if known := newest[p.GetNode()]; known == nil || known.GetReportedNs() < p.GetReportedNs() {
			newest[p.GetNode()] = p
		}
	}
	all := make([]report.Node, 0, len(nodes))
	for _, n := range nodes {
		all = append(all, report.Node{Name: n.GetName(), Revision: n.GetRevision(), Epoch: n.GetEpoch(), Amiss: newest[n.GetName()].GetAmiss()})
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

// answered is what one replica has answered, or why it has not.
type answered[T any] struct {
	address string
	answer  T
	err     error
	unasked bool // for err: it is this replica's
}

// logFailure says why there is no answer.
func (a *answered[T]) logFailure(logger *slog.Logger) {
	switch {
	case a.unasked:
		logger.Warn("other replica cannot be asked", "address", a.address, "error", a.err)
	case a.err != nil: // it may just have ended
		logger.Debug("other replica does not answer", "address", a.address, "error", a.err)
	}
}

// askAll asks the other replicas at once, and waits for each.
func askAll[T any](ctx context.Context, a *peers, ask func(context.Context, meshpb.OperatorAdminClient) (T, error)) []answered[T] {
	addresses := a.addresses()
	all := make([]answered[T], len(addresses))
	var wg sync.WaitGroup
	for i, address := range addresses {
		wg.Go(func() {
			r := &all[i]
			r.address = address
			conn, err := a.conn(address)
			if err != nil {
				r.err, r.unasked = err, true
				return
			}
			ctx, cancel := context.WithTimeout(ctx, askPeer)
			defer cancel()
			r.answer, r.err = ask(ctx, meshpb.NewOperatorAdminClient(conn))
		})
	}
	wg.Wait()
	a.closeOthers(addresses)
	return all
}

func (a *peers) conn(address string) (*grpc.ClientConn, error) {
	a.conns.Lock()
	defer a.conns.Unlock()
	if conn := a.conns.byAddress[address]; conn != nil {
		return conn, nil
	}
	authority := a.parts.authority
	id := identity.OperatorID(authority.TrustDomain())
	conn, err := grpc.NewClient(address, grpc.WithNoProxy(), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20)),
		grpc.WithTransportCredentials(nodeauth.NewClientCredentials(authority.Own, authority, id)))
	if err != nil {
		return nil, err
	}
	a.conns.byAddress[address] = conn
	return conn, nil
}

// closeOthers ends the connections to all but these addresses.
func (a *peers) closeOthers(keep []string) {
	kept := map[string]bool{}
	for _, address := range keep {
		kept[address] = true
	}
	a.conns.Lock()
	defer a.conns.Unlock()
	for address, conn := range a.conns.byAddress {
		if !kept[address] {
			// Nothing is lost with a connection that fails to close.
			_ = conn.Close()
			delete(a.conns.byAddress, address)
		}
	}
}
