package gated

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

const (
	// Grace is how long what an agent said holds without it. An agent that is replaced, or a
	// node that boots, is back sooner; and while it is away for longer, nothing but datagrams
	// passes to its pods in any case. It bounds what is believed of a node whose gates went
	// with its agent, unsaid: one that was taken out of the mesh by force, or that booted
	// without what keeps its pods back.
	Grace = 10 * time.Minute
	// askEvery is how often other replicas are asked, and times are looked at.
	askEvery = time.Second
	// coalesce is the least time between two looks at reports.
	coalesce = 50 * time.Millisecond
	// maxPods bounds what is known of one node: as many as a report may have.
	maxPods = 4096
)

// Config says who reports. All fields but Peers, Kept and Grace are needed.
type Config struct {
	// Reports returns what the agents say that are connected to this replica, and a channel
	// that is closed when that may be different.
	Reports func() ([]*meshpb.NodeGates, <-chan struct{})
	// Peers asks the other replicas for theirs; nil where there are none.
	Peers func(context.Context) []*meshpb.NodeGates
	// Kept is what was so before the start; each holds for as long as is said there.
	Kept Prints
	// Grace is that of the package when zero.
	Grace time.Duration
}

// Ledger is what the agents have said. Nobody is behind a gate for a nil one, which runs for
// no time: nothing is asked there.
type Ledger struct {
	cfg Config

	state struct {
		sync.RWMutex
		own, others []*meshpb.NodeGates
		nodes       map[string]*node
		kept        Prints
		changed     chan struct{}
	}
}

// node is what a node's agent has said.
type node struct {
	pods map[mesh.Key]pod // maxPods at most, but for what one report has
	// complete says that there are no others, whatever was kept.
	complete bool
	// heard is when it was connected to any replica last, and said which pods these are.
	heard time.Time
	taken *meshpb.GatedPods // last
}

// pod is what a gate knows a pod by.
type pod struct {
	uid, netNS string
	addresses  []netip.Addr // none of one that is not behind its gate
	// until is when the word for it runs out, of one that was said before what was said last;
	// zero of the others.
	until time.Time
}

// New returns a Ledger that has heard of nobody.
func New(cfg Config) (*Ledger, error) {
	if cfg.Reports == nil || cfg.Grace < 0 {
		return nil, errors.New("new ledger of gates: Reports is needed, and Grace is not negative")
	}
	cfg.Grace = cmp.Or(cfg.Grace, Grace)
	l := &Ledger{cfg: cfg}
	l.state.nodes, l.state.changed = map[string]*node{}, make(chan struct{})
	l.state.kept = cfg.Kept.holding(time.Now(), cfg.Grace)
	return l, nil
}

// Gated reports whether a workload is behind its gate: its node's agent has said so of this
// very pod, with all of its addresses.
func (l *Ledger) Gated(w *mesh.Workload) bool { return !l.Until(w).IsZero() }

// Until is how long a workload is behind its gate if its node's agent says nothing more; zero
// of one that is not.
func (l *Ledger) Until(w *mesh.Workload) (until time.Time) {
	if l == nil || len(w.Addresses) == 0 {
		return until
	}
	l.state.RLock()
	defer l.state.RUnlock()
	if n := l.state.nodes[w.Node]; n != nil {
		p, ok := n.pods[w.Key]
		switch {
		case ok && p.is(w) && p.until.IsZero():
			return n.heard.Add(l.cfg.Grace)
		case ok && p.is(w):
			return p.until
		case ok || n.complete:
			return until
		}
	}
	return l.state.kept[printOf(w)]
}

// is reports whether a workload is the pod, with no address but those that its gate knows.
func (p *pod) is(w *mesh.Workload) bool {
	return (w.UID == "" || w.UID == p.uid) && (w.NetNS == "" || w.NetNS == p.netNS) &&
		!slices.ContainsFunc(w.Addresses, func(addr netip.Addr) bool { return !slices.Contains(p.addresses, addr) })
}

// Changed returns a channel that is closed when Gated may answer otherwise. Take it before
// asking, so that nothing is missed between the two.
func (l *Ledger) Changed() <-chan struct{} {
	if l == nil {
		return nil
	}
	l.state.RLock()
	defer l.state.RUnlock()
	return l.state.changed
}

// Run listens until ctx is done, and returns nil.
func (l *Ledger) Run(ctx context.Context) error {
	if l == nil {
		return nil
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { l.listen(ctx); return nil })
	if l.cfg.Peers != nil {
		g.Go(func() error { l.ask(ctx); return nil })
	}
	return g.Wait()
}

// listen takes what comes to this replica, and looks at the time.
func (l *Ledger) listen(ctx context.Context) {
	tick := time.NewTicker(askEvery)
	defer tick.Stop()
	for {
		own, changed := l.cfg.Reports()
		l.state.Lock()
		l.state.own = own
		l.takeLocked(time.Now())
		l.state.Unlock()
		pause := time.NewTimer(coalesce)
		select {
		case <-ctx.Done():
			pause.Stop()
			return
		case <-pause.C:
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-tick.C:
		}
	}
}

// ask takes what the other replicas have heard.
func (l *Ledger) ask(ctx context.Context) {
	tick := time.NewTicker(askEvery)
	defer tick.Stop()
	for {
		others := l.cfg.Peers(ctx)
		l.state.Lock()
		l.state.others = others
		l.takeLocked(time.Now())
		l.state.Unlock()
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// takeLocked makes the nodes what is said of them.
func (l *Ledger) takeLocked(now time.Time) {
	newest := map[string]*meshpb.NodeGates{}
	for _, said := range slices.Concat(l.state.own, l.state.others) {
		// An agent that has gone to another replica may still seem to be at the one before.
		if known := newest[said.GetNode()]; known == nil || before(known, said) {
			newest[said.GetNode()] = said
		}
	}
	changed := false
	for name, said := range newest {
		if said.GetGated() == nil {
			continue // not said yet, or an agent of a version before
		}
		n := l.state.nodes[name]
		if n == nil {
			n = &node{}
			l.state.nodes[name] = n
		}
		changed = n.take(said.GetGated(), l.cfg.Grace) || changed
		n.heard = now
	}
	for name, n := range l.state.nodes {
		if now.Sub(n.heard) > l.cfg.Grace {
			delete(l.state.nodes, name)
			changed = true
			continue
		}
		were := len(n.pods)
		maps.DeleteFunc(n.pods, func(_ mesh.Key, p pod) bool { return !p.until.IsZero() && now.After(p.until) })
		changed = changed || len(n.pods) != were
	}
	were := len(l.state.kept)
	maps.DeleteFunc(l.state.kept, func(_ print, until time.Time) bool { return now.After(until) })
	changed = changed || len(l.state.kept) != were
	if changed {
		close(l.state.changed)
		l.state.changed = make(chan struct{})
	}
}

// before reports whether a was said before b: by the clock and the count of who says it,
// since those of replicas may differ, and by when it came of what has no other.
func before(a, b *meshpb.NodeGates) bool {
	x, y := a.GetGated(), b.GetGated()
	if x == nil || y == nil {
		return a.GetReportedNs() < b.GetReportedNs()
	}
	return cmp.Or(cmp.Compare(x.GetAgentBeganNs(), y.GetAgentBeganNs()), cmp.Compare(x.GetChange(), y.GetChange()), cmp.Compare(a.GetReportedNs(), b.GetReportedNs())) < 0
}

// take takes what an agent says, and reports whether that is news. What was said before, and
// is not said again, holds for grace from when the node was heard last before.
func (n *node) take(said *meshpb.GatedPods, grace time.Duration) bool {
	if n.taken == said {
		return false
	}
	n.taken = said
	pods := map[mesh.Key]pod{}
	for _, p := range said.GetPods() {
		one := pod{uid: p.GetUid(), netNS: p.GetNetworkNamespace()}
		for _, octets := range p.GetAddresses() {
			if addr, ok := netip.AddrFromSlice(octets); ok {
				one.addresses = append(one.addresses, addr.Unmap())
			}
		}
		pods[mesh.Key{Namespace: p.GetNamespace(), Name: p.GetName()}] = one
	}
	if !said.GetComplete() { // what was said before holds, too
		for key, p := range n.pods {
			if _, again := pods[key]; again || len(pods) >= maxPods {
				continue
			}
			if p.until.IsZero() {
				p.until = n.heard.Add(grace)
			}
			pods[key] = p
		}
	}
	// One that begins anew does not bring back what was kept before it.
	complete := n.complete || said.GetComplete()
	same := n.complete == complete && maps.EqualFunc(n.pods, pods, func(a, b pod) bool {
		return a.uid == b.uid && a.netNS == b.netNS && slices.Equal(a.addresses, b.addresses)
	})
	n.pods, n.complete = pods, complete
	return !same
}
