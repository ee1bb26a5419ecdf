package engine

import (
	"bytes"
	"cmp"
	"crypto/fips140"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/heddle-mesh/heddle/internal/hbone/aesgcm"
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
	if _, ok := New(Loop, CryptoAuto, log).(*fast.Engine); !ok {
		t.Error("loop is not the event loops")
	}
	if _, ok := New(Reference, CryptoAuto, log).(*reference.Engine); !ok {
		t.Error("reference is not the reference engine")
	}
}

// TestCrypto: standard is the standard library's on every machine, auto whatever
// this one has; the log says which, and why, and so does Describe.
func TestCrypto(t *testing.T) {
	if wrong, remedy := CheckCrypto("homemade"); wrong == "" || !strings.Contains(remedy, "auto or standard") {
		t.Errorf("%q, remedy %q", wrong, remedy)
	}
	_, why := aesgcm.Fastest()
	for _, c := range []struct {
		name, said string
		own        bool
	}{
		{CryptoStandard, "--crypto standard", false},
		{CryptoAuto, cmp.Or(why, "self-test has passed"), why == ""},
	} {
		if wrong, _ := CheckCrypto(c.name); wrong != "" {
			t.Errorf("%s: %s", c.name, wrong)
		}
		var said bytes.Buffer
		aead, err := gcm(c.name, slog.New(slog.NewTextHandler(&said, nil)))(make([]byte, 16))
		if err != nil {
			t.Fatal(err)
		}
		if _, own := aead.(aesgcm.Wiper); own != c.own || !strings.Contains(said.String(), c.said) {
			t.Errorf("%s: own %v, said %s", c.name, own, said.String())
		}
		if said := Describe(Loop, c.name); !strings.Contains(said, c.said) || strings.Contains(said, "Heddle's own") != c.own {
			t.Errorf("%s: own %v, described as %s", c.name, c.own, said)
		}
	}
	if said := Describe(Reference, CryptoAuto); !strings.Contains(said, "crypto/tls's") {
		t.Errorf("the reference engine: %s", said)
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
