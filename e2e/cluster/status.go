package cluster

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/heddle-mesh/heddle/e2e/cluster/machine"
)

// Status is how a cluster fares.
type Status struct {
	Name       string `json:"name"`
	Dir        string `json:"dir"`
	Kubeconfig string `json:"kubeconfig"`
	// Healthy: all machines run, the API server answers, all workers are Ready.
	Healthy bool `json:"healthy"`
	// API is where the host reaches the API server.
	API string `json:"api"`
	// APIError says why the API server is not ready; "" when it is.
	APIError string       `json:"apiError,omitempty"`
	Nodes    []NodeStatus `json:"nodes"`
}

// NodeStatus is how one machine fares.
type NodeStatus struct {
	Name string `json:"name"`
	Role string `json:"role"`
	// Address is that of the primary family, and Addresses are all.
	Address   string   `json:"address"`
	Addresses []string `json:"addresses"`
	// PodRange is of the primary family, and PodRanges are all. Empty for the control plane.
	PodRange  string   `json:"podRange,omitempty"`
	PodRanges []string `json:"podRanges,omitempty"`
	Running   bool     `json:"running"`
	// PID is of the machine's pid 1, on the host.
	PID   int    `json:"pid,omitempty"`
	Netns string `json:"netns"`
	// Ready is what Kubernetes says of a worker; Reason says why it is not.
	Ready   bool   `json:"ready"`
	Reason  string `json:"reason,omitempty"`
	Version string `json:"version,omitempty"`
	// Programs are those that the machine keeps running.
	Programs []machine.ProgramStatus `json:"programs"`
}

// statusPatience is how long a server may take to say how it is.
const statusPatience = 5 * time.Second

// Status asks all parts of the cluster how they are.
func (c *Cluster) Status(ctx context.Context) (Status, error) {
	s := Status{
		Name: c.Name(), Dir: c.plan.dir(), Kubeconfig: c.Kubeconfig(),
		API: fmt.Sprintf("https://127.0.0.1:%d", c.plan.Options.APIPort),
	}
	apiCtx, cancel := context.WithTimeout(ctx, statusPatience)
	defer cancel()
	if err := c.waitAPI(apiCtx); err != nil {
		s.APIError = err.Error()
	}
	s.Nodes = make([]NodeStatus, len(c.plan.machines()))
	group, groupCtx := errgroup.WithContext(ctx)
	for i, name := range c.plan.machines() {
		group.Go(func() (err error) {
			s.Nodes[i], err = c.nodeStatus(groupCtx, name, s.APIError == "")
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return s, fmt.Errorf("status of cluster %s: %w", c.Name(), err)
	}
	s.Healthy = s.APIError == "" && !slices.ContainsFunc(s.Nodes, func(n NodeStatus) bool { return !n.Running || !n.Ready })
	return s, nil
}

func (c *Cluster) nodeStatus(ctx context.Context, name string, apiReady bool) (NodeStatus, error) {
	m := c.machines[name]
	s := NodeStatus{Name: name, Role: "worker", Address: c.plan.address(name).String(), Addresses: strings.Split(listed(c.plan.addresses(name)), ","), Running: m.Running(), Netns: m.NetnsPath()}
	if !s.Running {
		s.Reason = "the machine is stopped"
		return s, nil
	}
	var err error
	if s.PID, err = m.PID(); err != nil {
		return s, err
	}
	if s.Programs, err = m.Programs(); err != nil {
		return s, err
	}
	if name == controlPlane {
		s.Role, s.Ready = "control plane", apiReady
		return s, nil
	}
	s.PodRange, s.PodRanges = c.plan.podRanges(name)[0].String(), strings.Split(listed(c.plan.podRanges(name)), ",")
	if !apiReady {
		s.Reason = "the API server is not ready to tell"
		return s, nil
	}
	node, err := c.kubernetesNode(ctx, name)
	if err != nil {
		s.Reason = err.Error()
		return s, nil
	}
	s.Version = node.Status.NodeInfo.KubeletVersion
	if s.Ready, s.Reason = node.ready(); s.Ready {
		s.Reason = ""
	}
	return s, nil
}

// Names lists the clusters whose state is in a folder, as Options.Dir.
func Names(dir string) ([]string, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*", planFile))
	if err != nil {
		return nil, fmt.Errorf("list clusters in %s: %w", dir, err)
	}
	var names []string
	for _, file := range files {
		names = append(names, filepath.Base(filepath.Dir(file)))
	}
	if _, err := os.Stat(dir); err != nil && !os.IsNotExist(err) {
		return nil, fmt.Errorf("list clusters: %w", err)
	}
	return names, nil
}
