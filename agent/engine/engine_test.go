package engine

import (
	"bytes"
	"crypto/fips140"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/heddle-mesh/heddle/internal/hbone/fast"
	"github.com/heddle-mesh/heddle/internal/hbone/reference"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func TestNames(t *testing.T) {
	for _, c := range []struct {
		name   string
		fips   bool
		remedy string // "" when the name is in order
	}{
		{Loop, false, ""}, {Reference, false, ""}, {Reference, true, ""},
		{Loop, true, "set it to reference"}, {"fast", false, "loop or reference"}, {"", true, "loop or reference"},
	} {
		wrong, remedy := check(c.name, c.fips)
		if (wrong == "") != (c.remedy == "") || !strings.Contains(remedy, c.remedy) {
			t.Errorf("%q, FIPS %v: %q, remedy %q", c.name, c.fips, wrong, remedy)
		}
	}
}

func TestNewMakesWhatTheNameSays(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	if _, ok := New(Loop, log).(*fast.Engine); !ok {
		t.Error("loop is not the event loops")
	}
	if _, ok := New(Reference, log).(*reference.Engine); !ok {
		t.Error("reference is not the reference engine")
	}
}

// TestDefault asks a process in FIPS 140-3 mode, too.
func TestDefault(t *testing.T) {
	if fips140.Enabled() {
		if wrong, _ := Check(Loop); Default() != Reference || wrong == "" {
			t.Errorf("in FIPS mode the default is %s", Default())
		}
		return
	}
	if Default() != Loop {
		t.Errorf("the default is %s", Default())
	}
	again := exec.Command("/proc/self/exe", "-test.run=^TestDefault$", "-test.v")
	again.Env = append(os.Environ(), "GODEBUG=fips140=on")
	out, err := again.CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("PASS: TestDefault")) {
		t.Errorf("in FIPS mode: %v\n%s", err, out)
	}
}
