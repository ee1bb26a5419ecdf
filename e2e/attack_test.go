package e2e

import (
	"strings"
	"testing"
)

// TestAttack has a pod with NET_ADMIN and NET_RAW try the ways around its gate:
// every one of them must be held, and shown to work where there is no gate.
func TestAttack(t *testing.T) {
	b := up(t, "e2e-attack")
	out, err := b.Heddle("prove", "--name", "e2e-attack", "--attack", "shop/server")
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Log(out)
	for _, attack := range []string{"agent's mark", "forged source", "raw ACK", "bare ACK", "bare RST", "plaintext to 15008", "passthru tuple", "IP options", "fragments", "extension header", "UDP", "ping", "MLD report", "neighbour solicitation",
		"bound to the link", "bound, to 15008", "IPPROTO_RAW, TCP", "IPPROTO_RAW, UDP", "raw TCP socket", "UDP to 15008", "IPv4 in IP", "IPv6 in IP", "routing header", "hop-by-hop header", "chain of headers", "atomic fragment"} {
		tried := 0
		for line := range strings.Lines(out) {
			if strings.HasPrefix(line, attack) && strings.Contains(line, "held") {
				tried++
			}
		}
		if tried == 0 {
			t.Errorf("the attack %q was not tried, or not held", attack)
		}
	}
	// The pod works as before.
	exchange(t, b, "shop/client", "shop/server", "10.244.2.10:7300")
}
