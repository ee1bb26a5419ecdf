package product

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

// collecting starts a collector in the mesh, and has the waypoint send it spans as soon as its pods are new ones. It returns what
// takes the collector away.
func (w *world) collecting(t *testing.T) (end func()) {
	t.Helper()
	w.apply(t, podYAML("collector", "n2", itsShare, "collect")+`---
apiVersion: v1
kind: Service
metadata: {name: collector, namespace: shop}
spec: {selector: {app: collector}, ports: [{name: otlp, port: 4317}]}
`)
	w.waitReady(t, "collector")
	w.enrolled(t, "n2", "shop/collector")
	w.kubectl(t, "-n", "shop", "annotate", "gateway/waypoint", "heddle.dev/trace-endpoint=http://collector.shop.svc.cluster.local.:4317")
	return func() { w.kubectl(t, "-n", "shop", "delete", "pod/collector", "service/collector", "--now") }
}

// traced makes a request that a client traces: what the server is told, and the span that the collector gets, are of the
// client's trace, one behind the other.
func (w *world) traced(t *testing.T) {
	t.Helper()
	const trace, client = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
	p := w.fetchOne(t, "client", site+"/shown/traced", "traceparent=00-"+trace+"-"+client+"-01", "tracestate=its=own")
	told := strings.Split(strings.Join(p.Fields["Traceparent"], ""), "-")
	if p.Status != 200 || len(told) != 4 || told[1] != trace || told[2] == client || told[3] != "01" || strings.Join(p.Fields["Tracestate"], "") != "its=own" {
		t.Fatalf("the server is told %v %v: %+v", p.Fields["Traceparent"], p.Fields["Tracestate"], p)
	}
	eventually(t, patience, "the collector has the waypoint's span", func() error {
		said := w.logs(t, "collector")
		for line := range strings.Lines(said) {
			var span struct {
				Trace, Span, Parent, Name string
				Said                      map[string]string
			}
			if err := json.Unmarshal([]byte(line), &span); err != nil {
				return fmt.Errorf("%w: %s", err, line)
			}
			if span.Trace == trace && span.Parent == client && span.Span == told[2] && strings.HasPrefix(span.Name, "GET") &&
				span.Said["heddle.source.identity"] == "spiffe://cluster.local/ns/shop/sa/default" && span.Said["heddle.destination.workload"] == "shop/site-1" {
				return nil
			}
		}
		return fmt.Errorf("no span is behind the client's, and before the server's %v: %s", told, grep(said, trace))
	})
}
