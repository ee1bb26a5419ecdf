package product

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/e2e/scenario/kubernetes"
	"github.com/heddle-mesh/heddle/e2e/testbed"
	"github.com/heddle-mesh/heddle/e2e/wire"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

// TestProduct is two lives of Heddle on a cluster, from `heddle install` to `heddle
// uninstall`, a third by Helm, and a fourth by kubectl. Its parts go on from where the ones before them
// ended.
func TestProduct(t *testing.T) {
	w := newWorld(t)
	// Scenarios take a node's agent away by this label.
	w.kubectl(t, "label", "nodes", "--all", "--overwrite", kubernetes.NodeLabel+"="+kubernetes.NodeLabelValue)
	// Pods that run before Heddle does, and a connection between them.
	w.apply(t, "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n"+
		podYAML("server", "n2", itsShare, "serve")+podYAML("client", "n1", "", "wait"))
	w.waitReady(t, "server", "client")
	server, client := w.pod(t, "server").Status.PodIP, w.pod(t, "client").Status.PodIP
	// Its connection is from before the mesh. Policies that refuse others' identity leave it alone: one
	// that refused its own would end it.
	w.apply(t, "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: holder, namespace: shop}\n")
	w.apply(t, podYAML("holder", "n1", "  serviceAccountName: holder\n", "hold", server+":7000", "held"))
	w.waitReady(t, "holder")
	w.plaintextIsSeen(t, server)
	n1, n2 := w.node(t, "n1"), w.node(t, "n2")
	clean := nodeState(t, n1) + nodeState(t, n2) + podState(t, n1, client) + podState(t, n2, server)
	files := fileState(t, n1) + fileState(t, n2)
	w.network = w.onDisk(t, "n1", network)

	w.install(t)
	t.Run("enroll", func(t *testing.T) { w.testEnroll(t, server) })
	w.uninstall(t)
	w.notBroken(t, "holder")
	if left := difference(clean, nodeState(t, n1)+nodeState(t, n2)+podState(t, n1, client)+podState(t, n2, server)); left != "" {
		t.Errorf("after the uninstall the nodes and their pods differ:\n%s", left)
	}
	if _, err := w.inPod(t, "client", "once", server+":7000", marker); err != nil {
		t.Errorf("after the uninstall: %v", err)
	}

	w.install(t, "--gateway-api")
	w.enroll(t)
	t.Run("joining", func(t *testing.T) { w.testJoining(t) })
	t.Run("on call", func(t *testing.T) { w.testOnCall(t, server) })
	t.Run("new pods", func(t *testing.T) { w.testNewPods(t, server) })
	t.Run("rolls", func(t *testing.T) { w.testRolls(t) })
	t.Run("services", func(t *testing.T) { w.testServices(t) })
	t.Run("what the API server calls", func(t *testing.T) { w.testCalled(t) })
	t.Run("scenarios", func(t *testing.T) { w.testScenarios(t) })
	t.Run("dns", func(t *testing.T) { w.testDNS(t) })
	t.Run("attack", func(t *testing.T) { w.testAttack(t) })
	t.Run("waypoint", func(t *testing.T) { w.testWaypoint(t) })
	t.Run("upgrade", func(t *testing.T) {
		defer w.namesGoOn(t)()
		w.testUpgrade(t, server)
	})
	t.Run("faults", func(t *testing.T) { w.testFaults(t, server) })
	w.kubectl(t, "-n", "shop", "delete", "pod", "holder", "--now")
	t.Run("reboot", func(t *testing.T) { w.testReboot(t) })
	inMesh := podState(t, n1, client)
	w.uninstall(t)
	if left := difference(files, fileState(t, n1)+fileState(t, n2)); left != "" {
		t.Errorf("after upgrades, faults and a reboot, the uninstall leaves:\n%s", left)
	}
	if now := podState(t, n1, client); now == inMesh || difference(linesOf(clean, client), now) != "" {
		t.Errorf("after all of it, the pod that was there from the beginning differs:\n%s", difference(linesOf(clean, client), now))
	}
	t.Run("by hand", func(t *testing.T) { w.testByHand(t, files) })
	t.Run("by kubectl", func(t *testing.T) { w.testByKubectl(t, files) })
}

func (w *world) install(t *testing.T, more ...string) {
	t.Helper()
	w.cli(t, append([]string{"install", "--set", "image.registry=" + registry, "--set", "image.tag=" + version, "--set", "mesh.dns=CAPTURE",
		"--set", "agent.nodeSelector." + kubernetes.NodeLabel + "=" + kubernetes.NodeLabelValue, "--wait", "3m"}, more...)...)
	w.cli(t, "check", "--cluster")
}

func (w *world) uninstall(t *testing.T) {
	t.Helper()
	w.left(t, func() {
		w.kubectl(t, "label", "namespace", "shop", "heddle.dev/mesh-")
		w.cli(t, "uninstall", "--crds")
	})
}

// capture starts to look at what crosses between nodes.
func (w *world) capture(t *testing.T) *testbed.Capture {
	t.Helper()
	return testbed.CaptureOn(t, w.node(t, "cp").Netns(), "br0")
}

// plaintextIsSeen shows that the capture sees what is not encrypted.
func (w *world) plaintextIsSeen(t *testing.T, server string) {
	t.Helper()
	c := w.capture(t)
	if _, err := w.inPod(t, "client", "once", server+":7000", marker); err != nil {
		t.Fatal(err)
	}
	found := c.Stop(t, marker, only(server))
	if found.Markers == 0 || found.PlaintextBytes == 0 {
		t.Fatalf("without a mesh: %s: the capture shows nothing", found)
	}
	// So does what is looked for around a reboot, as pods under load say it.
	c = w.capture(t)
	w.apply(t, podYAML("loud", "n1", itsShare, "load", server+":7000", "1", "10"))
	w.waitReady(t, "loud")
	eventually(t, patience, "the pod under load speaks", func() error {
		if w.counted(t, "loud")["opened"] == 0 {
			return errors.New("it has opened nothing")
		}
		return nil
	})
	if found := c.Stop(t, spoken, only(server)); found.Markers == 0 {
		t.Fatalf("without a mesh: %s: the capture does not show what pods under load say", found)
	}
	w.kubectl(t, "-n", "shop", "delete", "pod", "loud", "--now")
}

func only(addr string) func(netip.Addr) bool { return among([]string{addr}) }

func among(addrs []string) func(netip.Addr) bool {
	return func(a netip.Addr) bool { return slices.Contains(addrs, a.String()) }
}

// notBroken fails when a holder's connection broke, or does not go on.
func (w *world) notBroken(t *testing.T, pod string) {
	t.Helper()
	before := w.logs(t, pod)
	testenv.Eventually(t, 10*time.Second, "the open connection of "+pod+" goes on", func() bool {
		return len(w.logs(t, pod)) > len(before)
	})
	if restarts := w.pod(t, pod).Status.ContainerStatuses[0].RestartCount; restarts != 0 {
		testenv.ForGood(t, "%s has lost its connection %d times:\n%s", pod, restarts, w.kubectl(t, "-n", "shop", "logs", pod, "--previous", "--tail=3"))
	}
}

// testEnroll labels a namespace whose pods run, with a connection open.
func (w *world) testEnroll(t *testing.T, server string) {
	w.enroll(t)
	w.notBroken(t, "holder")
	c := w.capture(t)
	for range 3 {
		if got, err := w.inPod(t, "client", "once", server+":7000", marker); err != nil || got != marker {
			t.Errorf("in the mesh: %q, %v", got, err)
		}
	}
	found := c.Stop(t, marker, only(server))
	if found.Markers != 0 {
		testenv.ForGood(t, "in the mesh: %s: want the marker in TLS only", found)
	}
	if found.TLSBytes == 0 {
		t.Errorf("nothing was carried: %s", found)
	}
	t.Log(found)
	out, err := w.node(t, "n2").Exec(t.Context(), onNode, "prove", "shop/server", "--socket", agent)
	if err != nil || !strings.Contains(strings.ToLower(out), "grandfathered") {
		t.Errorf("prove does not show the connection that was open: %v\n%s", err, out)
	}
	w.notBroken(t, "holder")
}

// eventually is testenv.Eventually for something that says why not yet.
func eventually(t *testing.T, limit time.Duration, what string, cond func() error) {
	t.Helper()
	var last error
	for deadline := time.Now().Add(limit); time.Now().Before(deadline); time.Sleep(200 * time.Millisecond) {
		if last = cond(); last == nil {
			return
		}
	}
	t.Fatalf("not within %v: %s: %v", limit, what, last)
}

// onlyInTheTunnel fails, for good, when what a capture was to hold has crossed between nodes in
// plaintext, and when it has not crossed at all.
func onlyInTheTunnel(t *testing.T, what string, found wire.Findings) {
	t.Helper()
	if err := found.Sealed(); err != nil {
		testenv.ForGood(t, "%s: %v", what, err)
	}
	if found.TLSBytes == 0 {
		t.Errorf("%s: nothing was carried: %s", what, found)
	}
	t.Logf("%s: %s", what, found)
}
