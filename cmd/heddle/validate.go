package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/show"
	"github.com/heddle-mesh/heddle/internal/kube"
	"github.com/heddle-mesh/heddle/internal/kube/folderroutes"
	"github.com/heddle-mesh/heddle/internal/kube/routes"
)

// problemJSON is one thing that is wrong with a folder.
type problemJSON struct {
	Where  string `json:"where,omitempty"`
	Object string `json:"object,omitempty"`
	Field  string `json:"field,omitempty"`
	Text   string `json:"text"`
	Remedy string `json:"remedy,omitempty"`
}

func (a *app) validate() *cobra.Command {
	return &cobra.Command{
		Use: "validate FOLDER", Args: cobra.ExactArgs(1), Short: "Say what is wrong with a folder of configuration, without using it",
		Long: `Read a folder as the operator does and compile it, offline. Every problem names
file, line and field. Exit status 1 when there are any.`,
		RunE: func(_ *cobra.Command, args []string) error {
			objects, err := kube.LoadDir(args[0])
			var compiled *kube.Compiled
			if err == nil {
				objects.UDPByIdentity = a.mesh.UDPByIdentity
				compiled, err = kube.Compile(objects)
			}
			if err == nil {
				_, err = compiled.View("validate")
			}
			var routed *routes.Compiled
			var doubtful []*kube.Problem
			if err == nil {
				routed, doubtful, err = folderroutes.Compile(objects)
			}
			if err != nil {
				return a.invalid(err)
			}
			compiled.Warnings = append(compiled.Warnings, doubtful...)
			counts := map[string]int{"workloads": len(compiled.Workloads), "services": len(compiled.Services), "policies": len(compiled.Policies), "routes": len(routed.Routes)}
			if a.output == "json" {
				return a.document(map[string]any{"valid": true, "counts": counts, "warnings": problemsJSON(compiled.Warnings)})
			}
			for _, w := range compiled.Warnings {
				if _, err := fmt.Fprintf(a.out, "%s %s\n", show.Painted("warning:", show.Yellow, a.color), w.Error()); err != nil {
					return err
				}
			}
			_, err = fmt.Fprintf(a.out, "%s %d workloads, %d services, %d policies, %d routes.\n", show.Painted("Valid:", show.Green, a.color),
				counts["workloads"], counts["services"], counts["policies"], counts["routes"])
			return err
		},
	}
}

func (a *app) invalid(err error) error {
	problems := kube.Problems(err)
	if len(problems) == 0 {
		return err
	}
	if a.output == "json" {
		return errors.Join(a.document(map[string]any{"valid": false, "problems": problemsJSON(problems)}), errNotWell)
	}
	for _, p := range problems {
		if _, err := fmt.Fprintf(a.out, "%s %s\n", show.Painted("error:", show.Red, a.color), p.Error()); err != nil {
			return err
		}
	}
	return errNotWell
}

func problemsJSON(problems []*kube.Problem) []problemJSON {
	list := []problemJSON{}
	for _, p := range problems {
		list = append(list, problemJSON{Where: p.Origin.String(), Object: p.Object, Field: p.Field, Text: p.Text, Remedy: p.Remedy})
	}
	return list
}
