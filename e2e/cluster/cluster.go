// Package cluster brings up real Kubernetes clusters on one Linux machine: etcd,
// API server, controllers and scheduler on one machine of their own, and kubelet,
// kube-proxy and containerd on two workers or more, each with its own network,
// cgroups, bpffs and files. Everything is built from Go modules and distribution
// packages; no registry, no Docker, and nothing of the host's network changes.
//
// It needs root, and knows nothing of Heddle. A Cluster may be used from any
// goroutine; of Up, Down and the nodes' Start, Stop and Reboot, one runs at a
// time, also across processes: the others wait.
package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/e2e/cluster/build"
	"github.com/heddle-mesh/heddle/e2e/cluster/machine"
)

// Cluster is a cluster on record, running or not.
type Cluster struct {
	plan     plan
	programs build.Programs
	machines map[string]*machine.Machine
}

const planFile = "cluster.json"

// ErrNotFound is what Open returns where there is no cluster of the name.
var ErrNotFound = errors.New("there is no such cluster")

// Up brings a cluster up and returns when its nodes are Ready and its DNS answers.
// It builds the programs when they are not there yet, which takes minutes. After
// an error the machines stay for inspection, until Down.
func Up(ctx context.Context, options Options) (*Cluster, error) {
	o, err := options.WithDefaults()
	if err != nil {
		return nil, err
	}
	if os.Geteuid() != 0 {
		return nil, fmt.Errorf("cluster %s: machines are made of namespaces and mounts: run as root", o.Name)
	}
	if err := findPrograms("containerd", "ctr", "runc", "nsenter", "conntrack", "iptables", "nft"); err != nil {
		return nil, err
	}
	programs, err := build.Ensure(ctx, o.Root, o.Say)
	if err != nil {
		return nil, err
	}
	if o.APIPort == 0 {
		if o.APIPort, err = freePort(); err != nil {
			return nil, err
		}
	}
	c := &Cluster{plan: plan{Options: o, Programs: programs.Dir}, programs: programs}
	unlock, err := c.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if _, err := os.Stat(c.plan.dir()); err == nil {
		return nil, fmt.Errorf("cluster %s is there already, in %s: take it down, or choose another name", o.Name, c.plan.dir())
	}
	if err := c.makeMachines(); err != nil {
		return nil, fmt.Errorf("cluster %s: %w", o.Name, err)
	}
	for _, m := range c.machines {
		if err := m.CheckFree(); err != nil {
			return nil, fmt.Errorf("cluster %s: %w", o.Name, err)
		}
	}
	if err := c.create(); err != nil {
		return c, fmt.Errorf("cluster %s: %w", o.Name, err)
	}
	if err := c.start(ctx); err != nil {
		return c, fmt.Errorf("cluster %s: %w", o.Name, err)
	}
	return c, nil
}

// Open finds a cluster by its name. dir is as Options.Dir.
func Open(dir, name string) (*Cluster, error) {
	data, err := os.ReadFile(filepath.Join(dir, name, planFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("cluster %s in %s: %w", name, dir, ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("open cluster %s: %w", name, err)
	}
	c := &Cluster{}
	if err := json.Unmarshal(data, &c.plan); err != nil {
		return nil, fmt.Errorf("open cluster %s: %s: %w", name, planFile, err)
	}
	if c.plan.Options, err = c.plan.Options.WithDefaults(); err != nil {
		return nil, fmt.Errorf("open cluster %s: %w", name, err)
	}
	c.programs = build.Programs{Dir: c.plan.Programs}
	return c, c.makeMachines()
}

// findPrograms checks for what the distribution has to bring.
func findPrograms(names ...string) error {
	var missing []string
	for _, name := range names {
		if _, err := exec.LookPath(name); err != nil {
			missing = append(missing, name)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("not on PATH: %s: run `scripts/deps cluster`", strings.Join(missing, ", "))
	}
	return nil
}

func freePort() (int, error) {
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return 0, fmt.Errorf("find a free port: %w", err)
	}
	defer listener.Close() // only its number is wanted
	return listener.Addr().(*net.TCPAddr).Port, nil
}

// create writes all that the machines start from.
func (c *Cluster) create() error {
	if err := os.MkdirAll(c.plan.dir(), 0o700); err != nil {
		return err
	}
	data, err := json.MarshalIndent(c.plan, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(c.plan.dir(), planFile), data, 0o600); err != nil {
		return err
	}
	if err := copyProgram(c.programs.Machined(), c.machined()); err != nil {
		return err
	}
	return c.makePKI()
}

// machined is the cluster's own copy of its machines' pid 1, which a later build
// leaves alone.
func (c *Cluster) machined() string { return filepath.Join(c.plan.dir(), "machined") }

func copyProgram(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close() // only read
	out, err := os.OpenFile(to, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

func (c *Cluster) makeMachines() error {
	c.machines = map[string]*machine.Machine{controlPlane: {Spec: c.controlSpec(), Binary: c.machined()}}
	for _, worker := range c.plan.workers() {
		spec, err := c.workerSpec(worker)
		if err != nil {
			return err
		}
		c.machines[worker] = &machine.Machine{Spec: spec, Binary: c.machined()}
	}
	return nil
}

// start boots all machines, and makes of them a cluster.
func (c *Cluster) start(ctx context.Context) error {
	if err := c.bootMachine(ctx, controlPlane); err != nil {
		return err
	}
	group, groupCtx := errgroup.WithContext(ctx)
	for _, worker := range c.plan.workers() {
		group.Go(func() error { return c.bootMachine(groupCtx, worker) })
	}
	if err := group.Wait(); err != nil {
		return err
	}
	c.plan.Options.Say("machines are up")
	group, groupCtx = errgroup.WithContext(ctx)
	group.Go(func() error { return c.LoadImage(groupCtx, c.programs.Images()...) })
	group.Go(func() error {
		if err := c.waitAPI(groupCtx); err != nil {
			return err
		}
		c.plan.Options.Say("the API server is ready")
		return c.applyDNS(groupCtx)
	})
	for _, worker := range c.plan.workers() {
		group.Go(func() error { return c.setPodRange(groupCtx, worker) })
	}
	if err := group.Wait(); err != nil {
		return err
	}
	for _, worker := range c.plan.workers() {
		if err := c.waitReady(ctx, worker); err != nil {
			return err
		}
	}
	c.plan.Options.Say("nodes are ready")
	return c.waitDNS(ctx)
}

// bootMachine starts a machine and puts it into the network.
func (c *Cluster) bootMachine(ctx context.Context, name string) error {
	if err := c.machines[name].Start(ctx); err != nil {
		return err
	}
	if name != controlPlane {
		return c.plugIn(name)
	}
	if err := c.makeBridge(); err != nil {
		return err
	}
	for _, worker := range c.plan.workers() {
		if c.machines[worker].Running() { // the control plane boots again
			if err := c.inNetwork(worker, func(h *netlink.Handle, _ netns.NsHandle) error { return removeLink(h, uplinkName) }); err != nil {
				return err
			}
			if err := c.plugIn(worker); err != nil {
				return err
			}
		}
	}
	return nil
}

// Down takes the cluster away, whatever state it is in, and leaves nothing.
func (c *Cluster) Down(ctx context.Context) error {
	unlock, err := c.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	// All, also when one fails: each is better gone.
	var group errgroup.Group
	failures := make([]error, len(c.plan.machines()))
	for i, name := range c.plan.machines() {
		group.Go(func() error {
			failures[i] = c.machines[name].Remove(ctx)
			return nil
		})
	}
	if err := errors.Join(append(failures, group.Wait())...); err != nil {
		return fmt.Errorf("take cluster %s down: %w", c.plan.Options.Name, err)
	}
	if err := errors.Join(os.RemoveAll(c.plan.dir()), os.Remove(c.lockFile())); err != nil {
		return fmt.Errorf("take cluster %s down: %w", c.plan.Options.Name, err)
	}
	return nil
}

func (c *Cluster) lockFile() string {
	return filepath.Join(c.plan.Options.Dir, "."+c.plan.Options.Name+".lock")
}

// lock keeps other processes from changing the same cluster, and waits for them.
func (c *Cluster) lock(ctx context.Context) (unlock func(), err error) {
	if err := os.MkdirAll(c.plan.Options.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("lock cluster %s: %w", c.Name(), err)
	}
	var file *os.File
	err = poll(ctx, func() (bool, error) {
		file, err = tryLock(c.lockFile())
		return file != nil || !errors.Is(err, unix.EWOULDBLOCK), err
	})
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, fmt.Errorf("lock cluster %s: another process changes it: %w", c.Name(), err)
	}
	if err != nil {
		return nil, fmt.Errorf("lock cluster %s: %w", c.Name(), err)
	}
	return func() { file.Close() }, nil // closing it unlocks
}

// tryLock locks a file, or says EWOULDBLOCK: somebody else has it, or had it and
// deleted it with the cluster.
func tryLock(path string) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	locked, err := file.Stat()
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	if named, err := os.Stat(path); err != nil || !os.SameFile(locked, named) {
		return nil, errors.Join(unix.EWOULDBLOCK, file.Close())
	}
	return file, nil
}

// Name is the cluster's name.
func (c *Cluster) Name() string { return c.plan.Options.Name }

// Kubeconfig is the file with which the host reaches the cluster as its admin.
func (c *Cluster) Kubeconfig() string { return filepath.Join(c.plan.dir(), "kubeconfig") }

// KubectlPath is a kubectl of the cluster's version.
func (c *Cluster) KubectlPath() string { return c.programs.Kubectl() }

// kubectlFlags keep what kubectl caches out of the caller's home.
func (c *Cluster) kubectlFlags() []string {
	return []string{"kubectl", "--kubeconfig", c.Kubeconfig(), "--cache-dir", filepath.Join(c.plan.dir(), "kubectl-cache")}
}

// KubectlCommand is kubectl as admin, to be run on the host.
func (c *Cluster) KubectlCommand(ctx context.Context, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, c.programs.Kube(), append(c.kubectlFlags(), args...)...)
}

// Kubectl runs kubectl as admin, with input on its standard input, and returns
// what it prints. The error carries what it said.
func (c *Cluster) Kubectl(ctx context.Context, input string, args ...string) (string, error) {
	command := c.KubectlCommand(ctx, args...)
	command.Stdin = strings.NewReader(input)
	var said strings.Builder
	command.Stderr = &said
	out, err := command.Output()
	if err != nil {
		return string(out), fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(said.String()))
	}
	return string(out), nil
}
