package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/analyze"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/cluster"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/explain"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/explain/asked"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/explain/observed"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/reach"
)

// readBound bounds how long a cluster's objects are read.
const readBound = time.Minute

func (a *app) explain() *cobra.Command {
	folder := ""
	var one asked.Flags
	cmd := &cobra.Command{
		Use: "explain SRC DST[:PORT]", Args: cobra.ExactArgs(2), Short: "Say what happens to a connection, and why",
		Long: `Say where a connection goes, how it travels, and which policy and rule admit or
refuse it, NetworkPolicies of both ends included, by the model that agents decide
by: from the objects of a cluster, or of a folder. No connection is opened.
Agents of a mesh that runs are asked for the certificates of both ends, and for the
key exchange of their newest connection.

SRC is NAMESPACE/NAME of a pod, of a Service (one of its pods) or of a Deployment,
an IP address, which may be outside the mesh, or a SPIFFE ID, which may be of
another trust domain. DST is one of the former, of SPIFFE IDs those of workloads of
another trust domain that the Mesh declares, or a service's host name. With --method, --path, --host or --header it also says what
becomes of such a request of the connection: which route and rule it goes by, to which
backends, and which policy lets it in or refuses it at the waypoint; where there is no
waypoint on the way, that the request is not seen, and what follows from that.

Exit status 1 when the connection is refused, or would be by one of the endpoints, or
the request is.`,
		Example: `  heddle explain shop/web shop/db:3306
  heddle explain shop/web shop/cart --method POST --path /items --header x-role=admin
  heddle explain 192.0.2.7 web.shop.svc --folder mesh`,
		RunE: func(cmd *cobra.Command, args []string) error {
			wanted, err := one.Parse(cmd) // before anything is read
			if err != nil {
				return fmt.Errorf("%w: %w", errUsage, err)
			}
			written, err := explain.Of(cmd.Context(), &a.mesh, folder, "--folder")
			if err != nil {
				return err
			}
			model, err := written.Model()
			if err != nil {
				return err
			}
			answer, err := explain.ExplainRequest(model, args[0], args[1], wanted)
			if err != nil {
				return fmt.Errorf("%w: %w", errUsage, err)
			}
			if folder == "" || a.mesh.Socket != "" {
				observed.Add(cmd.Context(), &a.mesh, answer)
			}
			if a.output == "json" {
				err = a.document(answer)
			} else {
				err = explain.Print(a.out, a.color, answer)
			}
			if err == nil && answer.Denied() {
				err = errNotWell
			}
			return err
		},
	}
	cmd.Flags().StringVarP(&folder, "folder", "f", "", "folder of objects, or - for standard input, in place of a cluster's")
	one.Add(cmd)
	return cmd
}

func (a *app) analyze() *cobra.Command {
	var files []string
	var namespace string
	var fixes bool
	cmd := &cobra.Command{
		Use: "analyze", Args: cobra.NoArgs, Short: "Find what the mesh cuts off, and print what mends it",
		Long: `Find NetworkPolicies that the cluster's network enforces and that would block port
15008, in which connections between enrolled pods travel; and what calls enrolled
pods without an identity, and is refused by STRICT ports, AuthorizationPolicies or
NetworkPolicies, by the model that agents decide by: admission and conversion
webhooks, aggregated APIs, scrapes, clients from outside, and pods in their nodes'
networks. Each with the exact object that keeps it working, but for what a DENY
policy refuses. Exit status 1 when there is anything.

Objects are those of a cluster, or with -f those of files and folders.`,
		Example: `  heddle analyze
  heddle analyze -n shop -f manifests/
  heddle analyze --fixes | kubectl apply --server-side -f -`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			objects, err := a.objects(cmd.Context(), files, namespace)
			if err != nil {
				return err
			}
			if namespace != "" {
				if len(files) == 0 && !objects.HasNamespace(namespace) {
					return reach.NoNamespace(namespace)
				}
				objects.Enroll(namespace, false)
			}
			found, err := objects.Analyze(namespace)
			if err != nil {
				return err
			}
			return a.printFindings(found, fixes)
		},
	}
	cmd.Flags().StringSliceVarP(&files, "file", "f", nil, "file or folder of YAML, or - for standard input, in place of a cluster; may be repeated")
	cmd.Flags().StringVarP(&namespace, "namespace", "n", "", "only this namespace, as if it were enrolled")
	cmd.Flags().BoolVar(&fixes, "fixes", false, "print only the objects that mend what is found")
	a.completeNamespaces(cmd, "namespace")
	return cmd
}

func (a *app) objects(ctx context.Context, files []string, namespace string) (*analyze.Objects, error) {
	if len(files) > 0 {
		return analyze.FromFiles(a.mesh.In, files, cmp.Or(namespace, "default"))
	}
	c, err := a.connect()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, readBound)
	defer cancel()
	return analyze.FromCluster(ctx, c)
}

// connect returns the cluster, for what a local mesh has not.
func (a *app) connect() (*cluster.Cluster, error) {
	if a.mesh.Name != "" {
		return nil, fmt.Errorf("%w: --name is a local mesh's: this is for Kubernetes clusters", errUsage)
	}
	return cluster.Connect(a.mesh.Cluster)
}

func (a *app) printFindings(found []analyze.Finding, fixes bool) error {
	var err error
	switch {
	case a.output == "json":
		err = a.document(map[string]any{"findings": append([]analyze.Finding{}, found...)})
	case fixes:
		return analyze.PrintFixes(a.out, found)
	case len(found) == 0:
		_, err = fmt.Fprintln(a.out, "Nothing is cut off.")
	default:
		err = analyze.Print(a.out, a.color, found)
	}
	if err == nil && slices.ContainsFunc(found, func(f analyze.Finding) bool { return !f.Warning }) {
		return errNotWell
	}
	return err
}
