// Package reach finds the agents and operators of the mesh that a command line
// means: those of a local mesh, this machine's, or those of a Kubernetes cluster;
// and asks several at once, each within a bound. What it asks them is its
// callers' affair.
//
// A Mesh is filled in by flags, and is safe for concurrent use from then on.
package reach

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/spf13/pflag"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/cluster"
	"github.com/heddle-mesh/heddle/internal/admin"
	"github.com/heddle-mesh/heddle/internal/local"
)

// OperatorSocket is where an operator outside local meshes and clusters listens.
const OperatorSocket = "/run/heddle/operator.sock"

// atOnce bounds how many programs are asked at the same time.
const atOnce = 32

// ErrUsage is matched by errors in what the person asked for.
var ErrUsage = errors.New("usage")

// NoNamespace is the error about a namespace that a cluster does not have. It matches ErrUsage.
func NoNamespace(name string) error {
	return fmt.Errorf("%w: there is no namespace %s: `kubectl get namespaces` lists those that are", ErrUsage, name)
}

// Mesh says which mesh is meant.
type Mesh struct {
	// Name is that of a local mesh, StateDir where those are on record.
	Name, StateDir string
	// Socket is the admin socket of one agent, Operator that of the operator, Waypoint that of one
	// waypoint, which is asked beside the agents.
	Socket, Operator, Waypoint string
	// Node narrows it to one node.
	Node string
	// Timeout bounds the wait for each program.
	Timeout time.Duration
	Cluster cluster.Options
	// UDPByIdentity reads what is written as an operator with that flag does, which a cluster's,
	// or a local mesh's, may say itself.
	UDPByIdentity bool
	// Log is told what is not known of the mesh.
	Log io.Writer
	// In is standard input.
	In io.Reader
	// OnlyCluster means a cluster whatever runs on this machine.
	OnlyCluster bool
}

// Register adds the flags.
func (m *Mesh) Register(flags *pflag.FlagSet) {
	flags.StringVar(&m.Name, "name", "", "name of the local mesh")
	flags.StringVar(&m.StateDir, "state-dir", local.DefaultStateDir, "folder where local meshes are on record")
	flags.StringVar(&m.Socket, "socket", "", "admin socket of one agent, in place of a local mesh's")
	flags.StringVar(&m.Operator, "operator-socket", "", "admin socket of the operator, in place of a local mesh's")
	flags.StringVar(&m.Waypoint, "waypoint-socket", "", "admin socket of a waypoint of this machine, whose requests are among the flows")
	flags.StringVar(&m.Node, "node", "", "only this node of the mesh")
	flags.DurationVar(&m.Timeout, "timeout", 10*time.Second, "how long to wait for each agent and operator")
	flags.BoolVar(&m.UDPByIdentity, "udp-by-identity", false, "take policies about UDP of a folder, as an operator with this flag does; a cluster's, or a local mesh's, is asked")
	flags.BoolVar(&m.UDPByIdentity, "experimental-udp", false, "the name of --udp-by-identity in the version before")
	if err := flags.MarkHidden("experimental-udp"); err != nil {
		panic(err) // there is no such flag
	}
	m.Cluster.Register(flags)
}

// RefuseMoot refuses those of the named flags that were given, since they do nothing with a
// command, "heddle install": whoever gave one believes otherwise. The error matches ErrUsage.
func RefuseMoot(given *pflag.FlagSet, with string, names ...string) error {
	for _, name := range names {
		if given.Changed(name) {
			return fmt.Errorf("%w: --%s does nothing with `%s`: leave it out", ErrUsage, name, with)
		}
	}
	return nil
}

// OnCluster reports whether a Kubernetes cluster is meant: when one is named; or
// else when there is a kubeconfig, no other mesh is named, and none runs on this
// machine.
func (m *Mesh) OnCluster() bool {
	switch {
	case m.OnlyCluster:
		return true
	case m.Name != "" || m.Socket != "" || m.Operator != "":
		return false
	case m.Cluster.Given():
		return true
	}
	if _, err := os.Stat(admin.DefaultSocket); err == nil {
		return false
	}
	if names, err := local.List(m.StateDir); err != nil || len(names) > 0 {
		return false
	}
	return m.Cluster.Found()
}

// Local finds the local mesh that is meant: the named one, or the only one.
func (m *Mesh) Local() (*local.Mesh, error) {
	if m.Name != "" {
		return local.Open(m.StateDir, m.Name)
	}
	names, err := local.List(m.StateDir)
	switch {
	case err != nil:
		return nil, fmt.Errorf("list local meshes: %w", err)
	case len(names) == 0:
		return nil, fmt.Errorf("%w: start one with `heddle local up --file FOLDER --create-pods`, or name a cluster with --kubeconfig", local.ErrNoMesh)
	case len(names) > 1:
		return nil, fmt.Errorf("%w: there are several local meshes: choose one with --name: %s", ErrUsage, strings.Join(names, ", "))
	}
	return local.Open(m.StateDir, names[0])
}

// Target is a program to ask.
type Target struct {
	// Node is the program's node, or an operator's or a waypoint's pod; "" when not known.
	Node string
	// Kind is cluster.Agent, cluster.Operator or cluster.Waypoint.
	Kind string
	// Waypoint, NAMESPACE/NAME, is whose a replica of a cluster is: it is believed of that
	// namespace only. "" is one that is not asked for by a Gateway, or no waypoint.
	Waypoint string
	// Dial connects within the Mesh's Timeout; the Client lives on.
	Dial func(context.Context) (*admin.Client, error)
}

// String names the target in an error.
func (t Target) String() string {
	switch {
	case t.Node == "":
		return t.Kind
	case t.Kind == cluster.Agent:
		return "agent of node " + t.Node
	}
	return t.Kind + " " + t.Node
}

func socketTarget(kind, node, path string) Target {
	return Target{Node: node, Kind: kind, Dial: func(ctx context.Context) (*admin.Client, error) { return admin.Dial(ctx, path) }}
}

// Agents finds the agents that are meant: that of --socket, those of a local
// mesh, this machine's, or those of a cluster.
func (m *Mesh) Agents(ctx context.Context) ([]Target, error) {
	if m.Socket != "" {
		return []Target{socketTarget(cluster.Agent, m.Node, m.Socket)}, nil
	}
	if m.OnCluster() {
		return m.clusterAgents(ctx)
	}
	if m.Name == "" {
		if _, err := os.Stat(admin.DefaultSocket); err == nil {
			return []Target{socketTarget(cluster.Agent, m.Node, admin.DefaultSocket)}, nil
		}
	}
	found, err := m.Local()
	if err != nil {
		return nil, err
	}
	var all []Target
	var names []string
	for _, n := range found.Status().Nodes {
		names = append(names, n.Name)
		if m.Node == "" || m.Node == n.Name {
			all = append(all, socketTarget(cluster.Agent, n.Name, found.AgentSocket(n.Name)))
		}
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("%w: no node %q: there are %s", ErrUsage, m.Node, strings.Join(names, ", "))
	}
	return all, nil
}

func (m *Mesh) clusterAgents(ctx context.Context) ([]Target, error) {
	c, err := cluster.Connect(m.Cluster)
	if err != nil {
		return nil, err
	}
	agents, err := c.Agents(ctx, "")
	if err != nil {
		return nil, err
	}
	if len(agents) == 0 {
		return nil, fmt.Errorf("%w: no agent runs in namespace %s of the cluster; remedy: `heddle install`, or name the namespace with --system-namespace", admin.ErrUnreachable, c.Namespace())
	}
	var all []Target
	var names []string
	for _, agent := range agents {
		names = append(names, agent.Node)
		if m.Node == "" || m.Node == agent.Node {
			all = append(all, m.agentTarget(c, agent))
		}
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("%w: no agent on a node %q: there are %s", ErrUsage, m.Node, strings.Join(names, ", "))
	}
	return all, nil
}

// agentTarget finds the node's agent anew when the pod that it was is gone.
func (m *Mesh) agentTarget(c *cluster.Cluster, agent cluster.Program) Target {
	var mu sync.Mutex
	again := false
	return Target{Node: agent.Node, Kind: cluster.Agent, Dial: func(ctx context.Context) (*admin.Client, error) {
		ctx, cancel := context.WithTimeout(ctx, m.Timeout)
		defer cancel()
		mu.Lock()
		defer mu.Unlock()
		if again {
			now, err := c.Agents(ctx, agent.Node)
			if err != nil {
				return nil, err
			}
			if len(now) == 0 {
				return nil, fmt.Errorf("%w: no agent is on the node any more", admin.ErrUnreachable)
			}
			agent = now[0]
		}
		again = true
		return c.Dial(ctx, agent)
	}}
}

// Waypoints finds the waypoints that are meant: that of --waypoint-socket, or those of a cluster; none when there are
// none, or one node is meant. Strangers are pods that would be taken for one by their labels, and are not asked.
func (m *Mesh) Waypoints(ctx context.Context) (all []Target, strangers []cluster.Stranger, err error) {
	switch {
	case m.Waypoint != "":
		return []Target{socketTarget(cluster.Waypoint, "", m.Waypoint)}, nil, nil
	case m.Node != "" || !m.OnCluster():
		return nil, nil, nil
	}
	c, err := cluster.Connect(m.Cluster)
	if err != nil {
		return nil, nil, err
	}
	replicas, strangers, err := c.Waypoints(ctx)
	if err != nil {
		return nil, nil, err
	}
	for _, replica := range replicas {
		t := m.podTarget(c, replica, replica.Namespace+"/"+replica.Pod)
		t.Waypoint = replica.Namespace + "/" + replica.Gateway
		all = append(all, t)
	}
	return all, strangers, nil
}

// podTarget is a pod that none takes the place of.
func (m *Mesh) podTarget(c *cluster.Cluster, p cluster.Program, name string) Target {
	return Target{Node: name, Kind: p.Kind, Dial: func(ctx context.Context) (*admin.Client, error) {
		ctx, cancel := context.WithTimeout(ctx, m.Timeout)
		defer cancel()
		return c.Dial(ctx, p)
	}}
}

// Operators finds the operators that are meant; none when this machine, or the
// cluster, has none.
func (m *Mesh) Operators(ctx context.Context) ([]Target, error) {
	if !m.OnCluster() {
		if path, ok := m.operatorSocket(); ok {
			return []Target{socketTarget(cluster.Operator, "", path)}, nil
		}
		return nil, nil
	}
	c, err := cluster.Connect(m.Cluster)
	if err != nil {
		return nil, err
	}
	replicas, err := c.Operators(ctx)
	if err != nil {
		return nil, err
	}
	all := make([]Target, 0, len(replicas))
	for _, replica := range replicas {
		all = append(all, m.podTarget(c, replica, replica.Pod))
	}
	return all, nil
}

// operatorSocket finds the operator's socket; false when this machine seems to
// have none.
func (m *Mesh) operatorSocket() (string, bool) {
	if m.Operator != "" {
		return m.Operator, true
	}
	if m.Name == "" {
		if _, err := os.Stat(OperatorSocket); err == nil || m.Socket != "" {
			return OperatorSocket, err == nil
		}
	}
	found, err := m.Local()
	if err != nil {
		return "", false
	}
	return found.OperatorSocket(), true
}

// Answer is what a target said, or why it did not.
type Answer[T any] struct {
	Target Target
	Value  T
	Err    error
}

// Ask asks every target at once, each within the bound, and returns the answers
// in the order of the targets. Errors name their target.
func Ask[T any](ctx context.Context, bound time.Duration, targets []Target, ask func(context.Context, *admin.Client) (T, error)) []Answer[T] {
	answers := make([]Answer[T], len(targets))
	var asking sync.WaitGroup
	slots := make(chan struct{}, atOnce)
	for i, t := range targets {
		asking.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			value, err := askOne(ctx, bound, t, ask)
			if err != nil {
				err = fmt.Errorf("%s: %w", t, err)
			}
			answers[i] = Answer[T]{t, value, err}
		})
	}
	asking.Wait()
	return answers
}

func askOne[T any](ctx context.Context, bound time.Duration, t Target, ask func(context.Context, *admin.Client) (T, error)) (value T, err error) {
	ctx, cancel := context.WithTimeout(ctx, bound)
	defer cancel()
	client, err := t.Dial(ctx)
	if err != nil {
		return value, err
	}
	value, err = ask(ctx, client)
	return value, errors.Join(admin.Explain(err), client.Close())
}

// Errors joins the errors of answers.
func Errors[T any](answers []Answer[T]) error {
	var errs []error
	for _, a := range answers {
		errs = append(errs, a.Err)
	}
	return errors.Join(errs...)
}

// Status asks an agent how it is.
func Status(ctx context.Context, c *admin.Client) (*meshpb.AgentStatus, error) {
	return c.Admin.Status(ctx, &meshpb.StatusRequest{})
}

// StateAndPolicies asks an operator how it is, and what became of each policy.
func StateAndPolicies(ctx context.Context, c *admin.Client) (*meshpb.OperatorState, error) {
	return meshpb.NewOperatorAdminClient(c.Conn()).Status(ctx, &meshpb.OperatorStateRequest{Policies: true})
}

// State asks an operator how it is.
func State(ctx context.Context, c *admin.Client) (*meshpb.OperatorState, error) {
	return meshpb.NewOperatorAdminClient(c.Conn()).Status(ctx, &meshpb.OperatorStateRequest{})
}
