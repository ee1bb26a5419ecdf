package path_test

import (
	"fmt"
	"io"
	"net"
	"os"
	"testing"
)

const (
	exchanges = 2000
	// mostCalls is how many reads and writes one request and its answer may take.
	// Both engines need eight, one of each per hop and direction. The two programs
	// need four, and two more reads that find nothing yet before they wait.
	mostCalls = 14.5
)

// TestCallsPerRequest: a request and its answer cost no read and no write more
// than the hops have. It is what bounds requests per second.
func TestCallsPerRequest(t *testing.T) {
	f := &far{t: t}
	open, done := f.tunnel()
	defer done()
	from, to := open(1)
	defer from[0].Close()
	served := make(chan error, 1)
	go func() { served <- echo(to[0]) }()
	exchange := func(n int) {
		buf := make([]byte, 200)
		for range n {
			if _, err := from[0].Write(buf); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(from[0], buf); err != nil {
				t.Fatal(err)
			}
		}
	}
	exchange(20)
	before := calls(t)
	exchange(exchanges)
	each := float64(calls(t)-before) / exchanges
	t.Logf("%.2f reads and writes per request", each)
	if each > mostCalls {
		t.Errorf("%.2f reads and writes per request, want %.1f at most", each, mostCalls)
	}
	if err := from[0].CloseWrite(); err != nil {
		t.Error(err)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
}

// echo answers until the other side is done.
func echo(c *net.TCPConn) error {
	defer c.Close()
	buf := make([]byte, 200)
	for {
		if _, err := io.ReadFull(c, buf); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		if _, err := c.Write(buf); err != nil {
			return err
		}
	}
}

// calls is how many reads and writes this process has made (io of proc(5)).
func calls(t *testing.T) int {
	t.Helper()
	f, err := os.Open("/proc/self/io")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var rchar, wchar, reads, writes int
	if _, err := fmt.Fscanf(f, "rchar: %d\nwchar: %d\nsyscr: %d\nsyscw: %d\n", &rchar, &wchar, &reads, &writes); err != nil {
		t.Fatal(err)
	}
	return reads + writes
}
