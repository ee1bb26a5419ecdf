// Command plain writes what the chart says with its own values into a folder, as
// plain YAML and a kustomization. Its one argument is the folder manifests.
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/chart"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "plain: want one argument, the folder to write to")
		os.Exit(2)
	}
	if err := write(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "plain:", err)
		os.Exit(1)
	}
}

const header = "# Written by `make generate` from manifests/heddle. Change that, not this.\n"

func write(folder string) error {
	definitions, files, err := chart.Render(chart.Options{Values: map[string]any{"namespace": map[string]any{"create": true}}})
	if err != nil {
		return err
	}
	plain := filepath.Join(folder, "plain")
	if err := os.RemoveAll(plain); err != nil {
		return err
	}
	if err := os.MkdirAll(plain, 0o755); err != nil {
		return err
	}
	var list strings.Builder
	list.WriteString(header + "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources:\n")
	for _, file := range definitions {
		fmt.Fprintf(&list, "  - heddle/crds/%s\n", file.Name)
	}
	for _, file := range files {
		fmt.Fprintf(&list, "  - plain/%s\n", file.Name)
		if err := os.WriteFile(filepath.Join(plain, file.Name), append([]byte(header), file.Text...), 0o644); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(folder, "kustomization.yaml"), []byte(list.String()), 0o644)
}
