package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/folders"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/health"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/show"
	"github.com/heddle-mesh/heddle/internal/kube"
	"github.com/heddle-mesh/heddle/internal/local"
)

// defaultMesh is the name of a mesh that was not given one.
const defaultMesh = "local"

// upFlags are the flags of `heddle local up`.
type upFlags struct {
	folder, operator, agent string
	createPods, dryRun      bool
	patience                time.Duration
}

func (a *app) local() *cobra.Command {
	cmd := &cobra.Command{
		Use: "local", Short: "Run a mesh on this machine from a folder of YAML", Args: cobra.NoArgs,
		Long: `Run a whole mesh on this machine, without Kubernetes: every node of the folder's
Workloads becomes a network namespace with an agent of its own, joined to the
others by a bridge. docs/cli.md has the names of namespaces and links.`,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	var f upFlags
	up := &cobra.Command{
		Use: "up", Args: cobra.NoArgs, Short: "Start a mesh, or what is missing of it, and wait until it is healthy",
		Example: `  heddle local up --file e2e/demo/mesh --create-pods
  heddle local up --file e2e/demo/mesh --create-pods --dry-run`,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.up(cmd.Context(), f) },
	}
	flags := up.Flags()
	flags.StringVarP(&f.folder, "file", "f", "", "folder of configuration (needed)")
	flags.BoolVar(&f.createPods, "create-pods", false, "make the Workloads' network namespaces, with links, addresses and routes")
	flags.BoolVar(&f.dryRun, "dry-run", false, "show what would be made, and make nothing")
	flags.DurationVar(&f.patience, "wait", time.Minute, "how long to wait until all is healthy; 0 does not wait")
	flags.StringVar(&f.operator, "operator-binary", "", "path of heddle-operator; beside this program when empty")
	flags.StringVar(&f.agent, "agent-binary", "", "path of heddle-agent; beside this program when empty")
	down := &cobra.Command{
		Use: "down", Args: cobra.NoArgs, Short: "Stop a mesh and remove everything that was made for it",
		RunE: func(cmd *cobra.Command, _ []string) error { return a.down(cmd.Context()) },
	}
	status := &cobra.Command{
		Use: "status", Args: cobra.NoArgs, Short: "Show the parts of a mesh, and whether they run",
		RunE: func(*cobra.Command, []string) error { return a.localStatus() },
	}
	cmd.AddCommand(up, down, status, a.localUpgrade())
	return cmd
}

// meshName is the name for `local up`, which does not have to exist yet.
func (a *app) meshName() string {
	if a.mesh.Name == "" {
		return defaultMesh
	}
	return a.mesh.Name
}

func (a *app) up(ctx context.Context, f upFlags) error {
	if f.folder == "" {
		return fmt.Errorf("%w: --file is needed: the folder of configuration", errUsage)
	}
	plan, err := local.NewPlan(a.meshName(), f.folder, a.mesh.UDPByIdentity)
	if err = unfit(f.folder, err); err != nil {
		return a.validating().Invalid(err, errToldInvalid)
	}
	if f.dryRun {
		return a.printPlan(plan, f.createPods)
	}
	operator, err := binary(f.operator, "heddle-operator")
	if err != nil {
		return err
	}
	agent, err := binary(f.agent, "heddle-agent")
	if err != nil {
		return err
	}
	begun := time.Now()
	m, err := local.Up(ctx, local.Config{
		Name: plan.Name, Folder: f.folder, CreatePods: f.createPods, StateDir: a.mesh.StateDir,
		OperatorBinary: operator, AgentBinary: agent, UDPByIdentity: a.mesh.UDPByIdentity, Progress: a.progress,
	})
	if err != nil {
		return fmt.Errorf("%w\nTake away what was made with: heddle local down --name %s", err, plan.Name)
	}
	a.mesh.Name = plan.Name
	if f.patience > 0 {
		a.progress("waiting until all is healthy")
		if err := a.awaitHealth(ctx, f.folder, f.patience); err != nil {
			return err
		}
	}
	if a.output == "json" {
		return a.document(m.Status())
	}
	_, err = fmt.Fprintf(a.out, "%s in %.1f s: %d nodes, %d pods. Next: heddle check --name %s; heddle flows --name %s --follow\n",
		show.Painted("Mesh "+plan.Name+" is up", show.Green, a.color), time.Since(begun).Seconds(), len(plan.Nodes), podCount(plan), plan.Name, plan.Name)
	return err
}

// progress tells the steps; where the output is for a program, on standard
// error.
func (a *app) progress(step string) {
	out := a.out
	if a.output == "json" {
		out = a.log
	}
	fmt.Fprintf(out, "%s %s\n", show.Painted("•", show.Dim, a.color), step)
}

func podCount(p *local.Plan) int {
	n := 0
	for _, node := range p.Nodes {
		n += len(node.Pods)
	}
	return n
}

// binary finds a program: where the flag says, or beside this one.
func binary(flag, name string) (string, error) {
	path := flag
	if path == "" {
		self, err := os.Executable()
		if err != nil {
			return "", fmt.Errorf("find %s: %w", name, err)
		}
		path = filepath.Join(filepath.Dir(self), name)
	}
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("find %s: %w: build it with `make build`, or give its path with a flag", name, err)
	}
	return filepath.Abs(path)
}

// awaitHealth asks until every check of the mesh succeeds, and every pod that
// the folder enrolls is enrolled.
func (a *app) awaitHealth(ctx context.Context, folder string, patience time.Duration) error {
	expected, err := enrolledPods(folder, a.mesh.UDPByIdentity)
	if err != nil {
		return err
	}
	deadline := time.Now().Add(patience)
	for {
		r := health.New()
		if _, err := a.checkMesh(ctx, r); err != nil {
			return err
		}
		for _, pod := range expected {
			if !slices.ContainsFunc(r.Findings, func(f health.Finding) bool { return f.Part == pod.Part && f.Name == pod.Name }) {
				r.Bad(pod.Part, pod.Name, "not enrolled yet", "see the log of the node's agent")
			}
		}
		if r.OK {
			return nil
		}
		if time.Now().After(deadline) {
			return errors.Join(a.printReport(r), fmt.Errorf("not healthy within %v: see above, and `heddle logs operator` or `heddle logs NODE`", patience))
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// unfit adds to what keeps a folder from being a mesh, if anything does, what an API server
// would refuse of it, which an operator takes.
func unfit(folder string, err error) error {
	_, refused, unread := folders.Load(folder)
	switch {
	case unread != nil && err == nil:
		return unread
	case unread != nil:
		return folders.Invalid(err)
	case err != nil && len(kube.Problems(err)) == 0:
		if info, statErr := os.Stat(folder); statErr == nil && !info.IsDir() {
			return folders.Invalid(err)
		}
		return err // of the plan, or of its name
	}
	return refused.Beyond(err)
}

// enrolledPods are the findings that a healthy mesh has for its pods.
func enrolledPods(folder string, udpByIdentity bool) ([]health.Finding, error) {
	objects, err := kube.LoadDir(folder)
	if err != nil {
		return nil, err
	}
	objects.UDPByIdentity = udpByIdentity
	compiled, err := kube.Compile(objects)
	if err != nil {
		return nil, err
	}
	var pods []health.Finding
	for _, w := range compiled.Workloads {
		if w.Enrolled && w.NetNS != "" {
			pods = append(pods, health.Finding{Part: w.Node, Name: "pod " + w.Key.String()})
		}
	}
	return pods, nil
}

func (a *app) printPlan(p *local.Plan, createPods bool) error {
	if a.output == "json" {
		return a.document(p)
	}
	fmt.Fprintf(a.out, "mesh %s from %s\n", p.Name, p.Folder)
	fmt.Fprintf(a.out, "  namespace %s: bridge br0, the operator at %s\n", p.FabricNetNS(), p.OperatorAddress())
	for _, n := range p.Nodes {
		fmt.Fprintf(a.out, "  namespace %s: underlay0 %s %s, port %s on the bridge, the agent of node %s\n", n.NetNS, n.Underlay4, n.Underlay6, n.FabricLink, n.Name)
		for _, pod := range n.Pods {
			made := "is expected"
			if createPods {
				made = "is made if missing"
			}
			fmt.Fprintf(a.out, "    pod %s: namespace %s %s, eth0 %v, host side %s\n", pod.Workload, pod.NetNS, made, pod.Addresses, pod.HostLink)
		}
	}
	_, err := fmt.Fprintln(a.out, "Nothing was made.")
	return err
}

func (a *app) down(ctx context.Context) error {
	m, err := a.mesh.Local()
	if errors.Is(err, local.ErrNoMesh) {
		if a.output == "json" {
			return a.document(map[string]any{"removed": nil})
		}
		_, err = fmt.Fprintln(a.out, "No such mesh: nothing to take down.")
		return err
	}
	if err != nil {
		return err
	}
	name := m.Status().Name
	if err := m.Down(ctx); err != nil {
		return fmt.Errorf("take mesh %s down: %w\nRun the same command again: it goes on with the rest", name, err)
	}
	if a.output == "json" {
		return a.document(map[string]any{"removed": name})
	}
	_, err = fmt.Fprintf(a.out, "Mesh %s is down; everything made for it is removed.\n", name)
	return err
}

func (a *app) localStatus() error {
	m, err := a.mesh.Local()
	if err != nil {
		return err
	}
	s := m.Status()
	well := s.Operator.Running
	for _, n := range s.Nodes {
		well = well && n.Agent.Running
	}
	if a.output == "json" {
		err = a.document(s)
	} else {
		err = a.printStatus(s)
	}
	if err == nil && !well {
		err = errNotWell
	}
	return err
}

func (a *app) printStatus(s local.Status) error {
	fmt.Fprintf(a.out, "mesh %s from %s\n", s.Name, s.Folder)
	t := show.NewTable(a.out, a.color, "PART", "STATE", "PID", "NETNS", "PODS", "LOG")
	row := func(part, netns string, p local.ProcessStatus, pods string) {
		state := show.In("runs", show.Green)
		if !p.Running {
			state = show.In("ended", show.Red)
		}
		t.Add(show.Text(part), state, show.Text(fmt.Sprint(p.PID)), show.Text(netns), show.Text(pods), show.Text(p.Log))
	}
	row("operator", "heddle-"+s.Name+"-fabric", s.Operator, "")
	for _, n := range s.Nodes {
		row(n.Name, n.NetNS, n.Agent, fmt.Sprint(len(n.Pods)))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, n := range s.Nodes {
		for _, p := range n.Pods {
			if _, err := fmt.Fprintf(a.out, "  pod %s on %s: %s %v, host side %s\n", p.Workload, n.Name, p.NetNS, p.Addresses, p.HostLink); err != nil {
				return err
			}
		}
	}
	return nil
}

func (a *app) exec() *cobra.Command {
	return &cobra.Command{
		Use: "exec POD -- COMMAND [ARGUMENT...]", Args: cobra.MinimumNArgs(2), Short: "Run a command in a pod's network namespace",
		Long: `Replace heddle by a command in the network namespace of a local mesh's pod. The
command is outside every agent's cgroup: its sockets are the pod's, as an
application's are. The exit status is the command's.`,
		Example: `  heddle exec shop/customer -- curl -sS http://10.96.0.10/`,
		RunE: func(_ *cobra.Command, args []string) error {
			m, err := a.onlyLocal("`kubectl exec`")
			if err != nil {
				return err
			}
			return m.Exec(args[0], args[1:], os.Environ())
		},
	}
}

// onlyLocal is the local mesh that is meant, for what a cluster has another program for.
func (a *app) onlyLocal(onCluster string) (*local.Mesh, error) {
	m, err := a.mesh.Local()
	if errors.Is(err, local.ErrNoMesh) && a.mesh.Name == "" {
		return nil, fmt.Errorf("%w on this machine: start one with `heddle local up --file FOLDER --create-pods`; on a cluster it is %s", local.ErrNoMesh, onCluster)
	}
	return m, err
}

func (a *app) logs() *cobra.Command {
	var follow bool
	cmd := &cobra.Command{
		Use: "logs PART", Args: cobra.ExactArgs(1), Short: "Print the log of a local mesh's operator, or of a node's agent",
		Example: `  heddle logs operator
  heddle logs n1 --follow`,
		RunE: func(cmd *cobra.Command, args []string) error {
			m, err := a.onlyLocal("`kubectl -n heddle-system logs -l app.kubernetes.io/part-of=heddle --prefix`")
			if err != nil {
				return err
			}
			path, err := m.Logs(args[0])
			if err != nil {
				return fmt.Errorf("%w: %w", errUsage, err)
			}
			return printLog(cmd.Context(), a.out, path, follow)
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on with new lines, until interrupted")
	return cmd
}

func printLog(ctx context.Context, out io.Writer, path string, follow bool) (err error) {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	for {
		if _, err := io.Copy(out, f); err != nil {
			return fmt.Errorf("read log: %w", err)
		}
		if !follow {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(200 * time.Millisecond):
		}
	}
}
