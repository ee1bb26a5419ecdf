package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"

	"github.com/spf13/cobra"

	"github.com/heddle-mesh/heddle/e2e/cluster"
)

// node finds a machine of the cluster.
func (t *tool) node(name string) (*cluster.Node, error) {
	c, err := t.open()
	if err != nil {
		return nil, err
	}
	node, err := c.Node(name)
	if err != nil {
		return nil, usageError{err}
	}
	return node, nil
}

func (t *tool) logsCommand() *cobra.Command {
	var follow bool
	var lines int
	command := &cobra.Command{
		Use: "logs NODE [PROGRAM]", Args: args(cobra.RangeArgs(1, 2)),
		Short: "Show what the programs of a node print",
		Long: `Show what the programs of a node print; without PROGRAM, those of all. The
control plane is the node "cp"; the program "machine" is a machine's own pid 1,
which says when others end.`,
		Example: "  cluster logs n1 kubelet\n  cluster logs cp kube-apiserver --tail 500\n  cluster logs n2 -f",
		RunE: func(cmd *cobra.Command, given []string) error {
			node, err := t.node(given[0])
			if err != nil {
				return err
			}
			programs := node.Programs()
			if len(given) == 2 {
				programs = given[1:]
			}
			tail := exec.CommandContext(cmd.Context(), "tail", fmt.Sprintf("--lines=%d", lines))
			if follow {
				tail.Args = append(tail.Args, "--follow=name", "--retry")
			}
			for _, program := range programs {
				file, err := node.Log(program)
				if err != nil {
					return usageError{err}
				}
				if _, err := os.Stat(file); err == nil || follow {
					tail.Args = append(tail.Args, file)
				}
			}
			tail.Stdout, tail.Stderr = os.Stdout, os.Stderr
			if err := tail.Run(); err != nil && cmd.Context().Err() == nil { // ^C ends following
				return fmt.Errorf("show logs of %s: %w", given[0], err)
			}
			return nil
		},
	}
	command.Flags().BoolVarP(&follow, "follow", "f", false, "go on as they print more")
	command.Flags().IntVar(&lines, "tail", 50, "how many lines of each")
	return command
}

func (t *tool) execCommand() *cobra.Command {
	return &cobra.Command{
		Use: "exec NODE -- COMMAND [ARGUMENT...]", Args: args(cobra.MinimumNArgs(2)),
		Short: "Run a command on a node, as root and in its namespaces",
		Long: `Run a command on a node, as root and in its namespaces. Standard input and output
are the command's; the exit code is the command's, too.`,
		Example: "  cluster exec n1 -- ctr -n k8s.io containers ls\n  cluster exec cp -- curl -s http://10.244.1.2:8080/\n  cluster exec n2 -- bash",
		RunE: func(cmd *cobra.Command, given []string) error {
			node, err := t.node(given[0])
			if err != nil {
				return err
			}
			command, err := node.Command(cmd.Context(), given[1:]...)
			if err != nil {
				return err
			}
			command.Stdin, command.Stdout, command.Stderr = os.Stdin, os.Stdout, os.Stderr
			if terminal := os.Getenv("TERM"); terminal != "" {
				command.Env = append(command.Env, "TERM="+terminal)
			}
			t.passExit = true
			return command.Run()
		},
	}
}

func (t *tool) nodeCommand() *cobra.Command {
	command := &cobra.Command{Use: "node", Short: "Stop, start and reboot single nodes"}
	for _, verb := range []struct {
		name, short string
		do          func(*cluster.Node, context.Context) error
	}{
		{"stop", "Stop a node as a power cut does; its /etc, /opt, /var and images stay", (*cluster.Node).Stop},
		{"start", "Start a node that is stopped, and wait until it is Ready", (*cluster.Node).Start},
		{"reboot", "Stop a node and start it again: /run, bpffs and network are new", (*cluster.Node).Reboot},
	} {
		command.AddCommand(&cobra.Command{
			Use: verb.name + " NODE", Short: verb.short, Args: args(cobra.ExactArgs(1)),
			RunE: func(cmd *cobra.Command, given []string) error {
				ctx, cancel := t.bounded(cmd.Context())
				defer cancel()
				node, err := t.node(given[0])
				if err != nil {
					return err
				}
				if err := verb.do(node, ctx); err != nil {
					return err
				}
				t.say(fmt.Sprintf("%s of node %s is done", verb.name, given[0]))
				return nil
			},
		})
	}
	return command
}

func (t *tool) loadImageCommand() *cobra.Command {
	return &cobra.Command{
		Use: "load-image ARCHIVE...", Args: args(cobra.MinimumNArgs(1)),
		Short: "Load image archives (OCI or docker) into all workers",
		Long: `Load image archives (OCI or docker) into all workers. Pods find them by the names
that they have in the archive, with imagePullPolicy Never or IfNotPresent.`,
		RunE: func(cmd *cobra.Command, archives []string) error {
			ctx, cancel := t.bounded(cmd.Context())
			defer cancel()
			c, err := t.open()
			if err != nil {
				return err
			}
			if err := c.LoadImage(ctx, archives...); err != nil {
				return err
			}
			t.say("loaded " + strings.Join(archives, ", "))
			return nil
		},
	}
}

func (t *tool) kubeconfigCommand() *cobra.Command {
	var path bool
	command := &cobra.Command{
		Use: "kubeconfig", Args: args(cobra.NoArgs),
		Short: "Print the kubeconfig of the cluster's admin, or its path",
		RunE: func(*cobra.Command, []string) error {
			c, err := t.open()
			if err != nil {
				return err
			}
			if path {
				fmt.Println(c.Kubeconfig())
				return nil
			}
			file, err := os.Open(c.Kubeconfig())
			if err != nil {
				return fmt.Errorf("the cluster has no kubeconfig yet: %w", err)
			}
			_, err = io.Copy(os.Stdout, file)
			return errors.Join(err, file.Close())
		},
	}
	command.Flags().BoolVar(&path, "path", false, "print the path of the file")
	return command
}
