package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/cluster"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/cutoff"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/health"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/install"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/reach"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/show"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/status"
	"github.com/heddle-mesh/heddle/internal/admin"
	"github.com/heddle-mesh/heddle/internal/local"
)

func (a *app) check() *cobra.Command {
	onCluster := false
	cmd := &cobra.Command{
		Use: "check", Args: cobra.NoArgs, Short: "Say whether all is well, and what to do about what is not",
		Long: `Check this machine, the operator and every node's agent: kernel, file systems,
configuration, certificates, each pod's enrolment and gate, and whether anything
verifies the declared workloads of federated trust domains. Exit status 1 when
anything is not well, 3 when no agent answers.

On a Kubernetes cluster, or with --cluster, ask its API server first: version,
rights, nodes' kernels, the pods' network, other meshes, what is installed, and
what enrolled namespaces would refuse that the control plane calls; then every
agent. The first of these are what ` + "`heddle install`" + ` looks at before it begins.`,
		Example: `  heddle check
  heddle check --cluster --context staging`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, check := health.New(), a.checkMachine
			if onCluster || a.mesh.OnCluster() {
				check = a.checkCluster
			}
			if err := a.refuseMootOfCheck(cmd, onCluster); err != nil {
				return err
			}
			unreachable, err := check(cmd.Context(), r)
			if err != nil {
				return err
			}
			if err := a.printReport(r); err != nil && !errors.Is(err, errNotWell) || !unreachable {
				return err
			}
			return fmt.Errorf("%w: %w", errNotWell, admin.ErrUnreachable)
		},
	}
	cmd.Flags().BoolVar(&onCluster, "cluster", false, "check a Kubernetes cluster, also when a mesh runs on this machine")
	return cmd
}

// refuseMootOfCheck refuses the common flags that a check has no use for: those about a mesh
// of this machine on a cluster, and the other way round.
func (a *app) refuseMootOfCheck(cmd *cobra.Command, onCluster bool) error {
	with, moot := "heddle check", []string{"waypoint-socket", "udp-by-identity", "experimental-udp"}
	switch {
	case onCluster:
		with, moot = "heddle check --cluster", append(moot, "name", "state-dir", "socket", "operator-socket")
	case !a.mesh.OnCluster():
		with, moot = "heddle check` of a mesh of this machine, without `--cluster", append(moot, "kubeconfig", "context", "system-namespace")
	}
	return reach.RefuseMoot(cmd.Flags(), with, moot...)
}

func (a *app) checkMachine(ctx context.Context, r *health.Report) (unreachable bool, err error) {
	r.Machine()
	return a.checkMesh(ctx, r)
}

// printReport prints a report, and fails when it says that something is not well.
func (a *app) printReport(r *health.Report) error {
	write := func() error { return show.Report(a.out, a.color, r) }
	if a.output == "json" {
		write = func() error { return a.document(r) }
	}
	if err := write(); err != nil || r.OK {
		return err
	}
	return errNotWell
}

// checkCluster asks the API server, and, where Heddle is installed, every agent.
func (a *app) checkCluster(ctx context.Context, r *health.Report) (unreachable bool, err error) {
	on := a.mesh.Cluster
	c, err := install.Connect(ctx, on.Kubeconfig, on.Context)
	if err == nil {
		err = c.Check(ctx, on.Namespace, r)
	}
	if err != nil {
		return false, err
	}
	programs, err := cluster.Connect(on)
	if err != nil {
		return false, err
	}
	installed, err := programs.Agents(ctx, "")
	if apierrors.IsForbidden(err) {
		r.Unseen("agents", err)
		return false, nil
	}
	if err != nil || len(installed) == 0 {
		return false, err
	}
	if err := cutoff.Check(ctx, programs, r); err != nil {
		return false, err
	}
	mesh := reach.Mesh{Cluster: on, Node: a.mesh.Node, Timeout: a.mesh.Timeout, OnlyCluster: true}
	return (&app{mesh: mesh}).checkMesh(ctx, r)
}

// checkMesh looks at the operators and the agents.
func (a *app) checkMesh(ctx context.Context, r *health.Report) (unreachable bool, err error) {
	targets, err := a.mesh.Agents(ctx)
	if errors.Is(err, local.ErrNoMesh) && a.mesh.Name == "" {
		r.Bad("machine", "agent", "none runs on this machine", "start a mesh with `heddle local up --file FOLDER --create-pods`, or an agent; or name a cluster with --kubeconfig")
		return true, nil
	}
	if err != nil {
		return false, err
	}
	operators, err := a.mesh.Operators(ctx)
	if err != nil {
		return false, err
	}
	versions := health.Versions{}
	for _, o := range reach.Ask(ctx, a.mesh.Timeout, operators, reach.State) {
		r.Operator(cmp.Or(o.Target.Node, "operator"), o.Value, o.Err)
		versions.Add(o.Value.GetVersion(), cmp.Or(o.Target.Node, "operator"))
	}
	for _, agent := range reach.Ask(ctx, a.mesh.Timeout, targets, reach.Status) {
		r.Agent(agent.Target.Node, agent.Value, agent.Err)
		versions.Add(agent.Value.GetVersion(), agent.Value.GetNode())
		unreachable = unreachable || agent.Err != nil
	}
	r.Versions(versions)
	return unreachable, nil
}

func (a *app) status() *cobra.Command {
	policies := false
	cmd := &cobra.Command{
		Use: "status", Args: cobra.NoArgs, Short: "Show the control plane, the nodes, the namespaces and the policies of the mesh",
		Long: `Show each operator, each node's agent, and each namespace in the mesh: versions,
how far an agent is behind, pods, connections, and when the first certificate
expires; and each policy, NetworkPolicies too: whether it is accepted, or why not,
and on how many of the nodes that need it agents have it in force; and the trust
domains with workloads that the Mesh declares, and until when those are verified.
Exit status 1 when anything is not well, 3 when no agent answers.`,
		Example: `  heddle status
  heddle status --policies
  heddle status --context staging -o json`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			summary, err := status.Of(cmd.Context(), &a.mesh)
			if err != nil {
				return err
			}
			if a.output == "json" {
				err = a.document(summary)
			} else {
				err = summary.Print(a.out, a.color, policies)
			}
			switch {
			case err != nil || summary.OK:
				return err
			case summary.Answered():
				return errNotWell
			}
			return fmt.Errorf("%w: %w", errNotWell, admin.ErrUnreachable)
		},
	}
	cmd.Flags().BoolVar(&policies, "policies", false, "show every policy, also when there are many")
	return cmd
}
