package attack

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	mathrand "math/rand/v2"
	"net"
	"net/netip"
	"time"
)

// Defaults of Config.
const (
	DefaultMark = 0x4d00000
	// settle is how long packets may take to show up behind the gate; a veth
	// needs microseconds, a loaded machine more.
	settle = 150 * time.Millisecond
	// arrive is how long to wait for what must show up.
	arrive = 2 * time.Second
)

// Pod is a workload's place.
type Pod struct {
	// NetNS is the path of its network namespace, Node that of its node's.
	NetNS, Node string
	Addresses   []netip.Addr
}

// Config says whose gate to try.
type Config struct {
	// Target is the pod whose gate is tried, in both directions.
	Target Pod
	// Peer is a pod on another node: packets out of the target go there, and
	// pretend to come from there. Other is a third one, for forged sources; it
	// may be the Peer.
	Peer, Other Pod
	// Client is a pod that may connect to the target through the mesh, so that
	// the agent carries a connection while its tuple is tried, on any node; the Peer
	// where it has no address.
	Client Pod
	// Port is an application's port; TunnelPort is 15008 where 0.
	Port, TunnelPort uint16
	// Mark is the agent's; DefaultMark where 0.
	Mark uint32
	// Dropped reads from the kernel how many packets of the target were
	// dropped so far, by reason.
	Dropped func(context.Context) (map[string]uint64, error)
}

// Result is the outcome of one attack.
type Result struct {
	Name string `json:"name"`
	// What says what was tried.
	What string `json:"what"`
	// Family is "IPv4" or "IPv6", Direction "outbound" or "inbound".
	Family    string `json:"family"`
	Direction string `json:"direction"`
	// Reasons are those whose counters of dropped packets rose.
	Reasons []Rise `json:"reasons"`
	// Control says that the packet's twin from a link without a gate got
	// through; of inbound attacks, the counters alone show that they arrived.
	Control bool `json:"control"`
	// Through counts packets that the tap behind the gate saw.
	Through int `json:"through"`
}

// Rise is a counter of dropped packets before and after an attack.
type Rise struct {
	Reason string `json:"reason"`
	Before uint64 `json:"before"`
	After  uint64 `json:"after"`
}

// Held says whether the gate was shown to hold: nothing got through, the kernel
// counted the drop, and the packet would have got through without a gate.
func (r Result) Held() bool {
	return r.Through == 0 && len(r.Reasons) > 0 && (r.Control || r.Direction == "inbound")
}

// runner is one run of the attacks.
type runner struct {
	cfg             Config
	pod, host, open port
	// wire is behind the gate for what leaves the pod, neighbour for what stays on its
	// link, and in for what comes to the pod.
	wire, neighbour, in *tap
}

// Run tries everything in turn and reports each outcome. Its error says that an
// attack could not be tried at all; outcomes are no errors.
func Run(ctx context.Context, cfg Config, report func(Result)) (err error) {
	if cfg.TunnelPort == 0 {
		cfg.TunnelPort = 15008
	}
	if cfg.Mark == 0 {
		cfg.Mark = DefaultMark
	}
	if len(cfg.Target.Addresses) == 0 {
		return errors.New("attack: the target has no address")
	}
	r := &runner{cfg: cfg}
	var receives int
	if r.pod, r.host, err = podPort(cfg.Target.NetNS, cfg.Target.Node, cfg.Target.Addresses[0]); err != nil {
		return err
	}
	var remove func() error
	if r.open, receives, remove, err = openPort(cfg.Target.Node); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, remove()) }()
	defer func() { err = errors.Join(err, r.closeTaps()) }()
	if err := r.openTaps(receives); err != nil {
		return err
	}
	for _, own := range cfg.Target.Addresses {
		if err := r.family(ctx, own, report); err != nil {
			return err
		}
	}
	return nil
}

// openTaps opens a tap for each way; receives is the index of the link that the twins
// arrive at.
func (r *runner) openTaps(receives int) error {
	for _, place := range []struct {
		netns string
		tap   **tap
		open  func() (*tap, error)
	}{
		{r.cfg.Target.Node, &r.wire, func() (*tap, error) { return openTap(r.host.index, receives, r.open.index) }},
		{r.cfg.Target.Node, &r.neighbour, func() (*tap, error) { return openListener(r.host.index, receives) }},
		{r.cfg.Target.NetNS, &r.in, func() (*tap, error) { return openTap() }},
	} {
		if err := inside(place.netns, func() (err error) { *place.tap, err = place.open(); return err }); err != nil {
			return err
		}
	}
	return nil
}

func (r *runner) closeTaps() error {
	var errs []error
	for _, t := range []*tap{r.wire, r.neighbour, r.in} {
		if t != nil {
			errs = append(errs, t.close())
		}
	}
	return errors.Join(errs...)
}

// behind is the tap that sees what gets through the gate.
func (r *runner) behind(t try) *tap {
	switch {
	case t.inbound:
		return r.in
	case t.link:
		return r.neighbour
	default:
		return r.wire
	}
}

// family runs the attacks of one of the target's addresses.
func (r *runner) family(ctx context.Context, own netip.Addr, report func(Result)) error {
	a := aim{pod: own, port: r.cfg.Port, tunnelPort: r.cfg.TunnelPort, mark: r.cfg.Mark, eth: r.pod.index}
	var ok, okOther bool
	a.peer, ok = sameFamily(r.cfg.Peer.Addresses, own)
	a.forged, okOther = sameFamily(r.cfg.Other.Addresses, own)
	if !ok {
		return nil // nobody to talk to in this family
	}
	if !okOther {
		a.forged = a.peer
	}
	release, err := r.connection(ctx, &a)
	if err != nil {
		return err
	}
	defer release()
	for _, t := range append(a.outbound(), a.inbound()...) {
		result, err := r.try(ctx, a, t)
		if err != nil {
			return fmt.Errorf("try %s over %s: %w", t.name, result.Family, err)
		}
		report(result)
	}
	return nil
}

func sameFamily(list []netip.Addr, as netip.Addr) (netip.Addr, bool) {
	for _, a := range list {
		if a.Is4() == as.Is4() {
			return a, true
		}
	}
	return netip.Addr{}, false
}

// connection has the client connect to the target through the mesh, so that there
// is a live tuple between agent and application. Where policy forbids that, the
// tuple is made up.
func (r *runner) connection(ctx context.Context, a *aim) (release func(), err error) {
	var l net.Listener
	err = inside(r.cfg.Target.NetNS, func() (err error) {
		l, err = (&net.ListenConfig{}).Listen(ctx, "tcp", netip.AddrPortFrom(a.pod, 0).String())
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listen in the pod: %w", err)
	}
	a.app = l.Addr().(*net.TCPAddr).AddrPort()
	a.client = netip.AddrPortFrom(a.peer, 40000)
	client := r.cfg.Client
	if _, ok := sameFamily(client.Addresses, a.pod); !ok {
		client = r.cfg.Peer
	}
	var dialled, accepted net.Conn
	_ = inside(client.NetNS, func() (err error) { // refused by policy: the made-up tuple stays
		dialled, err = (&net.Dialer{Timeout: arrive}).DialContext(ctx, "tcp", a.app.String())
		return err
	})
	if dialled != nil {
		_ = l.(*net.TCPListener).SetDeadline(time.Now().Add(arrive)) // a closed listener fails Accept too
		if accepted, err = l.Accept(); err == nil {
			a.client = accepted.RemoteAddr().(*net.TCPAddr).AddrPort()
		}
	}
	return func() {
		for _, c := range []net.Conn{dialled, accepted} {
			if c != nil {
				_ = c.Close() // nothing was said on it
			}
		}
		_ = l.Close() // it was there for the tuple only
	}, nil
}

// try runs one attack: first its twin without a gate, then the attack itself.
func (r *runner) try(ctx context.Context, a aim, t try) (Result, error) {
	result := Result{Name: t.name, What: t.what, Family: "IPv4", Direction: "outbound"}
	if a.pod.Is6() {
		result.Family = "IPv6"
	}
	if t.inbound {
		result.Direction = "inbound"
	} else {
		seen, err := r.control(ctx, a, t)
		if err != nil {
			return result, err
		}
		result.Control = seen
	}
	before, err := r.quiet(ctx)
	if err != nil {
		return result, err
	}
	watch := r.behind(t)
	source, marker := freshPort(), freshMarker()
	watch.expect(signOf(a, t, source, marker))
	if err := r.attempt(ctx, a, t, source, marker); err != nil {
		return result, err
	}
	if result.Reasons, err = r.rises(ctx, before); err != nil {
		return result, err
	}
	result.Through = watch.count()
	watch.expect()
	return result, nil
}

func (r *runner) attempt(ctx context.Context, a aim, t try, source uint16, marker []byte) error {
	switch {
	case t.connect != nil:
		return inside(r.cfg.Target.NetNS, func() error { return t.connect(ctx, a.from(source), t.to) })
	case t.socket != nil:
		return inside(r.cfg.Target.NetNS, func() error { return t.socket(t.craft(source, marker)) })
	case t.inbound && t.link:
		return r.host.send(t.craft(source, marker).encode(), false)
	case t.inbound:
		return r.open.send(t.craft(source, marker).encode(), false)
	default:
		// Once by the pod's own hooks, where the gate has a twin, once past them.
		packets := t.craft(source, marker).encode()
		return errors.Join(r.pod.send(packets, false), r.pod.send(packets, true))
	}
}

// control sends the attack's twin from the link without a gate.
func (r *runner) control(ctx context.Context, a aim, t try) (bool, error) {
	source, marker := freshPort(), freshMarker()
	craft := t.craft
	if craft == nil {
		craft = func(port uint16, _ []byte) packet {
			return packet{source: a.from(port), destination: t.to, flags: flagSYN}
		}
	}
	p := craft(source, marker)
	if p.destination == a.client {
		// A client of the same node has a gate of its own, before the tap.
		p.destination = netip.AddrPortFrom(a.peer, a.client.Port())
	}
	watch := r.behind(t)
	watch.expect(signOf(a, t, source, marker))
	defer watch.expect()
	if err := r.open.send(p.encode(), false); err != nil {
		return false, err
	}
	// The first packet may have to wait for a neighbour's address.
	for deadline := time.Now().Add(arrive); watch.count() == 0; {
		if time.Now().After(deadline) {
			return false, nil
		}
		if err := pause(ctx, 5*time.Millisecond); err != nil {
			return false, err
		}
	}
	return true, nil
}

// quiet reads the counters once they stand still: what an attack before this one
// stirred up, such as resets from its peer, must not count for this one. On a
// node that never is quiet it gives up waiting.
func (r *runner) quiet(ctx context.Context) (map[string]uint64, error) {
	last, err := r.cfg.Dropped(ctx)
	for deadline := time.Now().Add(arrive); err == nil && time.Now().Before(deadline); {
		if err = pause(ctx, settle/2); err != nil {
			break
		}
		var now map[string]uint64
		now, err = r.cfg.Dropped(ctx)
		if maps.Equal(last, now) {
			break
		}
		last = now
	}
	return last, err
}

// rises waits for drops to be counted, and a moment longer for what gets through.
func (r *runner) rises(ctx context.Context, before map[string]uint64) ([]Rise, error) {
	if err := pause(ctx, settle); err != nil {
		return nil, err
	}
	deadline := time.Now().Add(arrive)
	for {
		after, err := r.cfg.Dropped(ctx)
		if err != nil {
			return nil, err
		}
		var rises []Rise
		for reason, n := range after {
			if n > before[reason] {
				rises = append(rises, Rise{reason, before[reason], n})
			}
		}
		if len(rises) > 0 || time.Now().After(deadline) {
			return rises, nil
		}
		if err := pause(ctx, 20*time.Millisecond); err != nil {
			return nil, err
		}
	}
}

func signOf(a aim, t try, source uint16, marker []byte) sign {
	if t.craft == nil {
		return sign{source: a.from(source), destination: t.to}
	}
	p := t.craft(source, marker)
	if len(p.payload) > 0 {
		return sign{marker: marker}
	}
	return sign{source: p.source, destination: p.destination}
}

// freshPort is below the ephemeral ports of the kernel's default range.
func freshPort() uint16 { return uint16(20000 + mathrand.IntN(10000)) }

// freshMarker is text, so that a person finds it in a capture.
func freshMarker() []byte {
	var raw [12]byte
	if _, err := rand.Read(raw[:]); err != nil {
		binary.NativeEndian.PutUint64(raw[:], mathrand.Uint64())
	}
	return []byte("heddle-attack-" + hex.EncodeToString(raw[:]))
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
