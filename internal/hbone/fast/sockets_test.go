package fast_test

import (
	"net"
	"testing"
)

func pathListener(t testing.TB) *net.TCPListener {
	t.Helper()
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// pathPair is the two ends of one TCP connection; the first is closed by the
// test.
func pathPair(t testing.TB) (ours, theirs *net.TCPConn) {
	l := pathListener(t)
	defer l.Close()
	a, err := net.DialTCP("tcp", nil, l.Addr().(*net.TCPAddr))
	if err != nil {
		t.Error(err)
		return nil, nil
	}
	t.Cleanup(func() { a.Close() })
	b, err := l.AcceptTCP()
	if err != nil {
		t.Error(err)
	}
	return a, b
}
