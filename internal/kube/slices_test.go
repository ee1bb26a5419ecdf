package kube

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
)

// writtenService is a service of many ports whose endpoints are written by hand, in so
// many slices.
func writtenService(t testing.TB, ports, endpoints, slices int, number func(port, slice int) uint16) *Objects {
	var yaml strings.Builder
	yaml.WriteString("apiVersion: v1\nkind: Service\nmetadata: {namespace: shop, name: big}\nspec:\n  clusterIP: 10.96.0.1\n  ports:\n")
	for i := range ports {
		fmt.Fprintf(&yaml, "  - {name: p%d, port: %d}\n", i, i+1)
	}
	objs := clusterOf(t, yaml.String())
	addr := netip.MustParseAddr("10.1.0.1")
	for i := range slices {
		s := &EndpointSlice{Namespace: "shop", Name: fmt.Sprintf("s%05d", i), Service: "big"}
		for j := range ports {
			if n := number(j, i); n > 0 {
				s.Ports = append(s.Ports, NamedPort{fmt.Sprintf("p%d", j), n})
			}
		}
		for range endpoints / slices {
			s.Endpoints, addr = append(s.Endpoints, Endpoint{Addr: addr}), addr.Next()
		}
		objs.Slices = append(objs.Slices, s)
	}
	return objs
}

// BenchmarkWrittenEndpoints is a service of 100 ports and 2,000 endpoints that are written
// by hand, which every change of a cluster compiles anew.
func BenchmarkWrittenEndpoints(b *testing.B) {
	same := func(port, _ int) uint16 { return uint16(1000 + port) }
	for name, c := range map[string]struct {
		slices int
		number func(port, slice int) uint16
	}{
		"one-number/2-slices":    {2, same},
		"one-number/1000-slices": {1000, same},
		"two-numbers/2-slices":   {2, func(port, slice int) uint16 { return uint16(1000 + 100*slice + port) }},
		"every-port-another-slice": {100, func(port, slice int) uint16 {
			if port != slice {
				return 0
			}
			return 80
		}},
		"every-port-other-numbers": {100, func(port, slice int) uint16 { return uint16(1000 + (slice*(port+1))%7) }},
	} {
		objs := writtenService(b, 100, 2000, c.slices, c.number)
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := CompileEach(objs); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// TestPortsOfWrittenEndpointsAreBounded: slices that say something else of every port do
// not hold up the compilation of everybody's configuration.
func TestPortsOfWrittenEndpointsAreBounded(t *testing.T) {
	objs := writtenService(t, 100, 2000, 20, func(port, slice int) uint16 { return uint16(1000 + (port*port>>(slice%7))&3) })
	compiled := compileEach(t, objs)
	if s := compiled.Services[0]; len(s.Endpoints) != 2000 || len(s.Ports) == 0 || len(s.Ports) >= 100 {
		t.Errorf("%d endpoints and %d ports are left", len(s.Endpoints), len(s.Ports))
	}
	if got := problemLines(compiled.Refused); !strings.Contains(got, "Service shop/big: spec.ports: 22 are not there: what the service's slices say of its ports comes to more than 65536 endpoints") || len(compiled.Refused) != 3 {
		t.Errorf("refused:\n%s", got)
	}
	compiled = compileEach(t, writtenService(t, 100, 2000, 2, func(port, _ int) uint16 { return uint16(1000 + port) }))
	if s := compiled.Services[0]; len(compiled.Refused) > 0 || len(s.Ports) != 100 || s.Ports[99].TargetPort != 1099 || s.Ports[99].Only != nil {
		t.Errorf("one that says the same of every port: %v", compiled.Refused)
	}
}

// TestEndpointsBesideTheSelected: kube-proxy takes the slices that are written for a
// service with a selector, too, and agents do not: that is said.
func TestEndpointsBesideTheSelected(t *testing.T) {
	const service = "apiVersion: v1\nkind: Service\nmetadata: {namespace: shop, name: web}\nspec: {clusterIP: 10.96.0.1, selector: {app: web}, ports: [{port: 80, protocol: %s}]}\n"
	for protocol, warned := range map[string]bool{"TCP": true, "UDP": false} {
		objs := clusterOf(t, fmt.Sprintf(service, protocol), podOf("web", "10.0.0.1"))
		says := func() bool {
			return strings.Contains(problemLines(compileEach(t, objs).Warnings), "Service shop/web: spec.selector: picks the pods that clients in the mesh reach, and the 1 endpoints of EndpointSlice far are reached by others only; give them a Service of their own")
		}
		if says() {
			t.Errorf("%s: a warning without any slice", protocol)
		}
		objs.Slices = []*EndpointSlice{{Namespace: "shop", Name: "empty", Service: "web"}, {Namespace: "shop", Name: "far", Service: "web", Endpoints: endpointsAt("192.0.2.1")}}
		if says() != warned {
			t.Errorf("%s: warned %v, want %v", protocol, !warned, warned)
		}
	}
}
