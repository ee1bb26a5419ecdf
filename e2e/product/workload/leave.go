package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// lingers is how long a server that leaves goes on after it was told to end.
	lingers = time.Second
	// last, at an answer's end, says that the connection gets no other, as HTTP's
	// "Connection: close" does (RFC 9112, section 9.6).
	last = " last"
)

// leave serves, and is gone a second after it was told to end. Until then it takes
// new connections, too: there is nothing that would have told it not to. On those
// that are kept, its next answer is the last one.
func leave(ctx context.Context) error {
	served, end := context.WithCancel(context.Background())
	defer end()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(lingers, end) })()
	return answer(served, func(l net.Listener) {
		accept(l, func(conn net.Conn) { lines(ctx, conn) })
	})
}

// lines answers each line with itself; after ctx's end with the last answer.
func lines(ctx context.Context, conn net.Conn) {
	in := bufio.NewReader(conn)
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return
		}
		leaving := ctx.Err() != nil
		if leaving {
			line = strings.TrimSuffix(line, "\n") + last + "\n"
		}
		if _, err := io.WriteString(conn, line); err != nil || leaving {
			return
		}
	}
}

// requests are counted by how they were made: over a connection of their own, or
// over one that is kept; again is how often one of those was made anew. One is lost
// when it could not connect, and when it was sent and not answered.
type requests struct{ own, kept, again, lost atomic.Int64 }

// ask makes requests until it is told to end, and prints the counts all the while.
func ask(ctx context.Context, address, connections, rate string) error {
	var c requests
	return drive(ctx, connections, rate, func() { c.keep(ctx, address) }, func() { c.open(address) }, func() {
		fmt.Printf("own %d kept %d again %d lost %d\n", c.own.Load(), c.kept.Load(), c.again.Load(), c.lost.Load())
	})
}

// count counts one request by how it ended.
func (c *requests) count(of *atomic.Int64, how string, began time.Time, err error) {
	if err != nil {
		c.lost.Add(1)
		fmt.Println("LOST", how, time.Now().UTC().Format(time.RFC3339Nano), "after", time.Since(began).Round(time.Millisecond), err)
		return
	}
	of.Add(1)
}

// open makes a request over a connection of its own.
func (c *requests) open(address string) {
	began := time.Now()
	conn, err := dial(address)
	if err == nil {
		_, err = conn.ask("own")
		_ = conn.Close() // it is answered
	}
	c.count(&c.own, "own", began, err)
}

// keep makes requests over one connection, and makes it anew when it has ended
// before the next request was sent.
func (c *requests) keep(ctx context.Context, address string) {
	for ctx.Err() == nil {
		began := time.Now()
		conn, err := dial(address)
		for err == nil && ctx.Err() == nil && !conn.ended() {
			began = time.Now()
			var final bool
			if final, err = conn.ask("kept"); err != nil {
				break
			}
			c.count(&c.kept, "kept", began, nil)
			time.Sleep(50 * time.Millisecond)
			if final {
				break
			}
		}
		if err != nil {
			c.count(&c.kept, "kept", began, err)
			time.Sleep(100 * time.Millisecond)
		}
		if conn != nil {
			_ = conn.Close() // it has ended, or it ends with the program
		}
		c.again.Add(1)
	}
}

// client is a connection to a server that leaves.
type client struct {
	*net.TCPConn
	in *bufio.Reader
}

func dial(address string) (*client, error) {
	conn, err := net.DialTimeout("tcp", address, patience)
	if err != nil {
		return nil, err
	}
	return &client{conn.(*net.TCPConn), bufio.NewReader(conn)}, nil // of tcp
}

// ask sends one request, and says whether its answer is the connection's last.
func (c *client) ask(text string) (final bool, err error) {
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return false, err
	}
	if _, err := io.WriteString(c, text+"\n"); err != nil {
		return false, err
	}
	got, err := c.in.ReadString('\n')
	if err != nil {
		return false, err
	}
	got, final = strings.CutSuffix(strings.TrimSuffix(got, "\n"), last)
	if got != text {
		return false, fmt.Errorf("sent %q, got %q", text, got)
	}
	return final, nil
}

// ended reports whether the server has closed the connection, of which nothing is
// to be read now.
func (c *client) ended() bool {
	raw, err := c.SyscallConn()
	if err != nil {
		return true
	}
	ended := false
	err = raw.Control(func(fd uintptr) {
		_, _, err := unix.Recvfrom(int(fd), make([]byte, 1), unix.MSG_PEEK|unix.MSG_DONTWAIT)
		ended = !errors.Is(err, unix.EAGAIN)
	})
	return err != nil || ended
}
