// Package cni is the agent's end of the cluster's container network interface:
// it answers heddle-cni, which waits beside every new pod of the node, knows
// where the node's pods run, and keeps the list of namespaces by which new pods
// are judged while there is no agent. It does not know how a pod is enrolled
// (Enroller), nor how the runtime is asked (Runtime); what puts heddle-cni into
// the cluster's configuration is package chain.
//
// A Server is safe for concurrent use; Run and Follow block, and wait for what they
// began.
package cni

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/heddle-mesh/heddle/agent/netns"
	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/admin/rootsocket"
	"github.com/heddle-mesh/heddle/internal/cniwire"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// Enroller enrolls the pods whose place is known and which the configuration
// has in the mesh. It is safe for concurrent use.
type Enroller interface {
	// Await returns when the pod is enrolled in this network namespace, its gate
	// attached and proven, or with the reason why that did not work.
	Await(ctx context.Context, key mesh.Key, netNS string) error
}

// Runtime knows the sandboxes that run on the node.
type Runtime interface {
	// Running returns the pods that have a network namespace of their own, each
	// verified by the kernel: not what a process says. An error means that
	// nothing can be said about the node as a whole.
	Running(ctx context.Context) ([]Place, error)
}

// Config is what a Server works with. Node, Store, Places, Enroller and Log must
// be set.
type Config struct {
	Node string
	// Socket is where heddle-cni asks, List the list of namespaces.
	Socket, List string
	// Pass are the namespaces whose pods never wait: those without which neither
	// the cluster nor Heddle comes up.
	Pass     []string
	Store    *mesh.Store
	Places   *Places
	Enroller Enroller
	// Runtime is asked at the start, now and then, and while a pod of the mesh is not
	// known to run; nil for none, as where every pod is named by a path.
	Runtime Runtime
	// Current returns why the configuration may be out of date; nil when the
	// operator has confirmed it. A nil func means that it always has.
	Current func() error
	// AtOnce is how many questions are worked on at a time; 256 when zero. The
	// others wait for their turn, in the order of their coming.
	AtOnce int
	// OutsideWait is how long a pod that the configuration does not have is
	// waited for in a namespace that is not enrolled; 5 s when zero: an operator that
	// is there tells of every pod, and one that lags tells of it late.
	OutsideWait time.Duration
	// ScanEvery is the pause between two looks at the runtime; 30 s when zero.
	ScanEvery time.Duration
	// FirstLooks is how long after the start it is looked every second; 1 min when
	// zero: what another agent has just answered for is shown by the runtime a moment
	// later, and a hand-over waits for it.
	FirstLooks time.Duration
	Log        *slog.Logger
}

// Server answers heddle-cni.
type Server struct {
	cfg   Config
	home  netns.ID // the host's, which is no pod's
	list  *namespaceList
	turns chan struct{}
	look  chan struct{} // capacity 1: asks for a look at the runtime
}

// New reads the list of namespaces that an earlier agent left. It must run in
// the network namespace of the node.
func New(cfg Config) (*Server, error) {
	cfg.Socket, cfg.List = cmp.Or(cfg.Socket, cniwire.DefaultSocket), cmp.Or(cfg.List, cniwire.DefaultList)
	cfg.AtOnce = cmp.Or(cfg.AtOnce, 256)
	cfg.OutsideWait = cmp.Or(cfg.OutsideWait, 5*time.Second)
	cfg.ScanEvery, cfg.FirstLooks = cmp.Or(cfg.ScanEvery, 30*time.Second), cmp.Or(cfg.FirstLooks, time.Minute)
	if cfg.Current == nil {
		cfg.Current = func() error { return nil }
	}
	home, err := netns.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, fmt.Errorf("open node's network namespace: %w", err)
	}
	s := &Server{cfg: cfg, home: home.ID(), list: newNamespaceList(cfg.List, cfg.Store, cfg.Log)}
	s.turns, s.look = make(chan struct{}, cfg.AtOnce), make(chan struct{}, 1)
	return s, home.Close()
}

// Check says for the agent's status whether the list of namespaces is on disk.
func (s *Server) Check() *meshpb.Check {
	check := &meshpb.Check{Name: "list of namespaces", Ok: true, Detail: "on disk"}
	if err := s.list.problem(); err != nil {
		check.Ok, check.Detail = false, "while no agent runs, new pods are judged by an older one: "+err.Error()
		check.Remedy = "make room in the agent's state directory, or mend its disk: the agent tries again by itself"
	}
	return check
}

// Run answers heddle-cni and keeps the list until ctx is done, and returns nil
// then; pods that wait are told to come again. One agent of a node may.
//
// takeOver takes the socket from another agent, which may serve it still.
func (s *Server) Run(ctx context.Context, takeOver bool) error {
	if err := os.MkdirAll(filepath.Dir(s.cfg.Socket), 0o755); err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	listen := rootsocket.Listen
	if takeOver {
		listen = rootsocket.Replace
	}
	l, err := listen(s.cfg.Socket, s.cfg.Log)
	if err != nil {
		return fmt.Errorf("serve heddle-cni: %w", err)
	}
	var parts sync.WaitGroup
	defer parts.Wait()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	defer context.AfterFunc(ctx, func() { _ = l.Close() })() // Accept says so
	parts.Go(func() { s.list.run(ctx) })
	for {
		// The turn comes first: questions beyond it wait in the socket's backlog.
		select {
		case s.turns <- struct{}{}:
		case <-ctx.Done():
			return nil
		}
		conn, err := l.Accept()
		if ctx.Err() != nil {
			if err == nil {
				_ = conn.Close() // it asks again
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("serve heddle-cni: %w", errors.Join(err, l.Close()))
		}
		parts.Go(func() {
			defer func() { <-s.turns }()
			s.converse(ctx, conn)
		})
	}
}

// What one conversation may take: the question, the work, the answer.
const (
	askTimeout    = 2 * time.Second
	maxTimeout    = 90 * time.Second
	answerTimeout = 2 * time.Second
)

// converse answers one question. Whoever goes away takes the question back.
func (s *Server) converse(ctx context.Context, conn net.Conn) {
	ctx, cancel := context.WithCancel(ctx)
	var watch sync.WaitGroup
	defer watch.Wait()
	defer conn.Close()
	defer cancel()
	var request cniwire.Request
	err := errors.Join(conn.SetDeadline(time.Now().Add(askTimeout)), cniwire.Read(conn, &request))
	if err == nil {
		err = request.Validate()
	}
	response := cniwire.Response{Verdict: cniwire.Refused}
	if err != nil {
		response.Reason = err.Error()
	} else {
		ctx, stop := context.WithTimeout(ctx, min(cmp.Or(request.Timeout, cniwire.DefaultTimeout), maxTimeout))
		defer stop()
		// Nothing more comes but the end.
		if err := conn.SetDeadline(time.Time{}); err != nil {
			return
		}
		watch.Go(func() {
			_, _ = conn.Read(make([]byte, 1)) // whatever ends it, nobody waits any more
			cancel()
		})
		began := time.Now()
		response = s.answer(ctx, &request)
		s.cfg.Log.Info("pod of the container runtime", "op", request.Op, "workload", key(&request), "sandbox", request.ContainerID,
			"verdict", response.Verdict, "reason", response.Reason, "took", time.Since(began))
	}
	if conn.SetWriteDeadline(time.Now().Add(answerTimeout)) != nil {
		return
	}
	if err := cniwire.Write(conn, response); err != nil {
		s.cfg.Log.Warn("answer was not heard: the question comes again", "workload", key(&request), "error", err)
	}
}

func key(r *cniwire.Request) mesh.Key { return mesh.Key{Namespace: r.Namespace, Name: r.Name} }

func (s *Server) answer(ctx context.Context, r *cniwire.Request) cniwire.Response {
	switch r.Op {
	case cniwire.OpAdd:
		return s.add(ctx, r)
	case cniwire.OpCheck:
		return s.check(ctx, r)
	case cniwire.OpDel:
		// Its processes have ended: what serves it is drained meanwhile.
		s.cfg.Places.Forget(r.ContainerID)
	case cniwire.OpGC:
		s.Look()
	}
	return cniwire.Response{Verdict: cniwire.Outside}
}
