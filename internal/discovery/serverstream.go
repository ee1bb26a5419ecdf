package discovery

import (
	"context"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"slices"
	"strconv"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/heddle-mesh/heddle/internal/discovery/resources"
	"github.com/heddle-mesh/heddle/internal/discovery/standing"
	"github.com/heddle-mesh/heddle/internal/drain"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// acceptedHeader, sent when a subscription is accepted, names the node. With it, a waypoint
// is told what verifies the configuration, and the operator.
const (
	acceptedHeader = "heddle-node"
	keysHeader     = "heddle-configuration-key-bin"
	rootsHeader    = "heddle-root-bin"
)

// maxUnanswered is how many messages of a round may be on their way. It bounds
// what a slow agent makes the server buffer, and keeps the two ends from both
// waiting to write.
const maxUnanswered = 8

// serverStream is one agent's stream. One goroutine runs serve; a second one
// only receives.
type serverStream struct {
	server *Server
	caller Caller
	stream grpc.BidiStreamingServer[discoveryv3.DeltaDiscoveryRequest, discoveryv3.DeltaDiscoveryResponse]
	log    *slog.Logger

	requests chan *discoveryv3.DeltaDiscoveryRequest
	received chan error // why receiving ended
	expired  <-chan time.Time
	// roots are what a waypoint was told with its acceptance, and rerooted is closed when
	// there may be others.
	roots    []*x509.Certificate
	rerooted <-chan struct{}

	// held is what the agent has applied; heldCommit the version of the commit
	// that closed it.
	held       *resources.Held
	heldCount  int // of what the agent said it holds
	heldCommit string
	last       *nodeSet // what it was told last, applied or not
	// newer is set when the agent knows the newer kinds.
	newer      bool
	nonce      uint64
	unanswered int
	sizes      int // bytes of names and versions that the agent said it holds
}

func newServerStream(s *Server, caller Caller, stream grpc.BidiStreamingServer[discoveryv3.DeltaDiscoveryRequest, discoveryv3.DeltaDiscoveryResponse], log *slog.Logger) *serverStream {
	return &serverStream{server: s, caller: caller, stream: stream, log: log,
		requests: make(chan *discoveryv3.DeltaDiscoveryRequest), received: make(chan error, 1)}
}

// serve runs the stream. The receiving goroutine ends soon after serve has
// returned, because gRPC then cancels the stream's context; Drain waits for
// both.
func (x *serverStream) serve() error {
	ctx, cancel := context.WithCancel(x.stream.Context())
	defer cancel()
	x.server.streams.Beside()
	go x.receive(ctx)
	if !x.caller.Until.IsZero() {
		timer := time.NewTimer(time.Until(x.caller.Until))
		defer timer.Stop()
		x.expired = timer.C
	}
	if err := x.subscribe(); err != nil {
		return err
	}
	x.server.updateNode(&x.caller, func(n *NodeStatus) {
		if n.Connected == 1 && n.Commit != x.heldCommit { // of another replica, to which it was connected meanwhile
			n.Commit, n.BehindSince = x.heldCommit, time.Now()
		}
	})
	// The agent learns that it is connected before there is anything to send.
	if err := x.stream.SendHeader(x.accepted()); err != nil {
		return err
	}
	var done *Snapshot
	for {
		snapshot, next := x.server.newest()
		if snapshot != nil && snapshot != done {
			if err := x.round(snapshot, next, done == nil); err != nil {
				return err
			}
			done = snapshot
		}
		if err := x.idle(next.Published, x.server.cfg.Coalesce); err != nil {
			return err
		}
	}
}

// accepted is what is said when a subscription is.
func (x *serverStream) accepted() metadata.MD {
	header := metadata.Pairs(acceptedHeader, x.caller.Node)
	if !x.isWaypoint() {
		return header
	}
	for _, key := range x.server.cfg.Keys {
		header.Append(keysHeader, string(key))
	}
	if x.server.cfg.Roots != nil {
		x.roots, x.rerooted = x.server.roots()
		for _, root := range x.roots {
			header.Append(rootsHeader, string(root.Raw))
		}
	}
	return header
}

// roots returns what verifies the operator, and a channel that is closed when that may
// have changed.
func (s *Server) roots() (_ []*x509.Certificate, changed <-chan struct{}) {
	if s.cfg.RootsChanged != nil {
		changed = s.cfg.RootsChanged() // before they are read: none is missed
	}
	return s.cfg.Roots(), changed
}

// checkRoots ends the stream of a waypoint that was told other roots: one that learned of
// a new root after it signs could not connect again, and would never learn of it.
func (x *serverStream) checkRoots() error {
	now, changed := x.server.roots()
	x.rerooted = changed
	if slices.EqualFunc(now, x.roots, (*x509.Certificate).Equal) {
		return nil
	}
	return status.Error(codes.Unavailable, "the operator's roots have changed: connect again to learn of them")
}

func (x *serverStream) receive(ctx context.Context) {
	defer x.server.streams.Leave()
	for {
		req, err := x.stream.Recv()
		if err != nil {
			x.received <- err
			return
		}
		select {
		case x.requests <- req:
		case <-ctx.Done():
			return
		}
	}
}

// next returns the next request; it fails when the stream has to end.
func (x *serverStream) next(timeout <-chan time.Time) (*discoveryv3.DeltaDiscoveryRequest, error) {
	for {
		select {
		case req := <-x.requests:
			return req, nil
		case err := <-x.received:
			return nil, x.receiveEnded(err)
		case <-timeout:
			return nil, status.Error(codes.DeadlineExceeded, "agent does not answer")
		case <-x.expired:
			return nil, status.Error(codes.Unauthenticated, "the proof of who this is has expired: connect again with a newer one")
		case <-x.rerooted:
			if err := x.checkRoots(); err != nil {
				return nil, err
			}
		case <-x.server.streams.Begun():
			return nil, drain.Err()
		}
	}
}

func (x *serverStream) receiveEnded(err error) error {
	if errors.Is(err, io.EOF) {
		return status.Error(codes.Canceled, "agent closed the stream")
	}
	return err
}

// subscribe takes requests until the one for Commit, which comes last.
func (x *serverStream) subscribe() error {
	timer := time.NewTimer(x.server.cfg.AckTimeout)
	defer timer.Stop()
	var newest *resources.Shared
	if snapshot, _ := x.server.newest(); snapshot != nil {
		newest = snapshot.sharedBy(x.told())
	}
	x.held = resources.NewHeld(newest)
	kinds := resources.AgentKinds()
	if x.isWaypoint() {
		kinds = resources.WaypointKinds()
	}
	var subscribed [resources.KindCount]bool
	for first := true; ; first = false {
		req, err := x.next(timer.C)
		if err != nil {
			return err
		}
		if err := x.checkNode(req, first); err != nil {
			return err
		}
		k, err := resources.KindOf(req.GetTypeUrl())
		if err != nil {
			return status.Error(codes.InvalidArgument, err.Error())
		}
		if names := req.GetResourceNamesSubscribe(); len(names) != 1 || names[0] != "*" {
			return status.Errorf(codes.InvalidArgument, "subscribe to %s: only \"*\" is served", k)
		}
		if err := x.hold(k, req.GetInitialResourceVersions()); err != nil {
			return err
		}
		if k == resources.KindCommit {
			x.held.Seal()
			return x.checkSubscribed(kinds, &subscribed)
		}
		if !slices.Contains(kinds, k) {
			return status.Errorf(codes.InvalidArgument, "subscribe to %s: there is none for %s", k, x.caller.Node)
		}
		subscribed[k] = true
	}
}

// checkSubscribed notes which kinds the agent knows.
func (x *serverStream) checkSubscribed(kinds []resources.Kind, subscribed *[resources.KindCount]bool) error {
	x.newer = true
	for _, k := range kinds {
		switch {
		case subscribed[k]:
		case k.Newer():
			x.newer = false
		default:
			return status.Errorf(codes.InvalidArgument, "subscribe to %s before Commit", k)
		}
	}
	return nil
}

func (x *serverStream) isWaypoint() bool { return x.caller.Waypoint != mesh.Key{} }

func (x *serverStream) told() told {
	return told{node: x.caller.Node, newer: x.newer, waypoint: x.caller.Waypoint}
}

// checkNode holds the agent to its own name.
func (x *serverStream) checkNode(req *discoveryv3.DeltaDiscoveryRequest, first bool) error {
	if !first && req.GetNode() == nil {
		return nil
	}
	if asked := req.GetNode().GetId(); asked != x.caller.Node {
		return status.Errorf(codes.PermissionDenied, "node %q may not ask for the configuration of node %.100q", x.caller.Node, asked)
	}
	return nil
}

// hold notes what the agent says it has applied.
func (x *serverStream) hold(k resources.Kind, versions map[string]string) error {
	for name, version := range versions {
		x.sizes += len(name) + len(version)
		if x.sizes > resources.MaxSetBytes || x.heldCount >= resources.MaxSetSize || len(name) > resources.MaxName || len(version) > 64 {
			return status.Error(codes.ResourceExhausted, "initial resource versions exceed their bounds")
		}
		if k == resources.KindCommit {
			x.heldCommit = version
			continue
		}
		x.heldCount++
		x.held.Add(resources.Ref{Kind: k, Name: name, Version: version})
	}
	return nil
}

// idle waits for a change, and then for coalesce for more of them.
func (x *serverStream) idle(changed <-chan struct{}, coalesce time.Duration) error {
	var settled <-chan time.Time
	for {
		select {
		case <-changed:
			changed = nil
			timer := time.NewTimer(coalesce)
			defer timer.Stop()
			settled = timer.C
		case <-settled:
			return nil
		case req := <-x.requests:
			if err := x.checkNode(req, false); err != nil {
				return err
			}
			if nonce := req.GetResponseNonce(); nonce != "" {
				return status.Errorf(codes.InvalidArgument, "answer to message %.20q, and none is expected: answers come in order", nonce)
			}
			return status.Errorf(codes.InvalidArgument, "unexpected request for %.100q: subscriptions do not change on a stream", req.GetTypeUrl())
		case err := <-x.received:
			return x.receiveEnded(err)
		case <-x.expired:
			return status.Error(codes.Unauthenticated, "the proof of who this is has expired: connect again with a newer one")
		case <-x.rerooted:
			if err := x.checkRoots(); err != nil {
				return err
			}
		case <-x.server.streams.Begun():
			return drain.Err()
		}
	}
}

// round brings the agent to a snapshot and waits for its answer. A refusal is
// noted and does not end the stream: what the agent holds stays as it was, and
// the next snapshot starts from there.
func (x *serverStream) round(snapshot *Snapshot, next *standing.Next, first bool) error {
	set := snapshot.forNode(x.told(), x.last)
	x.last = set
	whole := x.held.Nothing()
	diff := resources.Changes{Upserts: set.Alone()}
	if !whole {
		diff = resources.Difference(x.held, set.Own)
	}
	if !whole && diff.Empty() && x.heldCommit == set.commit.Version() && !first {
		x.server.updateNode(&x.caller, func(n *NodeStatus) { n.BehindSince = next.BehindSince() })
		return nil
	}
	if whole || len(diff.Upserts) > muchChanges {
		turn := x.server.syncing.Take(x.caller.Node)
		defer turn.End()
		if err := x.idle(turn.Begun(), 0); err != nil {
			return err
		}
	}
	began := time.Now()
	if whole {
		if err := x.sendShared(set.Shared, snapshot.view.Revision()); err != nil {
			return err
		}
	}
	if err := x.sendChanges(diff, snapshot.view.Revision()); err != nil {
		return err
	}
	last := &discoveryv3.DeltaDiscoveryResponse{TypeUrl: resources.KindCommit.TypeURL()}
	if whole || !diff.Empty() || x.heldCommit != set.commit.Version() {
		body, err := resources.EncodeCommit(&set.commit)
		if err != nil {
			return status.Error(codes.Internal, err.Error())
		}
		last.Resources = []*discoveryv3.Resource{{Name: resources.CommitName, Version: set.commit.Version(),
			Resource: &anypb.Any{TypeUrl: resources.KindCommit.TypeURL(), Value: body}}}
	}
	if err := x.send(last, snapshot.view.Revision()); err != nil {
		return err
	}
	refusal, err := x.awaitAnswers(0)
	if err != nil {
		return err
	}
	x.finish(set, next, refusal, time.Since(began))
	return nil
}

func (x *serverStream) finish(set *nodeSet, next *standing.Next, refusal string, took time.Duration) {
	if refusal != "" {
		x.log.Warn("node refused the configuration", "revision", set.commit.Revision, "epoch", set.commit.Epoch, "reason", refusal)
		x.server.updateNode(&x.caller, func(n *NodeStatus) { n.LastError = refusal })
		return
	}
	x.held, x.heldCommit = resources.HeldOf(set.Own), set.commit.Version()
	x.log.Debug("node applied the configuration", "revision", set.commit.Revision, "epoch", set.commit.Epoch, "took", took)
	x.server.updateNode(&x.caller, func(n *NodeStatus) {
		n.Revision, n.Epoch, n.AppliedAt, n.LastError = set.commit.Revision, set.commit.Epoch, time.Now(), ""
		n.Commit, n.BehindSince = x.heldCommit, next.BehindSince()
	})
}

// sendChanges sends the difference in messages below MaxMessage, one kind each.
func (x *serverStream) sendChanges(diff resources.Changes, revision string) error {
	var msg *discoveryv3.DeltaDiscoveryResponse
	size := 0
	flush := func() error {
		if msg == nil {
			return nil
		}
		full := msg
		msg, size = nil, 0
		return x.send(full, revision)
	}
	begin := func(k resources.Kind, more int) error {
		if msg != nil && (msg.TypeUrl != k.TypeURL() || size+more > resources.MaxPiece) {
			if err := flush(); err != nil {
				return err
			}
		}
		if msg == nil {
			msg = &discoveryv3.DeltaDiscoveryResponse{TypeUrl: k.TypeURL()}
		}
		size += more
		return nil
	}
	for _, r := range diff.Upserts {
		// 128 covers the tags and lengths, 2 type URLs' worth the Any's.
		if err := begin(r.Kind, len(r.Body)+len(r.Name)+len(r.Version)+len(r.Kind.TypeURL())+128); err != nil {
			return err
		}
		msg.Resources = append(msg.Resources, &discoveryv3.Resource{Name: r.Name, Version: r.Version,
			Resource: &anypb.Any{TypeUrl: r.Kind.TypeURL(), Value: r.Body}})
	}
	if err := flush(); err != nil {
		return err
	}
	for _, r := range diff.Removed {
		if err := begin(r.Kind, len(r.Name)+8); err != nil {
			return err
		}
		msg.RemovedResources = append(msg.RemovedResources, r.Name)
	}
	return flush()
}

// sent counts a message that was sent, and waits while too many are unanswered.
func (x *serverStream) sent() error {
	x.unanswered++
	if x.unanswered < maxUnanswered {
		return nil
	}
	// A refusal of a part is repeated in the answer to the commit.
	_, err := x.awaitAnswers(maxUnanswered - 1)
	return err
}

// awaitAnswers takes answers until at most this many messages are unanswered.
// It returns the reason in the last answer, "" when that accepted.
func (x *serverStream) awaitAnswers(atMost int) (refusal string, err error) {
	for x.unanswered > atMost {
		timer := time.NewTimer(x.server.cfg.AckTimeout)
		req, err := x.next(timer.C)
		timer.Stop()
		if err != nil {
			return "", err
		}
		if err := x.checkNode(req, false); err != nil {
			return "", err
		}
		want := x.nonce - uint64(x.unanswered) + 1
		if got, err := strconv.ParseUint(req.GetResponseNonce(), 10, 64); err != nil || got != want {
			return "", status.Errorf(codes.InvalidArgument, "answer to message %.20q, expected %d: answers come in order", req.GetResponseNonce(), want)
		}
		x.unanswered--
		refusal = ""
		if detail := req.GetErrorDetail(); detail != nil {
			refusal = truncate(detail.GetMessage(), 1000)
			if refusal == "" {
				refusal = "no reason given"
			}
		}
	}
	return refusal, nil
}

func truncate(s string, limit int) string {
	if len(s) > limit {
		return s[:limit] + "..."
	}
	return s
}
