package preflight

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/health"
)

// kernel is a version of Linux, MAJOR and MINOR.
type kernel [2]int

func (k kernel) before(other kernel) bool { return slices.Compare(k[:], other[:]) < 0 }

// The kernels that matter: the first that agents run on, and the first that has tcx, hooks
// where programs have an order.
func oldestKernel() kernel { return kernel{6, 1} }
func tcxKernel() kernel    { return kernel{6, 6} }

// node is one that gets an agent.
type node struct {
	name   string
	kernel kernel
}

// nodeInfo is what a kubelet reports of its node, "" for what it does not.
type nodeInfo struct{ kernel, system, image string }

// infoOf reads the fields one by one: of NodeSystemInfo, not all are strings.
func infoOf(o *unstructured.Unstructured) nodeInfo {
	field := func(name string) string {
		text, _, err := unstructured.NestedString(o.Object, "status", "nodeInfo", name)
		if err != nil {
			return "" // as if it were not reported, which is warned of
		}
		return text
	}
	return nodeInfo{field("kernelVersion"), field("operatingSystem"), field("osImage")}
}

// nodes looks at each node's kernel, as its kubelet reports it, and returns those that get
// an agent and whose kernel is known; nil only with an error.
func (c Cluster) nodes(ctx context.Context, p *Plan, r *health.Report) ([]node, error) {
	all, err := c.List(ctx, core("Node"), "", "")
	if err != nil {
		return nil, err
	}
	if len(all) == 0 {
		r.Warn(clusterPart, "nodes", "there are none", "add a node that runs Linux 6.1 or newer")
	}
	wanted, err := p.selector()
	if err != nil {
		return nil, err
	}
	nodes := []node{}
	for i := range all {
		info := infoOf(&all[i])
		n := node{name: all[i].GetName()}
		if !wanted.Matches(labels.Set(all[i].GetLabels())) {
			r.Good(n.name, "kernel", "%s: agent.nodeSelector keeps agents off this node, and it has no pod of the mesh", info.kernel)
			continue
		}
		if checkNode(&n, info, r) {
			nodes = append(nodes, n)
		}
	}
	return nodes, nil
}

// selector is which nodes get an agent, but for the label of their operating system: some
// kubelets' nodes come without, and checkNode asks what they report.
func (p *Plan) selector() (labels.Selector, error) {
	agent := p.find("DaemonSet", "heddle-agent")
	if agent == nil {
		return labels.Everything(), nil
	}
	chosen, _, err := unstructured.NestedStringMap(agent.Object, "spec", "template", "spec", "nodeSelector")
	if err != nil {
		return nil, fmt.Errorf("DaemonSet heddle-agent: nodeSelector: %w", err)
	}
	delete(chosen, "kubernetes.io/os")
	return labels.SelectorFromSet(chosen), nil
}

// checkNode says whether the node gets an agent, and its kernel is known.
func checkNode(n *node, info nodeInfo, r *health.Report) bool {
	const name = "kernel"
	release := info.kernel
	_, err := fmt.Sscanf(release, "%d.%d", &n.kernel[0], &n.kernel[1])
	switch {
	case info.system != "" && info.system != "linux":
		r.Good(n.name, name, "%s: no agent runs here, and no pod of the mesh", info.system)
		return false
	case err != nil:
		r.Warn(n.name, name, fmt.Sprintf("the kubelet reports %q", release), "is the kubelet up? `kubectl describe node "+n.name+"`")
		return false
	case n.kernel.before(oldestKernel()):
		r.Bad(n.name, name, strings.TrimSpace(release+" "+parenthesised(info.image))+" is too old", "boot the node with Linux 6.1 or newer, or keep agents off it: --set agent.nodeSelector")
	default:
		r.Good(n.name, name, "%s", strings.TrimSpace(release+" "+parenthesised(info.image)))
	}
	return true
}

func parenthesised(text string) string {
	if text == "" {
		return ""
	}
	return "(" + text + ")"
}
