package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/heddle-mesh/heddle/bpf"
	"github.com/heddle-mesh/heddle/e2e/testbed"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

// Five addresses may speak to shop/server at each of these ports: 4,464 more than its gate
// has room for.
const (
	firstPort, lastPort = 20000, 33999
	tooMany             = 5*(lastPort-firstPort+1) - bpf.MaxDatagramRules
)

// wideYAML lets three workloads reach shop/server at ports of which no policy may name all, and
// one of them reach another of them.
func wideYAML() string {
	const each, entry = 3500, 250 // ports of a policy, and of an entry of its to
	var all strings.Builder
	policy := func(name, app, from string, to ...string) {
		fmt.Fprintf(&all, `apiVersion: heddle.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {namespace: shop, name: %s}
spec:
  selector: {matchLabels: {app: %s}}
  rules: [{from: [{serviceAccounts: [%s]}], to: [%s]}]
---
`, name, app, from, strings.Join(to, ","))
	}
	for from := firstPort; from <= lastPort; from += each {
		var to []string
		for at := from; at < from+each; at += entry {
			var ports []string
			for port := at; port < at+entry; port++ {
				ports = append(ports, fmt.Sprint(port))
			}
			to = append(to, "{protocol: UDP, ports: ["+strings.Join(ports, ",")+"]}")
		}
		policy(fmt.Sprint("wide-", from), "server", "client, near, six", to...)
	}
	policy("beside", "six", "client", "{protocol: UDP, ports: [7443]}")
	return all.String()
}

// TestMoreRulesThanRoom gives a pod more rules than its gate has room for: what has none is
// dropped, and said; nothing else is; it holds without the agent, and with its next; who was
// left out is let in when there is room; and what somebody changes in a table that large is
// found and put back within two seconds.
func TestMoreRulesThanRoom(t *testing.T) {
	b := up(t, "e2e-udp-full", func(b *testbed.Bed) { b.UDPByIdentity = true })
	const client, near, six, server, quiet = "shop/client", "shop/near", "shop/six", "shop/server", 300 * time.Millisecond
	answersDatagrams(t, b, server, fmt.Sprint(":", firstPort))
	came := answersDatagrams(t, b, server, fmt.Sprint(":", lastPort))
	answersDatagrams(t, b, six, ":7443")
	at := func(address string, port int) string { return fmt.Sprintf("%s:%d", address, port) }
	const server4, server6 = "10.244.2.10", "[fd00:244:2::10]"
	b.Write(t, "udp.yaml", wideYAML())
	within := func(from, to string) {
		t.Helper()
		testenv.Eventually(t, 20*time.Second, from+" reaches "+to, func() bool { return exchanges(t, b, from, to, quiet) })
	}
	holds := func() {
		t.Helper()
		within(client, at(server4, lastPort))
		within(near, at(server6, lastPort))
		within(six, at(server6, firstPort))
		within(client, "[fd00:244:2::66]:7443")
		before := came.Load()
		for range 3 {
			if exchanges(t, b, six, at(server6, lastPort), quiet) || came.Load() != before {
				t.Fatalf("%s reaches %s, for which its gate has no room", six, at(server6, lastPort))
			}
		}
	}
	holds()
	waitFlow(t, b, "the drop of what there is no room for", func(f testbed.Flow) bool {
		return f.Verdict == "deny" && f.Reason == "KernelUDP" && f.Source.Workload == six && f.Destination.Address == at(server6, lastPort) &&
			strings.Contains(f.Detail, "no room")
	})
	said := func() {
		t.Helper()
		for node, want := range map[string]int{"n1": 0, "n2": tooMany} {
			testenv.Eventually(t, 20*time.Second, fmt.Sprintf("%s counts %d rules without room", node, want), func() bool { return leftOf(t, b, node) == fmt.Sprint(want) })
		}
		out, err := b.Heddle("check", "--name", b.Mesh.Plan.Name)
		if err == nil || strings.Count(out, "has room for") != 1 || !strings.Contains(out, fmt.Sprintf("%d are left out", tooMany)) {
			t.Errorf("heddle check passes, or does not say it of one pod: %v\n%s", err, out)
		}
	}
	said()
	logged(t, b, "n2", "than the kernel has room for", 1)

	b.Kill(t, "n2")
	holds()
	b.StartAgentAlone(t, "n2")
	testenv.Eventually(t, 30*time.Second, "the next agent says it, too", func() bool {
		out, _ := b.Heddle("check", "--name", b.Mesh.Plan.Name)
		return strings.Contains(out, "has room for")
	})
	said()
	holds()

	// Near leaves the mesh, and leaves room for those that had none.
	pods := shopPods()
	b.Write(t, "mesh.yaml", meshYAML(b.Mesh.Plan.Name, append(pods[:1:1], pods[2:]...)...)+service("server", "10.96.0.10", 80))
	began := time.Now()
	within(six, at(server6, lastPort))
	t.Logf("there is room %v after another has left", time.Since(began).Round(time.Millisecond))
	within(client, at(server4, lastPort))
	if exchanges(t, b, near, at(server4, firstPort), quiet) {
		t.Errorf("%s has left the mesh, and reaches %s", near, server)
	}
	testenv.Eventually(t, 20*time.Second, "no rule is without room", func() bool { return leftOf(t, b, "n2") == "0" })
	if out, _ := b.Heddle("check", "--name", b.Mesh.Plan.Name); strings.Contains(out, "has room for") {
		t.Errorf("heddle check says it still:\n%s", out)
	}
	repairsManyRules(t, b)
}

// repairsManyRules takes a rule out of shop/server's table, and puts another into it.
func repairsManyRules(t *testing.T, b *testbed.Bed) {
	t.Helper()
	outer, err := ebpf.LoadPinnedMap("/sys/fs/bpf/heddle/"+b.Mesh.Plan.Name+"-n2/v1/pods/shop_server/datagram_rules", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer outer.Close()
	rules := func(do func(*ebpf.Map) error) error {
		var table *ebpf.Map
		if err := outer.Lookup(uint32(0), &table); err != nil {
			return err
		}
		defer table.Close()
		return do(table)
	}
	var key, foreign []byte
	harm := func(table *ebpf.Map) (err error) {
		if key, err = table.NextKeyBytes(nil); err != nil {
			return err
		}
		foreign = bytes.Clone(key)
		foreign[15]++ // of the address
		return errors.Join(table.Delete(key), table.Put(foreign, uint32(1)))
	}
	if err := rules(harm); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	testenv.Eventually(t, 20*time.Second, "the rules are mended", func() bool {
		return rules(func(table *ebpf.Map) error {
			var value uint32
			if err := table.Lookup(foreign, &value); !errors.Is(err, ebpf.ErrKeyNotExist) {
				return errors.New("what was added is there")
			}
			return table.Lookup(key, &value)
		}) == nil
	})
	took := time.Since(began)
	t.Logf("mended after %v", took.Round(time.Millisecond))
	if took > 2*time.Second && !testenv.Overloaded(t) {
		t.Errorf("it took %v, more than 2 s", took)
	}
	testenv.Eventually(t, 20*time.Second, "both changes are counted", func() bool { return driftOf(t, b, "n2") == "2" })
}

// leftOf is what an agent has of heddle_gate_datagram_rules_left.
func leftOf(t *testing.T, b *testbed.Bed, node string) string {
	t.Helper()
	return sampleOf(t, b, node, "heddle_gate_datagram_rules_left")
}

// logged counts what an agent has logged.
func logged(t *testing.T, b *testbed.Bed, node, what string, want int) {
	t.Helper()
	log, err := b.Mesh.Logs(node)
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(log)
	if got := strings.Count(string(text), what); err != nil || got != want {
		t.Errorf("the log of %s has %q %d times, want %d: %v", node, what, got, want, err)
	}
}
