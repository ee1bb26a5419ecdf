package fips_test

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/heddle-mesh/heddle/internal/fips"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// TestModes asks a process of each mode.
func TestModes(t *testing.T) {
	want := os.Getenv("TEST_FIPS140")
	if want == "" {
		for _, mode := range []string{"off", "on", "only"} {
			again := exec.Command("/proc/self/exe", "-test.run=^TestModes$", "-test.v")
			again.Env = append(os.Environ(), "GODEBUG=fips140="+mode, "TEST_FIPS140="+mode)
			if out, err := again.CombinedOutput(); err != nil || !strings.Contains(string(out), "PASS: TestModes") {
				t.Errorf("%s: %v\n%s", mode, err, out)
			}
		}
		return
	}
	on := want != "off"
	if got := fips.Mode(); got != want {
		t.Errorf("mode %s", got)
	}
	if said := fips.Describe(); !strings.HasPrefix(said, want) || strings.Contains(said, "Module") != on {
		t.Error(said)
	}
	if err := fips.Require(true); (err == nil) != on || err != nil && !errors.Is(err, fips.ErrOff) {
		t.Errorf("wanted: %v", err)
	}
	if err := fips.Require(false); err != nil {
		t.Errorf("not wanted: %v", err)
	}
	if value := testutil.ToFloat64(fips.Collector()); (value == 1) != on {
		t.Errorf("the metric is %v", value)
	}
}
