package agreement

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/agent/kernel"
	"github.com/heddle-mesh/heddle/agent/netns"
	"github.com/heddle-mesh/heddle/agent/relay"
	"github.com/heddle-mesh/heddle/bpf"
	"github.com/heddle-mesh/heddle/internal/flow"
	"github.com/heddle-mesh/heddle/internal/hbone"
	"github.com/heddle-mesh/heddle/internal/kube"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/mesh/datagram"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

const (
	perState = 100 // connections with one configuration
	perUDP   = 50  // datagrams beside them
	heldEach = 8   // of these, how many stay open until the next one
)

// TestAgreement has documentation, evaluator, gate and agent decide about
// HEDDLE_AGREEMENT_CONNECTIONS generated connections (10,000 without it), with another
// generated configuration for every hundred. Some of what is let in stays open when the
// configuration changes: of these exactly those end that are not allowed any more. Beside
// them are datagrams, about which documentation, evaluator and gate decide. Policies may be about
// requests, which nobody sees here: they let in the waypoint, where there is one, and nobody else.
// HEDDLE_AGREEMENT_SEED repeats a run.
func TestAgreement(t *testing.T) {
	connections, seed := number(t, "HEDDLE_AGREEMENT_CONNECTIONS", 10_000), number(t, "HEDDLE_AGREEMENT_SEED", time.Now().UnixNano())
	t.Logf("HEDDLE_AGREEMENT_SEED=%d", seed)
	r := rand.New(rand.NewPCG(uint64(seed), 0))
	w := newWorld(t)
	var seen tally
	var held []*holding
	defer func() { // before the applications are waited for
		for _, h := range held {
			h.close()
		}
	}()
	for i := int64(0); i < connections; i += perState {
		s := generate(r, w.at, w.beside)
		view := s.view(t, i)
		if i == 0 {
			w.store.Replace(view)
			w.enroll(t, view)
		}
		w.change(t, s, view, held, &seen)
		held = nil
		if err := w.datagrams(r, s, view, &seen); err != nil {
			t.Fatalf("%v\nHEDDLE_AGREEMENT_SEED=%d, configuration:\n%s", err, seed, s)
		}
		for range min(perState, connections-i) {
			h, err := w.compare(r, s, view, len(held) < heldEach, &seen)
			if err != nil {
				t.Fatalf("connection %d: %v\nHEDDLE_AGREEMENT_SEED=%d, configuration:\n%s", i, err, seed, s)
			}
			if h != nil {
				held = append(held, h)
			}
		}
		if i%100_000 == 0 && i > 0 {
			t.Logf("%d connections: %v", i, seen)
		}
	}
	t.Logf("%d connections: %v", connections, seen)
	if connections >= 5_000 {
		seen.check(t)
	}
}

func number(t *testing.T, name string, unset int64) int64 {
	text := os.Getenv(name)
	if text == "" {
		return unset
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

// view compiles a configuration.
func (s *state) view(t *testing.T, revision int64) *mesh.View {
	view, err := s.compile(fmt.Sprint(revision))
	if err != nil {
		t.Fatalf("%v\n%s", err, s)
	}
	return view
}

// compile is what the operator does: what policies say of requests that no waypoint sees is told to their authors, and
// in force.
func (s *state) compile(revision string) (*mesh.View, error) {
	s.objects.UDPByIdentity = true
	compiled, err := kube.CompileEach(&s.objects)
	if err != nil {
		return nil, err
	}
	for _, p := range compiled.Refused {
		if !strings.Contains(p.Text, "and no waypoint sees these") {
			return nil, p
		}
	}
	return compiled.View(revision)
}

// tally counts what came of connections, so that the test is known to have tried all.
type tally struct {
	reasons                 map[mesh.Reason]int
	dropped, tunnel, splice int
	plaintext, kept, ended  int
	datagrams               map[mesh.Reason]int
}

func (c *tally) check(t *testing.T) {
	for _, why := range []mesh.Reason{
		mesh.ReasonNoPolicy, mesh.ReasonPolicyAllow, mesh.ReasonPermissive, mesh.ReasonProbe, mesh.ReasonPolicyDeny,
		mesh.ReasonPolicyNoMatch, mesh.ReasonStrictPlaintext, mesh.ReasonReservedPort, mesh.ReasonIdentityRevoked,
		mesh.ReasonRequestUnseen, mesh.ReasonWaypoint,
	} {
		if c.reasons[why] < 20 {
			t.Errorf("%d connections ended as %v: too few to say anything", c.reasons[why], why)
		}
	}
	for _, why := range []mesh.Reason{mesh.ReasonPolicyAllow, mesh.ReasonPolicyDeny, mesh.ReasonPolicyNoMatch, mesh.ReasonKernelUDP, mesh.ReasonReservedPort, mesh.ReasonEgressAllowed, mesh.ReasonEgressDenied} {
		if c.datagrams[why] < 20 {
			t.Errorf("%d datagrams ended as %v: too few to say anything", c.datagrams[why], why)
		}
	}
	for what, n := range map[string]int{"drops": c.dropped, "tunnels": c.tunnel, "splices": c.splice, "plaintext": c.plaintext, "kept": c.kept, "ended": c.ended} {
		if n < 50 {
			t.Errorf("%s: %d: too few to say anything", what, n)
		}
	}
}

// datagrams tells shop/server's gate what a View says about UDP, and has documentation,
// evaluator and gate decide about some datagrams.
func (w *world) datagrams(r *rand.Rand, s *state, view *mesh.View, seen *tally) error {
	if seen.datagrams == nil {
		seen.datagrams = map[mesh.Reason]int{}
	}
	destination, _ := view.Workload(mesh.Key{Namespace: "shop", Name: "server"})
	rules := kernel.GateRules(datagram.Rules(view, nodeName)[destination.Key])
	if err := w.kernel(func(k *bpf.Pod) error { _, err := k.SetDatagrams(rules, datagram.Inside(view)); return err }); err != nil {
		return err
	}
	if err := w.leaving(r, s, view, seen); err != nil {
		return err
	}
	for range perUDP {
		a := asked{udp: true, port: one(r, append(slices.Clone(applicationPorts), 15008, 15009)...), source: one(r, w.beside.addresses...)}
		if a.peer = "spiffe://" + trustDomain + "/ns/shop/sa/" + s.client.Spec.ServiceAccount; r.IntN(4) == 0 {
			a.peer, a.source = "", netip.MustParseAddr(one(r, append(slices.Clone(outsiders), nodes...)...))
		}
		want := s.decideDatagram(a)
		seen.datagrams[want.Reason]++
		got := datagram.Authorize(view, datagram.Conversation{Source: a.source, Destination: destination, Port: a.port})
		if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
			return fmt.Errorf("%v: the evaluator decides otherwise (-documentation +evaluator):\n%s", a, diff)
		}
		verdict, err := w.gate.Run(&ebpf.RunOptions{Data: datagramFrame(a.source, w.addressFor(a.source), 1000, a.port)})
		if err != nil {
			return err
		}
		if dropped := verdict == 2; dropped != (want.Verdict == mesh.VerdictDeny) { // TC_ACT_SHOT
			return fmt.Errorf("%v: the gate drops it: %v, and it is to be %v", a, dropped, want.Verdict)
		}
	}
	return nil
}

// leaving has documentation, evaluator and gate decide about datagrams of shop/server to
// addresses that are not in the mesh, and to some that are nobody's in it.
func (w *world) leaving(r *rand.Rand, s *state, view *mesh.View, seen *tally) error {
	source, _ := view.Workload(mesh.Key{Namespace: "shop", Name: "server"})
	for range perUDP {
		to := netip.AddrPortFrom(netip.MustParseAddr(one(r, "192.0.2.1", "203.0.113.4", "10.67.0.1", "2001:db8::1", "fd00::1", "10.66.200.1", "fd66:200::1", "127.0.0.1", "169.254.169.254", "224.0.0.251", "255.255.255.255", "fe80::1", "ff02::fb")), uint16(one(r, leavingPorts...)))
		want := s.decideLeaving(to)
		seen.datagrams[want]++
		if got, _, _ := datagram.AuthorizeTo(view, source, to); got.Reason != want {
			return fmt.Errorf("a datagram to %v: the evaluator says %v, the documentation %v", to, got.Reason, want)
		}
		verdict, err := w.leaves.Run(&ebpf.RunOptions{Data: datagramFrame(w.addressFor(to.Addr()), to.Addr(), 1000, to.Port())})
		if err != nil {
			return err
		}
		if dropped := verdict == 2; dropped != (want != mesh.ReasonEgressAllowed) { // TC_ACT_SHOT
			return fmt.Errorf("a datagram to %v: the gate drops it: %v, and it is %v", to, dropped, want)
		}
	}
	return nil
}

// datagramFrame is synFrame for a datagram.
func datagramFrame(source, destination netip.Addr, from, to uint16) []byte {
	frame := synFrame(source, destination, from, to)
	header := len(frame) - 20
	frame = frame[:header+8]
	binary.BigEndian.PutUint16(frame[header+4:], 8)
	binary.BigEndian.PutUint16(frame[header+6:], 0)
	if source.Is4() {
		frame[14+3], frame[14+9] = 28, unix.IPPROTO_UDP
	} else {
		frame[14+5], frame[14+6] = 8, unix.IPPROTO_UDP
	}
	return frame
}

// compare has all decide about one connection, and returns it when it stays open.
func (w *world) compare(r *rand.Rand, s *state, view *mesh.View, hold bool, seen *tally) (*holding, error) {
	a, by := w.ask(r, s)
	want := s.decide(a)
	if seen.reasons == nil {
		seen.reasons = map[mesh.Reason]int{}
	}
	seen.reasons[want.Reason]++
	if err := judged(view, a, want, s.probe(a)); err != nil {
		return nil, s.smaller(a, err)
	}
	if a.peer == "" && !a.kubelet {
		if err := w.gated(a, s.dropped(a)); err != nil {
			return nil, fmt.Errorf("%v: %w", a, err)
		}
	}
	if s.dropped(a) {
		seen.dropped++
		if r.IntN(4) > 0 { // the rest, as real packets, which are slower
			return nil, nil
		}
		return nil, wrap(a, w.refusedByGate(a))
	}
	h, err := w.connect(r, a, by, seen)
	if err != nil {
		return nil, wrap(a, err)
	}
	if h != nil && (want.Verdict == mesh.VerdictDeny || !hold) {
		h.close()
	}
	if h != nil {
		h.probe = want.Reason == mesh.ReasonProbe
	}
	if h == nil || want.Verdict == mesh.VerdictDeny || !hold {
		record, err := w.record()
		if err == nil {
			err = recorded(record, a, want)
		}
		return nil, wrap(a, err)
	}
	return h, nil
}

func wrap(a asked, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%v: %w", a, err)
}

// ask draws a connection, and by what it comes.
func (w *world) ask(r *rand.Rand, s *state) (asked, flow.Transport) {
	a := asked{port: one(r, applicationPorts...)}
	if r.IntN(20) == 0 {
		a.port = one(r, uint16(15001), 15006, 15053)
	}
	switch r.IntN(8) {
	case 0: // from the pod beside it
		a.peer, a.source = "spiffe://"+trustDomain+"/ns/shop/sa/"+s.client.Spec.ServiceAccount, one(r, w.beside.addresses...)
		a.port = one(r, applicationPorts...)
		return a, flow.TransportSplice
	case 1, 2, 3: // through the tunnel
		a.peer, a.source = one(r, identities...), netip.MustParseAddr(one(r, outsiders...))
		if a.peer == waypointIdentity && r.IntN(4) > 0 {
			a.source = netip.MustParseAddr(one(r, waypoints...))
		}
		return a, flow.TransportTunnel
	case 4:
		a.source, a.kubelet = netip.MustParseAddr(one(r, nodes...)), true
	default: // of who has no identity, or does not say it: a waypoint, too
		a.source = netip.MustParseAddr(one(r, slices.Concat(outsiders, nodes, waypoints[:1])...))
	}
	return a, flow.TransportPlaintext
}

// judged asks the evaluator.
func judged(view *mesh.View, a asked, want mesh.Decision, probe bool) error {
	destination, _ := view.Workload(mesh.Key{Namespace: "shop", Name: "server"})
	c := mesh.Connection{Source: a.source, Destination: destination, Port: a.port, Probe: probe, Request: a.request.request()}
	if a.peer != "" {
		c.Peer = spiffeid.RequireFromString(a.peer)
	}
	permit, got := view.Authorize(c)
	if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
		return fmt.Errorf("the evaluator decides otherwise (-documentation +evaluator):\n%s", diff)
	}
	if permit.Valid() != (want.Verdict != mesh.VerdictDeny) {
		return fmt.Errorf("the evaluator's permit is valid: %v, with verdict %v", permit.Valid(), want.Verdict)
	}
	return nil
}

// gated asks the gate about a connection's SYN, by BPF_PROG_RUN. It comes from a port that the
// kernel gives no client, lest it be that of a connection which the agent still holds.
func (w *world) gated(a asked, drop bool) error {
	verdict, err := w.gate.Run(&ebpf.RunOptions{Data: synFrame(a.source, w.addressFor(a.source), 1000, a.port)})
	if err != nil {
		return err
	}
	if dropped := verdict == 2; dropped != drop { // TC_ACT_SHOT
		return fmt.Errorf("the gate drops it: %v, want %v", dropped, drop)
	}
	return nil
}

func (w *world) addressFor(source netip.Addr) netip.Addr {
	if source.Is4() {
		return w.at.addresses[0]
	}
	return w.at.addresses[1]
}

// synFrame is an Ethernet frame with the first segment of a connection; the gate does not
// look at checksums.
func synFrame(source, destination netip.Addr, from, to uint16) []byte {
	tcp := binary.BigEndian.AppendUint16(nil, from)
	tcp = binary.BigEndian.AppendUint16(tcp, to)
	tcp = append(tcp, 0, 0, 0, 1, 0, 0, 0, 0, 5<<4, 2, 0xff, 0xff, 0, 0, 0, 0)
	frame := make([]byte, 12, 74)
	if source.Is4() {
		frame = append(frame, 0x08, 0x00, 0x45, 0, 0, byte(20+len(tcp)), 0, 0, 0x40, 0, 64, 6, 0, 0)
	} else {
		frame = append(frame, 0x86, 0xdd, 0x60, 0, 0, 0, 0, byte(len(tcp)), 6, 64)
	}
	frame = append(append(frame, source.AsSlice()...), destination.AsSlice()...)
	return append(frame, tcp...)
}

// dial opens a connection of an application, or of kubelet, from an address.
func (w *world) dial(a asked) (fd int, target netip.AddrPort, err error) {
	target = netip.AddrPortFrom(w.addressFor(a.source), a.port)
	by, in := w.apps, w.outside
	switch {
	case slices.Contains(nodes, a.source.String()):
		in = w.node
	case slices.Contains(w.beside.addresses, a.source):
		in = w.client
	}
	if a.kubelet {
		by = w.kubelet
	}
	if fd, err = by.Take(in.Path, a.source); err != nil {
		return -1, target, err
	}
	err = unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
	if err == nil {
		err = unix.Bind(fd, netns.Sockaddr(netip.AddrPortFrom(a.source, 0)))
	}
	if err != nil {
		return -1, target, errors.Join(err, unix.Close(fd))
	}
	return fd, target, nil
}

// refusedByGate tries a connection for real that the gate must drop.
func (w *world) refusedByGate(a asked) error {
	before, err := w.drops()
	if err != nil {
		return err
	}
	fd, target, err := w.dial(a)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if _, err := netns.Start(fd, target); err != nil {
		return err
	}
	for deadline := time.Now().Add(enough); time.Now().Before(deadline); time.Sleep(50 * time.Microsecond) {
		now, err := w.drops()
		if err != nil || now > before {
			return err
		}
		if len(w.flows) > 0 {
			return fmt.Errorf("the gate let in what it must drop: %+v", <-w.flows)
		}
	}
	return errors.New("a real SYN was not dropped")
}

func (w *world) drops() (n uint64, err error) {
	err = w.kernel(func(k *bpf.Pod) error {
		c, err := k.Counters()
		n = c.Dropped[bpf.DropPlaintextInbound].In.Packets
		return err
	})
	return n, err
}

// holding is a connection that is open.
type holding struct {
	asked
	probe bool                // it was let in as one
	conn  *net.TCPConn        // nil for one of the tunnel
	ended chan struct{}       // closed when the agent has ended one of the tunnel
	done  func(hbone.Outcome) // of the tunnel
	end   func()              // closes it
}

func (h *holding) close() { h.end() }

// over reports whether the agent has ended it, waiting for as long as is given.
func (h *holding) over(within time.Duration) bool {
	if h.conn == nil {
		select {
		case <-h.ended:
			return true
		case <-time.After(within):
			return false
		}
	}
	_ = h.conn.SetDeadline(time.Now().Add(within)) // fails on what is closed, which reading tells
	err := echoed(h.conn)
	for err == nil { // the agent ends it beside the change
		time.Sleep(time.Millisecond)
		err = echoed(h.conn)
	}
	return !errors.Is(err, os.ErrDeadlineExceeded) // the client is told, not left waiting
}

// works reports whether it carries something still.
func (h *holding) works() bool {
	if h.conn == nil {
		return !h.over(0)
	}
	_ = h.conn.SetDeadline(time.Now().Add(enough)) // fails on what is closed, which reading tells
	return echoed(h.conn) == nil
}

// echoed exchanges a byte.
func echoed(c net.Conn) error {
	if _, err := c.Write([]byte{'x'}); err != nil {
		return err
	}
	var b [1]byte
	if _, err := io.ReadFull(c, b[:]); err != nil {
		return err
	}
	return nil
}

// connect opens a connection that the gate lets in; nil means that the agent refused it.
func (w *world) connect(r *rand.Rand, a asked, by flow.Transport, seen *tally) (*holding, error) {
	switch by {
	case flow.TransportTunnel:
		seen.tunnel++
		return w.stream(r, a)
	case flow.TransportSplice:
		seen.splice++
	default:
		seen.plaintext++
	}
	fd, target, err := w.dial(a)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), enough)
	defer cancel()
	c, err := netns.Connect(ctx, fd, target) // it closes fd when it fails
	if errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.ECONNREFUSED) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	h := &holding{asked: a, conn: c, end: func() { _ = c.Close() }}
	_ = c.SetDeadline(time.Now().Add(enough))
	if err := echoed(c); errors.Is(err, os.ErrDeadlineExceeded) {
		h.close()
		return nil, errors.New("the connection neither works nor ends")
	} else if err != nil {
		h.close()
		return nil, nil
	}
	return h, nil
}

// stream opens a stream of the tunnel, as both kinds of engine do.
func (w *world) stream(r *rand.Rand, a asked) (*holding, error) {
	server := w.engine.server("shop/server")
	req := &hbone.StreamRequest{
		Peer: spiffeid.RequireFromString(a.peer), Remote: netip.AddrPortFrom(a.source, uint16(1024+r.IntN(60000))),
		Authority: netip.AddrPortFrom(w.addressFor(a.source), a.port),
	}
	if r.IntN(2) == 0 {
		req.Forwarded = req.Remote
	}
	ctx, cancel := context.WithTimeout(context.Background(), enough)
	defer cancel()
	var accepted *hbone.Accepted
	var err error
	if r.IntN(2) == 0 {
		accepted, err = server.Accept(ctx, req)
	} else {
		var rest func(context.Context) (*hbone.Accepted, error)
		if accepted, rest, err = server.AcceptNow(req); rest != nil {
			accepted, err = rest(ctx)
		}
	}
	var status *hbone.StatusError
	if errors.As(err, &status) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	c := accepted.Conn
	if c == nil {
		if c, err = netns.Conn(accepted.FD); err != nil {
			return nil, err
		}
	}
	h := &holding{asked: a, ended: make(chan struct{}), done: accepted.Done}
	h.end = func() { relay.Reset(c); accepted.Done(hbone.Outcome{}) }
	_ = c.SetDeadline(time.Now().Add(enough))
	if err := echoed(c); err != nil {
		h.close()
		return nil, fmt.Errorf("the application does not answer: %w", err)
	}
	accepted.Cutter.Bind(func(error) { close(h.ended) })
	return h, nil
}

// recorded compares a flow record with what is to be in it.
func recorded(got flow.Record, a asked, want mesh.Decision) error {
	why := mesh.Decision{Verdict: got.Verdict, Reason: got.Reason, Policy: got.Policy, Rule: got.Rule}
	expected := want
	expected.Audited = nil
	if diff := cmp.Diff(expected, why); diff != "" {
		return fmt.Errorf("the agent decides otherwise (-documentation +flow record):\n%s\n%+v", diff, got)
	}
	if got.Destination.Addr.Port() != a.port || got.Source.Addr.Addr() != a.source {
		return fmt.Errorf("the flow record is of another connection: %+v", got)
	}
	return nil
}

// ending is what is compared of a connection that was open.
type ending struct {
	peer    string
	source  netip.Addr
	port    uint16
	verdict mesh.Verdict
	reason  mesh.Reason
}

func endingOf(r *flow.Record) ending {
	e := ending{source: r.Source.Addr.Addr(), port: r.Destination.Addr.Port(), verdict: r.Verdict, reason: r.Reason}
	if !r.Source.Identity.IsZero() {
		e.peer = r.Source.Identity.String()
	}
	return e
}

// change puts a configuration in force, and looks at what is open: what is allowed no more
// must end, with the reason in its record, and nothing else.
func (w *world) change(t *testing.T, s *state, view *mesh.View, held []*holding, seen *tally) {
	w.store.Replace(view)
	for _, name := range []string{"client", "server"} {
		if _, err := w.apply(t.Context(), view, name); err != nil {
			t.Fatal(err)
		}
	}
	var allowed []*holding
	due := map[ending]int{}
	for _, h := range held {
		a := h.asked
		a.kubelet = h.probe // what was no probe when it opened does not become one
		want := s.decide(a)
		if want.Verdict != mesh.VerdictDeny {
			allowed = append(allowed, h)
			continue
		}
		if !h.over(enough) {
			t.Fatalf("%v: is open, and was to end as %v\n%s", a, want.Reason, s)
		}
		if h.done != nil {
			h.done(hbone.Outcome{Err: hbone.ErrReset})
		}
		h.close()
		seen.ended++
		reason := mesh.ReasonPolicyChanged
		if want.Reason == mesh.ReasonIdentityRevoked {
			reason = want.Reason
		}
		due[ending{a.peer, a.source, a.port, mesh.VerdictDeny, reason}]++
	}
	for range len(held) - len(allowed) { // in whatever order they ended
		record, err := w.record()
		if err != nil {
			t.Fatalf("%v: these are missing: %v\n%s", err, due, s)
		}
		e := endingOf(&record)
		if due[e]--; due[e] < 0 {
			t.Fatalf("ended as %v; want these: %v\n%s", e, due, s)
		}
	}
	for _, h := range allowed {
		if !h.works() {
			t.Fatalf("%v: was ended, and is allowed\n%s", h.asked, s)
		}
		h.close()
		seen.kept++
		if record, err := w.record(); err != nil || record.Verdict == mesh.VerdictDeny {
			t.Fatalf("%v: %v, %+v", h.asked, err, record)
		}
	}
	testenv.Eventually(t, enough, "everything is closed", func() bool { return w.proxy.Open() == 0 })
}
