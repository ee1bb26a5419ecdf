package discovery

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"errors"
	"log/slog"
	"strconv"
	"sync"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/heddle-mesh/heddle/internal/discovery/resources"
	"github.com/heddle-mesh/heddle/internal/discovery/standing"
	"github.com/heddle-mesh/heddle/internal/discovery/turns"
	"github.com/heddle-mesh/heddle/internal/drain"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// Caller is who a stream comes from.
type Caller struct {
	// Node is the authenticated name: the only one the caller may ask for. That of a
	// waypoint is WaypointName's.
	Node string
	// Waypoint is set of a waypoint: its Service. Replica tells its pods apart.
	Waypoint mesh.Key
	Replica  string
	// Until is when the proof of it expires and the stream ends; zero: never.
	Until time.Time
}

// ServerConfig says how a Server serves.
type ServerConfig struct {
	// Authenticate returns the caller of a stream, from its context's peer.
	Authenticate func(ctx context.Context) (Caller, error)
	// Keys are those that verify what is streamed. Waypoints are told of them when they
	// connect; agents are when they join.
	Keys []ed25519.PublicKey
	// Roots returns what verifies the operator; waypoints are told of them as well.
	Roots func() []*x509.Certificate
	// RootsChanged, of whom Roots is set, returns a channel that is closed when Roots may
	// return others. The streams of waypoints end then, as these learn of them with the next.
	RootsChanged func() <-chan struct{}
	// Coalesce is how long a stream waits after a change for more of them;
	// 50 ms when zero.
	Coalesce time.Duration
	// AckTimeout is how long a node may take to answer a message before its
	// stream is ended; 30 s when zero.
	AckTimeout time.Duration
	Logger     *slog.Logger
}

// NodeStatus is what the server knows of one node's agent, or of one pod of a waypoint.
type NodeStatus = standing.Status

// Server streams Snapshots to agents. It implements the delta variant of
// Envoy's AggregatedDiscoveryService.
type Server struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	cfg ServerConfig

	current struct {
		sync.Mutex
		snapshot *Snapshot // nil until the first Publish
		next     *standing.Next
	}
	nodes *standing.Book
	// syncing are the streams that are being sent much, by node, and those that wait.
	syncing *turns.Turns
	streams *drain.Streams
}

// What is on its way to agents is in the server's memory: that of all nodes that
// come at once, after a restart, would be more than it has. So no more than
// maxSyncing streams are sent much at a time, in the order in which they come, and no
// more than maxSyncingOfNode of one node, so that a node that is slow on purpose does
// not keep the others waiting. Much is more than muchChanges resources.
const (
	maxSyncing       = 48
	maxSyncingOfNode = 2
	muchChanges      = 256
)

// NewServer returns a server without a snapshot: streams wait for the first.
func NewServer(cfg ServerConfig) (*Server, error) {
	if cfg.Authenticate == nil || cfg.Logger == nil {
		return nil, errors.New("new discovery server: Authenticate and Logger are needed")
	}
	cfg.Coalesce = cmp.Or(cfg.Coalesce, 50*time.Millisecond)
	cfg.AckTimeout = cmp.Or(cfg.AckTimeout, 30*time.Second)
	s := &Server{cfg: cfg, syncing: turns.New(maxSyncing, maxSyncingOfNode), streams: drain.New(), nodes: standing.NewBook()}
	s.current.next = standing.NewNext()
	return s, nil
}

// Register adds the service to a gRPC server, which must have been made with
// ServerOptions.
func (s *Server) Register(r grpc.ServiceRegistrar) {
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(r, s)
}

// ServerOptions returns what a gRPC server needs to serve a Server, which fails
// without: the limits and the keepalive that the clients of this package expect, and
// a codec that sends what is encoded already.
func ServerOptions() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.MaxRecvMsgSize(2 * resources.MaxMessage),
		grpc.MaxConcurrentStreams(64),
		grpc.ForceServerCodecV2(newCodec()),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
	}
}

// Publish makes a snapshot the one that is streamed. Its epoch must be larger
// than that of the one before; Publish never blocks on a node.
func (s *Server) Publish(snapshot *Snapshot) {
	s.current.Lock()
	defer s.current.Unlock()
	s.current.snapshot = snapshot
	next := s.current.next
	s.current.next = standing.NewNext()
	s.nodes.Publish(next)
}

// newest returns the snapshot to stream, nil before the first, and what follows it.
func (s *Server) newest() (*Snapshot, *standing.Next) {
	s.current.Lock()
	defer s.current.Unlock()
	return s.current.snapshot, s.current.next
}

// Drain ends every stream with a status that makes agents connect again,
// refuses new ones, and waits until the last has ended.
func (s *Server) Drain() { s.streams.Drain() }

// Nodes returns the status of every node seen, sorted by name.
func (s *Server) Nodes() []NodeStatus {
	return s.nodes.All(func(n *NodeStatus) bool { return n.Waypoint == mesh.Key{} })
}

// Waypoints returns the status of every pod of a waypoint seen, sorted by name.
func (s *Server) Waypoints() []NodeStatus {
	return s.nodes.All(func(n *NodeStatus) bool { return n.Waypoint != mesh.Key{} })
}

func (s *Server) updateNode(c *Caller, update func(*NodeStatus)) {
	s.nodes.Update(c.Node, c.Replica, c.Waypoint, update)
}

// DeltaAggregatedResources serves one agent until it leaves, its proof of
// identity expires, it stops answering, or the server drains.
func (s *Server) DeltaAggregatedResources(stream grpc.BidiStreamingServer[discoveryv3.DeltaDiscoveryRequest, discoveryv3.DeltaDiscoveryResponse]) error {
	if !s.streams.Enter() {
		return drain.Err()
	}
	defer s.streams.Leave()
	caller, err := s.cfg.Authenticate(stream.Context())
	if err != nil {
		return status.Errorf(codes.Unauthenticated, "authenticate node: %v", err)
	}
	if caller.Node == "" {
		return status.Error(codes.Unauthenticated, "authenticate node: the name is empty")
	}
	log := s.cfg.Logger.With("node", caller.Node)
	if caller.Replica != "" {
		log = log.With("pod", caller.Replica)
	}
	s.updateNode(&caller, func(n *NodeStatus) {
		n.Connected++
		n.Since = time.Now()
		if n.Connected == 1 && n.BehindSince.IsZero() { // until it says what it has
			n.BehindSince = n.Since
		}
	})
	defer s.updateNode(&caller, func(n *NodeStatus) {
		if n.Connected--; n.Connected == 0 {
			n.Since = time.Now()
		}
	})
	log.Info("node connected")
	x := newServerStream(s, caller, stream, log)
	err = x.serve()
	log.Info("node disconnected", "reason", err)
	return err
}

// sendShared sends all that is shared, in bytes that are encoded once for all nodes. A
// node's own resources follow, and take the place of shared ones of the same names.
func (x *serverStream) sendShared(shared *resources.Shared, revision string) error {
	for k := range resources.KindCount {
		var full encoded
		size := 0
		for piece, err := range shared.Encoded(k) {
			if err != nil {
				return status.Error(codes.Internal, err.Error())
			}
			if size > 0 && size+len(piece) > resources.MaxPiece {
				if err := x.sendEncoded(full, k, revision); err != nil {
					return err
				}
				full, size = nil, 0
			}
			full, size = append(full, piece), size+len(piece)
		}
		if size == 0 {
			continue
		}
		if err := x.sendEncoded(full, k, revision); err != nil {
			return err
		}
	}
	return nil
}

// sendEncoded sends a message of encoded resources. The encodings of two messages, one
// after the other, are that of both merged.
func (x *serverStream) sendEncoded(full encoded, k resources.Kind, revision string) error {
	x.nonce++
	head, err := proto.Marshal(&discoveryv3.DeltaDiscoveryResponse{TypeUrl: k.TypeURL(), Nonce: strconv.FormatUint(x.nonce, 10), SystemVersionInfo: revision})
	if err != nil {
		return status.Error(codes.Internal, err.Error())
	}
	if err := x.stream.SendMsg(append(encoded{head}, full...)); err != nil {
		return err
	}
	return x.sent()
}

func (x *serverStream) send(msg *discoveryv3.DeltaDiscoveryResponse, revision string) error {
	x.nonce++
	msg.Nonce = strconv.FormatUint(x.nonce, 10)
	msg.SystemVersionInfo = revision
	if err := x.stream.Send(msg); err != nil {
		return err
	}
	return x.sent()
}
