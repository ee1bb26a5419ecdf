package flame

import (
	"encoding/xml"
	"errors"
	"io"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

const traces = `File: heddle-agent
Type: cpu
Duration: 2s, Total samples = 1.50s
-----------+-------------------------------------------------------
      10ms   internal/runtime/syscall.Syscall6
             syscall.RawSyscall6 (inline)
             main.(*loop[go.shape.int]).run
-----------+-------------------------------------------------------
     1.49s   crypto/internal/fips140/aes/gcm.seal
             main.(*loop[go.shape.int]).run
-----------+-------------------------------------------------------
`

func TestRead(t *testing.T) {
	root, err := Read(strings.NewReader(traces))
	if err != nil {
		t.Fatal(err)
	}
	run := root.Called["main.(*loop[go.shape.int]).run"]
	if root.Total != 1500*time.Millisecond || run == nil || run.Total != root.Total || len(root.Called) != 1 {
		t.Fatalf("got %+v", root)
	}
	if raw := run.Called["syscall.RawSyscall6"]; raw == nil || raw.Total != 10*time.Millisecond || raw.Called["internal/runtime/syscall.Syscall6"] == nil {
		t.Errorf("the shorter stack: %+v", run.Called)
	}
	if _, err := Read(strings.NewReader("File: x\n-----\n")); err == nil {
		t.Error("a profile without samples was taken")
	}
}

func TestShares(t *testing.T) {
	root, err := Read(strings.NewReader(traces))
	if err != nil {
		t.Fatal(err)
	}
	shares := Shares(root)
	for i, want := range []float64{0.01 / 1.5, 1.49 / 1.5, 0, 0} {
		if got := shares[i].Part; math.Abs(got-want) > 1e-9 {
			t.Errorf("%s: got %v, want %v", shares[i].Of, got, want)
		}
	}
}

// TestKinds names a function of each place that an agent's time goes to, as the profiles have them.
func TestKinds(t *testing.T) {
	for name, want := range map[string]string{
		"internal/runtime/syscall/linux.Syscall6":                            "system calls",
		"golang.org/x/sys/unix.Syscall":                                      "system calls",
		"crypto/internal/fips140/aes/gcm.gcmAesEnc":                          "cryptography",
		"crypto/internal/fips140/mlkem.nttMul":                               "cryptography",
		"github.com/heddle-mesh/heddle/internal/hbone/aesgcm.open":           "cryptography",
		"github.com/heddle-mesh/heddle/internal/hbone/aesgcm.(*vector).Seal": "cryptography",
		"golang.org/x/crypto/chacha20poly1305.(*chacha20poly1305).Open":      "cryptography",
		"runtime.memmove": "Go's runtime",
		"internal/runtime/maps.(*Map).getWithoutKeySmallFastStr":                 "Go's runtime",
		"github.com/heddle-mesh/heddle/internal/hbone/tlsrecord.(*Half).Open":    "Heddle",
		"github.com/heddle-mesh/heddle/internal/hbone/fast/tunnel.(*Conn).Ready": "Heddle",
		"internal/poll.(*FD).RawRead":                                            "Heddle",
	} {
		root, err := Read(strings.NewReader("-----\n      10ms   " + name + "\n-----\n"))
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range Shares(root) {
			if spent := s.Part == 1; spent != strings.HasPrefix(s.Of, want) {
				t.Errorf("%s: %v of its time is said to be %s; it is %s", name, s.Part, s.Of, want)
			}
		}
	}
}

func TestDraw(t *testing.T) {
	root, err := Read(strings.NewReader(traces))
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	if err := Draw(&b, "a < b", root); err != nil {
		t.Fatal(err)
	}
	texts := 0
	for dec := xml.NewDecoder(strings.NewReader(b.String())); ; {
		token, err := dec.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("the SVG is no XML: %v", err)
		}
		if e, ok := token.(xml.StartElement); ok && e.Name.Local == "title" {
			texts++
		}
	}
	if texts != 5 || !strings.Contains(b.String(), "gcm.seal: 99.3 %") {
		t.Errorf("%d boxes, want 5, one of them of 99.3 %%: %s", texts, b.String())
	}
}
