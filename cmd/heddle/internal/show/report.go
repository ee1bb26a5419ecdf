package show

import (
	"fmt"
	"io"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/health"
)

// Report prints the findings of a check, each that is not well with its remedy.
func Report(out io.Writer, color bool, r *health.Report) error {
	wrong, warned := 0, 0
	for _, f := range r.Findings {
		mark := Painted("ok  ", Green, color)
		switch {
		case f.Warning:
			warned++
			mark = Painted("warn", Yellow, color)
		case !f.OK:
			wrong++
			mark = Painted("fail", Red, color)
		}
		if _, err := fmt.Fprintf(out, "%s  %-9s %s: %s\n", mark, f.Part, f.Name, f.Detail); err != nil {
			return err
		}
		if f.Remedy != "" {
			if _, err := fmt.Fprintf(out, "                %s\n", Painted("→ "+f.Remedy, Yellow, color)); err != nil {
				return err
			}
		}
	}
	verdict := Painted("All is well.", Green, color)
	switch {
	case wrong > 0 && warned > 0:
		verdict = Painted(fmt.Sprintf("%d of %d checks failed, %d warned.", wrong, len(r.Findings), warned), Red, color)
	case wrong > 0:
		verdict = Painted(fmt.Sprintf("%d of %d checks failed.", wrong, len(r.Findings)), Red, color)
	case warned > 0:
		verdict = Painted(fmt.Sprintf("%d of %d checks warned.", warned, len(r.Findings)), Yellow, color)
	}
	_, err := fmt.Fprintln(out, verdict)
	return err
}
