package product

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// testAccessLog has a waypoint log requests: `kubectl logs` of one of its pods has them as lines of JSON, with what is masked
// masked, and a collector has spans of them. A bound that nobody may set is refused, and the waypoint goes on.
func (w *world) testAccessLog(t *testing.T) {
	pods := func() []string {
		return strings.Fields(w.kubectl(t, "-n", "shop", "get", "pods", "-l", ofWaypoint, "-o", "jsonpath={.items[*].metadata.name}"))
	}
	before := pods()
	defer w.collecting(t)()
	w.cli(t, "waypoint", "apply", "-n", "shop", "--access-log", "1", "--wait")
	eventually(t, patience, "its pods are other ones", func() error {
		if now := pods(); len(now) == 0 || slices.ContainsFunc(now, func(name string) bool { return slices.Contains(before, name) }) {
			return fmt.Errorf("%v were %v", now, before)
		}
		return nil
	})
	eventually(t, patience, "a pod of it has logged a request", func() error {
		if p := w.fetchOne(t, "client", site+"/shown/logged?token=secret"); p.Status != 200 {
			return fmt.Errorf("%+v", p)
		}
		var said []string
		for _, pod := range pods() {
			for line := range strings.Lines(w.logs(t, pod)) {
				var e struct {
					Method, Path, Query, Route, Backend, Workload, Peer string
					Status                                              int
				}
				if !strings.Contains(line, `"/shown/logged"`) {
					continue
				}
				if err := json.Unmarshal([]byte(line), &e); err != nil {
					return fmt.Errorf("%w: %s", err, line)
				}
				if e.Method == "GET" && e.Status == 200 && e.Query == "***" && strings.Contains(e.Route, "shop/site") && strings.Contains(e.Backend, "shop/site-1") &&
					strings.Contains(e.Workload, "site-1") && strings.HasPrefix(e.Peer, "spiffe://") {
					return nil
				}
				said = append(said, line)
			}
		}
		return fmt.Errorf("no line is as it is to be: %q", said)
	})
	w.traced(t)
	w.kubectl(t, "-n", "shop", "annotate", "gateway/waypoint", "heddle.dev/bounds=listen=:80")
	eventually(t, patience, "the Gateway says what is wrong", func() error {
		said := w.kubectl(t, "-n", "shop", "get", "gateway/waypoint", "-o", `jsonpath={range .status.conditions[?(@.type=="Accepted")]}{.status} {.message}{end}`)
		if !strings.HasPrefix(said, "False") || !strings.Contains(said, "metadata.annotations[heddle.dev/bounds]") {
			return errors.New(said)
		}
		return nil
	})
	w.kubectl(t, "-n", "shop", "annotate", "gateway/waypoint", "heddle.dev/bounds-", "heddle.dev/trace-endpoint-")
	w.cli(t, "waypoint", "apply", "-n", "shop", "--access-log", "0", "--wait")
	w.visits(t, 20)
}
