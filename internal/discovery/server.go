package discovery

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	"github.com/heddle-mesh/heddle/internal/discovery/resources"
	"github.com/heddle-mesh/heddle/internal/discovery/turns"
	"github.com/heddle-mesh/heddle/internal/drain"
)

// Caller is who a stream comes from.
type Caller struct {
	// Node is the authenticated name: the only one the caller may ask for.
	Node string
	// Until is when the proof of it expires and the stream ends; zero: never.
	Until time.Time
}

// ServerConfig says how a Server serves.
type ServerConfig struct {
	// Authenticate returns the caller of a stream, from its context's peer.
	Authenticate func(ctx context.Context) (Caller, error)
	// Coalesce is how long a stream waits after a change for more of them;
	// 50 ms when zero.
	Coalesce time.Duration
	// AckTimeout is how long a node may take to answer a message before its
	// stream is ended; 30 s when zero.
	AckTimeout time.Duration
	Logger     *slog.Logger
}

// NodeStatus is what the server knows of one node's agent.
type NodeStatus struct {
	Node string
	// Connected is the number of live streams: 2 for a moment while one agent
	// takes over from another.
	Connected int
	// Since is when the newest stream began, or when the last one ended.
	Since time.Time
	// Revision and Epoch are the newest that the node has applied; zero until
	// it says so.
	Revision string
	Epoch    uint64
	// AppliedAt is when it said so.
	AppliedAt time.Time
	// LastError is the node's newest refusal; "" after it applied one.
	LastError string
}

// Server streams Snapshots to agents. It implements the delta variant of
// Envoy's AggregatedDiscoveryService.
type Server struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	cfg ServerConfig

	current struct {
		sync.Mutex
		snapshot *Snapshot // nil until the first Publish
		changed  chan struct{}
	}
	nodes struct {
		sync.Mutex
		byName map[string]*NodeStatus
	}
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

// maxNodes bounds the memory for nodes that are gone.
const maxNodes = 20_000

// NewServer returns a server without a snapshot: streams wait for the first.
func NewServer(cfg ServerConfig) (*Server, error) {
	if cfg.Authenticate == nil || cfg.Logger == nil {
		return nil, errors.New("new discovery server: Authenticate and Logger are needed")
	}
	cfg.Coalesce = cmp.Or(cfg.Coalesce, 50*time.Millisecond)
	cfg.AckTimeout = cmp.Or(cfg.AckTimeout, 30*time.Second)
	s := &Server{cfg: cfg, syncing: turns.New(maxSyncing, maxSyncingOfNode), streams: drain.New()}
	s.current.changed = make(chan struct{})
	s.nodes.byName = map[string]*NodeStatus{}
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
	close(s.current.changed)
	s.current.changed = make(chan struct{})
}

// newest returns the snapshot to stream, nil before the first, and a channel
// that is closed when there is a newer one.
func (s *Server) newest() (*Snapshot, <-chan struct{}) {
	s.current.Lock()
	defer s.current.Unlock()
	return s.current.snapshot, s.current.changed
}

// Drain ends every stream with a status that makes agents connect again,
// refuses new ones, and waits until the last has ended.
func (s *Server) Drain() { s.streams.Drain() }

// Nodes returns the status of every node seen, sorted by name.
func (s *Server) Nodes() []NodeStatus {
	s.nodes.Lock()
	defer s.nodes.Unlock()
	all := make([]NodeStatus, 0, len(s.nodes.byName))
	for _, n := range s.nodes.byName {
		all = append(all, *n)
	}
	slices.SortFunc(all, func(a, b NodeStatus) int { return cmp.Compare(a.Node, b.Node) })
	return all
}

func (s *Server) updateNode(node string, update func(*NodeStatus)) {
	s.nodes.Lock()
	defer s.nodes.Unlock()
	n := s.nodes.byName[node]
	if n == nil {
		if len(s.nodes.byName) >= maxNodes {
			s.forgetNodeLocked()
		}
		n = &NodeStatus{Node: node}
		s.nodes.byName[node] = n
	}
	update(n)
}

// forgetNodeLocked makes room by forgetting the node that has been away
// longest. The caller holds nodes.
func (s *Server) forgetNodeLocked() {
	oldest := ""
	for name, n := range s.nodes.byName {
		if n.Connected == 0 && (oldest == "" || n.Since.Before(s.nodes.byName[oldest].Since)) {
			oldest = name
		}
	}
	delete(s.nodes.byName, oldest)
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
	s.updateNode(caller.Node, func(n *NodeStatus) { n.Connected++; n.Since = time.Now() })
	defer s.updateNode(caller.Node, func(n *NodeStatus) {
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
