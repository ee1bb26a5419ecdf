package build

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func TestFindRootLooksUpwards(t *testing.T) {
	want, err := filepath.Abs("../../..")
	if err != nil {
		t.Fatal(err)
	}
	for _, from := range []string{".", "../machine", "../../.."} {
		if got, err := FindRoot(from); err != nil || got != want {
			t.Errorf("from %s: %s %v", from, got, err)
		}
	}
	if _, err := FindRoot(t.TempDir()); err == nil || !strings.Contains(err.Error(), "--root") {
		t.Errorf("outside of a checkout: %v", err)
	}
}

// What is cached is current exactly as long as what it was built from is.
func TestCacheKeyFollowsTheModule(t *testing.T) {
	module := t.TempDir()
	write := func(name, content string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(module, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	key := func() string {
		t.Helper()
		key, err := cacheKey(t.Context(), module)
		if err != nil {
			t.Fatal(err)
		}
		return key
	}
	write("go.sum", "one")
	first := key()
	if again := key(); again != first || len(first) != 12 {
		t.Errorf("keys %s and %s of the same module", first, again)
	}
	write("go.sum", "two")
	if key() == first {
		t.Error("another go.sum has the same key")
	}
	write("go.sum", "one")
	write("main.go", "package main")
	if key() == first {
		t.Error("another source has the same key")
	}
}

func TestVersionIsTheModules(t *testing.T) {
	version, err := kubernetesVersion(t.Context(), "../programs")
	if err != nil {
		t.Fatal(err)
	}
	if !regexp.MustCompile(`^v1\.\d+\.\d+$`).MatchString(version) {
		t.Errorf("version %q", version)
	}
	if _, err := kubernetesVersion(t.Context(), "."); err == nil {
		t.Error("Heddle's own module has no Kubernetes")
	}
	flags := versionFlags("v1.34.4")
	for _, want := range []string{"version.gitVersion=v1.34.4", "gitMajor=1 ", "gitMinor=34 ", "client-go/pkg/version.gitVersion=v1.34.4"} {
		if !strings.Contains(flags, want) {
			t.Errorf("%s lacks %s", flags, want)
		}
	}
}

func TestFailedBuildLeavesNoProgram(t *testing.T) {
	file := filepath.Join(t.TempDir(), "program")
	err := goBuild(t.Context(), ".", file, "", "./no/such/package")
	if err == nil || !strings.Contains(err.Error(), "no/such/package") {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(file); err == nil {
		t.Error("a program is there")
	}
}

func TestLockLetsOneIn(t *testing.T) {
	file := filepath.Join(t.TempDir(), "lock")
	unlock, err := lock(file, func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	waiting, second := make(chan string, 1), make(chan error, 1)
	go func() {
		unlock, err := lock(file, func(line string) { waiting <- line })
		if err == nil {
			unlock()
		}
		second <- err
	}()
	if line := <-waiting; !strings.Contains(line, "waiting") {
		t.Errorf("it says %q", line)
	}
	select {
	case err := <-second:
		t.Errorf("both hold the lock: %v", err)
	default:
	}
	unlock()
	if err := <-second; err != nil {
		t.Error(err)
	}
}
