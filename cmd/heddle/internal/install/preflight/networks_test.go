package preflight

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/yaml"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/health"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// TestCiliumDatapath: netkit pairs have no end that the gate watches (agent/steer), so a
// check does not call them good.
func TestCiliumDatapath(t *testing.T) {
	for mode, good := range map[string]bool{"": true, "veth": true, "netkit": false, "netkit-l2": false} {
		r := health.New()
		checkCilium(map[string]string{"cni-exclusive": "false", "datapath-mode": mode}, ownCilium("kube-system"), nil, r)
		if r.OK != good {
			t.Errorf("%q: %+v", mode, r.Findings)
		}
		for _, f := range r.Findings {
			if f.Name == "Cilium datapath" && (!strings.Contains(f.Detail, mode) || !strings.Contains(f.Remedy, "bpf.datapathMode=veth")) {
				t.Errorf("%+v", f)
			}
		}
	}
}

// TestCiliumExclusive: cni-exclusive stands in the way where it is set; the agent's own
// default is not to be exclusive.
func TestCiliumExclusive(t *testing.T) {
	for settings, want := range map[string]string{"": "ok", `cni-exclusive: "false"`: "ok", `cni-exclusive: "true"`: "fail"} {
		r := checkedNetworks(t, daemonSet("kube-system", "cilium"), "{apiVersion: v1, kind: ConfigMap, metadata: {namespace: kube-system, name: cilium-config}, data: {"+settings+"}}")
		if got := said(r, "Cilium CNI"); !strings.HasPrefix(got, want) {
			t.Errorf("%q: %q, want %s", settings, got, want)
		}
	}
}

// TestProvidedCilium: what is said of a Cilium that a provider keeps is not to upgrade it by Helm.
func TestProvidedCilium(t *testing.T) {
	set := "{apiVersion: apps/v1, kind: DaemonSet, metadata: {namespace: kube-system, name: %s, labels: {%s}}}"
	for of, helm := range map[string]bool{
		fmt.Sprintf(set, "cilium", "k8s-app: cilium"):                            true,
		fmt.Sprintf(set, "cilium", "kubernetes.azure.com/managedby: aks"):        false,
		fmt.Sprintf(set, "cilium", "addonmanager.kubernetes.io/mode: Reconcile"): false,
		fmt.Sprintf(set, "anetd", ""):                                            false,
	} {
		got := said(checkedNetworks(t, of, `{apiVersion: v1, kind: ConfigMap, metadata: {namespace: kube-system, name: cilium-config}, data: {kube-proxy-replacement: "true"}}`), "Cilium socket LB")
		if strings.Contains(got, "helm upgrade") != helm || helm == strings.Contains(got, `bpf-lb-sock-hostns-only: "true" in ConfigMap kube-system/cilium-config`) || !strings.HasPrefix(got, "fail") {
			t.Errorf("%s: %q", of, got)
		}
	}
}

// shown is a cluster that has these objects. A kind of which there is none is not there.
func shown(t *testing.T, objects ...string) Cluster {
	t.Helper()
	var all []unstructured.Unstructured
	for _, text := range objects {
		o := unstructured.Unstructured{}
		if err := yaml.Unmarshal([]byte(text), &o.Object); err != nil {
			t.Fatal(err)
		}
		all = append(all, o)
	}
	list := func(_ context.Context, kind schema.GroupVersionKind, namespace, selector string) (found []unstructured.Unstructured, err error) {
		wanted, err := labels.Parse(selector)
		if err != nil {
			return nil, err
		}
		for _, o := range all {
			if o.GroupVersionKind() == kind && (namespace == "" || namespace == o.GetNamespace()) && wanted.Matches(labels.Set(o.GetLabels())) {
				found = append(found, o)
			}
		}
		return found, nil
	}
	return Cluster{List: list, Record: "heddle-install", Get: func(ctx context.Context, kind schema.GroupVersionKind, namespace, name string) (*unstructured.Unstructured, error) {
		found, err := list(ctx, kind, namespace, "")
		for i := range found {
			if found[i].GetName() == name {
				return &found[i], err
			}
		}
		return nil, err
	}}
}

// checkedNetworks is what is found of the networks of a cluster of these objects.
func checkedNetworks(t *testing.T, objects ...string) *health.Report {
	t.Helper()
	r := health.New()
	if err := shown(t, objects...).networks(t.Context(), nil, r); err != nil {
		t.Fatal(err)
	}
	return r
}

func daemonSet(namespace, name string) string {
	return fmt.Sprintf("{apiVersion: apps/v1, kind: DaemonSet, metadata: {namespace: %s, name: %s}}", namespace, name)
}

// TestCalico: its eBPF data plane is in the way while it turns services' addresses at
// connect(), and that is what it does unless told otherwise; its others are not.
func TestCalico(t *testing.T) {
	for spec, want := range map[string]string{
		"":                    "",
		"{}":                  "",
		"{bpfEnabled: false}": "",
		"{bpfEnabled: true}":  "bad",
		"{bpfEnabled: true, bpfConnectTimeLoadBalancing: TCP}":      "bad",
		"{bpfEnabled: true, bpfConnectTimeLoadBalancing: Enabled}":  "bad",
		"{bpfEnabled: true, bpfConnectTimeLoadBalancing: Disabled}": "good",
	} {
		objects := []string{daemonSet("calico-system", "calico-node")}
		if spec != "" {
			objects = append(objects, "{apiVersion: crd.projectcalico.org/v1, kind: FelixConfiguration, metadata: {name: default}, spec: "+spec+"}")
		}
		r := checkedNetworks(t, objects...)
		said := ""
		for _, f := range r.Findings {
			switch {
			case f.Name != "Calico eBPF":
			case f.OK:
				said = "good"
			case strings.Contains(f.Detail, "connect()") && strings.Contains(f.Remedy, `"bpfConnectTimeLoadBalancing":"Disabled"`):
				said = "bad"
			}
		}
		if said != want || r.OK == (want == "bad") || r.Findings[0].Detail != "Calico, of DaemonSet calico-system/calico-node" {
			t.Errorf("%q: %q, want %q: %+v", spec, said, want, r.Findings)
		}
	}
	if r := checkedNetworks(t, daemonSet("kube-system", "calico-node")); !r.OK || len(r.Findings) != 1 {
		t.Errorf("without the kind of its settings: %+v", r.Findings)
	}
}

// TestOtherMesh: ztunnel and Istio's CNI are each found, where they run, beside the
// cluster's network; what is named alike is not theirs.
func TestOtherMesh(t *testing.T) {
	r := looked(t, &Plan{}, daemonSet("istio-system", "ztunnel"), daemonSet("mesh", "istio-cni-node"), daemonSet("shop", "ztunnel-logs"), daemonSet("kube-system", "kindnet"))
	found := map[string]bool{}
	for _, f := range r.Findings {
		if f.Name == "other mesh" {
			found[f.Detail] = !f.OK && strings.Contains(f.Remedy, "istio.io/dataplane-mode") && strings.Contains(f.Remedy, "heddle.dev/mesh")
		}
	}
	if r.OK || len(found) != 2 || !found["Istio's ztunnel runs in namespace istio-system"] || !found["Istio's istio-cni-node runs in namespace mesh"] {
		t.Errorf("%+v", r.Findings)
	}
	if r := checkedNetworks(t, daemonSet("shop", "ztunnel-logs")); !r.OK || len(r.Findings) != 1 || !strings.Contains(r.Findings[0].Detail, "no well-known DaemonSet") {
		t.Errorf("without another mesh, and without a network that is known: %+v", r.Findings)
	}
}
