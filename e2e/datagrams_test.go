package e2e

import (
	"errors"
	"net"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/e2e/testbed"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

// udpYAML lets shop/client reach shop/server at port 7443 over UDP, and says nothing else.
const udpYAML = `apiVersion: heddle.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {namespace: shop, name: quic}
spec:
  selector: {matchLabels: {app: server}}
  rules: [{from: [{serviceAccounts: [client]}], to: [{protocol: UDP, ports: [7443]}]}]
`

// udpDenyYAML refuses what udpYAML lets in.
const udpDenyYAML = `apiVersion: heddle.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {namespace: shop, name: shut}
spec: {action: DENY, rules: [{from: [{serviceAccounts: [client]}]}]}
`

// answersDatagrams answers in a pod until the test ends, and counts what came.
func answersDatagrams(t *testing.T, b *testbed.Bed, pod, address string) *atomic.Int64 {
	t.Helper()
	var came atomic.Int64
	var c net.PacketConn
	if err := b.InPod(pod, func() (err error) { c, err = net.ListenPacket("udp", address); return err }); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { c.Close(); <-done })
	go func() {
		defer close(done)
		buf := make([]byte, 2000)
		for {
			n, from, err := c.ReadFrom(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				came.Add(1)
				c.WriteTo(buf[:n], from)
			}
		}
	}()
	return &came
}

// exchanges reports whether a datagram of a pod is answered.
func exchanges(t *testing.T, b *testbed.Bed, from, to string, wait time.Duration) bool {
	t.Helper()
	var c net.Conn
	if err := b.InPod(from, func() (err error) { c, err = net.Dial("udp", to); return err }); err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return exchangesOn(t, c, wait)
}

func exchangesOn(t *testing.T, c net.Conn, wait time.Duration) bool {
	t.Helper()
	c.SetDeadline(time.Now().Add(wait))
	if _, err := c.Write([]byte("datagram")); err != nil {
		return false
	}
	_, err := c.Read(make([]byte, 2000))
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Logf("read: %v", err)
	}
	return err == nil
}

// TestDatagrams: on two nodes, only whom a policy names exchanges datagrams with whom it
// selects, at the ports that it names, and each side says so in a flow; a change of policy
// cuts a conversation within a second; and all of it holds without the agents.
func TestDatagrams(t *testing.T) {
	b := up(t, "e2e-udp", func(b *testbed.Bed) { b.ExperimentalUDP = true })
	const client, near, server, talker = "shop/client", "shop/near", "shop/server", "plain/talker"
	const quiet, long = 300 * time.Millisecond, time.Second
	came := answersDatagrams(t, b, server, ":7443")
	other := answersDatagrams(t, b, server, ":7444")
	atClient := answersDatagrams(t, b, client, ":7443")
	server4, server6 := "10.244.2.10:7443", "[fd00:244:2::10]:7443"
	for _, to := range []string{server4, server6} {
		if exchanges(t, b, client, to, quiet) {
			t.Fatalf("%s is reached at %s without a policy", server, to)
		}
	}
	droppedAs(t, b, client, server4, "")

	b.Write(t, "udp.yaml", udpYAML)
	for _, to := range []string{server4, server6} {
		testenv.Eventually(t, 20*time.Second, client+" reaches "+to, func() bool { return exchanges(t, b, client, to, quiet) })
	}
	for _, refused := range []struct{ from, to string }{
		{client, "10.244.2.10:7444"}, {near, server4}, {near, server6}, {talker, server4}, {talker, server6}, {server, "10.244.1.10:7443"}, {client, "10.244.2.90:7443"},
	} {
		if exchanges(t, b, refused.from, refused.to, quiet) {
			t.Errorf("%s reaches %s, which no policy says", refused.from, refused.to)
		}
	}
	if other.Load()+atClient.Load() > 0 {
		t.Errorf("%d datagrams came to another port of the server, and %d to the client", other.Load(), atClient.Load())
	}
	droppedAs(t, b, near, server4, "")
	waitFlow(t, b, "the drop of a datagram of "+talker, func(f testbed.Flow) bool {
		return f.Reason == "KernelUDP" && f.Source.Workload == talker && f.Destination.Address == server4
	})
	for _, direction := range []string{"outbound", "inbound"} {
		waitFlow(t, b, direction+" datagrams of "+client, func(f testbed.Flow) bool {
			return f.Direction == direction && f.Verdict == "allow" && f.Reason == "PolicyAllow" && f.Policy == "shop/quic" && f.Transport == "plaintext" &&
				f.Source.Workload == client && strings.HasSuffix(f.Source.Identity, "/ns/shop/sa/client") && f.Destination.Workload == server && f.Sent >= 8 && f.Received >= 8
		})
	}

	// Over TCP nothing has changed.
	go echo(t, b.Listen(t, server, ":7400"))
	roundTrip(t, b.MustDial(t, near, "10.244.2.10:7400"), []byte(secret))

	var took []time.Duration
	for range 5 {
		took = append(took, cutsConversation(t, b, client, server4, came))
	}
	slices.Sort(took)
	t.Logf("a conversation was cut after %v", took)
	within := time.Second
	if testenv.Overloaded(t) {
		within = 10 * time.Second
	}
	if took[len(took)/2] > within {
		t.Errorf("the median is more than %v", within)
	}
	waitFlow(t, b, "the drop that shop/shut decides", func(f testbed.Flow) bool {
		return f.Reason == "KernelUDP" && f.Policy == "shop/shut" && f.Source.Workload == client
	})

	testenv.Eventually(t, 20*time.Second, client+" reaches "+server4, func() bool { return exchanges(t, b, client, server4, quiet) })
	b.Kill(t, "n1")
	b.Kill(t, "n2")
	for _, c := range []struct {
		from, to string
		want     bool
	}{{client, server4, true}, {client, server6, true}, {near, server4, false}, {talker, server4, false}, {client, "10.244.2.10:7444", false}} {
		if got := exchanges(t, b, c.from, c.to, long); got != c.want {
			t.Errorf("without agents, %s reaches %s: %v, want %v", c.from, c.to, got, c.want)
		}
	}
}

// droppedAs waits for the flow of a datagram that was not let out.
func droppedAs(t *testing.T, b *testbed.Bed, from, to, policy string) {
	t.Helper()
	waitFlow(t, b, "the drop of a datagram of "+from+" to "+to, func(f testbed.Flow) bool {
		return f.Verdict == "deny" && f.Reason == "KernelUDP" && f.Source.Workload == from && f.Destination.Address == to && f.Policy == policy
	})
}

// cutsConversation keeps a conversation going, and returns how long after a change of
// policy the last datagram came. Then it takes the change back.
func cutsConversation(t *testing.T, b *testbed.Bed, from, to string, came *atomic.Int64) time.Duration {
	t.Helper()
	var c net.Conn
	if err := b.InPod(from, func() (err error) { c, err = net.Dial("udp", to); return err }); err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	testenv.Eventually(t, 20*time.Second, "a conversation", func() bool { return exchangesOn(t, c, 300*time.Millisecond) })
	b.Write(t, "shut.yaml", udpDenyYAML)
	changed := time.Now()
	last, count := changed, came.Load()
	for time.Since(last) < 3*time.Second && time.Since(changed) < time.Minute {
		c.Write([]byte("datagram"))
		time.Sleep(5 * time.Millisecond)
		if now := came.Load(); now != count {
			last, count = time.Now(), now
		}
	}
	b.Remove(t, "shut.yaml")
	return last.Sub(changed)
}
