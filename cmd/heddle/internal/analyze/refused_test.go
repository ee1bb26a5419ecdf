package analyze

import (
	"fmt"
	"strings"
	"testing"
)

// TestRefusedByPolicies: what calls enrolled pods is judged by all that agents decide by, and
// each thing in its way has the object that lets it past.
func TestRefusedByPolicies(t *testing.T) {
	const (
		hook       = "{apiVersion: admissionregistration.k8s.io/v1, kind: ValidatingWebhookConfiguration, metadata: {name: guard}, webhooks: [{name: g.x, failurePolicy: Fail, clientConfig: {service: {namespace: shop, name: web}}}]}\n---\n"
		permissive = "{apiVersion: heddle.dev/v1alpha1, kind: PeerAuthentication, metadata: {namespace: shop, name: p}, spec: {mode: PERMISSIVE}}\n---\n"
		server     = "{apiVersion: v1, kind: Pod, metadata: {namespace: kube-system, name: kube-apiserver-cp, labels: {component: kube-apiserver}}, spec: {nodeName: cp, hostNetwork: true, containers: []}, status: {podIP: 10.9.0.1}}\n---\n"
		guard      = "webhook ValidatingWebhookConfiguration guard"
	)
	authorization := func(spec string) string {
		return "{apiVersion: heddle.dev/v1alpha1, kind: AuthorizationPolicy, metadata: {namespace: shop, name: a}, spec: " + spec + "}\n---\n"
	}
	network := func(spec string) string {
		return "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {namespace: shop, name: net}, spec: " + spec + "}\n---\n"
	}
	const ours, pods = "{rules: [{from: [{namespaces: [shop]}]}]}", "{podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}"
	for _, tc := range []struct {
		name, objects string
		fixes         []string // kinds, each of a finding; "" has no fix
		says          string
	}{
		{"STRICT alone", "", []string{"PeerAuthentication"}, "which is STRICT"},
		{"PERMISSIVE", permissive, nil, ""},
		{"ALLOW by identity", permissive + authorization(ours), []string{"AuthorizationPolicy"}, "AuthorizationPolicy shop/a, "},
		{"ALLOW by identity, STRICT", authorization(ours), []string{"PeerAuthentication", "AuthorizationPolicy"}, "which is STRICT"},
		{"ALLOW of other pods", permissive + authorization("{selector: {matchLabels: {app: db}}}"), nil, ""},
		{"ALLOW at the port", permissive + authorization("{rules: [{to: [{ports: [8443]}]}]}"), nil, ""},
		{"ALLOW at another port", permissive + authorization("{rules: [{to: [{ports: [443]}]}]}"), []string{"AuthorizationPolicy"}, "at port 8443"},
		{"ALLOW of a block, for callers that are not known", permissive + authorization("{rules: [{from: [{ipBlocks: [10.8.0.0/24]}]}]}"), nil, ""},
		{"ALLOW of a block without the API server", permissive + server + authorization("{rules: [{from: [{ipBlocks: [10.8.0.0/24]}]}]}"), []string{"AuthorizationPolicy"}, "AuthorizationPolicy shop/a, "},
		{"ALLOW of a block with the API server", permissive + server + authorization("{rules: [{from: [{ipBlocks: [10.9.0.0/24]}]}]}"), nil, ""},
		{"DENY", permissive + authorization("{action: DENY, rules: [{from: [{notNamespaces: [shop]}]}]}"), []string{""}, "AuthorizationPolicy shop/a refuses (PolicyDeny)"},
		{"DENY, STRICT", authorization("{action: DENY, rules: [{from: [{notNamespaces: [shop]}]}]}"), []string{""}, "AuthorizationPolicy shop/a refuses"},
		{"NetworkPolicy of pods", permissive + network(pods), []string{"NetworkPolicy"}, "NetworkPolicy shop/net, "},
		{"NetworkPolicy of the port", permissive + network("{podSelector: {}, ingress: [{ports: [{port: 8443}, {port: 15008}]}]}"), nil, ""},
		{"NetworkPolicy of the port by its name", permissive + network("{podSelector: {}, ingress: [{ports: [{port: https}, {port: 15008}]}]}"), nil, ""},
		{"NetworkPolicy, and the API server on the pod's node", permissive + strings.Replace(server, "nodeName: cp", "nodeName: n1", 1) + network(pods), nil, ""},
		{"NetworkPolicy of a block, for callers that are not known", permissive + network("{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.8.0.0/24}}]}]}"), nil, ""},
		{"ALLOW by request", permissive + authorization("{rules: [{to: [{methods: [POST]}]}]}"), []string{"AuthorizationPolicy"}, "AuthorizationPolicy shop/a, "},
		{"DENY by request", permissive + authorization("{action: DENY, rules: [{to: [{methods: [POST]}]}]}"), []string{""}, "AuthorizationPolicy shop/a refuses (RequestUnseen)"},
		{"two API servers, each with something in its way", permissive + server + strings.NewReplacer("-cp", "-cp2", "10.9.0.1", "10.9.0.2", "nodeName: cp", "nodeName: n1").Replace(server) +
			authorization("{rules: [{from: [{ipBlocks: [10.9.0.1/32]}]}]}") + network(pods), []string{"NetworkPolicy", "AuthorizationPolicy"}, "NetworkPolicy shop/net, "},
		{"a Mesh whose federation is not understood", permissive + authorization(ours) + "{apiVersion: heddle.dev/v1alpha1, kind: Mesh, metadata: {name: default}, spec: {trustDomain: m, clusterRanges: [10.0.0.0/8], federation: [{trustDomain: other, profile: https_web, endpoint: \"https://x/y\", bundle: none}]}}\n---\n",
			[]string{"AuthorizationPolicy"}, "AuthorizationPolicy shop/a, "},
		{"all of them", authorization(ours) + network(pods), []string{"PeerAuthentication", "NetworkPolicy", "AuthorizationPolicy"}, "which is STRICT"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var want []string
			for range tc.fixes {
				want = append(want, guard)
			}
			all := findings(t, read(t, shop, hook, tc.objects), want...)
			for i, f := range all {
				if i >= len(tc.fixes) || tc.fixes[i] == "" && f.Fix != "" || !strings.Contains(f.Fix, tc.fixes[i]) {
					t.Errorf("fix %d is\n%s, want %q", i, f.Fix, tc.fixes)
				}
			}
			if len(all) > 0 && !strings.Contains(all[0].Detail, tc.says) {
				t.Errorf("%q does not say %q", all[0].Detail, tc.says)
			}
		})
	}
	// What lets a call past holds for no pod that was open to all: there it would shut others out.
	all := findings(t, read(t, shop, hook, permissive, authorization("{selector: {matchLabels: {pod-template-hash: abc}}}"),
		network("{podSelector: {matchExpressions: [{key: pod-template-hash, operator: Exists}]}, ingress: [{from: [{podSelector: {}}]}]}")), guard, guard)
	for _, f := range all {
		if !strings.Contains(f.Fix, "pod-template-hash") || !strings.Contains(f.Fix, "app: web") {
			t.Errorf("it is about more pods:\n%s", f.Fix)
		}
	}
}

// TestPortsOfSidecars: a port that a sidecar names is reached, as are those of its node.
func TestPortsOfSidecars(t *testing.T) {
	const (
		ns   = "{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {heddle.dev/mesh: enabled}}}\n---\n"
		hook = "{apiVersion: admissionregistration.k8s.io/v1, kind: ValidatingWebhookConfiguration, metadata: {name: guard}, webhooks: [{name: g.x, clientConfig: {service: {namespace: shop, name: web}}}]}\n---\n" +
			"{apiVersion: v1, kind: Service, metadata: {namespace: shop, name: web}, spec: {selector: {app: web}, ports: [{port: 443, targetPort: https}]}}\n---\n"
	)
	pod := func(spec string) string {
		return "{apiVersion: v1, kind: Pod, metadata: {namespace: shop, name: a, labels: {app: web}}, spec: {nodeName: n1, " + spec + "}}\n---\n"
	}
	findings(t, read(t, ns, hook, pod("initContainers: [{name: s, restartPolicy: Always, ports: [{name: https, containerPort: 8443}]}], containers: [{name: c}]")),
		"webhook ValidatingWebhookConfiguration guard")
	findings(t, read(t, ns, hook, pod("initContainers: [{name: s, ports: [{name: https, containerPort: 8443}]}], containers: [{name: c}]")))
	const ports = "ports: [{containerPort: 8080, hostPort: 8443}, {containerPort: 53, hostPort: 53, protocol: UDP}, {containerPort: 9090}]"
	all := findings(t, read(t, ns, pod("containers: [{name: c, "+ports+"}]")), "outside-client Pod shop/a")
	if !strings.Contains(all[0].Fix, "port: 8080") || !strings.Contains(all[0].Detail, "hostPort 8443") {
		t.Errorf("got %+v", all[0])
	}
	findings(t, read(t, ns, pod("initContainers: [{name: s, restartPolicy: Always, "+ports+"}], containers: [{name: c}]")), "outside-client Pod shop/a")
	findings(t, read(t, strings.Replace(ns, "enabled", "disabled", 1), pod("containers: [{name: c, "+ports+"}]")))
	// What only its node reaches is that node's, which no NetworkPolicy keeps out.
	const local = "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {namespace: shop, name: none}, spec: {podSelector: {}}}"
	all = findings(t, read(t, ns, pod("containers: [{name: c, ports: [{containerPort: 8080, hostPort: 8443, hostIP: 127.0.0.1}]}]"), local), "outside-client Pod shop/a")
	if !strings.Contains(all[0].Detail, "programs of its node") {
		t.Errorf("got %+v", all[0])
	}
	// The agent's own ports are refused whatever is written.
	all = findings(t, read(t, ns, pod("containers: [{name: c, ports: [{containerPort: 15008, hostPort: 8443}]}]")), "outside-client Pod shop/a")
	if all[0].Fix != "" || !strings.Contains(all[0].Remedy, "listen elsewhere") {
		t.Errorf("got %+v", all[0])
	}
}

// TestScrapers: where Prometheus is seen, policies are asked about its address, and let in its
// pods alone; where it is not, what lets in some pod outside the mesh was written for it.
func TestScrapers(t *testing.T) {
	const (
		prometheus = "{apiVersion: v1, kind: Pod, metadata: {namespace: monitoring, name: p, labels: {app: prometheus}}, spec: {nodeName: n1, containers: []}, status: {podIPs: [{ip: 10.244.1.9}]}}\n---\n"
		scraped    = "{apiVersion: v1, kind: Service, metadata: {namespace: shop, name: m, annotations: {prometheus.io/scrape: \"true\", prometheus.io/port: \"9102\"}}, spec: {selector: {app: db}}}\n---\n"
		permissive = "{apiVersion: heddle.dev/v1alpha1, kind: PeerAuthentication, metadata: {namespace: shop, name: p}, spec: {mode: PERMISSIVE}}\n---\n"
	)
	admits := func(namespace string) string {
		return "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {namespace: shop, name: net}, spec: {podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: " + namespace + "}}}]}]}}\n---\n"
	}
	other := strings.NewReplacer("prometheus", "collector", "10.244.1.9", "10.244.1.10").Replace(prometheus)
	template := strings.Replace(prometheus, ", status: {podIPs: [{ip: 10.244.1.9}]}", "", 1)
	onHost := strings.Replace(prometheus, "nodeName: n1", "nodeName: n1, hostNetwork: true", 1)
	for _, tc := range []struct {
		name, objects string
		fix           string // what is in it; "" when nothing is cut off
		open          bool   // to everybody
	}{
		{"one that is let in", prometheus + admits("monitoring"), "", false},
		{"one that is not", prometheus + admits("shop"), "kubernetes.io/metadata.name: monitoring", false},
		{"one without an address yet", template + admits("shop"), "kubernetes.io/metadata.name: monitoring", false},
		{"one in its node's network", onHost + admits("shop"), "port: 9102", true},
		{"none, and others outside the mesh that are let in", other + admits("monitoring"), "", false},
		{"none, and others outside the mesh that are not", other + admits("shop"), "port: 9102", true},
		{"none", admits("monitoring"), "port: 9102", true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var want []string
			if tc.fix != "" {
				want = []string{"scrape Service shop/m"}
			}
			for _, f := range findings(t, read(t, shop, scraped, permissive, tc.objects), want...) {
				if !strings.Contains(f.Fix, tc.fix) || strings.Contains(f.Fix, "from:") == tc.open {
					t.Errorf("the fix is\n%s", f.Fix)
				}
			}
		})
	}
}

// TestCallsOfManyPods: a workload's pods are asked about once, however many there are.
func TestCallsOfManyPods(t *testing.T) {
	var pods strings.Builder
	for i := range 100 {
		fmt.Fprintf(&pods, "{apiVersion: v1, kind: Pod, metadata: {namespace: shop, name: p-%d, labels: {app: a%d}, annotations: {prometheus.io/scrape: \"true\", prometheus.io/port: \"9090\"}}, spec: {nodeName: n1, containers: [{name: c, ports: [{containerPort: 80, hostPort: 80}]}]}}\n---\n", i, i%2)
	}
	o := read(t, shop, pods.String())
	_, model, err := o.look("")
	if err != nil {
		t.Fatal(err)
	}
	var enrolled []member
	for i := range model.Enrolled() {
		enrolled = append(enrolled, member{model.Enrolled()[i].Pod, &model.Enrolled()[i]})
	}
	if calls := distinctCalls(append(o.scrapes(enrolled), o.outside(enrolled)...)); len(calls) != 4 {
		t.Errorf("got %d calls, want 4", len(calls))
	}
}
