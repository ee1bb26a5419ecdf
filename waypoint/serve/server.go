package serve

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/heddle-mesh/heddle/internal/eventloop"
	"github.com/heddle-mesh/heddle/waypoint/plan"
)

// Server serves clients. It is made by New, and run once.
type Server struct {
	cfg     Config
	workers []*worker
}

// New makes a Server; nothing runs before Run.
func New(cfg Config) (*Server, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	s := &Server{cfg: cfg}
	for range cfg.Loops {
		w, err := newWorker(&s.cfg)
		if err != nil {
			for _, made := range s.workers {
				err = errors.Join(err, made.loop.Close())
			}
			return nil, err
		}
		s.workers = append(s.workers, w)
	}
	return s, nil
}

// Run accepts from l, which it closes, until ctx is done. Then it accepts no more, lets
// what is under way end, tells clients that it does, and returns when all connections have ended,
// or at the end of Timeouts.Drain, when it ends them. It waits for all that it has started.
func (s *Server) Run(ctx context.Context, l *net.TCPListener) error {
	fd, err := eventloop.Duplicate(l)
	if err != nil {
		return errors.Join(fmt.Errorf("serve: %w", err), l.Close())
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	errs := make([]error, len(s.workers))
	var running sync.WaitGroup
	for i, w := range s.workers {
		running.Go(func() { errs[i] = w.loop.Run(); cancel() })
	}
	first := s.workers[0]
	var from *eventloop.Listener
	first.await(func() { from, err = first.loop.Listen(fd, s.accepted, s.starved) })
	reviewing, reviewed := context.WithCancel(context.WithoutCancel(ctx)) // to the end of what is under way
	running.Go(func() { s.review(reviewing) })
	if err == nil {
		<-ctx.Done()
		first.await(func() { s.acceptRest(fd); err = from.End() })
	}
	eventloop.CloseSocket(fd)
	err = errors.Join(err, l.Close())
	s.drain()
	reviewed()
	for _, w := range s.workers {
		w.loop.Stop()
	}
	running.Wait()
	return errors.Join(append(errs, err)...)
}

// acceptRest takes the connections that are there already: their clients do not know that they are not served.
func (s *Server) acceptRest(fd int) {
	for range s.cfg.Limits.Connections {
		conn, remote, errno := eventloop.Accept(fd)
		if errno != 0 {
			return
		}
		s.accepted(conn, remote)
	}
}

// accepted gives a connection to the loop that has the fewest.
func (s *Server) accepted(fd int, remote netip.AddrPort) {
	least := s.workers[0]
	total := int64(0)
	for _, w := range s.workers {
		n := w.load.Load()
		if total += n; n < least.load.Load() {
			least = w
		}
	}
	if total >= int64(s.cfg.Limits.Connections) {
		s.cfg.Metrics.Refusals.WithLabelValues(plan.Overloaded).Inc()
		eventloop.Abort(fd)
		return
	}
	least.load.Add(1)
	if least == s.workers[0] {
		least.adopt(fd, remote)
	} else if !least.loop.Post(func() { least.adopt(fd, remote) }) {
		eventloop.CloseSocket(fd)
	}
}

// starved is told when there are no descriptors, or no memory, for more connections.
func (s *Server) starved(err error) {
	s.cfg.Log.Error("connections wait to be accepted", "error", err, "remedy", "raise the limit of open files (ulimit -n), or run more replicas")
}

// drainPoll is how often it is looked whether all has ended.
const drainPoll = 10 * time.Millisecond

// drain ends all connections, those with requests when they have answered them.
func (s *Server) drain() {
	for _, w := range s.workers {
		w.await(w.drain)
	}
	deadline := time.Now().Add(s.cfg.Timeouts.Drain)
	for s.Connections() > 0 && time.Now().Before(deadline) {
		time.Sleep(drainPoll)
	}
	for _, w := range s.workers {
		w.await(w.end)
	}
}

// Connections is the number of clients' connections. It may be called from any goroutine.
func (s *Server) Connections() (n int) {
	for _, w := range s.workers {
		n += int(w.load.Load())
	}
	return n
}
