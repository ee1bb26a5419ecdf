package admin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/admin/rootsocket"
	"github.com/heddle-mesh/heddle/internal/flow"
	"github.com/heddle-mesh/heddle/internal/flow/history"
)

// maxWatchers bounds the watchers of one agent: each record wakes each of them.
const maxWatchers = 64

// maxLast bounds what one watcher asks for of the past.
const maxLast = 1 << 20

// Agent is what an agent tells about itself. Its methods are called from
// several goroutines at once.
type Agent interface {
	// Status returns everything but Flows, which the Server fills in.
	Status(context.Context) (*meshpb.AgentStatus, error)
	// Connections returns the live connections: their duration and bytes so
	// far.
	Connections(context.Context) ([]flow.Record, error)
	// Prove reads the kernel's counters of one pod, NAMESPACE/NAME, or of all
	// for "". A pod that the node does not have is an error that matches
	// fs.ErrNotExist.
	Prove(ctx context.Context, workload string) (*meshpb.ProveResponse, error)
}

// History is what an agent keeps of the past. Read calls yield with each summary of
// the hours that ended after since.
type History interface {
	Read(ctx context.Context, since time.Time, yield func(*meshpb.FlowSummary) error) (*meshpb.HistoryCoverage, error)
}

// Config says what a Server serves. Every field is needed but Node and History.
type Config struct {
	// Node is the node's name, as the history has it.
	Node string
	// History is nil for an agent that keeps none.
	History History
	// Socket is the path of the unix socket; its folder must exist.
	Socket string
	Ring   *flow.Ring
	Agent  Agent
	Log    *slog.Logger
}

// Server has the agent's services.
type Server struct {
	meshpb.UnimplementedFlowsServer
	meshpb.UnimplementedAdminServer
	cfg      Config
	watchers atomic.Int64
}

// NewServer returns a Server; Run starts it.
func NewServer(cfg Config) (*Server, error) {
	if cfg.Socket == "" || cfg.Ring == nil || cfg.Agent == nil || cfg.Log == nil {
		return nil, errors.New("admin server: Socket, Ring, Agent and Log must be set")
	}
	return &Server{cfg: cfg}, nil
}

// Run serves until ctx is done. It blocks.
func (s *Server) Run(ctx context.Context) error {
	l, err := rootsocket.Listen(s.cfg.Socket, s.cfg.Log)
	if err != nil {
		return fmt.Errorf("admin socket: %w", err)
	}
	return serveOn(ctx, l, s.register)
}

// RunInPlace is Run that takes the place of another Server's socket, which goes
// on with the calls that it has. When placed is not nil, it is closed as soon as
// new calls come here.
func (s *Server) RunInPlace(ctx context.Context, placed chan<- struct{}) error {
	l, err := rootsocket.Replace(s.cfg.Socket, s.cfg.Log)
	if err != nil {
		return fmt.Errorf("admin socket: %w", err)
	}
	if placed != nil {
		close(placed)
	}
	return serveOn(ctx, l, s.register)
}

func (s *Server) register(g *grpc.Server) {
	meshpb.RegisterFlowsServer(g, s)
	meshpb.RegisterAdminServer(g, s)
}

// Watch implements meshpb.FlowsServer.
func (s *Server) Watch(req *meshpb.WatchFlowsRequest, stream grpc.ServerStreamingServer[meshpb.WatchFlowsResponse]) error {
	filter, err := flow.FilterFromProto(req.GetFilter())
	if err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	last := int(min(req.GetLast(), maxLast))
	if !req.GetFollow() {
		for _, r := range s.cfg.Ring.Last(last, filter) {
			if err := stream.Send(&meshpb.WatchFlowsResponse{Flow: r.ToProto()}); err != nil {
				return err
			}
		}
		return nil
	}
	defer s.watchers.Add(-1)
	if s.watchers.Add(1) > maxWatchers {
		return status.Errorf(codes.ResourceExhausted, "%d watchers already: end one of them first", maxWatchers)
	}
	// The headers tell the client that it misses nothing from now on.
	if err := stream.SendHeader(nil); err != nil {
		return err
	}
	for entry := range s.cfg.Ring.Watch(stream.Context(), filter, last) {
		response := &meshpb.WatchFlowsResponse{Lost: entry.Lost}
		if entry.Record != nil {
			response.Flow = entry.Record.ToProto()
		}
		if err := stream.Send(response); err != nil {
			return err
		}
	}
	return nil
}

// History implements meshpb.FlowsServer.
func (s *Server) History(req *meshpb.HistoryRequest, stream grpc.ServerStreamingServer[meshpb.HistoryResponse]) error {
	if s.cfg.History == nil {
		return status.Error(codes.FailedPrecondition, history.ErrNone.Error())
	}
	var since time.Time
	if ns := req.GetSinceNs(); ns != 0 {
		since = time.Unix(0, ns)
	}
	send := func(summary *meshpb.FlowSummary) error { return stream.Send(&meshpb.HistoryResponse{Summary: summary}) }
	totals := history.NewTotals(send)
	if req.GetTotal() {
		send = totals.Add
	}
	coverage, err := s.cfg.History.Read(stream.Context(), since, send)
	if errors.Is(err, history.ErrNone) {
		return status.Error(codes.FailedPrecondition, err.Error())
	}
	if err != nil {
		return fmt.Errorf("history: %w", err)
	}
	live, err := s.cfg.Agent.Connections(stream.Context())
	if err != nil {
		return fmt.Errorf("connections: %w", err)
	}
	now := time.Now()
	for i := range live {
		if summary, ok := history.Summarize(&live[i], now); ok {
			if err := send(summary); err != nil {
				return err
			}
		}
	}
	if err := totals.Flush(); err != nil {
		return err
	}
	coverage.Node = s.cfg.Node
	return stream.Send(&meshpb.HistoryResponse{Coverage: coverage})
}

// Status implements meshpb.AdminServer.
func (s *Server) Status(ctx context.Context, _ *meshpb.StatusRequest) (*meshpb.AgentStatus, error) {
	st, err := s.cfg.Agent.Status(ctx)
	if err != nil {
		return nil, fmt.Errorf("status: %w", err)
	}
	st.Flows = &meshpb.FlowStatus{Records: s.cfg.Ring.Added(), Overwritten: s.cfg.Ring.Overwritten(), Lost: s.cfg.Ring.Lost()}
	return st, nil
}

// Connections implements meshpb.AdminServer.
func (s *Server) Connections(ctx context.Context, req *meshpb.ConnectionsRequest) (*meshpb.ConnectionsResponse, error) {
	filter, err := flow.FilterFromProto(req.GetFilter())
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	live, err := s.cfg.Agent.Connections(ctx)
	if err != nil {
		return nil, fmt.Errorf("connections: %w", err)
	}
	response := &meshpb.ConnectionsResponse{}
	for i := range live {
		if filter.Match(&live[i]) {
			response.Connections = append(response.Connections, live[i].ToProto())
		}
	}
	return response, nil
}

// Prove implements meshpb.AdminServer.
func (s *Server) Prove(ctx context.Context, req *meshpb.ProveRequest) (*meshpb.ProveResponse, error) {
	response, err := s.cfg.Agent.Prove(ctx, req.GetWorkload())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, status.Errorf(codes.NotFound, "no pod %s is enrolled on this node", req.GetWorkload())
	}
	if err != nil {
		return nil, fmt.Errorf("prove: %w", err)
	}
	return response, nil
}
