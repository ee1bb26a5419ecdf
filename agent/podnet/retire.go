package podnet

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"

	"github.com/heddle-mesh/heddle/agent/podnet/ledger"
	"github.com/heddle-mesh/heddle/agent/steer"
	"github.com/heddle-mesh/heddle/bpf"
)

// A pod that stays in the mesh may leave its network namespace for another: its
// networkNamespace is changed, or the path leads to a new one. What is left in
// the old one was not taken out of the mesh, so its gate stays, retired: without
// redirection, under a name of its own, on record with the name of its pod. It
// goes when the namespace and its veth are gone, when that pod is unenrolled,
// and when a pod is enrolled in that namespace, which takes the gate over. At no
// moment is it detached on the way.

// retiredPrefix begins the names of retired gates. No workload has such a name:
// those have an underscore.
const retiredPrefix = "retired-"

// retired is what a Node knows of retired gates; the state files are the truth.
type retired struct {
	sync.Mutex
	byName map[string]ledger.Pod
}

// Retired is a network namespace that its pod has left, and that stays closed.
type Retired struct {
	// Pod is the name of the pod; Path where the namespace was.
	Pod, Path string
}

// Retired returns the namespaces that their pods have left, by pod and path.
func (n *Node) Retired() []Retired {
	n.retired.Lock()
	defer n.retired.Unlock()
	all := make([]Retired, 0, len(n.retired.byName))
	for _, left := range n.retired.byName {
		all = append(all, Retired{Pod: left.Of, Path: left.Path})
	}
	slices.SortFunc(all, func(a, b Retired) int {
		return strings.Compare(a.Pod+"\x00"+a.Path, b.Pod+"\x00"+b.Path)
	})
	return all
}

// loadRetired reads what earlier agents retired. A file that cannot be read
// stays, and its gate with it, until Prune says so.
func (n *Node) loadRetired() {
	n.retired.byName = map[string]ledger.Pod{}
	names, err := n.state.Names()
	if err != nil {
		n.config.Log.Warn("namespaces that pods have left are not known", "error", err)
	}
	for _, name := range names {
		if !strings.HasPrefix(name, retiredPrefix) {
			continue
		}
		st, ok, err := n.state.Load(name)
		if err != nil {
			n.config.Log.Warn("a namespace that its pod has left is not known", "error", err)
		} else if ok {
			n.retired.byName[name] = st
		}
	}
}

// stopCapture ends redirection in a namespace that the pod leaves. The gate is
// what keeps it closed: an error here opens nothing.
func (p *Pod) stopCapture() {
	err := p.Kernel(func(k *bpf.Pod) error { return k.DetachRedirect() })
	if err = errors.Join(err, steer.Uninstall(p.links)); err != nil {
		p.node.config.Log.Warn("rules stay in a namespace that its pod has left", "workload", p.name, "netns", p.ns.Path(), "error", err)
	}
}

// retire keeps the gate around what st describes, for as long as that is there,
// and frees the pod's name. host is the host side of the pod's veth now: when it
// is the same, it was moved to another namespace, and nothing leads out of the
// old one.
func (n *Node) retire(st ledger.Pod, host int) error {
	n.retired.Lock()
	defer n.retired.Unlock()
	pinned, err := n.isPinned(st.Name)
	if err != nil {
		return err
	}
	if !pinned || !st.Enrolled || st.HostIndex == host || n.hostSideGone(&st) {
		return n.takeBack(st.Name)
	}
	left := st
	left.Of = st.Name
	left.Name = fmt.Sprintf("%s%d-%d-%d", retiredPrefix, st.Namespace.Dev, st.Namespace.Inode, st.HostIndex)
	if err := n.state.Save(left); err != nil {
		return err
	}
	if err := n.kernel.RenamePod(st.Name, left.Name); err != nil {
		return errors.Join(err, n.state.Remove(left.Name))
	}
	n.retired.byName[left.Name] = left
	n.config.Log.Warn("pod has left a network namespace, which stays closed until it is gone", "workload", st.Name, "netns", st.Path)
	return n.state.Remove(st.Name)
}

// unclaimed refuses a namespace in which another pod is enrolled still: its gate
// would come first or second there, and drop what this one lets pass. It comes
// after retire, so that two pods may change places.
func (n *Node) unclaimed(p *Pod) error {
	names, err := n.state.Names()
	if err != nil {
		return err
	}
	for _, name := range names {
		st, ok, err := n.state.Load(name)
		if err != nil || !ok || name == p.name || st.Of != "" || !st.Enrolled || st.HostIndex != p.link.Host {
			continue // a file that cannot be read is reported when its pod is due
		}
		return fmt.Errorf("pod %s is enrolled in this network namespace still: give each workload its own", name)
	}
	return nil
}

// reclaim gives the pod the retired gate that is around its namespace, if there
// is one, and returns its state.
func (n *Node) reclaim(p *Pod) (st ledger.Pod, ok bool, err error) {
	n.retired.Lock()
	defer n.retired.Unlock()
	for _, left := range n.retired.byName {
		if left.HostIndex != p.link.Host {
			continue
		}
		pinned, err := n.isPinned(left.Name)
		if err != nil {
			return ledger.Pod{}, false, err
		}
		if !pinned || left.Namespace != p.ns.ID() {
			// Its agent died before it got the pins, or its veth is elsewhere now.
			if err := n.drop(&left, pinned); err != nil {
				return ledger.Pod{}, false, err
			}
			continue
		}
		st = left
		st.Name, st.Of = p.name, ""
		if err := n.state.Save(st); err != nil {
			return ledger.Pod{}, false, err
		}
		if err := n.kernel.RenamePod(left.Name, p.name); err != nil {
			return ledger.Pod{}, false, err
		}
		delete(n.retired.byName, left.Name)
		return st, true, n.state.Remove(left.Name)
	}
	return ledger.Pod{}, false, nil
}

// release opens the retired gates that are chosen.
func (n *Node) release(chosen func(*ledger.Pod) bool) error {
	n.retired.Lock()
	defer n.retired.Unlock()
	var errs []error
	for _, left := range n.retired.byName {
		if chosen(&left) {
			errs = append(errs, n.drop(&left, true))
		}
	}
	return errors.Join(errs...)
}

// drop takes a retired gate back; the caller holds the lock. One without pins
// has changed nothing in its namespace that is not its pod's.
func (n *Node) drop(left *ledger.Pod, pinned bool) (err error) {
	if pinned {
		err = n.takeBack(left.Name)
	} else {
		err = n.state.Remove(left.Name)
	}
	if err == nil {
		delete(n.retired.byName, left.Name)
	}
	return err
}

// sweepRetired forgets the gates whose veths are gone.
func (n *Node) sweepRetired() {
	if err := n.release(n.hostSideGone); err != nil {
		n.config.Log.Warn("pins of a namespace that is gone stay", "error", err)
	}
}

// hostSideGone reports whether the veth is gone that a gate was on. The
// kernel gives an interface's index again only after all others
// (dev_index_reserve, net/core/dev.c).
func (n *Node) hostSideGone(st *ledger.Pod) bool {
	var missing netlink.LinkNotFoundError
	_, err := n.links.LinkByIndex(st.HostIndex)
	return errors.As(err, &missing)
}

// leftBy returns the pod whose retired gate has a name; "" for any other name.
func (n *Node) leftBy(name string) string {
	n.retired.Lock()
	defer n.retired.Unlock()
	return n.retired.byName[name].Of
}

// retiredOf returns the pod whose retired gate has a number; "" when there is none.
func (n *Node) retiredOf(id uint32) string {
	n.retired.Lock()
	defer n.retired.Unlock()
	for _, left := range n.retired.byName {
		if left.ID == id {
			return left.Of
		}
	}
	return ""
}

// isPinned reports whether anything of the kernel's has a pod's name.
func (n *Node) isPinned(name string) (bool, error) {
	pinned, err := n.kernel.Pods()
	return slices.Contains(pinned, name), err
}
