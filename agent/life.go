package agent

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/agent/ready"
	"github.com/heddle-mesh/heddle/internal/identity/keystore"
)

// life is what a probe may ask about at any time of an agent's life.
type life struct {
	parts atomic.Pointer[parts] // nil until they run
	// settled stays true: pods that come later do not make an agent unready.
	settled atomic.Bool
	// given is true when another agent has taken over, leftNode when pods and kernel
	// are as they were before the first agent.
	given, leftNode atomic.Bool
	ended           atomic.Bool
}

func (l *life) carries(p *parts) { l.parts.Store(p) }

// state says why the agent is not ready; "" means that it is.
func (l *life) state() string {
	p := l.parts.Load()
	switch {
	case l.given.Load():
		return "another agent has taken this node over"
	case l.ended.Load():
		return "the agent has ended"
	case p == nil:
		return "the agent is starting: it has not joined the mesh yet"
	case p.leftToAnother() != nil:
		return "taking over from the agent that runs"
	case l.settled.Load():
		return ""
	case !p.uplink.Store().View().Synced():
		return "no configuration yet: " + p.uplink.Discovery().Status().LastError
	case !p.pods.Settled():
		return "pods are being enrolled"
	}
	l.settled.Store(true)
	return ""
}

// answerProbes runs what an agent does, and tells its container's probes of it.
func (a *Agent) answerProbes(ctx context.Context, run func(*life) error) error {
	l := &life{}
	// Until the end, not until ctx is done: draining is part of it.
	ctx, stop := context.WithCancel(context.WithoutCancel(ctx))
	answered := make(chan error, 1)
	go func() { answered <- ready.Serve(ctx, a.cfg.Node, a.cfg.Log, l.state) }()
	err := run(l)
	stop()
	return errors.Join(err, <-answered)
}

// The pauses of an agent that stays after a hand-over: how often it looks whether
// the node has an agent, and for how many looks there must have been none.
const (
	parkedLook  = time.Second
	parkedLooks = 5
)

// park waits until ctx is done, or until the node has no agent any more: then this
// process ends, to be started anew as one.
func (a *Agent) park(ctx context.Context) error {
	a.cfg.Log.Info("another agent has this node now: waiting to be stopped")
	debug.FreeOSMemory()
	tick := time.NewTicker(parkedLook)
	defer tick.Stop()
	for free := 0; free < parkedLooks; {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if a.nobodys() {
			free++
		} else {
			free = 0
		}
	}
	a.cfg.Log.Warn("the agent that took over is gone, and no other one is there: this one ends, to be started anew")
	return nil
}

// nobodys reports whether no process has the node's deed.
func (a *Agent) nobodys() bool {
	f, err := os.Open(a.deedPath())
	if errors.Is(err, fs.ErrNotExist) {
		return true
	}
	if err != nil {
		a.cfg.Log.Warn("it is not known whether this node has an agent", "error", err)
		return false
	}
	defer f.Close() // and with it the lock
	return unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB) == nil
}

// leaves reports whether pods leave the mesh with the agent.
func (c EndConfig) leaves() bool { return c.Unenroll || c.Uninstall }

// leaveNode takes what is left of the mesh off the node, when its pods have left.
func (a *Agent) leaveNode(ctx context.Context, p *parts) error {
	err := p.newPods.uninstall(a.cfg)
	if !a.cfg.End.Uninstall {
		return err
	}
	if err = errors.Join(err, named("uninstall", p.kernel.Uninstall())); err == nil {
		p.life.leftNode.Store(true)
		a.cfg.Log.Info("the node is as it was before the first agent")
	}
	return err
}

// removeFiles removes what agents keep in files, and the folders when they are
// empty then. What others have put there stays.
func (c Config) removeFiles() error {
	errs := []error{keystore.Remove(c.KeyDir)}
	paths := []string{
		filepath.Join(c.StateDir, "node"), filepath.Join(c.StateDir, "last-good"), c.CNI.List,
		filepath.Join(c.RunDir, "pods"), filepath.Join(c.RunDir, "agent.lock"),
	}
	for _, socket := range []string{filepath.Join(c.RunDir, "handover.sock"), c.AdminSocket, c.CNI.Socket} {
		if socket == "" {
			continue
		}
		// With those that an agent left that was killed while it put one in place.
		left, err := filepath.Glob(socket + ".*")
		errs = append(errs, err)
		paths = append(append(paths, socket), left...)
	}
	for _, path := range paths {
		errs = append(errs, os.RemoveAll(path))
	}
	folders := []string{filepath.Join(c.StateDir, "cni"), c.StateDir, c.RunDir, filepath.Dir(c.AdminSocket)}
	if shared := filepath.Dir(c.Kernel.PinDir); filepath.Base(shared) == "heddle" {
		folders = append(folders, shared) // that of the nodes' folders, where nobody has given another
	}
	for _, dir := range folders {
		errs = append(errs, removeFolder(dir))
	}
	return named("remove the agent's files", errors.Join(errs...))
}

// removeFolder removes a folder when it is empty. In a container it may be a mount,
// which only its owner's view of the files can remove.
func removeFolder(dir string) error {
	err := os.Remove(dir)
	if errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EROFS) {
		err = os.Remove(filepath.Join("/proc/1/root", dir))
	}
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.EBUSY) {
		return nil
	}
	return err
}
