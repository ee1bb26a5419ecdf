package testenv

import (
	"os/exec"
	"strings"
	"testing"
)

// Build builds main packages, named as seen from dir, as `make build` does: static
// and with the same flags, so that what is compiled already is not compiled anew
// for tests that run with the race detector. output is a file, or a folder that is there.
func Build(t testing.TB, dir, output string, packages ...string) {
	t.Helper()
	Go(t, dir, append([]string{"build", "-trimpath", "-ldflags", "-s -w", "-o", output}, packages...)...)
}

// Go runs the go command in a folder; what it builds is static.
func Go(t testing.TB, dir string, args ...string) {
	t.Helper()
	command := exec.CommandContext(t.Context(), "go", args...)
	command.Dir = dir
	command.Env = append(command.Environ(), "CGO_ENABLED=0")
	if out, err := command.CombinedOutput(); err != nil {
		t.Fatalf("go %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}
