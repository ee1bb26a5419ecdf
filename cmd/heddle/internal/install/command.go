package install

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/chart"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/cluster"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/health"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/install/gatewayapi"
)

// command is one run of install, upgrade or uninstall.
type command struct {
	out, log io.Writer
	version  string

	cluster.Options
	values, settings []string
	dryRun, output   string
	wait             time.Duration
	force            bool
	forceConflicts   bool
	gatewayAPI       bool
	removal          Removal
}

// Commands returns install, upgrade and uninstall. What was asked for goes to
// out, progress to log. Version is the program's; "dev" stands for the chart's.
func Commands(out, log io.Writer, version string) []*cobra.Command {
	if version == "dev" {
		version = ""
	}
	c := &command{out: out, log: log, version: version}
	install := &cobra.Command{
		Use: "install", Args: cobra.NoArgs, Short: "Put Heddle on a Kubernetes cluster",
		Long: `Put Heddle on a cluster by server-side apply: definitions, the namespace
heddle-system, the operator, and an agent on every node; and wait until they are
healthy. Nothing is enrolled by it. It can be repeated: what is so already is
left as it is.

First it looks, as ` + "`heddle check --cluster`" + ` does, for what would break: rights,
kernels, the pods' network, other meshes, versions. If there is anything, it says
so with the remedy, and stops with exit status 1, before it changes anything;
--force goes on. Warnings, such as of what you may not look at, stop nothing.
--dry-run=server stops likewise. --dry-run says what it finds, and prints all the
same; given mesh.clusterRanges, it needs no cluster, and looks at one only if
--context or --kubeconfig names it.`,
		Example: `  heddle install
  heddle install --set mesh.trustDomain=example.org --dry-run=server
  heddle install --dry-run -o yaml > heddle.yaml`,
		RunE: func(cmd *cobra.Command, _ []string) error { return c.apply(cmd, false) },
	}
	upgrade := &cobra.Command{
		Use: "upgrade", Args: cobra.NoArgs, Short: "Bring Heddle on a Kubernetes cluster to this program's version",
		Long: `Bring what ` + "`heddle install`" + ` made to this program's version, or to other
values. Values of the last time hold unless they are given anew. Agents are
replaced node by node; each takes its connections over from the old one.

First it looks for what would break, as ` + "`heddle install`" + ` does, and stops when there
is anything, unless --force: also when the version that is there, or that of a
single node, is more than one release away. Go from release to release then.`,
		Example: `  heddle upgrade
  heddle upgrade --set operator.replicas=3`,
		RunE: func(cmd *cobra.Command, _ []string) error { return c.apply(cmd, true) },
	}
	uninstall := &cobra.Command{
		Use: "uninstall", Args: cobra.NoArgs, Short: "Take Heddle off a Kubernetes cluster",
		Long: `Delete exactly what ` + "`heddle install`" + ` made, after the agents have left their
nodes as they found them. It refuses while anything is enrolled. Definitions, the
Mesh and every policy stay, unless --crds.`,
		Example: `  heddle uninstall --dry-run
  heddle uninstall`,
		RunE: func(cmd *cobra.Command, _ []string) error { return c.uninstall(cmd) },
	}
	for _, cmd := range []*cobra.Command{install, upgrade, uninstall} {
		c.Register(cmd.Flags())
		cmd.Flags().DurationVar(&c.wait, "wait", 5*time.Minute, "how long to wait until everything is healthy, or gone; 0 does not wait")
	}
	for _, cmd := range []*cobra.Command{install, upgrade} {
		c.registerApply(cmd.Flags())
		cmd.Flags().Lookup("dry-run").NoOptDefVal = "client"
	}
	flags := uninstall.Flags()
	flags.StringVar(&c.dryRun, "dry-run", "none", "client: say what would be deleted")
	flags.Lookup("dry-run").NoOptDefVal = "client"
	flags.BoolVar(&c.removal.Force, "force", false, "uninstall although pods are enrolled: their connections go on in plaintext")
	flags.BoolVar(&c.removal.Definitions, "crds", false, "delete the definitions, too, and with them the Mesh and every policy")
	return []*cobra.Command{install, upgrade, uninstall}
}

func (c *command) registerApply(flags *pflag.FlagSet) {
	flags.StringArrayVar(&c.settings, "set", nil, "a value of the chart, as image.tag=v1; may be repeated")
	flags.StringArrayVar(&c.values, "values", nil, "file of values; may be repeated")
	flags.StringVar(&c.dryRun, "dry-run", "none", "client: print what would be applied; server: show the difference to what is there")
	flags.StringVarP(&c.output, "output", "o", "", "yaml or json: print what is applied")
	flags.BoolVar(&c.gatewayAPI, "gateway-api", false, "bring the definitions of the Gateway API, too, which waypoints need, where they are not there or are older; they stay when Heddle goes")
	flags.BoolVar(&c.force, "force", false, "go on although something was found that would break; it is said")
	flags.BoolVar(&c.forceConflicts, "force-conflicts", false, "take fields back that others have changed")
}

func (c *command) request() (Request, error) {
	values, err := chart.Values(c.values, c.settings)
	if err == nil {
		err = chart.Check(values) // before a cluster is looked for
	}
	if err != nil {
		return Request{}, err
	}
	return Request{
		Namespace: c.Namespace, Version: c.version, Values: values, ForceConflicts: c.forceConflicts, GatewayAPI: c.gatewayAPI, Wait: c.wait, Progress: c.log,
	}, c.valid("client", "server")
}

// valid checks the flags that take words, and the wait.
func (c *command) valid(dryRuns ...string) error {
	if c.wait < 0 {
		return fmt.Errorf("%w: --wait %s: use a duration such as 5m, or 0 not to wait", chart.ErrValues, c.wait)
	}
	for _, flag := range []struct {
		name, value string
		words       []string
	}{{"--dry-run", c.dryRun, append(dryRuns, "none")}, {"--output", c.output, []string{"", "yaml", "json"}}} {
		ok := false
		for _, word := range flag.words {
			ok = ok || word == flag.value
		}
		if !ok {
			return fmt.Errorf("%w: %s %q: use one of %q", chart.ErrValues, flag.name, flag.value, flag.words)
		}
	}
	return nil
}

// refuseMoot refuses flags that would do nothing in a dry run of a kind.
func (c *command) refuseMoot(given *pflag.FlagSet, moot map[string][]string) error {
	for _, name := range moot[c.dryRun] {
		if given.Changed(name) {
			return fmt.Errorf("%w: --%s does nothing with --dry-run=%s: leave one of them out", chart.ErrValues, name, c.dryRun)
		}
	}
	return nil
}

func (c *command) apply(cmd *cobra.Command, upgrade bool) error {
	request, err := c.request()
	if err == nil {
		err = c.refuseMoot(cmd.Flags(), map[string][]string{"client": {"wait", "force-conflicts"}, "server": {"wait", "output"}})
	}
	if err != nil {
		return err
	}
	if c.dryRun == "client" {
		return c.dryRunClient(cmd.Context(), request, upgrade)
	}
	cluster, err := Connect(cmd.Context(), c.Kubeconfig, c.Context)
	if err != nil {
		return err
	}
	rendered, err := c.prepare(cmd.Context(), cluster, request, upgrade)
	if err != nil {
		return err
	}
	if c.dryRun == "server" {
		text, err := cluster.Diff(cmd.Context(), request, rendered)
		if err != nil {
			return err
		}
		_, err = io.WriteString(c.out, cmp.Or(text, "Nothing would change.\n"))
		return err
	}
	if err := cluster.Apply(cmd.Context(), request, rendered); err != nil {
		return err
	}
	if c.output != "" {
		return c.print(rendered.All(), c.output)
	}
	_, err = fmt.Fprintf(c.out, "Heddle %s is in namespace %s. Enroll pods with `heddle enroll NAMESPACE`.\n", rendered.version, c.Namespace)
	return err
}

// dryRunClient prints what would be applied. What stands in the way is said, and stops
// nothing, and no right to write is asked for. Where all that a cluster would have said was
// given, none is needed, and only one that is named is asked.
func (c *command) dryRunClient(ctx context.Context, request Request, upgrade bool) error {
	if upgrade || chart.Unset(request.Values, "mesh", "clusterRanges") {
		cluster, err := Connect(ctx, c.Kubeconfig, c.Context)
		if err != nil {
			return err
		}
		rendered, err := cluster.Prepare(ctx, request, upgrade)
		if err != nil {
			return err
		}
		c.advise(ctx, cluster, request, rendered)
		return c.printAll(rendered)
	}
	rendered, err := Render(request, "")
	if err != nil {
		return err
	}
	if !c.Given() {
		request.say("no cluster was looked at: --context or --kubeconfig names one")
	} else if cluster, err := Connect(ctx, c.Kubeconfig, c.Context); err != nil {
		request.say("no cluster was looked at: %v", err)
	} else {
		c.advise(ctx, cluster, request, rendered)
	}
	return c.printAll(rendered)
}

// advise says what stands in the way.
func (c *command) advise(ctx context.Context, cluster *Cluster, request Request, rendered *Rendered) {
	found := health.New()
	if err := cluster.Preflight(ctx, request, rendered, found); err != nil {
		request.say("not all was looked at: %v", err)
	}
	if inTheWay := c.tell(found); len(inTheWay) > 0 && !c.force {
		request.say("%s: would stop this, if it were no dry run, unless --force", strings.Join(inTheWay, ", "))
	}
}

// prepare looks for what stands in the way, and renders. Rights come first: without them
// there is little else that can be looked at.
func (c *command) prepare(ctx context.Context, cluster *Cluster, request Request, upgrade bool) (*Rendered, error) {
	rights, found := health.New(), health.New()
	err := cluster.Rights(ctx, request, rights)
	if err == nil {
		err = c.goOn(rights)
	}
	if err != nil {
		return nil, err
	}
	rendered, err := cluster.Prepare(ctx, request, upgrade)
	if err == nil {
		err = cluster.Preflight(ctx, request, rendered, found)
	}
	if err == nil {
		err = c.goOn(found)
	}
	return rendered, err
}

// tell says what is not well, and returns the names of what stands in the way.
func (c *command) tell(found *health.Report) (inTheWay []string) {
	for _, f := range found.Findings {
		if f.OK {
			continue
		}
		mark := "warn"
		if !f.Warning {
			mark = "fail"
			inTheWay = append(inTheWay, f.Part+" "+f.Name)
		}
		// As of progress: nobody is there to be told that nobody can be told.
		_, _ = fmt.Fprintf(c.log, "%s  %-9s %s: %s\n                → %s\n", mark, f.Part, f.Name, f.Detail, f.Remedy)
	}
	return inTheWay
}

// goOn says what is not well, and is an error when that stands in the way. With -o json the
// whole report is what comes out then, as of `heddle check`.
func (c *command) goOn(found *health.Report) error {
	inTheWay := c.tell(found)
	switch {
	case len(inTheWay) == 0:
		return nil
	case c.force:
		_, err := fmt.Fprintln(c.log, "going on by --force")
		return err
	}
	err := fmt.Errorf("%s: %w; remedy: do what is said there, or go on in spite of it with --force", strings.Join(inTheWay, ", "), ErrPreflight)
	if c.output == "json" {
		return errors.Join(c.json(found), err)
	}
	return err
}

// printAll prints what would be applied.
func (c *command) printAll(rendered *Rendered) error {
	var definitions []*unstructured.Unstructured
	var err error
	if c.gatewayAPI {
		definitions, err = gatewayapi.Definitions()
	}
	return errors.Join(err, c.print(append(definitions, rendered.All()...), cmp.Or(c.output, "yaml")))
}

func (c *command) uninstall(cmd *cobra.Command) error {
	err := c.valid("client")
	if err == nil {
		err = c.refuseMoot(cmd.Flags(), map[string][]string{"client": {"wait"}})
	}
	if err != nil {
		return err
	}
	cluster, err := Connect(cmd.Context(), c.Kubeconfig, c.Context)
	if err != nil {
		return err
	}
	if c.dryRun == "client" {
		lines, err := cluster.Planned(cmd.Context(), c.Namespace, c.removal)
		for _, line := range lines {
			if _, err := fmt.Fprintln(c.out, line); err != nil {
				return err
			}
		}
		return err
	}
	request := Request{Namespace: c.Namespace, Wait: c.wait, Progress: c.log}
	if err := cluster.Uninstall(cmd.Context(), request, c.removal); err != nil {
		return err
	}
	last := "Heddle is gone."
	if c.wait <= 0 {
		last = "Heddle is being deleted: with --wait 0 nobody waited for the end of it."
	}
	_, err = fmt.Fprintln(c.out, last)
	return err
}

// print writes objects as documents of YAML, or as one List of JSON.
func (c *command) print(objects []*unstructured.Unstructured, format string) error {
	if format == "json" {
		items := make([]any, len(objects))
		for i, o := range objects {
			items[i] = o.Object
		}
		return c.json(map[string]any{"apiVersion": "v1", "kind": "List", "items": items})
	}
	for _, o := range objects {
		text, err := yaml.Marshal(o.Object)
		if err != nil {
			return fmt.Errorf("write %s as YAML: %w", refOf(o), err)
		}
		if _, err := fmt.Fprintf(c.out, "---\n%s", text); err != nil {
			return err
		}
	}
	return nil
}

// json writes a document.
func (c *command) json(v any) error {
	enc := json.NewEncoder(c.out)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}
