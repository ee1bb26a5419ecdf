package wan

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// ends makes two namespaces that a link joins, with a socket in each.
func ends(t *testing.T, delay time.Duration) (l *Link, a, b *net.UDPConn) {
	t.Helper()
	testenv.NeedRoot(t)
	spaces := [2]*testenv.NetNS{testenv.NewNetNS(t, "wan-a"), testenv.NewNetNS(t, "wan-b")}
	path := func(i int) string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), spaces[i].Fd()) }
	l, err := Open(path(0), path(1), delay)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	var sockets [2]*net.UDPConn
	for i, space := range spaces {
		space.Must(t, func() error {
			address := fmt.Sprintf("10.9.9.%d", i+1)
			for _, args := range [][]string{{"address", "add", address + "/24", "dev", Device}, {"link", "set", Device, "up"}} {
				if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
					return fmt.Errorf("%w: %s", err, out)
				}
			}
			sockets[i], err = net.ListenUDP("udp4", &net.UDPAddr{IP: net.ParseIP(address), Port: 7})
			return err
		})
		t.Cleanup(func() { sockets[i].Close() })
	}
	return l, sockets[0], sockets[1]
}

// send sends packets and returns how many arrived, and the first one's way.
func send(t *testing.T, from, to *net.UDPConn, count int) (arrived int, way time.Duration) {
	t.Helper()
	started := time.Now()
	for range count {
		if _, err := from.WriteTo([]byte("packet"), to.LocalAddr()); err != nil {
			t.Fatal(err)
		}
	}
	b := make([]byte, 64)
	for arrived < count {
		if err := to.SetReadDeadline(time.Now().Add(300 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		if _, err := to.Read(b); errors.Is(err, os.ErrDeadlineExceeded) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if arrived++; arrived == 1 {
			way = time.Since(started)
		}
	}
	return arrived, way
}

func TestDelayAndLoss(t *testing.T) {
	const delay = 40 * time.Millisecond
	l, a, b := ends(t, delay)
	for _, ways := range [][2]*net.UDPConn{{a, b}, {b, a}} {
		if n, way := send(t, ways[0], ways[1], 20); n != 20 || way < delay {
			t.Errorf("%d of 20 arrived, the first after %v, want all after %v", n, way, delay)
		}
	}
	l.SetLoss(1)
	if n, _ := send(t, a, b, 5); n != 0 {
		t.Errorf("%d arrived where all get lost", n)
	}
	l.SetLoss(0.5)
	// The other 100 of 200 are 7 standard deviations away from 50 or 150.
	if n, _ := send(t, a, b, 200); n < 50 || n > 150 {
		t.Errorf("%d of 200 arrived where half get lost", n)
	}
	if n, _ := send(t, b, a, 20); n != 20 {
		t.Errorf("%d of 20 arrived on the way that loses none", n)
	}
}

func TestObey(t *testing.T) {
	l := &Link{}
	in, commands := io.Pipe()
	said, out := io.Pipe()
	done := make(chan error, 1)
	go func() { done <- obey(l, in, out) }()
	lines := bufio.NewScanner(said)
	for _, step := range []struct{ send, want string }{{"", "ready"}, {"loss 0.25\n", "ok"}} {
		if step.send != "" { // a pipe takes an empty write for one as well
			if _, err := io.WriteString(commands, step.send); err != nil {
				t.Fatal(err)
			}
		}
		if !lines.Scan() || lines.Text() != step.want {
			t.Fatalf("said %q, want %q", lines.Text(), step.want)
		}
	}
	if l.loss.Load() != 250_000 {
		t.Errorf("loss is %d millionths", l.loss.Load())
	}
	if _, err := io.WriteString(commands, "loss 2\n"); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err == nil {
		t.Error("a loss of 2 was taken")
	}
}

func TestOpenFails(t *testing.T) {
	if _, err := Open("/run/netns/heddle-bench-none", "/run/netns/heddle-bench-none", 0); err == nil {
		t.Error("namespaces that are not there were joined")
	}
}
