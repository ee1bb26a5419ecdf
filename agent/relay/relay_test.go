package relay_test

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/agent/relay"
	"github.com/heddle-mesh/heddle/internal/hbone"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// tcpPair returns the two ends of a connection.
func tcpPair(t testing.TB) (a, b *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); s.Close() })
	return c.(*net.TCPConn), s.(*net.TCPConn)
}

type carried struct {
	client, server *net.TCPConn
	sent, received atomic.Uint64
	done           chan error
	endings        atomic.Int32
	// cut ends the pair from outside.
	cut func()
}

// carry joins a client and a server by a relay.
func carry(t testing.TB, pipes int) *carried {
	t.Helper()
	r := relay.New(pipes)
	t.Cleanup(r.Close)
	return carryBy(t, r, nil)
}

func carryBy(t testing.TB, r *relay.Relay, o hbone.Owner) *carried {
	t.Helper()
	c := &carried{done: make(chan error, 2)}
	p := relay.Pair{Sent: &c.sent, Received: &c.received, Owner: o, Measure: func(int, int) { c.endings.Add(1) }}
	c.client, p.A = tcpPair(t)
	p.B, c.server = tcpPair(t)
	c.start(t, r, p)
	return c
}

func (c *carried) start(t testing.TB, r *relay.Relay, p relay.Pair) {
	t.Helper()
	pair, err := r.Start(p, func(err error) { c.done <- err })
	if err != nil {
		t.Fatal(err)
	}
	c.cut = pair.Cut
}

func (c *carried) wait(t testing.TB) error {
	t.Helper()
	select {
	case err := <-c.done:
		if n := c.endings.Load(); n != 1 {
			t.Errorf("Measure was called %d times", n)
		}
		return err
	case <-time.After(5 * time.Second):
		t.Fatal("the relay did not end")
		return nil
	}
}

func TestHalfCloseGoesThroughEachWay(t *testing.T) {
	c := carry(t, 8)
	if _, err := c.client.Write([]byte("question")); err != nil {
		t.Fatal(err)
	}
	c.client.CloseWrite()
	if got, err := io.ReadAll(c.server); string(got) != "question" || err != nil {
		t.Fatalf("server read %q, %v", got, err)
	}
	time.Sleep(20 * time.Millisecond) // the other direction must stay open meanwhile
	if _, err := c.server.Write([]byte("answer")); err != nil {
		t.Fatal(err)
	}
	c.server.Close()
	if got, err := io.ReadAll(c.client); string(got) != "answer" || err != nil {
		t.Fatalf("client read %q, %v", got, err)
	}
	if err := c.wait(t); err != nil {
		t.Errorf("ended with %v", err)
	}
	if c.sent.Load() != 8 || c.received.Load() != 6 {
		t.Errorf("counted %d and %d", c.sent.Load(), c.received.Load())
	}
}

func TestServerSpeaksFirst(t *testing.T) {
	c := carry(t, 8)
	c.server.Write([]byte("hello"))
	got := make([]byte, 5)
	if _, err := io.ReadFull(c.client, got); err != nil || string(got) != "hello" {
		t.Fatalf("client read %q, %v", got, err)
	}
	c.client.Close()
	c.server.Close()
	if err := c.wait(t); err != nil {
		t.Errorf("ended with %v", err)
	}
}

func isReset(err error) bool { return errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE) }

func TestResetGoesThrough(t *testing.T) {
	for name, prepare := range map[string]func(c *carried){
		"idle":                   func(*carried) {},
		"after the client's FIN": func(c *carried) { c.client.CloseWrite(); time.Sleep(20 * time.Millisecond) },
		"after the server's FIN": func(c *carried) { c.server.CloseWrite(); time.Sleep(20 * time.Millisecond) },
	} {
		t.Run(name, func(t *testing.T) {
			c := carry(t, 8)
			prepare(c)
			relay.Reset(c.client)
			c.server.SetReadDeadline(time.Now().Add(5 * time.Second))
			if name == "after the client's FIN" {
				// The server has read the FIN already: writing shows the RST.
				testenv.Eventually(t, 5*time.Second, "server sees the reset", func() bool {
					_, err := c.server.Write([]byte("x"))
					return isReset(err)
				})
			} else if _, err := io.ReadAll(c.server); !isReset(err) {
				t.Errorf("server read: %v, want a reset", err)
			}
			if err := c.wait(t); !errors.Is(err, relay.ErrReset) {
				t.Errorf("ended with %v", err)
			}
		})
	}
}

func TestCutEndsBothEnds(t *testing.T) {
	c := carry(t, 8)
	c.client.Write([]byte("x"))
	io.ReadFull(c.server, make([]byte, 1))
	c.cut()
	c.cut()
	for name, end := range map[string]*net.TCPConn{"client": c.client, "server": c.server} {
		end.SetReadDeadline(time.Now().Add(5 * time.Second))
		if _, err := end.Read(make([]byte, 1)); !isReset(err) {
			t.Errorf("%s read: %v, want a reset", name, err)
		}
	}
	if err := c.wait(t); !errors.Is(err, relay.ErrReset) {
		t.Errorf("ended with %v", err)
	}
}

func TestBulkArrivesWhole(t *testing.T) {
	for name, pipes := range map[string]int{"splice": 8, "copy": 0} {
		t.Run(name, func(t *testing.T) {
			c := carry(t, pipes)
			payload := make([]byte, 64<<20)
			rand.Read(payload)
			go func() {
				// Odd sizes go in and out of bulk mode.
				for rest := payload; len(rest) > 0; {
					n := min(len(rest), 1+len(rest)%3_000_017)
					c.client.Write(rest[:n])
					rest = rest[n:]
				}
				c.client.CloseWrite()
			}()
			sum := sha256.New()
			n, err := io.Copy(sum, c.server)
			if err != nil || n != int64(len(payload)) {
				t.Fatalf("received %d bytes, %v", n, err)
			}
			want := sha256.Sum256(payload)
			if !bytes.Equal(sum.Sum(nil), want[:]) {
				t.Error("the bytes changed")
			}
			c.server.Close()
			c.wait(t)
		})
	}
}

// TestSlowReaderHoldsBack: a reader that stops must stop the writer, and the
// bytes must all be there when it goes on.
func TestSlowReaderHoldsBack(t *testing.T) {
	c := carry(t, 8)
	const total = 32 << 20
	var written atomic.Int64
	go func() {
		chunk := make([]byte, 64<<10)
		for written.Load() < total {
			n, err := c.client.Write(chunk)
			written.Add(int64(n))
			if err != nil {
				return
			}
		}
		c.client.CloseWrite()
	}()
	testenv.Eventually(t, 10*time.Second, "writer stopped", func() bool {
		before := written.Load()
		time.Sleep(100 * time.Millisecond)
		return written.Load() == before
	})
	if written.Load() == total {
		t.Fatal("the writer was never held back")
	}
	n, err := io.Copy(io.Discard, c.server)
	if err != nil || n != total {
		t.Errorf("received %d bytes, %v", n, err)
	}
	c.server.Close()
	c.wait(t)
}
