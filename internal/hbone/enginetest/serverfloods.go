package enginetest

import (
	"errors"
	"io"
	"strings"
	"testing"

	"golang.org/x/net/http2"

	"github.com/heddle-mesh/heddle/internal/hbone"
)

// serverFloodTests are floods that come from the server that a pod has called.
func serverFloodTests() (tests []test) {
	all := floods()
	all["CONTINUATION"] = endlessAnswer
	for name, f := range all {
		tests = append(tests, test{"server's flood of " + name, func(t *testing.T, make New) { testServerFlood(t, make, f, false) }})
	}
	for _, answered := range []string{"PING", "SETTINGS", "trailers on closed streams"} {
		tests = append(tests, test{"server's flood of " + answered + ", deaf", func(t *testing.T, make New) { testServerFlood(t, make, all[answered], true) }})
	}
	return tests
}

// testServerFlood: a server that floods loses the connection, and with it the stream, whose
// end has a reason; the pod's next stream is on another one, and others never notice. One
// that is deaf reads none of our answers meanwhile.
func testServerFlood(t *testing.T, make New, flood func(*raw) error, deaf bool) {
	const after = "after the flood"
	r := newRig(t, make, Options{})
	honest := r.open(r.request())
	over := newChan[error](1)
	addr := r.rawServer(nil, func(n int, c *raw) error {
		id, err := c.request()
		if err == nil {
			err = c.answer(id, 200, false)
		}
		if err == nil && n > 0 {
			err = c.fr.WriteData(id, true, []byte(after))
		}
		if err != nil || n > 0 {
			_, _ = c.request() // until it ends
			return err
		}
		if !deaf {
			go func() { _, _ = io.Copy(io.Discard, c.conn) }() // until it ends
		}
		for range 2_000_000 {
			if err = flood(c); err != nil {
				break
			}
		}
		over <- err
		return nil
	})
	before := held()
	f := r.start(to(r.request(), addr))
	within(t, f.opened, "Established")
	if o := f.outcome(); !errors.Is(o.Err, hbone.ErrLimit) && !errors.Is(o.Err, hbone.ErrProtocol) && !errors.Is(o.Err, hbone.ErrReset) {
		t.Errorf("outcome %v", o.Err)
	}
	if err := within(t, over, "the flood's end"); err == nil || isTimeout(err) {
		t.Errorf("the client listens to everything: %v", err)
	}
	if grown := held() - before; grown > 8<<20 {
		t.Errorf("%d bytes of heap", grown)
	}
	next := r.start(to(r.request(), addr))
	expect(t, next.program, after)
	expectEnd(t, next.program)
	must(t, next.program.CloseWrite())
	if o := next.outcome(); o.Err != nil || o.Timing.Pooled {
		t.Errorf("next outcome %+v", o)
	}
	honest.echo("still here")
	honest.finish()
}

// endlessAnswer is CVE-2024-27316 from the other side.
func endlessAnswer(c *raw) error {
	if err := c.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndStream: true}); err != nil {
		return err
	}
	for range 100_000 {
		if err := c.fr.WriteContinuation(1, false, nil); err != nil {
			return err
		}
	}
	return errors.New("a header without an end")
}

// headerBomb puts 3,000 bytes into the table (RFC 7541 section 6.2.1) and names them in each of the other bytes.
func headerBomb(c *raw) error {
	return c.headers(1, "\x40\x01x\x7f\xb9\x16"+strings.Repeat("v", 3000)+strings.Repeat("\xbe", 12_000))
}

// headers sends a block that is compressed already, as a stream's last.
func (c *raw) headers(id uint32, block string) error {
	return c.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: []byte(block), EndHeaders: true, EndStream: true})
}
