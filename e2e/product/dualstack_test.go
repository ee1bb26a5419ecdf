package product

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/e2e/cluster"
	"github.com/heddle-mesh/heddle/e2e/scenario/kubernetes"
	"github.com/heddle-mesh/heddle/e2e/testbed"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

// TestDualStack is a short life of Heddle where nodes, pods and services have addresses
// of both families. Kubelet's probes, and what agents and operators say to each other, go
// over the primary one: IPv6, and with HEDDLE_DUAL_STACK set (`make dual-stack`) then IPv4;
// and then where there is IPv6 alone.
func TestDualStack(t *testing.T) {
	clusters := [][]string{{"ipv6", "ipv4"}}
	if os.Getenv("HEDDLE_DUAL_STACK") != "" {
		clusters = append(clusters, []string{"ipv4", "ipv6"}, []string{"ipv6"})
	}
	for _, families := range clusters {
		name := strings.Join(families, "-")
		t.Run(name, func(t *testing.T) {
			d := &dualStack{world: newWorldOn(t, cluster.Options{Name: "ht-" + name, IPFamilies: families})}
			for _, f := range []family{{"ipv4", "four"}, {"ipv6", "six"}} {
				if slices.Contains(families, f.name) {
					d.families = append(d.families, f)
				}
			}
			d.live(t)
		})
	}
}

// family is one of addresses: its name, and that of services that have it alone.
type family struct{ name, service string }

func (f family) has(addr netip.Addr) bool { return addr.Is4() == (f.name == "ipv4") }

// dualStack is a cluster of both families, or of one, and what is in its namespace shop.
type dualStack struct {
	*world
	families []family
	servers  [2][]netip.Addr // of server-1 on n1 and server-2 on n2: one of each family
	services map[string][]netip.Addr
}

// yaml has a server on each node, with probes of every kind, who asks them, and
// services of all families in front of them.
func (d *dualStack) yaml() string {
	text := "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: outside}\n" +
		"---\napiVersion: v1\nkind: ServiceAccount\nmetadata: {name: guest, namespace: shop}\n" +
		podYAML("client", "n1", "", "wait") + podYAML("guest", "n1", "  serviceAccountName: guest\n", "wait") +
		strings.Replace(podYAML("stranger", "n1", "", "wait"), "namespace: shop", "namespace: outside", 1)
	for _, n := range []string{"1", "2"} {
		text += strings.Replace(podYAML("server-"+n, "n"+n, probes, "serve"), "labels: {", "labels: {tier: pair, ", 1)
	}
	specs := map[string]string{"all": "ipFamilyPolicy: PreferDualStack", "heads": "ipFamilyPolicy: PreferDualStack, clusterIP: None"}
	for _, f := range d.families {
		one := "ipFamilyPolicy: SingleStack, ipFamilies: [" + strings.Replace(f.name, "ip", "IP", 1) + "]"
		specs[f.service], specs["heads-"+f.service] = one, one+", clusterIP: None"
	}
	for name, spec := range specs {
		text += fmt.Sprintf("---\napiVersion: v1\nkind: Service\nmetadata: {name: %s, namespace: shop}\nspec: {selector: {tier: pair}, ports: [{port: 7000}], %s}\n", name, spec)
	}
	return text
}

func (d *dualStack) live(t *testing.T) {
	d.kubectl(t, "label", "nodes", "--all", "--overwrite", kubernetes.NodeLabel+"="+kubernetes.NodeLabelValue)
	d.apply(t, d.yaml())
	d.waitReady(t, "server-1", "server-2", "client", "guest")
	d.readAddresses(t)
	clean := nodeState(t, d.node(t, "n1")) + nodeState(t, d.node(t, "n2"))
	d.crossesInPlaintext(t)

	d.install(t)
	got := d.kubectl(t, "get", "mesh", "default", "-o", "jsonpath={.spec.clusterRanges[*]}")
	for _, f := range d.families {
		for _, want := range map[string][]string{"ipv4": {"10.244.0.0/16", "10.96.0.0/16"}, "ipv6": {"fd00:10:244::/48", "fd00:10:96::/108"}}[f.name] {
			if !slices.Contains(strings.Fields(got), want) {
				t.Errorf("spec.clusterRanges is %s, without %s", got, want)
			}
		}
	}
	d.cli(t, "enroll", "shop", "--strict", "--wait")

	t.Run("carried", func(t *testing.T) { d.testCarried(t) })
	t.Run("strict", func(t *testing.T) { d.testStrict(t) })
	t.Run("policies", func(t *testing.T) { d.testPolicies(t) })
	t.Run("new pods", func(t *testing.T) { d.testNewPods(t) })
	t.Run("probes", func(t *testing.T) { d.testProbes(t) })
	t.Run("what is said", func(t *testing.T) { d.testSaid(t) })
	d.kubectl(t, "-n", "shop", "delete", "pod", "fresh", "probed", "--now", "--ignore-not-found")
	d.uninstall(t)
	if left := difference(clean, nodeState(t, d.node(t, "n1"))+nodeState(t, d.node(t, "n2"))); left != "" {
		t.Errorf("after the uninstall the nodes differ:\n%s", left)
	}
	d.crossesInPlaintext(t)
}

func (d *dualStack) readAddresses(t *testing.T) {
	t.Helper()
	read := func(object, path string) (all []netip.Addr) {
		for _, text := range strings.Fields(d.kubectl(t, "-n", "shop", "get", object, "-o", "jsonpath={"+path+"}")) {
			if addr, err := netip.ParseAddr(text); err == nil { // "None"
				all = append(all, addr)
			}
		}
		slices.SortFunc(all, netip.Addr.Compare)
		return all
	}
	for i := range d.servers {
		d.servers[i] = read(fmt.Sprint("pod/server-", i+1), ".status.podIPs[*].ip")
		d.haveAll(t, fmt.Sprint("server-", i+1), d.servers[i], d.families)
	}
	d.services = map[string][]netip.Addr{}
	for name, families := range d.familiesOf() {
		d.services[name] = read("service/"+name, ".spec.clusterIPs[*]")
		d.haveAll(t, name, d.services[name], families)
	}
}

// familiesOf are the families of each service with an address of its own.
func (d *dualStack) familiesOf() map[string][]family {
	all := map[string][]family{"all": d.families}
	for _, f := range d.families {
		all[f.service] = []family{f}
	}
	return all
}

func (d *dualStack) haveAll(t *testing.T, who string, addresses []netip.Addr, families []family) {
	t.Helper()
	if !slices.EqualFunc(addresses, families, func(a netip.Addr, f family) bool { return f.has(a) }) {
		t.Fatalf("%s has the addresses %v, want one of each of %v", who, addresses, families)
	}
}

func echoAt(addr netip.Addr) string { return netip.AddrPortFrom(addr, 7000).String() }

// crossesInPlaintext shows that a capture sees what is not in the mesh, of each family.
func (d *dualStack) crossesInPlaintext(t *testing.T) {
	t.Helper()
	for _, addr := range d.servers[1] {
		c := d.capture(t)
		if _, err := d.inPod(t, "client", "once", echoAt(addr), marker); err != nil {
			t.Fatalf("without a mesh: %v", err)
		}
		if found := c.Stop(t, marker, only(addr.String())); found.Markers == 0 {
			t.Fatalf("without a mesh, to %s: %s: the capture shows nothing", addr, found)
		}
	}
}

// arrival is how a connection to an address of a server went.
type arrival struct{ server, transport, verdict, reason string }

// went are the flows of connections to port 7000 since then, by what the destination's address is.
func (d *dualStack) went(t *testing.T, since time.Time, flags ...string) map[netip.Addr]map[arrival]int {
	t.Helper()
	found := map[netip.Addr]map[arrival]int{}
	for _, node := range []string{"n1", "n2"} {
		args := append([]string{onNode, "flows", "--socket", agent, "--since", since.UTC().Format(time.RFC3339Nano), "--port", "7000", "--last", "1000", "-o", "json"}, flags...)
		out, err := d.node(t, node).Exec(t.Context(), args...)
		if err != nil {
			t.Fatalf("flows: %v: %s", err, out)
		}
		for dec := json.NewDecoder(strings.NewReader(out)); ; {
			var f testbed.Flow
			if err := dec.Decode(&f); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatalf("read flows: %v in %s", err, out)
			}
			at, err := netip.ParseAddrPort(f.Destination.Address)
			if err != nil {
				t.Fatalf("read flows: %v in %s", err, out)
			}
			if found[at.Addr()] == nil {
				found[at.Addr()] = map[arrival]int{}
			}
			found[at.Addr()][arrival{f.Destination.Workload, f.Transport, f.Verdict, f.Reason}]++
		}
	}
	return found
}

// testCarried: over each family, by pods' addresses, ClusterIPs and names, on one node
// and between nodes.
func (d *dualStack) testCarried(t *testing.T) {
	for i, f := range d.families {
		targets := []string{
			echoAt(d.servers[0][i]), echoAt(d.servers[1][i]), echoAt(d.services["all"][i]), echoAt(d.services[f.service][0]),
			f.service + ".shop.svc.cluster.local.:7000", "heads-" + f.service + ".shop.svc.cluster.local.:7000",
		}
		// With a dozen to each service, that a server gets none of fifty is chance no more.
		c, since := d.capture(t), time.Now()
		out, err := d.inPod(t, "client", append([]string{"each", "12"}, targets...)...)
		if err != nil {
			t.Fatalf("over %s: %v\n%s", f.name, err, out)
		}
		if _, err := d.inPod(t, "client", "once", echoAt(d.servers[1][i]), marker); err != nil {
			t.Fatal(err)
		}
		onlyInTheTunnel(t, "over "+f.name, c.Stop(t, marker, only(d.servers[1][i].String())))
		found := d.went(t, since, "--workload", "shop/client", "--direction", "outbound,local")
		for n, transport := range []string{"splice", "tunnel"} {
			at, want := d.servers[n][i], arrival{fmt.Sprint("shop/server-", n+1), transport, "allow", "NoPolicy"}
			if found[at][want] < 12 || len(found[at]) != 1 {
				t.Errorf("over %s, to %s: %v, want all to be %v", f.name, at, found[at], want)
			}
			delete(found, at)
		}
		if len(found) != 0 {
			t.Errorf("over %s, connections went elsewhere: %v", f.name, found)
		}
	}
	for name, want := range map[string][]netip.Addr{"all": d.services["all"], "six": d.services["six"], "heads": append(slices.Clone(d.servers[0]), d.servers[1]...)} {
		got, err := d.inPod(t, "client", "resolve", name+".shop.svc.cluster.local.")
		for _, addr := range want {
			if err != nil || !slices.Contains(strings.Fields(got), addr.String()) || len(strings.Fields(got)) != len(want) {
				t.Errorf("%s is %q, want %v (%v)", name, got, want, err)
			}
		}
	}
}

// testStrict: a pod outside of the mesh is not answered, over either family, on the
// server's node or another one; nor is who has no pod.
func (d *dualStack) testStrict(t *testing.T) {
	since := time.Now()
	for _, addr := range slices.Concat(d.servers[0], d.servers[1], d.services["all"]) {
		if out, err := d.Kubectl(t.Context(), "", "-n", "outside", "exec", "stranger", "--", "/program", "once", echoAt(addr), marker, "1s"); err == nil {
			t.Errorf("a pod outside of the mesh is answered at %s: %s", addr, out)
		}
	}
	for _, addr := range d.servers[1] {
		if out, err := d.node(t, "cp").Exec(t.Context(), "timeout", "2", "bash", "-c", "exec 3<>/dev/tcp/"+addr.String()+"/7000"); err == nil {
			t.Errorf("a machine outside of the mesh is answered at %s: %s", addr, out)
		}
	}
	eventually(t, 10*time.Second, "flows say what was refused", func() error {
		found := d.went(t, since, "--verdict", "deny")
		for i := range d.servers {
			for _, addr := range d.servers[i] {
				if found[addr][arrival{fmt.Sprint("shop/server-", i+1), "none", "deny", "KernelPlaintextInbound"}] == 0 {
					return fmt.Errorf("at %s: %v", addr, found[addr])
				}
			}
		}
		return nil
	})
}

// askBoth asks as a pod at each server's address of a family.
func (d *dualStack) askBoth(t *testing.T, pod string, family int) error {
	var wrong []error
	for i := range d.servers {
		if got, err := d.inPod(t, pod, "once", echoAt(d.servers[i][family]), marker, "2s"); err != nil || got != marker {
			wrong = append(wrong, fmt.Errorf("server-%d: %q: %w", i+1, got, err))
		}
	}
	return errors.Join(wrong...)
}

// isAnswered waits until pods are answered by both servers over these families, and by
// neither over another one.
func (d *dualStack) isAnswered(t *testing.T, when string, want map[string][]string) {
	t.Helper()
	for pod, over := range want {
		for i, f := range d.families {
			answered := slices.Contains(over, f.name)
			eventually(t, 20*time.Second, fmt.Sprintf("%s, %s is answered over %s: %v", when, pod, f.name, answered), func() error {
				err := d.askBoth(t, pod, i)
				if joined, ok := err.(interface{ Unwrap() []error }); answered && err != nil || !answered && (!ok || len(joined.Unwrap()) != 2) {
					return fmt.Errorf("it says %w", err)
				}
				return nil
			})
		}
	}
}

// testPolicies: by identity, over whichever family; by addresses of one family.
func (d *dualStack) testPolicies(t *testing.T) {
	d.apply(t, `apiVersion: heddle.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: no-guests, namespace: shop}
spec:
  selector: {matchLabels: {tier: pair}}
  action: DENY
  rules: [{from: [{identities: ["spiffe://cluster.local/ns/shop/sa/guest"]}]}]
`)
	every := []string{"ipv4", "ipv6"}
	d.isAnswered(t, "by an AuthorizationPolicy", map[string][]string{"guest": {}, "client": every})
	d.kubectl(t, "-n", "shop", "delete", "authorizationpolicy", "no-guests")
	d.isAnswered(t, "without a policy", map[string][]string{"guest": every})

	six := len(d.families) - 1
	guest := d.kubectl(t, "-n", "shop", "get", "pod", "guest", "-o", `jsonpath={.status.podIPs[*].ip}`)
	excepted := strings.Fields(guest)[slices.IndexFunc(strings.Fields(guest), func(a string) bool { return strings.Contains(a, ":") })]
	d.apply(t, `apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: six, namespace: shop}
spec: {podSelector: {matchLabels: {tier: pair}}, policyTypes: [Ingress], ingress: [{from: [{ipBlock: {cidr: "fd00:10:244:1::/64", except: ["`+excepted+`/128"]}}], ports: [{port: 7000}]}]}
`)
	d.isAnswered(t, "by a NetworkPolicy", map[string][]string{"guest": {}, "client": {"ipv6"}})
	for pod, want := range map[string]string{"client": "allowed:", "guest": "refused: NetworkPolicyIngress"} {
		if said := d.told(t, "explain", "shop/"+pod, echoAt(d.servers[1][six])); !strings.Contains(said, want) {
			t.Errorf("explain does not say %q of %s:\n%s", want, pod, said)
		}
	}
	if said := d.told(t, "analyze"); !strings.Contains(said, "cidr: fd00:10:244:1::/64") || !strings.Contains(said, "port: 15008") {
		t.Errorf("analyze does not say what opens the tunnel to these addresses:\n%s", said)
	}
	d.kubectl(t, "-n", "shop", "delete", "networkpolicy", "six")
	d.isAnswered(t, "without a policy", map[string][]string{"guest": every, "client": every})
}

// told is what `heddle` says, which ends with 1 when a connection is refused or cut off.
func (d *dualStack) told(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), d.heddle, append(args, "--kubeconfig", d.Kubeconfig())...).Output()
	if exit, ok := errors.AsType[*exec.ExitError](err); err != nil && (!ok || exit.ExitCode() != 1) {
		t.Errorf("heddle %v: %v", args, err)
	}
	return string(out)
}

// testNewPods: those that come into the mesh before their first packet.
func (d *dualStack) testNewPods(t *testing.T) {
	c, to := d.capture(t), d.servers[1][len(d.families)-1]
	d.apply(t, podYAML("fresh", "n1", "", "dial", echoAt(to))+podYAML("probed", "n2", probes, "serve"))
	d.waitReady(t, "fresh", "probed")
	if said := d.logs(t, "fresh"); !strings.Contains(said, "first packet: first <nil>") {
		t.Errorf("the first connection of a new pod: %s", said)
	}
	onlyInTheTunnel(t, "a new pod's first packets", c.Stop(t, "first\n", only(to.String())))
}

// testProbes: all of kubelet's pass, over the primary family.
func (d *dualStack) testProbes(t *testing.T) {
	since := time.Now()
	time.Sleep(4 * time.Second) // liveness would have failed three times
	for _, name := range []string{"server-1", "server-2", "probed"} {
		if pod := d.pod(t, name); !pod.ready() || pod.Status.ContainerStatuses[0].RestartCount != 0 {
			t.Errorf("%s: %+v\n%s", name, pod.Status, d.events(t, name))
		}
	}
	primary := netip.MustParseAddr(d.pod(t, "server-1").Status.PodIP)
	found := d.went(t, since, "--reason", "Probe")
	if found[primary][arrival{"shop/server-1", "plaintext", "allow", "Probe"}] == 0 {
		t.Errorf("no probe of server-1 came over its primary family, at %s: %v", primary, found)
	}
}

// testSaid: what `heddle` says of all this is true.
func (d *dualStack) testSaid(t *testing.T) {
	if said := d.cli(t, "check"); !strings.Contains(said, "All is well.") {
		t.Error("check does not say that all is well")
	}
	if said := d.cli(t, "analyze"); !strings.Contains(said, "Nothing is cut off.") {
		t.Error("analyze says that something is cut off")
	}
	said := d.cli(t, "prove", "shop/server-2")
	for _, want := range []string{"gate in place", "KernelPlaintextInbound", "probe"} {
		if !strings.Contains(said, want) {
			t.Errorf("prove does not show %q", want)
		}
	}
	for _, wrong := range []string{"grandfathered", "permissive", "PERMISSIVE"} {
		if strings.Contains(said, wrong) {
			testenv.ForGood(t, "prove shows %q", wrong)
		}
	}
	for i := range d.servers[1] {
		at := echoAt(d.servers[1][i])
		if said := d.told(t, "explain", "shop/client", at); !strings.Contains(said, "allowed: NoPolicy") || !strings.Contains(said, "tunnel") {
			t.Errorf("explain of %s:\n%s", at, said)
		}
		if said := d.told(t, "explain", "outside/stranger", at); !strings.Contains(said, "refused: StrictPlaintext") {
			t.Errorf("explain of %s from outside:\n%s", at, said)
		}
	}
}
