package routes_test

import (
	"encoding/json"
	"path/filepath"
	"testing"

	"golang.org/x/tools/txtar"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/heddle-mesh/heddle/internal/kube/routes"
	"github.com/heddle-mesh/heddle/internal/mesh/keyed"
	"github.com/heddle-mesh/heddle/internal/mesh/route"
)

// FuzzCompile: whatever is in routes of each kind that a client wrote past every check of the API
// server, a table can be made of what comes out, every parent has its conditions, and what is accepted
// is in the table.
func FuzzCompile(f *testing.F) {
	objs := parse(f, []byte(`kind: Service
metadata: {namespace: shop, name: web}
spec: {ports: [{name: http, port: 80}, {name: admin, port: 8080}]}
---
kind: Service
metadata: {namespace: other, name: api}
spec: {ports: [{port: 80}]}`))
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		f.Fatalf("no seeds: %v", err)
	}
	for _, file := range files {
		archive, err := txtar.ParseFile(file)
		if err != nil {
			f.Fatal(err)
		}
		for _, part := range archive.Files {
			if part.Name == "want" {
				continue
			}
			seeds := parse(f, part.Data)
			for _, r := range seeds.HTTPRoutes {
				f.Add(mustJSON(f, r), []byte("{}"), []byte("{}"), []byte("{}"))
			}
			for _, r := range seeds.GRPCRoutes {
				f.Add([]byte("{}"), mustJSON(f, r), []byte("{}"), []byte("{}"))
			}
			for _, r := range seeds.TLSRoutes {
				f.Add([]byte("{}"), []byte("{}"), mustJSON(f, r), []byte("{}"))
			}
			for _, r := range seeds.TCPRoutes {
				f.Add([]byte("{}"), []byte("{}"), []byte("{}"), mustJSON(f, r))
			}
		}
	}
	f.Fuzz(func(t *testing.T, httpRoute, grpcRoute, tlsRoute, tcpRoute []byte) {
		h, g := &gatewayv1.HTTPRoute{}, &gatewayv1.GRPCRoute{}
		byName, bytes := &gatewayv1.TLSRoute{}, &gatewayv1.TCPRoute{}
		if json.Unmarshal(httpRoute, h) != nil || json.Unmarshal(grpcRoute, g) != nil || json.Unmarshal(tlsRoute, byName) != nil || json.Unmarshal(tcpRoute, bytes) != nil {
			return
		}
		input := *objs
		input.HTTPRoutes, input.GRPCRoutes = []*gatewayv1.HTTPRoute{h}, []*gatewayv1.GRPCRoute{g}
		input.TLSRoutes, input.TCPRoutes = []*gatewayv1.TLSRoute{byName}, []*gatewayv1.TCPRoute{bytes}
		c := routes.Compile(&input, nil)
		check(t, &input, c)
		// A second time, with what was good, it means the same.
		again := routes.Compile(&input, c.Good)
		if a, b := dump(t, c), dump(t, again); a != b {
			t.Errorf("with what was good before, it came to\n%s\nand not to\n%s", b, a)
		}
		// Broken, it goes on as it was.
		broken := h.DeepCopy()
		glob := gatewayv1.PathMatchType("Glob")
		broken.Spec.Rules = []gatewayv1.HTTPRouteRule{{Matches: []gatewayv1.HTTPRouteMatch{{Path: &gatewayv1.HTTPPathMatch{Type: &glob}}}}}
		input.HTTPRoutes = []*gatewayv1.HTTPRoute{broken}
		check(t, &input, routes.Compile(&input, c.Good))
	})
}

func mustJSON(t testing.TB, v any) []byte {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func check(t *testing.T, objs *routes.Objects, c *routes.Compiled) {
	t.Helper()
	table, err := route.NewTable(c.Routes)
	if err != nil {
		t.Fatalf("no table can be made of what was compiled: %v", err)
	}
	if _, err := route.NewSplits(table, nil, func() uint64 { return 1 }); err != nil {
		t.Fatalf("the shares of what was compiled cannot be had: %v", err)
	}
	parents := map[route.ID]map[keyed.Key]bool{}
	for _, r := range c.Routes {
		parents[r.ID] = map[keyed.Key]bool{}
		for _, p := range r.Parents {
			parents[r.ID][p.Service] = true
		}
	}
	for _, s := range c.Statuses {
		for _, p := range s.Parents {
			has := map[string]metav1.Condition{}
			for _, c := range p.Conditions {
				if has[c.Type] = c; c.Reason == "" || c.Message == "" || len(c.Message) > 4096 || c.Status == metav1.ConditionUnknown {
					t.Fatalf("condition of %s: %+v", s.ID, c)
				}
			}
			accepted := has["Accepted"]
			if accepted.Type == "" || has["ResolvedRefs"].Type == "" {
				t.Fatalf("the conditions of %s are %+v, want Accepted and ResolvedRefs", s.ID, p.Conditions)
			}
			service := keyed.Key{Namespace: s.ID.Namespace, Name: string(p.ParentRef.Name)}
			if p.ParentRef.Namespace != nil {
				service.Namespace = string(*p.ParentRef.Namespace)
			}
			if accepted.Status == metav1.ConditionTrue && !parents[s.ID][service] {
				t.Fatalf("%s is accepted at %s, and not in force there", s.ID, service)
			}
		}
	}
}
