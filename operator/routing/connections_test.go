package routing

import (
	"fmt"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/heddle-mesh/heddle/internal/kube/routes"
	"github.com/heddle-mesh/heddle/internal/mesh/route"
	"github.com/heddle-mesh/heddle/internal/testenv"
	"github.com/heddle-mesh/heddle/operator/clustertest"
)

// connectionRoute is one of shop/cart as it is written, of a kind.
func connectionRoute(kind, name string, spec clustertest.Object) clustertest.Object {
	spec["parentRefs"] = []any{clustertest.Object{"group": "", "kind": "Service", "name": "cart", "port": 80}}
	return clustertest.Object{"apiVersion": "gateway.networking.k8s.io/v1", "kind": kind, "metadata": clustertest.Object{"namespace": "shop", "name": name, "uid": kind + name}, "spec": spec}
}

func toCart() []any {
	return []any{clustertest.Object{"backendRefs": []any{clustertest.Object{"name": "cart", "port": 80}}}}
}

// TestConnectionStatuses: routes about connections are watched from when their definitions are there, have statuses and events
// as others do, and are kept as they were good.
func TestConnectionStatuses(t *testing.T) {
	w, log := newWorld(t), &testenv.Log{} // without the definitions of the two kinds
	w.lead(t, log)
	if served := w.source.Routing().Served; served["tlsroutes"] || served["tcproutes"] {
		t.Fatalf("served: %v", served)
	}
	tls, tcp := gateway+"/namespaces/shop/tlsroutes", gateway+"/namespaces/shop/tcproutes"
	w.Put(t, tls, connectionRoute("TLSRoute", "names", clustertest.Object{"hostnames": []any{"cart.example.com"}, "rules": toCart()}))
	w.Put(t, tcp, connectionRoute("TCPRoute", "bytes", clustertest.Object{"rules": toCart()}))
	w.Serve("gateway.networking.k8s.io/v1", "gatewayclasses", "gateways", "httproutes", "grpcroutes", "tlsroutes", "tcproutes", "referencegrants")
	await := func(path, name, kind, want string) {
		t.Helper()
		testenv.Eventually(t, 30*time.Second, name+": "+kind+" is "+want, func() bool { return conditionAt(w.Get(path, name), kind) == want })
	}
	await(tls, "names", "Accepted", "True Accepted 1")
	await(tls, "names", "ResolvedRefs", "True ResolvedRefs 1")
	await(tcp, "bytes", "Accepted", "False Conflicted 1") // a TLSRoute goes before it
	w.Delete(tls, "names")
	await(tcp, "bytes", "Accepted", "True Accepted 1")
	good, err := w.store.Load(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, 10*time.Second, "it is kept", func() bool {
		good, err = w.store.Load(t.Context())
		return err == nil && len(good) == 1
	})
	// What is wrong with it is refused, and what was good goes on.
	bad := connectionRoute("TCPRoute", "bytes", clustertest.Object{"rules": append(toCart(), toCart()...)})
	w.Put(t, tcp, bad)
	await(tcp, "bytes", "Accepted", "False UnsupportedValue 2")
	compiled, _ := w.compiled()
	if len(compiled.Routes) != 1 || compiled.Routes[0].Kind != route.TCP || len(compiled.Routes[0].Rules) != 1 {
		t.Errorf("in force: %+v", compiled.Routes)
	}
	testenv.Eventually(t, 10*time.Second, "there is an event", func() bool {
		for request := range w.Requests() {
			if strings.HasPrefix(request, "create ") && strings.Contains(request, "events") {
				return true
			}
		}
		return false
	})
}

// conditionAt is "STATUS REASON GENERATION" of one of our conditions of an object.
func conditionAt(o clustertest.Object, kind string) string {
	status, _ := o["status"].(map[string]any)
	parents, _ := status["parents"].([]any)
	for _, p := range parents {
		for _, c := range p.(map[string]any)["conditions"].([]any) {
			if c := c.(map[string]any); c["type"] == kind {
				return fmt.Sprint(c["status"], " ", c["reason"], " ", c["observedGeneration"])
			}
		}
	}
	return ""
}

// TestConnectionRoutesAreKept: those of every kind come back as they were, each under its own name.
func TestConnectionRoutesAreKept(t *testing.T) {
	s := clustertest.Start(t)
	store, _ := newStore(t, s)
	meta := metav1.ObjectMeta{Namespace: "shop", Name: "same", UID: "u", Generation: 4}
	good := routes.Good{
		idOf(route.HTTP, &meta): {HTTP: &gatewayv1.HTTPRoute{ObjectMeta: meta}},
		idOf(route.GRPC, &meta): {GRPC: &gatewayv1.GRPCRoute{ObjectMeta: meta}},
		idOf(route.TLS, &meta):  {TLS: &gatewayv1.TLSRoute{ObjectMeta: meta, Spec: gatewayv1.TLSRouteSpec{Hostnames: []gatewayv1.Hostname{"a.example.com"}}}},
		idOf(route.TCP, &meta):  {TCP: &gatewayv1.TCPRoute{ObjectMeta: meta, Spec: gatewayv1.TCPRouteSpec{Rules: make([]gatewayv1.TCPRouteRule, 1)}}},
	}
	if err := store.Save(t.Context(), good); err != nil {
		t.Fatal(err)
	}
	back, err := store.Load(t.Context())
	if err != nil || len(back) != 4 {
		t.Fatalf("%d are back: %v", len(back), err)
	}
	if tls, tcp := back[idOf(route.TLS, &meta)].TLS, back[idOf(route.TCP, &meta)].TCP; tls == nil || tcp == nil || tls.Spec.Hostnames[0] != "a.example.com" || len(tcp.Spec.Rules) != 1 || tcp.Generation != 4 {
		t.Errorf("%+v, %+v", tls, tcp)
	}
	for _, g := range []routes.GoodRoute{{}, {TLS: good[idOf(route.TLS, &meta)].TLS, TCP: good[idOf(route.TCP, &meta)].TCP}} {
		if id, ok := identify(g); ok {
			t.Errorf("%+v is taken for %s", g, id)
		}
	}
}
