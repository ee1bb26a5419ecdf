package enginetest

import (
	"bytes"
	"errors"
	"io"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/heddle-mesh/heddle/internal/hbone"
)

func hpackField(name, value string) hpack.HeaderField {
	return hpack.HeaderField{Name: name, Value: value}
}

// testPeerRefuses: REFUSED_STREAM says that nothing was processed (RFC 9113
// section 8.7), so the CONNECT is sent again.
func testPeerRefuses(t *testing.T, make New) {
	r := newRig(t, make, Options{})
	addr := r.rawServer(nil, func(_ int, c *raw) error {
		for n := 0; ; n++ {
			id, err := c.request()
			if err != nil {
				return err
			}
			if n == 0 {
				err = c.fr.WriteRSTStream(id, http2.ErrCodeRefusedStream)
			} else if err = c.answer(id, 200, false); err == nil {
				err = c.fr.WriteData(id, true, []byte("second try"))
			}
			if err != nil {
				return err
			}
		}
	})
	f := r.start(to(r.request(), addr))
	within(t, f.opened, "Established")
	expect(t, f.program, "second try")
	expectEnd(t, f.program)
	must(t, f.program.CloseWrite())
	if o := f.outcome(); o.Err != nil {
		t.Error(o.Err)
	}
}

// testPeerGoesAway: a GOAWAY that leaves a stream out sends it elsewhere.
func testPeerGoesAway(t *testing.T, make New) {
	r := newRig(t, make, Options{})
	addr := r.rawServer(nil, func(n int, c *raw) error {
		id, err := c.request()
		if err != nil {
			return err
		}
		if n == 0 {
			if err := c.fr.WriteGoAway(0, http2.ErrCodeNo, nil); err != nil {
				return err
			}
			_, err = io.Copy(io.Discard, c.conn)
			return err
		}
		if err := c.answer(id, 200, false); err != nil {
			return err
		}
		_, err = c.request() // until it ends
		return err
	})
	f := r.start(to(r.request(), addr))
	within(t, f.opened, "Established")
	reset(t, f.program)
	f.outcome()
}

// testPeerLimit: the first SETTINGS count from the first stream on.
func testPeerLimit(t *testing.T, make New) {
	r := newRig(t, make, Options{})
	one := []http2.Setting{{ID: http2.SettingMaxConcurrentStreams, Val: 1}}
	addr := r.rawServer(one, func(_ int, c *raw) error {
		id, err := c.request()
		if err != nil {
			return err
		}
		if err := c.answer(id, 200, false); err != nil {
			return err
		}
		if id, err = c.request(); err == nil {
			t.Errorf("stream %d beyond the limit of one", id)
		}
		return err
	})
	var flows []*flow
	for range 5 {
		flows = append(flows, r.start(to(r.request(), addr)))
	}
	for _, f := range flows {
		within(t, f.opened, "Established")
	}
	for _, f := range flows {
		reset(t, f.program)
		if o := f.outcome(); !errors.Is(o.Err, hbone.ErrReset) {
			t.Errorf("outcome %v", o.Err)
		}
	}
}

// testPeerTakesNone: a peer that takes no stream on any connection costs a few of
// them, not as many as fit into the time of a request, and keeps none open.
func testPeerTakesNone(t *testing.T, make New) {
	r := newRig(t, make, Options{})
	none := []http2.Setting{{ID: http2.SettingMaxConcurrentStreams, Val: 0}}
	var opened, open atomic.Int64
	addr := r.rawServer(none, func(_ int, c *raw) error {
		opened.Add(1)
		open.Add(1)
		defer open.Add(-1)
		_, err := c.request() // until it ends
		return err
	})
	const requests, most = 3, 17
	for range requests {
		f := r.start(to(r.request(), addr))
		if o := f.outcome(); !errors.Is(o.Err, hbone.ErrLimit) {
			t.Errorf("outcome %v", o.Err)
		}
		reset(t, f.program)
	}
	if n := opened.Load(); n == 0 || n > requests*most {
		t.Errorf("%d connections for %d requests", n, requests)
	}
	eventually(t, "no connection is left", func() bool { return open.Load() == 0 })
}

// testEndlessInformation: answers that say nothing end, at some point, what they
// answer.
func testEndlessInformation(t *testing.T, make New) {
	r := newRig(t, make, Options{})
	addr := r.rawServer(nil, func(_ int, c *raw) error {
		id, err := c.request()
		if err != nil {
			return err
		}
		for range 2_000_000 {
			if err := c.answer(id, 103, false); err != nil {
				return err
			}
		}
		return errors.New("the peer listens to everything")
	})
	f := r.start(to(r.request(), addr))
	if o := f.outcome(); o.Err == nil || errors.Is(o.Err, hbone.ErrTimeout) {
		t.Errorf("outcome %v", o.Err)
	}
	reset(t, f.program)
}

// testPeerBreaksOff: every way in which a peer may end a stream early, and what
// the program sees.
func testPeerBreaksOff(t *testing.T, make New) {
	for name, c := range map[string]struct {
		end  func(c *raw, id uint32) error
		want []error
		fin  bool
	}{
		"reset": {func(c *raw, id uint32) error { return c.fr.WriteRSTStream(id, http2.ErrCodeConnect) }, []error{hbone.ErrReset}, false},
		"end, then reset": {func(c *raw, id uint32) error {
			return errors.Join(c.fr.WriteData(id, true, nil), c.fr.WriteRSTStream(id, http2.ErrCodeNo))
		}, []error{nil, hbone.ErrReset}, true}, // without an error (RFC 9113, section 8.1) when its engine can tell
		"connection closed": {func(c *raw, id uint32) error { return c.conn.Close() }, []error{hbone.ErrProtocol}, false},
		"end, then closed":  {func(c *raw, id uint32) error { return errors.Join(c.fr.WriteData(id, true, nil), c.conn.Close()) }, []error{hbone.ErrProtocol, hbone.ErrReset}, true},
		"protocol error":    {func(c *raw, id uint32) error { return c.fr.WriteRawFrame(http2.FramePing, 0, 0, []byte("short")) }, []error{hbone.ErrProtocol}, false},
		"GOAWAY with an error": {func(c *raw, id uint32) error {
			return errors.Join(c.fr.WriteGoAway(id, http2.ErrCodeInternal, nil), c.conn.Close())
		}, []error{hbone.ErrProtocol}, false},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, make, Options{})
			addr := r.rawServer(nil, func(_ int, peer *raw) error {
				id, err := peer.request()
				if err == nil {
					err = peer.answer(id, 200, false)
				}
				if err == nil {
					time.Sleep(20 * time.Millisecond)
					err = c.end(peer, id)
				}
				if err == nil {
					_, err = io.Copy(io.Discard, peer.conn)
				}
				return err
			})
			f := r.start(to(r.request(), addr))
			within(t, f.opened, "Established")
			if c.fin {
				expectEndOrReset(t, f)
			}
			o := f.outcome()
			ok := false
			for _, want := range c.want {
				ok = ok || errors.Is(o.Err, want)
			}
			if !ok {
				t.Errorf("outcome %v, want %v", o.Err, c.want)
			}
			if !c.fin {
				expectReset(t, f.program, false)
			}
		})
	}
}

// expectEndOrReset: the FIN may be overtaken by the RST that follows.
func expectEndOrReset(t *testing.T, f *flow) {
	t.Helper()
	must(t, f.program.SetReadDeadline(time.Now().Add(wait)))
	if n, err := f.program.Read(newBuffer(1)); err == nil || isTimeout(err) {
		t.Fatalf("read %d bytes, %v; want the end", n, err)
	}
}

// testChangingWindows: a peer may change the windows of its streams under way as often
// as it likes, below what was sent already too (RFC 9113 section 6.9.2). Those of before
// hold up to the acknowledgement, those of now behind it (section 6.5.3).
func testChangingWindows(t *testing.T, make New) {
	const changes, answer = 150, 400_000
	r := newRig(t, make, Options{})
	c := r.rawClient()
	c.connect(1, false)
	app := within(t, r.apps, "the application's connection")
	defer app.Close()
	must(t, c.fr.WritePing(false, [8]byte{1}))
	_, err := c.next(func(f http2.Frame) bool { p, ok := f.(*http2.PingFrame); return ok && p.IsAck() }) // behind the first ACK
	must(t, err)
	data := newBuffer(answer)
	_, _ = bytesOf(9, 0).Read(data) // never fails
	go func() {
		_, _ = app.Write(data) // what comes is compared
		_ = app.CloseWrite()
	}()
	var got []byte
	window, most := int64(65535), int64(0) // the stream's, and what it was at most since the last ACK
	take := func(wanted func(http2.Frame) bool) {
		_, err := c.next(func(f http2.Frame) bool {
			if d, ok := f.(*http2.DataFrame); ok {
				got = append(got, d.Data()...)
				window, most = window-int64(len(d.Data())), most-int64(len(d.Data()))
				if most < 0 && len(d.Data()) > 0 {
					t.Errorf("%d bytes beyond the window", -most)
				}
			}
			return wanted(f)
		})
		must(t, err)
	}
	initial := int64(65535)
	for n := range int64(changes) {
		next := n % 3 * 20_000
		most = window
		window, initial = window+next-initial, next
		must(t, c.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: uint32(next)}))
		take(func(f http2.Frame) bool { s, ok := f.(*http2.SettingsFrame); return ok && s.IsAck() })
		most = window
		if window < 3000 {
			window, most = window+3000, most+3000
			must(t, errors.Join(c.fr.WriteWindowUpdate(1, 3000), c.fr.WriteWindowUpdate(0, 3000)))
		}
	}
	must(t, errors.Join(c.fr.WriteWindowUpdate(1, 1<<20), c.fr.WriteWindowUpdate(0, 1<<20)))
	most = 1 << 20
	take(func(f http2.Frame) bool { d, ok := f.(*http2.DataFrame); return ok && d.StreamEnded() })
	if !bytes.Equal(got, data) {
		t.Errorf("%d bytes arrived, of %d, or others", len(got), len(data))
	}
}
