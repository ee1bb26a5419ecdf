package podnet

import (
	"context"
	"errors"
	"fmt"

	"github.com/heddle-mesh/heddle/agent/podnet/ledger"
	"github.com/heddle-mesh/heddle/agent/steer"
)

// Unenroll takes a pod out of the mesh: capture ends, then the gate opens, and
// rules, routes, links, maps and listeners go; what is left in the pod is what
// was there before. Drain its connections first: those that still run through
// the agent break. It works for pods of earlier agents, for pods whose network
// namespace is gone, and for names that nobody enrolled. Namespaces that the pod
// has left open with it. After an error it may be called again.
func (n *Node) Unenroll(ctx context.Context, name string) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("unenroll pod %s: %w", name, err)
	}
	s, unlock := n.lock(name)
	defer unlock()
	var err error
	if p := s.pod.Swap(nil); p != nil {
		err = p.unenroll()
	} else {
		err = n.takeBack(name)
	}
	if err == nil {
		err = n.release(func(left *ledger.Pod) bool { return left.Of == name || left.Name == name })
	}
	if err != nil {
		return fmt.Errorf("unenroll pod %s: %w", name, err)
	}
	n.config.Log.Info("pod unenrolled", "workload", name)
	return nil
}

// Unenroll is Node.Unenroll of this pod. The Pod is of no use after it.
func (p *Pod) Unenroll(ctx context.Context) error { return p.node.Unenroll(ctx, p.name) }

// unenroll takes back a pod that this Node has enrolled. The state file goes
// last: while it is there, takeBack finishes what failed.
func (p *Pod) unenroll() error {
	if err := p.close(true); err != nil {
		return err
	}
	return p.node.state.Remove(p.name)
}

// takeBack undoes an enrolment of which only pins and the state file are known:
// in the namespace if it is still the one at its path, and on the host side.
func (n *Node) takeBack(name string) error {
	st, stated, err := n.state.Load(name)
	if err != nil {
		return err
	}
	if stated {
		if err := n.uninstallAt(st); err != nil {
			return err
		}
	}
	pinned, err := n.isPinned(name)
	if err != nil {
		return err
	}
	if pinned {
		err := n.home.Do(func() error { return n.kernel.RemovePod(name) })
		if err != nil {
			return err
		}
	}
	return n.state.Remove(name)
}

// uninstallAt removes rules, routes and filters from the namespace that st names. That
// it is gone, or that another is at its path, is no error: they went with it.
func (n *Node) uninstallAt(st ledger.Pod) error {
	ns := st.There()
	if ns == nil {
		return nil
	}
	defer ns.Close()
	return errors.Join(steer.UninstallIn(ns), ns.Do(func() error { return n.kernel.RemoveFilters(st.Name, st.PodIndex) }))
}
