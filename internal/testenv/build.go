package testenv

import (
	"os/exec"
	"testing"
)

// Build builds main packages, named as seen from dir, as `make build` does: static
// and with the same flags, so that what is compiled already is not compiled anew
// for tests that run with the race detector. output is a file, or a folder that is there.
func Build(t testing.TB, dir, output string, packages ...string) {
	t.Helper()
	command := exec.CommandContext(t.Context(), "go", append([]string{"build", "-trimpath", "-ldflags", "-s -w", "-o", output}, packages...)...)
	command.Dir = dir
	command.Env = append(command.Environ(), "CGO_ENABLED=0")
	if out, err := command.CombinedOutput(); err != nil {
		t.Fatalf("go build %v: %v\n%s", packages, err, out)
	}
}
