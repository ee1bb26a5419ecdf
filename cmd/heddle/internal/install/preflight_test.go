package install

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/chart"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/health"
)

// dryRunsOfAClient: one prints what it prints without a cluster, whatever is found; a guest's
// too, who may neither write nor look.
func (w *world) dryRunsOfAClient() {
	t := w.t
	t.Helper()
	args := []string{"install", "--dry-run", "-o", "json", "--set", "mesh.clusterRanges={10.0.0.0/8}"}
	t.Setenv("KUBECONFIG", w.config)
	want, log, err := heddle(t.Context(), args...)
	if err != nil || !strings.Contains(log, "no cluster was looked at") || strings.Contains(log, "fail") {
		t.Fatalf("%v\n%s", err, log)
	}
	var list struct{ Kind string }
	if err := json.Unmarshal([]byte(want), &list); err != nil || list.Kind != "List" {
		t.Errorf("it prints %v: %v", list, err)
	}
	for _, c := range []struct{ as, says string }{
		{"admin", "fail  old       kernel: 5.15.0-91 is too old"}, {"admin", ": would stop this, if it were no dry run, unless --force"}, {"guest", "warn  cluster   nodes: could not look: nodes is forbidden"},
	} {
		out, log, err := heddle(t.Context(), append(args, "--context", c.as)...)
		if err != nil || out != want || !strings.Contains(log, c.says) {
			t.Errorf("as %s: %v; the same is printed: %v\n%s", c.as, err, out == want, log)
		}
	}
	if _, log := w.must(append(args, "--force")...); !strings.Contains(log, "5.15.0-91 is too old") || strings.Contains(log, "would stop") {
		t.Errorf("with --force it says\n%s", log)
	}
}

// TestDryRunAsksNobody: with all that a cluster would say, none is asked but the one that is
// named, and that this one does not answer is only said.
func TestDryRunAsksNobody(t *testing.T) {
	asked := 0
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { asked++; w.WriteHeader(http.StatusInternalServerError) }))
	defer server.Close()
	config := t.TempDir() + "/kubeconfig"
	write(t, config, fmt.Appendf(nil, "apiVersion: v1\nkind: Config\nclusters: [{name: c, cluster: {server: %q}}]\ncontexts: [{name: c, context: {cluster: c}}]\ncurrent-context: c\n", server.URL))
	t.Setenv("KUBECONFIG", config)
	args := []string{"install", "--dry-run", "--set", "mesh.clusterRanges={10.0.0.0/8}"}
	if out, log, err := heddle(t.Context(), args...); err != nil || asked != 0 || !strings.Contains(out, "kind: DaemonSet") {
		t.Errorf("%v after %d questions\n%s", err, asked, log)
	}
	if out, log, err := heddle(t.Context(), append(args, "--context", "c")...); err != nil || asked == 0 || !strings.Contains(out, "kind: DaemonSet") || !strings.Contains(log, "no cluster was looked at: ask") {
		t.Errorf("named: %v after %d questions\n%s", err, asked, log)
	}
}

// TestRightsAreOfTheValues: what is asked for is what would be written, by the values of the
// last installation, too.
func TestRightsAreOfTheValues(t *testing.T) {
	w := newWorld(t)
	w.put(`{apiVersion: v1, kind: Namespace, metadata: {name: heddle-system}}`)
	w.put(`{apiVersion: v1, kind: ConfigMap, metadata: {name: heddle-install, namespace: heddle-system}, data: {version: 0.1.0, values: "{alerts: {create: true}, mesh: {create: false}}", objects: "[]"}}`)
	w.allow("get", "", "configmaps", recordName)
	guest, err := Connect(t.Context(), w.config, "guest")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		values      map[string]any
		alerts, has bool
	}{{nil, true, false}, {map[string]any{"mesh": map[string]any{"create": true}}, true, true}, {map[string]any{"alerts": map[string]any{"create": false}}, false, false}} {
		r := health.New()
		if err := guest.Rights(t.Context(), Request{Values: c.values}, r); err != nil || len(r.Findings) != 1 {
			t.Fatalf("%v: %+v", err, r.Findings)
		}
		if says := r.Findings[0].Detail + ","; strings.Contains(says, "PrometheusRule heddle-system,") != c.alerts || strings.Contains(says, " Mesh,") != c.has {
			t.Errorf("%v: %s", c.values, says)
		}
	}
}

// allow gives the guest a right to objects of these names.
func (w *world) allow(verbs, group, resource string, names ...string) {
	w.t.Helper()
	name := fmt.Sprintf("guest-%s-%s", strings.ReplaceAll(verbs, ",", "-"), resource)
	of, err := json.Marshal(names)
	if err != nil {
		w.t.Fatal(err)
	}
	w.put(fmt.Sprintf(`{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRole, metadata: {name: %s}, rules: [{apiGroups: [%q], resources: [%s], verbs: [%s], resourceNames: %s}]}`, name, group, resource, verbs, of))
	w.put(fmt.Sprintf(`{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRoleBinding, metadata: {name: %[1]s}, roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: %[1]s}, subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: guest}]}`, name))
}

// TestUpgradeNeedsNoRightToLook: who may read and change what Heddle consists of, each object
// by its name, and nothing else of the cluster, upgrades as before there was anything to look at.
func TestUpgradeNeedsNoRightToLook(t *testing.T) {
	w := newWorld(t)
	w.put(`{apiVersion: v1, kind: Node, metadata: {name: n1}, spec: {podCIDRs: [10.244.1.0/24]}}`)
	w.must("install", "--wait", "0")
	if _, _, err := heddle(t.Context(), "upgrade", "--kubeconfig", w.config, "--context", "guest", "--wait", "0", "--force"); err == nil {
		t.Fatal("a guest upgrades without any right")
	}
	rendered, err := Render(Request{Namespace: chart.Namespace}, "")
	if err != nil {
		t.Fatal(err)
	}
	names := map[string][]string{"/configmaps": {recordName}}
	for _, o := range rendered.All() {
		if _, err := w.resource(t.Context(), o.GroupVersionKind(), ""); err != nil { // has a kind that is new looked for
			t.Fatal(err)
		}
		mapping, err := w.mapper.RESTMappingWithContext(w.t.Context(), o.GroupVersionKind().GroupKind())
		if err != nil {
			t.Fatal(err)
		}
		of := o.GroupVersionKind().Group + "/" + mapping.Resource.Resource
		names[of] = append(names[of], o.GetName())
	}
	for of, each := range names {
		group, resource, _ := strings.Cut(of, "/")
		verbs := "get,patch"
		if group == "rbac.authorization.k8s.io" {
			verbs += ",escalate,bind"
		}
		w.allow(verbs, group, resource, each...)
	}
	out, log, err := heddle(t.Context(), "upgrade", "--kubeconfig", w.config, "--context", "guest", "--wait", "0", "--set", "operator.replicas=3")
	if err != nil {
		t.Fatalf("%v\n%s%s", err, out, log)
	}
	for _, part := range []string{"nodes", "network", "other mesh", "another mesh", "versions", "gateway API"} {
		if !strings.Contains(log, "warn  cluster   "+part+": could not look: ") {
			t.Errorf("it does not say that it could not look at %s:\n%s", part, log)
		}
	}
	o, err := w.get(t.Context(), apps("Deployment"), chart.Namespace, "heddle-operator")
	if err != nil || health.Number(o, "spec", "replicas") != 3 {
		t.Errorf("nothing was upgraded: %v", err)
	}
	w.put(`{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRole, metadata: {name: guest-get-patch-namespaces}, rules: []}`)
	if _, log, _ := heddle(t.Context(), "upgrade", "--kubeconfig", w.config, "--context", "guest", "--wait", "0"); !strings.Contains(log, "you may not write Namespace") {
		t.Errorf("without the right to one of them:\n%s", log)
	}
}
