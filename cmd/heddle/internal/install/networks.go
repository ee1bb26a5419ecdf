package install

import (
	"context"
	"fmt"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/health"
)

// network is what makes pods' networks, known by its DaemonSet.
type network struct{ daemonSet, name string }

func networks() []network {
	return []network{
		{"cilium", "Cilium"}, {"calico-node", "Calico"}, {"kindnet", "kindnet"}, {"kube-flannel-ds", "Flannel"}, {"kube-flannel", "Flannel"},
		{"aws-node", "Amazon VPC CNI"}, {"azure-cns", "Azure CNI"}, {"antrea-agent", "Antrea"}, {"ovnkube-node", "OVN-Kubernetes"},
		{"kube-router", "kube-router"}, {"weave-net", "Weave Net"}, {"canal", "Canal"}, {"netd", "GKE's CNI"}, {"anetd", "GKE Dataplane V2"},
	}
}

// checkNetworks finds out what makes pods' networks, and which of its settings
// stand in the way.
func (c *Cluster) checkNetworks(ctx context.Context, _ string, r *health.Report) error {
	sets, err := c.list(ctx, apps("DaemonSet"), "", "")
	if err != nil {
		return err
	}
	found := false
	for i := range sets {
		set := &sets[i]
		for _, n := range networks() {
			if set.GetName() != n.daemonSet {
				continue
			}
			found = true
			r.Good(clusterPart, "network", "%s, of DaemonSet %s/%s", n.name, set.GetNamespace(), set.GetName())
			if err := c.checkNetwork(ctx, n.name, set.GetNamespace(), r); err != nil {
				return err
			}
		}
		if set.GetName() == "ztunnel" || set.GetName() == "istio-cni-node" {
			r.Bad(clusterPart, "other mesh", fmt.Sprintf("Istio's %s runs in namespace %s", set.GetName(), set.GetNamespace()),
				"never enroll a namespace in both: one that has istio.io/dataplane-mode must not have heddle.dev/mesh")
		}
	}
	if !found {
		r.Good(clusterPart, "network", "made by something that runs no well-known DaemonSet; each pod's enrolment tests the gate, and refuses the pod when it is passed by")
	}
	return nil
}

func (c *Cluster) checkNetwork(ctx context.Context, name, namespace string, r *health.Report) error {
	switch name {
	case "Cilium", "GKE Dataplane V2":
		settings, err := c.get(ctx, core("ConfigMap"), namespace, "cilium-config")
		if settings == nil || err != nil {
			return err
		}
		data, _, err := unstructured.NestedStringMap(settings.Object, "data")
		if err != nil {
			return fmt.Errorf("ConfigMap %s/cilium-config: %w", namespace, err)
		}
		checkCilium(data, namespace, r)
	case "Calico":
		kind := schema.GroupVersionKind{Group: "crd.projectcalico.org", Version: "v1", Kind: "FelixConfiguration"}
		felix, err := c.get(ctx, kind, "", "default")
		if felix == nil || err != nil {
			return err
		}
		checkCalico(felix, r)
	}
	return nil
}

// checkCilium looks at the settings of Cilium's agent, by the names of its
// command-line reference.
func checkCilium(data map[string]string, namespace string, r *health.Report) {
	helm := "helm upgrade cilium cilium/cilium --namespace " + namespace + " --reuse-values --set "
	restart := fmt.Sprintf(" && kubectl -n %s rollout restart daemonset cilium", namespace)
	replaces := data["kube-proxy-replacement"]
	socketLB := replaces == "true" || replaces == "strict" || data["bpf-lb-sock"] == "true"
	switch {
	case socketLB && data["bpf-lb-sock-hostns-only"] != "true":
		r.Bad(clusterPart, "Cilium socket LB", "it turns a service's address into a pod's inside connect(), so that the mesh never sees which service was meant",
			helm+"socketLB.hostNamespaceOnly=true"+restart)
	case socketLB:
		r.Good(clusterPart, "Cilium socket LB", "in the nodes' own namespace only")
	}
	if data["cni-exclusive"] != "false" {
		r.Bad(clusterPart, "Cilium CNI", "cni-exclusive takes other plugins out of the chain, and heddle-cni with them",
			helm+"cni.exclusive=false"+restart)
	} else {
		r.Good(clusterPart, "Cilium CNI", "leaves other plugins in the chain")
	}
	if mode := data["datapath-mode"]; strings.HasPrefix(mode, "netkit") {
		r.Bad(clusterPart, "Cilium datapath", mode+": the gate watches the host's end of a pod's veth, and netkit has none: no pod could be enrolled",
			helm+"bpf.datapathMode=veth"+restart+"; pods that run keep their netkit interface until they are made anew")
	}
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
