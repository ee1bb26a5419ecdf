package replay

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/explain"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/folders"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/reach"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/replay/draft"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/replay/edit"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/replay/past"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/show"
)

// ErrBreaks ends a simulation whose output has said already what would break.
var ErrBreaks = errors.New("recorded connections, or datagrams, would be refused")

// Program is what the commands run in. Output is "table" or "json".
type Program struct {
	Out, Log io.Writer
	Color    bool
	Mesh     *reach.Mesh
	Output   *string
	// CompleteNamespaces completes a flag of a command.
	CompleteNamespaces func(cmd *cobra.Command, flag string)
}

// source is where a command has its history from.
type source struct {
	file, namespace string
	since           time.Duration
	// total wants all hours in one.
	total bool
	// model says whose addresses are a service's; nil where nothing is to be judged.
	model *explain.Model
	// hasNamespace says which namespaces are there; nil where none may be asked for.
	hasNamespace func(string) bool
}

func (p *Program) sourceFlags(cmd *cobra.Command, s *source, fromFile, byNamespace bool) {
	past.SinceFlag(cmd.Flags(), &s.since)
	if fromFile {
		cmd.Flags().StringVar(&s.file, "flows", "", "file that `heddle history -o json` wrote, in place of agents; - for standard input")
	}
	if byNamespace {
		cmd.Flags().StringVarP(&s.namespace, "namespace", "n", "", "only connections from or to this namespace")
		p.CompleteNamespaces(cmd, "namespace")
	}
}

// Commands returns history, simulate and suggest.
func Commands(p *Program) []*cobra.Command {
	return []*cobra.Command{p.history(), p.simulate(), p.suggest()}
}

func (p *Program) history() *cobra.Command {
	var from source
	cmd := &cobra.Command{
		Use: "history", Args: cobra.NoArgs, Short: "Show who talked to whom, hour by hour, as agents keep it on disk",
		Long: `Show what agents keep of the past: of the connections of one hour that are alike in
all that a policy looks at, their number and bytes. Those that are open are among
this hour's.

-o json writes one object per line, which simulate and suggest read with --flows:
so that a pull request is tried on a week of production without a way into it.`,
		Example: `  heddle history --since 24h
  heddle history --total -o json > flows.json`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			h, partly, err := p.read(cmd, &from)
			if err != nil {
				return err
			}
			if *p.Output == "json" {
				err = h.Write(p.Out)
			} else {
				err = PrintHistory(h, p.Out, p.Color)
			}
			return errors.Join(err, partly)
		},
	}
	cmd.Flags().BoolVar(&from.total, "total", false, "all hours in one")
	p.sourceFlags(cmd, &from, false, true)
	return cmd
}

func (p *Program) simulate() *cobra.Command {
	from := source{total: true}
	var files, deleted []string
	var against string
	cmd := &cobra.Command{
		Use: "simulate -f FILE|FOLDER|-", Args: cobra.NoArgs, Short: "Try a change of policy on recorded connections, and say who would break",
		Long: `Ask of every recorded connection what becomes of it now, and what would after a
change, by the model that agents decide by. Nothing is changed. Where policies may be
about UDP, datagrams are judged, too, by what lets them pass their gates.

The change is the objects of -f, each added or in the place of the one of its name,
and those that --delete takes away. It is made to the objects of the cluster, of the
local mesh, or with --against of a folder; connections are those that agents keep, or
with --flows those of a file that history wrote.

Exit status 4 when a connection that was carried, or datagrams that passed, and are
allowed now, would be refused. What could not be judged is listed, and changes no exit
status. Exit status 1 when --since and -n leave nothing of what is recorded.`,
		Example: `  heddle simulate -f policy.yaml
  heddle simulate -f policy.yaml --delete AuthorizationPolicy/shop/old -n shop
  kubectl kustomize overlays/live | heddle simulate -f -
  heddle simulate -f change/ --against mesh/ --flows flows.json -o json`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if len(files) == 0 && len(deleted) == 0 {
				return fmt.Errorf("%w: nothing would change: name files with -f, or objects with --delete", reach.ErrUsage)
			}
			if err := folders.Once(slices.Concat(files, []string{against, from.file})...); err != nil {
				return err
			}
			written, err := explain.Of(cmd.Context(), p.Mesh, against, "--against")
			if err != nil {
				return err
			}
			change, err := edit.Make(written, p.Mesh.In, files, deleted)
			if err != nil {
				return err
			}
			from.model, from.hasNamespace = change.Before, change.HasNamespace
			h, partly, err := p.read(cmd, &from)
			if err != nil {
				return err
			}
			result, err := Simulate(change.Before, change.After, h)
			if err != nil {
				return err
			}
			result.Warnings = append(result.Warnings, change.NotJudged...)
			if *p.Output == "json" {
				err = show.Document(p.Out, result)
			} else {
				err = result.Print(p.Out, p.Color)
			}
			if err == nil && len(result.Breaks) > 0 { // which is certain, whatever others would say
				if partly != nil {
					fmt.Fprintf(p.Log, "heddle: %v\n", partly)
				}
				return ErrBreaks
			}
			return errors.Join(err, partly)
		},
	}
	cmd.Flags().StringSliceVarP(&files, "file", "f", nil, "file or folder of YAML that is to be applied, or - for standard input; may be repeated")
	cmd.Flags().StringSliceVar(&deleted, "delete", nil, "KIND/NAMESPACE/NAME of an object that is to be deleted; may be repeated")
	cmd.Flags().StringVar(&against, "against", "", "folder of all objects, or - for standard input, in place of the mesh's")
	p.sourceFlags(cmd, &from, true, true)
	return cmd
}

func (p *Program) suggest() *cobra.Command {
	from := source{total: true}
	var against string
	var open bool
	cmd := &cobra.Command{
		Use: "suggest NAMESPACE", Args: cobra.ExactArgs(1), Short: "Write the policies that recorded connections need, and no more",
		Long: `Write AuthorizationPolicies that admit to each workload of a namespace those who
reached it, by service account and port, and nobody else: connections that were
refused, or would be now, are not considered. Clients without an identity are
admitted by their address. Whatever nobody has reached is closed by a policy that
admits nobody, unless --leave-open is set.

Where policies may be about UDP, datagrams that passed get policies of their own, which
say nothing about TCP. Comments say which were dropped, and get no rule.

Try them with simulate before you apply them.`,
		Example: `  heddle suggest shop > shop.yaml && heddle simulate -f shop.yaml
  heddle suggest shop --against mesh/ --flows flows.json`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := folders.Once(against, from.file); err != nil {
				return err
			}
			written, err := explain.Of(cmd.Context(), p.Mesh, against, "--against")
			if err != nil {
				return err
			}
			model, err := written.Model()
			if err != nil {
				return err
			}
			if !edit.HasNamespace(args[0], written.Namespaces, model) {
				return fmt.Errorf("%w: there is no namespace %s among the objects", reach.ErrUsage, args[0])
			}
			from.model = model
			h, partly, err := p.read(cmd, &from)
			if err != nil {
				return err
			}
			suggestion, err := Suggest(model, h, args[0], open, draft.RoutesOf(written.Objects, written.Routing)...)
			if err != nil {
				return err
			}
			if *p.Output == "json" {
				err = show.Document(p.Out, suggestion)
			} else {
				err = suggestion.Print(p.Out, h)
			}
			return errors.Join(err, partly)
		},
	}
	cmd.ValidArgsFunction = p.Mesh.Cluster.CompleteNamespaces
	cmd.Flags().StringVar(&against, "against", "", "folder of all objects, or - for standard input, in place of the mesh's")
	cmd.Flags().BoolVar(&open, "leave-open", false, "no policy for workloads that nobody has reached")
	p.sourceFlags(cmd, &from, true, false)
	return cmd
}

// read reads the history. partly says which agents did not answer, when others did. That flags leave nothing to judge
// by of a history that has something is an error.
func (p *Program) read(cmd *cobra.Command, s *source) (h *past.History, partly, err error) {
	if s.since <= 0 {
		return nil, nil, fmt.Errorf("%w: --since %v: use a positive duration", reach.ErrUsage, s.since)
	}
	since, asked := time.Now().Add(-s.since), cmd.Flags().Changed("since")
	if s.file != "" {
		h, err = past.ReadFile(cmd.InOrStdin(), s.file)
		if !asked {
			since = time.Time{} // the file's age is its writer's affair
		}
	} else {
		h, partly, err = past.Ask(cmd.Context(), p.Mesh, since, s.total)
		if err == nil && asked && s.model != nil && h.Empty() { // of a mesh that is new, or of one that is older?
			h, partly, err = past.Ask(cmd.Context(), p.Mesh, time.Unix(0, 0), s.total)
		}
	}
	if err != nil {
		return nil, nil, err
	}
	if s.model != nil {
		h.NameServices(serviceAt(s.model))
	}
	if s.namespace != "" && s.hasNamespace != nil && !s.hasNamespace(s.namespace) && !h.Has(s.namespace) {
		return nil, nil, fmt.Errorf("%w: -n %s: there is no such namespace, and nothing is recorded of one", reach.ErrUsage, s.namespace)
	}
	had := h.Span()
	h.Only(s.namespace, since)
	if s.model != nil && had != "" && h.Empty() {
		left := fmt.Errorf("nothing is left to judge by of what is recorded, which is %s; remedy: go by more of it, with other values of --since or -n", had)
		return nil, nil, errors.Join(left, partly)
	}
	h.Sort()
	return h, partly, nil
}
