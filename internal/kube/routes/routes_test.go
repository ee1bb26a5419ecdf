package routes_test

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/yaml"

	"github.com/heddle-mesh/heddle/internal/kube/routes"
	"github.com/heddle-mesh/heddle/internal/mesh/route"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// update rewrites the "want" files: go test ./internal/kube/routes -update
var update = flag.Bool("update", false, "rewrite golden files")

// TestGolden compiles the objects of every archive: "before.yaml" first, if there is one,
// for what was good before, then "objects.yaml". "want" has the routes and the statuses
// that come out.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no golden files: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) { golden(t, file) })
	}
}

func golden(t *testing.T, file string) {
	archive, err := txtar.ParseFile(file)
	if err != nil {
		t.Fatal(err)
	}
	parts := map[string][]byte{}
	for _, f := range archive.Files {
		parts[f.Name] = f.Data
	}
	var good routes.Good
	if before, ok := parts["before.yaml"]; ok {
		good = routes.Compile(parse(t, before), nil).Good
	}
	objs := parse(t, parts["objects.yaml"])
	compiled := routes.Compile(objs, good)
	reversed := &routes.Objects{HTTPRoutes: slices.Clone(objs.HTTPRoutes), GRPCRoutes: slices.Clone(objs.GRPCRoutes),
		TLSRoutes: slices.Clone(objs.TLSRoutes), TCPRoutes: slices.Clone(objs.TCPRoutes), Services: slices.Clone(objs.Services), Grants: slices.Clone(objs.Grants)}
	slices.Reverse(reversed.HTTPRoutes)
	slices.Reverse(reversed.GRPCRoutes)
	slices.Reverse(reversed.TLSRoutes)
	slices.Reverse(reversed.TCPRoutes)
	slices.Reverse(reversed.Services)
	slices.Reverse(reversed.Grants)
	if diff := cmp.Diff(compiled, routes.Compile(reversed, good)); diff != "" {
		t.Errorf("the order of the objects matters:\n%s", diff)
	}
	got := dump(t, compiled)
	if *update {
		archive.Files = slices.DeleteFunc(archive.Files, func(f txtar.File) bool { return f.Name == "want" })
		archive.Files = append(archive.Files, txtar.File{Name: "want", Data: []byte(got)})
		if err := os.WriteFile(file, txtar.Format(archive), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(string(parts["want"]), got); diff != "" {
		t.Errorf("-want +got (go test ./internal/kube/routes -update accepts it):\n%s", diff)
	}
}

func parse(t testing.TB, data []byte) *routes.Objects {
	t.Helper()
	objs := &routes.Objects{}
	for doc := range strings.SplitSeq(string(data), "\n---\n") {
		var kind metav1.TypeMeta
		if err := yaml.Unmarshal([]byte(doc), &kind); err != nil {
			t.Fatal(err)
		}
		read := func(into any) {
			if err := yaml.UnmarshalStrict([]byte(doc), into); err != nil {
				t.Fatal(err)
			}
		}
		switch kind.Kind {
		case "Service":
			objs.Services = append(objs.Services, &corev1.Service{})
			read(objs.Services[len(objs.Services)-1])
		case "HTTPRoute":
			objs.HTTPRoutes = append(objs.HTTPRoutes, &gatewayv1.HTTPRoute{})
			read(objs.HTTPRoutes[len(objs.HTTPRoutes)-1])
		case "GRPCRoute":
			objs.GRPCRoutes = append(objs.GRPCRoutes, &gatewayv1.GRPCRoute{})
			read(objs.GRPCRoutes[len(objs.GRPCRoutes)-1])
		case "TLSRoute":
			objs.TLSRoutes = append(objs.TLSRoutes, &gatewayv1.TLSRoute{})
			read(objs.TLSRoutes[len(objs.TLSRoutes)-1])
		case "TCPRoute":
			objs.TCPRoutes = append(objs.TCPRoutes, &gatewayv1.TCPRoute{})
			read(objs.TCPRoutes[len(objs.TCPRoutes)-1])
		case "ReferenceGrant":
			objs.Grants = append(objs.Grants, &gatewayv1.ReferenceGrant{})
			read(objs.Grants[len(objs.Grants)-1])
		default:
			t.Fatalf("no kind %q here", kind.Kind)
		}
	}
	return objs
}

// dump writes what came out, one line for each thing.
func dump(t *testing.T, c *routes.Compiled) string {
	var b strings.Builder
	for _, r := range c.Routes {
		fmt.Fprintf(&b, "route %s parents=%v", r.ID, r.Parents)
		if len(r.Hostnames) > 0 {
			fmt.Fprintf(&b, " hostnames=%v", r.Hostnames)
		}
		fmt.Fprintln(&b)
		for _, rule := range r.Rules {
			dumpRule(&b, &rule)
		}
	}
	for _, s := range c.Statuses {
		for _, p := range s.Parents {
			ref := string(p.ParentRef.Name)
			if p.ParentRef.Namespace != nil {
				ref = string(*p.ParentRef.Namespace) + "/" + ref
			}
			if p.ParentRef.Port != nil {
				ref += fmt.Sprintf(":%d", *p.ParentRef.Port)
			}
			if p.ControllerName != routes.ControllerName {
				t.Errorf("the status of %s is that of controller %q", s.ID, p.ControllerName)
			}
			fmt.Fprintf(&b, "status %s parent=%s\n", s.ID, ref)
			for _, c := range p.Conditions {
				fmt.Fprintf(&b, "  %s=%s %s generation=%d: %s\n", c.Type, c.Status, c.Reason, c.ObservedGeneration, c.Message)
			}
		}
	}
	for _, s := range c.Statuses {
		if good, ok := c.Good[s.ID]; ok {
			generation := int64(0)
			switch {
			case good.HTTP != nil:
				generation = good.HTTP.Generation
			case good.GRPC != nil:
				generation = good.GRPC.Generation
			case good.TLS != nil:
				generation = good.TLS.Generation
			default:
				generation = good.TCP.Generation
			}
			fmt.Fprintf(&b, "good %s generation=%d\n", s.ID, generation)
		}
	}
	if _, err := route.NewTable(c.Routes); err != nil {
		t.Errorf("no table can be made of what was compiled: %v", err)
	}
	return b.String()
}

func dumpRule(b *strings.Builder, r *route.Rule) {
	fmt.Fprintf(b, "  rule %s", r.Name)
	if r.RequestTimeout > 0 || r.BackendTimeout > 0 {
		fmt.Fprintf(b, " timeouts=%v,%v", r.RequestTimeout, r.BackendTimeout)
	}
	if r.Retry != nil {
		fmt.Fprintf(b, " retry=%+v", *r.Retry)
	}
	if r.Session != nil {
		fmt.Fprintf(b, " session=%+v", *r.Session)
	}
	fmt.Fprintln(b)
	for _, m := range r.Matches {
		fmt.Fprintf(b, "    match %+v\n", m)
	}
	dumpFilters(b, "    ", r.Filters)
	for _, to := range r.Backends {
		fmt.Fprintf(b, "    backend %s:%d weight=%d broken=%q\n", to.Service, to.Port, to.Weight, to.Broken)
		dumpFilters(b, "      ", to.Filters)
	}
}

func dumpFilters(b *strings.Builder, indent string, filters []route.Filter) {
	path := func(p *route.PathChange) string {
		if p == nil {
			return "as it is"
		}
		return fmt.Sprintf("%+v", *p)
	}
	for _, f := range filters {
		fmt.Fprint(b, indent)
		switch {
		case f.RequestHeaders != nil:
			fmt.Fprintf(b, "request headers %+v\n", *f.RequestHeaders)
		case f.ResponseHeaders != nil:
			fmt.Fprintf(b, "response headers %+v\n", *f.ResponseHeaders)
		case f.Redirect != nil:
			fmt.Fprintf(b, "redirect %d scheme=%q hostname=%q port=%d path=%s\n", f.Redirect.Status, f.Redirect.Scheme, f.Redirect.Hostname, f.Redirect.Port, path(f.Redirect.Path))
		case f.Rewrite != nil:
			fmt.Fprintf(b, "rewrite hostname=%q path=%s\n", f.Rewrite.Hostname, path(f.Rewrite.Path))
		case f.Mirror != nil:
			fmt.Fprintf(b, "mirror %s:%d %d/%d broken=%q\n", f.Mirror.Service, f.Mirror.Port, f.Mirror.Numerator, f.Mirror.Denominator, f.Mirror.Broken)
		case f.CORS != nil:
			fmt.Fprintf(b, "cors %+v\n", *f.CORS)
		default:
			fmt.Fprintf(b, "broken %q\n", f.Broken)
		}
	}
}

// TestDocumentedExample: what docs/routing.md shows is accepted, and goes where it says.
func TestDocumentedExample(t *testing.T) {
	page, err := os.ReadFile("../../../docs/routing.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(page), "```yaml\n")
	example, _, ok := strings.Cut(rest, "```")
	if !ok {
		t.Fatal("docs/routing.md has no example")
	}
	c := routes.Compile(parse(t, []byte(example+`
---
kind: Service
metadata: {namespace: shop, name: cart}
spec: {ports: [{port: 80}]}
---
kind: Service
metadata: {namespace: shop, name: cart-v2}
spec: {ports: [{port: 80}]}`)), nil)
	for _, condition := range c.Statuses[0].Parents[0].Conditions {
		if condition.Status != metav1.ConditionTrue {
			t.Errorf("%s is %s: %s", condition.Type, condition.Status, condition.Message)
		}
	}
	table, err := route.NewTable(c.Routes)
	if err != nil {
		t.Fatal(err)
	}
	splits, err := route.NewSplits(table, nil, func() uint64 { return 0 })
	if err != nil {
		t.Fatal(err)
	}
	counts := map[string]int{}
	for i := range 1100 {
		r := &route.Request{To: c.Routes[0].Parents[0], Path: "/"}
		if i < 100 {
			r.Headers = []route.Header{{Name: "x-canary", Value: "1"}}
		}
		b, _ := splits.Backend(table.Match(r).Target)
		counts[b.Service.Name]++
	}
	if counts["cart-v2"] != 100+10 || counts["cart"] != 990 {
		t.Errorf("requests go to %v, want 110 of 1100 to cart-v2: 100 that ask for it, and 1%% of 1000", counts)
	}
}

// TestDocumentedConnections: what docs/routing.md shows of connections is accepted, and goes where it says.
func TestDocumentedConnections(t *testing.T) {
	page, err := os.ReadFile("../../../docs/routing.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := strings.Split(string(page), "```yaml\n")
	if len(blocks) != 3 {
		t.Fatalf("docs/routing.md has %d examples, want 2", len(blocks)-1)
	}
	example, _, _ := strings.Cut(blocks[2], "```")
	for name, port := range map[string]string{"db": "5432", "db-eu": "5432", "queue": "5672", "queue-v2": "5672"} {
		example += "\n---\nkind: Service\nmetadata: {namespace: shop, name: " + name + "}\nspec: {ports: [{port: " + port + "}]}"
	}
	c := routes.Compile(parse(t, []byte(example)), nil)
	for _, s := range c.Statuses {
		for _, condition := range s.Parents[0].Conditions {
			if condition.Status != metav1.ConditionTrue {
				t.Errorf("%s: %s is %s: %s", s.ID, condition.Type, condition.Status, condition.Message)
			}
		}
	}
	table, err := route.NewTable(c.Routes)
	if err != nil || len(c.Routes) != 2 {
		t.Fatalf("%d routes, %v", len(c.Routes), err)
	}
	splits, err := route.NewSplits(table, nil, func() uint64 { return 0 })
	if err != nil {
		t.Fatal(err)
	}
	counts := map[string]int{}
	for range 100 {
		for _, r := range c.Routes {
			b, _ := splits.Backend(table.Connect(r.Parents[0], "", "eu.db.example.com").Target)
			counts[b.Service.Name]++
		}
	}
	if counts["db-eu"] != 100 || counts["queue"] != 99 || counts["queue-v2"] != 1 {
		t.Errorf("connections go to %v", counts)
	}
}

// TestMerge: other controllers' statuses are theirs.
func TestMerge(t *testing.T) {
	status := func(controller gatewayv1.GatewayController, name string) gatewayv1.RouteParentStatus {
		return gatewayv1.RouteParentStatus{ControllerName: controller, ParentRef: gatewayv1.ParentReference{Name: gatewayv1.ObjectName(name)}}
	}
	have := []gatewayv1.RouteParentStatus{status(routes.ControllerName, "old"), status("example.com/other", "gateway")}
	got := routes.Merge(have, []gatewayv1.RouteParentStatus{status(routes.ControllerName, "new")})
	want := []gatewayv1.RouteParentStatus{status("example.com/other", "gateway"), status(routes.ControllerName, "new")}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if n := len(routes.Merge(nil, make([]gatewayv1.RouteParentStatus, 40))); n != 32 {
		t.Errorf("a status has %d parents, want no more than the 32 of the API", n)
	}
}
