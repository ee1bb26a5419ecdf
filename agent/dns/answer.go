package dns

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/heddle-mesh/heddle/agent/dns/wire"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// inquiry is a query on its way.
type inquiry struct {
	*wire.Query
	client    netip.Addr
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

// told is what a client is told, and by what.
type told struct {
	message []byte // nothing for a query that is dropped
	by      outcome
	// reason is why the answer is not what was asked for, and why says more; zero
	// when there is nothing to say.
	reason mesh.Reason
	why    string
}

// answer answers at once what can be, and everything else when there is an answer.
// It does not wait.
func (p *served) answer(i *inquiry) {
	if t := p.atOnce(i); t.by != "" {
		p.tell(i, t)
		return
	}
	select {
	case p.waiting <- struct{}{}:
	default:
		p.tell(i, told{by: overBudget, reason: mesh.ReasonBudgetExceeded, why: "too many queries wait"})
		return
	}
	p.busy.Go(func() {
		defer func() { <-p.waiting }()
		p.tell(i, p.inTime(i))
	})
}

// tell answers, and says where it has to be said why.
func (p *served) tell(i *inquiry, t told) {
	p.metrics.count(i.transport, t.by)
	if t.reason != mesh.ReasonUnknown && p.cfg.Flows != nil {
		p.cfg.Flows.AddQuery(p.Key, p.record(i, t))
	}
	i.reply(t.message)
}

// atOnce answers what needs no server; by is "" when it does.
func (p *served) atOnce(i *inquiry) told {
	view := p.cfg.Store.View()
	if i.server.Port() != port { // sent to the agent itself: it would ask in circles
		return told{i.Failure(wire.Refused, wire.Prohibited), refused, mesh.ReasonReservedPort, "sent to the agent itself"}
	}
	if i.Plain && (i.Type == wire.TypeA || i.Type == wire.TypeAAAA) {
		if service, ok := serviceOf(view, i.Host()); ok && len(service.Addresses) > 0 {
			return told{message: i.Addresses(service.Addresses, meshTTL, mesh.ClusterDomain, i.limit), by: byMesh}
		}
	}
	if !mayAsk(view, p.Key, i.server) {
		why, detail := whyNot(view, p.Key)
		return told{i.Failure(wire.Refused, wire.Prohibited), refused, why, detail}
	}
	if !i.Plain {
		return told{}
	}
	k, ok := p.cache.get(i.question(), time.Now())
	switch {
	case ok && k.fresh:
		return told{message: k.answer.For(i.Query, i.limit, k.age, false), by: byCache}
	case ok && k.atOnce && p.mayBeStale(i, k):
		return i.stale(k, "no answer of late")
	}
	return told{}
}

// stale is an answer that is given since the server does not.
func (i *inquiry) stale(k kept, why string) told {
	return told{k.answer.For(i.Query, i.limit, k.age, true), byStale, mesh.ReasonDNSStale, why}
}

// inTime asks the server, and answers what it says, or a stale answer if there is
// one and the server takes too long.
func (p *served) inTime(i *inquiry) told {
	var patient <-chan time.Time
	k, stale := kept{}, false
	if i.Plain {
		k, stale = p.cache.get(i.question(), time.Now())
		stale = stale && p.mayBeStale(i, k)
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
	case r != nil && r.Final():
		return told{message: r.For(i.Query, i.limit, 0, false), by: byUpstream}
	case stale:
		return i.stale(k, whyOf(r, err))
	case r != nil:
		return told{r.For(i.Query, i.limit, 0, false), byUpstream, mesh.ReasonDNSFailed, whyOf(r, err)}
	case f == nil:
		return told{by: overBudget, reason: mesh.ReasonBudgetExceeded, why: "too many questions are open"}
	case err == nil: // the agent ends: another one answers when the client asks again
		return told{by: failed}
	}
	return told{i.Failure(wire.ServerFailure, wire.Unreachable), failed, mesh.ReasonDNSFailed, whyOf(r, err)}
}

// mayBeStale: that a service is not there must not be said when it may be by now,
// unless nothing of its namespace is known: a search list makes
// example.com.svc.cluster.local of example.com. That it has no address of one family
// goes with its addresses of the other.
func (p *served) mayBeStale(i *inquiry, k kept) bool {
	if !k.answer.Negative {
		return true
	}
	_, namespace, ok := serviceName(i.Host())
	switch {
	case !ok:
		return true
	case k.answer.Rcode == wire.NameError:
		return !hasServices(p.cfg.Store.View(), namespace)
	}
	other := i.question()
	switch i.Type {
	case wire.TypeA:
		other.kind = wire.TypeAAAA
	case wire.TypeAAAA:
		other.kind = wire.TypeA
	default:
		return false
	}
	with, ok := p.cache.get(other, time.Now())
	return ok && !with.answer.Negative
}

// hasServices reports whether any service of a namespace is known; any may be while
// there is no model.
func hasServices(view *mesh.View, namespace string) bool {
	all := view.Services() // sorted
	at, _ := slices.BinarySearchFunc(all, mesh.Key{Namespace: namespace}, func(s *mesh.Service, key mesh.Key) int { return s.Key.Compare(key) })
	return !view.Synced() || at < len(all) && all[at].Namespace == namespace
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
	if p.ended.Err() == nil {
		p.servers.heard(i.server.Addr(), begun, f.err)
	}
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
// leave the node. Whose identity is revoked asks nobody: a server asks others.
func mayAsk(view *mesh.View, of mesh.Key, server netip.AddrPort) bool {
	if server.Port() != port || leaves(view, of) == mesh.ReasonIdentityRevoked {
		return false
	}
	if server.Addr().IsLinkLocalUnicast() {
		return true
	}
	w, _ := view.Workload(of)
	r := view.Route(w, server)
	if r.Service != nil && slices.Contains(r.Service.External, server.Addr().Unmap()) {
		// Queries go to the server itself, which is whose it would be without the service.
		return view.InCluster(server.Addr().Unmap()) || leaves(view, of) == mesh.ReasonEgressAllowed
	}
	return r.Kind != mesh.RouteReject || r.Reason != mesh.ReasonEgressDenied
}

// leaves says whether what a workload sends may leave the mesh.
func leaves(view *mesh.View, of mesh.Key) mesh.Reason {
	w, known := view.Workload(of)
	if !known {
		w = &mesh.Workload{Key: of}
	}
	return view.Egress(w)
}

// whyNot is why a workload may not ask a server.
func whyNot(view *mesh.View, of mesh.Key) (why mesh.Reason, detail string) {
	if leaves(view, of) == mesh.ReasonIdentityRevoked {
		return mesh.ReasonIdentityRevoked, "whose identity is revoked asks no server"
	}
	return mesh.ReasonEgressDenied, "the server is outside the mesh"
}
