// Package replay asks of recorded connections what would become of them: under a
// changed configuration, and which policies would admit those and no others. It
// reads what agents keep of the past, from them or from a file, and decides by the
// model that agents decide by. It opens no connection and changes nothing.
//
// A History is read-only once it is read; the functions may be called from any
// goroutine.
package replay

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

// The bounds of a file that is read.
const (
	maxLine      = 64 << 10
	maxSummaries = 1 << 22
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
	// Protocol is the IP protocol of what the gate dropped; 0 is TCP, or several.
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
}

// History is what is known of the past.
type History struct {
	Summaries []Summary
	Nodes     []Coverage
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
		if err := enc.Encode(line{Coverage: &h.Nodes[i]}); err != nil {
			return err
		}
	}
	return nil
}

// Read reads what Write wrote. Fields that this version does not know are passed
// over; an error names the line, the field and what to do.
func Read(in io.Reader) (*History, error) {
	h := &History{}
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
			h.Nodes = append(h.Nodes, *l.Coverage)
			continue
		case err == nil && len(h.Summaries) >= maxSummaries:
			err = fmt.Errorf("there are more than %d; remedy: write fewer hours, with --since", maxSummaries)
		case err == nil:
			_, err = l.Summary.connection()
		}
		if err != nil {
			return nil, fmt.Errorf("line %d: %w; remedy: the file is one that `heddle history -o json` writes", number, err)
		}
		h.Summaries = append(h.Summaries, *l.Summary)
	}
	if err := scanner.Err(); err != nil {
		if errors.Is(err, bufio.ErrTooLong) {
			err = fmt.Errorf("a line has more than %d bytes; remedy: the file is one that `heddle history -o json` writes", maxLine)
		}
		return nil, err
	}
	return h, nil
}

// Only drops what ended before since (the zero time drops nothing), and what is not
// of the namespace, at either end ("" drops nothing). What may be of it is kept.
func (h *History) Only(namespace string, since time.Time) {
	of := func(e End) bool {
		ns, _, _ := strings.Cut(e.Workload, "/")
		return ns == namespace || strings.Contains(e.Identity, "/ns/"+namespace+"/sa/")
	}
	h.Summaries = slices.DeleteFunc(h.Summaries, func(s Summary) bool {
		return !s.Hour.Add(time.Hour).After(since) || namespace != "" && !of(s.Source) && !of(s.Destination) && !s.Destination.any()
	})
}

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

// peer is one end of a connection.
type peer struct {
	workload mesh.Key
	identity spiffeid.ID
	address  netip.Addr
}

// any reports whether a destination is one of several that were not told apart.
func (e End) any() bool { return e.Workload == "" && e.Address == "" }

// connection is what connections of the past have alike that a decision is about.
type connection struct {
	source, destination peer
	service             mesh.Key
	port                uint16
	// Each as the client's agent and the server's counted it: one of them may not
	// have been asked, or have been in no mesh.
	allowed, denied [2]uint64
	last            time.Time
}

// carried and refused are how many there were.
func (c *connection) carried() uint64 { return max(c.allowed[0], c.allowed[1]) }
func (c *connection) refused() uint64 { return max(c.denied[0], c.denied[1]) }

func (s *Summary) connection() (connection, error) {
	bad := func(field, value string) (connection, error) {
		return connection{}, fmt.Errorf("%s: %q is not known", field, value)
	}
	c := connection{port: s.Port, last: s.Last}
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
		to    *peer
	}{{"source", s.Source, &c.source}, {"destination", s.Destination, &c.destination}} {
		if err := end.to.parse(end.from); err != nil {
			return c, fmt.Errorf("%s.%w", end.field, err)
		}
	}
	if s.Service != "" {
		if c.service, err = parseKey(s.Service); err != nil {
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
		c.denied[side] = s.Count
	} else {
		c.allowed[side] = s.Count
	}
	return c, nil
}

func (p *peer) parse(e End) (err error) {
	if e.Workload != "" {
		if p.workload, err = parseKey(e.Workload); err != nil {
			return fmt.Errorf("workload: %q is not NAMESPACE/NAME", e.Workload)
		}
	}
	if e.Identity != "" {
		if p.identity, err = spiffeid.FromString(e.Identity); err != nil {
			return fmt.Errorf("identity: %q is not a SPIFFE ID", e.Identity)
		}
	}
	if e.Address != "" {
		if p.address, err = netip.ParseAddr(e.Address); err != nil {
			return fmt.Errorf("address: %q is not an address", e.Address)
		}
		p.address = p.address.Unmap().WithZone("")
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
// policy could change: only plaintext to a STRICT port is a connection refused.
func (s *Summary) dropped() bool {
	return s.Direction == flow.DirectionKernel.String() && s.Reason != mesh.ReasonKernelPlaintextInbound.String() || s.Protocol != 0
}

// connections sums the history up, without probes, which no policy keeps out, tunnels
// that came to no connection, and what the gate dropped.
func (h *History) connections() ([]*connection, error) {
	type alike struct {
		source, destination mesh.Key
		identity            spiffeid.ID
		client, server      netip.Addr
		port                uint16
	}
	found := map[alike]*connection{}
	var all []*connection
	for i := range h.Summaries {
		s := &h.Summaries[i]
		c, err := s.connection()
		if err != nil {
			return nil, err
		}
		if s.dropped() || s.Reason == mesh.ReasonProbe.String() || mesh.ReservedPort(c.port) && c.destination.workload != (mesh.Key{}) {
			continue
		}
		k := alike{source: c.source.workload, destination: c.destination.workload, port: c.port, server: c.destination.address}
		if c.destination.workload != (mesh.Key{}) {
			k.server = netip.Addr{}
		}
		if c.source.workload == (mesh.Key{}) { // of one that is known, the server's agent may know less
			k.identity, k.client = c.source.identity, c.source.address
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

func (c *connection) add(other *connection) {
	for side := range c.allowed {
		c.allowed[side] += other.allowed[side]
		c.denied[side] += other.denied[side]
	}
	if c.source.identity.IsZero() {
		c.source.identity = other.source.identity
	}
	if c.destination.identity.IsZero() {
		c.destination.identity = other.destination.identity
	}
	if c.service == (mesh.Key{}) {
		c.service = other.service
	}
	if other.last.After(c.last) {
		c.last = other.last
		if other.source.address.IsValid() {
			c.source.address = other.source.address
		}
	}
}
