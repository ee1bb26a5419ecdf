package budget_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/agent/proxy/budget"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// TestOneSourceCannotUseAllHandshakes: what one source was refused is there for
// another; and a /64 is one source.
func TestOneSourceCannotUseAllHandshakes(t *testing.T) {
	for _, greedy := range []string{"10.0.0.%d", "2001:db8::%x"} {
		h := budget.NewHandshakes(1, 100)
		taken := 0
		for i := range 300 {
			from := fmt.Sprintf(greedy, i%2) // two addresses
			if err := h.Take(netip.MustParseAddr(from)); err == nil {
				taken++
			} else if !errors.Is(err, budget.ErrOver) {
				t.Fatal(err)
			}
		}
		if one := greedy[0] == '2'; one && (taken < 50 || taken > 52) {
			t.Errorf("one /64 took %d of 100, want half", taken)
		} else if !one && taken > 101 {
			t.Errorf("two sources took %d of 100", taken)
		}
		if greedy[0] == '2' {
			// Another one may share with the greedy one, but not many do.
			other := 0
			for i := range 20 {
				if h.Take(netip.MustParseAddr(fmt.Sprintf("192.0.2.%d", i))) == nil {
					other++
				}
			}
			if other < 15 {
				t.Errorf("%d of 20 others were let through", other)
			}
		}
	}
}

// TestOneIdentityIsALargeCluster: the pods of one service account on every node of
// a large cluster, two connections each, are within what one identity may have; and
// that is not everything.
func TestOneIdentityIsALargeCluster(t *testing.T) {
	const nodes = 5000 // https://kubernetes.io/docs/setup/best-practices/cluster-large/
	d := budget.Default()
	if d.PeerConnections < 2*nodes || 2*d.PeerConnections > d.Connections {
		t.Errorf("%d connections of one identity, of %d", d.PeerConnections, d.Connections)
	}
}

// TestAlone: the documented connections of a pod are within a limit of 65,536 open
// files (docs/configuration.md).
func TestAlone(t *testing.T) {
	for sockets, want := range map[int]int{12288: 5461, 61440: 20000, 1044480: 20000} {
		b := budget.Default()
		if b.Sockets = sockets; b.Alone() != want {
			t.Errorf("of %d: %d, want %d", sockets, b.Alone(), want)
		}
	}
}

// script answers Accept from a list, and then as closed.
type script struct {
	net.Listener
	answers []error
}

func (s *script) Accept() (net.Conn, error) {
	if len(s.answers) == 0 {
		return nil, &net.OpError{Op: "accept", Err: net.ErrClosed}
	}
	err := s.answers[0]
	s.answers = s.answers[1:]
	if err != nil {
		return nil, err
	}
	a, b := net.Pipe()
	b.Close()
	return a, nil
}

func TestListenerOutlivesErrorsAndEndsAsTold(t *testing.T) {
	full := os.NewSyscallError("accept4", unix.EMFILE)
	moved := errors.New("moved")
	var starved, over, asked int
	l := &budget.Listener{
		Listener: &script{answers: []error{full, full, nil, full, nil}}, Stop: make(chan struct{}),
		Starved: func(error) { starved++ }, End: func() error { return moved },
		Handshakes: budget.NewHandshakes(1, 2), // of which a source has one
		Over:       func(c net.Conn, _ error) { over++; c.Close() },
	}
	l.Accepting = func() { asked++ }
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	if asked != 1 {
		t.Errorf("told %d times that somebody accepts", asked)
	}
	if _, err := l.Accept(); !errors.Is(err, moved) {
		t.Errorf("ended with %v", err)
	}
	if starved != 2 || over != 1 {
		t.Errorf("told of %d shortages and %d refusals, want 2 and 1", starved, over)
	}
}

func TestListenerStopsWhileItWaits(t *testing.T) {
	stop := make(chan struct{})
	close(stop)
	full := make([]error, 100)
	for i := range full {
		full[i] = unix.EMFILE
	}
	l := &budget.Listener{Listener: &script{answers: full}, Stop: stop, Starved: func(error) {}, End: func() error { return net.ErrClosed }}
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
}
