package record

import (
	"net/netip"
	"time"

	"github.com/heddle-mesh/heddle/internal/flow"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/waypoint/accesslog"
	"github.com/heddle-mesh/heddle/waypoint/plan"
	"github.com/heddle-mesh/heddle/waypoint/requests"
)

// Connection is what is kept of a connection that goes by a TLSRoute or a TCPRoute, until it has ended. It is used by one goroutine.
type Connection struct {
	Began   time.Time
	Passage plan.Passage
	// Name is the server that the client asks for, "" without one.
	Name string
	// Received came from the client, Sent went to it: bytes.
	Received, Sent int64
	// Reason is why it was refused, or ended by the waypoint; "" otherwise. Tries is how many workloads were asked.
	Reason string
	Tries  int
	// Decision is why it was let in to the workload that was asked last, or was not.
	Decision mesh.Decision

	to destination
}

// Went keeps which workload is asked, at its address.
func (n *Connection) Went(to *mesh.Workload, at netip.AddrPort, d mesh.Decision) {
	n.to, n.Decision = destination{to.Key, to.Identity, at}, d
}

// Tell tells of the connection of a client that has ended.
func (n *Connection) Tell(s *Sinks, c *plan.Client, now time.Time) {
	refused := n.Reason != ""
	n.Passage.Series.Ended(refused)
	protocol := flow.MethodTCP
	if n.Passage.IsTLS() {
		protocol = flow.MethodTLS
	}
	if s.Flows != nil {
		n.show(s, c, protocol, now)
	}
	if !s.Access.WantsConnection(refused) {
		return
	}
	e := accesslog.Entry{Time: n.Began, Client: c.Addr, Peer: c.ID.String(), Service: n.Passage.Service, Route: n.Passage.Route, Backend: n.Passage.Backend,
		Method: []byte(protocol), Host: []byte(n.Name), Received: n.Received, Sent: n.Sent, Took: now.Sub(n.Began), Tries: n.Tries, Reason: n.Reason}
	if n.to.workload != (mesh.Key{}) {
		e.Workload = n.to.workload.String()
	}
	s.Access.Add(&e)
}

// show tells of it as a flow.
func (n *Connection) show(s *Sinks, c *plan.Client, protocol string, now time.Time) {
	r := flow.Request{Start: n.Began, Duration: now.Sub(n.Began), Service: n.Passage.Service, BytesSent: n.Received, BytesReceived: n.Sent,
		Source:      flow.Endpoint{Workload: c.Workload, Identity: c.ID, Addr: c.Addr},
		Destination: flow.Endpoint{Workload: n.to.workload, Identity: n.to.identity, Addr: n.to.at},
		HTTP:        flow.HTTP{Method: protocol, Route: n.Passage.Route, Backend: n.Passage.Backend, Tries: n.Tries},
		Verdict:     n.Decision.Verdict, Reason: n.Decision.Reason.String(), Policy: n.Decision.Policy, Rule: n.Decision.Rule, Audited: flow.NamesOf(n.Decision.Audited)}
	if n.Reason != "" && n.Reason != r.Reason {
		r.Verdict, r.Reason, r.Policy, r.Rule = mesh.VerdictDeny, n.Reason, mesh.Key{}, -1
	}
	if s.Flows.Wants(r.Service, "") || requests.Notable(&r) {
		s.Flows.Add(&r)
	}
}
