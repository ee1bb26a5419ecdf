package history

import (
	"math"
	"net/netip"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/flow"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// key is what the connections of one summary have in common.
type key struct {
	source, destination end
	service             mesh.Key
	node                string
	policy              mesh.Key
	rule                int
	port                uint16
	direction           flow.Direction
	transport           flow.Transport
	verdict             mesh.Verdict
	reason              mesh.Reason
	protocol            uint8 // 0 for TCP
}

type end struct {
	workload mesh.Key
	identity spiffeid.ID
	address  netip.Addr
}

// sums are what the connections come to.
type sums struct {
	count, sent, received uint64
	first, last           time.Time
}

func unspecified() netip.Addr { return netip.Addr{} }

// keyOf returns the key of a connection, or of what the gate dropped, whatever its
// protocol; false for a name query.
func keyOf(r *flow.Record) (key, bool) {
	if r.Direction == flow.DirectionDNS {
		return key{}, false
	}
	k := key{
		source:      end{r.Source.Workload, r.Source.Identity, plain(r.Source.Addr.Addr())},
		destination: end{r.Destination.Workload, r.Destination.Identity, plain(r.Destination.Addr.Addr())},
		service:     r.Service, node: r.Node, policy: r.Policy, rule: r.Rule, port: r.Destination.Addr.Port(),
		direction: r.Direction, transport: r.Transport, verdict: r.Verdict, reason: r.Reason,
	}
	if r.Protocol != unix.IPPROTO_TCP {
		k.protocol = r.Protocol
	}
	if k.destination.workload != (mesh.Key{}) {
		k.destination.address = unspecified()
	}
	return k, true
}

func plain(addr netip.Addr) netip.Addr { return addr.Unmap().WithZone("") }

// stranger reports whether the client is nobody that the mesh knows.
func (k *key) stranger() bool { return k.source.workload == (mesh.Key{}) && k.source.identity.IsZero() }

// client is whose share of an hour's room a kind takes. Those that nobody knows are one.
type client struct {
	workload mesh.Key
	identity spiffeid.ID // of one that is no workload that the node knows
}

func (k *key) client() client {
	if k.source.workload != (mesh.Key{}) {
		return client{workload: k.source.workload}
	}
	return client{identity: k.source.identity}
}

// within returns the key under which a client has a new kind that has had so many
// already. Beyond its share the clients that nobody knows have no address any more, and
// the others a destination's neither address nor port; beyond a share more nobody has
// anything of the destination, nor an address without a workload: what is left to tell
// kinds apart is few words of the configuration.
func (k key) within(had int) key {
	share := maxOfClient
	if k.stranger() {
		share = maxOfStrangers
	}
	if had < share {
		return k
	}
	if k.stranger() {
		k.source.address = unspecified()
	} else {
		k.destination.address, k.port = unspecified(), 0
	}
	if had < share+maxOfClient {
		return k
	}
	k.destination, k.service, k.port = end{}, mesh.Key{}, 0
	if k.source.workload == (mesh.Key{}) {
		k.source.address = unspecified()
	}
	return k
}

func (k *key) denied() bool { return k.verdict == mesh.VerdictDeny }

func (s *sums) add(r *flow.Record) {
	// A dropped packet is a try, and its copies are the same one.
	s.count++
	s.sent += r.BytesSent
	s.received += r.BytesReceived
	if r.Start.Before(s.first) {
		s.first = r.Start
	}
	if last := r.Start.Add(r.Duration); last.After(s.last) {
		s.last = last
	}
}

func (k *key) summary(begin time.Time, s *sums) *meshpb.FlowSummary {
	p := &meshpb.FlowSummary{
		HourNs: begin.UnixNano(), FirstNs: meshpb.Nanos(s.first), LastNs: meshpb.Nanos(s.last), Node: k.node, Direction: k.direction.String(),
		Source: k.source.proto(), Destination: k.destination.proto(), Service: flow.KeyWord(k.service), Port: uint32(k.port),
		Verdict: k.verdict.String(), Reason: k.reason.String(), Policy: flow.KeyWord(k.policy), Transport: k.transport.String(),
		Count: s.count, BytesSent: s.sent, BytesReceived: s.received, Protocol: uint32(k.protocol),
	}
	if k.policy != (mesh.Key{}) && k.rule >= 0 && k.rule <= math.MaxInt32 {
		rule := int32(k.rule)
		p.Rule = &rule
	}
	return p
}

func (e *end) proto() *meshpb.SummaryEndpoint {
	p := &meshpb.SummaryEndpoint{Workload: flow.KeyWord(e.workload)}
	if !e.identity.IsZero() {
		p.Identity = e.identity.String()
	}
	if e.address.IsValid() {
		p.Address = e.address.String()
	}
	return p
}

// Summarize returns a summary of one connection that is open: of the hour that now
// is in. It is false for what is no connection.
func Summarize(r *flow.Record, now time.Time) (*meshpb.FlowSummary, bool) {
	k, ok := keyOf(r)
	if !ok || r.Reason == mesh.ReasonUnknown { // not decided yet
		return nil, false
	}
	s := &sums{first: r.Start}
	s.add(r)
	return k.summary(now.UTC().Truncate(time.Hour), s), true
}
