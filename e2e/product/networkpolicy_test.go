package product

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/e2e/cluster"
	"github.com/heddle-mesh/heddle/e2e/cluster/build"
	"github.com/heddle-mesh/heddle/e2e/scenario/kubernetes"
)

// enforcerYAML is who kube-router is to the API server: it reads what its own manifests
// have it read.
const enforcerYAML = `apiVersion: v1
kind: ServiceAccount
metadata: {name: kube-router, namespace: kube-system}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: kube-router}
rules:
- {apiGroups: [""], resources: [namespaces, pods, services, nodes, endpoints], verbs: [list, get, watch]}
- {apiGroups: [networking.k8s.io], resources: [networkpolicies], verbs: [list, get, watch]}
- {apiGroups: [discovery.k8s.io], resources: [endpointslices], verbs: [list, get, watch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: kube-router}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: kube-router}
subjects: [{kind: ServiceAccount, name: kube-router, namespace: kube-system}]
`

// serverIn admits one port of the server for each of two clients, and clientOut lets the one
// out to its port, as people write it who know of no mesh.
const (
	serverIn = `apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: server-in, namespace: shop}
spec:
  podSelector: {matchLabels: {app: server}}
  ingress:
  - {from: [{podSelector: {matchLabels: {app: client}}}], ports: [{port: 7000}]}
  - {from: [{podSelector: {matchLabels: {app: other}}}], ports: [{port: 7001}]}
`
	clientOut = `apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: client-out, namespace: shop}
spec:
  podSelector: {matchLabels: {app: client}}
  policyTypes: [Egress]
  egress:
  - {to: [{podSelector: {matchLabels: {app: server}}}], ports: [{port: 7000}]}
`
)

// plaintextToo has nobody kept out for want of an identity: what is kept out is by policies.
const plaintextToo = `apiVersion: heddle.dev/v1alpha1
kind: PeerAuthentication
metadata: {name: all, namespace: shop}
spec: {mode: PERMISSIVE}
`

// TestNetworkPoliciesOfTheNetwork has kube-router enforce NetworkPolicies on the nodes, as a
// CNI does: what `heddle analyze` names is what blocks the tunnel, and what it prints, applied
// as it is, opens the tunnel and no port of an application.
func TestNetworkPoliciesOfTheNetwork(t *testing.T) {
	w := newWorld(t)
	clients := podYAML("client", "n1", "", "wait") + podYAML("other", "n1", "", "wait") + podYAML("stranger", "n1", "", "wait")
	w.kubectl(t, "label", "nodes", "--all", "--overwrite", kubernetes.NodeLabel+"="+kubernetes.NodeLabelValue)
	w.apply(t, "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n"+
		podYAML("server", "n2", "", "serve")+clients+strings.Replace(podYAML("outside", "n1", "", "wait"), "labels: {", "labels: {heddle.dev/mesh: disabled, ", 1))
	w.waitReady(t, "server", "client", "other", "stranger", "outside")
	w.enforce(t)
	server := w.pod(t, "server").Status.PodIP

	// Without Heddle: kube-router does what a policy says.
	w.reaches(t, "without a policy", server, "client 7000", "other 7000", "stranger 7001", "outside 7000")
	w.apply(t, serverIn)
	closed := []string{"client 7001", "other 7000", "stranger 7000", "stranger 7001", "outside 7000"}
	w.isKeptFrom(t, "by the policy, without Heddle", server, closed...)
	w.reaches(t, "by the policy, without Heddle", server, "client 7000", "other 7001")
	w.kubectl(t, "-n", "shop", "delete", "networkpolicy", "server-in")

	w.install(t)
	w.apply(t, plaintextToo)
	w.cli(t, "enroll", "shop", "--wait")
	w.reaches(t, "in the mesh, without a policy", server, "client 7000", "other 7001", "stranger 7000", "outside 7000")

	for _, one := range []struct {
		name, policy string
		cutOff       []string
	}{
		{"server-in", serverIn, []string{"client 7000", "other 7001"}},
		{"client-out", clientOut, []string{"client 7000"}},
	} {
		w.apply(t, one.policy)
		w.isKeptFrom(t, "in the mesh, by "+one.name, server, closed...)
		// What is open goes on in the network, and with it the tunnels from before.
		w.reaches(t, "over tunnels from before "+one.name, server, "client 7000", "other 7001")
		w.kubectl(t, "-n", "shop", "delete", "pod", "client", "other", "stranger", "--now")
		w.apply(t, clients)
		w.waitReady(t, "client", "other", "stranger")
		w.isKeptFrom(t, "in the mesh, by "+one.name, server, append(one.cutOff, closed...)...)
		w.flowsSay(t, "client", "7000", "PeerUnreachable")
		fixes := w.analyzed(t, one.name)
		w.apply(t, fixes)
		w.reaches(t, "with what analyze has printed for "+one.name, server, "client 7000", "other 7001")
		w.isKeptFrom(t, "with what analyze has printed for "+one.name, server, append(closed, "outside 15008", "stranger 15008")...)
	}
	// The tunnel is open to these two: it is their agents that hold them to their ports.
	w.flowsSay(t, "other", "7000", "PeerRefused")
	w.flowsSay(t, "client", "7001", "NetworkPolicyEgress")
	if fixes := w.cli(t, "analyze", "-n", "shop"); !strings.Contains(fixes, "Nothing is cut off.") {
		t.Errorf("with all of it applied, analyze says\n%s", fixes)
	}
}

// enforce runs kube-router on all workers until the test's end.
func (w *world) enforce(t *testing.T) {
	t.Helper()
	program, err := build.Enforcer(t.Context(), w.root, func(line string) { t.Log(line) })
	if err != nil {
		t.Fatal(err)
	}
	w.apply(t, enforcerYAML)
	token := strings.TrimSpace(w.kubectl(t, "-n", "kube-system", "create", "token", "kube-router", "--duration=2h"))
	for _, n := range w.Nodes() {
		w.enforceOn(t, n, program, token)
	}
}

// enforceOn runs kube-router on a node. Its rules stay, as those of a CNI do: the cluster goes
// with the test.
func (w *world) enforceOn(t *testing.T, n *cluster.Node, program, token string) {
	t.Helper()
	const folder = "/opt/enforcer"
	w.put(t, n, program, folder+"/kube-router")
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	text := fmt.Sprintf(`{"apiVersion":"v1","kind":"Config","current-context":"c","clusters":[{"name":"c","cluster":{"server":"https://%s:6443","certificate-authority":"/run/cluster/pki/ca.crt"}}],`+
		`"users":[{"name":"u","user":{"token":%q}}],"contexts":[{"name":"c","context":{"cluster":"c","user":"u"}}]}`, w.node(t, "cp").Address(), token)
	if err := os.WriteFile(kubeconfig, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	w.put(t, n, kubeconfig, folder+"/kubeconfig")
	run := func(ctx context.Context, command string) {
		if out, err := n.Exec(ctx, "sh", "-c", "cd "+folder+" && "+command); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
	}
	run(t.Context(), "setsid ./kube-router --run-firewall --run-router=false --run-service-proxy=false --kubeconfig=kubeconfig --hostname-override="+n.Name()+" -v=1 </dev/null >log 2>&1 & echo $! >"+folder+"/pid")
	t.Cleanup(func() {
		if t.Failed() {
			run(context.Background(), "tail -n 40 log >&2; false")
		}
		run(context.Background(), "kill $(cat pid)")
	})
}

// tries has pods connect to ports of an address, each "POD PORT". The error has those that were
// answered and should not be, or the other way round.
func (w *world) tries(t *testing.T, address string, wanted bool, all []string) error {
	var wrong []string
	for _, one := range all {
		pod, port, _ := strings.Cut(one, " ")
		got, err := w.inPod(t, pod, "once", address+":"+port, marker, "2s")
		if (err == nil && got == marker) != wanted {
			wrong = append(wrong, fmt.Sprintf("%s: %q, %v", one, got, err))
		}
	}
	if wrong != nil {
		return errors.New(strings.Join(wrong, "\n"))
	}
	return nil
}

// reaches waits until pods reach ports of an address.
func (w *world) reaches(t *testing.T, when, address string, all ...string) {
	t.Helper()
	eventually(t, 30*time.Second, when+": all of it is answered", func() error { return w.tries(t, address, true, all) })
}

// isKeptFrom waits until pods do not reach ports of an address.
func (w *world) isKeptFrom(t *testing.T, when, address string, all ...string) {
	t.Helper()
	eventually(t, 30*time.Second, when+": none of it is answered", func() error { return w.tries(t, address, false, all) })
}

// flowsSay fails unless a flow from a pod, as it is now, to a port of the server was refused for a reason.
func (w *world) flowsSay(t *testing.T, pod, port, reason string) {
	t.Helper()
	from := w.pod(t, pod).Status.PodIP + ":"
	eventually(t, 10*time.Second, fmt.Sprintf("flows say %s of %s to port %s", reason, pod, port), func() error {
		said := w.cli(t, "flows", "-n", "shop", "--verdict", "deny", "--reason", reason, "--last", "30", "-o", "json")
		for line := range strings.Lines(said) {
			var f struct {
				Source, Destination struct{ Address string }
			}
			if json.Unmarshal([]byte(line), &f) == nil && strings.HasPrefix(f.Source.Address, from) && strings.HasSuffix(f.Destination.Address, ":"+port) {
				t.Log(line)
				return nil
			}
		}
		return errors.New(said)
	})
}

// analyzed has analyze name one policy and nothing else, and returns what it prints to apply.
func (w *world) analyzed(t *testing.T, policy string) string {
	t.Helper()
	said, err := exec.CommandContext(t.Context(), w.heddle, "analyze", "-n", "shop", "--kubeconfig", w.Kubeconfig()).Output()
	t.Logf("heddle analyze: %v\n%s", err, said)
	if err == nil || strings.Count(string(said), "cut off ") != 1 || !strings.Contains(string(said), "cut off NetworkPolicy shop/"+policy+",") {
		t.Errorf("analyze names not %s alone: %v\n%s", policy, err, said)
	}
	fixes, _ := w.objectsPrinted(t, "analyze", "-n", "shop", "--fixes")
	return fixes
}
