// Package past is what agents keep of who talked to whom: from them, or from a file. It
// decides nothing.
//
// A History is read-only once it is read; the functions may be called from any
// goroutine.
package past

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/flow"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// The bounds of a file that is read. MaxSummaries is that of an agent's answer, too.
const (
	maxLine      = 64 << 10
	MaxSummaries = 1 << 22
)

// End is one end of a summary, as -o json prints it.
type End struct {
	Workload string `json:"workload,omitempty"`
	Identity string `json:"identity,omitempty"`
	Address  string `json:"address,omitempty"`
}

// Summary is a meshpb.FlowSummary, as -o json prints it, one object per line. Port is
// 0 when it is of connections to several, which were too many to be told apart: the
// destination has no address then, and none at all when it may be any.
type Summary struct {
	Hour        time.Time `json:"hour"`
	First       time.Time `json:"first"`
	Last        time.Time `json:"last"`
	Node        string    `json:"node"`
	Direction   string    `json:"direction"`
	Source      End       `json:"source"`
	Destination End       `json:"destination"`
	Service     string    `json:"service,omitempty"`
	Port        uint16    `json:"port"`
	Verdict     string    `json:"verdict"`
	Reason      string    `json:"reason"`
	Policy      string    `json:"policy,omitempty"`
	Rule        *int32    `json:"rule,omitempty"`
	Transport   string    `json:"transport"`
	// Protocol is the IP protocol of what the gate dropped, or 17 of datagrams; 0 is TCP, or
	// several.
	Protocol      uint8  `json:"protocol,omitempty"`
	Count         uint64 `json:"count"`
	BytesSent     uint64 `json:"bytesSent"`
	BytesReceived uint64 `json:"bytesReceived"`
}

// Coverage is how much of the past a node knows; the last line of each node.
type Coverage struct {
	Node string `json:"node"`
	// Since is the first hour of which something is known; nil when there is none.
	Since   *time.Time `json:"since,omitempty"`
	LeftOut uint64     `json:"leftOut,omitempty"`
	Damaged []string   `json:"damaged,omitempty"`
	// Lines is, in a file, how many such lines it has; 0 in one of a version before.
	Lines int `json:"lines,omitempty"`
}

// History is what is known of the past.
type History struct {
	Summaries []Summary
	Nodes     []Coverage
	// Cut says why the file that it was read from may lack its end; "" when it is whole.
	Cut string
}

// line is one of a file: a summary, or a coverage.
type line struct {
	*Summary
	Coverage *Coverage `json:"coverage,omitempty"`
}

// Add takes what an agent says.
func (h *History) Add(m *meshpb.HistoryResponse) {
	if c := m.GetCoverage(); c != nil {
		coverage := Coverage{Node: c.GetNode(), LeftOut: c.GetLeftOut(), Damaged: c.GetDamaged()}
		if c.GetSinceNs() != 0 {
			since := time.Unix(0, c.GetSinceNs()).UTC()
			coverage.Since = &since
		}
		h.Nodes = append(h.Nodes, coverage)
	}
	s := m.GetSummary()
	if s == nil {
		return
	}
	at := func(ns int64) time.Time { return time.Unix(0, ns).UTC() }
	end := func(e *meshpb.SummaryEndpoint) End { return End{e.GetWorkload(), e.GetIdentity(), e.GetAddress()} }
	h.Summaries = append(h.Summaries, Summary{
		Hour: at(s.GetHourNs()), First: at(s.GetFirstNs()), Last: at(s.GetLastNs()), Node: s.GetNode(), Direction: s.GetDirection(),
		Source: end(s.GetSource()), Destination: end(s.GetDestination()), Service: s.GetService(), Port: uint16(s.GetPort()),
		Verdict: s.GetVerdict(), Reason: s.GetReason(), Policy: s.GetPolicy(), Rule: s.Rule, Transport: s.GetTransport(),
		Count: s.GetCount(), BytesSent: s.GetBytesSent(), BytesReceived: s.GetBytesReceived(), Protocol: uint8(s.GetProtocol()),
	})
}

// Write writes what Read reads: one object per line, in order of hours.
func (h *History) Write(out io.Writer) error {
	enc := json.NewEncoder(out)
	enc.SetEscapeHTML(false)
	for i := range h.Summaries {
		if err := enc.Encode(line{Summary: &h.Summaries[i]}); err != nil {
			return err
		}
	}
	for i := range h.Nodes {
		last := h.Nodes[i]
		last.Lines = len(h.Nodes)
		if err := enc.Encode(line{Coverage: &last}); err != nil {
			return err
		}
	}
	return nil
}

// Read reads what Write wrote. Fields that this version does not know are passed
// over; an error names the line, the field and what to do. What may be cut is told of in
// History.Cut: it may as well be that somebody has filtered it.
func Read(in io.Reader) (*History, error) {
	h := &History{}
	ended := false // the last line is one of those that come last
	scanner := bufio.NewScanner(in)
	scanner.Buffer(nil, maxLine)
	for number := 1; scanner.Scan(); number++ {
		text := bytes.TrimSpace(scanner.Bytes())
		if len(text) == 0 {
			continue
		}
		l := line{Summary: &Summary{}}
		err := json.Unmarshal(text, &l)
		switch {
		case err == nil && l.Coverage != nil:
			h.Nodes, ended = append(h.Nodes, *l.Coverage), true
			continue
		case err == nil && len(h.Summaries) >= MaxSummaries:
			err = fmt.Errorf("there are more than %d; remedy: write fewer hours, with --since", MaxSummaries)
		case err == nil:
			_, err = l.Summary.Connection()
		}
		if err != nil {
			return nil, fmt.Errorf("line %d: %w; remedy: the file is one that `heddle history -o json` writes", number, err)
		}
		h.Summaries, ended = append(h.Summaries, *l.Summary), false
	}
	if err := scanner.Err(); err != nil {
		if errors.Is(err, bufio.ErrTooLong) {
			err = fmt.Errorf("a line has more than %d bytes; remedy: the file is one that `heddle history -o json` writes", maxLine)
		}
		return nil, err
	}
	if len(h.Summaries)+len(h.Nodes) == 0 {
		return nil, errors.New("is empty, which would let everything pass; remedy: write it with `heddle history -o json`, which has a line of each node even when that knows of no connection")
	}
	h.Cut = h.cutAt(ended)
	return h, nil
}

// Only drops what ended before since (the zero time drops nothing), and what is not
// of the namespace, at either end ("" drops nothing). What may be of it is kept.
func (h *History) Only(namespace string, since time.Time) {
	h.Summaries = slices.DeleteFunc(h.Summaries, func(s Summary) bool {
		return !s.Hour.Add(time.Hour).After(since) || namespace != "" && !s.of(namespace) && !s.Destination.any()
	})
}

// Has reports whether something is of a namespace, at either end.
func (h *History) Has(namespace string) bool {
	return slices.ContainsFunc(h.Summaries, func(s Summary) bool { return s.of(namespace) })
}

// of reports whether an end is of a namespace, or the service that datagrams were sent to.
func (s *Summary) of(namespace string) bool {
	end := func(e End) bool {
		ns, _, _ := strings.Cut(e.Workload, "/")
		return ns == namespace || strings.Contains(e.Identity, "/ns/"+namespace+"/sa/")
	}
	return end(s.Source) || end(s.Destination) || s.datagrams() && strings.HasPrefix(s.Service, namespace+"/")
}

// Empty reports whether there is nothing of which Connections has anything.
func (h *History) Empty() bool {
	return !slices.ContainsFunc(h.Summaries, func(s Summary) bool { return !s.passedOver() })
}

// Span says from when to when there is something; "" of a history that is Empty.
func (h *History) Span() string {
	if h.Empty() {
		return ""
	}
	first, last := h.Summaries[0].First, h.Summaries[0].Last
	for i := range h.Summaries {
		if s := &h.Summaries[i]; s.First.Before(first) {
			first = s.First
		}
		if s := &h.Summaries[i]; s.Last.After(last) {
			last = s.Last
		}
	}
	return "from " + Stamp(first) + " to " + Stamp(last)
}

// Stamp is how times of the past are written for people: in UTC, to the minute.
func Stamp(t time.Time) string { return t.UTC().Format("2006-01-02 15:04Z") }

// Sort puts what nodes have said in one order: by hours, then by who and where to.
func (h *History) Sort() {
	slices.SortStableFunc(h.Summaries, func(a, b Summary) int {
		return cmp.Or(a.Hour.Compare(b.Hour), strings.Compare(a.Source.Workload, b.Source.Workload), strings.Compare(a.Source.Identity, b.Source.Identity),
			strings.Compare(a.Source.Address, b.Source.Address), strings.Compare(a.Destination.Workload, b.Destination.Workload),
			strings.Compare(a.Destination.Address, b.Destination.Address), cmp.Compare(a.Port, b.Port), strings.Compare(a.Node, b.Node),
			strings.Compare(a.Direction, b.Direction), strings.Compare(a.Verdict, b.Verdict), strings.Compare(a.Reason, b.Reason), cmp.Compare(a.Protocol, b.Protocol))
	})
	slices.SortStableFunc(h.Nodes, func(a, b Coverage) int { return strings.Compare(a.Node, b.Node) })
}

// Peer is one end of a connection: of it, what is known.
type Peer struct {
	Workload mesh.Key
	Identity spiffeid.ID
	Address  netip.Addr
}

// any reports whether a destination is one of several that were not told apart.
func (e End) any() bool { return e.Workload == "" && e.Address == "" }

// Connection is what connections of the past have alike that a decision is about; or
// datagrams between two, what went to a service's address apart from what came to its
// workloads.
type Connection struct {
	// UDP says that it is datagrams.
	UDP                 bool
	Source, Destination Peer
	// Service is the one that was dialled; zero where none was, or nobody says.
	Service mesh.Key
	Port    uint16
	// Each as the client's agent and the server's counted it: one of them may not
	// have been asked, or have been in no mesh.
	Allowed, Denied [2]uint64
	Last            time.Time
}

// Carried is how many were carried.
func (c *Connection) Carried() uint64 { return max(c.Allowed[0], c.Allowed[1]) }

// Refused is how many were refused.
func (c *Connection) Refused() uint64 { return max(c.Denied[0], c.Denied[1]) }

// Connection is what a summary is of; an error names the field that is not known.
func (s *Summary) Connection() (Connection, error) {
	bad := func(field, value string) (Connection, error) {
		return Connection{}, fmt.Errorf("%s: %q is not known", field, value)
	}
	c := Connection{Port: s.Port, Last: s.Last, UDP: s.datagrams()}
	direction, err := flow.ParseDirection(s.Direction)
	if err != nil {
		return bad("direction", s.Direction)
	}
	verdict, err := flow.ParseVerdict(s.Verdict)
	if err != nil {
		return bad("verdict", s.Verdict)
	}
	for _, end := range []struct {
		field string
		from  End
		to    *Peer
	}{{"source", s.Source, &c.Source}, {"destination", s.Destination, &c.Destination}} {
		if err := end.to.parse(end.from); err != nil {
			return c, fmt.Errorf("%s.%w", end.field, err)
		}
	}
	if s.Service != "" {
		if c.Service, err = parseKey(s.Service); err != nil {
			return bad("service", s.Service)
		}
	}
	if s.Destination.any() && s.Port != 0 {
		return c, errors.New("destination: it has a port, and neither a workload nor an address")
	}
	side := 1
	if direction == flow.DirectionOutbound {
		side = 0
	}
	if verdict == mesh.VerdictDeny {
		c.Denied[side] = s.Count
	} else {
		c.Allowed[side] = s.Count
	}
	return c, nil
}

func (p *Peer) parse(e End) (err error) {
	if e.Workload != "" {
		if p.Workload, err = parseKey(e.Workload); err != nil {
			return fmt.Errorf("workload: %q is not NAMESPACE/NAME", e.Workload)
		}
	}
	if e.Identity != "" {
		if p.Identity, err = spiffeid.FromString(e.Identity); err != nil {
			return fmt.Errorf("identity: %q is not a SPIFFE ID", e.Identity)
		}
	}
	if e.Address != "" {
		if p.Address, err = netip.ParseAddr(e.Address); err != nil {
			return fmt.Errorf("address: %q is not an address", e.Address)
		}
		p.Address = p.Address.Unmap().WithZone("")
	}
	return nil
}

func parseKey(word string) (mesh.Key, error) {
	namespace, name, ok := strings.Cut(word, "/")
	if !ok || namespace == "" || name == "" || strings.Contains(name, "/") {
		return mesh.Key{}, fmt.Errorf("%q is not NAMESPACE/NAME", word)
	}
	return mesh.Key{Namespace: namespace, Name: name}, nil
}

// dropped reports whether the gate dropped it for another reason than one that a
// policy could change: plaintext to a STRICT port is a connection refused, and datagrams
// that no policy lets pass are.
func (s *Summary) dropped() bool {
	return !s.datagrams() && (s.Direction == flow.DirectionKernel.String() && s.Reason != mesh.ReasonKernelPlaintextInbound.String() || s.Protocol != 0)
}

// passedOver reports whether no policy is asked about it.
func (s *Summary) passedOver() bool {
	return s.dropped() || s.Reason == mesh.ReasonProbe.String() || mesh.ReservedPort(s.Port) && s.Destination.Workload != ""
}

// Connections sums the history up, without probes, which no policy keeps out, tunnels
// that came to no connection, and what the gate dropped.
func (h *History) Connections() ([]*Connection, error) {
	type alike struct {
		source, destination mesh.Key
		identity            spiffeid.ID
		client, server      netip.Addr
		port                uint16
		udp                 bool
		// service is of datagrams to its address, which another may have had, and of connections
		// to its waypoint, which may be that of others.
		service mesh.Key
	}
	found, apart := map[alike]*Connection{}, h.apart()
	var all []*Connection
	for i := range h.Summaries {
		s := &h.Summaries[i]
		c, err := s.Connection()
		if err != nil {
			return nil, err
		}
		if s.passedOver() {
			continue
		}
		k := alike{source: c.Source.Workload, destination: c.Destination.Workload, port: c.Port, server: c.Destination.Address, udp: c.UDP}
		if c.Destination.Workload != (mesh.Key{}) {
			k.server = netip.Addr{}
		}
		if c.Destination.Workload == (mesh.Key{}) && c.UDP || apart(s) {
			k.service = c.Service
		}
		if c.Source.Workload == (mesh.Key{}) { // of one that is known, the server's agent may know less
			k.identity, k.client = c.Source.Identity, c.Source.Address
		}
		have, ok := found[k]
		if !ok {
			have = &c
			found[k] = have
			all = append(all, have)
			continue
		}
		have.add(&c)
	}
	return all, nil
}

// apart returns what tells whether connections to a workload are to be told apart by the
// service that was dialled: to a waypoint, where each service has a port and policies of its own.
// There, both ends name the service. Elsewhere the server's agent knows of none, and what the
// client's counted is the same again. Where no agent of a server says anything, nothing is
// counted twice.
func (h *History) apart() func(*Summary) bool {
	type place struct {
		workload string
		port     uint16
	}
	waypoints, itself := map[string]bool{}, map[place]bool{}
	for i := range h.Summaries {
		s := &h.Summaries[i]
		switch inbound := s.Direction == flow.DirectionInbound.String(); {
		case s.Service != "" && (inbound || s.Reason == mesh.ReasonWaypoint.String()):
			waypoints[s.Destination.Workload] = true
		case inbound:
			itself[place{s.Destination.Workload, s.Port}] = true
		}
	}
	return func(s *Summary) bool {
		return !s.datagrams() && s.Destination.Workload != "" && (waypoints[s.Destination.Workload] || !itself[place{s.Destination.Workload, s.Port}])
	}
}

func (c *Connection) add(other *Connection) {
	for side := range c.Allowed {
		c.Allowed[side] += other.Allowed[side]
		c.Denied[side] += other.Denied[side]
	}
	if c.Source.Identity.IsZero() {
		c.Source.Identity = other.Source.Identity
	}
	if c.Destination.Identity.IsZero() {
		c.Destination.Identity = other.Destination.Identity
	}
	if c.Service == (mesh.Key{}) {
		c.Service = other.Service
	}
	if other.Last.After(c.Last) {
		c.Last = other.Last
		if other.Source.Address.IsValid() {
			c.Source.Address = other.Source.Address
		}
	}
}

// datagrams reports whether it is of datagrams between two, which passed or which the gate
// dropped as no policy lets them pass.
func (s *Summary) datagrams() bool {
	return s.Protocol == flow.ProtocolUDP && (s.Direction != flow.DirectionKernel.String() || s.Reason == mesh.ReasonKernelUDP.String())
}

// NameServices adds to datagrams that were sent to a service's address, and were dropped,
// whose that is, as serviceAt has it: agents do not say so where no policy is about UDP.
func (h *History) NameServices(serviceAt func(netip.Addr) (mesh.Key, bool)) {
	for i := range h.Summaries {
		s := &h.Summaries[i]
		if !s.datagrams() || s.Service != "" || s.Destination.Workload != "" {
			continue
		}
		if addr, err := netip.ParseAddr(s.Destination.Address); err == nil {
			if service, ok := serviceAt(addr); ok {
				s.Service = service.String()
			}
		}
	}
}

// Anywhere reports whether nothing is known of where they went.
func (c *Connection) Anywhere() bool {
	return c.Destination.Workload == (mesh.Key{}) && !c.Destination.Address.IsValid()
}
