package enginetest

import (
	"bytes"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/heddle-mesh/heddle/internal/hbone"
)

// foreignTests are what HTTP/2 allows a peer to do, and peers made of other libraries do.
func foreignTests() []test {
	return []test{
		{"odd but good answers", testOddAnswers}, {"every 2xx is a yes", testEveryYes}, {"refusal with a body", testRefusalWithBody},
		{"no compression table", testNoTable}, {"no compression table from now on", testTableShrinks},
		{"DATA behind our reset, by a server", testDataBehindReset}, {"DATA behind our reset, by a client", testClientDataBehindReset},
		{"windows given back in small pieces", testSmallUpdates},
		{"END_STREAM needs no window", testEndWithoutWindow}, {"END_STREAM needs no window of the connection", testEndWithoutConnectionWindow},
		{"END_STREAM of an application needs no window", testAppEndWithoutWindow},
		{"whole answer before the connection's end", func(t *testing.T, make New) { testWholeBeforeEnd(t, make, true) }},
		{"whole request before the connection's end", func(t *testing.T, make New) { testWholeBeforeEnd(t, make, false) }},
	}
}

// testOddAnswers: what a server may send around, and in, an answer changes nothing of it.
func testOddAnswers(t *testing.T, make New) {
	r := newRig(t, make, Options{})
	settings := []http2.Setting{
		{ID: 0x1a2a, Val: 7}, {ID: http2.SettingMaxFrameSize, Val: 1<<24 - 1}, {ID: http2.SettingHeaderTableSize, Val: 1 << 20},
		{ID: http2.SettingMaxHeaderListSize, Val: 4096}, {ID: 8, Val: 1}, {ID: 9, Val: 1},
	}
	addr := r.rawServer(settings, func(_ int, c *raw) error {
		id, err := c.request()
		if err != nil {
			return err
		}
		err = errors.Join(
			c.fr.WriteRawFrame(0x1f, 0xff, 0, []byte("grease")), c.fr.WriteRawFrame(0x2f, 1, id, newBuffer(1<<14)),
			c.fr.WritePriority(id+2, http2.PriorityParam{StreamDep: id, Weight: 9}),
			c.answer(id, 103, false), c.answer(id, 100, false),
		)
		c.block.Reset()
		for _, f := range []string{":status 200", "server other", "x-long " + strings.Repeat("v", 5000), "set-cookie a=b", "set-cookie c=d", "x-text caf\xc3\xa9"} {
			name, value, _ := strings.Cut(f, " ")
			err = errors.Join(err, c.encoder.WriteField(hpackField(name, value)))
		}
		block := c.block.Bytes()
		err = errors.Join(err,
			c.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block[:2], PadLength: 255, Priority: http2.PriorityParam{StreamDep: 0, Weight: 200}}),
			c.fr.WriteContinuation(id, false, nil), c.fr.WriteContinuation(id, false, block[2:9]), c.fr.WriteContinuation(id, true, block[9:]),
			c.fr.WriteDataPadded(id, false, []byte("one "), newBuffer(255)), c.fr.WriteDataPadded(id, false, nil, newBuffer(100)),
			c.fr.WriteData(id, false, nil), c.fr.WriteWindowUpdate(id, 5), c.fr.WriteData(id, false, []byte("two")),
		)
		c.block.Reset()
		err = errors.Join(err, c.encoder.WriteField(hpackField("x-trailer", "y")),
			c.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: c.block.Bytes(), EndHeaders: true, EndStream: true}))
		if err == nil {
			_, err = io.Copy(io.Discard, c.conn)
		}
		return err
	})
	f := r.start(to(r.request(), addr))
	within(t, f.opened, "Established")
	expect(t, f.program, "one two")
	expectEnd(t, f.program)
	must(t, f.program.CloseWrite())
	if o := f.outcome(); o.Err != nil || o.Received != 7 {
		t.Errorf("outcome %+v", o)
	}
}

// testEveryYes: any status of the 2xx opens the tunnel (RFC 9110 section 9.3.6), one that
// has no content elsewhere too; what is next to them does not.
func testEveryYes(t *testing.T, make New) {
	r := newRig(t, make, Options{})
	codes := []int{200, 201, 202, 204, 205, 206, 299, 300, 304}
	addr := r.rawServer(nil, func(_ int, c *raw) error {
		for _, code := range codes {
			id, err := c.request()
			if err == nil {
				err = c.answer(id, code, code >= 300)
			}
			if err == nil && code < 300 {
				_, err = c.next(func(f http2.Frame) bool { d, ok := f.(*http2.DataFrame); return ok && string(d.Data()) == "asked" })
				err = errors.Join(err, c.fr.WriteData(id, true, []byte("served")))
			}
			if err != nil {
				return err
			}
		}
		_, err := io.Copy(io.Discard, c.conn)
		return err
	})
	for _, code := range codes {
		f := r.start(to(r.request(), addr))
		if code >= 300 {
			if o := f.outcome(); !errors.As(o.Err, new(*hbone.StatusError)) {
				t.Errorf("outcome %v of a %d", o.Err, code)
			}
			continue
		}
		within(t, f.opened, "Established")
		send(t, f.program, "asked")
		expect(t, f.program, "served")
		expectEnd(t, f.program)
		must(t, f.program.CloseWrite())
		if o := f.outcome(); o.Err != nil || o.Sent != 5 || o.Received != 6 {
			t.Errorf("outcome %+v of a %d", o, code)
		}
	}
}

// testRefusalWithBody: an answer that is not 2xx may say more; its status is the outcome,
// and the connection serves on.
func testRefusalWithBody(t *testing.T, make New) {
	r := newRig(t, make, Options{})
	addr := r.rawServer(nil, func(_ int, c *raw) error {
		for n := 0; ; n++ {
			id, err := c.request()
			switch {
			case err != nil:
				return err
			case n == 0:
				err = errors.Join(c.answer(id, 401, false), c.fr.WriteData(id, false, newBuffer(3000)), c.tryConnect(id, true, "x", "y"))
			default:
				err = errors.Join(c.answer(id, 200, false), c.fr.WriteData(id, true, []byte("served")))
			}
			if err != nil {
				return err
			}
		}
	})
	f := r.start(to(r.request(), addr))
	if status, ok := errors.AsType[*hbone.StatusError](f.outcome().Err); !ok || status.Code != 401 {
		t.Errorf("outcome %v", status)
	}
	f = r.start(to(r.request(), addr))
	within(t, f.opened, "Established")
	expect(t, f.program, "served")
}

// table follows an encoder's bound of its table as a strict decoder does: behind the
// acknowledgement of a smaller one the next header must begin by saying so (RFC 9113
// section 4.3.1, RFC 7541 section 4.2). Nghttp2 and Python's hpack insist on it.
type table struct{ now, limit int }

// block takes a header, and says whether it keeps to the limit.
func (b *table) block(p []byte) bool {
	for len(p) > 0 && p[0]&0xe0 == 0x20 && p[0] != 0x3f { // below 31: in one byte
		b.now = int(p[0] & 0x1f)
		p = p[1:]
	}
	return b.now <= b.limit
}

func testNoTable(t *testing.T, make New) {
	r := newRig(t, make, Options{})
	none := http2.Setting{ID: http2.SettingHeaderTableSize, Val: 0}
	kept := newChan[bool](2)
	addr := r.rawServer([]http2.Setting{none}, func(_ int, c *raw) error {
		b := table{now: 4096}
		for {
			f, err := c.next(func(f http2.Frame) bool { _, ok := f.(*http2.HeadersFrame); return ok })
			if err != nil {
				return err
			}
			h := f.(*http2.HeadersFrame)
			kept <- b.block(h.HeaderBlockFragment())
			if err := c.answer(h.StreamID, 503, true); err != nil {
				return err
			}
		}
	})
	for range 2 {
		r.start(to(r.request(), addr)).outcome()
		if !within(t, kept, "a request") {
			t.Error("a request does not give up the table that the server has forbidden")
		}
	}
	c := r.rawClient()
	must(t, c.fr.WriteSettings(none))
	b := table{now: 4096}
	for id := uint32(1); id < 9; id += 2 {
		c.connect(id, false, ":method", "CONNECT", ":authority", "10.1.2.3:0") // a 400, which is in no table
		f, err := c.next(func(f http2.Frame) bool { _, ok := f.(*http2.HeadersFrame); return ok })
		must(t, err)
		if !b.block(f.(*http2.HeadersFrame).HeaderBlockFragment()) {
			t.Errorf("answer %d does not give up the table that the client has forbidden", id)
		}
	}
}

func testTableShrinks(t *testing.T, make New) {
	r := newRig(t, make, Options{})
	kept := newChan[bool](3)
	addr := r.rawServer(nil, func(_ int, c *raw) error {
		b := table{now: 4096, limit: 4096}
		for {
			f, err := c.next(func(f http2.Frame) bool { _, ok := f.(*http2.HeadersFrame); return ok })
			if err != nil {
				return err
			}
			h := f.(*http2.HeadersFrame)
			ok := b.block(h.HeaderBlockFragment())
			if err := c.fr.WriteSettings(http2.Setting{ID: http2.SettingHeaderTableSize, Val: 10}); err != nil {
				return err
			}
			if _, err := c.next(func(f http2.Frame) bool { s, ok := f.(*http2.SettingsFrame); return ok && s.IsAck() }); err != nil {
				return err
			}
			b.limit = 10
			kept <- ok
			if err := c.answer(h.StreamID, 503, true); err != nil {
				return err
			}
		}
	})
	for range 3 {
		r.start(to(r.request(), addr)).outcome()
		if !within(t, kept, "a request") {
			t.Error("a request does not give up the table that the server has forbidden meanwhile")
		}
	}
}

// inFlight is how many small frames of DATA are on their way when a stream is reset.
const inFlight = 9000

// testDataBehindReset: what a peer had sent before it knew of a reset of ours, in frames
// however small, is no flood: the connection's other streams go on.
func testDataBehindReset(t *testing.T, make New) {
	r := newRig(t, make, Options{})
	addr := r.rawServer(nil, func(_ int, c *raw) error {
		first, err := c.request()
		if err == nil {
			err = c.answer(first, 200, false)
		}
		if err != nil {
			return err
		}
		second, err := c.request()
		if err == nil {
			err = c.answer(second, 200, false)
		}
		if err == nil {
			_, err = c.next(func(f http2.Frame) bool { s, ok := f.(*http2.RSTStreamFrame); return ok && s.StreamID == first })
		}
		for n := 0; n < inFlight && err == nil; n++ {
			err = c.fr.WriteData(first, false, newBuffer(7))
		}
		if err == nil {
			err = errors.Join(c.fr.WriteData(first, true, nil), c.fr.WriteData(second, true, []byte("goes on")))
		}
		if err == nil {
			_, err = io.Copy(io.Discard, c.conn)
		}
		return err
	})
	resets, goesOn := r.start(to(r.request(), addr)), (*flow)(nil)
	within(t, resets.opened, "Established")
	goesOn = r.start(to(r.request(), addr))
	within(t, goesOn.opened, "Established")
	reset(t, resets.program)
	expect(t, goesOn.program, "goes on")
	expectEnd(t, goesOn.program)
	must(t, goesOn.program.CloseWrite())
	if o := goesOn.outcome(); o.Err != nil {
		t.Errorf("the other stream's outcome %v", o.Err)
	}
}

func testClientDataBehindReset(t *testing.T, make New) {
	r := newRig(t, make, Options{})
	c := r.rawClient()
	var apps []*net.TCPConn
	for id := uint32(1); id < 5; id += 2 {
		c.connect(id, false)
		apps = append(apps, within(t, r.apps, "the application's connection"))
		if code := c.status(id); code != 200 {
			t.Fatalf("status %d", code)
		}
	}
	defer apps[1].Close()
	reset(t, apps[0])
	c.reset(1)
	for range inFlight {
		must(t, c.fr.WriteData(1, false, newBuffer(7)))
	}
	must(t, errors.Join(c.fr.WriteData(1, true, nil), c.fr.WriteData(3, true, []byte("goes on"))))
	expect(t, apps[1], "goes on")
	expectEnd(t, apps[1])
}

// testSmallUpdates: a receiver that gives the windows back for each KiB that its
// application has read, as a server of net/http2 nearly does, floods nobody.
func testSmallUpdates(t *testing.T, make New) {
	const size, piece = 14 << 20, 1 << 10
	r := newRig(t, make, Options{})
	updates := func(c *raw, id uint32) error {
		for left := size; left > 0; {
			f, err := c.next(func(f http2.Frame) bool { _, ok := f.(*http2.DataFrame); return ok })
			if err != nil {
				return err
			}
			n := len(f.(*http2.DataFrame).Data())
			left -= n
			var all bytes.Buffer
			fr := http2.NewFramer(&all, nil)
			for ; n > 0 && err == nil; n -= piece {
				k := uint32(min(n, piece))
				err = errors.Join(fr.WriteWindowUpdate(id, k), fr.WriteWindowUpdate(0, k))
			}
			if err == nil {
				_, err = c.conn.Write(all.Bytes())
			}
			if err != nil {
				return err
			}
		}
		return c.fr.WriteData(id, true, []byte("all there"))
	}
	f := r.start(to(r.request(), r.rawServer(nil, func(_ int, c *raw) error {
		id, err := c.request()
		if err == nil {
			err = c.answer(id, 200, false)
		}
		if err == nil {
			err = updates(c, id)
		}
		if err == nil {
			_, err = io.Copy(io.Discard, c.conn)
		}
		return err
	})))
	within(t, f.opened, "Established")
	go func() { _, _ = f.program.Write(newBuffer(size)) }() // the answer says whether it arrived
	expect(t, f.program, "all there")
	c := r.rawClient()
	c.connect(1, false)
	app := within(t, r.apps, "the application's connection")
	defer app.Close()
	if code := c.status(1); code != 200 {
		t.Fatalf("status %d", code)
	}
	go func() { _, _ = app.Write(newBuffer(size)) }()
	must(t, updates(c, 1))
	expect(t, app, "all there")
}

// testEndWithoutWindow: a program's FIN passes a server that lets it send nothing (RFC 9113
// section 6.9.1), and its answer comes.
func testEndWithoutWindow(t *testing.T, make New) {
	r := newRig(t, make, Options{})
	f := r.start(to(r.request(), r.rawServer([]http2.Setting{{ID: http2.SettingInitialWindowSize, Val: 0}}, func(_ int, c *raw) error {
		id, err := c.request()
		if err == nil {
			err = c.answer(id, 200, false)
		}
		if err == nil {
			_, err = c.next(func(f http2.Frame) bool { d, ok := f.(*http2.DataFrame); return ok && d.StreamEnded() })
		}
		if err == nil {
			err = c.fr.WriteData(id, true, []byte("answer"))
		}
		if err == nil {
			_, err = io.Copy(io.Discard, c.conn)
		}
		return err
	})))
	within(t, f.opened, "Established")
	time.Sleep(20 * time.Millisecond) // the FIN comes by itself
	must(t, f.program.CloseWrite())
	expect(t, f.program, "answer")
	expectEnd(t, f.program)
	if o := f.outcome(); o.Err != nil {
		t.Errorf("outcome %v", o.Err)
	}
}

// testEndWithoutConnectionWindow: so it does when another stream has used the
// connection's window up, which its reader does not give back.
func testEndWithoutConnectionWindow(t *testing.T, make New) {
	r := newRig(t, make, Options{})
	used := newChan[struct{}](1)
	addr := r.rawServer([]http2.Setting{{ID: http2.SettingInitialWindowSize, Val: 1 << 20}}, func(_ int, c *raw) error {
		first, err := c.request()
		if err == nil {
			err = c.answer(first, 200, false)
		}
		got := uint32(0)
		if err == nil {
			_, err = c.next(func(f http2.Frame) bool {
				if d, ok := f.(*http2.DataFrame); ok {
					got += d.Length
				}
				return got == 65535
			})
		}
		if err != nil {
			return err
		}
		used <- struct{}{}
		second, err := c.request()
		if err == nil {
			err = c.answer(second, 200, false)
		}
		if err == nil {
			_, err = c.next(func(f http2.Frame) bool {
				d, ok := f.(*http2.DataFrame)
				return ok && d.StreamEnded() && d.StreamID == second
			})
		}
		if err == nil {
			err = c.fr.WriteData(second, true, []byte("answer"))
		}
		if err == nil {
			_, err = io.Copy(io.Discard, c.conn)
		}
		return err
	})
	first := r.start(to(r.request(), addr))
	within(t, first.opened, "Established")
	go func() { _, _ = first.program.Write(newBuffer(1 << 20)) }() // until the end
	within(t, used, "the connection's window to be used up")
	second := r.start(to(r.request(), addr))
	within(t, second.opened, "Established")
	must(t, second.program.CloseWrite())
	expect(t, second.program, "answer")
	expectEnd(t, second.program)
	if o := second.outcome(); o.Err != nil {
		t.Errorf("outcome %v", o.Err)
	}
}

func testAppEndWithoutWindow(t *testing.T, make New) {
	r := newRig(t, make, Options{})
	c := r.rawClient()
	must(t, c.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 4}))
	c.connect(1, false)
	app := within(t, r.apps, "the application's connection")
	defer app.Close()
	if code := c.status(1); code != 200 {
		t.Fatalf("status %d", code)
	}
	send(t, app, "four")
	must(t, app.CloseWrite())
	_, err := c.next(func(f http2.Frame) bool { d, ok := f.(*http2.DataFrame); return ok && d.StreamEnded() })
	must(t, err)
	must(t, c.fr.WriteData(1, true, nil))
	if in := r.lastInbound(1); in.Err != nil || in.Sent != 4 {
		t.Errorf("outcome %+v", in)
	}
}

// testWholeBeforeEnd: what a peer has sent up to its END_STREAM arrives, with its FIN, when it
// then closes the connection, as one does that has a connection for each stream; however
// slow the reader is, and though the other direction was not through.
func testWholeBeforeEnd(t *testing.T, make New, toProgram bool) {
	const answer = 4 * 16000 // fits a stream's first window
	r := newRig(t, make, Options{}, tinyApps)
	speak := func(c *raw, id uint32) (err error) {
		for n := range 4 {
			err = errors.Join(err, c.fr.WriteData(id, n == 3, newBuffer(answer/4)))
		}
		if err = errors.Join(err, c.fr.WritePing(false, [8]byte{1})); err == nil {
			_, err = c.next(func(f http2.Frame) bool { p, ok := f.(*http2.PingFrame); return ok && p.IsAck() })
		}
		return errors.Join(err, c.conn.Close())
	}
	reader, outcome := r.parts(parting{toProgram: toProgram}, tinyBuffer, speak)
	time.Sleep(200 * time.Millisecond) // the end is there
	if n := unread(t, reader); n == answer {
		t.Fatal("the kernel holds all of it: nothing is tried")
	}
	must(t, reader.SetReadDeadline(time.Now().Add(wait)))
	if n, err := io.Copy(io.Discard, reader); n != answer || err != nil {
		t.Errorf("%d of %d bytes, %v", n, answer, err)
	}
	if o := outcome(); !errors.Is(o.Err, hbone.ErrProtocol) && !errors.Is(o.Err, hbone.ErrReset) || o.Received != answer {
		t.Errorf("outcome %v with %d bytes received, want that the connection was lost, and all", o.Err, o.Received)
	}
}
