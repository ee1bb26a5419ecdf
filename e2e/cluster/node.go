package cluster

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/heddle-mesh/heddle/e2e/cluster/machine"
)

// Node is one machine of a cluster: a worker, or the control plane ("cp").
type Node struct {
	cluster *Cluster
	name    string
}

// Nodes are the workers.
func (c *Cluster) Nodes() []*Node {
	var nodes []*Node
	for _, worker := range c.plan.workers() {
		nodes = append(nodes, &Node{c, worker})
	}
	return nodes
}

// Node finds a machine by its name.
func (c *Cluster) Node(name string) (*Node, error) {
	if !slices.Contains(c.plan.machines(), name) {
		return nil, fmt.Errorf("cluster %s has no node %q, but %s", c.Name(), name, strings.Join(c.plan.machines(), ", "))
	}
	return &Node{c, name}, nil
}

// Name is the node's name, as Kubernetes has it.
func (n *Node) Name() string { return n.name }

// Address is the node's address of the primary family, which the machines of the
// cluster reach.
func (n *Node) Address() string { return n.cluster.plan.address(n.name).String() }

// Addresses are the node's of each family, the primary one's first.
func (n *Node) Addresses() []netip.Addr { return n.cluster.plan.addresses(n.name) }

// Netns is the file that stands for the node's network namespace. What runs in
// the control plane's reaches all nodes and pods from outside of them.
func (n *Node) Netns() string { return n.machine().NetnsPath() }

func (n *Node) machine() *machine.Machine { return n.cluster.machines[n.name] }

// InNetns runs fn on a thread in the node's network namespace. Sockets that fn
// opens belong to it for good; fn must not start goroutines that need it.
func (n *Node) InNetns(fn func() error) error { return n.machine().InNetns(fn) }

// Root is the folder in which the host sees the node's files, while it runs: its /sys
// and its /run are those of the node.
func (n *Node) Root() (string, error) {
	pid, err := n.machine().PID()
	if err != nil {
		return "", fmt.Errorf("find the files of node %s: %w", n.name, err)
	}
	return fmt.Sprintf("/proc/%d/root", pid), nil
}

// Command is a command on the node, as root and in its own namespaces.
func (n *Node) Command(ctx context.Context, args ...string) (*exec.Cmd, error) {
	return n.machine().Command(ctx, args...)
}

// Exec runs a command on the node and returns what it prints. The error carries
// what it said.
func (n *Node) Exec(ctx context.Context, args ...string) (string, error) {
	command, err := n.Command(ctx, args...)
	if err != nil {
		return "", err
	}
	var said strings.Builder
	command.Stderr = &said
	out, err := command.Output()
	if err != nil {
		return string(out), fmt.Errorf("on node %s: %s: %w: %s", n.name, strings.Join(args, " "), err, strings.TrimSpace(said.String()))
	}
	return string(out), nil
}

// Programs are the names of the node's programs, each with a log: "machine" is
// the machine's own pid 1.
func (n *Node) Programs() []string {
	names := []string{"machine"}
	for _, program := range n.machine().Spec.Programs {
		names = append(names, program.Name)
	}
	return names
}

// Log is the file with a program's output since the cluster came up.
func (n *Node) Log(program string) (string, error) {
	if !slices.Contains(n.Programs(), program) {
		return "", fmt.Errorf("node %s runs no %q, but %s", n.name, program, strings.Join(n.Programs(), ", "))
	}
	return n.machine().Log(program), nil
}

// Stop ends the node as a power cut does. Its /etc, /opt, /var, images and
// containers stay; its pods' processes, /run, bpffs and network are gone.
func (n *Node) Stop(ctx context.Context) error {
	unlock, err := n.cluster.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	return n.machine().Stop(ctx)
}

// Start boots a node that is stopped, and waits until it is Ready.
func (n *Node) Start(ctx context.Context) error {
	unlock, err := n.cluster.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	return n.start(ctx)
}

func (n *Node) start(ctx context.Context) error {
	if err := n.cluster.bootMachine(ctx, n.name); err != nil {
		return err
	}
	if err := n.cluster.waitAPI(ctx); err != nil || n.name == controlPlane {
		return err
	}
	return n.cluster.waitReady(ctx, n.name)
}

// Reboot is Stop and Start.
func (n *Node) Reboot(ctx context.Context) error {
	unlock, err := n.cluster.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if err := n.machine().Stop(ctx); err != nil {
		return err
	}
	return n.start(ctx)
}

// LoadImage loads image archives (OCI or docker) into every worker.
func (c *Cluster) LoadImage(ctx context.Context, archives ...string) error {
	ctx, cancel := context.WithTimeout(ctx, loadPatience)
	defer cancel()
	group, ctx := errgroup.WithContext(ctx)
	for _, node := range c.Nodes() {
		group.Go(func() error {
			// containerd may still be starting.
			if err := poll(ctx, func() (bool, error) {
				_, err := node.Exec(ctx, "ctr", "version")
				return err == nil, err
			}); err != nil {
				return fmt.Errorf("containerd of node %s does not answer: %w", node.name, err)
			}
			for _, archive := range archives {
				if err := node.load(ctx, archive); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return group.Wait()
}

func (n *Node) load(ctx context.Context, archive string) error {
	file, err := os.Open(archive)
	if err != nil {
		return fmt.Errorf("load image: %w", err)
	}
	defer file.Close() // only read
	command, err := n.Command(ctx, "ctr", "--namespace=k8s.io", "images", "import", "-")
	if err != nil {
		return fmt.Errorf("load image %s: %w", archive, err)
	}
	command.Stdin = file
	if out, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("load image %s on node %s: %w: %s: is it an OCI or docker archive?", archive, n.name, err, strings.TrimSpace(string(out)))
	}
	return nil
}
