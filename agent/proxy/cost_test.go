package proxy_test

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/agent/proxy"
	"github.com/heddle-mesh/heddle/internal/flow"
	"github.com/heddle-mesh/heddle/internal/hbone"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

// holder is an engine that only holds what it is given, as an engine must: what
// is left on the heap is what the proxy keeps.
type holder struct {
	hbone.Engine
	mu       sync.Mutex
	requests []*hbone.ConnectRequest
	server   *hbone.Server
	carried  chan struct{} // one for each
}

func (h *holder) Connect(local *net.TCPConn, req *hbone.ConnectRequest) {
	local.Close() // as one that has been taken over
	h.mu.Lock()
	defer h.mu.Unlock()
	h.requests = append(h.requests, req)
	go func() {
		req.Established(hbone.Timing{}, flow.Secured{})
		h.carried <- struct{}{}
	}()
}

func (h *holder) Serve(l net.Listener, srv *hbone.Server) error {
	h.mu.Lock()
	h.server = srv
	h.mu.Unlock()
	for {
		if _, err := l.Accept(); err != nil {
			return err
		}
	}
}

// heap is what is in use after everything that can be freed was.
func heap() int64 {
	var m runtime.MemStats
	for range 3 {
		runtime.GC()
	}
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// dialRaw connects from web's address without leaving anything on the heap.
func dialRaw(t testing.TB, to netip.AddrPort) int {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{198, 18, 1, 1}}) // web's
	}
	if err == nil {
		err = unix.Connect(fd, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()})
	}
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

// TestCostOfAnEstablishedConnection keeps what the proxy holds for one on the
// heap, the engine's request included, under a ceiling.
func TestCostOfAnEstablishedConnection(t *testing.T) {
	const n, ceiling = 1000, 1150
	w := newWorld(t)
	w.workload("web", "a", "198.18.1.1")
	w.workload("db", "b", "198.18.2.1")
	w.service("db", "198.18.9.1", 7000, 7001, "db")
	w.publish()
	backlog := listen(t, "198.18.2.1:7001") // connects, and nobody accepts
	defer backlog.Close()
	h := &holder{carried: make(chan struct{})}
	a := w.node("a", func(c *proxy.Config) { h.Engine = c.Engine; c.Engine = h })
	a.serve("web", "198.18.1.1", podOptions{outbound: []string{vip}})
	b := w.node("b", func(c *proxy.Config) { h.Engine = c.Engine; c.Engine = h })
	b.serve("db", "198.18.2.1", podOptions{})
	testenv.Eventually(t, 5*time.Second, "db is served", func() bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		return h.server != nil && h.server.Local == "shop/db"
	})

	fds := make([]int, n)
	before := heap()
	for i := range fds {
		fds[i] = dialRaw(t, netip.MustParseAddrPort(vip))
		<-h.carried // one at a time: goroutines that have ended stay on the heap
	}
	outbound := (heap() - before) / n

	before = heap()
	accepted := make([]*hbone.Accepted, n)
	for i := range accepted {
		got, err := h.server.Accept(context.Background(), &hbone.StreamRequest{
			Peer: w.workloads[0].Identity, Remote: netip.MustParseAddrPort(fmt.Sprintf("198.18.1.1:%d", 10000+i)),
			Authority: netip.MustParseAddrPort("198.18.2.1:7001"),
		})
		if err != nil {
			t.Fatal(err)
		}
		got.Conn.Close() // as one that has been taken over
		got.Conn = nil
		accepted[i] = got
	}
	inbound := (heap() - before) / n

	t.Logf("bytes for each connection: %d outbound, %d inbound", outbound, inbound)
	if outbound > ceiling || inbound > ceiling || outbound < 300 || inbound < 300 {
		t.Errorf("%d bytes outbound and %d inbound, want 300 to %d", outbound, inbound, ceiling)
	}
	for i := range fds {
		unix.Close(fds[i])
		h.requests[i].Done(hbone.Outcome{})
		accepted[i].Done(hbone.Outcome{})
	}
	a.flows.wait(t, n)
	b.flows.wait(t, n)
}

// TestCostOfAPair is the same for a connection that the relay carries, with what
// that keeps.
func TestCostOfAPair(t *testing.T) {
	const n, ceiling = 1000, 1536
	w := newWorld(t)
	w.workload("web", "a", "198.18.1.1")
	w.workload("near", "a", "198.18.2.2")
	w.service("near", "198.18.9.2", 7000, 7001, "near")
	w.publish()
	backlog := listen(t, "198.18.2.2:7001")
	defer backlog.Close()
	a := w.node("a")
	client := a.serve("web", "198.18.1.1", podOptions{outbound: []string{"198.18.9.2:7000"}})
	a.serve("near", "198.18.2.2", podOptions{})
	carried := func(n int) {
		t.Helper()
		testenv.Eventually(t, 10*time.Second, "all are carried", func() bool {
			live := a.proxy.Live()
			for i := range live {
				if live[i].Timing.Connect == 0 {
					return false
				}
			}
			return len(live) == n
		})
	}
	fds := make([]int, n)
	client.client("198.18.9.2:7000") // the loops are there
	carried(1)
	before := heap()
	for i := range fds {
		fds[i] = dialRaw(t, netip.MustParseAddrPort("198.18.9.2:7000"))
		if i%100 == 99 { // goroutines that have ended stay on the heap
			carried(i + 2)
		}
	}
	each := (heap() - before) / n
	t.Logf("bytes for each pair: %d", each)
	if each > ceiling || each < 300 {
		t.Errorf("%d bytes, want 300 to %d", each, ceiling)
	}
	for _, fd := range fds {
		unix.Close(fd)
	}
}

// TestNoGoroutineForAnEstablishedConnection holds connections of every transport;
// the applications' goroutines are the only ones that come with them.
func TestNoGoroutineForAnEstablishedConnection(t *testing.T) {
	const n = 50
	w := newWorld(t)
	w.workload("web", "a", "198.18.1.1")
	w.workload("db", "b", "198.18.2.1")
	w.workload("near", "a", "198.18.2.2").PortModes = map[uint16]mesh.Mode{7002: mesh.ModePermissive}
	w.workload("legacy", "b", "198.18.3.1").Enrolled = false
	w.service("db", "198.18.9.1", 7000, 7001, "db")
	w.service("near", "198.18.9.2", 7000, 7001, "near")
	w.service("legacy", "198.18.9.3", 7000, 7001, "legacy")
	w.publish()
	for _, addr := range []string{"198.18.2.1", "198.18.2.2", "198.18.3.1"} {
		application(t, addr+":7001", echo)
	}
	a := w.node("a")
	to := []string{"198.18.9.1:7000", "198.18.9.2:7000", "198.18.9.3:7000", "198.18.2.2:7002"}
	client := a.serve("web", "198.18.1.1", podOptions{outbound: to[:3]})
	a.serve("near", "198.18.2.2", podOptions{inbound: to[3:], apps: map[uint16]uint16{7002: 7001}})
	w.node("b").serve("db", "198.18.2.1", podOptions{})
	for _, dst := range to {
		greeting(t, client.client(dst)) // what is started once is there
	}
	before := runtime.NumGoroutine()
	for range n {
		for _, dst := range to {
			greeting(t, client.client(dst))
		}
	}
	applications := n * len(to)
	testenv.Eventually(t, 5*time.Second, "no goroutines but the applications'", func() bool {
		return runtime.NumGoroutine() <= before+applications+2
	})
	if now := runtime.NumGoroutine(); now < before+applications/2 {
		t.Errorf("%d goroutines more: the applications' are not counted", now-before)
	}
}
