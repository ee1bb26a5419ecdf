package preflight

import (
	"fmt"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/health"
)

// mending says how a setting is changed, by its name in Cilium's chart and in its ConfigMap.
type mending func(value, setting string) string

// ownCilium is of a Cilium that the cluster's people installed.
func ownCilium(namespace string) mending {
	return func(value, _ string) string {
		return fmt.Sprintf("helm upgrade cilium cilium/cilium --namespace %[1]s --reuse-values --set %[2]s && kubectl -n %[1]s rollout restart daemonset cilium", namespace, value)
	}
}

// providedCilium is of one that a provider keeps as it is: what one changes there is undone.
func providedCilium(namespace string) mending {
	return func(_, setting string) string {
		return fmt.Sprintf("this Cilium is the provider's: where the provider lets you choose, have %s in ConfigMap %s/cilium-config; otherwise take a cluster with another network", setting, namespace)
	}
}

// provided reports whether a provider keeps a DaemonSet as it is: GKE's, AKS's
// (kubernetes.azure.com/managedby), and those of Kubernetes' addon manager.
func provided(set *unstructured.Unstructured) bool {
	of := set.GetLabels()
	return set.GetName() == "anetd" || of["kubernetes.azure.com/managedby"] != "" || of["addonmanager.kubernetes.io/mode"] == "Reconcile"
}

// checkCilium looks at the settings of Cilium's agent, by the names of its command-line
// reference (docs.cilium.io, cilium-agent), on the nodes that get an agent. What is not set
// is as the agent has it by default, not as the chart has.
func checkCilium(data map[string]string, mend mending, nodes []node, r *health.Report) {
	replaces := replacesKubeProxy(data)
	socketLB := replaces || data["bpf-lb-sock"] == "true"
	switch {
	case socketLB && data["bpf-lb-sock-hostns-only"] != "true":
		r.Bad(clusterPart, "Cilium socket LB", "it turns a service's address into a pod's inside connect(), so that the mesh never sees which service was meant",
			mend("socketLB.hostNamespaceOnly=true", `bpf-lb-sock-hostns-only: "true"`))
	case socketLB:
		r.Good(clusterPart, "Cilium socket LB", "in the nodes' own namespace only")
	}
	if exclusive, err := strconv.ParseBool(data["cni-exclusive"]); err == nil && exclusive {
		r.Bad(clusterPart, "Cilium CNI", "cni-exclusive takes other plugins out of the chain, and heddle-cni with them",
			mend("cni.exclusive=false", `cni-exclusive: "false"`))
	} else {
		r.Good(clusterPart, "Cilium CNI", "leaves other plugins in the chain")
	}
	if mode := data["datapath-mode"]; strings.HasPrefix(mode, "netkit") {
		r.Bad(clusterPart, "Cilium datapath", mode+": the gate watches the host's end of a pod's veth, and netkit has none: no pod could be enrolled",
			mend("bpf.datapathMode=veth", "datapath-mode: veth")+"; pods that run keep their netkit interface until they are made anew")
		return
	}
	checkHostRouting(data, nodes, mend("bpf.hostLegacyRouting=true", `enable-host-legacy-routing: "true"`), r)
}

// checkHostRouting looks for eBPF host routing where programs of the two have no order.
// Cilium's program on a pod's veth then redirects packets (bpf_redirect_neigh,
// bpf_redirect_peer), and whatever hangs behind it, or on the hooks that a redirect leaves
// out, never sees them.
func checkHostRouting(data map[string]string, nodes []node, legacy string, r *health.Report) {
	const name = "Cilium host routing"
	if !routesInBPF(data) {
		r.Good(clusterPart, name, "legacy: packets take the host's stack, and pass both ends of a pod's veth")
		return
	}
	if nodes == nil {
		r.Warn(clusterPart, name, "in eBPF, and the nodes' kernels are not known: before Linux 6.6 packets could pass the gate by", "make sure that nodes with agents have Linux 6.6 or newer, or "+legacy)
		return
	}
	var old []string
	for _, n := range nodes {
		if n.kernel.before(tcxKernel()) {
			old = append(old, fmt.Sprintf("%s (%d.%d)", n.name, n.kernel[0], n.kernel[1]))
		}
	}
	if len(old) == 0 {
		r.Good(clusterPart, name, "in eBPF; the gate is before it, by tcx, on Linux 6.6 and newer")
		return
	}
	r.Bad(clusterPart, name, "in eBPF on nodes before Linux 6.6, which has no tcx to be first in: "+some(old)+". Cilium's tc filter can come before the gate on the host's end of a pod's veth, "+
		"and redirects what leaves the pod past it (bpf_redirect_neigh); what comes to the pod is handed to its eth0 (bpf_redirect_peer), past the host's end. "+
		"Left is the gate's twin on eth0, a filter that a pod with NET_ADMIN can take away there: plaintext, and what policy refuses, would pass",
		legacy+` (enable-host-legacy-routing: "true"), or boot these nodes with Linux 6.6 or newer, or keep agents off them: --set agent.nodeSelector`)
}

// replacesKubeProxy reads kube-proxy-replacement, whose "strict" newer versions call "true".
func replacesKubeProxy(data map[string]string) bool {
	return data["kube-proxy-replacement"] == "true" || data["kube-proxy-replacement"] == "strict"
}

// routesInBPF says whether Cilium routes in eBPF: by default, unless it is told to use the
// host's stack, or lacks what it needs for it (its agent then falls back, and logs so):
// kube-proxy's replacement, and masquerading that is not iptables'.
func routesInBPF(data map[string]string) bool {
	masquerades := data["enable-ipv4-masquerade"] != "false" || data["enable-ipv6-masquerade"] == "true"
	return data["enable-host-legacy-routing"] != "true" && replacesKubeProxy(data) && (!masquerades || data["enable-bpf-masquerade"] == "true")
}

// some names the first of many.
func some(names []string) string {
	if more := len(names) - 3; more > 0 {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:3], ", "), more)
	}
	return strings.Join(names, ", ")
}
