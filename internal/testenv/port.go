package testenv

import (
	"math/rand/v2"
	"net"
	"strconv"
	"testing"
)

// Ports that FreePort chooses among: below those that the kernel gives to outgoing
// connections (net.ipv4.ip_local_port_range), or one of these, of any test that runs
// beside, could take the port before its program binds it.
const lowestPort, highestPort = 20000, 31999

// FreePort returns a TCP port on which nothing listens on 127.0.0.1, for a program
// that is told its port. Ports that the caller can bind itself need it not.
func FreePort(t testing.TB) int {
	t.Helper()
	for range 1000 {
		port := lowestPort + rand.IntN(highestPort-lowestPort+1)
		l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err != nil {
			continue
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		return port
	}
	t.Fatal("no free TCP port was found on 127.0.0.1")
	return 0
}
