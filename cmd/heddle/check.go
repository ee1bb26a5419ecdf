package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/health"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/install"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/show"
	"github.com/heddle-mesh/heddle/internal/admin"
	"github.com/heddle-mesh/heddle/internal/local"
)

func (a *app) check() *cobra.Command {
	var on install.Connection
	cluster := false
	cmd := &cobra.Command{
		Use: "check", Args: cobra.NoArgs, Short: "Say whether all is well, and what to do about what is not",
		Long: `Check this machine, the operator and every node's agent: kernel, file systems,
configuration, certificates, each pod's enrolment and gate. Exit status 1 when
anything is not well, 3 when no agent answers.

With --cluster, check a Kubernetes cluster instead, as far as its API server
knows: version, rights, nodes' kernels, the pods' network, and what is installed.`,
		Example: `  heddle check
  heddle check --cluster --context staging`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r := health.New()
			if cluster {
				return a.checkCluster(cmd.Context(), on, r)
			}
			r.Machine()
			unreachable, err := a.checkMesh(cmd.Context(), r)
			if err != nil {
				return err
			}
			if err := a.printReport(r); err != nil && !errors.Is(err, errNotWell) || !unreachable {
				return err
			}
			return fmt.Errorf("%w: %w", errNotWell, admin.ErrUnreachable)
		},
	}
	on.Register(cmd.Flags())
	cmd.Flags().BoolVar(&cluster, "cluster", false, "check a Kubernetes cluster, by its kubeconfig")
	return cmd
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

func (a *app) checkCluster(ctx context.Context, on install.Connection, r *health.Report) error {
	c, err := install.Connect(on.Kubeconfig, on.Context)
	if err == nil {
		err = c.Check(ctx, on.Namespace, r)
	}
	if err != nil {
		return err
	}
	return a.printReport(r)
}

// checkMesh looks at the operator and the agents.
func (a *app) checkMesh(ctx context.Context, r *health.Report) (unreachable bool, err error) {
	targets, err := a.targets()
	if errors.Is(err, local.ErrNoMesh) && a.name == "" {
		r.Bad("machine", "agent", "none runs on this machine", "start a mesh with `heddle local up --file FOLDER --create-pods`, or an agent")
		return true, nil
	}
	if err != nil {
		return false, err
	}
	if socket, ok := a.operatorSocketPath(); ok {
		r.Operator(ctx, socket)
	}
	for _, t := range targets {
		if !r.Agent(ctx, t.node, t.socket) {
			unreachable = true
		}
	}
	return unreachable, nil
}
