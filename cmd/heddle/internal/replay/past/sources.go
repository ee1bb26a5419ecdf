package past

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/pflag"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/reach"
	"github.com/heddle-mesh/heddle/internal/period"
)

// SinceFlag adds --since, which is a week until it is given.
func SinceFlag(flags *pflag.FlagSet, since *time.Duration) {
	flags.Var(period.Var(since, 7*24*time.Hour), "since", "how far back, such as 12h, 7d, 1w or 1d12h")
}

// ReadFile reads a file that Write wrote, or standard input in place of "-". The error names it.
func ReadFile(stdin io.Reader, path string) (*History, error) {
	if path == "-" {
		h, err := Read(stdin)
		if err != nil {
			return nil, fmt.Errorf("read standard input: %w", err)
		}
		return h, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read the history: %w", err)
	}
	h, err := Read(f)
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return h, nil
}

// Ask asks every agent of the mesh that is meant. With total, it is of all hours in one. Partly says which agents did not
// answer, when others did.
func Ask(ctx context.Context, m *reach.Mesh, since time.Time, total bool) (all *History, partly, err error) {
	answers, err := m.History(ctx, since, total, MaxSummaries)
	if err != nil {
		return nil, nil, err
	}
	all = &History{}
	answered := false
	for _, answer := range answers {
		if answer.Err != nil {
			continue
		}
		answered = true
		for _, m := range answer.Value {
			all.Add(m)
		}
	}
	if partly = reach.Errors(answers); !answered {
		return nil, nil, partly
	}
	return all, partly, nil
}
