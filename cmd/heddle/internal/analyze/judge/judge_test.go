package judge

import (
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// shop has a namespace that is enrolled, with two pods of a workload and one of another, and
// one outside.
const shop = `
{kind: Namespace, metadata: {name: shop, labels: {heddle.dev/mesh: enabled}}}
---
{kind: Namespace, metadata: {name: ops, labels: {team: ops}}}
---
{kind: Pod, metadata: {namespace: shop, name: web-1, labels: {app: web}}, spec: {nodeName: n1, containers: [{name: c, ports: [{name: https, containerPort: 8443}]}],
initContainers: [{name: once, ports: [{name: setup, containerPort: 1}]}, {name: side, restartPolicy: Always, ports: [{name: metrics, containerPort: 9090}, {name: https, containerPort: 9443}]}]}, status: {podIPs: [{ip: 10.244.1.5}]}}
---
{kind: Pod, metadata: {namespace: shop, name: web-2, labels: {app: web}}, spec: {nodeName: n2, containers: [{name: c, ports: [{name: https, containerPort: 8443}]}],
initContainers: [{name: side, restartPolicy: Always, ports: [{name: metrics, containerPort: 9090}, {name: https, containerPort: 9443}]}]}, status: {podIPs: [{ip: 10.244.2.5}]}}
---
{kind: Pod, metadata: {namespace: shop, name: db-1, labels: {app: db}}, spec: {nodeName: n1, containers: [{name: c}]}, status: {podIPs: [{ip: 10.244.1.6}]}}
---
{kind: Pod, metadata: {namespace: ops, name: out-1, labels: {app: out}}, spec: {nodeName: n1, containers: [{name: c}]}, status: {podIPs: [{ip: 10.244.1.7}]}}
---
`

// objects reads documents.
func objects(t *testing.T, texts ...string) *Objects {
	t.Helper()
	o := &Objects{}
	for _, text := range strings.Split(strings.Join(texts, ""), "---\n") {
		var kind struct {
			Kind string `json:"kind"`
		}
		if err := yaml.Unmarshal([]byte(text), &kind); err != nil {
			t.Fatal(err)
		}
		switch kind.Kind {
		case "Namespace":
			add(t, text, &o.Namespaces)
		case "Pod":
			add(t, text, &o.Pods)
		case "Mesh":
			add(t, text, &o.Meshes)
		case "PeerAuthentication":
			add(t, text, &o.Modes)
		case "AuthorizationPolicy":
			add(t, text, &o.Authorizations)
		case "NetworkPolicy":
			add(t, text, &o.Policies)
		}
	}
	return o
}

func add[T any](t *testing.T, text string, all *[]T) {
	t.Helper()
	var one T
	if err := yaml.UnmarshalStrict([]byte(text), &one); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	*all = append(*all, one)
}

func judging(t *testing.T, texts ...string) *Judge {
	t.Helper()
	j, err := New(objects(t, append([]string{shop}, texts...)...))
	if err != nil {
		t.Fatal(err)
	}
	return j
}

// pod is an enrolled one.
func (j *Judge) pod(t *testing.T, name string) *Pod {
	t.Helper()
	for i := range j.enrolled {
		if j.enrolled[i].Name == name {
			return &j.enrolled[i]
		}
	}
	t.Fatalf("pod %s is not enrolled", name)
	return nil
}

// line has what stands in the way, in one line.
func line(v Verdict) string {
	var words []string
	if v.Strict {
		words = append(words, "strict")
	}
	for _, d := range []*mesh.Decision{v.Network, v.Policy} {
		if d != nil {
			words = append(words, fmt.Sprintf("%s by %s", d.Reason, d.Policy.Name))
		}
	}
	if v.Final() {
		words = append(words, "final")
	}
	return strings.Join(words, ", ")
}

func statement(kind, name, spec string) string {
	return fmt.Sprintf("{kind: %s, metadata: {namespace: shop, name: %s}, spec: %s}\n---\n", kind, name, spec)
}

func mode(spec string) string { return statement("PeerAuthentication", "m", spec) }
func allow(name, rules string) string {
	return statement("AuthorizationPolicy", name, "{action: ALLOW, rules: "+rules+"}")
}
func deny(name, rules string) string {
	return statement("AuthorizationPolicy", name, "{action: DENY, rules: "+rules+"}")
}
func network(name, spec string) string {
	return statement("NetworkPolicy", name, "{podSelector: {matchLabels: {app: web}}, "+spec+"}")
}

const (
	permissive = "{mode: PERMISSIVE}"
	members    = "[{from: [{namespaces: [shop]}]}]"
	fromPods   = "ingress: [{from: [{podSelector: {}}]}]"
)

func known(every bool, texts ...string) Callers {
	c := Callers{Every: every}
	for _, text := range texts {
		addr, node, _ := strings.Cut(text, " ")
		c.Known = append(c.Known, Source{netip.MustParseAddr(addr), node})
	}
	return c
}

// TestVerdicts: all that stands in the way of a connection to pod web-1 of node n1 is said.
func TestVerdicts(t *testing.T) {
	const port = 8443
	var unknown Callers
	for _, tc := range []struct {
		name, objects string
		from          Callers
		port          uint16
		want          string
	}{
		{"nothing", mode(permissive), unknown, port, ""},
		{"the default", "", unknown, port, "strict"},
		{"the Mesh's default", "{kind: Mesh, metadata: {name: default}, spec: {trustDomain: m, clusterRanges: [10.0.0.0/8], defaults: {peerAuthentication: PERMISSIVE}}}\n---\n", unknown, port, ""},
		{"a port is let through", mode("{portModes: [{port: 8443, mode: PERMISSIVE}], selector: {matchLabels: {app: web}}}"), unknown, port, ""},
		{"another port is", mode("{portModes: [{port: 9090, mode: PERMISSIVE}], selector: {matchLabels: {app: web}}}"), unknown, port, "strict"},
		{"the agent's port", mode(permissive), unknown, mesh.TunnelPort, "ReservedPort by , final"},

		{"members alone", mode(permissive) + allow("a", members), unknown, port, "PolicyNoMatch by a"},
		{"and STRICT", allow("a", members), unknown, port, "strict, PolicyNoMatch by a"},
		{"the first of two is named", mode(permissive) + allow("b", members) + allow("a", members), unknown, port, "PolicyNoMatch by a"},
		{"some requests alone, which nobody sees", mode(permissive) + allow("a", "[{to: [{methods: [GET]}]}]"), unknown, port, "PolicyNoMatch by a"},
		{"the port", mode(permissive) + allow("a", members) + allow("b", "[{to: [{ports: [8443]}]}]"), unknown, port, ""},
		{"another port", mode(permissive) + allow("b", "[{to: [{ports: [9090]}]}]"), unknown, port, "PolicyNoMatch by b"},
		{"a policy of other pods", mode(permissive) + statement("AuthorizationPolicy", "a", "{selector: {matchLabels: {app: db}}, rules: "+members+"}"), unknown, port, ""},
		{"a policy denies", mode(permissive) + deny("d", "[{to: [{ports: [8443]}]}]"), unknown, port, "PolicyDeny by d, final"},
		{"it denies what another allows", mode(permissive) + allow("a", "[{to: [{ports: [8443]}]}]") + deny("d", "[{to: [{ports: [8443]}]}]"), unknown, port, "PolicyDeny by d, final"},
		{"it denies another port", mode(permissive) + deny("d", "[{to: [{ports: [9090]}]}]"), unknown, port, ""},

		{"pods of the namespace alone", mode(permissive) + network("np", fromPods), unknown, port, "NetworkPolicyIngress by np"},
		{"nobody", mode(permissive) + network("np", "policyTypes: [Ingress]"), unknown, port, "NetworkPolicyIngress by np"},
		{"egress is not asked", mode(permissive) + network("np", "policyTypes: [Egress]"), unknown, port, ""},
		{"all at once", network("np", fromPods) + allow("a", members), unknown, port, "strict, NetworkPolicyIngress by np, PolicyNoMatch by a"},
		{"all at once, and no object lets it in", network("np", fromPods) + deny("d", "[{to: [{ports: [8443]}]}]"), unknown, port, "strict, NetworkPolicyIngress by np, PolicyDeny by d, final"},

		{"somebody from a block", mode(permissive) + network("np", "ingress: [{from: [{ipBlock: {cidr: 172.16.0.0/12}}]}]"), unknown, port, ""},
		{"at another port", mode(permissive) + network("np", "ingress: [{from: [{ipBlock: {cidr: 172.16.0.0/12}}], ports: [{port: 9090}]}]"), unknown, port, "NetworkPolicyIngress by np"},
		{"from a block by both", mode(permissive) + network("np", "ingress: [{from: [{ipBlock: {cidr: 172.16.0.0/12}}]}]") + allow("a", "[{from: [{ipBlocks: [172.16.0.0/12]}]}]"), unknown, port, ""},
		{"from a block in plaintext", network("np", "ingress: [{from: [{ipBlock: {cidr: 172.16.0.0/12}}]}]") + allow("a", "[{from: [{ipBlocks: [172.16.0.0/12]}]}]"), unknown, port, "strict"},
		{"pods outside, of whom none is asked", mode(permissive) + network("np", "ingress: [{from: [{namespaceSelector: {matchLabels: {team: ops}}}]}]"), unknown, port, "NetworkPolicyIngress by np"},
		{"pods outside", mode(permissive) + network("np", "ingress: [{from: [{namespaceSelector: {matchLabels: {team: ops}}}]}]"), Callers{Pods: true}, port, ""},
		{"other pods outside", mode(permissive) + network("np", "ingress: [{from: [{namespaceSelector: {matchLabels: {team: none}}}]}]"), Callers{Pods: true}, port, "NetworkPolicyIngress by np"},

		{"one who is known is let in", mode(permissive) + allow("a", "[{from: [{ipBlocks: [172.16.0.1/32]}]}]"), known(false, "172.16.0.1"), port, ""},
		{"another is not", mode(permissive) + allow("a", "[{from: [{ipBlocks: [172.16.0.1/32]}]}]"), known(false, "172.16.0.2"), port, "PolicyNoMatch by a"},
		{"one of two is, and one has to be", mode(permissive) + allow("a", "[{from: [{ipBlocks: [172.16.0.1/32]}]}]"), known(false, "172.16.0.2", "172.16.0.1"), port, ""},
		{"one of two is, and both have to be", mode(permissive) + allow("a", "[{from: [{ipBlocks: [172.16.0.1/32]}]}]"), known(true, "172.16.0.1", "172.16.0.2"), port, "PolicyNoMatch by a"},
		{"two are kept out by different things", mode(permissive) + network("np", "ingress: [{from: [{ipBlock: {cidr: 172.16.0.1/32}}]}]") + allow("a", "[{from: [{ipBlocks: [172.16.0.2/32]}]}]"),
			known(true, "172.16.0.1", "172.16.0.2"), port, "NetworkPolicyIngress by np, PolicyNoMatch by a"},
		{"one of two is denied", mode(permissive) + allow("a", members) + deny("d", "[{from: [{ipBlocks: [172.16.0.2/32]}]}]"), known(true, "172.16.0.1", "172.16.0.2"), port, "PolicyDeny by d, final"},
		{"the lesser of two is said", mode(permissive) + allow("a", members) + deny("d", "[{from: [{ipBlocks: [172.16.0.2/32]}]}]"), known(false, "172.16.0.2", "172.16.0.1"), port, "PolicyNoMatch by a"},
		{"its own node, past NetworkPolicies", mode(permissive) + network("np", fromPods), known(true, "192.168.0.1 n1"), port, ""},
		{"another node", mode(permissive) + network("np", fromPods), known(true, "192.168.0.2 n2"), port, "NetworkPolicyIngress by np"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			j := judging(t, tc.objects)
			if got := j.Of(&tc.from, j.pod(t, "web-1"), tc.port); line(got) != tc.want {
				t.Errorf("got %q, want %q", line(got), tc.want)
			}
		})
	}
}

// TestWhatMends: each object that lets a connection past takes away one thing in its way, and
// no other; what a policy denies none takes away.
func TestWhatMends(t *testing.T) {
	had := network("np", fromPods) + allow("a", members)
	for _, step := range []struct{ added, left string }{
		{"", "strict, NetworkPolicyIngress by np, PolicyNoMatch by a"},
		{mode("{selector: {matchLabels: {app: web}}, portModes: [{port: 8443, mode: PERMISSIVE}]}"), "NetworkPolicyIngress by np, PolicyNoMatch by a"},
		{network("n-plaintext", "ingress: [{ports: [{port: 8443}]}]"), "PolicyNoMatch by a"},
		{allow("a-plaintext", "[{to: [{ports: [8443]}]}]"), ""},
		{deny("d", "[{to: [{ports: [8443]}]}]"), "PolicyDeny by d, final"},
		{allow("z", "[{}]"), "PolicyDeny by d, final"},
	} {
		had += step.added
		j := judging(t, had)
		if got := j.Of(&Callers{}, j.pod(t, "web-1"), 8443); line(got) != step.left {
			t.Errorf("with %q: %q is left, want %q", step.added, line(got), step.left)
		}
		if got := j.Of(&Callers{}, j.pod(t, "web-1"), 9090); !got.Strict {
			t.Errorf("with %q another port is let in: %q", step.added, line(got))
		}
	}
}

// TestAlikeOnce: what strangers meet is asked once for pods that are alike, wherever these
// are; pods of other labels, other ports, and callers who are known are asked for themselves.
func TestAlikeOnce(t *testing.T) {
	j := judging(t, statement("AuthorizationPolicy", "a", "{selector: {matchLabels: {app: web}}, rules: "+members+"}"), network("np", fromPods))
	const web, db = "strict, NetworkPolicyIngress by np, PolicyNoMatch by a", "strict"
	for _, ask := range []struct {
		pod  string
		from Callers
		port uint16
		want string
		kept int
	}{
		{"web-1", Callers{}, 8443, web, 1},
		{"web-2", Callers{}, 8443, web, 1},
		{"db-1", Callers{}, 8443, db, 2},
		{"web-2", Callers{Pods: true}, 8443, web, 3},
		{"web-1", Callers{Pods: true}, 8443, web, 3},
		{"web-1", Callers{}, 9090, web, 4},
		{"web-1", known(true, "192.168.0.1 n1"), 8443, "strict, PolicyNoMatch by a", 4},
		{"web-2", known(true, "192.168.0.1 n1"), 8443, web, 4}, // alike, but for its node
	} {
		if got := j.Of(&ask.from, j.pod(t, ask.pod), ask.port); line(got) != ask.want || len(j.known) != ask.kept {
			t.Errorf("%s:%d from %v: got %q, want %q; %d are kept, want %d", ask.pod, ask.port, ask.from, line(got), ask.want, len(j.known), ask.kept)
		}
	}
	for asked := range j.known {
		j.known[asked] = Verdict{}
	}
	if got := j.Of(&Callers{}, j.pod(t, "web-2"), 8443); line(got) != "" {
		t.Errorf("it is asked once more: %q", line(got))
	}
}

// TestEnrolled: pods in the mesh are judged, each with its ports, also where none has a name
// of its own, a node or an address, as of what makes some.
func TestEnrolled(t *testing.T) {
	const made = "{kind: Pod, metadata: {namespace: shop, name: made, labels: {app: made}}, spec: {containers: [{name: c}]}}\n---\n"
	const same = "{kind: Pod, metadata: {namespace: shop, name: old, labels: {app: old}}, spec: {containers: [{name: c}]}, status: {podIPs: [{ip: 10.244.1.5}]}}\n---\n"
	const host = "{kind: Pod, metadata: {namespace: shop, name: host}, spec: {hostNetwork: true, containers: [{name: c}]}}\n---\n"
	const lone = "{kind: Pod, metadata: {namespace: files, name: lone, labels: {heddle.dev/mesh: enabled}}, spec: {containers: [{name: c}]}}\n---\n"
	j := judging(t, made, made, same, host, lone)
	var names []string
	for _, p := range j.Enrolled() {
		names = append(names, p.Namespace+"/"+p.Name)
		if v := j.Of(&Callers{}, &p, 80); !v.Strict {
			t.Errorf("%s takes plaintext", p.Name)
		}
	}
	if got, want := strings.Join(names, " "), "files/lone shop/db-1 shop/made shop/made shop/old shop/web-1 shop/web-2"; got != want {
		t.Errorf("enrolled are %s, want %s", got, want)
	}
	for name, want := range map[string]uint16{"https": 8443, "metrics": 9090, "setup": 0, "none": 0} {
		if got := j.pod(t, "web-1").Port(name); got != want {
			t.Errorf("port %s is %d, want %d", name, got, want)
		}
	}
}

// TestNew: what is wrong with the Mesh is an error, and a trust domain's that nothing here
// asks for is left out; what is wrong with others is said of them.
func TestNew(t *testing.T) {
	settings := func(spec string) string { return "{kind: Mesh, metadata: {name: default}, spec: " + spec + "}\n---\n" }
	if _, err := New(objects(t, shop, settings("{trustDomain: 'NO GOOD'}"))); err == nil || !strings.Contains(err.Error(), "NO GOOD") {
		t.Errorf("a trust domain that is none: %v", err)
	}
	j := judging(t, settings("{trustDomain: m, federation: [{trustDomain: 'NO GOOD'}], defaults: {peerAuthentication: PERMISSIVE}}"))
	if v := j.Of(&Callers{}, j.pod(t, "web-1"), 80); line(v) != "" {
		t.Errorf("without the federation: %q", line(v))
	}
	const older = `{kind: PeerAuthentication, metadata: {namespace: shop, name: older, creationTimestamp: "2020-01-01T00:00:00Z"}, spec: {selector: {matchLabels: {app: web}}, portModes: [{port: 8443, mode: STRICT}]}}` + "\n---\n"
	j = judging(t, older, strings.Replace(strings.NewReplacer("older", "younger", "STRICT", "PERMISSIVE").Replace(older), "2020", "2021", 1))
	if v := j.Of(&Callers{}, j.pod(t, "web-1"), 8443); !v.Strict {
		t.Error("the younger statement holds")
	}
	said := j.Said("PeerAuthentication", mesh.Key{Namespace: "shop", Name: "younger"})
	if len(said) != 1 || !strings.Contains(said[0], "shop/older") {
		t.Errorf("of the younger it is said: %q", said)
	}
	for _, other := range []string{"older", "none"} {
		if said := j.Said("PeerAuthentication", mesh.Key{Namespace: "shop", Name: other}); len(said) != 0 {
			t.Errorf("of %s it is said: %q", other, said)
		}
	}
}

func TestSourceOf(t *testing.T) {
	for name, tc := range map[string]struct {
		pod  string
		want Source
		ok   bool
	}{
		"by its addresses":     {"{spec: {nodeName: n1}, status: {podIP: 10.0.0.9, podIPs: [{ip: 10.0.0.1}, {ip: 'fd00::1'}]}}", Source{Addr: netip.MustParseAddr("10.0.0.1")}, true},
		"by its one address":   {"{status: {podIP: 10.0.0.9}}", Source{Addr: netip.MustParseAddr("10.0.0.9")}, true},
		"in IPv6's form":       {"{status: {podIP: '::ffff:10.0.0.9'}}", Source{Addr: netip.MustParseAddr("10.0.0.9")}, true},
		"in its node's":        {"{spec: {nodeName: n1, hostNetwork: true}, status: {podIP: 192.168.0.1}}", Source{netip.MustParseAddr("192.168.0.1"), "n1"}, true},
		"without, as yet":      {"{spec: {nodeName: n1}}", Source{}, false},
		"with none that is so": {"{status: {podIP: x}}", Source{}, false},
	} {
		var p corev1.Pod
		if err := yaml.UnmarshalStrict([]byte(tc.pod), &p); err != nil {
			t.Fatal(err)
		}
		if got, ok := SourceOf(&p); got != tc.want || ok != tc.ok {
			t.Errorf("%s: got %v, %v, want %v, %v", name, got, ok, tc.want, tc.ok)
		}
	}
}

func TestStable(t *testing.T) {
	labels := map[string]string{
		"app": "web", "pod-template-hash": "1", "controller-revision-hash": "1", "pod-template-generation": "1", "statefulset.kubernetes.io/pod-name": "web-0",
		"apps.kubernetes.io/pod-index": "0", "controller-uid": "u", "batch.kubernetes.io/controller-uid": "u", "batch.kubernetes.io/job-name": "j", "job-name": "j",
		"app.kubernetes.io/version": "1", "helm.sh/chart": "c-1", "app.kubernetes.io/name": "web",
	}
	before := len(labels)
	if got, want := Stable(labels), map[string]string{"app": "web", "app.kubernetes.io/name": "web"}; !reflect.DeepEqual(got, want) || len(labels) != before {
		t.Errorf("got %v, want %v", got, want)
	}
	for name, tc := range map[string]struct{ labels, want map[string]string }{
		"a Job's":              {map[string]string{"batch.kubernetes.io/controller-uid": "u", "batch.kubernetes.io/job-name": "load", "controller-uid": "u", "job-name": "load", "batch.kubernetes.io/job-completion-index": "3"}, map[string]string{"batch.kubernetes.io/job-name": "load"}},
		"an older Job's":       {map[string]string{"controller-uid": "u", "job-name": "load-1"}, map[string]string{"job-name": "load-1"}},
		"a Job's of a CronJob": {map[string]string{"batch.kubernetes.io/job-name": "load-29412345", "job-name": "load-29412345"}, map[string]string{}},
		"and with its own":     {map[string]string{"batch.kubernetes.io/job-name": "load-29412345", "app": "load"}, map[string]string{"app": "load"}},
		"the mesh's, its zone": {map[string]string{"heddle.dev/mesh": "enabled", "topology.kubernetes.io/zone": "z", "topology.kubernetes.io/region": "r"}, map[string]string{}},
	} {
		if got := Stable(tc.labels); !reflect.DeepEqual(got, tc.want) {
			t.Errorf("%s: got %v, want %v", name, got, tc.want)
		}
	}
	if got := Stable(nil); got == nil || len(got) != 0 {
		t.Errorf("of none: %#v", got)
	}
}
