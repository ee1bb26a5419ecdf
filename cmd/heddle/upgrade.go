package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/show"
	"github.com/heddle-mesh/heddle/internal/local"
)

// upgradeFlags are the flags of `heddle local upgrade`.
type upgradeFlags struct {
	agent    string
	drain    bool
	patience time.Duration
}

func (a *app) localUpgrade() *cobra.Command {
	var f upgradeFlags
	cmd := &cobra.Command{
		Use: "upgrade", Args: cobra.NoArgs, Short: "Replace the mesh's agents by new ones that take their connections over",
		Long: `Replace the agent of each node, one after the other, by a new process. It tests
itself, then takes over listeners and live connections from the old one, which
ends. Connections go on, and none is refused meanwhile; those that cannot move
are drained by the old one. If the new agent is not fit, the old one goes on,
and the rest of the nodes stay as they are. It is an error, too, when a
connection was lost on the way: it is reset, and counted.

The new program is heddle-agent beside this one, unless --agent says otherwise.`,
		Example: `  heddle local upgrade
  heddle local upgrade --node n1 --agent bin/heddle-agent`,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.upgrade(cmd.Context(), f) },
	}
	flags := cmd.Flags()
	flags.StringVar(&f.agent, "agent", "", "path of the new heddle-agent; beside this program when empty")
	flags.BoolVar(&f.drain, "drain", false, "accept that connections end which cannot move, as those of the reference engine")
	flags.DurationVar(&f.patience, "wait", 0, "how long each node's new agent may take until connections move; 0 is as long as the old one waits")
	return cmd
}

// upgradeReport is the output as JSON.
type upgradeReport struct {
	Upgraded []local.Upgraded `json:"upgraded"`
	// Error is why the first node that is not among Upgraded was not upgraded.
	Error string `json:"error,omitempty"`
}

func (a *app) upgrade(ctx context.Context, f upgradeFlags) error {
	m, err := a.mesh.Local()
	if err != nil {
		return err
	}
	agent, err := binary(f.agent, "heddle-agent")
	if err != nil {
		return err
	}
	nodes, err := m.Nodes(a.mesh.Node)
	if err != nil {
		return fmt.Errorf("%w: %w", errUsage, err)
	}
	report := upgradeReport{Upgraded: []local.Upgraded{}}
	for _, n := range nodes {
		a.progress("replacing the agent of node " + n)
		done, err := m.Upgrade(ctx, n, local.Upgrade{AgentBinary: agent, Drain: f.drain, Patience: f.patience})
		if err != nil {
			report.Error = err.Error()
			break
		}
		report.Upgraded = append(report.Upgraded, done)
	}
	if a.output == "json" {
		err = a.document(report)
	} else if len(report.Upgraded) > 0 {
		err = show.Upgraded(a.out, a.color, report.Upgraded)
	}
	if err == nil && report.Error != "" {
		err = errors.New(report.Error)
	}
	return errors.Join(err, local.Lost(report.Upgraded))
}
