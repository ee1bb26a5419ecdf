package install

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/chart"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/cluster"
)

// command is one run of install, upgrade or uninstall.
type command struct {
	out, log io.Writer
	version  string

	cluster.Options
	values, settings []string
	dryRun, output   string
	wait             time.Duration
	forceConflicts   bool
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
left as it is.`,
		Example: `  heddle install
  heddle install --set mesh.trustDomain=example.org --dry-run=server
  heddle install --dry-run -o yaml > heddle.yaml`,
		RunE: func(cmd *cobra.Command, _ []string) error { return c.apply(cmd, false) },
	}
	upgrade := &cobra.Command{
		Use: "upgrade", Args: cobra.NoArgs, Short: "Bring Heddle on a Kubernetes cluster to this program's version",
		Long: `Bring what ` + "`heddle install`" + ` made to this program's version, or to other
values. Values of the last time hold unless they are given anew. Agents are
replaced node by node; each takes its connections over from the old one.`,
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
	flags.BoolVar(&c.forceConflicts, "force-conflicts", false, "take fields back that others have changed")
}

func (c *command) request() (Request, error) {
	values, err := chart.Values(c.values, c.settings)
	if err != nil {
		return Request{}, err
	}
	return Request{
		Namespace: c.Namespace, Version: c.version, Values: values, ForceConflicts: c.forceConflicts, Wait: c.wait, Progress: c.log,
	}, c.valid("client", "server")
}

// valid checks the flags that take words.
func (c *command) valid(dryRuns ...string) error {
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

func (c *command) apply(cmd *cobra.Command, upgrade bool) error {
	request, err := c.request()
	if err != nil {
		return err
	}
	if c.dryRun == "client" && !upgrade && !chart.Unset(request.Values, "mesh", "clusterRanges") {
		// All that a cluster would have said was given.
		rendered, err := Render(request, "")
		if err != nil {
			return err
		}
		return c.print(rendered.All(), cmp.Or(c.output, "yaml"))
	}
	cluster, err := Connect(c.Kubeconfig, c.Context)
	if err != nil {
		return err
	}
	rendered, err := cluster.Prepare(cmd.Context(), request, upgrade)
	if err != nil {
		return err
	}
	switch c.dryRun {
	case "client":
		return c.print(rendered.All(), cmp.Or(c.output, "yaml"))
	case "server":
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

func (c *command) uninstall(cmd *cobra.Command) error {
	if err := c.valid("client"); err != nil {
		return err
	}
	cluster, err := Connect(c.Kubeconfig, c.Context)
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
	_, err = fmt.Fprintln(c.out, "Heddle is gone.")
	return err
}

// print writes objects as documents of YAML, or as one List of JSON.
func (c *command) print(objects []*unstructured.Unstructured, format string) error {
	if format == "json" {
		items := make([]any, len(objects))
		for i, o := range objects {
			items[i] = o.Object
		}
		enc := json.NewEncoder(c.out)
		enc.SetIndent("", "  ")
		return enc.Encode(map[string]any{"apiVersion": "v1", "kind": "List", "items": items})
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
