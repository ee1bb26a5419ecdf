package adversary

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/reach"
	"github.com/heddle-mesh/heddle/internal/admin"
	"github.com/heddle-mesh/heddle/internal/attack"
	"github.com/heddle-mesh/heddle/internal/local"
)

// Parties are the attacked pod, the others, and the agent that counts.
type Parties struct {
	pod   string
	cfg   attack.Config
	agent func(context.Context) (*admin.Client, error)
	// node is the network namespace that this runs in, held by name until the end: the
	// process's first thread, whose it is, may be one that goes elsewhere. Nil where not needed.
	node *os.File
}

// Find chooses the parties: of a local mesh, all of its pods; or else those of the
// node that this runs on, whose agent is asked, with peers, the addresses of a pod
// on another node. Errors that match reach.ErrUsage are in what was asked for.
func Find(ctx context.Context, m *reach.Mesh, pod string, peers []string) (Parties, error) {
	addresses, err := parse(peers)
	if err != nil {
		return Parties{}, err
	}
	if m.OnCluster() {
		return Parties{}, fmt.Errorf("%w: --attack needs root on the pod's node, not the API server: run it there, with --peer", reach.ErrUsage)
	}
	if m.Socket == "" {
		found, err := m.Local()
		if err == nil {
			if len(addresses) > 0 {
				return Parties{}, fmt.Errorf("%w: --peer is for nodes of clusters: of a local mesh a pod is chosen", reach.ErrUsage)
			}
			return ofLocal(ctx, m, found, pod)
		}
		if _, missing := os.Stat(admin.DefaultSocket); m.Name != "" || missing != nil || !errors.Is(err, local.ErrNoMesh) {
			return Parties{}, err
		}
	}
	return ofNode(ctx, m, pod, addresses)
}

func parse(texts []string) ([]netip.Addr, error) {
	var all []netip.Addr
	for _, text := range texts {
		addr, err := netip.ParseAddr(text)
		if err != nil || !addr.IsGlobalUnicast() || addr.Is4In6() || addr.Zone() != "" {
			return nil, fmt.Errorf("%w: --peer %q: write the address of a pod, as in 10.244.2.7", reach.ErrUsage, text)
		}
		all = append(all, addr)
	}
	return all, nil
}

func ofLocal(ctx context.Context, m *reach.Mesh, found *local.Mesh, pod string) (Parties, error) {
	cfg, node, err := chooseLocal(found.Status(), pod, enrolled(ctx, m))
	return Parties{pod: pod, cfg: cfg, agent: func(ctx context.Context) (*admin.Client, error) { return admin.Dial(ctx, found.AgentSocket(node)) }}, err
}

// enrolled lists the pods that are enrolled on any node; an agent that does not
// answer has none.
func enrolled(ctx context.Context, m *reach.Mesh) map[string]bool {
	pods := map[string]bool{}
	targets, err := m.Agents(ctx)
	if err != nil {
		return pods // told by the agent of the attacked pod, which is asked next
	}
	for _, answer := range reach.Ask(ctx, m.Timeout, targets, reach.Status) {
		for _, p := range answer.Value.GetPods() {
			pods[p.GetWorkload()] = p.GetState() == "enrolled"
		}
	}
	return pods
}

// chooseLocal chooses the other parties: a client that is enrolled and a peer,
// both on other nodes, so that what gets through crosses the wire and meets no
// other gate before the tap; and a third pod to forge.
func chooseLocal(s local.Status, pod string, enrolled map[string]bool) (cfg attack.Config, node string, err error) {
	var known []string
	place := func(n local.NodeStatus, p local.Pod) attack.Pod {
		return attack.Pod{NetNS: p.NetNS, Node: filepath.Join("/run/netns", n.NetNS), Addresses: p.Addresses}
	}
	for _, n := range s.Nodes {
		for _, p := range n.Pods {
			known = append(known, p.Workload)
			if p.Workload == pod {
				cfg.Target, node = place(n, p), n.Name
			}
		}
	}
	if node == "" {
		return cfg, "", fmt.Errorf("%w: no pod %q in mesh %q: there are %s", reach.ErrUsage, pod, s.Name, strings.Join(known, ", "))
	}
	for _, n := range s.Nodes {
		for _, p := range n.Pods {
			if n.Name != node && enrolled[p.Workload] && len(p.Addresses) > len(cfg.Client.Addresses) {
				cfg.Client = place(n, p)
			}
			switch {
			case p.Workload == pod:
			case n.Name != node && len(p.Addresses) > len(cfg.Peer.Addresses):
				cfg.Peer = place(n, p)
			case len(cfg.Other.Addresses) == 0:
				cfg.Other = place(n, p)
			}
		}
	}
	if len(cfg.Peer.Addresses) == 0 {
		return cfg, "", fmt.Errorf("attack %s: mesh %q has no pod on another node to send to: add a Workload on a second node", pod, s.Name)
	}
	return cfg, node, nil
}

func ofNode(ctx context.Context, m *reach.Mesh, pod string, peers []netip.Addr) (Parties, error) {
	socket := m.Socket
	if socket == "" {
		socket = admin.DefaultSocket
	}
	agent := func(ctx context.Context) (*admin.Client, error) { return admin.Dial(ctx, socket) }
	client, err := agent(ctx)
	if err != nil {
		return Parties{}, err
	}
	status, err := reach.Status(ctx, client)
	if err := errors.Join(err, client.Close()); err != nil {
		return Parties{}, fmt.Errorf("agent of this node: %w", err)
	}
	node, err := os.Open("/proc/self/ns/net")
	if err != nil {
		return Parties{}, fmt.Errorf("this node's network namespace: %w", err)
	}
	cfg, err := chooseOnNode(status.GetPods(), pod, peers, fmt.Sprintf("/proc/self/fd/%d", node.Fd()))
	if err != nil {
		return Parties{}, errors.Join(err, node.Close())
	}
	return Parties{pod, cfg, agent, node}, nil
}

// chooseOnNode chooses among the pods of the node that this runs on: the client is
// on the same node as the attacked pod, since a pod elsewhere cannot be made to
// connect. The peer is elsewhere, so that what gets through meets no other gate
// before the tap.
func chooseOnNode(pods []*meshpb.PodStatus, pod string, peers []netip.Addr, node string) (cfg attack.Config, err error) {
	cfg.Peer.Addresses = peers
	var known []string
	for _, p := range pods {
		if p.GetState() != "enrolled" {
			continue
		}
		place := attack.Pod{NetNS: p.GetNetworkNamespace(), Node: node}
		for _, text := range p.GetAddresses() {
			addr, err := netip.ParseAddr(text)
			if err != nil {
				return cfg, fmt.Errorf("the agent gives pod %s the address %q: %w", p.GetWorkload(), text, err)
			}
			if slices.Contains(peers, addr) {
				return cfg, fmt.Errorf("%w: --peer %s is %s, of this node: name a pod on another one", reach.ErrUsage, addr, p.GetWorkload())
			}
			place.Addresses = append(place.Addresses, addr)
		}
		known = append(known, p.GetWorkload())
		switch {
		case p.GetWorkload() == pod:
			cfg.Target = place
		case len(place.Addresses) > len(cfg.Client.Addresses):
			cfg.Client, cfg.Other = place, attack.Pod{Addresses: place.Addresses}
		}
	}
	switch {
	case len(cfg.Target.Addresses) == 0:
		return cfg, fmt.Errorf("%w: no pod %q is enrolled on this node: there are %s", reach.ErrUsage, pod, strings.Join(known, ", "))
	case len(peers) == 0:
		return cfg, fmt.Errorf("%w: --attack needs somebody on another node to send to: name a pod's address with --peer", reach.ErrUsage)
	}
	for _, own := range cfg.Target.Addresses {
		if slices.ContainsFunc(peers, func(peer netip.Addr) bool { return peer.Is4() == own.Is4() }) {
			return cfg, nil
		}
	}
	return cfg, fmt.Errorf("%w: --peer: %s has %v: give an address of the same family", reach.ErrUsage, pod, cfg.Target.Addresses)
}
