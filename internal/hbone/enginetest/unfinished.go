package enginetest

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/internal/hbone"
)

// beginnings are what a peer may begin, and not end.
func beginnings() map[string]func(c *raw) error {
	headers := func(c *raw) error {
		return c.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 3, BlockFragment: newBuffer(10)})
	}
	return map[string]func(c *raw) error{
		"half the head of a frame": func(c *raw) error { _, err := c.conn.Write([]byte{0, 0, 8, 6}); return err },
		"half a PING":              func(c *raw) error { _, err := c.conn.Write([]byte{0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2}); return err },
		"HEADERS":                  headers,
		"half a record": func(c *raw) error {
			_, err := c.conn.(*tls.Conn).NetConn().Write([]byte{23, 3, 3, 0, 64, 1, 2})
			return err
		},
		"half a CONTINUATION": func(c *raw) error {
			err := headers(c)
			if err == nil {
				_, err = c.conn.Write([]byte{0, 64, 0, 9, 0, 0, 0, 0, 3, 1, 2})
			}
			return err
		},
	}
}

// testUnfinished: a peer that stops inside of something may be gone, as one that
// stops elsewhere. Its connection ends and it is blamed for nothing; a stream that
// both ends have finished goes on until its application has everything.
func testUnfinished(t *testing.T, make New) {
	r := newRig(t, make, Options{PingInterval: 100 * time.Millisecond, PingTimeout: 2 * time.Second, WriteTimeout: 2 * time.Second}, tinyApps) // both are over at once
	stopped, apps := map[string]*raw{}, map[string]*net.TCPConn{}
	for name, begin := range beginnings() {
		stopped[name] = r.rawClient()
		apps[name] = r.finished(stopped[name])
		must(t, begin(stopped[name]))
	}
	for name, c := range stopped {
		c.dead()
		app := apps[name]
		must(t, app.SetReadDeadline(time.Now().Add(wait)))
		if n, err := io.Copy(io.Discard, app); n != finishedBytes || err != nil {
			t.Errorf("%s: %d of %d bytes, %v", name, n, finishedBytes, err)
		}
		must(t, app.Close())
	}
	for n := range len(apps) {
		if o := r.lastInbound(n + 1); o.Err != nil {
			t.Errorf("outcome %v", o.Err)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, f := range r.refused {
		t.Errorf("refused: %v", f.Err)
	}
}

// tinyApps has the kernel hold a part of finishedBytes only.
func tinyApps(r *rig) { tinyAppsWith(tinyBuffer)(r) }

const tinyBuffer = 8 << 10

// tinyAppsWith has the kernel of the applications' end do so, and the engine's socket
// hold what has room there.
func tinyAppsWith(room int) func(r *rig) { return func(r *rig) { r.tinyApps(room) } }

func (r *rig) tinyApps(room int) {
	raw, err := r.app.SyscallConn()
	must(r.t, err)
	must(r.t, raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, tinyBuffer) }))
	must(r.t, err)
	accepting(func(r *rig, ctx context.Context, req *hbone.StreamRequest) (*hbone.Accepted, error) {
		a, err := r.accept(ctx, req)
		if err == nil {
			err = a.Conn.SetWriteBuffer(room)
		}
		return a, err
	})(r)
}

// finishedBytes fit the first window of a stream.
const finishedBytes = 4 * 16000

// finished opens stream 1, which both ends finish and the application does not read.
func (r *rig) finished(c *raw) (app *net.TCPConn) {
	r.t.Helper()
	c.connect(1, false)
	app = within(r.t, r.apps, "the application's connection")
	must(r.t, app.CloseWrite())
	_, err := c.next(func(f http2.Frame) bool { d, ok := f.(*http2.DataFrame); return ok && d.StreamEnded() })
	must(r.t, err)
	for n := range 4 {
		must(r.t, c.fr.WriteData(1, n == 3, newBuffer(finishedBytes/4)))
	}
	return app
}

// testTrickle: a byte now and then is a sign of life, and no end.
func testTrickle(t *testing.T, make New) {
	r := newRig(t, make, Options{PingInterval: 100 * time.Millisecond, PingTimeout: time.Second, WriteTimeout: 300 * time.Millisecond})
	c := r.rawClient()
	must(t, beginnings()["half a CONTINUATION"](c))
	var trickling sync.WaitGroup
	trickling.Go(func() {
		for range wait / (10 * time.Millisecond) {
			if _, err := c.conn.Write([]byte{0}); err != nil {
				return // the end, which is what is waited for
			}
			time.Sleep(10 * time.Millisecond)
		}
	})
	c.dead()
	must(t, c.conn.Close())
	trickling.Wait()
	r.lastRefusal(hbone.ErrTimeout)
}
