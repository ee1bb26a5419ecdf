// Package waypoint is `heddle waypoint`: it asks the operator for waypoints, by Gateways,
// shows how they are, and takes them away. It runs none itself.
//
// Two people's acts on one waypoint are kept apart by the API server only.
package waypoint

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/cluster"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/show"
	"github.com/heddle-mesh/heddle/internal/tune"
)

// Program is the program that has the command.
type Program struct {
	Out, Log io.Writer
	Color    bool
	// Cluster says which cluster is meant, and is filled in by flags.
	Cluster *cluster.Options
	// Usage is matched by errors of the command line, NotWell ends a command whose output has
	// said what is wrong.
	Usage, NotWell error
}

// DefaultName is the name of a waypoint that is not given one.
const DefaultName = "waypoint"

// defaultWait is what --wait alone means.
const defaultWait = 2 * time.Minute

// which is the waypoint that is meant.
type which struct {
	namespace, name, output string
	wait                    time.Duration
	dryRun                  bool
}

// Command returns waypoint.
func Command(p Program) *cobra.Command {
	cmd := &cobra.Command{
		Use: "waypoint", Short: "Run waypoints, which route requests and hold policy about them",
		Long: `A waypoint is a proxy of a namespace, for what needs requests to be read:
HTTPRoutes, GRPCRoutes, and policies about methods, paths and headers; TLSRoutes
and TCPRoutes have what is no HTTP go through it as it is. It is asked
for by a Gateway of class heddle-waypoint, and takes the connections of services
that name it by the label heddle.dev/waypoint, their own or their namespace's.`,
		Args: cobra.NoArgs,
		// Without it a subcommand that there is none of would be taken for a call for help.
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(p.apply(), p.list(), p.status(), p.delete())
	return cmd
}

// flags are those that the subcommands have in common.
func (p Program) flags(cmd *cobra.Command, w *which, formats string) {
	cmd.Args = cobra.NoArgs
	cmd.Flags().StringVarP(&w.namespace, "namespace", "n", "", "namespace of the waypoint; empty is that of the kubeconfig's context")
	cmd.Flags().StringVarP(&w.output, "output", "o", "table", formats)
	if err := cmd.RegisterFlagCompletionFunc("namespace", func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		return p.Cluster.CompleteNamespaces(cmd, nil, "")
	}); err != nil {
		panic(err) // there is no such flag
	}
}

// named adds the flag for a name.
func (p Program) named(cmd *cobra.Command, w *which) {
	cmd.Flags().StringVar(&w.name, "name", DefaultName, "name of the waypoint")
	if err := cmd.RegisterFlagCompletionFunc("name", func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		return p.completeNames(cmd, w), cobra.ShellCompDirectiveNoFileComp
	}); err != nil {
		panic(err) // there is no such flag
	}
}

func (p Program) completeNames(cmd *cobra.Command, w *which) (names []string) {
	ctx, cancel := context.WithTimeout(cmd.Context(), 2*time.Second)
	defer cancel()
	c, err := cluster.Connect(*p.Cluster)
	if err != nil {
		return nil
	}
	found, err := find(ctx, c, cmp.Or(w.namespace, p.Cluster.CurrentNamespace()))
	if err != nil {
		return nil
	}
	for _, one := range found {
		names = append(names, one.Name)
	}
	return names
}

func waits(cmd *cobra.Command, w *which, usage string) {
	cmd.Flags().DurationVar(&w.wait, "wait", 0, usage)
	cmd.Flags().Lookup("wait").NoOptDefVal = defaultWait.String()
	cmd.Flags().BoolVar(&w.dryRun, "dry-run", false, "change nothing, and print what would be done")
}

// connect returns the cluster, and completes what was asked for.
func (p Program) connect(w *which, formats ...string) (*cluster.Cluster, error) {
	ok := false
	for _, f := range append(formats, "table", "json") {
		ok = ok || w.output == f
	}
	if !ok {
		return nil, fmt.Errorf("%w: output %q: use table, json%s", p.Usage, w.output, map[bool]string{true: " or yaml"}[len(formats) > 0])
	}
	w.namespace = cmp.Or(w.namespace, p.Cluster.CurrentNamespace())
	return cluster.Connect(*p.Cluster)
}

func (p Program) apply() *cobra.Command {
	var w which
	var a application
	cmd := &cobra.Command{
		Use: "apply", Short: "Make a waypoint, or change the one that is there",
		Long: `Apply a Gateway of class heddle-waypoint, for which the operator runs a waypoint:
two replicas, or as many as --replicas or --autoscale say, with a Service, a
disruption budget and an account of its own. Services go on without it until it is
ready, and then through it, without a connection that fails.

--enroll-namespace labels the namespace, so that all of its services use it. For a
single one: kubectl label service NAME heddle.dev/waypoint=waypoint.

--canary tries the image that the operator was given for that (heddle upgrade --set
operator.waypoints.canaryImage=IMAGE) by so many replicas of this waypoint, which get
their share of its requests, before heddle upgrade has all waypoints run it.

--access-log 1 has each request logged as a line of JSON that kubectl logs shows, 0.01
each hundredth and those answered with 5xx, 0 none.`,
		Example: `  heddle waypoint apply -n shop --enroll-namespace --wait
  heddle waypoint apply -n shop --name canary --autoscale 2-10
  heddle waypoint apply -n shop --canary 1
  heddle waypoint apply -n shop --access-log 0.01
  heddle waypoint apply -n shop --dry-run -o yaml > gateway.yaml`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if a.access != "" {
				if err := tune.CheckAccess(a.access); err != nil {
					return fmt.Errorf("%w: --access-log: %w", p.Usage, err)
				}
			}
			c, err := p.connect(&w, "yaml")
			if err != nil {
				return err
			}
			if w.dryRun {
				return p.object(&w, a.gateway(&w))
			}
			one, err := a.apply(cmd.Context(), c, &w, p.say)
			if err != nil {
				return err
			}
			if w.output != "table" {
				return p.object(&w, a.gateway(&w))
			}
			_, err = fmt.Fprintf(p.Out, "Waypoint %s/%s %s.\n", w.namespace, w.name, map[bool]string{true: "takes requests", false: "is asked for: `heddle waypoint status` says when it is ready"}[one != nil && one.Programmed])
			return err
		},
	}
	p.flags(cmd, &w, "table, or json or yaml: print the Gateway")
	p.named(cmd, &w)
	waits(cmd, &w, "wait until it takes requests, for so long at most")
	cmd.Flags().IntVar(&a.replicas, "replicas", 0, "how many replicas, 1 to 100; 0 leaves it at what is there, or 2")
	cmd.Flags().StringVar(&a.autoscale, "autoscale", "", "between how many replicas it scales by its use of the CPU, as 2-10")
	cmd.Flags().IntVar(&a.canary, "canary", unsaid, "how many replicas try the image of operator.waypoints.canaryImage beside those, 0 to 100; 0 ends it")
	cmd.Flags().Lookup("canary").DefValue = "as many as do"
	cmd.Flags().StringVar(&a.access, "access-log", "", "share of requests that its pods log, from 0 to 1; empty leaves it at what is there, or at waypoint.accessLog of the installation")
	cmd.Flags().BoolVar(&a.enroll, "enroll-namespace", false, "label the namespace, so that all of its services use it")
	return cmd
}

// object prints one, as YAML unless JSON is asked for.
func (p Program) object(w *which, o map[string]any) error {
	if w.output == "json" {
		return show.Document(p.Out, o)
	}
	text, err := yaml.Marshal(o)
	if err == nil {
		_, err = p.Out.Write(text)
	}
	return err
}

func (p Program) say(format string, args ...any) {
	// Nobody is there to be told that nobody can be told.
	_, _ = fmt.Fprintf(p.Log, "heddle: "+format+"\n", args...)
}

func (p Program) list() *cobra.Command {
	var w which
	var all bool
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List waypoints",
		Example: `  heddle waypoint list -n shop
  heddle waypoint list --all-namespaces -o json`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := p.connect(&w)
			if err != nil {
				return err
			}
			if all {
				w.namespace = ""
			}
			found, err := find(cmd.Context(), c, w.namespace)
			if err != nil {
				return err
			}
			if w.output == "json" {
				return show.Document(p.Out, found)
			}
			if len(found) == 0 {
				_, err = fmt.Fprintln(p.Out, "No waypoints. `heddle waypoint apply` makes one.")
				return err
			}
			return p.table(found)
		},
	}
	p.flags(cmd, &w, "table or json")
	cmd.Flags().BoolVarP(&all, "all-namespaces", "A", false, "of all namespaces")
	return cmd
}

func (p Program) table(found []Waypoint) error {
	t := show.NewTable(p.Out, p.Color, "NAMESPACE", "NAME", "PROGRAMMED", "REPLICAS", "ADDRESS", "SERVICES")
	for _, one := range found {
		state := show.In("yes", show.Green)
		if !one.Programmed {
			state = show.In(cmp.Or(one.Reason, "no"), show.Red)
		}
		address := ""
		if len(one.Addresses) > 0 {
			address = one.Addresses[0]
		}
		t.Add(show.Text(one.Namespace), show.Text(one.Name), state, show.Text(fmt.Sprintf("%d/%d", one.Replicas.Ready, one.Replicas.Wanted)), show.Text(address), show.Text(fmt.Sprint(len(one.Services))))
	}
	return t.Flush()
}

func (p Program) status() *cobra.Command {
	var w which
	cmd := &cobra.Command{
		Use: "status", Short: "Show how a waypoint is, and which services use it",
		Long: `Show whether a waypoint takes requests, or why it does not, its replicas, and the
services that name it. Exit status 1 when it does not take requests.`,
		Example: `  heddle waypoint status -n shop
  heddle waypoint status -n shop --name canary -o json`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := p.connect(&w)
			if err != nil {
				return err
			}
			one, err := get(cmd.Context(), c, w.namespace, w.name)
			if err != nil {
				return err
			}
			if w.output == "json" {
				err = show.Document(p.Out, one)
			} else {
				err = p.print(one)
			}
			if err == nil && !one.Programmed {
				err = p.NotWell
			}
			return err
		},
	}
	p.flags(cmd, &w, "table or json")
	p.named(cmd, &w)
	return cmd
}

func (p Program) print(one *Waypoint) error {
	err := p.table([]Waypoint{*one})
	if err == nil && !one.Programmed {
		_, err = fmt.Fprintf(p.Out, "\nIt takes no requests: %s.\n", one.Message)
	}
	for i, s := range one.Services {
		if err == nil && i == 0 {
			_, err = fmt.Fprintln(p.Out, "\nServices that use it:")
		}
		if err == nil {
			_, err = fmt.Fprintln(p.Out, "  "+s)
		}
	}
	return err
}

func (p Program) delete() *cobra.Command {
	var w which
	var r removal
	cmd := &cobra.Command{
		Use: "delete", Aliases: []string{"rm"}, Short: "Take a waypoint away",
		Long: `Delete a waypoint's Gateway, and with it what the operator made for it. It refuses
while services, or their namespace, name the waypoint: their connections would be
refused. --unenroll-namespace takes the namespace's label off first, --force goes
on whatever is refused.`,
		Example: `  heddle waypoint delete -n shop --unenroll-namespace
  heddle waypoint delete -n shop --name canary --dry-run`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := p.connect(&w)
			if err != nil {
				return err
			}
			done, err := r.delete(cmd.Context(), c, &w, p.say)
			if w.output == "json" {
				return errors.Join(show.Document(p.Out, done), err)
			}
			if err != nil {
				return err
			}
			word := "is deleted"
			if w.dryRun {
				word = "would be deleted"
			}
			_, err = fmt.Fprintf(p.Out, "Waypoint %s/%s %s.\n", w.namespace, w.name, word)
			return err
		},
	}
	p.flags(cmd, &w, "table or json")
	p.named(cmd, &w)
	waits(cmd, &w, "wait until it is gone, for so long at most")
	cmd.Flags().BoolVar(&r.force, "force", false, "delete it although services name it: their connections are refused then")
	cmd.Flags().BoolVar(&r.unenroll, "unenroll-namespace", false, "take the namespace's label off first, if it names this waypoint")
	return cmd
}
