package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/certs"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/enroll"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/install"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/reach"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/replay"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/show"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/validate"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/waypoint"
	"github.com/heddle-mesh/heddle/internal/admin"
)

// app is one run of the command line: its streams and its common flags.
type app struct {
	out, log io.Writer
	color    bool
	// started is set when a command's own code begins.
	started bool

	mesh   reach.Mesh
	output string
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "heddle",
		Short: "See, check and prove what a Heddle mesh does",
		Long: `heddle shows the flows of a mesh and says why each was allowed or refused,
checks that everything works, has the kernel prove what left a pod, and runs
whole meshes on one machine.

Exit status: 0 all is well; 1 something is not, or was refused; 2 the command
line is wrong; 3 nobody answers; 4 a simulated change would break connections, or
datagrams; 5 what was given of YAML cannot be read, or is not valid.`,
		SilenceUsage: true, SilenceErrors: true,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			a.started = true
			if cmd.Flags().Changed("experimental-udp") {
				fmt.Fprintln(a.log, "heddle: --experimental-udp is deprecated: use --udp-by-identity, the next version does not know the other")
			}
			if !slices.Contains([]string{"table", "json"}, a.output) {
				return fmt.Errorf("%w: output %q: use table or json", errUsage, a.output)
			}
			return nil
		},
	}
	flags := root.PersistentFlags()
	a.mesh.Register(flags)
	a.mesh.Log, a.mesh.In = a.log, root.InOrStdin()
	flags.StringVarP(&a.output, "output", "o", "table", "table or json")
	root.AddCommand(a.flows(), a.connections(), a.check(), a.prove(), a.local(), a.exec(), a.logs(),
		a.joinToken(), a.validating().Command(), a.version(), a.status(), a.explain(), a.analyze())
	root.AddCommand(enroll.Commands(enroll.Program{Out: a.out, Log: a.log, Color: a.color, Mesh: &a.mesh, Output: &a.output})...)
	root.AddCommand(replay.Commands(&replay.Program{Out: a.out, Log: a.log, Color: a.color, Mesh: &a.mesh, Output: &a.output, CompleteNamespaces: a.completeNamespaces})...)
	root.AddCommand(certs.Command(certs.Program{Out: a.out, Log: a.log, Color: a.color, Mesh: &a.mesh, Output: &a.output, NotWell: errNotWell}))
	root.AddCommand(waypoint.Command(waypoint.Program{Out: a.out, Log: a.log, Color: a.color, Cluster: &a.mesh.Cluster, Usage: errUsage, NotWell: errNotWell}))
	root.AddCommand(installing(install.Commands(a.out, a.log, version))...)
	return root
}

// validating says what is wrong with YAML.
func (a *app) validating() *validate.Program {
	return &validate.Program{Out: a.out, Color: a.color, Mesh: &a.mesh, Output: &a.output, NotWell: errNotWell}
}

// refuseUnknown has cobra's own commands refuse a topic and a shell that there are not, as
// cobra does a command: a script that asks for completion of a new shell is not to write a
// page of help where the completion was to be.
func refuseUnknown(root *cobra.Command) {
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	for _, cmd := range root.Commands() {
		switch cmd.Name() {
		case "help":
			cmd.Args = func(_ *cobra.Command, topic []string) error {
				if found, rest, err := root.Find(topic); err != nil || found == nil || len(rest) > 0 {
					return fmt.Errorf("%w: there is no command %q to help with: `%s help` lists those that are", errUsage, strings.Join(topic, " "), root.CommandPath())
				}
				return nil
			}
		case "completion":
			cmd.Args = func(_ *cobra.Command, shell []string) error {
				if len(shell) > 0 {
					return fmt.Errorf("%w: there is no completion for %q: there are bash, fish, powershell and zsh", errUsage, shell[0])
				}
				return nil
			}
			cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
		}
	}
}

// sayUse has a command and those below it say how they are used, beside what is wrong with
// the number of their arguments.
func sayUse(cmd *cobra.Command) {
	if check := cmd.Args; check != nil && !cmd.HasSubCommands() {
		cmd.Args = func(cmd *cobra.Command, args []string) error {
			err := check(cmd, args)
			if err != nil && !errors.Is(err, errUsage) { // ours say what to write
				err = fmt.Errorf("%w; use: %s", err, cmd.UseLine())
			}
			return err
		}
	}
	for _, sub := range cmd.Commands() {
		sayUse(sub)
	}
}

// installing has the commands that bring Heddle to a cluster refuse the common flags that
// are about other meshes, and about programs that they do not ask.
func installing(commands []*cobra.Command) []*cobra.Command {
	for _, c := range commands {
		c.PreRunE = func(cmd *cobra.Command, _ []string) error {
			moot := []string{"name", "state-dir", "socket", "operator-socket", "waypoint-socket", "node", "timeout", "udp-by-identity", "experimental-udp"}
			if cmd.Name() == "uninstall" {
				moot = append(moot, "output")
			}
			return reach.RefuseMoot(cmd.Flags(), "heddle "+cmd.Name(), moot...)
		}
	}
	return commands
}

// agents asks every agent of the mesh that is meant.
func agents[T any](ctx context.Context, a *app, ask func(context.Context, *admin.Client) (T, error)) ([]reach.Answer[T], error) {
	targets, err := a.mesh.Agents(ctx)
	if err != nil {
		return nil, err
	}
	answers := reach.Ask(ctx, a.mesh.Timeout, targets, ask)
	return answers, reach.Errors(answers)
}

// document prints v as indented JSON.
func (a *app) document(v any) error { return show.Document(a.out, v) }

// completeNamespaces completes a flag.
func (a *app) completeNamespaces(cmd *cobra.Command, flag string) {
	if err := cmd.RegisterFlagCompletionFunc(flag, func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		return a.mesh.Cluster.CompleteNamespaces(cmd, nil, "")
	}); err != nil {
		panic(err) // there is no such flag
	}
}

func (a *app) version() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if a.output == "json" {
				return a.document(map[string]string{"version": version, "go": runtime.Version(), "platform": runtime.GOOS + "/" + runtime.GOARCH})
			}
			_, err := fmt.Fprintf(a.out, "heddle %s (%s, %s/%s)\n", version, runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return err
		},
	}
}
