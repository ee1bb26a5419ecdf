package kube

import (
	"bytes"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"

	"github.com/heddle-mesh/heddle/internal/mesh"
)

// clusterOf reads objects as a cluster has them: what is written in YAML, and pods
// beside.
func clusterOf(t testing.TB, yaml string, pods ...*Pod) *Objects {
	t.Helper()
	const head = `apiVersion: heddle.dev/v1alpha1
kind: Mesh
metadata: {name: default}
spec: {trustDomain: example.org, clusterRanges: ["10.0.0.0/8"]}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {heddle.dev/mesh: enabled}}
---
apiVersion: v1
kind: Namespace
metadata: {name: plain}
---
`
	objs, err := LoadFolder(fstest.MapFS{"a.yaml": {Data: []byte(head + yaml)}})
	if err != nil {
		t.Fatal(err)
	}
	objs.Pods, objs.Zones = pods, map[string]string{"n1": "a"}
	return objs
}

func podOf(name, address string, change ...func(*Pod)) *Pod {
	p := &Pod{Namespace: "shop", Name: name, UID: "uid-" + name, Node: "n1", ServiceAccount: name, Labels: map[string]string{"app": name}, Ready: true,
		Ports: []NamedPort{{"http", 8080}}}
	if address != "" {
		p.Addresses = []netip.Addr{netip.MustParseAddr(address)}
	}
	for _, c := range change {
		c(p)
	}
	return p
}

// compileEach also holds that whatever is left makes a View.
func compileEach(t testing.TB, objs *Objects) *Compiled {
	t.Helper()
	compiled, err := CompileEach(objs)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := compiled.View("r"); err != nil {
		t.Fatalf("compiled, but makes no view: %v", err)
	}
	return compiled
}

func problemLines(problems []*Problem) string {
	var b strings.Builder
	for _, p := range problems {
		fmt.Fprintln(&b, p)
	}
	return b.String()
}

func TestWhichPodsAreEnrolled(t *testing.T) {
	label := func(value string) func(*Pod) {
		return func(p *Pod) { p.Labels = map[string]string{"heddle.dev/mesh": value} }
	}
	in := func(namespace string) func(*Pod) { return func(p *Pod) { p.Namespace = namespace } }
	c := compileEach(t, clusterOf(t, "", podOf("by-namespace", "10.0.0.1"), podOf("own-label", "10.0.0.2", in("plain"), label("enabled")),
		podOf("opted-out", "10.0.0.3", label("disabled")), podOf("plain", "10.0.0.4", in("plain")), podOf("misspelt", "10.0.0.5", label("enbled")),
		podOf("unknown-namespace", "10.0.0.6", in("nowhere")), podOf("host", "192.0.2.1", func(p *Pod) { p.HostNetwork = true }),
		podOf("host-opted-out", "192.0.2.1", func(p *Pod) { p.HostNetwork = true }, label("disabled")),
		podOf("setting-up", ""), podOf("setting-up-plain", "", in("plain")), podOf("unscheduled", "", func(p *Pod) { p.Node = "" }),
		podOf("finished", "10.0.0.1", func(p *Pod) { p.Finished = true })))
	got := map[string]string{}
	for _, w := range c.Workloads {
		got[w.Name] = fmt.Sprintf("enrolled=%v ready=%v addresses=%d zone=%s", w.Enrolled, w.Ready, len(w.Addresses), w.Zone)
	}
	want := map[string]string{
		"by-namespace": "enrolled=true ready=true addresses=1 zone=a", "own-label": "enrolled=true ready=true addresses=1 zone=a",
		"opted-out": "enrolled=false ready=true addresses=1 zone=a", "plain": "enrolled=false ready=true addresses=1 zone=a",
		// A mistake in a pod's label leaves what its namespace says.
		"misspelt": "enrolled=true ready=true addresses=1 zone=a", "setting-up": "enrolled=true ready=false addresses=0 zone=a",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	refused := problemLines(c.Refused)
	for _, says := range []string{"Pod shop/host: spec.hostNetwork: is set", `Pod shop/misspelt: metadata.labels[heddle.dev/mesh]: "enbled"`} {
		if !strings.Contains(refused, says) {
			t.Errorf("%q is not among what is refused:\n%s", says, refused)
		}
	}
	if len(c.Refused) != 2 {
		t.Errorf("refused:\n%s", refused)
	}
}

// An address that is used again belongs to the pod that lives and is newer.
func TestAddressesThatAreUsedAgain(t *testing.T) {
	old := podOf("old", "10.0.0.1", func(p *Pod) { p.Created, p.Terminating = 9, true })
	older := podOf("older", "10.0.0.2", func(p *Pod) { p.Created = 1 })
	c := compileEach(t, clusterOf(t, "", old, older, podOf("new", "10.0.0.1", func(p *Pod) { p.Created = 5 }), podOf("newer", "10.0.0.2", func(p *Pod) { p.Created = 2 }),
		podOf("outside", "192.0.2.7")))
	var names []string
	for _, w := range c.Workloads {
		names = append(names, w.Name)
	}
	if diff := cmp.Diff([]string{"new", "newer"}, names); diff != "" {
		t.Error(diff)
	}
	if got := problemLines(c.Refused); !strings.Contains(got, "Pod shop/outside: status.podIPs: address 192.0.2.7 is outside the mesh's cluster ranges") || len(c.Refused) != 3 {
		t.Errorf("refused:\n%s", got)
	}
}

func TestRefusedRulesLetNobodyIn(t *testing.T) {
	var yaml strings.Builder
	for _, action := range []string{"ALLOW", "AUDIT", "DENY"} {
		fmt.Fprintf(&yaml, `apiVersion: heddle.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {namespace: shop, name: %s}
spec: {action: %s, rules: [{from: [{ipBlocks: ["10.0.0.1/8"]}]}, {from: [{namespaces: [shop]}]}]}
---
`, strings.ToLower(action), action)
	}
	c := compileEach(t, clusterOf(t, yaml.String()))
	rules := map[string]string{}
	for _, p := range c.Policies {
		rules[p.Name] = fmt.Sprintf("%+v", p.Rules)
	}
	good := `{From:[{Identities:[] NotIdentities:[] Namespaces:[shop] NotNamespaces:[] IPBlocks:[] NotIPBlocks:[]}] To:[]}`
	want := map[string]string{"allow": "[" + good + "]", "deny": "[{From:[] To:[]} " + good + "]", "audit": "[" + good + "]"}
	if diff := cmp.Diff(want, rules); diff != "" {
		t.Error(diff)
	}
	if len(c.Refused) != 3 || c.Refused[0].Ref != (Ref{Kind: "AuthorizationPolicy", Namespace: "shop", Name: "allow"}) {
		t.Errorf("refused:\n%s", problemLines(c.Refused))
	}
}

func TestServicesOfACluster(t *testing.T) {
	const yaml = `apiVersion: v1
kind: Service
metadata: {namespace: shop, name: web}
spec: {selector: {app: web}, clusterIP: 10.96.0.1, sessionAffinity: ClientIP, trafficDistribution: PreferSameZone, ports: [{port: 80, targetPort: http}]}
---
apiVersion: v1
kind: Service
metadata: {namespace: shop, name: headless}
spec: {selector: {app: web}, clusterIP: None, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {namespace: shop, name: api-server}
spec: {clusterIP: 10.96.0.2, ports: [{name: https, port: 443, targetPort: 6443}]}
---
apiVersion: v1
kind: Service
metadata: {namespace: shop, name: elsewhere}
spec: {type: ExternalName, externalName: example.com}
---
apiVersion: v1
kind: Service
metadata: {namespace: shop, name: on-nodes}
spec: {selector: {app: exporter}, clusterIP: 10.96.0.3, ports: [{port: 9100}]}
---
apiVersion: v1
kind: Service
metadata: {namespace: shop, name: no-address-yet}
spec: {selector: {app: web}, ports: [{port: 80}]}
`
	web := func(n int, port uint16) *Pod {
		return podOf(fmt.Sprintf("web-%d", n), fmt.Sprintf("10.0.0.%d", n), func(p *Pod) { p.Labels, p.Ports = map[string]string{"app": "web"}, []NamedPort{{"http", port}} })
	}
	host := podOf("exporter", "192.0.2.1", func(p *Pod) { p.HostNetwork = true; p.Namespace = "shop" })
	objs := clusterOf(t, yaml, web(1, 8080), web(2, 8080), web(3, 9090), host)
	objs.Slices = []*EndpointSlice{{Namespace: "shop", Name: "api-server", Service: "api-server", Ports: []NamedPort{{"https", 16443}},
		Ready: []netip.Addr{netip.MustParseAddr("192.0.2.9"), netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.96.0.1")}}}
	c := compileEach(t, objs)
	var b bytes.Buffer
	for _, s := range c.Services {
		fmt.Fprintf(&b, "%s %v %v %v prefer=%d sticky=%v\n", s.Name, s.Addresses, s.Ports, s.Endpoints, s.Prefer, s.Sticky)
	}
	want := `api-server [10.96.0.2] [{https 443 16443}] [EXTERNAL/192.0.2.9 shop/web-1] prefer=0 sticky=false
headless [] [{ 80 8080}] [shop/web-1 shop/web-2 shop/web-3] prefer=0 sticky=false
no-address-yet [] [{ 80 80}] [shop/web-1 shop/web-2 shop/web-3] prefer=0 sticky=false
on-nodes [10.96.0.3] [{ 9100 9100}] [EXTERNAL/192.0.2.1] prefer=0 sticky=false
web [10.96.0.1] [{ 80 8080}] [shop/web-1 shop/web-2] prefer=1 sticky=true
`
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Error(diff)
	}
	// A pod in the mesh reaches the API server, in plaintext.
	view, err := c.View("r")
	if err != nil {
		t.Fatal(err)
	}
	src, _ := view.Workload(mesh.Key{Namespace: "shop", Name: "web-2"})
	route := view.Route(src, netip.MustParseAddrPort("10.96.0.2:443"))
	if route.Kind != mesh.RouteWorkload || len(route.Candidates) != 2 || route.Candidates[0].Enrolled || route.Port != 16443 {
		t.Errorf("route to the API server %+v", route)
	}
}
