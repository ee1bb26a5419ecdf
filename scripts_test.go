package heddle

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestSummary: a machine that cannot run the assembler says that it was not
// tested, whatever else has passed.
func TestSummary(t *testing.T) {
	const (
		other = `{"Time":"2026-01-01T00:00:00Z","Action":"pass","Package":"github.com/heddle-mesh/heddle/internal/hbone","Test":"TestHeader","Elapsed":0.1}`
		mine  = `"Package":"github.com/heddle-mesh/heddle/internal/hbone/aesgcm","Test":"TestNoByteBeside"`
	)
	for _, c := range []struct{ results, want string }{
		{`{"Time":"2026-01-01T00:00:00Z","Action":"pass",` + mine + `,"Elapsed":0.1}`, "2 passed, 0 failed, 0 skipped\nAES-GCM: VAES assembler tested\n"},
		{`{"Time":"2026-01-01T00:00:00Z","Action":"output",` + mine + `,"Output":"    vaes_amd64_test.go:40: not tested: this processor has no VAES\n"}` + "\n" +
			`{"Time":"2026-01-01T00:00:00Z","Action":"skip",` + mine + `,"Elapsed":0}`, "1 passed, 0 failed, 1 skipped\nAES-GCM: VAES assembler NOT tested: this processor has no VAES\n"},
		{strings.Join([]string{
			`{"Time":"2026-01-01T00:00:00Z","Action":"fail","Package":"p","Test":"TestSlow","Elapsed":0.1}`,
			`{"Time":"2026-01-01T00:00:00Z","Action":"fail","Package":"p","Test":"TestBroken","Elapsed":0.1}`,
			`{"Time":"2026-01-01T00:00:01Z","Action":"pass","Package":"p","Test":"TestSlow","Elapsed":0.1}`,
			`{"Time":"2026-01-01T00:00:01Z","Action":"fail","Package":"p","Test":"TestBroken","Elapsed":0.1}`,
			`{"Time":"2026-01-01T00:00:01Z","Action":"fail","Package":"p","Elapsed":0.1}`,
		}, "\n"), "2 passed, 1 failed, 0 skipped\npassed only when run once more: p TestSlow\nAES-GCM: VAES assembler NOT tested: its tests did not run\n"},
		{"", "1 passed, 0 failed, 0 skipped\nAES-GCM: VAES assembler NOT tested: its tests did not run\n"},
	} {
		dir := t.TempDir()
		for name, data := range map[string]string{"unit.json": c.results + "\n", "root.json": other + "\n"} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(data), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		out, err := exec.Command("scripts/summary", dir).CombinedOutput()
		if err != nil || string(out) != c.want {
			t.Errorf("%v, said %q, want %q", err, out, c.want)
		}
	}
	// The one that stands for the others is there.
	if data, err := os.ReadFile("internal/hbone/aesgcm/vaes_amd64_test.go"); err != nil || !strings.Contains(string(data), "func TestNoByteBeside(") {
		t.Errorf("scripts/summary asks for a test that is not there: %v", err)
	}
}

// TestAgain: what failed by the machine's load may pass when it is run once more, and a
// request that is lost is lost.
func TestAgain(t *testing.T) {
	for loses, want := range map[string]string{"": "", "1": "failed for good, whatever a second run came to:\nTestLoss: 1 of 2 requests is lost:\n"} {
		cmd := exec.Command("scripts/again", "./scripts/testdata/again", "-count=1")
		cmd.Env = append(os.Environ(), "AGAIN_DIR="+t.TempDir(), "AGAIN_LOSES="+loses, "GOTESTSUM_JSONFILE=")
		out, err := cmd.CombinedOutput()
		if (err == nil) != (loses == "") || !strings.HasSuffix(string(out), want) || !strings.Contains(string(out), "too slow") {
			t.Errorf("loses %q: %v\n%s", loses, err, out)
		}
	}
}

// fakeGo stands for go where scripts/fuzz asks it: the programs that it builds say what the fuzzer would, and FuzzVerdict
// has no time left after its corpus.
const fakeGo = `#!/bin/sh
case $1 in
env) echo /no/such/cache ;;
list) echo package ;;
test)
  while [ "$1" != -o ]; do shift; done
  cat >"$2" <<'EOF'
#!/bin/sh
case "$*" in
*FuzzVerdict*-test.fuzztime*2s*) execs=0 ;;
*) execs=123 ;;
esac
echo "fuzz: elapsed: 2s, execs: $execs (61/sec), new interesting: 1 (total: 9)"
EOF
  chmod +x "$2" ;;
esac
`

func TestFuzzSaysWhatItRan(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "go"), []byte(fakeGo), 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("scripts/fuzz", "2s")
	cmd.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"))
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("scripts/fuzz: %v: %s", err, out)
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	last := regexp.MustCompile(`^(\d+) of (\d+) fuzz targets ran (\d+) for 2s each and 1, which had no time left after their corpus, for 1000x instead, \d+ s in all$`).FindStringSubmatch(lines[len(lines)-1])
	if last == nil || last[1] != last[2] {
		t.Errorf("it ends with %q", lines[len(lines)-1])
	}
	for target, want := range map[string]string{"FuzzVerdict": "1000x", "FuzzParser": "2s"} {
		if !regexp.MustCompile(`(?m)^\./internal/hbone/h2 ` + target + ` .* 9 inputs, ` + want + `$`).Match(out) {
			t.Errorf("%s is not said to have run for %s", target, want)
		}
	}
}
