package kube

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"

	"github.com/heddle-mesh/heddle/api/v1alpha1"
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
		// Else heddle-cni would not let it start.
		"setting-up-plain": "enrolled=false ready=false addresses=0 zone=a",
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

// TestALabelOnTheClustersOwnNamespace, as `kubectl label namespaces --all` puts it, enrols nobody there but who has a label of its own.
func TestALabelOnTheClustersOwnNamespace(t *testing.T) {
	in := func(p *Pod) { p.Namespace = "kube-system" }
	c := compileEach(t, clusterOf(t, "apiVersion: v1\nkind: Namespace\nmetadata: {name: kube-system, labels: {heddle.dev/mesh: enabled}}\n",
		podOf("coredns", "10.0.0.1", in), podOf("asked-for", "10.0.0.2", in, func(p *Pod) { p.Labels = map[string]string{"heddle.dev/mesh": "enabled"} })))
	got := map[string]bool{}
	for _, w := range c.Workloads {
		got[w.Name] = w.Enrolled
	}
	if diff := cmp.Diff(map[string]bool{"coredns": false, "asked-for": true}, got); diff != "" {
		t.Error(diff)
	}
	if refused := problemLines(c.Refused); len(c.Refused) != 1 || !strings.Contains(refused, "Namespace kube-system: metadata.labels[heddle.dev/mesh]: the cluster, its DNS among others, cannot start without") {
		t.Errorf("refused:\n%s", refused)
	}
}

// TestStaticPodsAreToldByTheirOwnUID: an agent compares it with what kubelet and the
// runtime say.
func TestStaticPodsAreToldByTheirOwnUID(t *testing.T) {
	c := compileEach(t, clusterOf(t, "", podOf("static", "", func(p *Pod) { p.StaticUID = "hash" }), podOf("web", "10.0.0.1")))
	if len(c.Workloads) != 2 || c.Workloads[0].UID != "hash" || c.Workloads[1].UID != "uid-web" {
		t.Errorf("%+v", c.Workloads)
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

// TestForeignWorkloadsOfACluster: nobody in the cluster takes the address of a declared
// workload of another trust domain, nor leads to it by another way.
func TestForeignWorkloadsOfACluster(t *testing.T) {
	objs := clusterOf(t, `{apiVersion: v1, kind: Service, metadata: {namespace: shop, name: taken}, spec: {selector: {app: web}, clusterIP: 10.200.0.2, ports: [{port: 80}]}}
---
{apiVersion: v1, kind: Service, metadata: {namespace: shop, name: outside}, spec: {selector: {app: web}, clusterIP: 10.96.0.1, externalIPs: [10.200.0.1], ports: [{port: 80}]}}
---
{apiVersion: v1, kind: Service, metadata: {namespace: shop, name: written}, spec: {clusterIP: 10.96.0.2, ports: [{port: 80}]}}
`, podOf("web", "10.0.0.1"), podOf("thief", "10.200.0.1"))
	objs.Slices = []*EndpointSlice{{Namespace: "shop", Name: "written-1", Service: "written", Ports: []NamedPort{{"", 80}}, Endpoints: endpointsAt("10.200.0.1", "10.0.0.9")}}
	objs.Meshes[0].Value.Spec.Federation = []v1alpha1.FederatedDomain{{TrustDomain: "other.org", Endpoint: "https://other.org/", Profile: v1alpha1.FederationWeb,
		Workloads: []v1alpha1.FederatedWorkload{{Identity: "spiffe://other.org/b", Addresses: []string{"10.200.0.2", "10.200.0.1"}}, {Identity: "spiffe://other.org/a", Addresses: []string{"10.200.0.3"}}}}}
	c := compileEach(t, objs)
	got := problemLines(c.Refused)
	for _, want := range []string{"Pod shop/thief: status.podIPs: address 10.200.0.1 is used twice: it is also that of Mesh default", "Service shop/taken: spec.clusterIP", "Service shop/outside: spec.externalIPs"} {
		if !strings.Contains(got, want) {
			t.Errorf("refused:\n%s\nwant %s", got, want)
		}
	}
	view, err := c.View("r")
	if err != nil {
		t.Fatal(err)
	}
	workloads := view.Settings().Federation[0].Workloads
	if len(workloads) != 2 || workloads[0].Identity.Path() != "/a" || workloads[1].Addresses[0] != netip.MustParseAddr("10.200.0.1") {
		t.Errorf("declared are %v", workloads)
	}
	if r := view.Route(nil, netip.MustParseAddrPort("10.200.0.1:80")); r.Kind != mesh.RouteWorkload || r.Service != nil || r.Candidates[0].Identity.String() != "spiffe://other.org/b" {
		t.Errorf("routed to %+v", r)
	}
	written, _ := view.Service(mesh.Key{Namespace: "shop", Name: "written"})
	if written == nil || len(written.Endpoints) != 1 || written.Endpoints[0].Name != "10.0.0.9" {
		t.Errorf("written endpoints lead to %+v", written)
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
	// What matches nothing keeps the place of the first, as flows and explain name rules by their numbers.
	nothing := `{From:[] To:[{Ports:[1] NotPorts:[1] Requests:<nil>}]}`
	want := map[string]string{"allow": "[" + nothing + " " + good + "]", "deny": "[{From:[] To:[]} " + good + "]", "audit": "[" + nothing + " " + good + "]"}
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
spec: {selector: {app: web}, clusterIP: 10.96.0.1, sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 20}}, trafficDistribution: PreferSameZone, ports: [{port: 80, targetPort: http}]}
---
apiVersion: v1
kind: Service
metadata: {namespace: shop, name: headless}
spec: {selector: {app: web}, clusterIP: None, sessionAffinity: ClientIP, ports: [{port: 80, targetPort: 8080}]}
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
---
apiVersion: v1
kind: Service
metadata: {namespace: shop, name: parts}
spec: {selector: {part: part}, clusterIP: 10.96.0.4, ports: [{name: a, port: 80, targetPort: left}, {name: b, port: 81, targetPort: right}, {name: c, port: 82, targetPort: 82}, {name: d, port: 83, targetPort: nobodys}]}
---
apiVersion: v1
kind: Service
metadata: {namespace: shop, name: nobody}
spec: {selector: {app: nobody}, clusterIP: 10.96.0.5, ports: [{port: 80, targetPort: http}]}
---
apiVersion: v1
kind: Service
metadata: {namespace: shop, name: nowhere}
spec: {clusterIP: 10.96.0.6, ports: [{port: 80}]}
`
	part := func(n int, name string, port uint16) *Pod {
		return podOf(name, fmt.Sprintf("10.0.0.%d", n), func(p *Pod) { p.Labels, p.Ports = map[string]string{"part": "part"}, []NamedPort{{name, port}} })
	}
	web := func(n int, port uint16) *Pod {
		return podOf(fmt.Sprintf("web-%d", n), fmt.Sprintf("10.0.0.%d", n), func(p *Pod) { p.Labels, p.Ports = map[string]string{"app": "web"}, []NamedPort{{"http", port}} })
	}
	host := podOf("exporter", "192.0.2.1", func(p *Pod) { p.HostNetwork = true; p.Namespace = "shop" })
	objs := clusterOf(t, yaml, web(1, 8080), web(2, 8080), web(3, 9090), part(4, "left", 100), part(5, "right", 101), host)
	objs.Slices = []*EndpointSlice{{Namespace: "shop", Name: "api-server", Service: "api-server", Ports: []NamedPort{{"https", 16443}},
		Endpoints: endpointsAt("192.0.2.9", "10.0.0.1", "10.96.0.1")}}
	c := compileEach(t, objs)
	var b bytes.Buffer
	for _, s := range c.Services {
		fmt.Fprintf(&b, "%s %v %v %v prefer=%d sticky=%v %v\n", s.Name, s.Addresses, s.Ports, s.Endpoints, s.Prefer, s.Sticky, s.StickyFor)
	}
	want := `api-server [10.96.0.2] [{https 443 16443}] [EXTERNAL/192.0.2.9 shop/web-1] prefer=0 sticky=false 0s
headless [] [{ 80 8080}] [shop/web-1 shop/web-2 shop/web-3] prefer=0 sticky=true 3h0m0s
no-address-yet [] [{ 80 80}] [shop/web-1 shop/web-2 shop/web-3] prefer=0 sticky=false 0s
nobody [10.96.0.5] [{ 80 80}] [] prefer=0 sticky=false 0s
nowhere [10.96.0.6] [{ 80 80}] [] prefer=0 sticky=false 0s
on-nodes [10.96.0.3] [{ 9100 9100}] [EXTERNAL/192.0.2.1] prefer=0 sticky=false 0s
parts [10.96.0.4] [{a 80 100 of [shop/left]} {b 81 101 of [shop/right]} {c 82 82} {d 83 83 of [EXTERNAL/nobody]}] [shop/left shop/right] prefer=0 sticky=false 0s
web [10.96.0.1] [{ 80 8080 of [shop/web-1 shop/web-2] 9090 of [shop/web-3]}] [shop/web-1 shop/web-2 shop/web-3] prefer=1 sticky=true 20s
`
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Error(diff)
	}
	// A pod in the mesh reaches the API server, in plaintext.
	view, err := c.View("r")
	if err != nil {
		t.Fatal(err)
	}
	vacant := view.Vacant("n1")
	if want := []netip.AddrPort{netip.MustParseAddrPort("10.96.0.5:80"), netip.MustParseAddrPort("10.96.0.6:80"), netip.MustParseAddrPort("10.96.0.4:83")}; !slices.Equal(vacant, want) {
		t.Errorf("nobody serves %v, want %v", vacant, want)
	}
	src, _ := view.Workload(mesh.Key{Namespace: "shop", Name: "web-2"})
	route := view.Route(src, netip.MustParseAddrPort("10.96.0.2:443"))
	if route.Kind != mesh.RouteWorkload || len(route.Candidates) != 2 || route.Candidates[0].Enrolled || route.Port != 16443 {
		t.Errorf("route to the API server %+v", route)
	}
}

// TestEndpointsByCondition: what EndpointSlices say by the conditions ready, serving and
// terminating, and by publishNotReadyAddresses, the mesh knows by its pods.
func TestEndpointsByCondition(t *testing.T) {
	const yaml = `apiVersion: v1
kind: Service
metadata: {namespace: shop, name: all}
spec: {selector: {app: web}, clusterIP: 10.96.0.1, publishNotReadyAddresses: true, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {namespace: shop, name: local}
spec: {selector: {app: web}, clusterIP: 10.96.0.2, internalTrafficPolicy: Local, trafficDistribution: PreferSameZone, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {namespace: shop, name: web}
spec: {selector: {app: web}, clusterIP: 10.96.0.3, ports: [{port: 80}]}
`
	web := func(name, address string, change ...func(*Pod)) *Pod {
		return podOf(name, address, append(change, func(p *Pod) { p.Labels = map[string]string{"app": "web"} })...)
	}
	objs := clusterOf(t, yaml, web("unready", "10.0.0.1", func(p *Pod) { p.Ready = false }),
		web("leaving", "10.0.0.2", func(p *Pod) { p.Terminating = true }),
		web("gone", "10.0.0.3", func(p *Pod) { p.Terminating, p.Ready = true, false }),
		web("host", "192.0.2.1", func(p *Pod) { p.HostNetwork, p.Node = true, "n2" }),
		web("host-unready", "192.0.2.2", func(p *Pod) { p.HostNetwork, p.Ready, p.Node = true, false, "n2" }))
	view, err := compileEach(t, objs).View("r")
	if err != nil {
		t.Fatal(err)
	}
	from := func(node, address string) (names []string) {
		src := mesh.Workload{Key: mesh.Key{Namespace: "shop", Name: "client"}, Node: node}
		for _, w := range view.Route(&src, netip.MustParseAddrPort(address+":80")).Candidates {
			names = append(names, w.Name)
		}
		return names
	}
	for _, c := range []struct {
		service, node, address string
		want                   []string
	}{
		{"all", "n1", "10.96.0.1", []string{"192.0.2.1", "192.0.2.2", "gone", "leaving", "unready"}},
		{"local", "n1", "10.96.0.2", []string{"leaving"}},
		{"local", "n2", "10.96.0.2", []string{"192.0.2.1"}},
		{"local", "n3", "10.96.0.2", nil},
		{"web", "n1", "10.96.0.3", []string{"192.0.2.1"}},
	} {
		if diff := cmp.Diff(c.want, from(c.node, c.address)); diff != "" {
			t.Errorf("%s from %s: %s", c.service, c.node, diff)
		}
	}
}

func endpointsAt(addresses ...string) (all []Endpoint) {
	for _, a := range addresses {
		all = append(all, Endpoint{Addr: netip.MustParseAddr(a)})
	}
	return all
}

// TestPlacesOfWrittenEndpoints: endpoints that are written by hand are where their slice
// says, and one that leaves gets connections while no other takes any.
func TestPlacesOfWrittenEndpoints(t *testing.T) {
	const yaml = `apiVersion: v1
kind: Service
metadata: {namespace: shop, name: near}
spec: {clusterIP: 10.96.0.1, trafficDistribution: PreferSameZone, ports: [{name: x, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {namespace: shop, name: node}
spec: {clusterIP: 10.96.0.2, internalTrafficPolicy: Local, ports: [{name: x, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {namespace: shop, name: going}
spec: {clusterIP: 10.96.0.3, ports: [{name: x, port: 80}]}
`
	objs := clusterOf(t, yaml, podOf("web", "10.0.0.1")) // on n1, in zone a
	at := func(address, node, zone string, leaving bool) Endpoint {
		return Endpoint{netip.MustParseAddr(address), node, zone, leaving}
	}
	slice := func(service string, all ...Endpoint) *EndpointSlice {
		return &EndpointSlice{Namespace: "shop", Name: service, Service: service, Ports: []NamedPort{{"x", 80}}, Endpoints: all}
	}
	near := []Endpoint{at("192.0.2.1", "", "a", false), at("192.0.2.2", "n1", "", false), at("192.0.2.3", "n2", "b", false), at("192.0.2.4", "", "", false)}
	objs.Slices = []*EndpointSlice{slice("near", near...), slice("node", near...), slice("going", at("192.0.2.5", "", "", true), at("192.0.2.3", "", "", true))}
	view, err := compileEach(t, objs).View("r")
	if err != nil {
		t.Fatal(err)
	}
	web, _ := view.Workload(mesh.Key{Namespace: "shop", Name: "web"})
	for address, want := range map[string]string{"10.96.0.1:80": "192.0.2.1 192.0.2.2", "10.96.0.2:80": "192.0.2.2", "10.96.0.3:80": "192.0.2.3"} { // another service has it as ready
		if got := names(view.Route(web, netip.MustParseAddrPort(address)).Candidates); got != want {
			t.Errorf("%s leads to %s, want %s", address, got, want)
		}
	}
	objs.Slices = []*EndpointSlice{slice("going", at("192.0.2.5", "", "", true))}
	if view, err = compileEach(t, objs).View("r"); err != nil {
		t.Fatal(err)
	}
	if got := names(view.Route(web, netip.MustParseAddrPort("10.96.0.3:80")).Candidates); got != "192.0.2.5" {
		t.Errorf("while all leave, connections go to %q", got)
	}
}

func names(workloads []*mesh.Workload) string {
	var all []string
	for _, w := range workloads {
		all = append(all, w.Name)
	}
	return strings.Join(all, " ")
}

// TestSlicesOfDifferentPorts: each of a service's hand-written EndpointSlices has ports of
// its own, and those are its endpoints' only.
func TestSlicesOfDifferentPorts(t *testing.T) {
	const yaml = `apiVersion: v1
kind: Service
metadata: {namespace: shop, name: mixed}
spec: {clusterIP: 10.96.0.1, ports: [{name: a, port: 80}, {name: b, port: 81}, {name: none, port: 82}, {name: no-slices, port: 83}]}
`
	objs := clusterOf(t, yaml, podOf("one", "10.0.0.1"), podOf("two", "10.0.0.2"), podOf("both", "10.0.0.3"), podOf("other", "10.0.0.4"))
	slice := func(name, address string, ports ...NamedPort) *EndpointSlice {
		return &EndpointSlice{Namespace: "shop", Name: name, Service: "mixed", Ports: ports, Endpoints: endpointsAt(address)}
	}
	objs.Slices = []*EndpointSlice{slice("1", "10.0.0.1", NamedPort{"a", 3000}), slice("2", "10.0.0.2", NamedPort{"b", 3001}),
		slice("3", "10.0.0.3", NamedPort{"a", 3000}, NamedPort{"b", 3001}),
		{Namespace: "shop", Name: "5", Service: "mixed", Ports: []NamedPort{{"none", 3002}}}, // nobody there is ready
		slice("4", "10.0.0.4", NamedPort{"a", 9999})}
	view, err := compileEach(t, objs).View("r")
	if err != nil {
		t.Fatal(err)
	}
	for port, want := range map[string]string{"80": "both:3000 one:3000 other:9999", "81": "both:3001 two:3001", "82": "NoEndpoint", "83": "NoEndpoint"} {
		r := view.Route(nil, netip.MustParseAddrPort("10.96.0.1:"+port))
		var to []string
		for _, w := range r.Candidates {
			to = append(to, fmt.Sprintf("%s:%d", w.Name, r.PortOf(w)))
		}
		if r.Kind == mesh.RouteReject {
			to = append(to, r.Reason.String())
		}
		if got := strings.Join(to, " "); got != want {
			t.Errorf("port %s leads to %s, want %s", port, got, want)
		}
	}
}

// TestNamedTargetsOfHostPods: a port whose target is a name leads to those pods in their
// nodes' networks, too, that have it, each at its own number.
func TestNamedTargetsOfHostPods(t *testing.T) {
	const yaml = `apiVersion: v1
kind: Service
metadata: {namespace: shop, name: metrics}
spec: {selector: {app: exporter}, clusterIP: 10.96.0.1, ports: [{name: named, port: 80, targetPort: metrics}, {name: numbered, port: 81, targetPort: 81}]}
`
	exporter := func(name, address string, change func(*Pod), ports ...NamedPort) *Pod {
		return podOf(name, address, change, func(p *Pod) { p.Labels, p.Ports = map[string]string{"app": "exporter"}, ports })
	}
	onNode := func(p *Pod) { p.HostNetwork = true }
	unready := func(p *Pod) { p.HostNetwork, p.Ready = true, false }
	metrics := func(number uint16) NamedPort { return NamedPort{"metrics", number} }
	c := compileEach(t, clusterOf(t, yaml, exporter("pod", "10.0.0.1", func(*Pod) {}, metrics(9100)), exporter("pod-of-another", "10.0.0.2", func(*Pod) {}, metrics(9200)),
		exporter("same", "192.0.2.1", onNode, metrics(9100)), exporter("another", "192.0.2.2", onNode, metrics(9200)), exporter("none", "192.0.2.3", onNode),
		exporter("unready", "192.0.2.4", unready, metrics(9200)), // neither that nor its node is an endpoint
		exporter("before", "192.0.2.5", onNode, metrics(9200)), exporter("after", "192.0.2.5", onNode, metrics(9100)), exporter("more", "192.0.2.6", onNode, metrics(9100)),
		exporter("most", "192.0.2.7", onNode, metrics(9100))))
	view, err := c.View("r")
	if err != nil {
		t.Fatal(err)
	}
	for port, want := range map[string]string{"80": " 192.0.2.1:9100 192.0.2.2:9200 192.0.2.5:9100 192.0.2.6:9100 192.0.2.7:9100 pod:9100 pod-of-another:9200",
		"81": " 192.0.2.1:81 192.0.2.2:81 192.0.2.3:81 192.0.2.5:81 192.0.2.6:81 192.0.2.7:81 pod:81 pod-of-another:81"} {
		r := view.Route(nil, netip.MustParseAddrPort("10.96.0.1:"+port))
		got := ""
		for _, w := range r.Candidates {
			got += fmt.Sprintf(" %s:%d", w.Name, r.PortOf(w))
		}
		if got != want {
			t.Errorf("port %s leads to%s, want %s", port, got, want)
		}
	}
	if _, known := view.WorkloadAt(netip.MustParseAddr("192.0.2.4")); known {
		t.Error("who takes no connections is an endpoint")
	}
}
