package podnet

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/heddle-mesh/heddle/agent/netns"
	"github.com/heddle-mesh/heddle/agent/podnet/ledger"
	"github.com/heddle-mesh/heddle/agent/podnet/listener"
	"github.com/heddle-mesh/heddle/bpf"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// Node is the agent's hold on one node: the kernel's part and the enrolled
// pods. It is safe for concurrent use.
type Node struct {
	config Config
	kernel *bpf.Node
	state  ledger.Store
	maker  *netns.Maker
	home   *netns.Namespace // where the pods' veths have their host sides
	links  *netlink.Handle  // in home

	mu    sync.Mutex
	slots map[string]*slot // by pod name

	retired retired
	shelf   netns.Shelf
}

// slot serialises what is done to one pod.
type slot struct {
	sync.Mutex
	users int // under Node.mu: who has or waits for the lock
	// pod is nil unless enrolled by this Node; written under the lock.
	pod atomic.Pointer[Pod]
}

// Open loads the kernel's part of the node, or adopts what an earlier agent
// left, and stamps every socket made in Config.Cgroup from then on. It enrolls
// nothing. Requires root and Linux 6.1.
func Open(config Config) (*Node, error) {
	if err := config.complete(); err != nil {
		return nil, err
	}
	state, err := ledger.Open(config.StateDir)
	if err != nil {
		return nil, err
	}
	home := config.NetNS
	if home == "" {
		home = "/proc/thread-self/ns/net"
	}
	config.Inherited = maps.Clone(config.Inherited)
	for name, listeners := range config.Inherited {
		config.Inherited[name] = slices.Clone(listeners)
	}
	n := &Node{config: config, state: state, maker: netns.NewMaker(), slots: map[string]*slot{}}
	if n.home, err = netns.Open(home); err != nil {
		return nil, fmt.Errorf("open node's network namespace: %w", err)
	}
	if n.links, err = n.home.Netlink(); err != nil {
		return nil, errors.Join(err, n.home.Close())
	}
	n.kernel, err = bpf.Load(bpf.Config{
		PinDir: config.PinDir, CgroupPath: config.Cgroup, KubeletCgroup: config.KubeletCgroup,
		Mark: config.Mark, MarkMask: config.MarkMask, FlowsPerPod: config.FlowsPerPod, GrandfatherFor: config.Grandfather,
		TunnelPort: mesh.TunnelPort, WaypointPort: mesh.WaypointPort, Shared: config.Shared,
	})
	if err != nil {
		n.links.Close()
		return nil, errors.Join(err, n.home.Close())
	}
	n.loadRetired()
	return n, nil
}

// Close lets go of the node and of its pods, which stay enrolled: their
// listeners close, so that new connections are refused, and the gate goes on.
// Nothing else of the Node may run or be called after it.
func (n *Node) Close() error {
	n.mu.Lock()
	slots := slices.Collect(maps.Values(n.slots))
	n.mu.Unlock()
	var errs []error
	for _, s := range slots {
		s.Lock()
		if p := s.pod.Swap(nil); p != nil {
			errs = append(errs, p.close(false))
		}
		s.Unlock()
	}
	n.maker.Close()
	n.links.Close()
	return errors.Join(append(errs, n.kernel.Close(), n.home.Close())...)
}

// Uninstall removes what is left of the node in the kernel, after every pod was
// unenrolled; Close must follow.
func (n *Node) Uninstall() error {
	names, err := n.known()
	if err != nil {
		return err
	}
	if len(names) > 0 {
		return fmt.Errorf("uninstall node: pods %v are enrolled: unenroll them first", names)
	}
	return n.kernel.Remove()
}

// lock takes a pod's slot; the returned function gives it back.
func (n *Node) lock(name string) (*slot, func()) {
	n.mu.Lock()
	s := n.slots[name]
	if s == nil {
		s = &slot{}
		n.slots[name] = s
	}
	s.users++
	n.mu.Unlock()
	s.Lock()
	return s, func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		s.users--
		if s.users == 0 && s.pod.Load() == nil {
			delete(n.slots, name)
		}
		s.Unlock()
	}
}

// Pods returns the pods that this Node has enrolled, by name.
func (n *Node) Pods() map[string]*Pod {
	n.mu.Lock()
	defer n.mu.Unlock()
	pods := map[string]*Pod{}
	for name, s := range n.slots {
		if p := s.pod.Load(); p != nil {
			pods[name] = p
		}
	}
	return pods
}

// known lists the pods that have anything in the kernel or on disk.
func (n *Node) known() ([]string, error) {
	pinned, err := n.kernel.Pods()
	if err != nil {
		return nil, err
	}
	stated, err := n.state.Names()
	if err != nil {
		return nil, err
	}
	names := append(pinned, stated...)
	slices.Sort(names)
	return slices.Compact(names), nil
}

// Prune unenrolls every pod that is not in keep, those of earlier agents too,
// and returns the names of those it took back. Call it only with a complete
// list: what it does not name loses its gate, and so do the namespaces that
// such pods have left.
func (n *Node) Prune(ctx context.Context, keep map[string]bool) ([]string, error) {
	names, err := n.known()
	if err != nil {
		return nil, fmt.Errorf("prune pods: %w", err)
	}
	var pruned []string
	var errs []error
	for _, name := range names {
		if keep[name] || keep[n.leftBy(name)] {
			continue
		}
		if err := ctx.Err(); err != nil {
			errs = append(errs, fmt.Errorf("prune pods: %w", err))
			break
		}
		if err := n.Unenroll(ctx, name); err != nil {
			errs = append(errs, err)
			continue
		}
		pruned = append(pruned, name)
	}
	return pruned, errors.Join(errs...)
}

// Flows are tidied this often; entries of live connections, which keepalives
// refreshes, are far from idle for flowIdle.
const (
	tidyEvery = 5 * time.Second
	flowIdle  = 6 * listener.KeepAlive
)

// Watch reports pods whose network namespace went away, or whose veth did, once
// each time, until ctx is done, and tidies the kernel's tables of all pods meanwhile.
// It looks rather than listens: a namespace that the agent's own sockets keep
// alive tells nobody that its path is gone.
func (n *Node) Watch(ctx context.Context, gone func(name string, why error)) error {
	reported := map[*Pod]bool{}
	tick := time.NewTicker(n.config.WatchInterval)
	defer tick.Stop()
	tidied := time.Now()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		pods := n.Pods()
		tidy := time.Since(tidied) >= tidyEvery
		if tidy {
			tidied = time.Now()
			n.sweepRetired()
		}
		for name, p := range pods {
			if tidy {
				p.expireFlows()
				p.tidySockets()
			}
			if err := p.forgetTuples(); err != nil && !errors.Is(err, ErrClosed) {
				n.config.Log.Warn("tuples of connections that are gone stay", "error", err)
			}
			why := p.lost()
			if why != nil && !reported[p] {
				gone(name, why)
			}
			reported[p] = why != nil
		}
		maps.DeleteFunc(reported, func(p *Pod, _ bool) bool { return pods[p.name] != p })
	}
}

func (p *Pod) expireFlows() {
	err := p.Kernel(func(k *bpf.Pod) error {
		_, err := k.ExpireFlows(flowIdle)
		return err
	})
	if err != nil && !errors.Is(err, ErrClosed) {
		p.node.config.Log.Warn("flows not expired", "workload", p.name, "error", err)
	}
}
