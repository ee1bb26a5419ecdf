// Command cluster brings up real Kubernetes clusters on this machine, and takes
// them down again: `cluster up`, `cluster status`, `cluster down`. It needs root,
// Go, containerd and runc, and neither a registry nor the network once the Go
// modules are there. Exit codes: 0 done, 1 failed, 2 wrong usage, 3 a cluster
// that is not healthy, and for exec that of the command.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/heddle-mesh/heddle/e2e/cluster"
	"github.com/heddle-mesh/heddle/e2e/cluster/build"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx))
}

// Exit codes.
const (
	exitFailed    = 1
	exitUsage     = 2
	exitUnhealthy = 3
)

// errUnhealthy has been shown already.
var errUnhealthy = errors.New("the cluster is not healthy")

func run(ctx context.Context) int {
	t := &tool{started: time.Now()}
	root := t.command()
	err := root.ExecuteContext(ctx)
	var usage usageError
	switch {
	case err == nil:
		return 0
	case errors.Is(err, errUnhealthy):
		return exitUnhealthy
	case errors.As(err, &usage):
		fmt.Fprintf(os.Stderr, "cluster: %v\n", err)
		return exitUsage
	}
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && t.passExit {
		return exit.ExitCode()
	}
	fmt.Fprintf(os.Stderr, "cluster: %v\n", err)
	return exitFailed
}

// usageError is a mistake on the command line.
type usageError struct{ error }

// tool is one run: its flags, and when it started.
type tool struct {
	started   time.Time
	root, dir string
	name      string
	timeout   time.Duration
	// passExit: what failed is the user's command, and its exit code is ours.
	passExit bool
}

func (t *tool) command() *cobra.Command {
	root := &cobra.Command{
		Use:   "cluster",
		Short: "Real Kubernetes clusters on this machine",
		Long: `Real Kubernetes clusters on this machine: etcd, API server, controllers and
scheduler on one machine of their own, kubelet and containerd on two workers or
more. A machine is a process in namespaces of its own; nothing of the host's
network, /etc or /var changes, and ` + "`cluster down`" + ` leaves nothing behind.`,
		Example: `  cluster up                          # the cluster "dev", two workers
  export KUBECONFIG=$(cluster kubeconfig --path)
  cluster up --name blue --workers 3  # another one beside it
  cluster node reboot n1
  cluster exec n1 -- ctr -n k8s.io containers ls
  cluster down`,
		SilenceUsage: true, SilenceErrors: true,
	}
	root.PersistentFlags().StringVar(&t.name, "name", "dev", "name of the cluster, and prefix of its network namespaces")
	root.PersistentFlags().StringVar(&t.root, "root", "", "checkout to build from (default: the one around this folder)")
	root.PersistentFlags().StringVar(&t.dir, "dir", "", "folder with the clusters' states (default: .cache/clusters in the checkout)")
	root.PersistentFlags().DurationVar(&t.timeout, "timeout", 5*time.Minute, "how long it may take; building the programs comes on top")
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.AddCommand(t.upCommand(), t.buildCommand(), t.downCommand(), t.statusCommand(), t.logsCommand(),
		t.execCommand(), t.nodeCommand(), t.loadImageCommand(), t.kubeconfigCommand())
	for _, sub := range append(root.Commands(), root) {
		sub.DisableFlagsInUseLine = true
	}
	return root
}

// args makes a wrong number of arguments an error of usage.
func args(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, given []string) error {
		if err := check(cmd, given); err != nil {
			return usageError{fmt.Errorf("%w: see `%s --help`", err, cmd.CommandPath())}
		}
		return nil
	}
}

// say prints progress with the time since the start.
func (t *tool) say(line string) {
	fmt.Fprintf(os.Stderr, "%6.1f s  %s\n", time.Since(t.started).Seconds(), line)
}

func (t *tool) findRoot() (string, error) {
	if t.root != "" {
		return build.FindRoot(t.root)
	}
	return build.FindRoot(".")
}

// stateDir is the folder with the clusters' states.
func (t *tool) stateDir() (string, error) {
	if t.dir != "" {
		return filepath.Abs(t.dir)
	}
	root, err := t.findRoot()
	if err != nil {
		return "", err
	}
	return filepath.Join(root, ".cache", "clusters"), nil
}

// open finds the cluster, or says which ones there are.
func (t *tool) open() (*cluster.Cluster, error) {
	dir, err := t.stateDir()
	if err != nil {
		return nil, err
	}
	c, err := cluster.Open(dir, t.name)
	if !errors.Is(err, cluster.ErrNotFound) {
		return c, err
	}
	names, listErr := cluster.Names(dir)
	if listErr != nil {
		return nil, errors.Join(err, listErr)
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("%w, nor any other: bring it up with `cluster up --name %s`", err, t.name)
	}
	return nil, fmt.Errorf("%w: there are %v: choose one with --name", err, names)
}

func (t *tool) bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, t.timeout, fmt.Errorf("not done within --timeout %s", t.timeout))
}
