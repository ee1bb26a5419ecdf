package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/install"
	"github.com/heddle-mesh/heddle/internal/admin"
	"github.com/heddle-mesh/heddle/internal/local"
)

// app is one run of the command line: its streams and its common flags.
type app struct {
	out, log io.Writer
	color    bool
	// started is set when a command's own code begins.
	started bool

	name, stateDir, socket, operatorSocket, node, output string
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "heddle",
		Short: "See, check and prove what a Heddle mesh does",
		Long: `heddle shows the flows of a mesh and says why each was allowed or refused,
checks that everything works, has the kernel prove what left a pod, and runs
whole meshes on one machine.

Exit status: 0 all is well; 1 something is not, or was refused; 2 the command
line is wrong; 3 nobody answers.`,
		SilenceUsage: true, SilenceErrors: true,
		PersistentPreRunE: func(*cobra.Command, []string) error {
			a.started = true
			if !slices.Contains([]string{"table", "json"}, a.output) {
				return fmt.Errorf("%w: output %q: use table or json", errUsage, a.output)
			}
			return nil
		},
	}
	flags := root.PersistentFlags()
	flags.StringVar(&a.name, "name", "", "name of the local mesh")
	flags.StringVar(&a.stateDir, "state-dir", local.DefaultStateDir, "folder where local meshes are on record")
	flags.StringVar(&a.socket, "socket", "", "admin socket of one agent, in place of a local mesh's")
	flags.StringVar(&a.operatorSocket, "operator-socket", "", "admin socket of the operator, in place of a local mesh's")
	flags.StringVar(&a.node, "node", "", "only this node of the mesh")
	flags.StringVarP(&a.output, "output", "o", "table", "table or json")
	root.AddCommand(a.flows(), a.connections(), a.check(), a.prove(), a.local(), a.exec(), a.logs(),
		a.joinToken(), a.validate(), a.version())
	root.AddCommand(install.Commands(a.out, a.log, version)...)
	return root
}

// target is one agent.
type target struct{ node, socket string }

// mesh finds the local mesh that is meant: the named one, or the only one.
func (a *app) mesh() (*local.Mesh, error) {
	if a.name != "" {
		return local.Open(a.stateDir, a.name)
	}
	names, err := local.List(a.stateDir)
	switch {
	case err != nil:
		return nil, fmt.Errorf("list local meshes: %w", err)
	case len(names) == 0:
		return nil, fmt.Errorf("%w: start one with `heddle local up --file FOLDER --create-pods`", local.ErrNoMesh)
	case len(names) > 1:
		return nil, fmt.Errorf("%w: there are several local meshes: choose one with --name: %s", errUsage, strings.Join(names, ", "))
	}
	return local.Open(a.stateDir, names[0])
}

// targets finds the agents that are meant: that of --socket, those of the local
// mesh, or this machine's.
func (a *app) targets() ([]target, error) {
	if a.socket != "" {
		return []target{{a.node, a.socket}}, nil
	}
	if a.name == "" {
		if _, err := os.Stat(admin.DefaultSocket); err == nil {
			return []target{{a.node, admin.DefaultSocket}}, nil
		}
	}
	m, err := a.mesh()
	if err != nil {
		return nil, err
	}
	var all []target
	var names []string
	for _, n := range m.Status().Nodes {
		names = append(names, n.Name)
		if a.node == "" || a.node == n.Name {
			all = append(all, target{n.Name, m.AgentSocket(n.Name)})
		}
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("%w: no node %q: there are %s", errUsage, a.node, strings.Join(names, ", "))
	}
	return all, nil
}

// eachAgent calls fn with a client of every target. It goes on after an agent
// that does not answer, and returns all errors.
func (a *app) eachAgent(ctx context.Context, fn func(target, *admin.Client) error) error {
	targets, err := a.targets()
	if err != nil {
		return err
	}
	var errs []error
	for _, t := range targets {
		client, err := admin.Dial(ctx, t.socket)
		if err == nil {
			err = admin.Explain(fn(t, client))
			if closeErr := client.Close(); err == nil {
				err = closeErr
			}
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("agent%s: %w", ofNode(t.node), err))
		}
	}
	return errors.Join(errs...)
}

func ofNode(node string) string {
	if node == "" {
		return ""
	}
	return " of node " + node
}

// document prints v as indented JSON.
func (a *app) document(v any) error {
	enc := json.NewEncoder(a.out)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
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
