package trustfeed

import (
	"bytes"
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/drain"
)

// Said is what the authority says of itself.
type Said struct {
	Roots  []*x509.Certificate
	Issuer *x509.Certificate
	// JWT is what verifies JWT-SVIDs; nil says nothing of it.
	JWT *meshpb.JWTKeys
}

// ServerConfig says what a Server says, and to whom. All fields but Federation and TellGated
// are needed.
type ServerConfig struct {
	// Authenticate returns the name of the node that calls; its error is a gRPC
	// status.
	Authenticate func(ctx context.Context) (string, error)
	// Authority returns what is said now, and a channel that is closed at the next
	// change.
	Authority func() (Said, <-chan struct{})
	// Federation returns what is said of other trust domains, nil while that is not known,
	// and a channel that is closed at the next change.
	Federation func() (*meshpb.Federation, <-chan struct{})
	// TellGated has agents say which pods are behind their gates.
	TellGated bool
	Logger    *slog.Logger
}

// Report is what a node's agent said last.
type Report struct {
	Node string
	// Connected is set while its stream lives. Since is when that began or ended.
	Connected bool
	Since     time.Time
	// Received is when Report came, before Since when that was on an earlier stream; zero
	// and nil when none did.
	Received time.Time
	Report   *meshpb.TrustReport
}

// Bounds of what a server keeps and does.
const (
	maxNodes = 20_000
	// spreadPerNode is how long one node's certificates take of all replicas
	// together: some tens at a thousand per second. leastSpread nodes are too few
	// to spread.
	spreadPerNode = 20 * time.Millisecond
	leastSpread   = 10
)

// Server tells agents, and keeps their reports in memory.
type Server struct {
	meshpb.UnimplementedTrustServer
	cfg ServerConfig

	state struct {
		sync.Mutex
		byNode map[string]*kept
		// changed is closed, and replaced, when a report has come or a stream has ended.
		changed chan struct{}
	}
	streams *drain.Streams
}

// kept is a node's report, and the newest of its streams: an agent that takes
// over from another has one while the other's still lives.
type kept struct {
	Report
	stream uint64
}

// NewServer checks the configuration.
func NewServer(cfg ServerConfig) (*Server, error) {
	if cfg.Authenticate == nil || cfg.Authority == nil || cfg.Logger == nil {
		return nil, errors.New("new trust server: Authenticate, Authority and Logger are needed")
	}
	if cfg.Federation == nil {
		cfg.Federation = func() (*meshpb.Federation, <-chan struct{}) { return nil, nil }
	}
	s := &Server{cfg: cfg, streams: drain.New()}
	s.state.byNode, s.state.changed = map[string]*kept{}, make(chan struct{})
	return s, nil
}

// Reports returns every node's, sorted by name. What they hold must not be
// changed.
func (s *Server) Reports() []Report {
	s.state.Lock()
	defer s.state.Unlock()
	all := make([]Report, 0, len(s.state.byNode))
	for _, k := range s.state.byNode {
		all = append(all, k.Report)
	}
	slices.SortFunc(all, func(a, b Report) int { return cmp.Compare(a.Node, b.Node) })
	return all
}

// Changed returns a channel that is closed when Reports may be different. Take it before
// Reports, so that nothing is missed between the two.
func (s *Server) Changed() <-chan struct{} {
	s.state.Lock()
	defer s.state.Unlock()
	return s.state.changed
}

// changedLocked wakes whoever waits for a change.
func (s *Server) changedLocked() {
	close(s.state.changed)
	s.state.changed = make(chan struct{})
}

// Drain ends the streams, refuses new ones, and waits.
func (s *Server) Drain() { s.streams.Drain() }

// Follow implements meshpb.TrustServer.
func (s *Server) Follow(stream grpc.BidiStreamingServer[meshpb.TrustReport, meshpb.TrustUpdate]) error {
	node, err := s.cfg.Authenticate(stream.Context())
	if err != nil {
		return err
	}
	if !s.streams.Enter() {
		return drain.Err()
	}
	defer s.streams.Leave()
	number := s.enter(node)
	defer s.leave(node, number)
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	received := make(chan error, 1)
	s.streams.Beside()
	go func() {
		defer s.streams.Leave()
		received <- s.receive(stream, node, number)
		cancel()
	}()
	var last *meshpb.TrustUpdate
	for {
		said, changed := s.cfg.Authority()
		federation, others := s.cfg.Federation()
		// Each update has a complete report for an answer: one that says nothing new, but for
		// how long to spread, is not worth that.
		update := s.update(said, federation)
		if !sameUpdate(last, update) {
			if err := stream.Send(update); err != nil {
				return err
			}
			last = update
		}
		select {
		case <-changed:
		case <-others:
		case <-ctx.Done():
			select {
			case err := <-received:
				return err
			default:
				return ctx.Err()
			}
		case <-s.streams.Begun():
			return drain.Err()
		}
	}
}

// sameUpdate says whether an agent that was told last, nil for nothing, would learn nothing new.
func sameUpdate(last, next *meshpb.TrustUpdate) bool {
	return last != nil && bytes.Equal(last.GetIssuer(), next.GetIssuer()) &&
		slices.EqualFunc(last.GetRoots(), next.GetRoots(), bytes.Equal) &&
		proto.Equal(last.GetFederation(), next.GetFederation()) && proto.Equal(last.GetJwt(), next.GetJwt())
}

func (s *Server) update(said Said, federation *meshpb.Federation) *meshpb.TrustUpdate {
	update := &meshpb.TrustUpdate{Issuer: said.Issuer.Raw, Federation: federation, Jwt: said.JWT, TellGated: s.cfg.TellGated}
	for _, root := range said.Roots {
		update.Roots = append(update.Roots, root.Raw)
	}
	s.state.Lock()
	defer s.state.Unlock()
	if n := len(s.state.byNode); n >= leastSpread {
		update.SpreadNs = int64(min(time.Duration(n)*spreadPerNode, maxSpread))
	}
	return update
}

// receive takes reports until the stream ends.
func (s *Server) receive(stream grpc.BidiStreamingServer[meshpb.TrustReport, meshpb.TrustUpdate], node string, number uint64) error {
	for {
		report, err := stream.Recv()
		if err != nil {
			return err
		}
		if len(report.GetRoots()) > 2*maxReported || len(report.GetCertificates()) > maxReported {
			return status.Errorf(codes.InvalidArgument, "report of %d roots and %d certificates, %d are possible", len(report.GetRoots()), len(report.GetCertificates()), maxReported)
		}
		if err := checkGated(report.GetGated()); err != nil {
			return status.Error(codes.InvalidArgument, err.Error())
		}
		s.state.Lock()
		if k := s.state.byNode[node]; k != nil && k.stream == number {
			k.Received, k.Report.Report = time.Now(), report
			s.changedLocked()
		}
		s.state.Unlock()
	}
}

// Bounds of what is said of one pod's gate, in bytes: names and UIDs as Kubernetes has them,
// and paths as Linux does.
const (
	maxGatedAddresses = 16
	maxGatedName      = 253
	maxGatedUID       = 253
	maxGatedPath      = 4096
)

// checkGated refuses what no agent says of its pods' gates.
func checkGated(gated *meshpb.GatedPods) error {
	if n := len(gated.GetPods()); n > maxReported {
		return fmt.Errorf("report of %d pods behind their gates, %d are possible", n, maxReported)
	}
	for _, p := range gated.GetPods() {
		if n := len(p.GetAddresses()); n > maxGatedAddresses {
			return fmt.Errorf("report of pod %.100q with %d addresses, %d are possible", p.GetName(), n, maxGatedAddresses)
		}
		if len(p.GetNamespace()) > maxGatedName || len(p.GetName()) > maxGatedName || len(p.GetUid()) > maxGatedUID || len(p.GetNetworkNamespace()) > maxGatedPath {
			return fmt.Errorf("report of pod %.100q with a namespace, name, UID and network namespace of %d, %d, %d and %d bytes, %d, %d, %d and %d are possible", p.GetName(),
				len(p.GetNamespace()), len(p.GetName()), len(p.GetUid()), len(p.GetNetworkNamespace()), maxGatedName, maxGatedName, maxGatedUID, maxGatedPath)
		}
		if i := slices.IndexFunc(p.GetAddresses(), func(a []byte) bool { return len(a) != 4 && len(a) != 16 }); i >= 0 {
			return fmt.Errorf("report of pod %.100q with an address of %d bytes, 4 and 16 are possible", p.GetName(), len(p.GetAddresses()[i]))
		}
	}
	return nil
}

func (s *Server) enter(node string) (number uint64) {
	s.state.Lock()
	defer s.state.Unlock()
	k := s.state.byNode[node]
	if k == nil {
		if len(s.state.byNode) >= maxNodes {
			s.forgetLocked()
		}
		k = &kept{Report: Report{Node: node}}
		s.state.byNode[node] = k
	}
	k.stream++
	k.Connected, k.Since = true, time.Now()
	s.changedLocked()
	return k.stream
}

func (s *Server) leave(node string, number uint64) {
	s.state.Lock()
	defer s.state.Unlock()
	if k := s.state.byNode[node]; k != nil && k.stream == number {
		k.Connected, k.Since = false, time.Now()
		s.changedLocked()
	}
}

// forgetLocked makes room by forgetting the node that has been away longest.
func (s *Server) forgetLocked() {
	oldest := ""
	for name, k := range s.state.byNode {
		if !k.Connected && (oldest == "" || k.Since.Before(s.state.byNode[oldest].Since)) {
			oldest = name
		}
	}
	delete(s.state.byNode, oldest)
}
