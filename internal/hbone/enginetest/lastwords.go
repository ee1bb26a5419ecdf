package enginetest

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/internal/hbone"
)

// testLastWords: an end that answers without having read everything, and closes,
// sends a RST behind its answer. The answer arrives all the same.
func testLastWords(t *testing.T, make New, byProgram bool) {
	r := newRig(t, make, Options{})
	const question, answer = 20 << 10, 4 << 10
	for i := range 8 {
		f := r.open(r.request())
		one, other := f.app, f.program
		if byProgram {
			one, other = other, one
		}
		_, err := other.Write(newBuffer(question))
		must(t, err)
		eventually(t, "the question, unread", func() bool { return unread(t, one) == question })
		_, err = one.Write(newBuffer(answer))
		must(t, err)
		must(t, one.Close()) // the kernel makes a RST of it
		must(t, other.SetReadDeadline(time.Now().Add(wait)))
		if n, err := io.Copy(io.Discard, other); n != answer || !errors.Is(err, syscall.ECONNRESET) {
			t.Fatalf("connection %d: %d of %d bytes before the RST, %v", i, n, answer, err)
		}
		if o := f.outcome(); !errors.Is(o.Err, hbone.ErrReset) {
			t.Errorf("outcome %v, want a reset", o.Err)
		}
		if in := r.lastInbound(i + 1); !errors.Is(in.Err, hbone.ErrReset) {
			t.Errorf("server's outcome %v, want a reset", in.Err)
		}
	}
}

// testAnswerBeforeReset: a server that has answered may ask its client, by a
// RST_STREAM with NO_ERROR, to stop sending. The answer must not be dropped for
// that (RFC 9113 section 8.1), however slow the program is and whatever it sends.
func testAnswerBeforeReset(t *testing.T, make New) {
	r := newRig(t, make, Options{})
	r.small = true
	const frame, frames = 10 << 10, 6
	ended := newChan[struct{}](1)
	addr := r.rawServer(nil, func(_ int, c *raw) error {
		id, err := c.request()
		if err == nil {
			err = c.answer(id, 200, false)
		}
		if err == nil { // the program's window is used up: more of its own is unread
			_, err = c.next(func() func(http2.Frame) bool {
				got := uint32(0)
				return func(f http2.Frame) bool {
					if d, ok := f.(*http2.DataFrame); ok {
						got += d.Length
					}
					return got == 65535
				}
			}())
		}
		for n := 1; n <= frames && err == nil; n++ {
			err = c.fr.WriteData(id, n == frames, newBuffer(frame))
		}
		if err == nil {
			err = c.fr.WriteRSTStream(id, http2.ErrCodeNo)
		}
		if err == nil {
			err = c.fr.WritePing(false, [8]byte{1})
		}
		if err == nil {
			_, err = c.next(func(f http2.Frame) bool { p, ok := f.(*http2.PingFrame); return ok && p.IsAck() })
		}
		ended <- struct{}{} // the client knows of the RST_STREAM
		if err == nil {
			_, err = io.Copy(io.Discard, c.conn)
		}
		return err
	})
	f := r.start(to(r.request(), addr))
	within(t, f.opened, "Established")
	sending := newChan[struct{}](0)
	go func() {
		defer close(sending)
		_, _ = f.program.Write(newBuffer(1 << 20)) // the end comes before
	}()
	within(t, ended, "the server's RST_STREAM")
	must(t, f.program.SetReadDeadline(time.Now().Add(wait)))
	if n, err := io.Copy(io.Discard, f.program); n != frame*frames || err != nil {
		t.Errorf("%d of %d bytes, %v", n, frame*frames, err)
	}
	f.outcome()
	<-sending
}

// testLastWordsBehindWrite: so does the answer of an end that is written to after its
// RST, while the peer takes nothing: the write fails before the answer has left.
func testLastWordsBehindWrite(t *testing.T, make New, byProgram bool) {
	const answer = 4 << 10
	r := newRig(t, make, Options{})
	none := http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0}
	gone, got := newChan[struct{}](0), newChan[int](1)
	speak := func(c *raw, id uint32) (err error) {
		if err = c.fr.WriteData(id, false, newBuffer(1000)); err != nil {
			return err
		}
		<-gone
		if err = errors.Join(c.fr.WriteData(id, false, newBuffer(10)), c.fr.WritePing(false, [8]byte{1})); err == nil {
			_, err = c.next(func(f http2.Frame) bool { p, ok := f.(*http2.PingFrame); return ok && p.IsAck() })
		}
		time.Sleep(100 * time.Millisecond) // an engine may write on another goroutine
		if err == nil {
			err = c.fr.WriteWindowUpdate(id, 1<<20)
		}
		n := 0
		if err == nil {
			_, err = c.next(func(f http2.Frame) bool {
				if d, ok := f.(*http2.DataFrame); ok {
					n += len(d.Data())
				}
				_, over := f.(*http2.RSTStreamFrame)
				return over
			})
		}
		got <- n
		return err
	}
	var one *net.TCPConn
	if byProgram {
		f := r.start(to(r.request(), r.rawServer([]http2.Setting{none}, func(_ int, c *raw) error {
			id, err := c.request()
			if err == nil {
				err = c.answer(id, 200, false)
			}
			if err == nil {
				err = speak(c, id)
			}
			return err
		})))
		within(t, f.opened, "Established")
		one = f.program
	} else {
		c := r.rawClient()
		must(t, c.fr.WriteSettings(none))
		c.connect(1, false)
		one = within(t, r.apps, "the application's connection")
		if code := c.status(1); code != 200 {
			t.Fatalf("status %d", code)
		}
		go func() { _ = speak(c, 1) }() // got says what is wrong
	}
	eventually(t, "the question, unread", func() bool { return unread(t, one) == 1000 })
	_, err := one.Write(newBuffer(answer))
	must(t, err)
	must(t, one.Close()) // the kernel makes a RST of it
	close(gone)
	if n := within(t, got, "the end"); n != answer {
		t.Errorf("%d of %d bytes before the RST", n, answer)
	}
}

// testLastWordsBeforeAnswer: so does what a program said that broke before there was an
// answer. Nobody has looked at its socket until then: it is the write of what comes behind
// the answer that meets the RST, and takes the error.
func testLastWordsBeforeAnswer(t *testing.T, make New) {
	const question = 30_000
	r := newRig(t, make, Options{})
	for _, window := range []uint32{0, 5000, 60_000} {
		gone, got := newChan[struct{}](0), newChan[int](1)
		addr := r.rawServer([]http2.Setting{{ID: http2.SettingInitialWindowSize, Val: window}}, func(_ int, c *raw) error {
			id, err := c.request()
			if err != nil {
				return err
			}
			<-gone
			n := 0
			if err = errors.Join(c.answer(id, 200, false), c.fr.WriteData(id, false, newBuffer(1000)), c.fr.WriteWindowUpdate(id, question)); err == nil {
				_, err = c.next(func(f http2.Frame) bool {
					d, ok := f.(*http2.DataFrame)
					if ok {
						n += len(d.Data())
					}
					_, over := f.(*http2.RSTStreamFrame)
					return over || ok && d.StreamEnded()
				})
			}
			got <- n
			return err
		})
		f := r.start(to(r.request(), addr))
		_, err := f.program.Write(newBuffer(question))
		must(t, err)
		eventually(t, "the question, unread", func() bool { return unread(t, f.local) == question })
		reset(t, f.program)
		close(gone)
		if n := within(t, got, "the end"); n != question {
			t.Errorf("%d of %d bytes before the RST, with a window of %d", n, question, window)
		}
		if o := f.outcome(); !errors.Is(o.Err, hbone.ErrReset) {
			t.Errorf("outcome %v, want a reset", o.Err)
		}
	}
}

// parting is how a peer resets a stream.
type parting struct {
	toProgram bool
	ends      bool // with END_STREAM before
	leaves    bool // and closes the connection
	large     bool // the engine's socket has room for all; else for a part
}

// partings are all of them.
func partings() (all []parting) {
	for n := range 16 {
		all = append(all, parting{n&1 != 0, n&2 != 0, n&4 != 0, n&8 != 0})
	}
	return all
}

// String says so in a test's name.
func (p parting) String() string {
	name := "last words to the application before RST_STREAM"
	if p.toProgram {
		name = "last words to the program before RST_STREAM"
	}
	if p.ends {
		name += " behind END_STREAM"
	}
	if p.leaves {
		name += " and the connection's end"
	}
	if p.large {
		name += " with a large send buffer"
	}
	return name
}

// testLastWordsTo: what the peer sent before its RST_STREAM arrives before the RST,
// though the kernel of the local connection's other end holds a part of it only, as it is all in
// the queue of a receiver when a RST of TCP's comes (net/ipv4/tcp_input.c, tcp_reset).
func testLastWordsTo(t *testing.T, make New, how parting) {
	const answer = 4 * 16000 // fits a stream's first window
	room := tinyBuffer
	if how.large {
		room = 1 << 20
	}
	r := newRig(t, make, Options{}, tinyAppsWith(room))
	known := newChan[error](1)
	speak := func(c *raw, id uint32) (err error) {
		for n := range 4 {
			err = errors.Join(err, c.fr.WriteData(id, how.ends && n == 3, newBuffer(answer/4)))
		}
		if how.ends {
			time.Sleep(50 * time.Millisecond) // until it is passed on, as far as there is room
		}
		if err = errors.Join(err, c.fr.WriteRSTStream(id, http2.ErrCodeCancel), c.fr.WritePing(false, [8]byte{1})); err == nil {
			_, err = c.next(func(f http2.Frame) bool { p, ok := f.(*http2.PingFrame); return ok && p.IsAck() })
		}
		known <- err
		return err
	}
	reader, outcome := r.parts(how, room, speak)
	must(t, within(t, known, "the RST_STREAM's arrival"))
	time.Sleep(100 * time.Millisecond) // an engine may deliver on another goroutine
	if n := unread(t, reader); n == answer {
		t.Fatal("the kernel holds all of it: nothing is tried")
	}
	must(t, reader.SetReadDeadline(time.Now().Add(wait)))
	n, err := io.Copy(io.Discard, reader)
	// A FIN that has arrived hides the RST.
	if n != answer || !errors.Is(err, syscall.ECONNRESET) && !(how.ends && err == nil) {
		t.Errorf("%d of %d bytes before the RST, %v", n, answer, err)
	}
	// The reference engine's client, net/http's, does not say behind END_STREAM which of the two it was.
	o := outcome()
	lost := how.toProgram && how.ends && how.leaves && errors.Is(o.Err, hbone.ErrProtocol)
	if !errors.Is(o.Err, hbone.ErrReset) && !lost || o.Received != answer {
		t.Errorf("outcome %v with %d bytes received, want a reset and all", o.Err, o.Received)
	}
}

// parts has a peer speak on a stream, and returns the end of the local connection that it
// speaks to, and what waits for the outcome.
func (r *rig) parts(how parting, room int, speak func(c *raw, id uint32) error) (*net.TCPConn, func() hbone.Outcome) {
	t := r.t
	t.Helper()
	if how.toProgram {
		program, local := pair(t)
		must(t, errors.Join(program.SetReadBuffer(tinyBuffer), local.SetWriteBuffer(room)))
		f := r.startOn(to(r.request(), r.rawServer(nil, func(_ int, c *raw) error {
			id, err := c.request()
			if err == nil {
				err = c.answer(id, 200, false)
			}
			if err == nil {
				err = speak(c, id)
			}
			if err == nil && !how.leaves {
				_, err = io.Copy(io.Discard, c.conn)
			}
			return err
		})), program, local)
		within(t, f.opened, "Established")
		return program, f.outcome
	}
	c := r.rawClient()
	c.connect(1, false)
	app := within(t, r.apps, "the application's connection")
	if code := c.status(1); code != 200 {
		t.Fatalf("status %d", code)
	}
	must(t, speak(c, 1))
	if how.leaves {
		must(t, c.conn.Close())
	}
	return app, func() hbone.Outcome { return r.lastInbound(1) }
}

// testResetUntaken: who takes nothing has had its time before lastInbound's is over,
// whether the peer's connection has ended meanwhile or not. This is the server's end: the reference
// engine's client is exempt from the bound (ADR 95).
func testResetUntaken(t *testing.T, make New) {
	r := newRig(t, make, Options{}, tinyApps)
	var apps []*net.TCPConn
	for _, leaves := range []bool{false, true} {
		c := r.rawClient()
		c.connect(1, false)
		apps = append(apps, within(t, r.apps, "the application's connection"))
		if code := c.status(1); code != 200 {
			t.Fatalf("status %d", code)
		}
		must(t, errors.Join(c.fr.WriteData(1, false, newBuffer(16000)), c.fr.WriteData(1, false, newBuffer(16000)), c.fr.WriteData(1, false, newBuffer(16000)), c.fr.WriteRSTStream(1, http2.ErrCodeCancel)))
		if leaves {
			must(t, c.conn.Close())
		}
	}
	for n, app := range apps {
		if in := r.lastInbound(n + 1); !errors.Is(in.Err, hbone.ErrReset) {
			t.Errorf("server's outcome %v, want a reset", in.Err)
		}
		must(t, app.SetReadDeadline(time.Now().Add(wait)))
	}
	for _, app := range apps {
		if n, err := io.Copy(io.Discard, app); n == 0 || n >= 3*16000 || !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%d bytes before the RST, %v: want what the kernel had", n, err)
		}
	}
}

// testResetByBoth: a stream that the peer has reset, and whose application breaks before
// it has taken what came before that, has not ended well.
func testResetByBoth(t *testing.T, make New) {
	r := newRig(t, make, Options{}, tinyApps)
	c := r.rawClient()
	must(t, c.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0}))
	c.connect(1, false)
	app := within(t, r.apps, "the application's connection")
	if code := c.status(1); code != 200 {
		t.Fatalf("status %d", code)
	}
	send(t, app, "this goes nowhere")
	must(t, errors.Join(c.fr.WriteData(1, false, newBuffer(16000)), c.fr.WriteData(1, false, newBuffer(16000)), c.fr.WriteData(1, false, newBuffer(16000))))
	eventually(t, "the kernel is full", func() bool { return unread(t, app) > 4<<10 })
	must(t, errors.Join(c.fr.WriteRSTStream(1, http2.ErrCodeCancel), c.fr.WritePing(false, [8]byte{1})))
	_, err := c.next(func(f http2.Frame) bool { p, ok := f.(*http2.PingFrame); return ok && p.IsAck() })
	must(t, err)
	reset(t, app)
	if in := r.lastInbound(1); !errors.Is(in.Err, hbone.ErrReset) {
		t.Errorf("server's outcome %v, want a reset", in.Err)
	}
}

// testWholeBehindDrain: the last stream of a connection that drains has ended for the
// engine when its kernel has the last byte. The peer may take longer for it than for
// the goodbye, and speak meanwhile: a socket that was closed answers with a RST, which
// drops what is left (net/ipv4/tcp_input.c, tcp_rcv_state_process).
func testWholeBehindDrain(t *testing.T, make New) {
	const answer, frames = 100 << 10, 2
	r := newRig(t, make, Options{})
	narrow := net.Dialer{Control: func(_, _ string, raw syscall.RawConn) (err error) {
		controlled := raw.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, tinyBuffer)
		})
		return errors.Join(controlled, err)
	}}
	conn, err := tls.DialWithDialer(&narrow, "tcp", r.endpoint.String(), &tls.Config{
		InsecureSkipVerify: true, NextProtos: []string{"h2"}, Certificates: []tls.Certificate{*r.client.cert},
	})
	must(t, err)
	c := newRaw(t, conn)
	_, err = conn.Write([]byte(http2.ClientPreface))
	must(t, errors.Join(err, c.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 20}), c.fr.WriteWindowUpdate(0, 1<<20)))
	c.connect(1, true)
	app := within(t, r.apps, "the application's connection")
	if code := c.status(1); code != 200 {
		t.Fatalf("status %d", code)
	}
	r.server.engine.Drain(hbone.Match{}, false)
	f, err := c.next(func(f http2.Frame) bool { p, ok := f.(*http2.PingFrame); return ok && !p.IsAck() })
	must(t, err)
	must(t, c.fr.WritePing(true, f.(*http2.PingFrame).Data))
	_, err = c.next(func(f http2.Frame) bool { g, ok := f.(*http2.GoAwayFrame); return ok && g.LastStreamID == 1 })
	must(t, err)
	_, err = app.Write(newBuffer(answer))
	must(t, errors.Join(err, app.Close()))
	if in := r.lastInbound(1); in.Err != nil || in.Sent != answer {
		t.Fatalf("server's outcome %v after %d bytes", in.Err, in.Sent)
	}
	time.Sleep(600 * time.Millisecond) // longer than a goodbye takes
	for n := range byte(frames) {
		must(t, c.fr.WritePing(false, [8]byte{n}))
		time.Sleep(50 * time.Millisecond)
	}
	got, end := 0, false
	for !end && err == nil {
		var f http2.Frame
		if f, err = c.fr.ReadFrame(); err == nil {
			if d, ok := f.(*http2.DataFrame); ok {
				got, end = got+len(d.Data()), d.StreamEnded()
			}
		}
	}
	if got != answer || !end {
		t.Errorf("%d of %d bytes, END_STREAM %v: %v", got, answer, end, err)
	}
}

// unread is how much the kernel holds for a socket's reader.
func unread(t testing.TB, c *net.TCPConn) (n int) {
	t.Helper()
	raw, err := c.SyscallConn()
	must(t, err)
	must(t, raw.Control(func(fd uintptr) { n, err = unix.IoctlGetInt(int(fd), unix.TIOCINQ) }))
	must(t, err)
	return n
}
