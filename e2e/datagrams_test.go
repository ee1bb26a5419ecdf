package e2e

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
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
	var c net.PacketConn
	if err := b.InPod(pod, func() (err error) { c, err = net.ListenPacket("udp", address); return err }); err != nil {
		t.Fatal(err)
	}
	return answers(t, c)
}

// answers answers until the test ends, and counts what came.
func answers(t *testing.T, c net.PacketConn) *atomic.Int64 {
	t.Helper()
	var came atomic.Int64
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
	b := up(t, "e2e-udp", func(b *testbed.Bed) { b.UDPByIdentity = true })
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
	forecastsDatagrams(t, b)
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

// forecastsDatagrams holds what agents have recorded to what would become of it: without its
// policy the client breaks, one that names shop/near lets that in; and what is suggested is
// enough for all that passed, in place of the policy.
func forecastsDatagrams(t *testing.T, b *testbed.Bed) {
	t.Helper()
	dir := t.TempDir()
	wider, suggested := filepath.Join(dir, "wider.yaml"), filepath.Join(dir, "suggested.yaml")
	if err := os.WriteFile(wider, []byte(strings.Replace(udpYAML, "[client]", "[client, near]", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	heddle := func(args ...string) string {
		out, err := b.Heddle(append(args, "--name", b.Mesh.Plan.Name)...)
		if exit := new(exec.ExitError); err != nil && (!errors.As(err, &exit) || exit.ExitCode() != 4) {
			t.Fatal(err)
		}
		return out
	}
	const without = "--delete=AuthorizationPolicy/shop/quic"
	for _, c := range []struct {
		name string
		args []string
		want *regexp.Regexp
	}{
		{"without its policy", []string{without}, regexp.MustCompile(`Would break:\n.*\nshop/client +shop/server:7443 UDP +\d+ .* allow PolicyAllow shop/quic\[0\] +deny KernelUDP\n\n1 kind of datagrams would break`)},
		{"with a wider one", []string{"-f", wider}, regexp.MustCompile(`Would be let in, and is refused now:\n.*\nshop/near +shop/server:7443 UDP +\d+ .* deny PolicyNoMatch +allow PolicyAllow shop/quic\[0\]\n\nNothing would break`)},
	} {
		if out := heddle(append([]string{"simulate"}, c.args...)...); !c.want.MatchString(out) {
			t.Errorf("%s:\n%s", c.name, out)
		}
	}
	out := heddle("suggest", "shop")
	if !strings.Contains(out, "name: server-datagrams\n") || !regexp.MustCompile(`# - no rule for \d+ flows? over UDP of shop/near to shop/server, port 7443: refused now \(deny PolicyNoMatch\)`).MatchString(out) {
		t.Errorf("suggested:\n%s", out)
	}
	if err := os.WriteFile(suggested, []byte(out), 0o600); err != nil {
		t.Fatal(err)
	}
	if out := heddle("simulate", "-f", suggested, without); !strings.Contains(out, "Nothing would break.") || strings.Contains(out, "Would be let in") {
		t.Errorf("with what is suggested:\n%s", out)
	}
}

// TestDatagramsWaitForTheGate: who has a workload's label sends and receives no datagrams
// until the agent of its node has it behind its gate, and does within about a second of that.
// What an agent has said holds while it and the operator are away.
func TestDatagramsWaitForTheGate(t *testing.T) {
	b := up(t, "e2e-udp-gate", func(b *testbed.Bed) { b.UDPByIdentity = true })
	const client, server, talker = "shop/client", "shop/server", "plain/talker"
	const quiet = 300 * time.Millisecond
	came := answersDatagrams(t, b, server, ":7443")
	const to = "10.244.2.10:7443"
	b.Write(t, "udp.yaml", udpYAML)
	reaches := func(what string) {
		t.Helper()
		testenv.Eventually(t, 20*time.Second, what, func() bool { return exchanges(t, b, client, to, quiet) })
	}
	reaches(client + " reaches " + to)

	// Whose agent cannot enroll it has nobody's rights: talker gets the address of a client
	// in a namespace that is not there, and sends from it without a gate.
	pods := shopPods()
	asClient := func(netns string) string {
		return strings.ReplaceAll(meshYAML("e2e-udp-gate", append(pods[:4:4], pods[5])...)+`---
apiVersion: heddle.dev/v1alpha1
kind: Workload
metadata: {namespace: shop, name: false-client, labels: {app: client}}
spec: {node: n1, serviceAccount: client, addresses: ["10.244.1.90", "fd00:244:1::90"], networkNamespace: NETNS}
`+service("server", "10.96.0.10", 80), "NETNS", netns)
	}
	b.Write(t, "mesh.yaml", asClient("/run/netns/heddle-e2e-udp-gate-nowhere"))
	testenv.Eventually(t, 20*time.Second, "the agent of n1 refuses it", func() bool {
		out, err := b.Heddle("status", "--name", "e2e-udp-gate", "-o", "json")
		return err != nil && strings.Contains(err.Error(), "nowhere") || strings.Contains(out, "nowhere")
	})
	before := came.Load()
	for range 10 {
		if exchanges(t, b, talker, to, quiet) {
			t.Fatalf("%s has the rights of an identity whose gate does not hold it", talker)
		}
	}
	if n := came.Load() - before; n > 0 {
		t.Fatalf("%d datagrams came from %s", n, talker)
	}
	// Where the agent has it behind its gate, it has them, and soon.
	const inPlace = "/run/netns/heddle-e2e-udp-gate-plain-talker"
	b.Write(t, "mesh.yaml", asClient(inPlace))
	written := time.Now()
	testenv.Eventually(t, 20*time.Second, talker+" reaches "+to+" as a client", func() bool { return exchanges(t, b, talker, to, quiet) })
	took := time.Since(written)
	t.Logf("from the file that says where it is to its first datagram: %v", took)
	if took > 5*time.Second && !testenv.Overloaded(t) {
		t.Errorf("it took %v", took)
	}

	acrossRestart(t, b, client, to)

	// An agent that is away is believed; who is new where none runs is not, until it does.
	b.Kill(t, "n2")
	time.Sleep(3 * time.Second)
	if !exchanges(t, b, client, to, time.Second) {
		t.Error("what an agent has said does not hold without it")
	}
	b.Write(t, "mesh.yaml", strings.Replace(asClient(inPlace), "name: server, labels: {app: server}", "name: another, labels: {app: server}", 1))
	testenv.Eventually(t, 20*time.Second, "who is new on n2 is not reached", func() bool { return !exchanges(t, b, client, to, quiet) })
	for range 5 {
		if exchanges(t, b, client, to, quiet) {
			t.Fatal("who has no agent is reached")
		}
	}
	b.StartAgentAlone(t, "n2")
	testenv.Eventually(t, 30*time.Second, "who is new on n2 is reached", func() bool { return exchanges(t, b, client, to, quiet) })
}

// acrossRestart exchanges datagrams while the operator dies and starts anew: that closes
// nothing that agents have said.
func acrossRestart(t *testing.T, b *testbed.Bed, from, to string) {
	t.Helper()
	var c net.Conn
	if err := b.InPod(from, func() (err error) { c, err = net.Dial("udp", to); return err }); err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	stop, done := make(chan struct{}), make(chan struct{})
	exchanged, cut := 0, 0
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			case <-time.After(10 * time.Millisecond):
			}
			if exchangesOn(t, c, time.Second) {
				exchanged++
			} else {
				cut++
			}
		}
	}()
	if err := syscall.Kill(b.Mesh.Operator.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, 10*time.Second, "the operator is gone", func() bool { return !b.Mesh.Operator.Running() }) // else it is not started anew
	b.Restart(t)
	time.Sleep(5 * time.Second)
	close(stop)
	<-done
	if cut > 0 || exchanged < 100 {
		t.Errorf("across the operator's restart %d exchanges were cut, and %d were not", cut, exchanged)
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
	defer b.Remove(t, "shut.yaml")
	return cutBy(t, b, from, to, came, func() { b.Write(t, "shut.yaml", udpDenyYAML) })
}

// cutBy keeps a conversation going, and returns how long after a change the last datagram
// came.
func cutBy(t *testing.T, b *testbed.Bed, from, to string, came *atomic.Int64, change func()) time.Duration {
	t.Helper()
	var c net.Conn
	if err := b.InPod(from, func() (err error) { c, err = net.Dial("udp", to); return err }); err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	testenv.Eventually(t, 20*time.Second, "a conversation", func() bool { return exchangesOn(t, c, 300*time.Millisecond) })
	change()
	changed := time.Now()
	last, count := changed, came.Load()
	for time.Since(last) < 3*time.Second && time.Since(changed) < time.Minute {
		c.Write([]byte("datagram"))
		time.Sleep(5 * time.Millisecond)
		if now := came.Load(); now != count {
			last, count = time.Now(), now
		}
	}
	return last.Sub(changed)
}
