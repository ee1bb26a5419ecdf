package product

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// testOnCall is what a person sees who is called: how the mesh is, what became of each
// policy, as real agents say it, where a connection goes, and what refuses it.
func (w *world) testOnCall(t *testing.T, server string) {
	w.wellAsKubectlSays(t)
	w.explained(t, 0, "tunnel", "shop/client", "shop/server:7000")

	w.apply(t, `apiVersion: heddle.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: web, namespace: shop}
spec:
  selector: {matchLabels: {app: server}}
  action: DENY
  rules: [{from: [{identities: ["spiffe://cluster.local/ns/shop/sa/default"]}]}]
`)
	// As docs/install.md has it.
	for _, condition := range []string{"Accepted", "Live"} {
		w.kubectl(t, "wait", "--for=condition="+condition, "authorizationpolicy/web", "-n", "shop", "--timeout="+patience.String())
	}
	if live := w.kubectl(t, "-n", "shop", "get", "authorizationpolicy", "web", "-o", "jsonpath={.status.nodes.live}/{.status.nodes.wanted}"); live != "1/1" {
		t.Errorf("a policy about one pod is live on %s nodes", live)
	}
	w.explained(t, 1, "shop/web", "shop/client", "shop/server:7000")
	if out, err := w.inPod(t, "client", "once", server+":7000", marker); err == nil {
		t.Errorf("a connection that is said to be refused works: %s", out)
	}
	w.kubectl(t, "-n", "shop", "delete", "authorizationpolicy", "web")
	w.works(t, "client", server+":7000")
	t.Run("a policy changes", func(t *testing.T) { w.testPolicyChange(t, server) })
	t.Run("a policy that cannot be in force", w.testRefusedPolicy)
	t.Run("the leader goes", w.testLeaderGoes)
}

// wellAsKubectlSays calls `heddle status` as kubectl's plugin.
func (w *world) wellAsKubectlSays(t *testing.T) {
	t.Helper()
	folder := t.TempDir()
	if err := os.Symlink(w.heddle, filepath.Join(folder, "kubectl-heddle")); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), w.KubectlPath(), "heddle", "status", "--kubeconfig", w.Kubeconfig())
	cmd.Env = append(os.Environ(), "PATH="+folder+":"+os.Getenv("PATH"))
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("kubectl heddle status: %v", err)
	}
	for _, want := range []string{"n1", "n2", "shop"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("kubectl heddle status does not name %s:\n%s", want, out)
		}
	}
	if s := w.well(t); s.Leader == "" || len(s.Nodes) != 2 || len(s.Operators) != 2 || s.Nodes[0].Enrolled == 0 {
		t.Errorf("heddle status: %+v", s)
	}
}

// statusSaid is what is read of `heddle status -o json`.
type statusSaid struct {
	OK        bool
	Leader    string
	Operators []struct{ Name string }
	Nodes     []struct {
		Name     string
		Enrolled int
	}
	Problems []string
}

// well waits until `heddle status` finds that all is well.
func (w *world) well(t *testing.T) (s statusSaid) {
	t.Helper()
	eventually(t, patience, "all is well", func() error {
		s = statusSaid{}
		out, err := exec.CommandContext(t.Context(), w.heddle, "status", "-o", "json", "--kubeconfig", w.Kubeconfig()).Output()
		if len(out) == 0 {
			return fmt.Errorf("heddle status: %w", err)
		}
		if err := json.Unmarshal(out, &s); err != nil {
			return err
		}
		if err != nil || !s.OK {
			return fmt.Errorf("heddle status: %w: %v", err, s.Problems)
		}
		return nil
	})
	return s
}

// explained asks `heddle explain`, which has to end with this code and to say this.
func (w *world) explained(t *testing.T, code int, want string, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), w.heddle, append([]string{"explain", "--kubeconfig", w.Kubeconfig()}, args...)...)
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState.ExitCode() != code || !strings.Contains(string(out), want) {
		t.Errorf("heddle explain %v: %v, want exit status %d and %q:\n%s", args, err, code, want, out)
	}
}

// testRefusedPolicy: its status and `heddle status` say why it is not in force.
func (w *world) testRefusedPolicy(t *testing.T) {
	// Its schema takes it; this operator is without --udp-by-identity.
	w.apply(t, `apiVersion: heddle.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: datagrams, namespace: shop}
spec:
  selector: {matchLabels: {app: server}}
  action: AUDIT
  rules: [{to: [{protocol: UDP, ports: [53]}]}]
`)
	defer w.kubectl(t, "-n", "shop", "delete", "authorizationpolicy", "datagrams")
	w.kubectl(t, "wait", "--for=condition=Accepted=False", "authorizationpolicy/datagrams", "-n", "shop", "--timeout="+patience.String())
	cmd := exec.CommandContext(t.Context(), w.heddle, "status", "--kubeconfig", w.Kubeconfig())
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState.ExitCode() != 1 || !strings.Contains(string(out), "shop/datagrams") {
		t.Errorf("heddle status, while a policy is refused: %v\n%s", err, out)
	}
}

// testLeaderGoes evicts the replica of the operator that writes statuses. The other may
// not go as long as there is no new one, and writes in its place.
func (w *world) testLeaderGoes(t *testing.T) {
	before := w.well(t)
	evict := func(pod string) (string, error) {
		return w.Kubectl(t.Context(), `{"apiVersion":"policy/v1","kind":"Eviction","metadata":{"name":"`+pod+`","namespace":"heddle-system"}}`,
			"create", "--raw", "/api/v1/namespaces/heddle-system/pods/"+pod+"/eviction", "-f", "-")
	}
	other := ""
	for _, o := range before.Operators {
		if o.Name != before.Leader {
			other = o.Name
		}
	}
	if out, err := evict(before.Leader); err != nil {
		t.Fatalf("evict the leader %s: %v %s", before.Leader, err, out)
	}
	if out, err := evict(other); err == nil || !strings.Contains(out+err.Error(), "disruption budget") {
		t.Errorf("the other replica, %s, may be evicted as well: %v %s", other, err, out)
	}
	w.apply(t, "apiVersion: heddle.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: seen, namespace: shop}\n"+
		"spec: {selector: {matchLabels: {app: server}}, action: AUDIT, rules: [{}]}\n")
	w.kubectl(t, "wait", "--for=condition=Live", "authorizationpolicy/seen", "-n", "shop", "--timeout="+patience.String())
	w.kubectl(t, "-n", "heddle-system", "rollout", "status", "deployment/heddle-operator", "--timeout="+patience.String())
	if after := w.well(t); after.Leader == before.Leader || after.Leader == "" {
		t.Errorf("the leader is %q, and was %q", after.Leader, before.Leader)
	}
	w.kubectl(t, "-n", "shop", "delete", "authorizationpolicy", "seen")
}
