package workloadapi

import (
	"cmp"
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/agent/workloadapi/tokencache"
	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/identity/federated"
	"github.com/heddle-mesh/heddle/internal/identity/jwtkeys"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// The label by which a pod asks for the Workload API, and where it is then.
const (
	Label   = "heddle.dev/workload-api"
	Enabled = "enabled"
	// Port is of the pod's 127.0.0.1: SPIFFE_ENDPOINT_SOCKET is tcp://127.0.0.1:15054.
	Port = 15054
)

// Times.
const (
	// ending is what streams get to hear that they end.
	ending = 300 * time.Millisecond

	// A listener that cannot be opened is tried again: an agent that is being
	// succeeded may have it for a moment.
	retryFirst = 100 * time.Millisecond
	retryMost  = 5 * time.Second
)

// Identities is where SVIDs are from; an identity.Source is one. Its keys are given
// away, and must be used for nothing else.
type Identities interface {
	Want(ids []spiffeid.ID) error
	Certificate(id spiffeid.ID) (*tls.Certificate, error)
	GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error)
	// Federated returns the bundles of other trust domains.
	Federated() *federated.Set
	Changed() <-chan struct{}
}

// Limits bound what one pod can have.
type Limits struct {
	// Connections and Streams are how many are open at once, of requests those that
	// were admitted, Rate how many of either may begin in a second.
	Connections, Streams, Rate int
	// JWTs is how many JWT-SVIDs that nobody on the node was given yet may be signed in a
	// second, and ten times as many at once.
	JWTs int
	// Patience is how long a request waits for an SVID that was not issued yet.
	Patience time.Duration
}

// DefaultLimits returns the limits of a pod.
func DefaultLimits() Limits {
	return Limits{Connections: 32, Streams: 64, Rate: 50, JWTs: 5, Patience: 10 * time.Second}
}

// Config is what a Server works with. Zero limits take the defaults, a nil Registry
// none.
type Config struct {
	// Node is this node's name, of whose pods there is an SVID to be had.
	Node       string
	Store      *mesh.Store
	Identities Identities
	// JWT is what verifies JWT-SVIDs of the mesh's own trust domain, and SignJWT has one
	// signed; without either there are none.
	JWT      *jwtkeys.Store
	SignJWT  tokencache.Sign
	Limits   Limits
	Registry prometheus.Registerer
	Log      *slog.Logger
}

// Server serves the node's pods.
type Server struct {
	cfg     Config
	metrics *metrics
	tokens  *tokencache.Cache
	pods    struct {
		sync.Mutex
		// open has each pod that has, or should have, its listener: why it has not,
		// nil when it has.
		open map[mesh.Key]error
	}
}

// New returns a Server that serves nobody yet.
func New(cfg Config) *Server {
	d := DefaultLimits()
	l := &cfg.Limits
	l.Connections, l.Streams, l.Rate = cmp.Or(l.Connections, d.Connections), cmp.Or(l.Streams, d.Streams), cmp.Or(l.Rate, d.Rate)
	l.JWTs, l.Patience = cmp.Or(l.JWTs, d.JWTs), cmp.Or(l.Patience, d.Patience)
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.JWT == nil {
		cfg.JWT = &jwtkeys.Store{}
	}
	if cfg.SignJWT == nil {
		cfg.SignJWT = unsigned
	}
	s := &Server{cfg: cfg, metrics: newMetrics(cfg.Registry), tokens: tokencache.New(cfg.SignJWT)}
	s.pods.open = map[mesh.Key]error{}
	return s
}

// asks reports whether a workload of this node is to be served.
func (s *Server) asks(w *mesh.Workload) bool {
	return w.Enrolled && w.Node == s.cfg.Node && w.Labels[Label] == Enabled
}

// asking finds what is known of a pod that is to be served.
func (s *Server) asking(view *mesh.View, pod Pod) (*mesh.Workload, bool) {
	w, ok := view.Workload(pod.Key)
	return w, ok && s.asks(w) && pod.is(w)
}

// Run says which SVIDs are needed, until ctx is done.
func (s *Server) Run(ctx context.Context) {
	var said []spiffeid.ID
	first := true
	for {
		view, changed := s.cfg.Store.Snapshot()
		// Not from a configuration that is not there yet: what is not wanted is dropped.
		if view.Synced() {
			var ids []spiffeid.ID
			for _, w := range view.OnNode(s.cfg.Node) {
				if s.asks(w) {
					ids = append(ids, w.Identity)
				}
			}
			slices.SortFunc(ids, func(a, b spiffeid.ID) int { return cmp.Compare(a.String(), b.String()) })
			ids = slices.Compact(ids)
			if first || !slices.Equal(ids, said) {
				if err := s.cfg.Identities.Want(ids); err != nil {
					s.cfg.Log.Error("SVIDs for the Workload API cannot be had", "error", err)
				}
				s.tokens.Keep(func(id spiffeid.ID) bool { return slices.Contains(ids, id) })
				said, first = ids, false
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// Pod is one enrolled workload.
type Pod struct {
	Key mesh.Key
	// UID and NetNS are what was enrolled, as mesh.Workload has them; without a UID any
	// will do. A workload of this name that has others is its successor, and what is the
	// successor's must not be served here: processes of a pod that was deleted by force
	// go on.
	UID, NetNS string
	// Listen opens a listener on Port of 127.0.0.1 in the pod's network namespace.
	Listen func(ctx context.Context) (net.Listener, error)
}

// is reports whether a workload is what was enrolled.
func (p Pod) is(w *mesh.Workload) bool {
	return (p.UID == "" || w.UID == "" || p.UID == w.UID) && (w.NetNS == "" || w.NetNS == p.NetNS)
}

// Serve serves a pod for as long as its label asks for it, and returns when ctx is
// done and nothing of the pod's is left.
func (s *Server) Serve(ctx context.Context, pod Pod) {
	for ctx.Err() == nil && s.await(ctx, pod, true) {
		s.serve(ctx, pod)
	}
}

// serve opens the pod's listener and answers there, until the pod does not ask for it
// any more, or ctx is done.
func (s *Server) serve(ctx context.Context, pod Pod) {
	ctx, stop := context.WithCancel(ctx)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		defer stop()
		s.await(ctx, pod, false)
	}()
	defer func() {
		stop()
		<-watched
		s.note(pod.Key, nil, false)
	}()
	pause := retryFirst
	for ctx.Err() == nil {
		listener, err := pod.Listen(ctx)
		if err == nil {
			s.note(pod.Key, nil, true)
			s.cfg.Log.Info("pod has the Workload API", "workload", pod.Key, "port", Port)
			pause = retryFirst
			err = s.answer(ctx, pod, listener)
		}
		if ctx.Err() != nil {
			return
		}
		s.note(pod.Key, err, true)
		before := pause
		if pause = min(2*pause, retryMost); pause == retryMost && before < pause { // it is not a predecessor's
			s.cfg.Log.Warn("pod has no Workload API: trying again", "workload", pod.Key, "error", err)
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
	}
}

// await returns true when the pod asks for the Workload API, or does not, as is said;
// false when ctx is done before.
func (s *Server) await(ctx context.Context, pod Pod, asks bool) bool {
	for {
		view, changed := s.cfg.Store.Snapshot()
		if _, ok := s.asking(view, pod); ok == asks {
			return true
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return false
		}
	}
}

// note keeps what is known of a pod for Checks.
func (s *Server) note(key mesh.Key, problem error, there bool) {
	s.pods.Lock()
	defer s.pods.Unlock()
	delete(s.pods.open, key)
	if there {
		s.pods.open[key] = problem
	}
	n := 0
	for _, problem := range s.pods.open {
		if problem == nil {
			n++
		}
	}
	s.metrics.pods.Set(float64(n))
}

// Checks says how many pods are served, which should be and are not, and why; it is
// empty when no pod asks.
func (s *Server) Checks() []*meshpb.Check {
	s.pods.Lock()
	problems := maps.Clone(s.pods.open)
	s.pods.Unlock()
	view := s.cfg.Store.View()
	var failed []*meshpb.Check
	served := 0
	for _, w := range view.OnNode(s.cfg.Node) {
		value, labelled := w.Labels[Label]
		problem, open := problems[w.Key]
		if !w.Enrolled || !labelled {
			continue
		}
		check := &meshpb.Check{Name: "Workload API of " + w.Key.String()}
		_, missing := s.cfg.Identities.Certificate(w.Identity)
		switch {
		case value != Enabled:
			if value != "disabled" {
				check.Detail = fmt.Sprintf("the label %s is %q, which asks for nothing", Label, value)
				check.Remedy = "write enabled or disabled"
			}
		case view.Revoked(w.Identity):
			check.Detail = fmt.Sprintf("identity %s is revoked: it is given no SVID", w.Identity)
			check.Remedy = "take it out of spec.revokedIdentities of the Mesh when its key cannot be abused any more, or take the label away"
		case problem != nil:
			check.Detail, check.Remedy = problem.Error(), "move the program that has the port, or take the label away: the agent tries again by itself"
		case missing != nil:
			check.Detail, check.Remedy = missing.Error(), "see why the operator does not sign: the agent tries again by itself"
		case open:
			served++
		default:
			check.Detail = "nothing listens in the pod: this agent does not serve it (yet), or what it serves is the pod's predecessor of the same name"
			check.Remedy = "see in the agent's log why it is not enrolled; a predecessor that was deleted by force goes on until its processes are stopped on the node"
		}
		if check.Detail != "" {
			failed = append(failed, check)
		}
	}
	if served > 0 {
		failed = append([]*meshpb.Check{{Name: "Workload API", Ok: true, Detail: fmt.Sprintf("%d pods can have their SVIDs and keys", served)}}, failed...)
	}
	return failed
}
