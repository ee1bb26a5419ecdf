// Package proxy carries the connections of a node's enrolled workloads.
//
// It accepts what the kernel redirected, decides by the mesh's View where each
// connection goes and whether it may, carries it (through the tunnel, by a
// splice within the node, or in plaintext where policy allows), and ends it
// when policy no longer allows it. Every connection and every refusal becomes
// exactly one flow record.
//
// It does not enroll: whoever calls Serve gives it a pod's listeners and
// sockets. It does not hold configuration, keys or records: it reads a
// mesh.Store, asks Identities, and fills a flow.Sink.
//
// A Proxy is safe for concurrent use. New starts nothing; Run and Serve block,
// and every goroutine that they start has ended when they return.
package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/agent/balance"
	"github.com/heddle-mesh/heddle/agent/proxy/budget"
	"github.com/heddle-mesh/heddle/agent/proxy/wire"
	"github.com/heddle-mesh/heddle/agent/relay"
	"github.com/heddle-mesh/heddle/internal/flow"
	"github.com/heddle-mesh/heddle/internal/hbone"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// ErrUnenrolled is the cause to cancel Serve's context with when the workload
// leaves the mesh; any other cause means that the agent is going.
var ErrUnenrolled = errors.New("workload left the mesh")

// ErrLeaving is ErrUnenrolled of a workload that is well: until what is carried has
// ended, or for as long as that may take, new connections are carried, too. Redirected
// as they still are, they would wait for an answer of nobody.
var ErrLeaving = fmt.Errorf("%w, as it was told", ErrUnenrolled)

// What a Proxy is given: SVIDs and bundles, what is redirected in a pod, and ways
// to connect from it.
type (
	Listeners  = wire.Listeners
	Identities = wire.Identities
	Sockets    = wire.Sockets
	Starter    = wire.Starter
)

// Config is what a Proxy works with. Everything must be set.
type Config struct {
	// Node is this node's name: candidates on it are spliced, not tunnelled.
	Node       string
	Store      *mesh.Store
	Engine     hbone.Engine
	Identities Identities
	Flows      flow.Sink
	Log        *slog.Logger
	Budget     Budget
	Timeouts   Timeouts
	// OnNode reports whether an address is the node's own.
	OnNode wire.OnNode
}

// Timeouts bound the steps of a connection's life.
type Timeouts = budget.Timeouts

// DefaultTimeouts is budget.DefaultTimeouts.
func DefaultTimeouts() Timeouts { return budget.DefaultTimeouts() }

// Proxy carries the connections of a node.
type Proxy struct {
	cfg      Config
	relay    *relay.Relay
	balancer *balance.Balancer
	live     *registry
	judge    *wire.Judge
	// sockets counts those of all pods' connections and tunnel connections, against Budget.Sockets.
	sockets atomic.Int64
	// unsettled counts accept loops, and the connections that they took and that
	// are neither carried nor refused.
	unsettled atomic.Int64

	pods struct {
		sync.RWMutex
		byKey map[mesh.Key]*pod
		added chan struct{} // closed when there is one more
	}
}

// New returns a Proxy that serves nobody yet. The Engine stays the caller's to
// close, after every Serve has returned and before Close.
func New(cfg Config) *Proxy {
	cfg.Timeouts = cfg.Timeouts.OrDefaults()
	cfg.Budget = cfg.Budget.OrDefaults()
	p := &Proxy{
		cfg:      cfg,
		relay:    relay.New(cfg.Budget.Pipes),
		balancer: balance.New(),
		live:     &registry{},
		judge:    wire.NewJudge(cfg.Store, cfg.Node, cfg.OnNode, cfg.Timeouts.Grace),
	}
	p.pods.byKey, p.pods.added = map[mesh.Key]*pod{}, make(chan struct{})
	return p
}

// Close gives back what connections shared. Call it when nothing is carried
// any more.
func (p *Proxy) Close() { p.relay.Close() }

// Run re-authorizes the live connections whenever the View is replaced, or a
// former waypoint's grace is over, and retires tunnel connections whose certificate or bundle is no longer the
// current one, until ctx is done. It returns nil.
func (p *Proxy) Run(ctx context.Context) error {
	current := p.retire(nil)
	revoked := map[spiffeid.ID]bool{}
	for {
		view, replaced := p.cfg.Store.Snapshot()
		changed := p.cfg.Identities.Changed()
		revoked = p.dropRevoked(view, revoked)
		over := p.judge.Follow() // before the sweep: a grace that ends in between is looked at again
		p.live.sweep()
		p.balancer.Prune(view)
		current = p.retire(current)
		select {
		case <-replaced:
		case <-changed:
		case <-over:
		case <-ctx.Done():
			return nil
		}
	}
}

// dropRevoked ends the tunnel connections of identities that are newly on the
// deny-list, and returns the deny-list.
func (p *Proxy) dropRevoked(view *mesh.View, before map[spiffeid.ID]bool) map[spiffeid.ID]bool {
	now, ended := wire.Revoke(view, p.keys(), before)
	for _, m := range ended {
		p.cfg.Engine.Drain(m, true)
	}
	return now
}

// retire lets the tunnel connections made with replaced SVIDs end with their
// streams, and returns the current ones. (The engine itself sees to expiry and
// to bundles that no longer verify a peer.)
func (p *Proxy) retire(before map[string][32]byte) map[string][32]byte {
	now, retired := wire.Retire(p.cfg.Store.View(), p.cfg.Identities, p.keys(), before)
	for _, m := range retired {
		p.cfg.Engine.Drain(m, false)
	}
	return now
}

// keys names the pods that are served at the moment.
func (p *Proxy) keys() []mesh.Key {
	p.pods.RLock()
	defer p.pods.RUnlock()
	return slices.Collect(maps.Keys(p.pods.byKey))
}

func (p *Proxy) podOf(key mesh.Key) (*pod, bool) {
	p.pods.RLock()
	defer p.pods.RUnlock()
	pod, ok := p.pods.byKey[key]
	return pod, ok
}

// awaitPod is podOf for a workload of this node that may be about to be served,
// as all are one after another when an agent starts or takes over.
func (p *Proxy) awaitPod(ctx context.Context, key mesh.Key) (*pod, bool) {
	if pod, ok := p.podOf(key); ok {
		return pod, true
	}
	ctx, cancel := context.WithTimeout(ctx, p.cfg.Timeouts.Hold)
	defer cancel()
	for {
		p.pods.RLock()
		pod, added := p.pods.byKey[key], p.pods.added
		p.pods.RUnlock()
		if pod != nil {
			return pod, true
		}
		select {
		case <-added:
		case <-ctx.Done():
			return nil, false
		}
	}
}

func (p *Proxy) add(pod *pod) error {
	p.pods.Lock()
	defer p.pods.Unlock()
	if before, ok := p.pods.byKey[pod.key]; ok && !before.moving() {
		return fmt.Errorf("serve %s: it is served already", pod.key)
	}
	p.pods.byKey[pod.key] = pod
	close(p.pods.added)
	p.pods.added = make(chan struct{})
	return nil
}

// remove forgets a pod that is no longer served, unless another process takes it
// over: what others of the node have under way may still be for it.
func (p *Proxy) remove(pod *pod) {
	p.pods.Lock()
	defer p.pods.Unlock()
	if p.pods.byKey[pod.key] == pod && !pod.moving() { // it may be served anew
		delete(p.pods.byKey, pod.key)
	}
}
