package main

import (
	"net"
	"strings"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// serve accepts connections, does something with each, and closes it.
func serve(t *testing.T, with func(*net.TCPConn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			with(conn.(*net.TCPConn))
			conn.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return l.Addr().String()
}

func TestConnect(t *testing.T) {
	silent := serve(t, func(c *net.TCPConn) { time.Sleep(settled + 100*time.Millisecond) })
	talks := serve(t, func(c *net.TCPConn) { _, _ = c.Write([]byte("220 ready\n")) })
	closes := serve(t, func(*net.TCPConn) {})
	resets := serve(t, func(c *net.TCPConn) { _ = c.SetLinger(0) })
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := l.Addr().String()
	l.Close()
	for _, c := range []struct {
		name, want string
		args       []string
	}{
		{"a server that waits", "", []string{silent, "--timeout=1s", "--protocol=tcp"}},
		{"a server that speaks first", "", []string{"--timeout=1s", talks}},
		{"a server that hangs up", "", []string{closes}},
		{"a connection that is reset", "REFUSED", []string{"--timeout", "1s", resets}},
		{"nobody", "REFUSED", []string{nobody, "--timeout=1s"}},
		{"no address", "DNS", []string{"--timeout=1s", "no.such.name.invalid:80"}},
		{"another flag", "UNKNOWN", []string{nobody, "--loud"}},
	} {
		err := connect(c.args)
		if (err == nil) != (c.want == "") || err != nil && !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}
