package local

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/internal/kube"
	"github.com/heddle-mesh/heddle/internal/netnsdir"
)

// MaxNodes bounds the nodes of a local mesh: their underlay addresses share one
// last byte.
const MaxNodes = 64

// Plan is everything that Up would make. It is inert: making one changes nothing.
type Plan struct {
	Name string `json:"name"`
	// Folder is the absolute path of the configuration.
	Folder string `json:"folder"`
	Nodes  []Node `json:"nodes"`
}

// Node is one node of the plan.
type Node struct {
	Name string `json:"name"`
	// NetNS is the name of the node's network namespace, under /run/netns.
	NetNS string `json:"netns"`
	// FabricLink is the name of its port on the bridge.
	FabricLink string `json:"fabricLink"`
	// Underlay4 and Underlay6 are its addresses on the fabric.
	Underlay4 netip.Addr `json:"underlay4"`
	Underlay6 netip.Addr `json:"underlay6"`
	Pods      []Pod      `json:"pods,omitempty"`
}

// Pod is one workload with a network namespace of its own.
type Pod struct {
	// Workload is NAMESPACE/NAME.
	Workload string `json:"workload"`
	// NetNS is a path under /run/netns.
	NetNS     string       `json:"netns"`
	Addresses []netip.Addr `json:"addresses"`
	// HostLink is the name of the veth's host side, in the node's namespace.
	HostLink string `json:"hostLink"`
}

// FabricNetNS is the name of the namespace that joins the nodes.
func (p *Plan) FabricNetNS() string { return "heddle-" + p.Name + "-fabric" }

// OperatorAddress is where the operator serves agents.
func (p *Plan) OperatorAddress() string {
	return netip.AddrPortFrom(fabricAddr4(), operatorPort).String()
}

const operatorPort = 15012

func fabricAddr4() netip.Addr { return netip.MustParseAddr("100.64.0.1") }
func fabricAddr6() netip.Addr { return netip.MustParseAddr("fd00:64::1") }

// underlay returns the addresses of the node with the given index, from 0.
func underlay(index int) (v4, v6 netip.Addr) {
	b4, b6 := fabricAddr4().As4(), fabricAddr6().As16()
	b4[3], b6[15] = byte(index+2), byte(index+2)
	return netip.AddrFrom4(b4), netip.AddrFrom16(b6)
}

var nameForm = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,18}[a-z0-9])?$`)

// NewPlan reads the folder and lays out nodes and pods. Its errors name the
// file and field at fault, or the name that does not fit.
func NewPlan(name, folder string, udpByIdentity bool) (*Plan, error) {
	if !nameForm.MatchString(name) {
		return nil, fmt.Errorf("name %q: want 1 to 20 lower-case letters, digits and hyphens", name)
	}
	folder, err := filepath.Abs(folder)
	if err != nil {
		return nil, fmt.Errorf("find folder: %w", err)
	}
	objects, err := kube.LoadDir(folder)
	if err != nil {
		return nil, err
	}
	objects.UDPByIdentity = udpByIdentity
	if _, err := kube.Compile(objects); err != nil {
		return nil, err
	}
	plan := &Plan{Name: name, Folder: folder}
	byNode := map[string][]Pod{}
	for _, w := range objects.Workloads {
		node := w.Value.Spec.Node
		if byNode[node] == nil {
			byNode[node] = []Pod{}
		}
		if w.Value.Spec.NetworkNamespace == "" {
			continue
		}
		pod, err := planPod(w.Value.Namespace+"/"+w.Value.Name, w.Value.Spec.NetworkNamespace, w.Value.Spec.Addresses)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", w.Origin, err)
		}
		byNode[node] = append(byNode[node], pod)
	}
	return plan, plan.addNodes(byNode)
}

func planPod(workload, netns string, addresses []string) (Pod, error) {
	if filepath.Dir(filepath.Clean(netns)) != netnsdir.Path {
		return Pod{}, fmt.Errorf("workload %s: spec.networkNamespace %q: a local mesh needs one under %s", workload, netns, netnsdir.Path)
	}
	pod := Pod{Workload: workload, NetNS: filepath.Clean(netns), HostLink: "pod-" + digest(workload)}
	for _, text := range addresses {
		addr, err := netip.ParseAddr(text)
		if err != nil {
			return Pod{}, fmt.Errorf("workload %s: spec.addresses: %w", workload, err)
		}
		pod.Addresses = append(pod.Addresses, addr)
	}
	return pod, nil
}

func (p *Plan) addNodes(byNode map[string][]Pod) error {
	names := make([]string, 0, len(byNode))
	for name := range byNode {
		names = append(names, name)
	}
	slices.Sort(names)
	switch {
	case len(names) == 0:
		return errors.New("the folder has no Workload, so there is no node to make: a Workload's spec.node names its node")
	case len(names) > MaxNodes:
		return fmt.Errorf("the folder names %d nodes, a local mesh has at most %d", len(names), MaxNodes)
	}
	for i, name := range names {
		if !nameForm.MatchString(name) || name == "fabric" {
			return fmt.Errorf("node %q: a local mesh needs 1 to 20 lower-case letters, digits and hyphens, and not \"fabric\"", name)
		}
		node := Node{Name: name, NetNS: "heddle-" + p.Name + "-" + name, FabricLink: "node-" + name, Pods: byNode[name]}
		if len(node.FabricLink) >= unix.IFNAMSIZ {
			node.FabricLink = "node-" + digest(name)
		}
		node.Underlay4, node.Underlay6 = underlay(i)
		slices.SortFunc(node.Pods, func(a, b Pod) int { return strings.Compare(a.Workload, b.Workload) })
		p.Nodes = append(p.Nodes, node)
	}
	return nil
}

// digest is short enough for the name of a link.
func digest(name string) string {
	sum := sha256.Sum256([]byte(name))
	return hex.EncodeToString(sum[:5])
}

// pod finds a workload's pod.
func (p *Plan) pod(workload string) (Pod, error) {
	var known []string
	for _, n := range p.Nodes {
		for _, pod := range n.Pods {
			if pod.Workload == workload {
				return pod, nil
			}
			known = append(known, pod.Workload)
		}
	}
	return Pod{}, fmt.Errorf("no pod %q in mesh %q: there are %s", workload, p.Name, strings.Join(known, ", "))
}

// node finds a node by its name.
func (p *Plan) node(name string) (Node, error) {
	var known []string
	for _, n := range p.Nodes {
		if n.Name == name {
			return n, nil
		}
		known = append(known, n.Name)
	}
	return Node{}, fmt.Errorf("no node %q in mesh %q: there are %s", name, p.Name, strings.Join(known, ", "))
}
