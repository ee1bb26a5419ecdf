package enroll

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/analyze"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/cluster"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/reach"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/show"
)

// Program is the program that has the commands.
type Program struct {
	Out, Log io.Writer
	Color    bool
	// Mesh and Output ("table" or "json") are filled in by flags.
	Mesh   *reach.Mesh
	Output *string
}

// Commands returns enroll and unenroll.
func Commands(p Program) []*cobra.Command { return []*cobra.Command{p.enroll(), p.unenroll()} }

// defaultWait is what --wait alone means.
const defaultWait = 2 * time.Minute

type act func(context.Context, *cluster.Cluster, Agents, Request) (*Result, error)

func (p Program) enroll() *cobra.Command {
	var r Request
	cmd := p.enrolling(&r, Enroll)
	cmd.Use, cmd.Short = "enroll NAMESPACE", "Bring the pods of a namespace into the mesh"
	cmd.Long = `Label a namespace heddle.dev/mesh=enabled: its pods join the mesh as they are,
without a restart, and their open connections live on, in plaintext: for an hour,
or until a later change of policy refuses what was allowed.

Before that, look for what would be cut off: what the control plane itself calls
(admission webhooks, aggregated APIs such as metrics-server), scrapes, clients
from outside, pods in their nodes' networks, and NetworkPolicies that block the
tunnel. If there is anything, it is printed with the exact policy that keeps it
working, nothing is changed, and the exit status is 1: --fix applies these
policies first, --force goes on without.`
	cmd.Example = `  heddle enroll shop --dry-run
  heddle enroll shop --strict --wait
  heddle enroll shop --fix --wait=5m -o json`
	cmd.Flags().BoolVar(&r.Strict, "strict", false, "let its ports refuse plaintext, by PeerAuthentication "+analyze.StrictName)
	cmd.Flags().BoolVar(&r.Fix, "fix", false, "apply the policies that keep working what would be cut off")
	cmd.Flags().BoolVar(&r.Force, "force", false, "enroll whatever is cut off")
	return cmd
}

func (p Program) unenroll() *cobra.Command {
	var r Request
	cmd := p.enrolling(&r, Unenroll)
	cmd.Use, cmd.Short = "unenroll NAMESPACE", "Take the pods of a namespace out of the mesh"
	cmd.Long = `Take the label heddle.dev/mesh off a namespace, and the PeerAuthentication that
enroll --strict made. Agents end what they carry, to a deadline; pods that have
the label themselves stay. Other policies stay as they are.`
	cmd.Example = `  heddle unenroll shop --wait`
	return cmd
}

// enrolling is what both commands have in common.
func (p Program) enrolling(r *Request, act act) *cobra.Command {
	cmd := &cobra.Command{
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			r.Namespace, r.Progress = args[0], p.Log
			c, err := cluster.Connect(p.Mesh.Cluster)
			if err != nil {
				return err
			}
			result, err := act(cmd.Context(), c, p.agentsOn, *r)
			return p.print(result, err)
		},
		ValidArgsFunction: p.Mesh.Cluster.CompleteNamespaces,
	}
	cmd.Flags().DurationVar(&r.Wait, "wait", 0, "wait until agents report that every pod has followed, for so long at most")
	cmd.Flags().Lookup("wait").NoOptDefVal = defaultWait.String()
	cmd.Flags().BoolVar(&r.DryRun, "dry-run", false, "change nothing")
	return cmd
}

// agentsOn asks the agents of some nodes of the cluster.
func (p Program) agentsOn(ctx context.Context, nodes []string) ([]reach.Answer[*meshpb.AgentStatus], error) {
	mesh := *p.Mesh
	mesh.OnlyCluster = true
	targets, err := mesh.Agents(ctx)
	if err != nil {
		return nil, err
	}
	targets = slices.DeleteFunc(targets, func(t reach.Target) bool { return !slices.Contains(nodes, t.Node) })
	return reach.Ask(ctx, mesh.Timeout, targets, reach.Status), nil
}

func (p Program) print(r *Result, failed error) error {
	if *p.Output == "json" {
		return errors.Join(show.Document(p.Out, r), failed)
	}
	if err := analyze.Print(p.Out, p.Color, r.Findings); err != nil || failed != nil {
		return errors.Join(err, failed)
	}
	word := "is not enrolled any more"
	switch {
	case r.Leaving && r.DryRun:
		word = "would be taken out of the mesh"
	case r.DryRun && len(r.Findings) == 0:
		word = "could be enrolled: nothing would be cut off"
	case r.DryRun:
		word = "could be enrolled, with what is printed above"
	case r.Enrolled:
		word = "is enrolled"
	}
	_, err := fmt.Fprintf(p.Out, "Namespace %s %s.\n", r.Namespace, word)
	return err
}
