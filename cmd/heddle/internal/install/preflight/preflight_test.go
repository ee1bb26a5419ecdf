package preflight

import (
	"context"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/yaml"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/health"
)

func object(t *testing.T, text string) *unstructured.Unstructured {
	t.Helper()
	o := &unstructured.Unstructured{}
	if err := yaml.Unmarshal([]byte(text), &o.Object); err != nil {
		t.Fatal(err)
	}
	return o
}

// looked is what is found of a cluster of these objects.
func looked(t *testing.T, p *Plan, objects ...string) *health.Report {
	t.Helper()
	r := health.New()
	p.Namespace = "heddle-system"
	if err := shown(t, objects...).Look(t.Context(), p, r); err != nil {
		t.Fatal(err)
	}
	return r
}

// said returns the findings of a name, "fail", "warn" or "ok" before each.
func said(r *health.Report, name string) string {
	var all []string
	for _, f := range r.Findings {
		if f.Name != name {
			continue
		}
		mark := "ok"
		if f.Warning {
			mark = "warn"
		} else if !f.OK {
			mark = "fail"
		}
		all = append(all, fmt.Sprintf("%s %s: %s → %s", mark, f.Part, f.Detail, f.Remedy))
	}
	return strings.Join(all, "\n")
}

func nodeOf(name, labels, kernel string) string {
	return fmt.Sprintf("{apiVersion: v1, kind: Node, metadata: {name: %s, labels: {%s}}, status: {nodeInfo: {kernelVersion: %q, operatingSystem: linux, osImage: Some OS 1}}}", name, labels, kernel)
}

// TestNodes: a kernel that is too old stands in the way where an agent is to run, and
// nowhere else; one that nobody knows is warned of.
func TestNodes(t *testing.T) {
	agent := object(t, `{apiVersion: apps/v1, kind: DaemonSet, metadata: {name: heddle-agent}, spec: {template: {spec: {nodeSelector: {kubernetes.io/os: linux, mesh: "yes"}}}}}`)
	for _, c := range []struct {
		node, want string
		objects    []*unstructured.Unstructured
	}{
		{nodeOf("n1", "", "6.1.0-13-amd64"), "ok n1: 6.1.0-13-amd64 (Some OS 1)", nil},
		{nodeOf("n1", "", "5.15.0-91"), "fail n1: 5.15.0-91 (Some OS 1) is too old → boot", nil},
		{nodeOf("n1", "", "6.0.1"), "fail n1: 6.0.1 (Some OS 1) is too old → boot", nil},
		{nodeOf("n1", "", ""), `warn n1: the kubelet reports ""`, nil},
		{nodeOf("n1", "mesh: 'no'", "5.15.0-91"), "ok n1: 5.15.0-91: agent.nodeSelector keeps", []*unstructured.Unstructured{agent}},
		{nodeOf("n1", "mesh: 'yes'", "5.15.0-91"), "fail n1: 5.15.0-91", []*unstructured.Unstructured{agent}},
		{"{apiVersion: v1, kind: Node, metadata: {name: n1}, status: {nodeInfo: {kernelVersion: 10.0.20348, operatingSystem: windows}}}", "ok n1: windows", nil},
	} {
		if got := said(looked(t, &Plan{Objects: c.objects}, c.node), "kernel"); !strings.HasPrefix(got, c.want) {
			t.Errorf("%s: got %q, want %q", c.node, got, c.want)
		}
	}
	// What is no string, and what is not as it should be, ends nothing.
	more := `{apiVersion: v1, kind: Node, metadata: {name: n1}, status: {nodeInfo: {kernelVersion: %s, operatingSystem: linux, swap: {capacity: 1024}, runningInUserNamespace: false}}}`
	for kernel, want := range map[string]string{"6.12.1": "ok n1: 6.12.1", "7": "warn n1: the kubelet reports"} {
		if got := said(looked(t, &Plan{}, fmt.Sprintf(more, kernel)), "kernel"); !strings.HasPrefix(got, want) {
			t.Errorf("kernel %s: got %q, want %q", kernel, got, want)
		}
	}
	if got := said(looked(t, &Plan{}), "nodes"); !strings.HasPrefix(got, "warn cluster: there are none") {
		t.Errorf("no nodes: %q", got)
	}
}

// TestCiliumHostRouting: eBPF host routing stands in the way on kernels without tcx, where
// an agent is to run; not where Cilium falls back to the host's stack, or is told to use it.
func TestCiliumHostRouting(t *testing.T) {
	const on = `kube-proxy-replacement: "true", enable-bpf-masquerade: "true"`
	for _, c := range []struct{ settings, kernel, want string }{
		{on, "6.1.0", "fail"}, {on, "6.5.9", "fail"}, {on, "6.6.0", "ok"}, {on, "6.12.1", "ok"},
		{on + `, enable-host-legacy-routing: "false"`, "6.1.0", "fail"},
		{on + `, enable-host-legacy-routing: "true"`, "6.1.0", "ok"},
		{`kube-proxy-replacement: strict, enable-bpf-masquerade: "true"`, "6.1.0", "fail"},
		{`kube-proxy-replacement: "false", enable-bpf-masquerade: "true"`, "6.1.0", "ok"},
		{`kube-proxy-replacement: "true"`, "6.1.0", "ok"}, // iptables masquerades: Cilium falls back
		{`kube-proxy-replacement: "true", enable-ipv4-masquerade: "false"`, "6.1.0", "fail"},
		{`kube-proxy-replacement: "true", enable-ipv4-masquerade: "false", enable-ipv6-masquerade: "true"`, "6.1.0", "ok"},
		{on + ", datapath-mode: netkit", "6.1.0", ""}, // stands in the way by itself
	} {
		r := looked(t, &Plan{}, nodeOf("n1", "", c.kernel), daemonSet("kube-system", "cilium"),
			"{apiVersion: v1, kind: ConfigMap, metadata: {namespace: kube-system, name: cilium-config}, data: {"+c.settings+"}}")
		got := said(r, "Cilium host routing")
		if mark, _, _ := strings.Cut(got, " "); mark != c.want {
			t.Errorf("%s on %s: %q, want %s", c.settings, c.kernel, got, c.want)
		}
		if c.want != "fail" {
			continue
		}
		for _, says := range []string{"n1 (6.", "bpf_redirect_peer", "NET_ADMIN", "bpf.hostLegacyRouting=true", `enable-host-legacy-routing: "true"`, "Linux 6.6 or newer"} {
			if !strings.Contains(got, says) {
				t.Errorf("nothing says %q in %s", says, got)
			}
		}
	}
}

// TestUnseen: what may not be read is warned of, each part by itself; what is beside it is
// looked at all the same.
func TestUnseen(t *testing.T) {
	denied := map[string]bool{}
	c := shown(t, nodeOf("n1", "", "6.1.0"), daemonSet("kube-system", "cilium"),
		`{apiVersion: v1, kind: ConfigMap, metadata: {namespace: kube-system, name: cilium-config}, data: {kube-proxy-replacement: "true", enable-bpf-masquerade: "true"}}`)
	list, get := c.List, c.Get
	refuse := func(kind schema.GroupVersionKind) error {
		if !denied[kind.Kind] {
			return nil
		}
		return fmt.Errorf("list: %w; remedy: be somebody else", apierrors.NewForbidden(schema.GroupResource{Resource: kind.Kind}, "", fmt.Errorf("guest may not")))
	}
	c.List = func(ctx context.Context, kind schema.GroupVersionKind, namespace, selector string) ([]unstructured.Unstructured, error) {
		if err := refuse(kind); err != nil {
			return nil, err
		}
		return list(ctx, kind, namespace, selector)
	}
	c.Get = func(ctx context.Context, kind schema.GroupVersionKind, namespace, name string) (*unstructured.Unstructured, error) {
		if err := refuse(kind); err != nil {
			return nil, err
		}
		return get(ctx, kind, namespace, name)
	}
	for kind, parts := range map[string][]string{
		"Namespace": {"namespace", "other mesh"}, "Node": {"nodes", "Cilium host routing"}, "DaemonSet": {"network", "other mesh", "another mesh"}, "Deployment": {"other mesh"},
		"ConfigMap": {"network", "another mesh"}, "ClusterRoleBinding": {"another mesh"}, "Pod": {"versions"},
	} {
		denied = map[string]bool{kind: true}
		r := health.New()
		if err := c.Look(t.Context(), &Plan{Namespace: "heddle-system", Version: "0.3.0", Installed: "0.1.0"}, r); err != nil {
			t.Errorf("without %s: %v", kind, err)
		}
		for _, part := range parts {
			got := said(r, part)
			if !strings.Contains("\n"+got, "\nwarn cluster: could not look: "+kind+" is forbidden") && part != "Cilium host routing" || strings.Contains(got, "be somebody else") {
				t.Errorf("without %s, of %s it says %q", kind, part, got)
			}
			if part == "Cilium host routing" && !strings.HasPrefix(got, "warn cluster: in eBPF, and the nodes' kernels are not known") {
				t.Errorf("without nodes it says %q", got)
			}
		}
		if got := said(r, "versions"); !strings.HasPrefix(got, "fail cluster: further apart") {
			t.Errorf("without %s, of versions it says %q", kind, got)
		}
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.Look(gone, &Plan{Namespace: "heddle-system", Version: "0.3.0"}, health.New()); err == nil { // pods are denied, or nodes
		t.Error("an end that was asked for is no error")
	}
}

// TestVersions: what is to come is at most one release from each that is there.
func TestVersions(t *testing.T) {
	pod := func(component, version string) string {
		return fmt.Sprintf("{apiVersion: v1, kind: Pod, metadata: {namespace: heddle-system, name: %[1]s-1, labels: {app.kubernetes.io/part-of: heddle, app.kubernetes.io/component: %[1]s, app.kubernetes.io/version: %[2]s}}}", component, version)
	}
	for _, c := range []struct{ installed, operator, agent, want string }{
		{"0.3.0", "0.3.0", "0.3.0", "ok"}, {"0.2.7", "0.2.7", "0.2.7", "ok"}, {"0.4.0", "0.4.0", "0.4.0", "ok"},
		{"0.1.0", "0.1.0", "0.1.0", "fail"}, {"0.3.0", "0.3.0", "0.1.0", "fail"}, {"0.3.0", "0.5.0", "0.3.0", "fail"},
		{"0.2.0", "0.2.0", "0.4.0", "fail"}, {"0.3.0", "abcdef", "0.3.0", "ok"},
	} {
		got := said(looked(t, &Plan{Version: "0.3.0", Installed: c.installed}, nodeOf("n1", "", "6.12.0"), pod("operator", c.operator), pod("agent", c.agent)), "versions")
		if mark, _, _ := strings.Cut(got, " "); mark != c.want || c.want == "fail" && (!strings.Contains(got, "0.3.0 (") || !strings.Contains(got, "one release after the other")) {
			t.Errorf("%+v: %q", c, got)
		}
	}
	// Which release of a major version was its last, nobody knows.
	for _, c := range []struct{ comes, installed, agent, want string }{
		{"1.0.0", "0.9.2", "0.9.2", "warn"}, {"0.9.2", "1.0.0", "1.0.0", "warn"}, {"1.0.0", "0.9.2", "0.8.0", "fail"}, {"1.1.0", "0.9.2", "0.9.2", "fail"}, {"2.0.0", "0.9.2", "0.9.2", "fail"},
	} {
		got := said(looked(t, &Plan{Version: c.comes, Installed: c.installed}, nodeOf("n1", "", "6.12.0"), pod("agent", c.agent)), "versions")
		if mark, _, _ := strings.Cut(got, " "); mark != c.want || mark == "warn" && !strings.Contains(got, "go by way of that release first") {
			t.Errorf("%+v: %q", c, got)
		}
	}
	if got := said(looked(t, &Plan{Version: "0.3.0"}, nodeOf("n1", "", "6.12.0")), "versions"); got != "" {
		t.Errorf("nothing is there: %q", got)
	}
}

// TestOtherMeshes: other meshes are warned of; a namespace in both is not well.
func TestOtherMeshes(t *testing.T) {
	deployment := "{apiVersion: apps/v1, kind: Deployment, metadata: {namespace: %s, name: x, labels: {%s}}}"
	for objects, want := range map[string]string{
		fmt.Sprintf(deployment, "istio-system", "app: istiod"):                                                                                     "warn cluster: Istio's istiod runs in namespace istio-system",
		fmt.Sprintf(deployment, "linkerd", "linkerd.io/control-plane-component: destination"):                                                      "warn cluster: Linkerd's",
		fmt.Sprintf(deployment, "shop", "app: web"):                                                                                                "",
		"{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {heddle.dev/mesh: enabled}}}":                                            "",
		"{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {istio-injection: enabled}}}":                                            "",
		"{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {heddle.dev/mesh: enabled, istio-injection: enabled}}}":                  "warn cluster: namespace shop is enrolled, and marked for Istio by istio-injection=enabled; nothing of Istio was found",
		"{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {heddle.dev/mesh: enabled, istio-injection: disabled}}}":                 "",
		"{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {heddle.dev/mesh: enabled}, annotations: {linkerd.io/inject: enabled}}}": "warn cluster: namespace shop is enrolled, and marked for Linkerd",
	} {
		if got := said(looked(t, &Plan{}, nodeOf("n1", "", "6.12.0"), objects), "other mesh"); !strings.HasPrefix(got, want) || want == "" && got != "" {
			t.Errorf("%s: got %q, want %q", objects, got, want)
		}
	}
}

// TestMarks: marks of another mesh that runs stand in the way, those that are left over do not.
func TestMarks(t *testing.T) {
	istiod := "{apiVersion: apps/v1, kind: Deployment, metadata: {namespace: istio-system, name: x, labels: {app: istiod}}}"
	destination := "{apiVersion: apps/v1, kind: Deployment, metadata: {namespace: linkerd, name: x, labels: {linkerd.io/control-plane-component: destination}}}"
	for _, c := range []struct {
		marks, runs, want string
	}{
		{"istio-injection: enabled}", istiod, "fail"}, {"istio-injection: enabled}", destination, "warn"}, {"istio-injection: enabled}", "", "warn"},
		{"istio.io/rev: stable}", istiod, "fail"}, {"istio.io/rev: stable, istio-injection: disabled}", istiod, ""},
		{"istio.io/dataplane-mode: ambient}", daemonSet("istio-system", "ztunnel"), "fail"}, {"istio.io/dataplane-mode: ambient, istio-injection: disabled}", istiod, "fail"},
		{"istio.io/dataplane-mode: none}", istiod, ""}, {"}, annotations: {linkerd.io/inject: enabled}", destination, "fail"}, {"}, annotations: {linkerd.io/inject: enabled}", istiod, "warn"},
	} {
		objects := []string{nodeOf("n1", "", "6.12.0"), "{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {heddle.dev/mesh: enabled, " + c.marks + "}}"}
		if c.runs != "" {
			objects = append(objects, c.runs)
		}
		of := ""
		for line := range strings.Lines(said(looked(t, &Plan{}, objects...), "other mesh")) {
			if strings.Contains(line, "namespace shop is enrolled") {
				of += line
			}
		}
		if mark, _, _ := strings.Cut(of, " "); mark != c.want {
			t.Errorf("%+v: %q", c, of)
		}
	}
}

// TestNamespace: what Pod Security keeps out stands in the way, unless its label is taken.
func TestNamespace(t *testing.T) {
	const text = "{apiVersion: v1, kind: Namespace, metadata: {name: heddle-system, labels: {pod-security.kubernetes.io/enforce: %s}}}"
	for level, want := range map[string]string{"privileged": "ok", "baseline": "fail", "restricted": "fail"} {
		node, there := nodeOf("n1", "", "6.12.0"), fmt.Sprintf(text, level)
		if got := said(looked(t, &Plan{}, node, there), "namespace"); !strings.HasPrefix(got, want) {
			t.Errorf("%s: %q", level, got)
		}
		writes := []*unstructured.Unstructured{object(t, fmt.Sprintf(text, "privileged"))}
		if got := said(looked(t, &Plan{Objects: writes, Takes: true}, node, there), "namespace"); !strings.HasPrefix(got, "ok") {
			t.Errorf("%s, with --force-conflicts: %q", level, got)
		}
	}
	going := "{apiVersion: v1, kind: Namespace, metadata: {name: heddle-system, deletionTimestamp: '2026-01-01T00:00:00Z'}}"
	if got := said(looked(t, &Plan{}, nodeOf("n1", "", "6.12.0"), going), "namespace"); !strings.HasPrefix(got, "fail cluster: heddle-system is being deleted") || !strings.Contains(got, "kubectl wait --for=delete") {
		t.Errorf("one that is being deleted: %q", got)
	}
}

// TestRights: each kind that may not be written is named; and roles that may be written are
// tried, since giving a right needs it.
func TestRights(t *testing.T) {
	writes := []*unstructured.Unstructured{object(t, "{apiVersion: v1, kind: ServiceAccount, metadata: {namespace: heddle-system, name: a}}"),
		object(t, "{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRole, metadata: {name: heddle-operator}}")}
	terminating := apierrors.NewForbidden(schema.GroupResource{Resource: "roles"}, "heddle-operator", fmt.Errorf("unable to create new content in namespace heddle-system because it is being terminated"))
	terminating.ErrStatus.Details.Causes = []metav1.StatusCause{{Type: corev1.NamespaceTerminatingCause}}
	for _, c := range []struct {
		name, want string
		may        func(verb, resource, named string) bool
		try        error
		asked      int
	}{
		{"an administrator", "ok cluster: you may write all 2 kinds", func(string, string, string) bool { return true }, nil, 1},
		{"who has just enough", "ok cluster: you may write all 2 kinds", func(verb, _, _ string) bool { return verb != "*" }, nil, 7},
		{"who has it by name", "ok cluster: you may write all 2 kinds", func(verb, _, named string) bool { return verb != "*" && named != "" }, nil, 12},
		{"who may not create what is there", "ok cluster: you may write all 2 kinds", func(verb, resource, _ string) bool {
			return verb != "*" && (verb != "create" || resource != "clusterroles")
		}, nil, 7},
		{"who may not create accounts", "fail cluster: you may not write ServiceAccount heddle-system → ask", func(verb, resource, _ string) bool {
			return verb != "*" && (verb != "create" || resource != "serviceaccounts")
		}, nil, 8},
		{"who may not give rights", "fail cluster: you may not give the operator its rights, of ClusterRole heddle-operator", func(verb, _, _ string) bool { return verb != "*" },
			apierrors.NewForbidden(schema.GroupResource{Group: "rbac.authorization.k8s.io", Resource: "clusterroles"}, "heddle-operator", fmt.Errorf("attempting to grant RBAC permissions not currently held")), 7},
		{"whose namespace is being deleted", "ok cluster: you may write all 2 kinds", func(verb, _, _ string) bool { return verb != "*" }, terminating, 7},
	} {
		asked := 0
		cluster := Cluster{
			Review: func(_ context.Context, o *unstructured.Unstructured) (*unstructured.Unstructured, error) {
				asked++
				about, _, err := unstructured.NestedStringMap(o.Object, "spec", "resourceAttributes")
				if err != nil {
					t.Fatal(err)
				}
				o = o.DeepCopy()
				return o, unstructured.SetNestedField(o.Object, c.may(about["verb"], about["resource"], about["name"]), "status", "allowed")
			},
			Try: func(context.Context, *unstructured.Unstructured) error { return c.try },
			Get: shown(t, "{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRole, metadata: {name: heddle-operator}}").Get,
		}
		r := health.New()
		if err := cluster.Rights(t.Context(), &Plan{Objects: writes}, r); err != nil {
			t.Fatal(err)
		}
		if got := said(r, "rights"); !strings.HasPrefix(got, c.want) || asked != c.asked {
			t.Errorf("%s: %q after %d questions, want %q after %d", c.name, got, asked, c.want, c.asked)
		}
	}
	r := health.New()
	unasked := Cluster{Review: func(context.Context, *unstructured.Unstructured) (*unstructured.Unstructured, error) {
		return nil, apierrors.NewForbidden(schema.GroupResource{Resource: "selfsubjectaccessreviews"}, "", fmt.Errorf("guest may not"))
	}}
	if err := unasked.Rights(t.Context(), &Plan{Objects: writes}, r); err != nil || !strings.HasPrefix(said(r, "rights"), "warn cluster: could not look: selfsubjectaccessreviews") {
		t.Errorf("who may not even ask: %v, %q", err, said(r, "rights"))
	}
}
