package install

import (
	"fmt"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic/fake"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/health"
)

// TestCiliumDatapath: netkit pairs have no end that the gate watches (agent/steer), so a
// check does not call them good.
func TestCiliumDatapath(t *testing.T) {
	for mode, good := range map[string]bool{"": true, "veth": true, "netkit": false, "netkit-l2": false} {
		r := health.New()
		checkCilium(map[string]string{"cni-exclusive": "false", "datapath-mode": mode}, "kube-system", r)
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

// knownKinds maps kinds as an API server's discovery does.
type knownKinds struct{ meta.RESTMapper }

// Reset has nothing to ask anew.
func (knownKinds) Reset() {}

// checkedNetworks is what checkNetworks finds on a cluster of these objects; without
// calico the kind of its settings is not there.
func checkedNetworks(t *testing.T, calico bool, objects ...string) *health.Report {
	t.Helper()
	sets := schema.GroupVersion{Group: "apps", Version: "v1"}
	felix := schema.GroupVersion{Group: "crd.projectcalico.org", Version: "v1"}
	mapper := meta.NewDefaultRESTMapper(nil)
	mapper.Add(sets.WithKind("DaemonSet"), meta.RESTScopeNamespace)
	if calico {
		mapper.Add(felix.WithKind("FelixConfiguration"), meta.RESTScopeRoot)
	}
	var all []runtime.Object
	for _, text := range objects {
		all = append(all, unstructuredOf(t, text))
	}
	api := fake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), map[schema.GroupVersionResource]string{
		sets.WithResource("daemonsets"): "DaemonSetList", felix.WithResource("felixconfigurations"): "FelixConfigurationList"}, all...)
	r := health.New()
	if err := newCluster(api, knownKinds{mapper}, "v1.34.0", "test").checkNetworks(t.Context(), "", r); err != nil {
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
		r := checkedNetworks(t, true, objects...)
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
	if r := checkedNetworks(t, false, daemonSet("kube-system", "calico-node")); !r.OK || len(r.Findings) != 1 {
		t.Errorf("without the kind of its settings: %+v", r.Findings)
	}
}

// TestOtherMesh: ztunnel and Istio's CNI are each found, where they run, beside the
// cluster's network; what is named alike is not theirs.
func TestOtherMesh(t *testing.T) {
	r := checkedNetworks(t, false, daemonSet("istio-system", "ztunnel"), daemonSet("mesh", "istio-cni-node"), daemonSet("shop", "ztunnel-logs"), daemonSet("kube-system", "kindnet"))
	found := map[string]bool{}
	for _, f := range r.Findings {
		if f.Name == "other mesh" {
			found[f.Detail] = !f.OK && strings.Contains(f.Remedy, "istio.io/dataplane-mode") && strings.Contains(f.Remedy, "heddle.dev/mesh")
		}
	}
	if r.OK || len(found) != 2 || !found["Istio's ztunnel runs in namespace istio-system"] || !found["Istio's istio-cni-node runs in namespace mesh"] {
		t.Errorf("%+v", r.Findings)
	}
	if r := checkedNetworks(t, false, daemonSet("shop", "ztunnel-logs")); !r.OK || len(r.Findings) != 1 || !strings.Contains(r.Findings[0].Detail, "no well-known DaemonSet") {
		t.Errorf("without another mesh, and without a network that is known: %+v", r.Findings)
	}
}
