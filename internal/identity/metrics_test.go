package identity

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

// collectAll gathers through a pedantic registry, which checks descriptions.
func collectAll(t *testing.T, s *Source) {
	t.Helper()
	r := prometheus.NewPedanticRegistry()
	if err := r.Register(s.Collector()); err != nil {
		t.Fatal(err)
	}
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	if len(families) != 5 {
		t.Errorf("%d metric families", len(families))
	}
}
