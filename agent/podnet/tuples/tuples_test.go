package tuples

import (
	"errors"
	"net"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func tupleOf(n uint16) Tuple {
	return Tuple{netip.AddrPortFrom(netip.MustParseAddr("10.0.0.1"), n), netip.MustParseAddrPort("10.0.0.2:80")}
}

// TestLive: of either family, both ends of a connection are listed, as the agent has
// one and the application the other; listeners and what waits out its time are not.
func TestLive(t *testing.T) {
	for family, at := range map[int]string{unix.AF_INET: "127.0.0.1:0", unix.AF_INET6: "[::1]:0"} {
		l, err := net.Listen("tcp", at)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		far, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		own := Tuple{c.LocalAddr().(*net.TCPAddr).AddrPort(), c.RemoteAddr().(*net.TCPAddr).AddrPort()}
		other := Tuple{own.App, own.Client}
		live, err := Live([]int{family})
		if err != nil || !live[own] || !live[other] {
			t.Errorf("%s: listed %v and %v: %v", at, live[own], live[other], err)
		}
		for listed := range live {
			if listed.Client == own.App && listed != other {
				t.Errorf("%s: a listener is listed: %v", at, listed)
			}
		}
		c.Close() // the first to close: it is this end that stays in TIME_WAIT
		far.Close()
		testenv.Eventually(t, 5*time.Second, "the sockets are gone", func() bool {
			live, err := Live([]int{family})
			return err == nil && !live[own] && !live[other]
		})
	}
}

// TestLife: a tuple is one connection's from before it is dialled until its
// socket is gone, wherever that is.
func TestLife(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp4", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	far, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	var s Set
	own := Tuple{c.LocalAddr().(*net.TCPAddr).AddrPort(), c.RemoteAddr().(*net.TCPAddr).AddrPort()}
	if !s.Claim(own) || s.Claim(own) {
		t.Fatal("a tuple is not claimed once")
	}
	s.Release(own)
	if !s.Claim(own) {
		t.Fatal("a tuple that was given back is taken")
	}
	if due := s.Due(); len(due) != 0 {
		t.Errorf("due while it is dialled: %v", due)
	}
	s.Hold(own)
	// Its socket goes to somebody else.
	f, err := c.(*net.TCPConn).File()
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	due := s.Due()
	if len(due) != 1 || due[0] != own {
		t.Fatalf("due once it is up: %v", due)
	}
	if live, err := Live([]int{unix.AF_INET}); err != nil || !live[own] {
		t.Errorf("the socket lives and is not listed: %v", err)
	}
	if s.Claim(own) {
		t.Error("the tuple of a connection that lives elsewhere is taken")
	}
	f.Close()
	far.Close()
	testenv.Eventually(t, 5*time.Second, "the socket is gone", func() bool {
		live, err := Live([]int{unix.AF_INET})
		return err == nil && !live[own]
	})
	if err := s.Forget(own, func(Tuple) error { return errors.New("the kernel does not") }); err == nil || s.Len() != 1 {
		t.Errorf("forgotten here and not there: %v", err)
	}
	if err := s.Forget(own, func(Tuple) error { return nil }); err != nil || s.Len() != 0 || !s.Claim(own) {
		t.Errorf("a tuple that is forgotten is taken: %v", err)
	}
}

// TestInherit: own tuples stay own; others' are looked for at once when there are
// many, and otherwise now and then.
func TestInherit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s Set
		s.Claim(tupleOf(1))
		s.Inherit([][2]netip.AddrPort{{tupleOf(1).Client, tupleOf(1).App}, {tupleOf(2).Client, tupleOf(2).App}})
		if due := s.Due(); len(due) != 1 || due[0] != tupleOf(2) {
			t.Errorf("due: %v", due)
		}
		if due := s.Due(); len(due) != 0 {
			t.Errorf("due again at once: %v", due)
		}
		for _, after := range []time.Duration{2 * LookEvery, 4 * LookEvery, lookAtLeast, lookAtLeast} {
			time.Sleep(after - time.Millisecond)
			if len(s.Due()) != 0 {
				t.Errorf("due before %v", after)
			}
			time.Sleep(time.Millisecond)
			if len(s.Due()) != 1 {
				t.Errorf("not due after %v", after)
			}
		}
		s.Inherit([][2]netip.AddrPort{{tupleOf(3).Client, tupleOf(3).App}})
		time.Sleep(LookEvery)
		if len(s.Due()) != 2 {
			t.Error("a new one is not due soon")
		}
		var many [][2]netip.AddrPort
		for n := range uint16(manyNew) {
			many = append(many, [2]netip.AddrPort{tupleOf(100 + n).Client, tupleOf(0).App})
		}
		s.Inherit(many)
		time.Sleep(lookAtMost)
		if len(s.Due()) != manyNew+2 {
			t.Error("many new ones are not due soon")
		}
	})
}

// BenchmarkLive lists a namespace in which thousands of connections have just ended.
func BenchmarkLive(b *testing.B) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	for range 5000 {
		c, err := net.Dial("tcp4", l.Addr().String())
		if err != nil {
			b.Fatal(err)
		}
		far, err := l.Accept()
		if err != nil {
			b.Fatal(err)
		}
		c.Close()
		far.Close()
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Live([]int{unix.AF_INET}); err != nil {
			b.Fatal(err)
		}
	}
}
