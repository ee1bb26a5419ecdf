package product

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/agent/cni/chain"
	"github.com/heddle-mesh/heddle/e2e/scenario/kubernetes"
	"github.com/heddle-mesh/heddle/e2e/wire"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

// testRuntimeRestart: while containerd dies and comes back, traffic goes on; new pods
// are enrolled afterwards, and when they are gone the agent holds what it held before.
func (w *world) testRuntimeRestart(t *testing.T, server string) {
	w.apply(t, podYAML("carried", "n1", itsShare, "load", server+":7000", "2", "10"))
	w.waitReady(t, "carried")
	before := w.steady(t, "n1")
	for n := range 3 {
		if _, err := w.node(t, "n1").Exec(t.Context(), "bash", "-c", "kill -9 $(pidof containerd)"); err != nil {
			t.Fatal(err)
		}
		w.unharmed(t, "n1", "carried", true)
		name := fmt.Sprintf("after-%d", n)
		w.apply(t, podYAML(name, "n1", "", "dial", server+":7000"))
		w.waitReady(t, name)
		w.enrolled(t, "n1", "shop/"+name)
		w.kubectl(t, "-n", "shop", "delete", "pod", name, "--now")
	}
	eventually(t, patience, "containerd's restarts leave nothing behind on n1", func() error {
		now, err := w.held(t, "n1")
		if err != nil {
			return err
		}
		return now.above(before)
	})
	w.unharmed(t, "n1", "carried", true)
	w.kubectl(t, "-n", "shop", "delete", "pod", "carried", "--now")
}

// network is the file of the cluster's CNI configuration, copied is the agent's copy of
// it, and plugin is what that has more.
const (
	network = "/etc/cni/net.d/10-pods.conflist"
	copied  = "/etc/cni/net.d/" + chain.Own
	plugin  = `"heddle-cni"`
)

// onDisk reads a file of a node.
func (w *world) onDisk(t *testing.T, node, file string) string {
	t.Helper()
	text, err := w.node(t, node).Exec(t.Context(), "cat", file)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// testRewrite: another tool writes its CNI configuration anew, without heddle-cni, again
// and again. Pods that start meanwhile are enrolled before their first packet.
func (w *world) testRewrite(t *testing.T, server string) {
	if w.onDisk(t, "n1", network) != w.network || !strings.Contains(w.onDisk(t, "n1", copied), plugin) {
		t.Fatalf("want %s as it was, and heddle-cni in %s:\n%s", network, copied, w.network)
	}
	rewrites := w.rewriting(t)
	c := w.capture(t)
	names := []string{"rewritten-0", "rewritten-1", "rewritten-2"}
	for _, name := range names {
		w.apply(t, podYAML(name, "n1", "", "dial", server+":7000"))
		w.waitReady(t, name)
		w.enrolled(t, "n1", "shop/"+name)
		if said := w.logs(t, name); !strings.Contains(said, "first packet: first <nil>") {
			t.Errorf("the first connection of %s: %s", name, said)
		}
	}
	said := rewrites()
	if n := strings.Count(said, "written\n"); n < 20 || strings.Contains(said, "open") {
		t.Errorf("%d rewrites; a runtime saw:\n%s", n, strings.ReplaceAll(said, "written\n", ""))
	}
	onlyInTheTunnel(t, "those pods' first packets", c.Stop(t, "first\n", among(w.addresses(t, names))))
	w.kubectl(t, append([]string{"-n", "shop", "delete", "--now", "pod"}, names...)...)
	w.testTakenOut(t, server)
}

// rewriting has n1's CNI configuration written anew, over and over, until the func that
// it returns is called, which gives what was seen meanwhile.
func (w *world) rewriting(t *testing.T) (stop func() string) {
	t.Helper()
	const over = `while [ ! -e /run/rewritten ]; do
cp /run/network /run/network.new; mv /run/network.new ` + network + `; echo written
grep -q heddle-cni ` + copied + ` || echo open
cat /run/network > ` + network + `; echo written
sleep 0.05; done`
	cmd, err := w.node(t, "n1").Command(t.Context(), "sh", "-c", "cat > /run/network && rm -f /run/rewritten && "+over)
	if err != nil {
		t.Fatal(err)
	}
	var said strings.Builder
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(w.network), &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return func() string {
		t.Helper()
		if _, err := w.node(t, "n1").Exec(t.Context(), "touch", "/run/rewritten"); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("%v: %s", err, said.String())
		}
		return said.String()
	}
}

// testTakenOut: somebody takes heddle-cni out of the chain while the agent cannot see it,
// and a pod starts in that window. The agent puts heddle-cni back, and finds the pod at
// once, not at its next look.
func (w *world) testTakenOut(t *testing.T, server string) {
	n1 := w.node(t, "n1")
	if out, err := n1.Exec(t.Context(), "bash", "-c", agentPID+"; kill -STOP $pid && rm "+copied); err != nil {
		t.Fatal(err, out)
	}
	w.apply(t, podYAML("window", "n1", "", "wait"))
	w.waitReady(t, "window") // nobody holds it
	if out, err := n1.Exec(t.Context(), "bash", "-c", agentPID+"; kill -CONT $pid"); err != nil {
		t.Fatal(err, out)
	}
	started := time.Now()
	w.enrolled(t, "n1", "shop/window")
	took := time.Since(started)
	t.Logf("a pod that started without heddle-cni is enrolled %v after the agent could see that", took.Round(10*time.Millisecond))
	if took > 5*time.Second && !testenv.Overloaded(t) {
		t.Errorf("a pod that started without heddle-cni was in plaintext for %v", took)
	}
	if now := w.onDisk(t, "n1", copied); !strings.Contains(now, plugin) {
		t.Errorf("heddle-cni is not put back: %s", now)
	}
	if _, err := w.inPod(t, "window", "once", server+":7000", marker); err != nil {
		t.Error(err)
	}
	w.kubectl(t, "-n", "shop", "delete", "pod", "window", "--now")
}

// testReboot reboots a node again and again, under traffic to its pods and from them:
// while it boots, and they come up before, beside or after its agent, not a byte leaves
// them in plaintext. The cluster's CNI writes its file anew at each boot. `make chaos` sets more than two,
// and has it shown before that the same capture sees them without the copy.
func (w *world) testReboot(t *testing.T) { w.reboots(t, fromEnvironment(t, "HEDDLE_REBOOTS", 2)) }

func (w *world) reboots(t *testing.T, reboots int) {
	t.Helper()
	w.apply(t, serviceOf("server"))
	service := w.kubectl(t, "-n", "shop", "get", "service", "server", "-o", "jsonpath={.spec.clusterIP}")
	w.apply(t, podYAML("anchor", "n1", itsShare, "serve")+podYAML("pursuer", "n1", itsShare, "load", service+":7000", "2", "10"))
	w.waitReady(t, "anchor", "pursuer")
	anchor := w.pod(t, "anchor").Status.PodIP
	w.apply(t, podYAML("eager", "n2", itsShare, "load", anchor+":7000", "2", "10"))
	w.waitReady(t, "eager")
	if os.Getenv("HEDDLE_REBOOT_CONTROL") != "" {
		w.rebootWithoutCopy(t)
	}
	encrypted := 0
	for n := range reboots {
		encrypted += w.reboot(t, n+1)
	}
	t.Logf("%d reboots: 0 plaintext bytes left the node's pods, %d bytes crossed in TLS", reboots, encrypted)
	w.kubectl(t, "-n", "shop", "delete", "service/server", "pod/anchor", "pod/pursuer", "pod/eager", "--now")
}

// rebootWithoutCopy shows what testReboot would see without what it is a test of: the node
// boots without an agent, its pods wait for as long as the copy of the CNI's file is
// there, and once it is not, they are in plaintext on the wire.
func (w *world) rebootWithoutCopy(t *testing.T) {
	t.Helper()
	// Or the anchor would not answer what is not from the mesh.
	w.apply(t, "---\napiVersion: heddle.dev/v1alpha1\nkind: PeerAuthentication\nmetadata: {name: control, namespace: shop}\nspec: {mode: PERMISSIVE}\n")
	n2 := w.node(t, "n2")
	w.kubectl(t, "label", "node", "n2", kubernetes.NodeLabel+"-")
	testenv.Eventually(t, patience, "n2 has no agent", func() bool {
		return w.kubectl(t, "-n", "heddle-system", "get", "pods", "-l", "app.kubernetes.io/component=agent", "--field-selector", "spec.nodeName=n2", "-o", "name") == ""
	})
	if err := n2.Reboot(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.putCLI(t, n2)
	eventually(t, patience, "heddle-cni holds the pod back", func() error {
		said := w.kubectl(t, "-n", "shop", "get", "events", "--field-selector", "involvedObject.name=eager,reason=FailedCreatePodSandBox", "-o", "jsonpath={.items[*].message}")
		if !strings.Contains(said, "waits for the node's Heddle agent") {
			return fmt.Errorf("events: %q", said)
		}
		return nil
	})
	if w.pod(t, "eager").ready() {
		t.Error("the pod runs without an agent, though the copy is there")
	}
	c := w.capture(t)
	if _, err := n2.Exec(t.Context(), "rm", copied); err != nil {
		t.Fatal(err)
	}
	eventually(t, 2*time.Minute, "the pod runs without heddle-cni", func() error {
		if p := w.pod(t, "eager"); !p.ready() || p.Status.PodIP == "" {
			return fmt.Errorf("%+v", p.Status)
		}
		if counts := w.counted(t, "eager"); counts["opened"] == 0 {
			return fmt.Errorf("%v", counts)
		}
		return nil
	})
	addresses := w.addresses(t, []string{"eager"})
	found := c.Stop(t, spoken, among(addresses))
	t.Logf("without the copy: %s", found)
	if found.Markers == 0 || !slices.ContainsFunc(found.PlaintextFlows, leaving(addresses, w.apiServer(t))) {
		t.Errorf("without the copy the capture shows nothing: %s %v", found, found.PlaintextFlows)
	}
	w.kubectl(t, "label", "node", "n2", kubernetes.NodeLabel+"="+kubernetes.NodeLabelValue)
	w.enrolled(t, "n2", "shop/server", "shop/eager")
	w.kubectl(t, "-n", "shop", "delete", "peerauthentication", "control")
}

// serviceOf is a service of the pods that a label names.
func serviceOf(app string) string {
	return fmt.Sprintf("---\napiVersion: v1\nkind: Service\nmetadata: {name: %[1]s, namespace: shop}\nspec:\n  selector: {app: %[1]s}\n  ports: [{port: 7000}]\n", app)
}

// spoken is in each message that the pods under load exchange over a connection of its own.
const spoken = "opened\n"

// reboot cuts a node's power, and returns how many bytes its pods then exchanged in TLS.
func (w *world) reboot(t *testing.T, n int) int {
	t.Helper()
	pods := []string{"server", "eager"}
	addresses := w.addresses(t, pods)
	c := w.capture(t)
	started := time.Now()
	if err := w.node(t, "n2").Reboot(t.Context()); err != nil {
		t.Fatal(err)
	}
	if now := w.onDisk(t, "n2", network); strings.Contains(now, plugin) {
		t.Errorf("the boot has not written the CNI's file anew: %s", now)
	}
	w.putCLI(t, w.node(t, "n2"))
	eventually(t, 2*time.Minute, "the server is back in the mesh", func() error {
		p := w.pod(t, "server")
		if !p.ready() || p.Status.PodIP == "" {
			return fmt.Errorf("%+v", p.Status)
		}
		_, err := w.inPod(t, "client", "once", p.Status.PodIP+":7000", marker)
		return err
	})
	w.enrolled(t, "n2", "shop/server", "shop/eager")
	eventually(t, patience, "the node's pods reach others", func() error {
		if counts := w.counted(t, "eager"); counts["exchanges"] == 0 || counts["opened"] == 0 {
			return fmt.Errorf("%v", counts)
		}
		return nil
	})
	addresses = append(addresses, w.addresses(t, pods)...)
	found := c.Stop(t, spoken, among(addresses))
	t.Logf("reboot %d: from the power cut to the first answer and the first question: %v; at these pods' addresses, before, between and after them others': %s", n, time.Since(started).Round(time.Second), found)
	leaves := leaving(addresses, w.apiServer(t))
	left := slices.DeleteFunc(slices.Clone(found.PlaintextFlows), func(flow string) bool { return !leaves(flow) })
	if found.Markers != 0 || len(left) > 0 {
		testenv.ForGood(t, "around reboot %d: %s; left these pods in plaintext: %v", n, found, left)
	}
	if len(found.PlaintextFlows) == wire.MaxNamed || found.TLSBytes == 0 {
		t.Errorf("around reboot %d: too much, or nothing, to judge by: %s", n, found)
	}
	return found.TLSBytes
}

// leaving returns what says of a flow in plaintext that a pod of the mesh has sent it.
// Addresses are given anew: one of them may have been, or be, a pod's that is not in the
// mesh, which talks to the API server, asks or answers for names, or is the operator. And others may
// still send to whoever had the address before the power cut; its gate drops that.
func leaving(addresses []string, apiServer string) func(flow string) bool {
	return func(flow string) bool {
		from, to, _ := strings.Cut(flow, " -> ")
		if to == apiServer || !slices.ContainsFunc(addresses, func(a string) bool { return strings.HasPrefix(from, a+":") }) {
			return false
		}
		return !slices.ContainsFunc([]string{":53", ":15012"}, func(port string) bool {
			return strings.HasSuffix(from, port) || strings.HasSuffix(to, port)
		})
	}
}

// TestLeaving: only what is known not to be the mesh's is passed over.
func TestLeaving(t *testing.T) {
	leaves := leaving([]string{"10.1.0.4"}, "192.168.4.1:6443")
	for flow, want := range map[string]bool{
		"10.1.0.4:7000 -> 10.1.1.9:40000":    true,
		"10.1.0.4:40000 -> 10.1.1.9:7000":    true,
		"10.1.0.4:40000 -> 10.1.1.9:8080":    true,
		"10.1.0.4:40000 -> 10.1.1.9:6443":    true,
		"10.1.0.4:40000 -> 10.1.1.9:5353":    true,
		"10.1.0.40:40000 -> 10.1.1.9:7000":   false,
		"10.1.1.9:7000 -> 10.1.0.4:40000":    false,
		"10.1.0.4:40000 -> 192.168.4.1:6443": false,
		"10.1.0.4:40000 -> 10.1.1.9:53":      false,
		"10.1.0.4:53 -> 10.1.1.9:40000":      false,
		"10.1.0.4:40000 -> 10.1.1.9:15012":   false,
	} {
		if got := leaves(flow); got != want {
			t.Errorf("%s: %v, want %v", flow, got, want)
		}
	}
}

// apiServer is where connections to the API server's service arrive.
func (w *world) apiServer(t *testing.T) string {
	t.Helper()
	return w.kubectl(t, "get", "endpointslices", "-l", "kubernetes.io/service-name=kubernetes", "-o", "jsonpath={.items[0].endpoints[0].addresses[0]}:{.items[0].ports[0].port}")
}

// addresses of pods of the namespace shop.
func (w *world) addresses(t *testing.T, pods []string) (all []string) {
	t.Helper()
	for _, name := range pods {
		all = append(all, w.pod(t, name).Status.PodIP)
	}
	return all
}
