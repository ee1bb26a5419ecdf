package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sync/errgroup"

	"github.com/heddle-mesh/heddle/agent/cni"
	"github.com/heddle-mesh/heddle/agent/cni/chain"
	"github.com/heddle-mesh/heddle/agent/cni/cri"
	"github.com/heddle-mesh/heddle/agent/enroll"
	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/cniwire"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// CNIConfig says how the agent meets the node's container runtime. The zero
// value is for nodes without one, where workloads are named by a path.
type CNIConfig struct {
	// Socket is where heddle-cni asks for new pods; "" when nobody does.
	Socket string
	// Runtime is the container runtime's socket (CRI).
	Runtime string
	// List is the list of namespaces on the node's disk, for heddle-cni; "" is
	// cni/namespaces.json in StateDir.
	List string
	// ConfDir and BinDir are the node's folders of CNI configurations and
	// programs; "" leaves the cluster's CNI as it is.
	ConfDir, BinDir string
	// Program is the heddle-cni to install; "" is the one beside the agent's own.
	Program string
	// Pass are the namespaces whose pods never wait for the agent.
	Pass []string
}

func (c CNIConfig) complete(stateDir string) CNIConfig {
	if c.List == "" {
		c.List = filepath.Join(stateDir, "cni", "namespaces.json")
	}
	return c
}

func (c CNIConfig) validate(bad func(field, wrong, remedy string)) {
	for _, p := range []struct{ field, path, flag string }{
		{"CNI.Socket", c.Socket, "--cni-socket"}, {"CNI.Runtime", c.Runtime, "--cri-socket"}, {"CNI.List", c.List, "--cni-namespaces"},
		{"CNI.ConfDir", c.ConfDir, "--cni-conf-dir"}, {"CNI.BinDir", c.BinDir, "--cni-bin-dir"}, {"CNI.Program", c.Program, "--cni-program"},
	} {
		if p.path != "" && !filepath.IsAbs(p.path) {
			bad(p.field, fmt.Sprintf("%q is not an absolute path", p.path), "give "+p.flag+" a path that begins with /")
		}
	}
	if len(c.Socket) > maxSocketPath {
		bad("CNI.Socket", fmt.Sprintf("%d bytes are more than a socket's address holds", len(c.Socket)), fmt.Sprintf("give --cni-socket a path of at most %d bytes", maxSocketPath))
	}
	if (c.Socket == "") != (c.Runtime == "") {
		bad("CNI.Runtime", "new pods and running ones go together", "set both --cni-socket and --cri-socket, or neither")
	}
	if (c.ConfDir == "") != (c.BinDir == "") || c.ConfDir != "" && c.Socket == "" {
		bad("CNI.ConfDir", "a chain without its program, or without an agent that answers, would stop every pod",
			"set --cni-conf-dir and --cni-bin-dir together, and with them --cni-socket and --cri-socket")
	}
}

// newPods is what enrolls the pods of a container runtime. A nil *newPods is a
// node without one.
type newPods struct {
	places  *cni.Places
	runtime *cri.Client
	server  *cni.Server
	chain   *chain.Installer // nil leaves the cluster's CNI as it is
}

// meetRuntime makes the parts that server and reconciler share. It asks nobody
// yet.
func meetRuntime(cfg Config) (*newPods, error) {
	if cfg.CNI.Socket == "" {
		return nil, nil
	}
	runtime, err := cri.New(cfg.CNI.Runtime, "/proc", cfg.Log)
	if err != nil {
		return nil, err
	}
	n := &newPods{places: cni.NewPlaces(), runtime: runtime}
	if cfg.CNI.ConfDir != "" {
		n.chain, err = cfg.CNI.Chain(cfg)
	}
	return n, err
}

// Chain returns what installs heddle-cni into the cluster's CNI, and takes it
// out.
func (c CNIConfig) Chain(cfg Config) (*chain.Installer, error) {
	c = c.complete(cfg.StateDir)
	if c.Program == "" {
		own, err := os.Executable()
		if err != nil {
			return nil, fmt.Errorf("find %s beside the agent: %w; remedy: set --cni-program", cniwire.PluginType, err)
		}
		c.Program = filepath.Join(filepath.Dir(own), cniwire.PluginType)
	}
	return chain.New(chain.Config{
		ConfDir: c.ConfDir, BinDir: c.BinDir, Program: c.Program, Socket: c.Socket, List: c.List, Pass: c.Pass, Log: cfg.Log,
	})
}

// asPlaces is nil, and not a nil *cni.Places, on a node without a runtime.
func (n *newPods) asPlaces() enroll.Places {
	if n == nil {
		return nil
	}
	return n.places
}

// mayRun reports whether a workload of this node runs somewhere, or whether that is
// not known yet.
func (n *newPods) mayRun(w *mesh.Workload) bool {
	if w.NetNS != "" || n == nil {
		return w.NetNS != ""
	}
	_, _, found := n.places.Find(w)
	return found || !n.places.Synced()
}

// answer makes what answers heddle-cni.
func (n *newPods) answer(cfg Config, p *parts) (err error) {
	if n == nil {
		return nil
	}
	n.server, err = cni.New(cni.Config{
		Node: cfg.Node, Socket: cfg.CNI.Socket, List: cfg.CNI.List, Pass: cfg.CNI.Pass,
		Store: p.uplink.Store(), Places: n.places, Enroller: p.pods, Runtime: n.runtime, Log: cfg.Log,
		Current: func() error {
			s := p.uplink.Discovery().Status()
			if s.Current {
				return nil
			}
			return errors.New(cmp.Or(s.LastError, "its configuration is not here yet"))
		},
	})
	return err
}

// follow keeps up with what the runtime runs, beside another agent, too.
func (n *newPods) follow(ctx context.Context) {
	if n != nil {
		n.server.Follow(ctx)
	}
}

// serve does what one agent of a node may.
func (n *newPods) serve(ctx context.Context, takeOver bool) error {
	if n == nil {
		return nil
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return n.server.Run(ctx, takeOver) })
	if n.chain != nil {
		group.Go(func() error { return n.chain.Run(ctx, n.server.Look) })
	}
	return group.Wait()
}

// checks says whether new pods are held back, with an agent and without one.
func (n *newPods) checks() []*meshpb.Check {
	if n == nil {
		return nil
	}
	checks := []*meshpb.Check{n.server.Check()}
	if n.chain != nil {
		checks = append(checks, n.chain.Check())
	}
	return checks
}

// uninstall takes heddle-cni and its list from the node, after everything else
// has ended: a pod that comes now belongs to no mesh.
func (n *newPods) uninstall(cfg Config) error {
	if n == nil || n.chain == nil {
		return nil
	}
	err := n.chain.Uninstall()
	if err == nil { // not before: what is still in the chain decides by the list
		err = os.Remove(cfg.CNI.List)
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
	}
	return named("leave the node's CNI", err)
}

func (n *newPods) close() error {
	if n == nil {
		return nil
	}
	return n.runtime.Close()
}
