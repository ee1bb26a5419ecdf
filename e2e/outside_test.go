package e2e

import (
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/e2e/testbed"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

// TestDatagramsOutside: without any experiment, a namespace exchanges datagrams with a server
// that is in no mesh, at the ports that the Mesh names for it, when it has begun; what leaves
// is a flow, and a change ends it; and all of that holds without the agent, and after it.
func TestDatagramsOutside(t *testing.T) {
	const (
		name, shop, vault, plain = "e2e-udp-outside", "shop/client", "vault/client", "plain/listener"
		open4, open6             = "100.64.0.1:7700", "[fd00:64::1]:7700"
		other4, other6           = "100.64.0.1:7701", "[fd00:64::1]:7701"
		shopOnly                 = "{udp: {namespaces: [{namespace: shop, mode: ALLOW, ports: [7700]}]}}"
		quiet, long              = 300 * time.Millisecond, time.Second
	)
	b := testbed.Up(t, "..", name, egressYAML(name, "{mode: ALLOW}"))
	server := b.ListenOutsideUDP(t, ":7700")
	came := answers(t, server)
	closed := answers(t, b.ListenOutsideUDP(t, ":7701"))
	inside := answersDatagrams(t, b, plain, ":7700")
	atClient := answersDatagrams(t, b, shop, ":7700")
	refused := func(when string, tries ...[2]string) {
		t.Helper()
		for _, try := range tries {
			if exchanges(t, b, try[0], try[1], quiet) {
				t.Errorf("%s, %s reaches %s", when, try[0], try[1])
			}
		}
	}
	always := [][2]string{{shop, other4}, {shop, other6}, {vault, open4}, {vault, open6}, {shop, "10.244.1.90:7700"}, {shop, "10.244.1.20:7700"}}
	refused("as nothing is said of UDP", append(slices.Clone(always), [2]string{shop, open4}, [2]string{shop, open6})...)
	waitFlow(t, b, "the drop of a datagram of "+shop, func(f testbed.Flow) bool {
		return f.Verdict == "deny" && f.Reason == "KernelUDP" && f.Detail == "EgressDenied" && f.Source.Workload == shop && f.Destination.Address == open4
	})
	says(t, b, name, shop, open4, "over UDP, to port 7700 outside the mesh: deny, EgressDenied")

	b.Write(t, "mesh.yaml", egressYAML(name, shopOnly))
	for _, to := range []string{open4, open6} {
		testenv.Eventually(t, 20*time.Second, shop+" reaches "+to, func() bool { return exchanges(t, b, shop, to, quiet) })
		waitFlow(t, b, "datagrams of "+shop+" to "+to, func(f testbed.Flow) bool {
			return f.Direction == "outbound" && f.Verdict == "allow" && f.Reason == "EgressAllowed" && f.Transport == "plaintext" && f.Source.Workload == shop &&
				strings.HasSuffix(f.Source.Identity, "/ns/shop/sa/client") && f.Destination.Address == to && f.Destination.Workload == "" && f.Sent >= 8 && f.Received >= 8
		})
	}
	refused("as the Mesh has port 7700 for shop", always...)
	for _, to := range []string{"10.244.1.10:7700", "[fd00:244:1::10]:7700"} { // a port that has asked nothing
		addr, err := net.ResolveUDPAddr("udp", to)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := server.WriteTo([]byte("begun outside"), addr); err != nil {
			t.Fatal(err)
		}
	}
	says(t, b, name, shop, open4, "over UDP, to port 7700 outside the mesh: allow, EgressAllowed")
	says(t, b, name, vault, open4, "spec.egress.udp of the Mesh does not let namespace vault out to this port")
	proof, err := b.Heddle("prove", "--name", name, shop)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(proof, "outbound, datagrams (UDP): to") || !strings.Contains(proof, "100.64.0.1:7700") {
		t.Errorf("prove does not say what left:\n%s", proof)
	}

	took := cutBy(t, b, shop, open4, came, func() { b.Write(t, "mesh.yaml", egressYAML(name, "{udp: {mode: DENY}}")) })
	t.Logf("a conversation was cut after %v", took)
	if within := 3 * time.Second; took > within && !testenv.Overloaded(t) {
		t.Errorf("that is more than %v", within)
	}
	refused("as the Mesh denies it", append(slices.Clone(always), [2]string{shop, open4}, [2]string{shop, open6})...)

	b.Write(t, "mesh.yaml", egressYAML(name, shopOnly))
	testenv.Eventually(t, 20*time.Second, shop+" reaches "+open4, func() bool { return exchanges(t, b, shop, open4, quiet) })
	b.Kill(t, "n1")
	for _, to := range []string{open4, open6} {
		if !exchanges(t, b, shop, to, long) {
			t.Errorf("without an agent, %s does not reach %s", shop, to)
		}
	}
	refused("without an agent", always...)
	b.Restart(t)
	if !exchanges(t, b, shop, open4, long) {
		t.Errorf("after the agent came back, %s does not reach %s", shop, open4)
	}
	refused("after the agent came back", always...)
	if n := closed.Load() + inside.Load() + atClient.Load(); n > 0 {
		t.Errorf("%d datagrams came where none may", n)
	}
}

// says asks what becomes of a connection, and looks for a note.
func says(t *testing.T, b *testbed.Bed, name, from, to, note string) {
	t.Helper()
	var out string
	testenv.Eventually(t, 10*time.Second, "explain says "+note, func() (ok bool) {
		out, _ = b.Heddle("explain", "--name", name, from, to) // its status is that of the connection
		return strings.Contains(out, note)
	})
}
