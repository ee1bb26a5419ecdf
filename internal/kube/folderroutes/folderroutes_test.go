package folderroutes

import (
	"fmt"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/heddle-mesh/heddle/internal/kube"
	"github.com/heddle-mesh/heddle/internal/kube/problem"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

const services = `apiVersion: v1
kind: Service
metadata: {namespace: shop, name: cart}
spec: {clusterIP: 10.1.0.1, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {namespace: bank, name: pay}
spec: {clusterIP: 10.1.0.2, ports: [{port: 80}]}
`

const httpRoute = `apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {namespace: shop, name: cart}
spec:
  parentRefs: [{group: "", kind: Service, name: cart}]
  rules:
  - matches: [{path: {type: PathPrefix, value: /a}}]
    backendRefs: [{name: cart, port: 80}]
`

const grant = `---
apiVersion: gateway.networking.k8s.io/v1
kind: ReferenceGrant
metadata: {namespace: bank, name: shop}
spec:
  from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: shop}]
  to: [{group: "", kind: Service}]
`

const grpcRoute = `---
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {namespace: bank, name: pay}
spec:
  parentRefs: [{group: "", kind: Service, name: pay}]
  rules:
  - matches: [{method: {service: pay.Pay}}]
    backendRefs: [{name: pay, port: 80}]
`

func lines(problems []*problem.Problem) string {
	var all []string
	for _, p := range problems {
		all = append(all, p.Error())
	}
	return strings.Join(all, "\n")
}

func TestCompile(t *testing.T) {
	elsewhere := strings.Replace(httpRoute, "[{name: cart, port: 80}]", "[{name: pay, namespace: bank, port: 80}]", 1)
	for name, c := range map[string]struct {
		text            string
		routes          int
		wrong, warnedOf string
	}{
		"good":                     {httpRoute + grpcRoute, 2, "", ""},
		"granted":                  {elsewhere + grant, 1, "", ""},
		"not granted":              {elsewhere, 1, "", "r.yaml:8: HTTPRoute shop/cart: spec.rules[0].backendRefs[0]: no ReferenceGrant in namespace bank"},
		"a backend that is not":    {strings.Replace(httpRoute, "{name: cart, port: 80}]", "{name: kart, port: 80}]", 1), 1, "", "spec.rules[0].backendRefs[0]: there is no Service shop/kart"},
		"a path that is none":      {strings.Replace(httpRoute, "value: /a", "value: //", 1), 0, "r.yaml:7: HTTPRoute shop/cart: spec.rules[0].matches[0].path.value: ", ""},
		"one bad rule of two":      {httpRoute + "  - matches: [{path: {type: PathPrefix, value: //}}]\n", 0, "r.yaml:9: HTTPRoute shop/cart: spec.rules[1].matches[0].path.value: ", ""},
		"a parent that is not":     {strings.Replace(httpRoute, "kind: Service, name: cart", "kind: Service, name: kart", 1), 0, "r.yaml:1: HTTPRoute shop/cart: there is no Service shop/kart; create it", ""},
		"a Gateway for its parent": {strings.Replace(httpRoute, `group: "", kind: Service, `, "", 1), 0, "", "r.yaml:5: HTTPRoute shop/cart: spec.parentRefs: is attached to no Service"},
	} {
		t.Run(name, func(t *testing.T) {
			objs, err := kube.LoadFolder(fstest.MapFS{"s.yaml": {Data: []byte(services)}, "r.yaml": {Data: []byte(c.text)}})
			if err != nil {
				t.Fatal(err)
			}
			compiled, warnings, err := Compile(objs)
			if got := fmt.Sprint(err); (err == nil) != (c.wrong == "") || !strings.Contains(got, c.wrong) || strings.Contains(got, "Dropped") {
				t.Fatalf("%v, want %q", err, c.wrong)
			}
			if got := lines(warnings); (got == "") != (c.warnedOf == "") || !strings.Contains(got, c.warnedOf) {
				t.Errorf("warned of %q, want %q", got, c.warnedOf)
			}
			if err == nil && len(compiled.Routes) != c.routes {
				t.Errorf("%d routes, want %d", len(compiled.Routes), c.routes)
			}
		})
	}
}
