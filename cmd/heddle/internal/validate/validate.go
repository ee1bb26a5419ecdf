// Package validate says what is wrong with a folder of configuration, to people and to
// programs, without using it.
package validate

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/folders"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/reach"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/show"
	"github.com/heddle-mesh/heddle/internal/kube"
	"github.com/heddle-mesh/heddle/internal/kube/folderroutes"
)

// problemJSON is one thing that is wrong with a folder.
type problemJSON struct {
	Where  string `json:"where,omitempty"`
	Object string `json:"object,omitempty"`
	Field  string `json:"field,omitempty"`
	Text   string `json:"text"`
	Remedy string `json:"remedy,omitempty"`
}

// Program is what the command runs in. Output is "table" or "json".
type Program struct {
	Out    io.Writer
	Color  bool
	Mesh   *reach.Mesh
	Output *string
	// NotWell ends a command whose output has said already what is wrong.
	NotWell error
}

// Command returns validate.
func (p *Program) Command() *cobra.Command {
	return &cobra.Command{
		Use: "validate FOLDER|FILE|-", Args: cobra.ExactArgs(1), Short: "Say what is wrong with a folder of configuration, without using it",
		Long: `Read a folder as the operator does and compile it, offline; and hold each object to
the schema of its kind, as an API server would. Every problem names file, line and
field. A file is read as a folder that has nothing else in it, and so is standard
input, in place of -.

Exit status 1 when there are any problems, 5 when there is nothing to read.`,
		Example: `  heddle validate mesh
  heddle validate mesh -o json`,
		RunE: func(_ *cobra.Command, args []string) error {
			objects, unfit, err := folders.Named(p.Mesh.In, args[0])
			if err != nil {
				return p.Invalid(err, p.NotWell)
			}
			objects.UDPByIdentity = p.Mesh.UDPByIdentity
			compiled, routes, err := compileAll(objects)
			if err = unfit.Beyond(err); err != nil {
				return p.Invalid(alone(err, args[0]), p.NotWell)
			}
			return p.printValid(compiled, routes)
		},
	}
}

// compileAll compiles what connections and what requests are decided by. The error has what
// is wrong with either; routes is how many are in force.
func compileAll(objects *kube.Objects) (compiled *kube.Compiled, routes int, err error) {
	folderroutes.Relay(objects)
	compiled, err = kube.Compile(objects)
	if err == nil {
		_, err = compiled.View("validate")
	}
	routed, doubtful, wrong := folderroutes.Compile(objects)
	if err = errors.Join(err, wrong); err != nil {
		return nil, 0, err
	}
	compiled.Warnings = append(compiled.Warnings, doubtful...)
	return compiled, len(routed.Routes), nil
}

// alone has what is missing in a file say that it may be elsewhere.
func alone(err error, path string) error {
	if info, statErr := os.Stat(path); statErr == nil && !info.IsDir() {
		for _, p := range kube.Problems(err) {
			if p.Ref.Kind == "Mesh" && p.Origin.File == "" || p.Field == "metadata.namespace" && strings.HasSuffix(p.Text, " is not defined") {
				p.Remedy += "; or, when it is in another file, name the folder of both"
			}
		}
	}
	return err
}

func (p *Program) printValid(compiled *kube.Compiled, routes int) error {
	counts := map[string]int{"workloads": len(compiled.Workloads), "services": len(compiled.Services), "policies": len(compiled.Policies), "routes": routes}
	if *p.Output == "json" {
		return show.Document(p.Out, map[string]any{"valid": true, "counts": counts, "warnings": problemsJSON(compiled.Warnings)})
	}
	for _, w := range compiled.Warnings {
		if _, err := fmt.Fprintf(p.Out, "%s %s\n", show.Painted("warning:", show.Yellow, p.Color), w.Error()); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintf(p.Out, "%s %d workloads, %d services, %d policies, %d routes.\n", show.Painted("Valid:", show.Green, p.Color),
		counts["workloads"], counts["services"], counts["policies"], counts["routes"])
	return err
}

// Invalid prints the problems of an error, and ends with another that says no more. An error
// without problems stays as it is.
func (p *Program) Invalid(err, told error) error {
	problems := kube.Problems(err)
	if len(problems) == 0 {
		return err
	}
	if *p.Output == "json" {
		return errors.Join(p.document(problems), told)
	}
	for _, wrong := range problems {
		if _, err := fmt.Fprintf(p.Out, "%s %s\n", show.Painted("error:", show.Red, p.Color), wrong.Error()); err != nil {
			return err
		}
	}
	return told
}

func problemsJSON(problems []*kube.Problem) []problemJSON {
	list := []problemJSON{}
	for _, p := range problems {
		list = append(list, problemJSON{Where: p.Origin.String(), Object: p.Object, Field: p.Field, Text: p.Text, Remedy: p.Remedy})
	}
	return list
}

// Tell prints an error about what was given of YAML for a program that asked something else of it.
func (p *Program) Tell(err error) error {
	problems := kube.Problems(err)
	if len(problems) == 0 {
		problems = []*kube.Problem{{Text: err.Error()}}
	}
	return p.document(problems)
}

func (p *Program) document(problems []*kube.Problem) error {
	return show.Document(p.Out, map[string]any{"valid": false, "problems": problemsJSON(problems)})
}
