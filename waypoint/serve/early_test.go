package serve_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestEarlyAnswer: a connection on which a part of a request is not written yet is not kept when the workload has answered:
// the next request would be read as that part.
func TestEarlyAnswer(t *testing.T) {
	const size = 63 << 10 // less than is read ahead of what a workload takes, and more than the sockets between hold here
	begun, answer, release, came := make(chan net.Addr, 1), make(chan struct{}), make(chan struct{}), make(chan int64, 10)
	b := listening(t, "cart", cartAddr, 1, func(l net.Listener, _ int) func() {
		small(t, l)
		var all sync.WaitGroup
		all.Go(func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				all.Go(func() { defer c.Close(); early(c, begun, answer, release, came) })
			}
		})
		return func() { _ = l.Close(); all.Wait() }
	})
	w := newWorld(t, []*backend{b}, oneLoop)
	begin, end := sync.OnceFunc(func() { close(answer) }), sync.OnceFunc(func() { close(release) })
	defer end()
	defer begin()
	conn := w.dial()
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	_, _ = fmt.Fprintf(conn, "POST /first HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n", size)
	shrink(t, <-begun)
	_, _ = io.WriteString(conn, strings.Repeat("x", size))
	eventually(t, "the request was read whole", func() bool { return w.gauge("heddle_waypoint_buffered_bytes") >= size })
	begin()
	if resp, body := readResponse(t, bufio.NewReader(conn), "POST"); resp.StatusCode != 200 || body != "/first" {
		t.Fatalf("%d %q", resp.StatusCode, body)
	}
	if resp, body := w.get(w.client(), "/second"); resp.StatusCode != 200 || body != "/second" {
		t.Errorf("the next request is answered with %d %q", resp.StatusCode, body)
	}
	end()
	if n := <-came; n >= size {
		t.Errorf("the sockets took all %d bytes of the body: nothing was tested", n)
	}
}

// shrink has the socket of this process that has an address hold little of what is to be sent.
func shrink(t *testing.T, local net.Addr) {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	want := local.(*net.TCPAddr)
	for _, entry := range fds {
		fd, _ := strconv.Atoi(entry.Name())
		if at, err := unix.Getsockname(fd); err == nil {
			if four, ok := at.(*unix.SockaddrInet4); ok && four.Port == want.Port && want.IP.Equal(net.IP(four.Addr[:])) {
				if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 4<<10); err != nil {
					t.Fatal(err)
				}
				return
			}
		}
	}
	t.Fatalf("no socket is at %s", local)
}

// small has the sockets of a listener hold little of what has come.
func small(t *testing.T, l net.Listener) {
	t.Helper()
	raw, err := l.(*net.TCPListener).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var failed error
	err = raw.Control(func(fd uintptr) { failed = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 4<<10) })
	if err = errors.Join(err, failed); err != nil {
		t.Fatal(err)
	}
}

// early answers a request before it has read its body: the first one when it is told to; of that body it reads what has
// come at the end.
func early(c net.Conn, begun chan<- net.Addr, answer, release <-chan struct{}, came chan<- int64) {
	in := bufio.NewReaderSize(c, 256)
	req, err := http.ReadRequest(in)
	if err != nil {
		return
	}
	first := req.URL.Path == "/first"
	if first {
		begun <- c.RemoteAddr()
		<-answer
	}
	_, _ = fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(req.URL.Path), req.URL.Path)
	if first {
		<-release
		n, _ := io.Copy(io.Discard, in)
		came <- n
	}
}
