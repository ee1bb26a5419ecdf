package install

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/chart"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/health"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/onemesh"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

// heddle runs a command line as the program does.
func heddle(ctx context.Context, args ...string) (out, log string, err error) {
	var o, l bytes.Buffer
	root := &cobra.Command{Use: "heddle", SilenceUsage: true, SilenceErrors: true}
	root.AddCommand(Commands(&o, &l, "dev")...)
	root.SetArgs(args)
	root.SetOut(io.Discard)
	root.SetErr(io.Discard)
	err = root.ExecuteContext(ctx)
	return o.String(), l.String(), err
}

func unstructuredOf(t *testing.T, text string) *unstructured.Unstructured {
	t.Helper()
	o := &unstructured.Unstructured{}
	if err := yaml.Unmarshal([]byte(text), &o.Object); err != nil {
		t.Fatal(err)
	}
	return o
}

// world is a cluster of one API server.
type world struct {
	t *testing.T
	*Cluster
	config string
}

func newWorld(t *testing.T) *world {
	config := server(t)
	c, err := Connect(t.Context(), config, "")
	if err != nil {
		t.Fatal(err)
	}
	c.patient = 20 * time.Millisecond
	return &world{t, c, config}
}

func (w *world) put(text string) {
	w.t.Helper()
	if _, err := w.apply(w.t.Context(), unstructuredOf(w.t, text), applying{force: true}); err != nil {
		w.t.Fatal(err)
	}
}

// status sets a status, as the controller would that is not here.
func (w *world) status(kind schema.GroupVersionKind, namespace, name, status string) {
	w.t.Helper()
	r, err := w.resource(w.t.Context(), kind, namespace)
	if err != nil {
		w.t.Fatal(err)
	}
	if _, err := r.Patch(w.t.Context(), name, types.MergePatchType, []byte(`{"status":`+status+`}`), metav1.PatchOptions{}, "status"); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) has(kind schema.GroupVersionKind, namespace, name string) bool {
	w.t.Helper()
	o, err := w.get(w.t.Context(), kind, namespace, name)
	if err != nil {
		w.t.Fatal(err)
	}
	return o != nil
}

// everything lists what there is of the kinds that an installation has.
func (w *world) everything() []string {
	w.t.Helper()
	rendered, err := Render(Request{}, "")
	if err != nil {
		w.t.Fatal(err)
	}
	var all []string
	for _, o := range rendered.All() {
		objects, err := w.list(w.t.Context(), o.GroupVersionKind(), "", "")
		if err != nil && strings.Contains(err.Error(), "no matches") {
			continue
		}
		if err != nil {
			w.t.Fatal(err)
		}
		for i := range objects {
			if name := refOf(&objects[i]).String(); !slices.Contains(all, name) {
				all = append(all, name)
			}
		}
	}
	slices.Sort(all)
	return all
}

func (w *world) must(args ...string) (out, log string) {
	w.t.Helper()
	out, log, err := heddle(w.t.Context(), append(args, "--kubeconfig", w.config)...)
	if err != nil {
		w.t.Fatalf("heddle %s: %v\n%s%s", strings.Join(args, " "), err, out, log)
	}
	return out, log
}

func (w *world) refused(says string, args ...string) {
	w.t.Helper()
	out, log, err := heddle(w.t.Context(), append(args, "--kubeconfig", w.config)...)
	if err == nil || !strings.Contains(err.Error(), says) {
		w.t.Errorf("heddle %s: got %v, want %q\n%s%s", strings.Join(args, " "), err, says, out, log)
	}
}

// What is there after uninstalling is what was there before installing, but for
// the definitions and the Mesh, which --crds takes as well.
func TestLifeOnAnAPIServer(t *testing.T) {
	w := newWorld(t)
	before := w.everything()
	w.refused("--set mesh.clusterRanges", "install", "--wait", "0")
	w.put(`{apiVersion: v1, kind: Node, metadata: {name: n1}, spec: {podCIDR: 10.244.1.0/24, podCIDRs: [10.244.1.0/24]}}`)
	w.refused("nothing is installed here", "upgrade")
	w.refused("nothing is installed here", "uninstall")

	out, _ := w.must("install", "--dry-run=server")
	if !strings.Contains(out, "+++ DaemonSet heddle-system/heddle-agent") || !slices.Equal(before, w.everything()) {
		t.Errorf("a dry run shows\n%s\nand leaves %v", out, w.everything())
	}
	if out, _ = w.must("install", "--dry-run"); !strings.Contains(out, "- 10.244.0.0/16") || !strings.Contains(out, "- 10.96.0.0/16") {
		t.Errorf("the cluster's ranges are not in\n%s", out)
	}
	_, log := w.must("install", "--wait", "0")
	if made := len(w.everything()) - len(before); strings.Count(log, ": created") != made {
		t.Errorf("progress:\n%s", log)
	}
	again, log := w.must("install", "--wait", "0")
	if strings.Contains(log, "created") || strings.Contains(log, ": changed") || again == "" {
		t.Errorf("a second time changes something:\n%s", log)
	}
	if out, _ = w.must("install", "--dry-run=server"); !strings.Contains(out, "Nothing would change") {
		t.Errorf("a dry run after installing shows\n%s", out)
	}
	w.patchedMesh()
	w.skips()
	w.upgrade()
	w.uninstall(before)
}

// patchedMesh: what people have changed in the Mesh stays through an upgrade, unless it
// is asked for again, and then it takes force.
func (w *world) patchedMesh() {
	t, kind := w.t, schema.GroupVersionKind{Group: "heddle.dev", Version: "v1alpha1", Kind: "Mesh"}
	t.Helper()
	r, err := w.resource(t.Context(), kind, "")
	if err != nil {
		t.Fatal(err)
	}
	patch := func(spec string) {
		t.Helper()
		if _, err := r.Patch(t.Context(), "default", types.MergePatchType, []byte(`{"spec":`+spec+`}`), metav1.PatchOptions{FieldManager: "kubectl-patch"}); err != nil {
			t.Fatal(err)
		}
	}
	is := func(dns, egress string) {
		t.Helper()
		m, err := w.get(t.Context(), kind, "", "default")
		if err != nil {
			t.Fatal(err)
		}
		hasDNS, _, _ := unstructured.NestedString(m.Object, "spec", "dns", "mode") // "" where there is none
		hasEgress, _, _ := unstructured.NestedString(m.Object, "spec", "egress", "mode")
		if hasDNS != dns || hasEgress != egress {
			t.Errorf("the Mesh is %v; want dns %s, egress %s", m.Object["spec"], dns, egress)
		}
	}
	patch(`{"dns":{"mode":"CAPTURE","namespaces":[{"namespace":"bank","mode":"DIRECT"}]}}`)
	if out, _ := w.must("upgrade", "--dry-run=server"); strings.Contains(out, "CAPTURE") {
		t.Errorf("a dry run would change what people have set:\n%s", out)
	}
	for range 2 {
		_, log := w.must("upgrade", "--wait", "0")
		is("CAPTURE", "ALLOW")
		if !strings.Contains(log, "Mesh default: spec.dns.mode stays CAPTURE, as kubectl-patch has set it: --set mesh.dns=VALUE with --force-conflicts changes it") {
			t.Errorf("progress:\n%s", log)
		}
	}
	w.must("upgrade", "--wait", "0", "--set", "mesh.egress=DENY") // another value, and still nothing is taken back
	is("CAPTURE", "DENY")
	w.must("upgrade", "--wait", "0", "--set", "mesh.dns=CAPTURE") // the same as it is
	w.refused("kubectl-patch", "upgrade", "--wait", "0", "--set", "mesh.dns=DIRECT")
	is("CAPTURE", "DENY")
	w.must("upgrade", "--wait", "0", "--set", "mesh.dns=DIRECT", "--set", "mesh.egress=ALLOW", "--force-conflicts")
	is("DIRECT", "ALLOW")
	w.must("upgrade", "--wait", "0")
	is("DIRECT", "ALLOW")
}

func (w *world) upgrade() {
	t := w.t
	t.Helper()
	out, _ := w.must("upgrade", "--set", "operator.replicas=3", "--dry-run=server")
	if !strings.Contains(out, "-  replicas: 2") || !strings.Contains(out, "+  replicas: 3") {
		t.Errorf("a dry run of an upgrade shows\n%s", out)
	}
	w.must("upgrade", "--set", "operator.replicas=3", "--set", "mesh.create=false", "--wait", "0")
	w.must("upgrade", "--wait", "0", "--set", "image.tag=v2")
	o, err := w.get(t.Context(), apps("Deployment"), chart.Namespace, "heddle-operator")
	if err != nil || health.Number(o, "spec", "replicas") != 3 || !strings.Contains(fmt.Sprint(o.Object), "/heddle-operator:v2") {
		t.Errorf("values of the last time are forgotten: %v", err)
	}
	if !w.has(schema.GroupVersionKind{Group: "heddle.dev", Version: "v1alpha1", Kind: "Mesh"}, "", "default") {
		t.Error("an upgrade deleted the Mesh")
	}
	// Someone scales by hand; an upgrade says so, and does as it is told.
	r, err := w.resource(t.Context(), apps("Deployment"), chart.Namespace)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Patch(t.Context(), "heddle-operator", types.MergePatchType, []byte(`{"spec":{"replicas":5}}`), metav1.PatchOptions{FieldManager: "someone"}); err != nil {
		t.Fatal(err)
	}
	w.refused("--force-conflicts", "upgrade", "--wait", "0")
	w.must("upgrade", "--wait", "0", "--force-conflicts")
	// What is in the way of health is said within the bound.
	w.refused("not healthy after 100ms", "upgrade", "--wait", "100ms")
	w.status(apps("Deployment"), chart.Namespace, "heddle-operator", `{"observedGeneration":100,"replicas":3,"updatedReplicas":3,"availableReplicas":3,"readyReplicas":3}`)
	w.status(apps("DaemonSet"), chart.Namespace, "heddle-agent", `{"observedGeneration":100,"desiredNumberScheduled":1,"currentNumberScheduled":1,"numberMisscheduled":0,"numberReady":0,"updatedNumberScheduled":0}`)
	w.refused("0 of 1 nodes have the new agent", "upgrade", "--wait", "3s") // time to look once on a busy machine
	w.agentsReady()
	w.must("upgrade", "--wait", "10s")
}

// inTheWay: what would break stops an installation, and a dry run, before anything is made,
// and so does a lack of rights.
func (w *world) inTheWay() {
	t := w.t
	t.Helper()
	before := w.everything()
	ranges := []string{"--set", "mesh.clusterRanges={10.0.0.0/8}"}
	for _, how := range [][]string{{"--wait", "0"}, {"--dry-run=server"}, {"-o", "json", "--wait", "0"}} {
		args := append(append([]string{"install", "--kubeconfig", w.config}, ranges...), how...)
		out, log, err := heddle(t.Context(), args...)
		if !errors.Is(err, ErrPreflight) || !strings.Contains(err.Error(), "old kernel") || !strings.Contains(err.Error(), "--force") || !strings.Contains(log, "fail  old       kernel: 5.15.0-91 is too old") || !strings.Contains(log, "→ boot the node") {
			t.Errorf("install %v: %v\n%s%s", how, err, out, log)
		}
		report := health.New()
		if how[0] != "-o" {
			if out != "" {
				t.Errorf("install %v prints\n%s", how, out)
			}
		} else if err := json.Unmarshal([]byte(out), report); err != nil || report.OK || len(report.Findings) < 4 {
			t.Errorf("as JSON: %v\n%s", err, out)
		}
	}
	_, log, err := heddle(t.Context(), append([]string{"install", "--kubeconfig", w.config, "--context", "guest", "--dry-run=server"}, ranges...)...)
	if !errors.Is(err, ErrPreflight) || !strings.Contains(log, "you may not write") {
		t.Errorf("a guest: %v\n%s", err, log)
	}
	if after := w.everything(); !slices.Equal(before, after) {
		t.Errorf("made: %v; before: %v", after, before)
	}
}

// skips: an upgrade over more than one release is refused, with the way to go.
func (w *world) skips() {
	t := w.t
	t.Helper()
	last, err := w.readRecord(t.Context(), chart.Namespace)
	if err != nil {
		t.Fatal(err)
	}
	was := last.Version
	last.Version = "0.9.0"
	if err := w.writeRecord(t.Context(), chart.Namespace, last); err != nil {
		t.Fatal(err)
	}
	for _, how := range []string{"--wait=0", "--dry-run=server"} {
		_, log, err := heddle(t.Context(), "upgrade", how, "--kubeconfig", w.config)
		if !errors.Is(err, ErrPreflight) || !strings.Contains(log, "further apart than one release: "+was+" (to come), 0.9.0 (on record)") || !strings.Contains(log, "one release after the other") {
			t.Errorf("upgrade %s over eight releases: %v\n%s", how, err, log)
		}
	}
	if now, err := w.readRecord(t.Context(), chart.Namespace); err != nil || now.Version != "0.9.0" {
		t.Errorf("a refused upgrade was begun: %v, %v", now, err)
	}
	w.must("upgrade", "--wait", "0", "--force")
	if now, err := w.readRecord(t.Context(), chart.Namespace); err != nil || now.Version != was {
		t.Errorf("--force did not go on: %v, %v", now, err)
	}
}

func (w *world) agentsReady() {
	w.status(apps("DaemonSet"), chart.Namespace, "heddle-agent", `{"observedGeneration":100,"desiredNumberScheduled":1,"currentNumberScheduled":1,"numberMisscheduled":0,"numberReady":1,"numberAvailable":1,"updatedNumberScheduled":1}`)
}

func (w *world) uninstall(before []string) {
	t := w.t
	t.Helper()
	w.put(`{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {heddle.dev/mesh: enabled}}}`)
	w.put(`{apiVersion: v1, kind: Secret, metadata: {name: heddle-ca, namespace: heddle-system}}`)
	w.refused("Namespace shop; remedy", "uninstall")
	w.refused("Namespace shop; remedy", "uninstall", "--dry-run")
	if out, _ := w.must("uninstall", "--dry-run", "--force"); !strings.HasPrefix(out, "DaemonSet heddle-system/heddle-agent\n") {
		t.Errorf("uninstalling by force would delete\n%s", out)
	}
	w.put(`{apiVersion: v1, kind: Namespace, metadata: {name: shop}}`)
	w.status(apps("DaemonSet"), chart.Namespace, "heddle-agent", `{"numberAvailable":0}`)
	w.refused("heddle-agent --cni-uninstall", "uninstall")
	w.agentsReady()
	out, _ := w.must("uninstall", "--dry-run")
	if !strings.HasPrefix(out, "DaemonSet heddle-system/heddle-agent\n") || strings.Contains(out, "Mesh") {
		t.Errorf("uninstalling would delete\n%s", out)
	}
	out, log := w.must("uninstall", "--wait", "0")
	if strings.Contains(out, "is gone.") || !strings.Contains(out, "is being deleted") {
		t.Errorf("nobody waited, and it says %q", out)
	}
	w.leaves()
	if !strings.Contains(log, "agents are told to leave their nodes as they found them") {
		t.Errorf("progress:\n%s", log)
	}
	// No controller finishes what is deleted in the foreground, or a namespace.
	left := slices.DeleteFunc(w.everything(), func(name string) bool {
		return slices.Contains(before, name) || strings.HasPrefix(name, "CustomResourceDefinition") || name == "Mesh default" || name == "Namespace shop" || w.going(name)
	})
	if len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if !w.going("Secret heddle-system/heddle-ca") {
		t.Error("the keys of the operator are left behind")
	}
	for _, name := range before {
		if !slices.Contains(w.everything(), name) {
			t.Errorf("%s was there before, and is gone", name)
		}
	}
}

// leaves checks what the last agents were told: they undo what they did when they
// end, and nothing keeps heddle-cni in the chain meanwhile.
func (w *world) leaves() {
	w.t.Helper()
	agent, err := w.get(w.t.Context(), apps("DaemonSet"), chart.Namespace, "heddle-agent")
	if err != nil || agent == nil {
		w.t.Fatalf("the DaemonSet, which nobody finishes deleting: %v, %v", agent, err)
	}
	container := health.Objects(agent, "spec", "template", "spec", "containers")[0]
	args := fmt.Sprint(container["args"])
	if !strings.Contains(args, "--uninstall-on-exit") || strings.Contains(args, "cni-conf-dir") || !strings.Contains(args, "--cni-socket") {
		w.t.Errorf("the last agents' flags: %s", args)
	}
	if hook := fmt.Sprint(container["lifecycle"]); !strings.Contains(hook, "/heddle-agent --cni-uninstall --cni-socket=/run/heddle/cni.sock --cni-bin-dir=/host/opt/cni/bin --cni-conf-dir=/host/etc/cni/net.d --cri-socket=") {
		w.t.Errorf("the last agents' end: %s", hook)
	}
}

// going reports whether an object is being deleted.
func (w *world) going(name string) bool {
	kind, full, _ := strings.Cut(name, " ")
	namespace, object, namespaced := strings.Cut(full, "/")
	if !namespaced {
		namespace, object = "", full
	}
	k := core(kind)
	switch kind {
	case "DaemonSet", "Deployment":
		k = apps(kind)
	case "PodDisruptionBudget":
		k = schema.GroupVersionKind{Group: "policy", Version: "v1", Kind: kind}
	case "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding":
		k = schema.GroupVersionKind{Group: "rbac.authorization.k8s.io", Version: "v1", Kind: kind}
	}
	o, err := w.get(w.t.Context(), k, namespace, object)
	if err != nil {
		w.t.Fatal(err)
	}
	return o == nil || o.GetDeletionTimestamp() != nil
}

// A guest is told what is missing, before anything is made.
func TestRightsAndCheckOnAnAPIServer(t *testing.T) {
	w := newWorld(t)
	guest, err := Connect(t.Context(), w.config, "guest")
	if err != nil {
		t.Fatal(err)
	}
	r := health.New()
	if err := guest.checkRights(t.Context(), chart.Namespace, r); err != nil || r.OK || !strings.Contains(r.Findings[0].Detail, "DaemonSet heddle-system") || !strings.Contains(r.Findings[0].Detail, "Mesh") {
		t.Errorf("a guest: %v, %+v", err, r.Findings)
	}
	if _, err := guest.Prepare(t.Context(), Request{}, false); err == nil || !strings.Contains(err.Error(), "cluster-admin") {
		t.Errorf("a guest installs: %v", err)
	}
	w.put(`{apiVersion: v1, kind: Node, metadata: {name: old}}`)
	w.status(core("Node"), "", "old", `{"nodeInfo":{"kernelVersion":"5.15.0-91","operatingSystem":"linux","machineID":"","systemUUID":"","bootID":"","osImage":"","containerRuntimeVersion":"","kubeletVersion":"","kubeProxyVersion":"","architecture":""}}`)
	w.put(`{apiVersion: v1, kind: Namespace, metadata: {name: heddle-system, labels: {pod-security.kubernetes.io/enforce: restricted}}}`)
	w.put(`{apiVersion: v1, kind: ConfigMap, metadata: {name: cilium-config, namespace: kube-system}, data: {kube-proxy-replacement: "true", cni-exclusive: "true"}}`)
	w.put(`{apiVersion: apps/v1, kind: DaemonSet, metadata: {name: cilium, namespace: kube-system}, spec: {selector: {matchLabels: {a: b}}, template: {metadata: {labels: {a: b}}, spec: {containers: [{name: c, image: i}]}}}}`)
	r = health.New()
	if err := w.Check(t.Context(), "", r); err != nil {
		t.Fatal(err)
	}
	var bad []string
	for _, f := range r.Findings {
		if !f.OK {
			bad = append(bad, f.Name+": "+f.Detail+" → "+f.Remedy)
		}
	}
	for _, says := range []string{"5.15.0-91 is too old", "pod-security.kubernetes.io/enforce=privileged", "socketLB.hostNamespaceOnly=true", "cni.exclusive=false"} {
		if !strings.Contains(strings.Join(bad, "\n"), says) {
			t.Errorf("nothing says %q in\n%s", says, strings.Join(bad, "\n"))
		}
	}
	if len(bad) != 4 {
		t.Errorf("%d findings:\n%s", len(bad), strings.Join(bad, "\n"))
	}
	w.inTheWay()
	w.dryRunsOfAClient()
	// Installing into a namespace that someone made labels it, and leaves it.
	if _, log := w.must("install", "--wait", "0", "--set", "mesh.clusterRanges={10.0.0.0/8}", "--force"); !strings.Contains(log, "5.15.0-91 is too old") || !strings.Contains(log, "going on by --force") {
		t.Errorf("progress:\n%s", log)
	}
	w.must("uninstall", "--wait", "0", "--crds")
	if ns, err := w.get(t.Context(), core("Namespace"), "", chart.Namespace); err != nil || ns == nil || ns.GetDeletionTimestamp() != nil || ns.GetLabels()["pod-security.kubernetes.io/enforce"] != "privileged" {
		t.Errorf("the namespace that was there before: %v, %v", ns, err)
	}
}

// Helm's installation is not taken over.
func TestForeignInstallationIsRefused(t *testing.T) {
	w := newWorld(t)
	w.put(`{apiVersion: v1, kind: Namespace, metadata: {name: heddle-system}}`)
	w.put(`{apiVersion: apps/v1, kind: DaemonSet, metadata: {name: heddle-agent, namespace: heddle-system, labels: {app.kubernetes.io/managed-by: Helm}}, spec: {selector: {matchLabels: {a: b}}, template: {metadata: {labels: {a: b}}, spec: {containers: [{name: c, image: i}]}}}}`)
	w.refused(`installed by "Helm"`, "install", "--set", "mesh.clusterRanges={10.0.0.0/8}")
	w.put(`{apiVersion: v1, kind: ConfigMap, metadata: {name: heddle-install, namespace: heddle-system}, data: {version: 0.0.1, values: "", objects: "[]"}}`)
	w.refused("`heddle upgrade` brings it to", "install")
}

// Alerts are made where their kind is known, and go with the installation; where it is
// not, nothing is begun.
func TestAlertsNeedTheirKind(t *testing.T) {
	w := newWorld(t)
	w.put(`{apiVersion: v1, kind: Node, metadata: {name: n1}, spec: {podCIDRs: [10.244.1.0/24]}}`)
	args := []string{"install", "--wait", "0", "--set", "alerts.create=true", "--set", "alerts.labels.release=prometheus"}
	w.refused("install the Prometheus operator first", args...)
	if w.has(core("Namespace"), "", chart.Namespace) {
		t.Error("a refused installation was begun")
	}
	w.put(`{apiVersion: apiextensions.k8s.io/v1, kind: CustomResourceDefinition, metadata: {name: prometheusrules.monitoring.coreos.com}, spec: {group: monitoring.coreos.com, scope: Namespaced,
  names: {kind: PrometheusRule, plural: prometheusrules, singular: prometheusrule}, versions: [{name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}]}}`)
	kind := schema.GroupVersionKind{Group: "monitoring.coreos.com", Version: "v1", Kind: "PrometheusRule"}
	testenv.Eventually(t, 20*time.Second, "the kind is known", func() bool { _, err := w.resource(t.Context(), kind, chart.Namespace); return err == nil })
	w.must(args...)
	if !w.has(kind, chart.Namespace, "heddle") {
		t.Error("there are no alerts")
	}
	w.must("upgrade", "--wait", "0", "--set", "alerts.create=false")
	if w.has(kind, chart.Namespace, "heddle") {
		t.Error("alerts that are not wanted any more are there")
	}
}

// Before, an installation into another namespace had cluster-wide roles without that in their
// names: an upgrade takes them away, once the new ones are there.
func TestRolesOfTheVersionBefore(t *testing.T) {
	w := newWorld(t)
	w.put(`{apiVersion: v1, kind: Node, metadata: {name: n1}, spec: {podCIDRs: [10.244.1.0/24]}}`)
	w.must("install", "--system-namespace", "first", "--wait", "0")
	last, err := w.readRecord(t.Context(), "first")
	if err != nil {
		t.Fatal(err)
	}
	var renamed []ref
	for i, o := range last.Objects {
		if o.Name != "heddle-operator-first" {
			continue
		}
		renamed = append(renamed, o)
		if _, err := w.remove(t.Context(), o); err != nil {
			t.Fatal(err)
		}
		last.Objects[i].Name = "heddle-operator"
	}
	w.put(`{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRole, metadata: {name: heddle-operator, labels: {app.kubernetes.io/managed-by: heddle}}, rules: []}`)
	w.put(`{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRoleBinding, metadata: {name: heddle-operator, labels: {app.kubernetes.io/managed-by: heddle}}, roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: heddle-operator},
  subjects: [{kind: ServiceAccount, name: heddle-operator, namespace: first}]}`)
	if err := w.writeRecord(t.Context(), "first", last); err != nil {
		t.Fatal(err)
	}
	out, log := w.must("upgrade", "--system-namespace", "first", "--wait", "0")
	said := out + log
	for _, o := range renamed {
		created, deleted := strings.Index(said, o.String()+": created"), strings.Index(said, strings.TrimSuffix(o.String(), "-first")+": deleted, no longer wanted")
		if created < 0 || deleted < created || !w.has(o.kind(), "", o.Name) || w.has(o.kind(), "", "heddle-operator") {
			t.Errorf("%s: created at %d, the old one deleted at %d of\n%s", o, created, deleted, said)
		}
	}
	if len(renamed) != 2 {
		t.Errorf("%v have the namespace in their names", renamed)
	}
}

// A second mesh is refused, whatever tells of the first one; nothing is made.
func TestAnotherMeshIsRefused(t *testing.T) {
	w := newWorld(t)
	w.put(`{apiVersion: v1, kind: Node, metadata: {name: n1}, spec: {podCIDRs: [10.244.1.0/24]}}`)
	w.must("install", "--system-namespace", "first", "--wait", "0")
	before := w.everything()
	w.refused("heddle uninstall --system-namespace first", "install", "--wait", "0")
	w.refused("DaemonSet first/heddle-agent", "install", "--dry-run=server")
	if after := w.everything(); !slices.Equal(before, after) || w.has(core("Namespace"), "", chart.Namespace) {
		t.Errorf("a refused installation left %v", after)
	}
	if _, _, err := heddle(t.Context(), "install", "--kubeconfig", w.config); !errors.Is(err, onemesh.ErrAnother) {
		t.Errorf("got %v", err)
	}
	r := health.New()
	if err := w.Check(t.Context(), "", r); err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(r.Findings, func(f health.Finding) bool {
		return !f.OK && f.Name == "another mesh" && strings.Contains(f.Remedy, "heddle upgrade --system-namespace first")
	}) {
		t.Errorf("check does not say so: %+v", r.Findings)
	}
	w.must("install", "--system-namespace", "first", "--wait", "0") // its own is no other
	w.must("uninstall", "--system-namespace", "first", "--wait", "0")
	// Helm's, and one of which only the cluster-wide role is left.
	role := schema.GroupVersionKind{Group: "rbac.authorization.k8s.io", Version: "v1", Kind: "ClusterRoleBinding"}
	w.put(`{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRoleBinding, metadata: {name: heddle-operator}, roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: heddle-operator},
  subjects: [{kind: ServiceAccount, name: heddle-operator, namespace: second}]}`)
	w.refused("heddle uninstall --system-namespace second", "install", "--wait", "0")
	w.put(`{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRoleBinding, metadata: {name: heddle-operator}, roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: heddle-operator},
  subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: "system:serviceaccount:third:heddle-operator"}]}`)
	w.refused("heddle uninstall --system-namespace third", "install", "--wait", "0")
	roles, err := w.resource(t.Context(), role, "")
	if err != nil {
		t.Fatal(err)
	}
	if err := roles.Delete(t.Context(), "heddle-operator", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	w.must("install", "--wait", "0")
}

// The page's commands that need a cluster run against one; the others without.
func TestDocumentedCommands(t *testing.T) {
	page, err := os.ReadFile("../../../../docs/install.md")
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t)
	w.put(`{apiVersion: v1, kind: Node, metadata: {name: n1}, spec: {podCIDRs: [10.244.1.0/24]}}`)
	values := t.TempDir() + "/values.yaml"
	write(t, values, []byte("operator: {replicas: 3}\n"))
	ran := 0
	for _, block := range regexp.MustCompile("(?s)```sh\n(.*?)```").FindAllStringSubmatch(string(page), -1) {
		for line := range strings.Lines(block[1]) {
			command, ours := strings.CutPrefix(strings.TrimSpace(line), "heddle ")
			if !ours || strings.HasPrefix(command, "check") {
				continue // kubectl's and helm's own; check is run above
			}
			command, _, _ = strings.Cut(command, " > ")
			args := strings.Fields(strings.ReplaceAll(strings.ReplaceAll(command, "values.yaml", values), "'", ""))
			if !strings.Contains(command, "--dry-run") {
				args = append(args, "--wait", "0")
			}
			w.must(args...)
			ran++
		}
	}
	if ran < 8 {
		t.Errorf("the page shows %d commands", ran)
	}
}

func TestUnreachable(t *testing.T) {
	config := t.TempDir() + "/kubeconfig"
	write(t, config, []byte("apiVersion: v1\nkind: Config\nclusters: [{name: c, cluster: {server: \"http://127.0.0.1:1\"}}]\ncontexts: [{name: c, context: {cluster: c}}]\ncurrent-context: c\n"))
	for _, args := range [][]string{{"install", "--kubeconfig", config}, {"install", "--kubeconfig", config + "x"}, {"uninstall", "--kubeconfig", config, "--context", "other"}} {
		if _, _, err := heddle(t.Context(), args...); !errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), "remedy") {
			t.Errorf("%v: %v", args, err)
		}
	}
	for _, args := range [][]string{{"install", "--set", "x"}, {"install", "--dry-run=maybe"}, {"install", "-o", "xml"}, {"uninstall", "--dry-run=server"},
		// What would do nothing, or mean nothing.
		{"install", "--dry-run", "--wait", "1m"}, {"install", "--dry-run=server", "--wait", "1m"}, {"upgrade", "--dry-run", "--force-conflicts"},
		{"install", "--dry-run=server", "-o", "yaml"}, {"uninstall", "--dry-run", "--wait", "1m"}, {"install", "--wait", "-1s"}, {"uninstall", "--wait", "-1s"}} {
		if _, _, err := heddle(t.Context(), args...); !errors.Is(err, chart.ErrValues) {
			t.Errorf("%v: %v", args, err)
		}
	}
}
