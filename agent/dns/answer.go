package dns

import (
	"context"
	"net/netip"
	"strings"
	"time"

	"github.com/heddle-mesh/heddle/agent/dns/wire"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// inquiry is a query on its way.
type inquiry struct {
	*wire.Query
	server    netip.AddrPort // that it was sent to
	transport string         // "udp" or "tcp"
	limit     int            // of the answer, in bytes
	reply     func([]byte)   // called once; with nothing when the query is dropped
}

// whole says that an answer that UDP cuts off is of no use.
func (i *inquiry) whole() bool { return i.transport == "tcp" || i.limit > wire.LargestUDP }

func (i *inquiry) question() question {
	return question{name: i.Name, kind: i.Type, class: i.Class, bits: i.Bits(), server: i.server}
}

// answer answers at once what can be, and everything else when there is an answer.
// It does not wait.
func (p *served) answer(i *inquiry) {
	if b, by := p.atOnce(i); by != "" {
		p.metrics.count(i.transport, by)
		i.reply(b)
		return
	}
	select {
	case p.waiting <- struct{}{}:
	default:
		p.metrics.count(i.transport, overBudget)
		i.reply(nil)
		return
	}
	p.busy.Go(func() {
		defer func() { <-p.waiting }()
		b, by := p.inTime(i)
		p.metrics.count(i.transport, by)
		i.reply(b)
	})
}

// atOnce answers what needs no server; "" when it does.
func (p *served) atOnce(i *inquiry) ([]byte, outcome) {
	view := p.cfg.Store.View()
	if i.server.Port() != port {
		return i.Failure(wire.Refused, wire.Prohibited), refused // sent to the agent itself: it would ask in circles
	}
	if i.Plain && (i.Type == wire.TypeA || i.Type == wire.TypeAAAA) {
		if service, ok := serviceOf(view, i.Host()); ok && len(service.Addresses) > 0 {
			return i.Addresses(service.Addresses, meshTTL, mesh.ClusterDomain, i.limit), byMesh
		}
	}
	if !mayAsk(view, p.Key, i.server) {
		return i.Failure(wire.Refused, wire.Prohibited), refused
	}
	if !i.Plain {
		return nil, ""
	}
	k, ok := p.cache.get(i.question(), time.Now())
	switch {
	case ok && k.fresh:
		return k.answer.For(i.Query, i.limit, k.age, false), byCache
	case ok && k.atOnce && i.mayBeStale(k):
		return k.answer.For(i.Query, i.limit, k.age, true), byStale
	}
	return nil, ""
}

// inTime asks the server, and answers what it says, or a stale answer if there is
// one and the server takes too long.
func (p *served) inTime(i *inquiry) ([]byte, outcome) {
	var patient <-chan time.Time
	k, stale := kept{}, false
	if i.Plain {
		k, stale = p.cache.get(i.question(), time.Now())
		stale = stale && i.mayBeStale(k)
	}
	if stale {
		timer := time.NewTimer(patience)
		defer timer.Stop()
		patient = timer.C
	}
	f := p.flightOf(i)
	if f != nil {
		select {
		case <-f.done:
		case <-patient:
		case <-p.ended.Done():
		}
	}
	r, err := f.result()
	switch {
	case r != nil && (r.Final() || !stale):
		return r.For(i.Query, i.limit, 0, false), byUpstream
	case stale:
		return k.answer.For(i.Query, i.limit, k.age, true), byStale
	case f == nil:
		return nil, overBudget
	case err == nil: // the agent ends: another one answers when the client asks again
		return nil, failed
	}
	return i.Failure(wire.ServerFailure, wire.Unreachable), failed
}

// mayBeStale: that a service is not there must not be said when it may be by now.
func (i *inquiry) mayBeStale(k kept) bool {
	if !k.answer.Negative {
		return true
	}
	_, _, ok := serviceName(i.Host())
	return !ok
}

// flight is a question that is open at a server, and all who wait for its answer.
type flight struct {
	done   chan struct{}
	answer *wire.Response // after done
	err    error
}

// result is what there is by now; nothing for a flight that there is not.
func (f *flight) result() (*wire.Response, error) {
	if f == nil {
		return nil, nil
	}
	select {
	case <-f.done:
		return f.answer, f.err
	default:
		return nil, nil
	}
}

// flightKey tells questions apart of which one answer serves all.
type flightKey struct {
	question
	whole bool
}

// flightOf asks the server, or joins who has; nil when the pod asks too much.
func (p *served) flightOf(i *inquiry) *flight {
	key := flightKey{i.question(), i.whole()}
	p.mu.Lock()
	defer p.mu.Unlock()
	if f := p.flights[key]; f != nil && i.Plain {
		return f
	}
	// One may have landed since the cache was looked at.
	if k, ok := p.cache.get(key.question, time.Now()); ok && k.fresh && i.Plain {
		landed := &flight{done: make(chan struct{}), answer: k.answer}
		close(landed.done)
		return landed
	}
	select {
	case p.asking <- struct{}{}:
	default:
		return nil
	}
	f := &flight{done: make(chan struct{})}
	if i.Plain {
		p.flights[key] = f
	}
	p.busy.Go(func() { p.fly(f, key, i) })
	return f
}

// fly asks, and keeps what it learns.
func (p *served) fly(f *flight, key flightKey, i *inquiry) {
	ctx, cancel := context.WithTimeout(p.ended, askWithin)
	defer cancel()
	begun := time.Now()
	f.answer, f.err = ask(ctx, p.Sockets, i.server, i.Query, i.whole(), i.transport == "tcp")
	p.metrics.asked.Observe(time.Since(begun).Seconds())
	switch now := time.Now(); {
	case f.err != nil && p.ended.Err() == nil:
		p.metrics.failures.WithLabelValues(causeOf(f.err)).Inc()
		p.cache.failed(key.question, now)
	case f.err == nil && !f.answer.Final():
		p.metrics.failures.WithLabelValues(causeCode).Inc()
		p.cache.failed(key.question, now)
	case f.err == nil && i.Plain && !f.answer.Truncated:
		p.cache.put(key.question, f.answer, now)
	}
	p.mu.Lock()
	if p.flights[key] == f {
		delete(p.flights, key)
	}
	p.mu.Unlock()
	<-p.asking
	close(f.done)
}

// serviceName splits NAME.NAMESPACE.svc.cluster.local.
func serviceName(host string) (name, namespace string, ok bool) {
	short, ok := strings.CutSuffix(host, ".svc."+mesh.ClusterDomain)
	if !ok {
		return "", "", false
	}
	name, namespace, ok = strings.Cut(short, ".")
	return name, namespace, ok && name != "" && !strings.Contains(namespace, ".")
}

// serviceOf returns the service of a name, if the model knows it.
func serviceOf(view *mesh.View, host string) (*mesh.Service, bool) {
	name, namespace, ok := serviceName(host)
	if !ok {
		return nil, false
	}
	return view.Service(mesh.Key{Namespace: namespace, Name: name})
}

// port is where all servers are whose queries are captured.
const port = 53

// mayAsk says whether a workload's query may go to a server: one that is captured,
// and that policy lets out. Addresses of the link, as NodeLocal DNSCache has, do not
// leave the node.
func mayAsk(view *mesh.View, of mesh.Key, server netip.AddrPort) bool {
	if server.Port() != port {
		return false
	}
	if server.Addr().IsLinkLocalUnicast() {
		return true
	}
	w, _ := view.Workload(of)
	r := view.Route(w, server)
	return r.Kind != mesh.RouteReject || r.Reason != mesh.ReasonEgressDenied
}
