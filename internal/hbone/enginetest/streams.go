package enginetest

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/hbone"
)

func streamTests() []test {
	tests := []test{
		{"echo and headers", testEcho}, {"path", testPath}, {"IPv6 headers", testIPv6}, {"server first", testServerFirst},
		{"big transfer", testBig}, {"thousand streams", testThousand}, {"slow reader", testSlowReader},
		{"FIN program first", testFinProgramFirst}, {"FIN application first", testFinAppFirst}, {"FIN at once", testFinBoth},
		{"statuses", testStatuses}, {"last words of a program before the answer", testLastWordsBeforeAnswer}, {"unanswered gives back", testUnanswered}, {"tunnel cut", testCut}, {"bad requests of ours", testOwnBadRequests},
		{"whole answer before RST_STREAM(NO_ERROR)", testAnswerBeforeReset},
	}
	for _, who := range []string{"program", "application"} {
		tests = append(tests, test{"last words of the " + who + " before its RST", func(t *testing.T, make New) { testLastWords(t, make, who == "program") }})
		tests = append(tests, test{"last words of the " + who + " behind a failed write", func(t *testing.T, make New) { testLastWordsBehindWrite(t, make, who == "program") }})
		for _, when := range []string{"open", "after its FIN", "after the other's FIN", "with data unread"} {
			tests = append(tests, test{"RST by the " + who + " " + when, func(t *testing.T, make New) { testReset(t, make, who == "program", when) }})
		}
	}
	return tests
}

// endTests take long, and have no other engine at the other end.
func endTests() []test {
	tests := []test{{"RST_STREAM for an application that takes nothing", testResetUntaken}, {"whole behind a drain", testWholeBehindDrain}}
	for _, how := range partings() {
		tests = append(tests, test{how.String(), func(t *testing.T, make New) { testLastWordsTo(t, make, how) }})
	}
	return tests
}

func testEcho(t *testing.T, make New) {
	r := newRig(t, make, Options{})
	req := r.request()
	req.Baggage, req.TraceParent = "k8s.namespace.name=test,service.name=web", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	req.Progress = &hbone.Counters{}
	f := r.open(req)
	f.echo("hello")
	eventually(t, "progress while the stream is open", func() bool {
		return req.Progress.Sent.Load() == 5 && req.Progress.Received.Load() == 9
	})
	must(t, f.program.CloseWrite())
	expectEnd(t, f.app)
	must(t, f.app.CloseWrite())
	expectEnd(t, f.program)
	o := f.outcome()
	if o.Err != nil || o.Sent != 5 || o.Received != 9 || o.Timing.Pooled || o.Timing.Handshake <= 0 || o.Timing.Connect <= 0 {
		t.Errorf("outcome %+v", o)
	}
	if in := r.lastInbound(1); in.Err != nil || in.Sent != 9 || in.Received != 5 {
		t.Errorf("server's outcome %+v", in)
	}
	got := *r.requests[0]
	want := hbone.StreamRequest{Peer: r.ca.ID("client"), Remote: got.Remote, Local: r.endpoint, Authority: req.Authority,
		Forwarded: req.Forwarded, Baggage: req.Baggage, TraceParent: req.TraceParent, Handshake: got.Handshake, Secured: got.Secured}
	if got != want || !got.Remote.IsValid() || got.Handshake <= 0 {
		t.Errorf("request %+v\nwant %+v", got, want)
	}
}

// testPath wants a round-trip time in the outcome of both ends: the kernel
// measures one during the handshake.
func testPath(t *testing.T, make New) {
	r := newRig(t, make, Options{})
	f := r.open(r.request())
	f.echo("hello")
	must(t, f.program.CloseWrite())
	expectEnd(t, f.app)
	must(t, f.app.CloseWrite())
	expectEnd(t, f.program)
	for _, o := range []hbone.Outcome{f.outcome(), r.lastInbound(1)} {
		if o.Err != nil || o.Path.RTT <= 0 || o.Path.RTT > 10*time.Second {
			t.Errorf("outcome %+v", o)
		}
	}
}

func testIPv6(t *testing.T, make New) {
	r := newRig(t, make, Options{})
	req := r.request()
	req.Authority, req.Forwarded = netip.MustParseAddrPort("[2001:db8::1]:5432"), netip.MustParseAddrPort("[2001:db8::2]:40000")
	f := r.open(req)
	f.echo("six")
	f.finish()
	if got := r.requests[0]; got.Authority != req.Authority || got.Forwarded != req.Forwarded {
		t.Errorf("got %v for %v", got.Authority, got.Forwarded)
	}
}

func testServerFirst(t *testing.T, make New) {
	r := newRig(t, make, Options{})
	f := r.open(r.request())
	send(t, f.app, "220 ready")
	expect(t, f.program, "220 ready")
	f.echo("HELO")
	f.finish()
}

func testBig(t *testing.T, make New) {
	const size = 48 << 20
	r := newRig(t, make, Options{})
	f := r.open(r.request())
	var up, down [2][32]byte
	var all sync.WaitGroup
	stream := func(from, to *net.TCPConn, sums *[2][32]byte, seed byte) {
		all.Go(func() { sums[0] = pour(t, from, size, seed) })
		all.Go(func() { sums[1] = drink(t, to) })
	}
	stream(f.program, f.app, &up, 1)
	stream(f.app, f.program, &down, 2)
	all.Wait()
	if up[0] != up[1] || down[0] != down[1] {
		t.Error("bytes changed on the way")
	}
	if o := f.outcome(); o.Err != nil || o.Sent != size || o.Received != size {
		t.Errorf("outcome %+v", o)
	}
}

// pour writes random bytes in pieces of random size, then a FIN.
func pour(t *testing.T, c *net.TCPConn, size int, seed byte) [32]byte {
	sum, random := sha256.New(), rand.NewChaCha8([32]byte{seed})
	buf := make([]byte, 100<<10)
	for size > 0 {
		n := min(size, 1+int(random.Uint64()%uint64(len(buf))))
		_, _ = random.Read(buf[:n]) // never fails
		sum.Write(buf[:n])
		if _, err := c.Write(buf[:n]); err != nil {
			t.Errorf("write: %v", err)
			break
		}
		size -= n
	}
	if err := c.CloseWrite(); err != nil {
		t.Errorf("close write: %v", err)
	}
	return [32]byte(sum.Sum(nil))
}

func drink(t *testing.T, c *net.TCPConn) [32]byte {
	sum := sha256.New()
	if err := c.SetReadDeadline(time.Now().Add(2 * time.Minute)); err != nil {
		t.Error(err)
	}
	if _, err := io.Copy(sum, c); err != nil {
		t.Errorf("read: %v", err)
	}
	return [32]byte(sum.Sum(nil))
}

func testThousand(t *testing.T, make New) {
	r := newRig(t, make, Options{})
	go func() { // an echo server
		for c := range r.apps {
			go func() {
				defer c.Close()
				_, _ = io.Copy(c, c) // the program checks what came back
			}()
		}
	}()
	var all sync.WaitGroup
	for i := range 1000 {
		f := r.start(r.request())
		all.Go(func() {
			message := fmt.Sprintf("message %d", i)
			got := newBuffer(len(message))
			if _, err := f.program.Write([]byte(message)); err != nil {
				t.Error(err)
			}
			if err := f.program.CloseWrite(); err != nil {
				t.Error(err)
			}
			if _, err := io.ReadFull(f.program, got); err != nil || string(got) != message {
				t.Errorf("stream %d: got %q, %v", i, got, err)
			}
			select {
			case o := <-f.done:
				if o.Err != nil {
					t.Errorf("stream %d: %v", i, o.Err)
				}
			case <-time.After(2 * wait):
				t.Errorf("stream %d: no outcome", i)
			}
		})
	}
	all.Wait()
}

func newBuffer(n int) []byte { return make([]byte, n) }

// testSlowReader: a stream whose reader sleeps holds up neither its neighbours
// on the connection nor, in the end, itself.
func testSlowReader(t *testing.T, make New) {
	r := newRig(t, make, Options{})
	slow := r.open(r.request())
	poured := newChan[[32]byte](1)
	go func() { poured <- pour(t, slow.program, 24<<20, 3) }()
	back := newChan[[32]byte](1)
	go func() { back <- pour(t, slow.app, 24<<20, 4) }()
	time.Sleep(200 * time.Millisecond) // both directions are stuck now
	quick := r.open(r.request())
	for range 20 {
		quick.echo("ping")
	}
	quick.finish()
	if got := drink(t, slow.app); got != within(t, poured, "the writer") {
		t.Error("bytes changed on the way up")
	}
	if got := drink(t, slow.program); got != within(t, back, "the writer") {
		t.Error("bytes changed on the way down")
	}
	if o := slow.outcome(); o.Err != nil {
		t.Error(o.Err)
	}
	if n := r.dialed(); n != 1 {
		t.Errorf("%d connections, want one for both streams", n)
	}
}

func testFinProgramFirst(t *testing.T, make New) {
	r := newRig(t, make, Options{})
	f := r.open(r.request())
	send(t, f.program, "question")
	must(t, f.program.CloseWrite())
	expect(t, f.app, "question")
	expectEnd(t, f.app)
	for _, answer := range []string{"a long ", "answer"} {
		send(t, f.app, answer)
		expect(t, f.program, answer)
	}
	must(t, f.app.CloseWrite())
	expectEnd(t, f.program)
	if o := f.outcome(); o.Err != nil || o.Sent != 8 || o.Received != 13 {
		t.Errorf("outcome %+v", o)
	}
}

func testFinAppFirst(t *testing.T, make New) {
	r := newRig(t, make, Options{})
	f := r.open(r.request())
	send(t, f.app, "all I have to say")
	must(t, f.app.CloseWrite())
	expect(t, f.program, "all I have to say")
	expectEnd(t, f.program)
	for _, more := range []string{"but ", "I go on"} {
		send(t, f.program, more)
		expect(t, f.app, more)
	}
	must(t, f.program.CloseWrite())
	expectEnd(t, f.app)
	if o := f.outcome(); o.Err != nil || o.Sent != 11 || o.Received != 17 {
		t.Errorf("outcome %+v", o)
	}
	if in := r.lastInbound(1); in.Err != nil {
		t.Errorf("server's outcome %+v", in)
	}
}

func testFinBoth(t *testing.T, make New) {
	r := newRig(t, make, Options{})
	for range 20 {
		f := r.open(r.request())
		var both sync.WaitGroup
		for _, c := range []*net.TCPConn{f.program, f.app} {
			both.Go(func() { _ = c.CloseWrite() }) // seen at the other end
		}
		both.Wait()
		expectEnd(t, f.app)
		expectEnd(t, f.program)
		if o := f.outcome(); o.Err != nil {
			t.Error(o.Err)
		}
	}
}

func testReset(t *testing.T, make New, byProgram bool, when string) {
	r := newRig(t, make, Options{})
	f := r.open(r.request())
	f.echo("first")
	one, other := f.app, f.program
	if byProgram {
		one, other = other, one
	}
	switch when {
	case "after its FIN":
		must(t, one.CloseWrite())
		expectEnd(t, other)
	case "after the other's FIN":
		must(t, other.CloseWrite())
		expectEnd(t, one)
	case "with data unread":
		send(t, other, "this is never read")
		time.Sleep(50 * time.Millisecond)
	}
	reset(t, one)
	expectReset(t, other, when == "after its FIN")
	if o := f.outcome(); !errors.Is(o.Err, hbone.ErrReset) {
		t.Errorf("outcome %v, want a reset", o.Err)
	}
	if in := r.lastInbound(1); !errors.Is(in.Err, hbone.ErrReset) {
		t.Errorf("server's outcome %v, want a reset", in.Err)
	}
	next := r.open(r.request()) // the connection is none the worse for it
	next.echo("second")
	next.finish()
	if n := r.dialed(); n != 1 {
		t.Errorf("%d connections, want 1", n)
	}
}

func testStatuses(t *testing.T, make New) {
	var answer error
	r := newRig(t, make, Options{}, func(r *rig) {
		r.srv.Accept = func(context.Context, *hbone.StreamRequest) (*hbone.Accepted, error) { return nil, answer }
	})
	for want, err := range map[int]error{
		401: &hbone.StatusError{Code: 401, Reason: "denied"},
		400: fmt.Errorf("wrapped: %w", &hbone.StatusError{Code: 400}),
		503: errors.New("connection refused"),
	} {
		answer = err
		f := r.start(r.request())
		o := f.outcome()
		if status, ok := errors.AsType[*hbone.StatusError](o.Err); !ok || status.Code != want {
			t.Errorf("outcome %v, want %d", o.Err, want)
		}
		expectReset(t, f.program, false)
	}
	if n := r.dialed(); n != 1 {
		t.Errorf("%d connections, want 1", n)
	}
}

func testUnanswered(t *testing.T, make New) {
	r := newRig(t, make, Options{}, func(r *rig) {
		r.srv.Accept = func(context.Context, *hbone.StreamRequest) (*hbone.Accepted, error) {
			return nil, &hbone.StatusError{Code: 503}
		}
	})
	req := r.request()
	back := newChan[hbone.Outcome](2)
	req.Unanswered = func(o hbone.Outcome) { back <- o }
	f := r.start(req)
	send(t, f.program, "kept")
	if o := within(t, back, "Unanswered"); o.Err == nil {
		t.Error("no error")
	}
	expect(t, f.local, "kept")
	send(t, f.local, "and usable")
	expect(t, f.program, "and usable")
	must(t, f.local.Close())
	if len(f.done) != 0 || len(back) != 0 {
		t.Error("more than one outcome")
	}
}

// testCut: the tunnel's TCP connection breaks under a stream.
func testCut(t *testing.T, make New) {
	r := newRig(t, make, Options{})
	path := newPath(t, r.endpoint.String()) // an engine may take the socket itself apart
	r.via = path.addr
	f := r.open(r.request())
	f.echo("first")
	path.cut()
	expectReset(t, f.program, false)
	expectReset(t, f.app, false)
	if o := f.outcome(); !errors.Is(o.Err, hbone.ErrProtocol) && !errors.Is(o.Err, hbone.ErrReset) {
		t.Errorf("outcome %v", o.Err)
	}
	if in := r.lastInbound(1); !errors.Is(in.Err, hbone.ErrProtocol) {
		t.Errorf("server's outcome %v", in.Err)
	}
	next := r.open(r.request())
	next.echo("second")
	next.finish()
	if n := r.dialed(); n != 2 {
		t.Errorf("%d connections, want 2", n)
	}
}

func testOwnBadRequests(t *testing.T, make New) {
	r := newRig(t, make, Options{})
	for name, bend := range map[string]func(*hbone.ConnectRequest){
		"no authority":    func(q *hbone.ConnectRequest) { q.Authority = netip.AddrPort{} },
		"line in baggage": func(q *hbone.ConnectRequest) { q.Baggage = "a=b\r\nforwarded: for=1.2.3.4" },
		"line in parent":  func(q *hbone.ConnectRequest) { q.TraceParent = "00\n" },
	} {
		req := r.request()
		bend(req)
		if o := r.start(req).outcome(); !errors.Is(o.Err, hbone.ErrBadRequest) {
			t.Errorf("%s: %v", name, o.Err)
		}
	}
	if r.dialed() != 0 {
		t.Error("dialed for a request that cannot be sent")
	}
}
