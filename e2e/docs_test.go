package e2e

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/e2e/testbed"
	"github.com/heddle-mesh/heddle/internal/kube"
	"github.com/heddle-mesh/heddle/internal/local"
)

// fence finds fenced blocks and their language.
var fence = regexp.MustCompile("(?ms)^```(\\w+)\n(.*?)^```")

// blocks returns the fenced blocks of a language in a document, in order.
func blocks(t *testing.T, document, language string) []string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("..", document))
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, m := range fence.FindAllStringSubmatch(string(data), -1) {
		if m[1] == language {
			found = append(found, m[2])
		}
	}
	return found
}

func documents(t *testing.T) []string {
	t.Helper()
	found := []string{"README.md"}
	for _, pattern := range []string{"docs/*.md", "*/README.md", "*/*/README.md"} {
		paths, err := filepath.Glob(filepath.Join("..", pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range paths {
			found = append(found, strings.TrimPrefix(p, "../"))
		}
	}
	slices.Sort(found)
	return slices.Compact(found)
}

// TestDocumentedConfiguration reads every YAML example of docs/configuration.md
// as one folder.
func TestDocumentedConfiguration(t *testing.T) {
	dir := t.TempDir()
	examples := blocks(t, "docs/configuration.md", "yaml")
	if len(examples) < 5 {
		t.Fatalf("docs/configuration.md has %d examples", len(examples))
	}
	if err := os.WriteFile(filepath.Join(dir, "all.yaml"), []byte(strings.Join(examples, "---\n")), 0o644); err != nil {
		t.Fatal(err)
	}
	objects, err := kube.LoadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	objects.UDPByIdentity = true
	if _, err := kube.Compile(objects); err != nil {
		t.Fatal(err)
	}
}

// notRun are commands that the documents show and this test does not run, with
// the reason.
func notRun() map[string]string {
	return map[string]string{
		"make demo":                "CI runs it as a step of its own",
		"make test":                "this test is part of it",
		"make ci":                  "this test is part of it",
		"make kernel-matrix":       "CI runs it as a step of its own",
		"make deps":                "CI runs it as a step of its own",
		"make build":               "the test builds into a folder of its own",
		"make chaos":               "e2e/chaos and e2e/product run it, with fewer kills and reboots",
		"make fuzz":                "CI runs it as a step of its own",
		"make gateway-conformance": "takes a cluster, and a build with the tag conformance; make e2e and make e2e-gateway run the same suite, and write no report",
		"make bench":               "takes half an hour; e2e/bench runs a short one of every subject",
	}
}

// runElsewhere are documents whose commands another test runs, most of them against an
// API server.
func runElsewhere() map[string]string {
	return map[string]string{
		"docs/cli.md":        "cmd/heddle",
		"docs/install.md":    "cmd/heddle/internal/install",
		"docs/simulate.md":   "cmd/heddle, on a mesh",
		"docs/operations.md": "e2e/controlplane, as a drill of backup and restore",
		"docs/waypoint.md":   "cmd/heddle-waypoint",
	}
}

// TestDocumentedCommands runs every command line of every sh block of the
// documents, in order, in one shell each, as a reader would: each must succeed.
func TestDocumentedCommands(t *testing.T) {
	binaries := t.TempDir()
	if err := testbed.Build("..", binaries); err != nil {
		t.Fatal(err)
	}
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	if old, err := local.Open("", "demo"); err == nil {
		if err := old.Down(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		if m, err := local.Open("", "demo"); err == nil {
			if err := m.Down(context.Background()); err != nil {
				t.Error(err)
			}
		}
	})
	ran := 0
	for _, document := range documents(t) {
		if _, elsewhere := runElsewhere()[document]; elsewhere {
			continue
		}
		for _, block := range blocks(t, document, "sh") {
			for line := range strings.Lines(block) {
				command := strings.TrimSpace(strings.SplitN(line, " #", 2)[0])
				if command == "" || strings.HasPrefix(command, "#") {
					continue
				}
				if _, known := notRun()[strings.Join(strings.Fields(command)[:min(2, len(strings.Fields(command)))], " ")]; known {
					continue
				}
				ran++
				runDocumented(t, document, root, binaries, command)
			}
		}
	}
	if ran < 6 {
		t.Errorf("only %d commands were found in the documents", ran)
	}
}

func runDocumented(t *testing.T, document, root, binaries, command string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	shell := exec.CommandContext(ctx, "bash", "-euo", "pipefail", "-c", strings.ReplaceAll(command, "bin/heddle", "heddle"))
	shell.Dir = root
	shell.Env = append(os.Environ(), "PATH="+binaries+":"+os.Getenv("PATH"), "NO_COLOR=1")
	if out, err := shell.CombinedOutput(); err != nil {
		t.Errorf("%s shows %q: %v: %s", document, command, err, out)
	}
}
