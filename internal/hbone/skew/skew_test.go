package skew_test

import (
	"crypto/x509"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/hbone/skew"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func TestMoment(t *testing.T) {
	now := time.Now()
	for begins, want := range map[time.Duration]time.Duration{
		-time.Hour: 0, 0: 0, time.Second: time.Second, skew.Apart: skew.Apart, skew.Apart + time.Second: 0, 24 * time.Hour: 0,
	} {
		leaf := &x509.Certificate{NotBefore: now.Add(begins), NotAfter: now.Add(time.Minute)}
		if got := skew.Moment(leaf, now).Sub(now); got != want {
			t.Errorf("one that begins in %v is verified in %v", begins, got)
		}
	}
}

func TestUseful(t *testing.T) {
	now := time.Now()
	for life, want := range map[time.Duration]time.Duration{
		24 * time.Hour: 24*time.Hour - skew.Apart, time.Hour: 40 * time.Minute, 40 * time.Minute: 20 * time.Minute, 10 * time.Second: 5 * time.Second,
	} {
		if got := skew.Useful(now, now.Add(life)); got != want {
			t.Errorf("of %v, %v are of use", life, got)
		}
	}
}
