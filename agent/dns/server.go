package dns

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"

	"github.com/heddle-mesh/heddle/agent/dns/wire"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// Times. A stub resolver waits five seconds (resolv.conf(5)) and asks again.
const (
	// askWithin bounds a question to a server; its failure reaches the client in time.
	askWithin = 4700 * time.Millisecond
	// patience is how long a client waits that can have a stale answer (RFC 8767,
	// section 5, the client response timer).
	patience = 1800 * time.Millisecond
	// askAgain is how long a server that did not answer is left alone by those who
	// can have a stale answer. RFC 8767 recommends 30 s towards the internet's
	// servers; this one is the cluster's, and back in a moment.
	askAgain     = 5 * time.Second
	refusedPause = 100 * time.Millisecond
	dialTCP      = 2 * time.Second
	idleTCP      = 10 * time.Second
	// grace is what questions that are open get when serving ends.
	grace = 300 * time.Millisecond

	// meshTTL is what answers from the model hold for, in seconds: CoreDNS's.
	meshTTL = 5
	// maxHold and maxHoldNegative bound TTLs; maxStaleNegative is how long the
	// word that a name is not there is given stale.
	maxHold          = 24 * time.Hour
	maxHoldNegative  = 5 * time.Minute
	maxStaleNegative = 10 * time.Minute
)

// resend is how long each of the tries waits; their sum is above askWithin.
var resend = [...]time.Duration{time.Second, 1500 * time.Millisecond, 2500 * time.Millisecond} //nolint:gochecknoglobals // a constant

// Limits bound what one pod can have.
type Limits struct {
	// CacheBytes bounds its cache, Stale how long an answer is kept past its TTL.
	CacheBytes int
	Stale      time.Duration
	// Asking is how many questions are open at servers at once, each with a
	// socket; Waiting how many of its queries wait for them.
	Asking, Waiting int
	// Connections is how many of its TCP connections are open, Rate how many
	// queries it may send in a second.
	Connections, Rate int
}

// DefaultLimits returns the limits of a pod.
func DefaultLimits() Limits {
	return Limits{CacheBytes: 256 << 10, Stale: 24 * time.Hour, Asking: 256, Waiting: 1024, Connections: 32, Rate: 5000}
}

// Config is what a Server works with. Zero limits take the defaults, a nil
// Registerer none.
type Config struct {
	Store  *mesh.Store
	Limits Limits
	// Flows is told of queries that are refused, fail, or get an old answer; nil for
	// nobody.
	Flows    Journal
	Registry prometheus.Registerer
	Log      *slog.Logger
}

// Server answers the queries of the node's pods.
type Server struct {
	cfg     Config
	metrics *metrics
	servers servers
}

// New returns a Server that serves nobody yet.
func New(cfg Config) *Server {
	d := DefaultLimits()
	l := &cfg.Limits
	l.CacheBytes, l.Stale = cmp.Or(l.CacheBytes, d.CacheBytes), cmp.Or(l.Stale, d.Stale)
	l.Asking, l.Waiting = cmp.Or(l.Asking, d.Asking), cmp.Or(l.Waiting, d.Waiting)
	l.Connections, l.Rate = cmp.Or(l.Connections, d.Connections), cmp.Or(l.Rate, d.Rate)
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Server{cfg: cfg, metrics: newMetrics(cfg.Registry), servers: servers{all: map[netip.Addr]*ServerState{}}}
}

// Sockets makes sockets in a pod that leave it from its own address.
type Sockets interface {
	DialDNS(server netip.AddrPort) (*net.UDPConn, error)
	DialEgress(ctx context.Context, server netip.AddrPort) (*net.TCPConn, error)
}

// Queries takes the datagrams that a pod sends to port 53.
type Queries interface {
	// Read returns a datagram's length, where it was sent to and by whom, and
	// net.ErrClosed or os.ErrDeadlineExceeded after Stop.
	Read(b []byte) (n int, to, from netip.AddrPort, err error)
	// Reply answers, as from where the query was sent to.
	Reply(b []byte, from, to netip.AddrPort) error
	// Stop ends reading; Close everything.
	Stop() error
	Close() error
}

// Pod is one enrolled workload.
type Pod struct {
	Key mesh.Key
	// Queries and Listeners become Serve's, which closes them. The local address
	// of an accepted connection is where it was dialled.
	Queries   []Queries
	Listeners []net.Listener
	Sockets   Sockets
}

// served is a Pod that is served.
type served struct {
	*Server
	Pod
	cache   *cache
	rate    *rate.Limiter
	asking  chan struct{} // a token for each open question
	waiting chan struct{}
	streams chan struct{}
	stopped context.Context // no new queries after it
	ended   context.Context // what is open ends with it
	busy    sync.WaitGroup

	mu      sync.Mutex
	flights map[flightKey]*flight
}

// Serve answers a pod's queries until ctx is done. It then lets open ones go on
// for a moment, closes the pod's sockets, and returns when nothing is left.
func (s *Server) Serve(ctx context.Context, pod Pod) {
	ended, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	l := s.cfg.Limits
	p := &served{
		Server: s, Pod: pod, cache: newCache(l), rate: rate.NewLimiter(rate.Limit(l.Rate), l.Rate),
		asking: make(chan struct{}, l.Asking), waiting: make(chan struct{}, l.Waiting), streams: make(chan struct{}, l.Connections),
		stopped: ctx, ended: ended, flights: map[flightKey]*flight{},
	}
	for _, q := range pod.Queries {
		p.busy.Go(func() { p.serveDatagrams(q) })
	}
	for _, listener := range pod.Listeners {
		p.busy.Go(func() { p.serveStreams(listener) })
	}
	<-ctx.Done()
	var errs []error
	for _, q := range pod.Queries {
		errs = append(errs, q.Stop())
	}
	for _, listener := range pod.Listeners {
		errs = append(errs, listener.Close())
	}
	timer := time.AfterFunc(grace, end)
	defer timer.Stop()
	p.busy.Wait()
	for _, q := range pod.Queries {
		errs = append(errs, q.Close())
	}
	errs = slices.DeleteFunc(errs, func(err error) bool { return err == nil || errors.Is(err, net.ErrClosed) })
	if err := errors.Join(errs...); err != nil {
		s.cfg.Log.Warn("sockets for DNS not closed", "workload", pod.Key, "error", err)
	}
}

// maxDatagram is the largest query that is read: none has a reason to be larger.
const maxDatagram = 4096

// maxAnswer is what an IPv4 packet has room for.
const maxAnswer = 65507

func (p *served) serveDatagrams(from Queries) {
	b := make([]byte, maxDatagram+1)
	for p.stopped.Err() == nil {
		n, server, client, err := from.Read(b)
		switch {
		case errors.Is(err, net.ErrClosed), errors.Is(err, os.ErrDeadlineExceeded):
			return
		case err != nil:
			p.cfg.Log.Warn("queries cannot be read", "workload", p.Key, "error", err)
			_ = sleep(p.stopped, time.Second)
			continue
		case !p.rate.Allow():
			p.metrics.count("udp", overBudget)
			continue
		case n > maxDatagram || !server.IsValid():
			p.metrics.count("udp", malformed)
			continue
		}
		reply := func(b []byte) {
			if len(b) == 0 {
				return // dropped
			}
			if err := from.Reply(b, server, client); err != nil {
				p.cfg.Log.Debug("a query is not answered", "workload", p.Key, "client", client, "error", err)
			}
		}
		q, err := wire.ParseQuery(slices.Clone(b[:n]))
		if err != nil {
			p.metrics.count("udp", malformed)
			if !errors.Is(err, wire.ErrNoQuery) {
				reply(wire.FormatFailure(b[:n]))
			}
			continue
		}
		p.answer(&inquiry{Query: q, client: client.Addr(), server: server, transport: "udp", limit: min(int(q.Size), maxAnswer), reply: reply})
	}
}
