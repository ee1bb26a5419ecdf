package cluster

import (
	"fmt"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/testenv"
	"github.com/heddle-mesh/heddle/operator/clustertest"
)

const (
	gateway      = "/apis/gateway.networking.k8s.io/v1"
	gatewayBeta  = "/apis/gateway.networking.k8s.io/v1beta1"
	gatewayGroup = "gateway.networking.k8s.io/v1"
)

func allGatewayResources() []string {
	return []string{"gatewayclasses", "gateways", "httproutes", "grpcroutes", "tlsroutes", "tcproutes", "referencegrants"}
}

func httpRoute(name, backend string) clustertest.Object {
	return clustertest.Object{"apiVersion": gatewayGroup, "kind": "HTTPRoute", "metadata": clustertest.Object{"namespace": "shop", "name": name,
		"annotations": clustertest.Object{"note": "not kept"}},
		"spec": clustertest.Object{"parentRefs": []any{clustertest.Object{"group": "", "kind": "Service", "name": "cart"}},
			"rules": []any{clustertest.Object{"backendRefs": []any{clustertest.Object{"name": backend, "port": 80}}}}}}
}

func (s *Source) routeNames() (names []string) {
	for _, r := range s.Routing().HTTPRoutes {
		names = append(names, r.Name)
	}
	return names
}

// TestTheGatewayAPIComesAndGoes: without it, everything else is read and nothing is asked
// for again and again; it is watched soon after it came, in the version in which it is
// there, and what it said is gone with it.
func TestTheGatewayAPIComesAndGoes(t *testing.T) {
	s := clustertest.Start(t)
	source := follow(t, s) // which waits until everything is read
	if served := source.Routing().Served; served["httproutes"] || served["gateways"] {
		t.Errorf("served: %v", served)
	}
	before := s.Requests()
	time.Sleep(2 * lookForMissing)
	for request, n := range s.Requests() {
		if n-before[request] > 3 {
			t.Errorf("%s: %d times in %v", request, n-before[request], 2*lookForMissing)
		}
	}
	s.Put(t, gateway+"/namespaces/shop/httproutes", httpRoute("a", "cart"))
	s.Put(t, gatewayBeta+"/namespaces/shop/referencegrants", clustertest.Object{"apiVersion": "gateway.networking.k8s.io/v1beta1", "kind": "ReferenceGrant",
		"metadata": clustertest.Object{"namespace": "shop", "name": "old"}, "spec": clustertest.Object{"from": []any{}, "to": []any{}}})
	s.Serve(gatewayGroup, "gatewayclasses", "gateways", "httproutes", "grpcroutes")
	s.Serve("gateway.networking.k8s.io/v1beta1", "referencegrants", "httproutes")
	testenv.Eventually(t, 3*lookForMissing, "routes are read, and grants in their older version", func() bool {
		r := source.Routing()
		return len(r.HTTPRoutes) == 1 && len(r.Grants) == 1 && r.Grants[0].Name == "old" && r.Served["grpcroutes"] && source.Synced() == nil
	})
	s.Put(t, gateway+"/namespaces/shop/referencegrants", clustertest.Object{"apiVersion": gatewayGroup, "kind": "ReferenceGrant",
		"metadata": clustertest.Object{"namespace": "shop", "name": "new"}, "spec": clustertest.Object{"from": []any{}, "to": []any{}}})
	s.Serve(gatewayGroup)
	s.Delete(gateway+"/namespaces/shop/httproutes", "a")
	testenv.Eventually(t, lookForGone+10*time.Second, "it is gone", func() bool {
		r := source.Routing()
		return len(r.HTTPRoutes) == 0 && !r.Served["httproutes"] && source.Synced() == nil
	})
	spec := clustertest.Object{"parentRefs": []any{clustertest.Object{"group": "", "kind": "Service", "name": "cart"}}}
	for resource, kind := range map[string]string{"tlsroutes": "TLSRoute", "tcproutes": "TCPRoute"} {
		s.Put(t, gateway+"/namespaces/shop/"+resource, clustertest.Object{"apiVersion": gatewayGroup, "kind": kind, "metadata": clustertest.Object{"namespace": "shop", "name": kind}, "spec": spec})
	}
	s.Serve(gatewayGroup, allGatewayResources()...)
	testenv.Eventually(t, 3*lookForMissing, "it is back, in the newer version, with kinds that were not there before", func() bool {
		r := source.Routing()
		return r.Served["httproutes"] && len(r.Grants) == 1 && r.Grants[0].Name == "new" && len(r.TLSRoutes) == 1 && r.TLSRoutes[0].Name == "TLSRoute" && len(r.TCPRoutes) == 1
	})
}

// TestRoutesAreApartFromTheModel: a change of a route wakes those who route, and not those
// who compile the model; a status wakes nobody, and is seen.
func TestRoutesAreApartFromTheModel(t *testing.T) {
	s := clustertest.Start(t)
	s.Serve(gatewayGroup, allGatewayResources()...)
	path := gateway + "/namespaces/shop/httproutes"
	s.Put(t, path, httpRoute("a", "cart"))
	source := follow(t, s)
	testenv.Eventually(t, 10*time.Second, "the route is read", func() bool { return len(source.routeNames()) == 1 })
	model, routing := source.Changed(), source.RoutingChanged()
	s.Put(t, path, httpRoute("a", "cart-v2"))
	testenv.Eventually(t, 5*time.Second, "a change is told", func() bool { return closed(routing) })
	_, epoch := source.Objects()
	if version := source.Routing().HTTPRoutes[0].ResourceVersion; fmt.Sprint(epoch) != version {
		t.Errorf("epoch %d, and the route has version %s", epoch, version)
	}
	if note := source.Routing().HTTPRoutes[0].Annotations; note != nil {
		t.Errorf("annotations are kept: %v", note)
	}
	routing = source.RoutingChanged()
	seen := source.Routing().Seen
	changed := httpRoute("a", "cart-v2")
	changed["status"] = clustertest.Object{"parents": []any{clustertest.Object{"controllerName": "example.com/other", "parentRef": clustertest.Object{"name": "cart"}, "conditions": []any{}}}}
	s.Put(t, path, changed)
	testenv.Eventually(t, 5*time.Second, "the status is seen", func() bool {
		r := source.Routing()
		return r.Seen > seen && len(r.HTTPRoutes[0].Status.Parents) == 1
	})
	if closed(routing) || closed(model) {
		t.Errorf("woken by a status: routing %v; by a route: model %v", closed(routing), closed(model))
	}
	service := clustertest.Object{"apiVersion": "v1", "kind": "Service", "metadata": clustertest.Object{"namespace": "shop", "name": "cart"}, "spec": clustertest.Object{"clusterIP": "10.96.0.1"}}
	s.Put(t, core+"/namespaces/shop/services", service)
	testenv.Eventually(t, 5*time.Second, "a service wakes both", func() bool { return closed(routing) && closed(model) })
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
