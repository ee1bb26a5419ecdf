package agent

import (
	"context"
	"errors"
	"path/filepath"
	"runtime/debug"
	"sync/atomic"

	"github.com/heddle-mesh/heddle/agent/deed"
	"github.com/heddle-mesh/heddle/agent/leftovers"
	"github.com/heddle-mesh/heddle/agent/ready"
	"github.com/heddle-mesh/heddle/agent/uplink"
)

func (a *Agent) deedPath() string { return filepath.Join(a.cfg.RunDir, "agent.lock") }

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

// park waits until ctx is done, or until the node has no agent any more: then this
// process ends, to be started anew as one.
func (a *Agent) park(ctx context.Context) error {
	a.cfg.Log.Info("another agent has this node now: waiting to be stopped")
	debug.FreeOSMemory()
	if !deed.AwaitNobody(ctx, a.deedPath(), a.cfg.Log) {
		return nil
	}
	a.cfg.Log.Warn("the agent that took over is gone, and no other one is there: this one ends, to be started anew")
	return nil
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

// removeFiles removes what agents keep in files.
func (c Config) removeFiles() error {
	return named("remove the agent's files", leftovers.Remove(leftovers.Files{
		KeyDir: c.KeyDir,
		Paths: append(uplink.Files(c.StateDir, c.KeyDir), filepath.Join(c.StateDir, "flows"), c.CNI.List,
			filepath.Join(c.RunDir, "pods"), filepath.Join(c.RunDir, "agent.lock")),
		Sockets: []string{filepath.Join(c.RunDir, "handover.sock"), c.AdminSocket, c.CNI.Socket},
		Folders: []string{filepath.Join(c.StateDir, "cni"), c.StateDir, c.RunDir, filepath.Dir(c.AdminSocket)},
		PinDir:  c.Kernel.PinDir,
	}))
}
