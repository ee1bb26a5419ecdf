package dns

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/heddle-mesh/heddle/agent/dns/wire"
	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/flow"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// Journal takes records of queries that were refused, failed, or got an old answer.
// It must not block. flow.Drops is one.
type Journal interface {
	AddQuery(pod mesh.Key, r flow.Record)
}

// record says of one query why its answer is not what was asked for.
func (p *served) record(i *inquiry, t told) flow.Record {
	view := p.cfg.Store.View()
	r := flow.Record{
		Start: time.Now(), Verdict: mesh.VerdictDeny, Reason: t.reason, Rule: -1, Detail: i.Text() + ": " + t.why,
		Source:      flow.Endpoint{Workload: p.Key, Addr: netip.AddrPortFrom(i.client, 0)},
		Destination: flow.Endpoint{Addr: i.server},
	}
	if t.by == byStale {
		r.Verdict = mesh.VerdictAllow
	}
	if i.transport == "udp" {
		r.Protocol = 17 // of IP; RFC 768
	}
	if w, ok := view.Workload(p.Key); ok {
		r.Source.Identity = w.Identity
	}
	if s, ok := view.ServiceAt(i.server.Addr()); ok {
		r.Service = s.Key
	} else if w, ok := view.WorkloadAt(i.server.Addr()); ok {
		r.Destination.Workload = w.Key
	}
	return r
}

// whyOf says why a server was of no use.
func whyOf(r *wire.Response, err error) string {
	switch {
	case r != nil:
		return "the server answered " + wire.RcodeText(r.Rcode)
	case err == nil:
		return "no answer yet"
	}
	switch cause := causeOf(err); cause {
	case causeTimeout:
		return "no answer"
	case causeRefused:
		return "nobody listens there"
	default:
		return cause + " error" // its text has ports, which make each one another
	}
}

// ServerState is how one DNS server fares that pods of the node ask.
type ServerState struct {
	Server netip.Addr
	// Answered is when it last answered, whatever it said; Failed when a question
	// last ended without an answer of it to any pod in the meantime. Zero for never.
	Answered, Failed time.Time
	// Cause of the last failure: timeout, refused or other.
	Cause string
}

// Fails reports whether it has not answered since it was last asked in vain.
func (s *ServerState) Fails() bool { return s.Failed.After(s.Answered) }

// maxServers bounds the servers of which something is known.
const maxServers = 64

// servers knows how the servers fare. It is safe for concurrent use.
type servers struct {
	mu  sync.Mutex
	all map[netip.Addr]*ServerState
}

// heard notes how a question went that began at a time.
func (s *servers) heard(server netip.Addr, begun time.Time, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	state := s.all[server]
	if state == nil {
		if len(s.all) >= maxServers {
			s.forgetOldest()
		}
		state = &ServerState{Server: server}
		s.all[server] = state
	}
	switch {
	case err == nil:
		state.Answered = time.Now()
	case state.Answered.Before(begun): // others may have been answered meanwhile
		state.Failed, state.Cause = time.Now(), causeOf(err)
	}
}

func (s *servers) forgetOldest() {
	var oldest *ServerState
	for _, state := range s.all {
		if oldest == nil || state.last().Before(oldest.last()) {
			oldest = state
		}
	}
	delete(s.all, oldest.Server)
}

func (s *ServerState) last() time.Time {
	if s.Fails() {
		return s.Failed
	}
	return s.Answered
}

// Servers returns how the servers fare that pods of the node have asked of late, at
// most 64, sorted by address.
func (s *Server) Servers() []ServerState {
	s.servers.mu.Lock()
	defer s.servers.mu.Unlock()
	all := make([]ServerState, 0, len(s.servers.all))
	for _, state := range s.servers.all {
		all = append(all, *state)
	}
	slices.SortFunc(all, func(a, b ServerState) int { return a.Server.Compare(b.Server) })
	return all
}

// Checks says it as `heddle check` does: a server is amiss that was asked in vain in
// the last minute, and has not answered since.
func (s *Server) Checks() []*meshpb.Check {
	var all []*meshpb.Check
	for _, state := range s.Servers() {
		check := &meshpb.Check{Name: "DNS server " + state.Server.String(), Ok: true, Detail: state.String()}
		if state.Fails() && time.Since(state.Failed) < time.Minute {
			check.Ok = false
			check.Remedy = "mend the server, or what keeps the node's pods from it; pods get what it said before meanwhile: heddle flows --direction dns"
		}
		all = append(all, check)
	}
	return all
}

// String says when it answered, and when it did not.
func (s *ServerState) String() string {
	ago := func(t time.Time) string { return time.Since(t).Round(time.Second).String() + " ago" }
	switch {
	case !s.Fails():
		return "answered " + ago(s.Answered)
	case s.Answered.IsZero():
		return fmt.Sprintf("has never answered; asked in vain %s (%s)", ago(s.Failed), s.Cause)
	}
	return fmt.Sprintf("answered %s, and was asked in vain %s (%s)", ago(s.Answered), ago(s.Failed), s.Cause)
}
