package enginetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/heddle-mesh/heddle/internal/hbone"
)

// earlyTests: a program has spoken before its stream is opened, and an engine may
// send that behind its CONNECT. Whether it does or not, it arrives once.
func earlyTests() []test {
	return []test{
		{"arrives once", testEarlyOnce}, {"is kept until Accept", testEarlyKept}, {"is dropped when refused", testEarlyDropped},
		{"stays with who was refused", testEarlyRefused}, {"is repeated elsewhere", testEarlyRepeated}, {"without a window", testEarlyNoWindow},
		{"is not said twice", testEarlyNotTwice}, {"of a program that resets", testEarlyReset},
	}
}

// spoken starts a flow whose program has said something already, and then sent a
// FIN or not.
func (r *rig) spoken(req *hbone.ConnectRequest, words []byte, fin bool) *flow {
	r.t.Helper()
	program, local := pair(r.t)
	wrote := newChan[error](1)
	go func() { // the socket may not hold all of it
		_, err := program.Write(words)
		if err == nil && fin {
			err = program.CloseWrite()
		}
		wrote <- err
	}()
	select {
	case err := <-wrote:
		must(r.t, err)
	case <-time.After(100 * time.Millisecond):
	}
	return r.startOn(req, program, local)
}

func words(n int) []byte {
	b := newBuffer(n)
	for i := range b {
		b[i] = byte(i * 7 >> 3)
	}
	return b
}

func testEarlyOnce(t *testing.T, make New) {
	r := newRig(t, make, Options{})
	warm := r.open(r.request()) // from now on a stream is opened at once
	for i, size := range []int{1, 100, 2 << 10, 8 << 10, 8<<10 + 1, 100 << 10} {
		for _, fin := range []bool{false, true} {
			name := fmt.Sprintf("%d bytes, FIN %v", size, fin)
			req := r.request()
			req.Progress = &hbone.Counters{}
			f := r.spoken(req, words(size), fin)
			within(t, f.opened, "Established")
			f.app = within(t, r.apps, "the application's connection")
			got := newBuffer(size)
			must(t, f.app.SetReadDeadline(time.Now().Add(wait)))
			if n, err := io.ReadFull(f.app, got); err != nil || !bytes.Equal(got, words(size)) {
				t.Fatalf("%s: %d bytes, %v, or they are others", name, n, err)
			}
			eventually(t, "progress", func() bool { return req.Progress.Sent.Load() == uint64(size) })
			if !fin {
				f.echo("and more")
				size += len("and more")
				must(t, f.program.CloseWrite())
			}
			expectEnd(t, f.app)
			must(t, f.app.CloseWrite())
			expectEnd(t, f.program)
			if o := f.outcome(); o.Err != nil || o.Sent != uint64(size) || req.Progress.Sent.Load() != uint64(size) {
				t.Errorf("%s: %+v", name, o)
			}
			n := 2*i + 1
			if fin {
				n++
			}
			if in := r.lastInbound(n); in.Err != nil || in.Received != uint64(size) {
				t.Errorf("%s: the server's outcome %+v", name, in)
			}
			f.app.Close()
		}
	}
	warm.finish()
}

// testEarlyKept: the application has nothing before Accept has returned.
func testEarlyKept(t *testing.T, make New) {
	app, far := pair(t)
	asked, allow := newChan[struct{}](1), newChan[struct{}](0)
	r := newRig(t, make, Options{}, func(r *rig) {
		r.srv.Accept = func(context.Context, *hbone.StreamRequest) (*hbone.Accepted, error) {
			asked <- struct{}{}
			<-allow
			return &hbone.Accepted{Conn: far}, nil
		}
	})
	c := r.rawClient()
	c.connect(1, false)
	must(t, c.fr.WriteData(1, false, []byte("early")))
	within(t, asked, "Accept")
	must(t, app.SetReadDeadline(time.Now().Add(50*time.Millisecond)))
	if n, err := app.Read(newBuffer(1)); n > 0 || !isTimeout(err) {
		t.Errorf("before Accept returned: %d bytes, %v", n, err)
	}
	close(allow)
	expect(t, app, "early")
	if code := c.status(1); code != 200 {
		t.Errorf("status %d", code)
	}
	must(t, c.fr.WriteData(1, true, []byte(" and late")))
	expect(t, app, " and late")
	expectEnd(t, app)
}

// testEarlyDropped: nobody has what came with a request that is refused.
func testEarlyDropped(t *testing.T, make New) {
	var refuse atomic.Bool
	refuse.Store(true)
	r := newRig(t, make, Options{}, accepting(func(r *rig, ctx context.Context, req *hbone.StreamRequest) (*hbone.Accepted, error) {
		if refuse.Load() {
			time.Sleep(20 * time.Millisecond) // it is there by then
			return nil, &hbone.StatusError{Code: 401}
		}
		return r.accept(ctx, req)
	}))
	c := r.rawClient()
	c.connect(1, false)
	must(t, c.fr.WriteData(1, false, []byte("for nobody")))
	if code := c.status(1); code != 401 {
		t.Errorf("status %d", code)
	}
	refuse.Store(false)
	c.connect(3, false)
	must(t, c.fr.WriteData(3, true, []byte("next")))
	if code := c.status(3); code != 200 {
		t.Errorf("status %d", code)
	}
	app := within(t, r.apps, "the application's connection")
	defer app.Close()
	expect(t, app, "next")
	expectEnd(t, app)
	if len(r.apps) != 0 {
		t.Error("another connection to the application")
	}
}

// testEarlyRefused: whoever has the connection back can read it all, and offer
// it to another peer.
func testEarlyRefused(t *testing.T, make New) {
	for _, code := range []int{401, 503} {
		var refuse atomic.Bool
		r := newRig(t, make, Options{}, accepting(func(r *rig, ctx context.Context, req *hbone.StreamRequest) (*hbone.Accepted, error) {
			if refuse.Load() {
				return nil, &hbone.StatusError{Code: code}
			}
			return r.accept(ctx, req)
		}))
		warm := r.open(r.request())
		refuse.Store(true)
		back := newChan[hbone.Outcome](2)
		for i := range 3 {
			req := r.request()
			req.Unanswered = func(o hbone.Outcome) { back <- o }
			f := r.spoken(req, []byte("kept"), false)
			o := within(t, back, "Unanswered")
			if status, ok := errors.AsType[*hbone.StatusError](o.Err); !ok || status.Code != code || o.Sent != 0 {
				t.Errorf("outcome %+v, want %d", o, code)
			}
			if i > 0 {
				expect(t, f.local, "kept")
				send(t, f.local, "and usable")
				expect(t, f.program, "and usable")
				must(t, f.local.Close())
				continue
			}
			refuse.Store(false)
			again := r.startOn(r.request(), f.program, f.local)
			again.app = within(t, r.apps, "the application's connection")
			expect(t, again.app, "kept")
			again.finish()
			again.app.Close()
			refuse.Store(true)
		}
		if len(r.apps) != 0 {
			t.Error("the application was connected to")
		}
		warm.finish()
	}
}

// upload reads a stream's DATA until there is as much as wanted, or it ends.
func (c *raw) upload(id uint32, wanted int) (got []byte, err error) {
	for len(got) < wanted {
		f, err := c.next(func(f http2.Frame) bool { d, ok := f.(*http2.DataFrame); return ok && d.StreamID == id })
		if err != nil {
			return got, err
		}
		got = append(got, f.(*http2.DataFrame).Data()...)
	}
	return got, nil
}

// testEarlyRepeated: what goes elsewhere goes with everything, once.
func testEarlyRepeated(t *testing.T, make New) {
	for name, refuse := range map[string]func(c *raw, id uint32) error{
		"GOAWAY":         func(c *raw, id uint32) error { return c.fr.WriteGoAway(0, http2.ErrCodeNo, nil) },
		"REFUSED_STREAM": func(c *raw, id uint32) error { return c.fr.WriteRSTStream(id, http2.ErrCodeRefusedStream) },
	} {
		r := newRig(t, make, Options{})
		var seen atomic.Int64
		addr := r.rawServer(nil, func(_ int, c *raw) error {
			for {
				id, err := c.request()
				if err != nil {
					return err
				}
				if seen.Add(1) == 1 {
					err = refuse(c, id)
				} else if err = c.answer(id, 200, false); err == nil {
					var got []byte
					got, err = c.upload(id, len("question"))
					err = errors.Join(err, c.fr.WriteData(id, true, append([]byte("re: "), got...)))
				}
				if err != nil {
					return err
				}
			}
		})
		f := r.spoken(to(r.request(), addr), []byte("question"), true)
		within(t, f.opened, "Established")
		expect(t, f.program, "re: question")
		expectEnd(t, f.program)
		if o := f.outcome(); o.Err != nil || o.Sent != uint64(len("question")) {
			t.Errorf("%s: %+v", name, o)
		}
	}
}

// testEarlyNoWindow: a peer that gives a stream no window gets nothing early.
func testEarlyNoWindow(t *testing.T, make New) {
	r := newRig(t, make, Options{})
	none := []http2.Setting{{ID: http2.SettingInitialWindowSize, Val: 0}}
	addr := r.rawServer(none, func(_ int, c *raw) error {
		id, err := c.request()
		if err == nil {
			err = c.answer(id, 200, false)
		}
		for _, n := range []uint32{3, 5} {
			var got []byte
			if err == nil {
				err = c.fr.WriteWindowUpdate(id, n)
			}
			if err == nil {
				got, err = c.upload(id, int(n))
			}
			if err == nil && len(got) != int(n) {
				t.Errorf("%d bytes in a window of %d", len(got), n)
			}
			err = errors.Join(err, c.fr.WriteData(id, false, got))
		}
		return errors.Join(err, c.fr.WriteData(id, true, nil))
	})
	f := r.spoken(to(r.request(), addr), []byte("question"), true)
	expect(t, f.program, "question")
	expectEnd(t, f.program)
	if o := f.outcome(); o.Err != nil && !errors.Is(o.Err, hbone.ErrProtocol) { // the server closes
		t.Error(o.Err)
	}
}

// testEarlyNotTwice: a peer that had the request and vanished without an answer
// may have passed it on, so nobody else gets it.
func testEarlyNotTwice(t *testing.T, make New) {
	for name, end := range map[string]func(c *raw, id uint32) error{
		"connection lost": func(c *raw, _ uint32) error { return c.conn.Close() },
		"reset":           func(c *raw, id uint32) error { return c.fr.WriteRSTStream(id, http2.ErrCodeInternal) },
	} {
		r := newRig(t, make, Options{})
		var had, repeated atomic.Bool
		addr := r.rawServer(nil, func(_ int, c *raw) error {
			id, err := c.request()
			if err != nil {
				return err
			}
			repeated.Store(had.Load())
			// An engine that waits for the answer sends nothing.
			must(t, c.conn.SetReadDeadline(time.Now().Add(50*time.Millisecond)))
			if got, err := c.upload(id, 1); err == nil && len(got) > 0 {
				had.Store(true)
			}
			if err := end(c, id); err != nil {
				return err
			}
			_, err = io.Copy(io.Discard, c.conn)
			return err
		})
		req := to(r.request(), addr)
		back := newChan[hbone.Outcome](2)
		req.Unanswered = func(o hbone.Outcome) { back <- o }
		f := r.spoken(req, []byte("transfer"), false)
		select {
		case o := <-back:
			if had.Load() {
				t.Errorf("%s: given back, to be offered to another: %v", name, o.Err)
			}
			expect(t, f.local, "transfer")
			must(t, f.local.Close())
		case o := <-f.done:
			if !had.Load() || o.Err == nil {
				t.Errorf("%s: over, though the peer had nothing: %v", name, o.Err)
			}
			expectReset(t, f.program, false)
		case <-time.After(wait):
			t.Fatalf("%s: nothing", name)
		}
		if repeated.Load() {
			t.Errorf("%s: another connection got it too", name)
		}
	}
}

// testEarlyReset: the program resets its connection while the answer is awaited.
func testEarlyReset(t *testing.T, make New) {
	r := newRig(t, make, Options{})
	asked, allow := newChan[struct{}](1), newChan[struct{}](0)
	addr := r.rawServer(nil, func(_ int, c *raw) error {
		id, err := c.request()
		asked <- struct{}{}
		<-allow
		if err == nil {
			err = c.answer(id, 200, false)
		}
		if err == nil {
			code := c.reset(id)
			if code != http2.ErrCodeConnect && code != http2.ErrCodeCancel {
				t.Errorf("reset with %v", code)
			}
			_, err = io.Copy(io.Discard, c.conn)
		}
		return err
	})
	f := r.spoken(to(r.request(), addr), []byte("never mind"), false)
	within(t, asked, "the request")
	reset(t, f.program)
	time.Sleep(20 * time.Millisecond)
	close(allow)
	if o := f.outcome(); !errors.Is(o.Err, hbone.ErrReset) && !errors.Is(o.Err, net.ErrClosed) {
		t.Errorf("outcome %v, want a reset", o.Err)
	}
}

// SpeaksEarly tries an engine that does not wait for the answer: it sends a
// request with its CONNECT, no more than 8 KiB of it, and no FIN.
func SpeaksEarly(t *testing.T, make New) {
	for _, size := range []int{1, 5000, 8 << 10, 100 << 10} {
		r := newRig(t, make, Options{})
		addr := r.rawServer(nil, func(_ int, c *raw) error {
			id, err := c.request()
			if err != nil {
				return err
			}
			f, err := c.next(func(f http2.Frame) bool { _, ok := f.(*http2.DataFrame); return ok })
			if err != nil {
				return err
			}
			if d := f.(*http2.DataFrame); d.StreamID != id || d.StreamEnded() || !bytes.Equal(d.Data(), words(size)[:min(size, 8<<10)]) {
				t.Errorf("of %d bytes %d are early in stream %d, end %v, or they are others", size, len(d.Data()), d.StreamID, d.StreamEnded())
			}
			must(t, c.conn.SetReadDeadline(time.Now().Add(50*time.Millisecond)))
			if _, err := c.next(func(http2.Frame) bool { return true }); !isTimeout(err) {
				t.Errorf("something follows before the answer: %v", err)
			}
			return nil
		})
		req := to(r.request(), addr)
		f := r.spoken(req, words(size), size < 100<<10)
		if o := f.outcome(); o.Err == nil || o.Sent != 0 {
			t.Errorf("outcome %+v", o)
		}
	}
}
