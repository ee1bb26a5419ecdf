// Package frozen writes down what the proxy knows of a live connection, so that
// another process can go on with it: JSON with a version, whose unknown fields
// are ignored.
package frozen

import (
	"cmp"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/internal/flow"
	"github.com/heddle-mesh/heddle/internal/hbone/secured"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// version is that of readers: it changes when an older one must not go on.
const version = 1

// What Decode accepts at most, in bytes: everything; a name; an identity (SPIFFE
// ID, section 2.3); the zone of a link-local address, which is an interface's
// name (IFNAMSIZ); what names AUDIT policies, two names each.
const maxState, maxName, maxIdentity, maxZone, maxAudited = 16 << 10, 512, 2048, 16, flow.MaxNames * 2 * (maxName + 1)

// errState is why a state is not decoded.
var errState = errors.New("not the state of a live connection")

// Connection is a live connection at rest. What re-authorizes it is in its
// record: who it is from and for, and how it goes.
type Connection struct {
	// Record is the flow record so far; what its end or the recorder gives it is
	// not kept.
	Record flow.Record
	// Sent and Received are its counters, seen from the tunnel's local side.
	Sent, Received uint64
	// Balanced says that the balancer counts it for its destination; Probe that
	// it came as a kubelet's probe.
	Balanced, Probe bool
	// Inside says that both of its ends were seen in the mesh while it was carried.
	Inside bool
}

type state struct {
	Version     int      `json:"version"`
	Start       int64    `json:"startNs"`
	Direction   string   `json:"direction"`
	Transport   string   `json:"transport"`
	Source      endpoint `json:"source"`
	Destination endpoint `json:"destination"`
	Service     key      `json:"service"`
	Verdict     string   `json:"verdict"`
	Reason      string   `json:"reason"`
	Policy      key      `json:"policy"`
	Rule        int      `json:"rule"`
	Handshake   int64    `json:"handshakeNs"`
	Connect     int64    `json:"connectNs"`
	Sent        uint64   `json:"sent"`
	Received    uint64   `json:"received"`
	Balanced    bool     `json:"balanced,omitempty"`
	Probe       bool     `json:"probe,omitempty"`
	tunnelled
	hop
	judged
}

// tunnelled is of a tunnel, as secured.Facts has it; a version before knows none of it.
type tunnelled struct {
	Group        uint16 `json:"group,omitempty"`
	PeerSerial   string `json:"peerSerial,omitempty"`
	PeerNotAfter int64  `json:"peerNotAfter,omitempty"`
}

// hop is of a connection to a waypoint, or from one; a version before knows none of it, and
// of reasons those that were there: it is told another of the same verdict.
type hop struct {
	Waypoint *key   `json:"waypoint,omitempty"`
	Newer    string `json:"newerReason,omitempty"`
}

// judged is what was seen of it as it was judged: the AUDIT policies that matched, and both ends in the
// mesh. A version before knows none of it: what leaves the mesh has its drain there.
type judged struct {
	Audited []string `json:"audited,omitempty"`
	Inside  bool     `json:"inside,omitempty"`
}

type key struct {
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name,omitempty"`
}

type endpoint struct {
	Workload key            `json:"workload"`
	Identity string         `json:"identity,omitempty"`
	Addr     netip.AddrPort `json:"addr"`
}

// Pod is the workload whose connection it is: the destination's for an inbound
// one, else the source's.
func (c *Connection) Pod() mesh.Key {
	if c.Record.Direction == flow.DirectionInbound {
		return c.Record.Destination.Workload
	}
	return c.Record.Source.Workload
}

// Encode writes a connection down.
func (c *Connection) Encode() ([]byte, error) {
	r, by := &c.Record, c.Record.Secured.Facts()
	s := state{
		Version: version, Start: r.Start.UnixNano(), Direction: r.Direction.String(), Transport: r.Transport.String(),
		Source: toEndpoint(r.Source), Destination: toEndpoint(r.Destination), Service: key(r.Service),
		Verdict: r.Verdict.String(), Reason: r.Reason.String(), Policy: key(r.Policy), Rule: r.Rule,
		Handshake: int64(r.Timing.Handshake), Connect: int64(r.Timing.Connect),
		Sent: c.Sent, Received: c.Received, Balanced: c.Balanced, Probe: c.Probe,
		tunnelled: tunnelled{uint16(by.Group), by.Serial, by.NotAfter}, judged: judged{r.Audited.List(), c.Inside},
	}
	if r.Waypoint != (mesh.Key{}) {
		s.Waypoint = (*key)(&r.Waypoint)
	}
	if r.Reason == mesh.ReasonWaypoint {
		s.Reason, s.Newer = mesh.ReasonNoPolicy.String(), s.Reason
	}
	return json.Marshal(s)
}

func toEndpoint(e flow.Endpoint) endpoint {
	return endpoint{Workload: key(e.Workload), Identity: e.Identity.String(), Addr: e.Addr}
}

// Decode is the inverse of Encode. What it returns is a connection that the
// proxy can have made: carried, allowed, and going some way that there is.
func Decode(text []byte) (*Connection, error) {
	if len(text) > maxState {
		return nil, fmt.Errorf("%w: %d bytes, more than %d", errState, len(text), maxState)
	}
	var s state
	if err := json.Unmarshal(text, &s); err != nil {
		return nil, fmt.Errorf("%w: %w", errState, err)
	}
	if s.Version != version {
		return nil, fmt.Errorf("%w: version %d, not %d", errState, s.Version, version)
	}
	c, err := s.connection()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errState, err)
	}
	return c, nil
}

func (s *state) connection() (*Connection, error) {
	c := &Connection{Sent: s.Sent, Received: s.Received, Balanced: s.Balanced, Probe: s.Probe, Inside: s.Inside}
	r := &c.Record
	var errs [6]error
	r.Direction, errs[0] = flow.ParseDirection(s.Direction)
	r.Transport, errs[1] = flow.ParseTransport(s.Transport)
	r.Verdict, errs[2] = flow.ParseVerdict(s.Verdict)
	r.Reason, errs[3] = mesh.ParseReason(cmp.Or(s.Newer, s.Reason))
	r.Source, errs[4] = s.Source.endpoint()
	r.Destination, errs[5] = s.Destination.endpoint()
	if err := errors.Join(errs[:]...); err != nil {
		return nil, err
	}
	switch {
	case !ways(r.Direction, r.Transport):
		return nil, fmt.Errorf("nothing goes %s by %s", r.Direction, r.Transport)
	case r.Verdict == mesh.VerdictDeny:
		return nil, errors.New("it was refused")
	case s.Start <= 0 || s.Handshake < 0 || s.Connect < 0 || s.Rule < -1:
		return nil, fmt.Errorf("numbers out of range: %d, %d, %d, %d", s.Start, s.Handshake, s.Connect, s.Rule)
	case s.Service.tooLong() || s.Policy.tooLong() || s.Waypoint != nil && s.Waypoint.tooLong() || len(flow.NamesIn(s.Audited)) > maxAudited:
		return nil, errors.New("a name is too long")
	}
	r.Start = time.Unix(0, s.Start)
	if r.Transport == flow.TransportTunnel {
		r.Secured = secured.Facts{Group: tls.CurveID(s.Group), Serial: s.PeerSerial, NotAfter: s.PeerNotAfter}.By()
	}
	if s.Waypoint != nil {
		r.Waypoint = mesh.Key(*s.Waypoint)
	}
	r.Service, r.Policy, r.Rule = mesh.Key(s.Service), mesh.Key(s.Policy), s.Rule
	r.Audited = flow.NamesIn(s.Audited)
	r.Timing = flow.Timing{Handshake: time.Duration(s.Handshake), Connect: time.Duration(s.Connect)}
	return c, nil
}

// ways says whether the proxy carries anything so.
func ways(d flow.Direction, t flow.Transport) bool {
	switch t {
	case flow.TransportTunnel, flow.TransportPlaintext:
		return d == flow.DirectionOutbound || d == flow.DirectionInbound
	case flow.TransportSplice:
		return d == flow.DirectionLocal
	default:
		return false
	}
}

func (k key) tooLong() bool { return len(k.Namespace) > maxName || len(k.Name) > maxName }

func (e endpoint) endpoint() (out flow.Endpoint, err error) {
	if e.Workload.tooLong() || len(e.Identity) > maxIdentity || !e.Addr.IsValid() || len(e.Addr.Addr().Zone()) > maxZone {
		return out, fmt.Errorf("not an end of a connection: %s", e.Addr)
	}
	out.Workload, out.Addr = mesh.Key(e.Workload), e.Addr
	if e.Identity != "" {
		out.Identity, err = spiffeid.FromString(e.Identity)
	}
	return out, err
}
