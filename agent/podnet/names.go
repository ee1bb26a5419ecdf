package podnet

import (
	"context"
	"net"
	"sync/atomic"

	"github.com/heddle-mesh/heddle/agent/podnet/listener"
	"github.com/heddle-mesh/heddle/agent/steer"
)

// names is whether what the pod sends to port 53 is captured, and what it takes to
// change that while the pod is enrolled.
type names struct {
	captured atomic.Bool

	// Under Pod.mu:

	// shown is what whoever answers has been told.
	shown   bool
	changed chan struct{} // nil while nobody waits
	// former are the sockets of a capture that has ended. Whoever answers from them
	// closes them; they are closed with the pod at the latest.
	former Listeners
}

// CapturesDNS reports whether what the pod sends to port 53 is captured.
func (p *Pod) CapturesDNS() bool { return p.names.captured.Load() }

// Names returns the sockets that take what the pod sends to port 53, none while it
// is not captured, and a channel that is closed when that changes: then whoever
// answers from the sockets closes them.
func (p *Pod) Names() (streams []*net.TCPListener, datagrams []*listener.Queries, changed <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.names.changed == nil {
		p.names.changed = make(chan struct{})
	}
	return p.listeners.Names, p.listeners.Queries, p.names.changed
}

// captureNames starts or ends capture of an enrolled pod, but for the kernel's flag,
// which update sets. The rules come first both ways: a query that finds a rule and no
// flag is refused at once, and asked again, where one that is dropped costs seconds.
func (p *Pod) captureNames(ctx context.Context, capture bool) error {
	if p.names.captured.Load() == capture {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.kernel == nil {
		return p.errorf("capture DNS: %w", ErrClosed)
	}
	if capture {
		if err := p.openNames(ctx); err != nil {
			return p.errorf("capture DNS: %w", err)
		}
	}
	p.names.captured.Store(capture)
	if err := p.reroute(); err != nil {
		p.names.captured.Store(!capture)
		return p.errorf("capture DNS: %w", err)
	}
	return nil
}

// openNames opens the sockets for names that are missing; mu is held.
func (p *Pod) openNames(ctx context.Context) error {
	if len(p.listeners.Queries) > 0 {
		return nil // of a try that failed later
	}
	if err := p.names.former.Close(); err != nil {
		return err
	}
	p.names.former = Listeners{}
	var opened Listeners
	err := p.ns.Do(func() (err error) {
		opened, err = listener.OpenNames(ctx, steer.Families(p.addrs), p.options, p.inherited)
		return err
	})
	if err != nil {
		return err
	}
	p.listeners.Names, p.listeners.Queries = opened.Names, opened.Queries
	return opened.Lead(p.kernel.SetListener)
}

// announceNames tells whoever answers when capture has started or ended.
func (p *Pod) announceNames() {
	p.mu.Lock()
	defer p.mu.Unlock()
	captured := p.names.captured.Load()
	if captured == p.names.shown {
		return
	}
	if !captured {
		p.names.former = Listeners{Names: p.listeners.Names, Queries: p.listeners.Queries}
		p.listeners.Names, p.listeners.Queries = nil, nil
	}
	p.names.shown = captured
	if p.names.changed != nil {
		close(p.names.changed)
		p.names.changed = nil
	}
}
