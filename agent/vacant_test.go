package agent_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/internal/flow"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

// noEndpoint: a service that nobody serves refuses connections, as an address without
// a listener does; the moment that somebody serves it, it takes them.
func (w *world) noEndpoint(t *testing.T) {
	web, at := w.pods["web"], []string{"10.96.0.9:70", "[fd96::9]:70"}
	serve := func(by string) {
		w.write("vacant.yaml", fmt.Sprintf(`apiVersion: v1
kind: Service
metadata: {namespace: shop, name: vacant}
spec:
  selector: {app: %s}
  clusterIPs: ["10.96.0.9", "fd96::9"]
  ports: [{port: 70, targetPort: 7001}]
`, by))
	}
	refused := func(t *testing.T) {
		t.Helper()
		for _, vip := range at {
			testenv.Eventually(t, 20*time.Second, vip+" refuses", func() bool {
				c, err := web.dial(vip)
				if err == nil {
					c.Close()
				}
				return errors.Is(err, unix.ECONNREFUSED)
			})
		}
	}
	serve("nobody")
	refused(t)
	r := w.n1.expectFlow("refused for want of an endpoint", func(r *flow.Record) bool {
		return r.Reason == mesh.ReasonNoEndpoint && r.Packets > 0
	})
	if r.Direction != flow.DirectionOutbound || r.Verdict != mesh.VerdictDeny || r.Service.Name != "vacant" || r.Source.Workload.Name != "web" || r.Source.Identity.IsZero() {
		t.Errorf("recorded as %+v", r)
	}
	serve("db")
	for _, vip := range at {
		testenv.Eventually(t, 20*time.Second, vip+" takes connections", func() bool {
			c, err := web.dial(vip)
			if err != nil {
				return false
			}
			defer c.Close()
			_, err = c.Read(make([]byte, 1))
			return err == nil
		})
		w.exchange(t, web, vip)
	}
	serve("nobody")
	refused(t)
}
