package eventloop

import (
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/internal/testenv"
)

// taken is what a Listener gave, and how often it starved.
type taken struct {
	sync.Mutex
	from    map[netip.AddrPort]bool
	blocks  int
	starved int
}

func (g *taken) take(fd int, remote netip.AddrPort) {
	g.Lock()
	defer g.Unlock()
	g.from[remote] = true
	if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0); err != nil || flags&unix.O_NONBLOCK == 0 {
		g.blocks++
	}
	CloseSocket(fd)
}

func (g *taken) count() int {
	g.Lock()
	defer g.Unlock()
	return len(g.from)
}

// listenOn accepts from l on a loop; end ends that.
func listenOn(t *testing.T, l *net.TCPListener) (g *taken, end func()) {
	t.Helper()
	loop := start(t, idle)
	fd, err := Duplicate(l)
	if err != nil {
		t.Fatal(err)
	}
	g = &taken{from: map[netip.AddrPort]bool{}}
	on := func(fn func()) {
		done := make(chan struct{})
		loop.Post(func() { fn(); close(done) })
		<-done
	}
	var from *Listener
	on(func() {
		from, err = loop.Listen(fd, g.take, func(error) { g.Lock(); g.starved++; g.Unlock() })
	})
	if err != nil {
		t.Fatal(err)
	}
	return g, sync.OnceFunc(func() {
		on(func() { err = from.End() })
		if err != nil {
			t.Error(err)
		}
		CloseSocket(fd)
	})
}

// TestListener: a burst is taken whole, each with its address, of either family;
// and what comes after the end is left to others that have the listener.
func TestListener(t *testing.T) {
	for _, at := range []string{"127.0.0.1:0", "[::1]:0"} {
		l, err := net.Listen("tcp", at)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		dial := func() net.Conn {
			c, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { c.Close() })
			return c
		}
		var dialled []net.Conn
		for range 3 * acceptsPerTurn {
			dialled = append(dialled, dial())
		}
		g, end := listenOn(t, l.(*net.TCPListener))
		defer end()
		testenv.Eventually(t, 5*time.Second, "a burst is accepted", func() bool { return g.count() == len(dialled) })
		for _, c := range dialled {
			if from := c.LocalAddr().(*net.TCPAddr).AddrPort(); !g.from[from] {
				t.Errorf("nothing from %s", from)
			}
		}
		if g.blocks > 0 || g.starved > 0 {
			t.Errorf("%d sockets block, starved %d times", g.blocks, g.starved)
		}
		end()
		dial()
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		if n := g.count(); n != len(dialled) {
			t.Errorf("%d accepted after the end", n-len(dialled))
		}
	}
}

// TestListenerWithoutDescriptors waits until there are some, and says so once.
func TestListenerWithoutDescriptors(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	g, end := listenOn(t, l.(*net.TCPListener))
	defer end()
	client, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(client)
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	none := limit
	none.Cur = 3
	restore := func() {
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
			t.Error(err)
		}
	}
	defer restore()
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &none); err != nil {
		t.Fatal(err)
	}
	if err := unix.Connect(client, &unix.SockaddrInet4{Port: l.Addr().(*net.TCPAddr).Port, Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	time.Sleep(5 * minAcceptPause)
	restore()
	testenv.Eventually(t, 2*maxAcceptPause, "it is accepted after all", func() bool { return g.count() == 1 })
	g.Lock()
	defer g.Unlock()
	if g.starved != 1 {
		t.Errorf("told of a shortage %d times, want once", g.starved)
	}
}
