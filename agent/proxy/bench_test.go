package proxy_test

import (
	"context"
	"net/netip"
	"syscall"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/agent/proxy"
	"github.com/heddle-mesh/heddle/internal/flow"
)

// rawSockets starts connections without leaving anything on the heap but addresses.
type rawSockets struct{ sockets }

// StartApp implements proxy.Starter. Within the namespace it is connected at once.
func (rawSockets) StartApp(client, app netip.AddrPort) (int, func(context.Context) error, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrInet4{Addr: client.Addr().As4()})
	}
	if err == nil {
		err = unix.Connect(fd, &unix.SockaddrInet4{Port: int(app.Port()), Addr: app.Addr().As4()})
	}
	if err == unix.EINPROGRESS {
		err = nil
	}
	return fd, nil, err
}

// answerRaw answers one message on each connection, and closes it, until the
// listener is shut down.
func answerRaw(listener int) {
	buf := make([]byte, 256)
	for {
		fd, _, errno := syscall.Syscall6(unix.SYS_ACCEPT4, uintptr(listener), 0, 0, unix.SOCK_CLOEXEC, 0, 0)
		if errno != 0 {
			return
		}
		if n, err := unix.Read(int(fd), buf); err == nil {
			_, _ = unix.Write(int(fd), buf[:n]) // the client misses what fails
		}
		unix.Close(int(fd))
	}
}

// BenchmarkConnection is a connection with one message and its answer through two
// agents' proxies, engines and flow records. What it allocates is theirs: client and
// application leave some 200 bytes in 5 pieces.
func BenchmarkConnection(b *testing.B) {
	w := newWorld(b)
	w.workload("web", "a", "198.18.1.1")
	w.workload("db", "b", "198.18.2.1")
	w.service("db", "198.18.9.1", 7000, 7001, "db")
	w.publish()
	listener, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		err = unix.Bind(listener, &unix.SockaddrInet4{Port: 7001, Addr: [4]byte{198, 18, 2, 1}})
	}
	if err == nil {
		err = unix.Listen(listener, 128)
	}
	if err != nil {
		b.Fatal(err)
	}
	answered := make(chan struct{})
	go func() { answerRaw(listener); close(answered) }()
	defer func() {
		unix.Shutdown(listener, unix.SHUT_RDWR)
		<-answered
		unix.Close(listener)
	}()
	recorded := func(c *proxy.Config) {
		c.Flows = &flow.Recorder{Node: c.Node, Ring: flow.NewRing(100), Metrics: flow.NewMetrics(prometheus.NewRegistry())}
	}
	w.node("a", recorded).serve("web", "198.18.1.1", podOptions{outbound: []string{vip}})
	w.node("b", recorded).serve("db", "198.18.2.1", podOptions{sockets: rawSockets{sockets{addr: netip.MustParseAddr("198.18.2.1")}}})
	to, message, buf := netip.MustParseAddrPort(vip), make([]byte, 100), make([]byte, 256)
	exchange := func() {
		fd := dialRaw(b, to)
		defer unix.Close(fd)
		if _, err := unix.Write(fd, message); err != nil {
			b.Fatal(err)
		}
		got := 0
		for {
			n, err := unix.Read(fd, buf)
			if err != nil {
				b.Fatal(err)
			}
			if got += n; n == 0 {
				break
			}
		}
		if got != len(message) {
			b.Fatalf("%d bytes of %d came back", got, len(message))
		}
	}
	exchange() // the tunnel is there
	b.ReportAllocs()
	for b.Loop() {
		exchange()
	}
}
