package e2e

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/heddle-mesh/heddle/e2e/testbed"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

// strictYAML makes one port of shop/server PERMISSIVE, so that its gate has an entry for it.
const strictYAML = `apiVersion: heddle.dev/v1alpha1
kind: PeerAuthentication
metadata: {namespace: shop, name: strict}
spec: {mode: STRICT, portModes: [{port: 7401, mode: PERMISSIVE}]}
`

// driftOf is what a node's agent counts of repaired entries.
func driftOf(t *testing.T, b *testbed.Bed, node string) string {
	t.Helper()
	return sampleOf(t, b, node, "heddle_gate_drift_total")
}

// sampleOf is what a node's agent says of a metric without labels.
func sampleOf(t *testing.T, b *testbed.Bed, node, metric string) string {
	t.Helper()
	for line := range strings.Lines(b.Metrics(t, node)) {
		if value, ok := strings.CutPrefix(line, metric+" "); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// TestDrift changes what the kernel holds behind an agent's back, as root on the node can:
// within two seconds it is as it was, and check and the status of the policy say so, of a
// single change, too; so do log and metric.
func TestDrift(t *testing.T) {
	b := up(t, "e2e-drift")
	b.Write(t, "strict.yaml", strictYAML)
	folder, err := filepath.Glob("/sys/fs/bpf/heddle/e2e-drift-n2/v1/pods/shop_server")
	if err != nil || len(folder) != 1 {
		t.Fatalf("the pins of shop/server: %v %v", folder, err)
	}
	open := func(name string) *ebpf.Map {
		m, err := ebpf.LoadPinnedMap(filepath.Join(folder[0], name), nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { m.Close() })
		return m
	}
	config, active, ports, listeners := open("config"), open("active"), open("ports"), open("listeners")
	var slot, flags uint32
	// struct pod_config of bpf/c/types.h: kubelet_cgroup, grandfather_for and pod come before flags.
	const flagsAt, permissive = 20, 1
	state := func() (all []byte) {
		if err := active.Lookup(uint32(0), &slot); err != nil {
			t.Fatal(err)
		}
		all, err := config.LookupBytes(slot & 1)
		if err != nil {
			t.Fatal(err)
		}
		return all
	}
	port := uint16(7401)
	testenv.Eventually(t, 10*time.Second, "the policy is in the kernel", func() bool { return ports.Lookup(port, &flags) == nil })
	good, goodFlags := state(), flags
	if binary.NativeEndian.Uint32(good[flagsAt:])&permissive != 0 {
		t.Fatal("the pod is PERMISSIVE")
	}
	var cookie uint64
	outbound := uint32(0)
	if err := listeners.Lookup(outbound, &cookie); err != nil {
		t.Fatal(err)
	}
	policyLiveOn(t, b, "2/2", "", func() {})
	repairs := 0
	for _, harm := range []struct {
		name   string
		do     func() error
		mended func() bool
	}{
		{"STRICT becomes PERMISSIVE", func() error {
			bad := append([]byte(nil), good...)
			binary.NativeEndian.PutUint32(bad[flagsAt:], binary.NativeEndian.Uint32(bad[flagsAt:])|permissive)
			return config.Put(slot&1, bad)
		}, func() bool { return string(state()) == string(good) }},
		{"a port is deleted", func() error { return ports.Delete(port) },
			func() bool { return ports.Lookup(port, &flags) == nil && flags == goodFlags }},
		{"a port is added", func() error { return ports.Put(uint16(22), uint32(permissive)) },
			func() bool { return ports.Lookup(uint16(22), &flags) != nil }},
		{"a listener is deleted", func() error { return listeners.Delete(outbound) },
			func() bool { var have uint64; return listeners.Lookup(outbound, &have) == nil && have == cookie }},
	} {
		if err := harm.do(); err != nil {
			t.Fatalf("%s: %v", harm.name, err)
		}
		began := time.Now()
		testenv.Eventually(t, 20*time.Second, harm.name+", and is mended", harm.mended)
		took := time.Since(began)
		t.Logf("%s: mended after %v", harm.name, took.Round(time.Millisecond))
		if took > 2*time.Second {
			t.Errorf("%s: it took %v, more than 2 s", harm.name, took)
		}
		if repairs == 0 {
			driftIsSaid(t, b, began)
		}
		repairs++
	}
	// It is counted once it is mended, which is a moment later.
	testenv.Eventually(t, 20*time.Second, "heddle_gate_drift_total counts each entry", func() bool {
		return driftOf(t, b, "n2") == strconv.Itoa(repairs)
	})
	if counted := driftOf(t, b, "n1"); counted != "0" {
		t.Errorf("heddle_gate_drift_total of the node that nobody touched is %q", counted)
	}
	out, err := b.Heddle("check", "--name", b.Mesh.Plan.Name)
	if err == nil || !strings.Contains(out, "changed behind the agent's back") {
		t.Errorf("heddle check passes, or does not say it: %v\n%s", err, out)
	}
	log, err := b.Mesh.Logs("n2")
	if err != nil {
		t.Fatal(err)
	}
	said, err := os.ReadFile(log)
	if err != nil || strings.Count(string(said), "changed behind the agent's back") != repairs {
		t.Errorf("the agent's log does not say it %d times: %v\n%s", repairs, err, said)
	}
	exchange(t, b, "shop/client", "shop/server", "10.244.2.10:7400")

	// The status of a policy counts neither a node whose maps drift again and again, nor
	// one with a pod that cannot be enrolled.
	policyLiveOn(t, b, "2/2", "", func() {})
	b.Write(t, "nowhere.yaml", nowhereYAML)
	policyLiveOn(t, b, "0/2", "n1, n2", func() {
		if err := ports.Put(uint16(22), uint32(permissive)); err != nil {
			t.Fatal(err)
		}
	})
	b.Remove(t, "nowhere.yaml")
	policyLiveOn(t, b, "2/2", "", func() {})
}

// TestGateThatIsNotInPlace takes the rules that lead a pod's connections to its agent away, as
// a tool on the node may: nobody mends that, and the policy's status, check and a metric say so
// until they are back.
func TestGateThatIsNotInPlace(t *testing.T) {
	b := up(t, "e2e-gate-away")
	b.Write(t, "strict.yaml", strictYAML)
	policyLiveOn(t, b, "2/2", "", func() {})
	ip := func(args ...string) string {
		t.Helper()
		out, err := b.Heddle(append([]string{"exec", "--name", b.Mesh.Plan.Name, "shop/server", "--", "ip"}, args...)...)
		if err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
		return out
	}
	rule := ""
	for line := range strings.Lines(ip("rule", "show")) {
		if pref, what, ok := strings.Cut(strings.TrimSpace(line), ":"); ok && pref == "100" {
			rule = strings.Replace(what, "from all ", "", 1)
		}
	}
	if rule == "" {
		t.Fatal("the pod has no rule 100")
	}
	ip("rule", "del", "pref", "100")
	policyLiveOn(t, b, "1/2", "n2", func() {})
	if n := sampleOf(t, b, "n2", "heddle_gate_unmended"); n != "1" {
		t.Errorf("heddle_gate_unmended is %q", n)
	}
	if out, err := b.Heddle("check", "--name", b.Mesh.Plan.Name); err == nil || !strings.Contains(out, "is missing") {
		t.Errorf("heddle check passes, or does not say it: %v\n%s", err, out)
	}
	ip(append([]string{"rule", "add", "pref", "100"}, strings.Fields(rule)...)...)
	policyLiveOn(t, b, "2/2", "", func() {})
	if n := sampleOf(t, b, "n2", "heddle_gate_unmended"); n != "0" {
		t.Errorf("heddle_gate_unmended is %q after that", n)
	}
}

// driftIsSaid asks whether who asks two seconds after a single change on node n2 is told of it,
// by `heddle check` and by the status of shop/strict, and the status still says it eight later.
func driftIsSaid(t *testing.T, b *testbed.Bed, began time.Time) {
	t.Helper()
	for _, says := range []struct {
		name string
		ask  func() bool
	}{
		{"the policy's status", func() bool {
			said, _ := b.Heddle("status", "--name", b.Mesh.Plan.Name) // it fails while a pod is unwell
			return strictIsLive(said, "1/2", "n2")
		}},
		{"heddle check", func() bool {
			said, _ := b.Heddle("check", "--name", b.Mesh.Plan.Name)
			return strings.Contains(said, "changed behind the agent's back")
		}},
	} {
		var asked time.Time
		testenv.Eventually(t, 20*time.Second, says.name+" says it", func() bool { asked = time.Now(); return says.ask() })
		took := asked.Sub(began)
		t.Logf("%s says it to who asks after %v", says.name, took.Round(time.Millisecond))
		if took > 2*time.Second {
			t.Errorf("%s says it after %v, more than 2 s", says.name, took)
		}
	}
	policyLiveOn(t, b, "2/2", "", func() {})
	if took := time.Since(began); took < 8*time.Second {
		t.Errorf("the policy's status said it for %v only", took)
	}
}

// nowhereYAML is a workload of node n1 with a network namespace that is not there.
const nowhereYAML = `apiVersion: heddle.dev/v1alpha1
kind: Workload
metadata: {namespace: shop, name: nowhere}
spec: {node: n1, serviceAccount: nowhere, addresses: ["10.244.1.99"], networkNamespace: /run/netns/heddle-e2e-drift-nowhere}
`

// policyLiveOn waits until the status of the mesh says on how many nodes shop/strict is in
// force, and on which it is not. It does something before every look.
func policyLiveOn(t *testing.T, b *testbed.Bed, live, not string, before func()) {
	t.Helper()
	var said string
	defer func() {
		if t.Failed() {
			t.Logf("heddle status:\n%s", said)
		}
	}()
	testenv.Eventually(t, 30*time.Second, "shop/strict is live on "+live, func() bool {
		before()
		said, _ = b.Heddle("status", "--name", b.Mesh.Plan.Name) // it fails while a pod is unwell
		return strictIsLive(said, live, not)
	})
}

// strictIsLive reports whether what `heddle status` said is that shop/strict is in force on so many
// nodes, and which are not among them.
func strictIsLive(said, live, not string) bool {
	for line := range strings.Lines(said) {
		if f := strings.Fields(line); len(f) > 3 && f[1] == "shop/strict" {
			return f[3] == live && (not == "" || strings.Contains(line, "not yet on "+not))
		}
	}
	return false
}
