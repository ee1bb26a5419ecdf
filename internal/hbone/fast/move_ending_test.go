package fast_test

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/heddle-mesh/heddle/internal/hbone"
	"github.com/heddle-mesh/heddle/internal/hbone/fast"
)

// TestMoveUnfinished moves a connection again and again whose peer sends a header byte
// by byte: its time runs out as if it had not moved.
func TestMoveUnfinished(t *testing.T) {
	const within, every = 2 * time.Second, 500 * time.Millisecond
	w := newWorld(t, newFastEngine, func() hbone.Engine {
		return fast.New(fast.Config{Loops: 2, PingInterval: every / 10, PingTimeout: every / 2, WriteTimeout: within})
	})
	for name, begin := range map[string]func(c *tls.Conn) error{
		"header": func(c *tls.Conn) error { _, err := c.Write([]byte{0, 64, 0, 1, 0, 0, 0, 0, 1}); return err },
		"record": func(c *tls.Conn) error { _, err := c.NetConn().Write([]byte{23, 3, 3, 64, 0}); return err },
	} {
		t.Run(name, func(t *testing.T) {
			c := w.rawPeer(t)
			if err := begin(c); err != nil {
				t.Fatal(err)
			}
			trickle, over := time.NewTicker(10*time.Millisecond), make(chan struct{})
			go func() {
				defer close(over)
				defer trickle.Stop()
				for range trickle.C {
					var err error
					if name == "record" {
						_, err = c.NetConn().Write([]byte{0})
					} else {
						_, err = c.Write([]byte{0})
					}
					if err != nil {
						return // the end, which is what is waited for
					}
				}
			}()
			deadline, moved := time.After(moveWait), w.server.moved
			for {
				select {
				case <-over:
					if w.server.moved < moved+2 {
						t.Errorf("it moved %d times: nothing was tried", w.server.moved-moved)
					}
					return
				case <-deadline:
					c.NetConn().Close()
					<-over
					t.Fatalf("a peer that ends nothing is still served after %d moves in %v", w.server.moved-moved, moveWait)
				case <-time.After(every):
					w.server.mustMove(nil)
				}
			}
		})
	}
}

// rawPeer has begun HTTP/2 and passes over what the server says.
func (w *world) rawPeer(t *testing.T) *tls.Conn {
	t.Helper()
	c, err := tls.Dial("tcp", w.server.tunnels.Addr().String(), hbone.ClientTLS(w.cert, w.ca.Bundle(), w.ca.ID("server")))
	if err != nil {
		t.Fatal(err)
	}
	if _, err = io.WriteString(c, http2.ClientPreface); err == nil {
		err = http2.NewFramer(c, nil).WriteSettings()
	}
	if err != nil {
		t.Fatal(err)
	}
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		_, _ = io.Copy(io.Discard, c) // ends with the connection
	}()
	t.Cleanup(func() {
		c.NetConn().Close()
		<-drained
	})
	return c
}

// TestMoveReset moves connections with a stream that one end has reset and the other has
// not read: what came before the RST arrives, and the RST.
func TestMoveReset(t *testing.T) {
	const answer = 48 << 10
	both(t, func(t *testing.T, w *world, move func()) {
		for _, programFirst := range []bool{true, false} {
			f, stays := w.mustOpen(), w.mustOpen()
			one, other := f.program, f.app
			if !programFirst {
				one, other = other, one
			}
			if err := other.SetReadBuffer(4 << 10); err != nil {
				t.Fatal(err)
			}
			if _, err := one.Write(make([]byte, answer)); err != nil {
				t.Fatal(err)
			}
			time.Sleep(50 * time.Millisecond) // until no more goes
			if err := errors.Join(one.SetLinger(0), one.Close()); err != nil {
				t.Fatal(err)
			}
			read := make(chan error, 1)
			go func() {
				time.Sleep(500 * time.Millisecond) // while it is tried to move
				read <- readAll(other, answer)
			}()
			move()
			if err := <-read; err != nil {
				t.Error(err)
			}
			if err := f.ended(); !errors.Is(err, hbone.ErrReset) {
				t.Errorf("outcome %v, want a reset", err)
			}
			if err := errors.Join(stays.echo("still here"), stays.finish()); err != nil {
				t.Error(err)
			}
		}
	})
}

// TestMoveResetSlowly: while a program takes its time for what came before a reset, the
// connection stays, and with it the streams that the peer opens: no GOAWAY sends those elsewhere.
func TestMoveResetSlowly(t *testing.T) {
	const answer = 48 << 10
	w := newWorld(t, newFastEngine, newFastEngine)
	f, stays := w.mustOpen(), w.mustOpen()
	if !stays.timing.Pooled {
		t.Fatal("two connections: nothing is tried")
	}
	if err := f.app.SetReadBuffer(4 << 10); err != nil {
		t.Fatal(err)
	}
	if _, err := f.program.Write(make([]byte, answer)); err != nil {
		t.Fatal(err)
	}
	time.Sleep(50 * time.Millisecond) // until no more goes
	if err := errors.Join(f.program.SetLinger(0), f.program.Close()); err != nil {
		t.Fatal(err)
	}
	time.Sleep(50 * time.Millisecond) // until the server knows of the reset
	read := make(chan error, 1)
	go func() {
		time.Sleep(1500 * time.Millisecond) // longer than a peer is waited for that opens streams
		read <- readAll(f.app, answer)
	}()
	started := time.Now()
	w.server.mustMove(nil)
	if took := time.Since(started); took < 1400*time.Millisecond {
		t.Errorf("it moved after %v, before all was read", took)
	}
	if err := <-read; err != nil {
		t.Error(err)
	}
	next := w.mustOpen()
	if !next.timing.Pooled {
		t.Error("a stream after that is on another connection")
	}
	for _, f := range []*moveFlow{next, stays} {
		if err := errors.Join(f.echo("still here"), f.finish()); err != nil {
			t.Error(err)
		}
	}
}

// readAll wants so many bytes and then a RST.
func readAll(c *net.TCPConn, want int64) error {
	if err := c.SetReadDeadline(time.Now().Add(moveWait)); err != nil {
		return err
	}
	n, err := io.Copy(io.Discard, c)
	if n != want || !errors.Is(err, syscall.ECONNRESET) {
		return fmt.Errorf("%d of %d bytes, %w; want all and a RST", n, want, err)
	}
	return nil
}
