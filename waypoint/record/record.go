// Package record keeps what is to be told of a request until it has ended, and tells it: to
// the metrics, the access log, those who look at flows, and a collector of traces. It allocates nothing once it has its memory.
package record

import (
	"net/netip"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/internal/flow"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/waypoint/accesslog"
	"github.com/heddle-mesh/heddle/waypoint/http1"
	"github.com/heddle-mesh/heddle/waypoint/plan"
	"github.com/heddle-mesh/heddle/waypoint/requests"
	"github.com/heddle-mesh/heddle/waypoint/telemetry"
	"github.com/heddle-mesh/heddle/waypoint/trace"
)

// Sinks are told of requests, beside the metrics. Each may be nil.
type Sinks struct {
	Access *accesslog.Log
	Flows  *requests.Log
	Traces *trace.Exporter
}

// Note is what is kept of one request. It is used for one after the other, by one goroutine.
type Note struct {
	// Received and Sent are bytes of the client's connection.
	Received, Sent int64
	// Status is that of the answer, 0 without one, Reason why it is the waypoint's own, Tries how often
	// the request was sent, First why the first try failed.
	Status        int
	Reason, First string
	Tries         int
	// Decision is why it was let in to Workload, or was not.
	Decision mesh.Decision
	// Backend and Workload are where it went.
	Backend, Workload string
	to                destination

	series                       *telemetry.Series
	route, service, path, method string
	// shown says that it is one of the flows, whatever becomes of it.
	shown  bool
	traced bool
	trace  trace.Context
	// text has the method, the host, the path and the user agent, which end there.
	text []byte
	ends [4]int
}

// destination is the workload that was asked last.
type destination struct {
	workload mesh.Key
	identity spiffeid.ID
	at       netip.AddrPort
}

// longest bounds what is kept of each text.
const longest = 1 << 10

// Reset forgets a request, and keeps the memory.
func (n *Note) Reset() { *n = Note{text: n.text[:0]} }

// Went keeps which workload was asked, by its address and its name as a text.
func (n *Note) Went(to *mesh.Workload, at netip.AddrPort, name string) {
	n.Workload = name
	n.to = destination{to.Key, to.Identity, at}
}

// Planned keeps what was decided about a request whose head was kept.
func (n *Note) Planned(s *Sinks, p *plan.Plan, path string) {
	n.series, n.route, n.service, n.path = p.Series, p.Route, p.Service, p.Template
	n.shown = s.Flows.Wants(p.Service, path)
	if n.traced {
		n.trace.Begin(s.Traces.Rules(), p.Service, path)
	}
}

// Trace appends the fields that say which trace a request belongs to, and takes the client's away. They
// lie in the Note.
func (n *Note) Trace(s *Sinks, remove []string, add []http1.Field) ([]string, []http1.Field) {
	if !n.traced {
		return remove, add
	}
	return n.trace.Write(remove, add, s.Traces.Names())
}

// Head keeps what sinks have of a head.
func (n *Note) Head(s *Sinks, head *http1.Head) {
	if n.traced = s.Traces != nil; n.traced {
		n.trace.Read(head.Fields)
	}
	n.method = method(head.Method)
	if s.Access == nil {
		return
	}
	var agent []byte
	for i := range head.Fields {
		if f := &head.Fields[i]; len(f.Name) == len("user-agent") && f.Name[4] == '-' && f.Name[0]|0x20 == 'u' && f.Name[5]|0x20 == 'a' {
			agent = f.Value
		}
	}
	for i, part := range [...][]byte{head.Method, head.Host, head.Path, agent} {
		n.text = append(n.text, part[:min(len(part), longest)]...)
		n.ends[i] = len(n.text)
	}
}

// method is one of few: those of RFC 9110 and 5789.
func method(text []byte) string {
	for _, known := range [...]string{"GET", "POST", "PUT", "DELETE", "HEAD", "PATCH", "OPTIONS", "CONNECT", "TRACE"} {
		if string(text) == known {
			return known
		}
	}
	return "other"
}

func (n *Note) part(i int) []byte {
	from := 0
	if i > 0 {
		from = n.ends[i-1]
	}
	return n.text[from:n.ends[i]]
}

// Tell tells of a request of a client that has ended. Unknown counts those of which
// nothing was decided.
func (n *Note) Tell(s *Sinks, unknown *telemetry.Series, c *plan.Client, began, now time.Time) {
	series := n.series
	if series == nil {
		series = unknown
	}
	series.Ended(n.Status, now.Sub(began))
	if s.Flows != nil || n.traced {
		n.show(s, c, began, now)
	}
	if !s.Access.Wants(n.Status) {
		return
	}
	s.Access.Add(&accesslog.Entry{Time: began, Client: c.Addr, Peer: c.ID.String(), Service: n.service, Route: n.route, Backend: n.Backend, Workload: n.Workload,
		Method: n.part(0), Host: n.part(1), Path: n.part(2), Agent: n.part(3),
		Status: n.Status, Received: n.Received, Sent: n.Sent, Took: now.Sub(began), Tries: n.Tries, First: n.First, Reason: n.Reason})
}

// show tells of a request as a flow, and as a span of its trace.
func (n *Note) show(s *Sinks, c *plan.Client, began, now time.Time) {
	r := flow.Request{Start: began, Duration: now.Sub(began), Service: n.service, BytesSent: n.Received, BytesReceived: n.Sent,
		Source:      flow.Endpoint{Workload: c.Workload, Identity: c.ID, Addr: c.Addr},
		Destination: flow.Endpoint{Workload: n.to.workload, Identity: n.to.identity, Addr: n.to.at},
		HTTP:        flow.HTTP{Method: n.method, Path: n.path, Status: n.Status, Own: n.Reason != "", Route: n.route, Backend: n.Backend, Tries: n.Tries, First: n.First}}
	r.Verdict, r.Reason, r.Policy, r.Rule = n.verdict()
	r.Audited = flow.NamesOf(n.Decision.Audited)
	if n.shown || requests.Notable(&r) {
		s.Flows.Add(&r)
	}
	if n.traced && n.trace.Sampled {
		s.Traces.Add(&n.trace, &r)
	}
}

// verdict is what was decided: a request that got to a workload was let in, whatever became of it then.
func (n *Note) verdict() (v mesh.Verdict, reason string, policy mesh.Key, rule int) {
	v, reason, policy, rule = n.Decision.Verdict, n.Decision.Reason.String(), n.Decision.Policy, n.Decision.Rule
	switch {
	case n.Tries == 0 && n.Reason != "": // it is refused, by a policy or for another reason
		v = mesh.VerdictDeny
		if reason != n.Reason {
			policy, rule = mesh.Key{}, -1
		}
	case n.Tries == 0: // the route itself answers
		v, reason, policy, rule = mesh.VerdictAllow, "", mesh.Key{}, -1
	}
	if n.Reason != "" {
		reason = n.Reason
	}
	return v, reason, policy, rule
}
