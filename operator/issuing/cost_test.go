//go:build !race

package issuing

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/internal/identity"
)

// TestSigningCost holds an operator to 1,000 certificates a second and core, asked for
// over the wire by a node whose right to each is checked. It counts processor time,
// which other tests take nothing of, and that of the client in this process, too.
func TestSigningCost(t *testing.T) {
	const signed, atLeast, attempts = 1000, 1000, 3
	o := startOperator(t, func(_ *identity.AuthorityConfig, c *Config) { c.SignRate, c.SignBurst = 1e9, 1e9 })
	n := o.join(t, "n1")
	csr, _ := newCSR(t, web)
	best := 0.0
	for i := 0; i < attempts && best < atLeast; i++ {
		began := processTime(t)
		for range signed {
			if _, _, err := n.Sign(t.Context(), web, csr); err != nil {
				t.Fatal(err)
			}
		}
		best = max(best, signed/(processTime(t)-began).Seconds())
	}
	if t.Logf("%.0f signatures per second of one core", best); best < atLeast {
		t.Errorf("%.0f signatures per second of one core, want %d", best, atLeast)
	}
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
