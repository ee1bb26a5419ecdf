package secured_test

import (
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/hbone/secured"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func TestFacts(t *testing.T) {
	until := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	leaf := &x509.Certificate{SerialNumber: big.NewInt(0xab12), NotAfter: until}
	by := secured.Of(tls.X25519MLKEM768, leaf)
	f := by.Facts()
	if f.KeyExchange() != "X25519MLKEM768" || f.Serial != "ab12" || !f.Expires().Equal(until) || by.String() != "X25519MLKEM768 ab12" {
		t.Errorf("%+v, %s", f, by)
	}
	if again := secured.Of(tls.X25519MLKEM768, leaf); again != by || f.By() != by {
		t.Error("equal ones differ")
	}
	if other := secured.Of(tls.X25519, leaf); other == by {
		t.Error("different ones are equal")
	}
	if n := testing.AllocsPerRun(100, func() { _ = f.By() }); n > 0 {
		t.Errorf("%v allocations for one that is there", n)
	}
}

// TestNothingKnown: the zero By, and what no handshake settles, say nothing.
func TestNothingKnown(t *testing.T) {
	for name, by := range map[string]secured.By{"zero": {}, "of nothing": secured.Of(0, nil), "an impossible end": secured.Facts{NotAfter: -1}.By()} {
		if f := by.Facts(); by != (secured.By{}) || f.KeyExchange() != "" || f.Serial != "" || !f.Expires().IsZero() {
			t.Errorf("%s: %+v", name, f)
		}
	}
	if by := (secured.Facts{Serial: strings.Repeat("f", 1000)}).By(); len(by.Facts().Serial) != 40 {
		t.Errorf("a serial of %d digits is kept", len(by.Facts().Serial))
	}
}

func TestPostQuantum(t *testing.T) {
	for group, want := range map[tls.CurveID]bool{
		tls.X25519MLKEM768: true, tls.SecP256r1MLKEM768: true, tls.SecP384r1MLKEM1024: true,
		tls.X25519: false, tls.CurveP256: false, 0: false, 4587 + 1000: false,
	} {
		if got := secured.PostQuantum((secured.Facts{Group: group}).KeyExchange()); got != want {
			t.Errorf("%v: %v", group, got)
		}
	}
}
