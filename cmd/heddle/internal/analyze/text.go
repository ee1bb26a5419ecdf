package analyze

import (
	"fmt"
	"io"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/show"
)

// Print writes findings for people: what, and what to do; then every object that
// mends them, as one stream of YAML.
func Print(out io.Writer, color bool, findings []Finding) error {
	for _, f := range findings {
		mark := show.Painted("cut off", show.Red, color)
		if f.Warning {
			mark = show.Painted("warning", show.Yellow, color)
		}
		if _, err := fmt.Fprintf(out, "%s %s, in namespace %s: %s\n  %s\n", mark, f.Object, f.Namespace, f.Detail,
			show.Painted("→ "+f.Remedy, show.Yellow, color)); err != nil {
			return err
		}
	}
	return PrintFixes(out, findings)
}

// PrintFixes writes the objects that mend findings, each once.
func PrintFixes(out io.Writer, findings []Finding) error {
	for _, text := range Fixes(findings) {
		if _, err := fmt.Fprintf(out, "---\n%s", text); err != nil {
			return err
		}
	}
	return nil
}

// Fixes returns the objects that mend findings, each once.
func Fixes(findings []Finding) []string {
	var all []string
	seen := map[string]bool{}
	for _, f := range findings {
		if f.Fix != "" && !seen[f.Fix] {
			seen[f.Fix] = true
			all = append(all, f.Fix)
		}
	}
	return all
}
