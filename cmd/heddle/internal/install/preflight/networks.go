package preflight

import (
	"context"
	"fmt"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/health"
)

// network is what makes pods' networks, known by its DaemonSet.
type network struct{ daemonSet, name string }

func wellKnown() []network {
	return []network{
		{"cilium", "Cilium"}, {"calico-node", "Calico"}, {"kindnet", "kindnet"}, {"kube-flannel-ds", "Flannel"}, {"kube-flannel", "Flannel"},
		{"aws-node", "Amazon VPC CNI"}, {"azure-cns", "Azure CNI"}, {"antrea-agent", "Antrea"}, {"ovnkube-node", "OVN-Kubernetes"},
		{"kube-router", "kube-router"}, {"weave-net", "Weave Net"}, {"canal", "Canal"}, {"netd", "GKE's CNI"}, {"anetd", "GKE Dataplane V2"},
	}
}

// networks finds out what makes pods' networks, and which of its settings stand in the way
// on the nodes that get an agent.
func (c Cluster) networks(ctx context.Context, nodes []node, r *health.Report) error {
	sets, err := c.List(ctx, apps("DaemonSet"), "", "")
	if err != nil {
		return err
	}
	found := false
	for i := range sets {
		set := &sets[i]
		for _, n := range wellKnown() {
			if set.GetName() != n.daemonSet {
				continue
			}
			found = true
			r.Good(clusterPart, "network", "%s, of DaemonSet %s/%s", n.name, set.GetNamespace(), set.GetName())
			if err := c.checkNetwork(ctx, n.name, set, nodes, r); err != nil {
				return err
			}
		}
	}
	if !found {
		r.Good(clusterPart, "network", "made by something that runs no well-known DaemonSet; each pod's enrolment tests the gate, and refuses the pod when it is passed by")
	}
	return nil
}

func (c Cluster) checkNetwork(ctx context.Context, name string, set *unstructured.Unstructured, nodes []node, r *health.Report) error {
	switch namespace := set.GetNamespace(); name {
	case "Cilium", "GKE Dataplane V2":
		settings, err := c.Get(ctx, core("ConfigMap"), namespace, "cilium-config")
		if settings == nil || err != nil {
			return err
		}
		data, _, err := unstructured.NestedStringMap(settings.Object, "data")
		if err != nil {
			return fmt.Errorf("ConfigMap %s/cilium-config: %w", namespace, err)
		}
		mend := ownCilium(namespace)
		if provided(set) {
			mend = providedCilium(namespace)
		}
		checkCilium(data, mend, nodes, r)
	case "Calico":
		kind := schema.GroupVersionKind{Group: "crd.projectcalico.org", Version: "v1", Kind: "FelixConfiguration"}
		felix, err := c.Get(ctx, kind, "", "default")
		if felix == nil || err != nil {
			return err
		}
		checkCalico(felix, r)
	}
	return nil
}

func checkCalico(felix *unstructured.Unstructured, r *health.Report) {
	bpf, _, err := unstructured.NestedBool(felix.Object, "spec", "bpfEnabled")
	if err != nil || !bpf {
		return // its other data planes are iptables and nftables, which stay out of pods
	}
	mode, _, err := unstructured.NestedString(felix.Object, "spec", "bpfConnectTimeLoadBalancing")
	if err == nil && mode == "Disabled" {
		r.Good(clusterPart, "Calico eBPF", "without load balancing at connect time")
		return
	}
	r.Bad(clusterPart, "Calico eBPF", "it turns a service's address into a pod's inside connect(), so that the mesh never sees which service was meant",
		`kubectl patch felixconfiguration default --type merge -p '{"spec":{"bpfConnectTimeLoadBalancing":"Disabled","bpfHostNetworkedNATWithoutCTLB":"Enabled"}}'`)
}
