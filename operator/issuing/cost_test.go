//go:build !race

package issuing

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/internal/identity"
)

// TestSigningCost holds an operator to 1,000 certificates a second and core, asked for
// over the wire by a node whose right to each is checked. It counts processor time,
// which other tests take nothing of, and that of the client in this process, too. On a
// core that is too slow for that, a certificate may cost as much as eight signatures of which
// each is verified; HEDDLE_COST set (`make bench-go`) takes no such excuse.
func TestSigningCost(t *testing.T) {
	const signed, attempts = 1000, 3
	o := startOperator(t, func(_ *identity.AuthorityConfig, c *Config) { c.SignRate, c.SignBurst = 1e9, 1e9 })
	n := o.join(t, "n1")
	csr, _ := newCSR(t, web)
	best, atLeast := 0.0, 1000.0
	for i := 0; i < attempts && best < atLeast; i++ {
		rate := perSecond(t, signed, func() {
			if _, _, err := n.Sign(t.Context(), web, csr); err != nil {
				t.Fatal(err)
			}
		})
		bare := signatures(t)
		if os.Getenv("HEDDLE_COST") == "" {
			atLeast = min(atLeast, bare/8)
		}
		best = max(best, rate)
		t.Logf("%.0f certificates per second of one core, want %.0f; it signs and verifies %.0f times", rate, atLeast, bare)
	}
	if best < atLeast {
		t.Errorf("%.0f certificates per second of one core, want %.0f", best, atLeast)
	}
}

// signatures is how many a core makes and verifies in a second.
func signatures(t *testing.T) float64 {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	var digest [32]byte
	return perSecond(t, 500, func() {
		signature, err := ecdsa.SignASN1(rand.Reader, key, digest[:])
		if err != nil || !ecdsa.VerifyASN1(&key.PublicKey, digest[:], signature) {
			t.Fatal("no signature:", err)
		}
	})
}

// perSecond is how often something is done in a second of processor time.
func perSecond(t *testing.T, times int, do func()) float64 {
	t.Helper()
	began := processTime(t)
	for range times {
		do()
	}
	return float64(times) / (processTime(t) - began).Seconds()
}

// processTime is what this process has had of the processors.
func processTime(t *testing.T) time.Duration {
	t.Helper()
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &now); err != nil {
		t.Fatal(err)
	}
	return time.Duration(now.Nano())
}
