package analyze

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/heddle-mesh/heddle/internal/kube"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func read(t *testing.T, texts ...string) *Objects {
	t.Helper()
	o := &Objects{}
	for _, text := range texts {
		if err := o.Read(strings.NewReader(text), "default"); err != nil {
			t.Fatal(err)
		}
	}
	return o
}

const shop = `
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {heddle.dev/mesh: enabled}}
---
apiVersion: v1
kind: Pod
metadata: {namespace: shop, name: web-1, labels: {app: web, pod-template-hash: abc}}
spec: {nodeName: n1, containers: [{name: c, ports: [{name: https, containerPort: 8443}, {containerPort: 9090}]}]}
status: {podIPs: [{ip: 10.244.1.5}]}
---
apiVersion: v1
kind: Pod
metadata: {namespace: shop, name: db-1, labels: {app: db}}
spec: {nodeName: n2, containers: [{name: c}]}
status: {podIPs: [{ip: 10.244.2.5}]}
---
apiVersion: v1
kind: Service
metadata: {namespace: shop, name: web}
spec: {selector: {app: web}, ports: [{port: 443, targetPort: https}]}
---
`

// findings analyzes, and checks that what is to fix them does.
func findings(t *testing.T, o *Objects, want ...string) []Finding {
	t.Helper()
	all, err := o.Analyze("")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range all {
		got = append(got, f.Kind+" "+f.Object)
		if f.Fix != "" {
			if err := o.Read(strings.NewReader(f.Fix), ""); err != nil {
				t.Errorf("%v in\n%s", err, f.Fix)
			}
			valid(t, f)
		}
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %q, want %q", got, want)
	}
	left, err := o.Analyze("")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range left {
		if f.Fix != "" {
			t.Errorf("it is not mended by\n%s", f.Fix)
		}
	}
	return all
}

// valid looks at what is to fix a finding, as `heddle validate` does.
func valid(t *testing.T, f Finding) {
	t.Helper()
	const around = "{apiVersion: heddle.dev/v1alpha1, kind: Mesh, metadata: {name: default}, spec: {trustDomain: m, clusterRanges: [10.0.0.0/8]}}\n---\n" +
		"{apiVersion: v1, kind: Namespace, metadata: {name: %[1]s, labels: {heddle.dev/mesh: enabled}}}\n---\n%[2]s"
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "fix.yaml"), fmt.Appendf(nil, around, f.Namespace, f.Fix), 0o600); err != nil {
		t.Fatal(err)
	}
	objects, err := kube.LoadDir(dir)
	if err == nil {
		_, err = kube.Compile(objects)
	}
	if err != nil {
		t.Errorf("what is to fix %s is not valid: %v in\n%s", f.Object, err, f.Fix)
	}
}

func TestControlPlane(t *testing.T) {
	const calls = `
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingWebhookConfiguration
metadata: {name: guard}
webhooks:
  - {name: guard.shop.example, failurePolicy: Fail, clientConfig: {service: {namespace: shop, name: web, path: /x}}}
  - {name: other.example, clientConfig: {url: "https://elsewhere"}}
  - {name: elsewhere.example, clientConfig: {service: {namespace: other, name: web}}}
---
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingWebhookConfiguration
metadata: {name: defaults}
webhooks:
  - {name: defaults.shop.example, failurePolicy: Ignore, clientConfig: {service: {namespace: shop, name: web, port: 443}}}
---
apiVersion: apiregistration.k8s.io/v1
kind: APIService
metadata: {name: v1beta1.metrics.k8s.io}
spec: {service: {namespace: shop, name: web, port: 443}}
---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: things.shop.example}
spec: {conversion: {strategy: Webhook, webhook: {clientConfig: {service: {namespace: shop, name: web, port: 443}}}}}
`
	o := read(t, shop, calls)
	all := findings(t, o, "api-service APIService v1beta1.metrics.k8s.io", "webhook CustomResourceDefinition things.shop.example", "webhook MutatingWebhookConfiguration defaults", "webhook ValidatingWebhookConfiguration guard")
	for i, says := range []string{"`kubectl top` and autoscalers then have no metrics", "can then be neither read nor written", "failurePolicy Ignore", "failurePolicy Fail"} {
		if !strings.Contains(all[i].Detail, says) {
			t.Errorf("%q does not say %q", all[i].Detail, says)
		}
	}
	const fix = `apiVersion: heddle.dev/v1alpha1
kind: PeerAuthentication
metadata:
  name: web-plaintext-8443
  namespace: shop
spec:
  portModes:
  - mode: PERMISSIVE
    port: 8443
  selector:
    matchLabels:
      app: web
`
	if all[0].Fix != fix {
		t.Errorf("the fix is\n%s, want\n%s", all[0].Fix, fix)
	}
	// Where plaintext is taken anyway, or nothing is enrolled, nothing is cut off.
	findings(t, read(t, shop, calls, "{apiVersion: heddle.dev/v1alpha1, kind: Mesh, metadata: {name: default}, spec: {trustDomain: m, clusterRanges: [10.0.0.0/8], defaults: {peerAuthentication: PERMISSIVE}}}"))
	findings(t, read(t, strings.Replace(shop, "enabled", "disabled", 1), calls))
	// What is asked is what would be.
	o = read(t, strings.Replace(shop, "enabled", "disabled", 1), calls, "{apiVersion: heddle.dev/v1alpha1, kind: Mesh, metadata: {name: default}, spec: {trustDomain: m, clusterRanges: [10.0.0.0/8], defaults: {peerAuthentication: PERMISSIVE}}}")
	o.Enroll("shop", false)
	findings(t, o)
	o.Enroll("shop", true)
	if findings(t, o, "api-service APIService v1beta1.metrics.k8s.io", "webhook CustomResourceDefinition things.shop.example", "webhook MutatingWebhookConfiguration defaults", "webhook ValidatingWebhookConfiguration guard"); !o.HasNamespace("shop") || o.HasNamespace("none") {
		t.Error("the namespaces are others")
	}
	o = read(t, shop, calls)
	if some, err := o.Analyze("bank"); err != nil || len(some) != 0 {
		t.Errorf("of another namespace: %v, %v", some, err)
	}
}

func TestScrapesAndClients(t *testing.T) {
	const scraped = `
apiVersion: v1
kind: Pod
metadata: {namespace: shop, name: %s, labels: {app: api, pod-template-hash: x}, annotations: {prometheus.io/scrape: "true"%s}}
spec: {nodeName: n1, containers: [{name: c, ports: [{containerPort: 9090}]}]}
---
`
	const prometheus = "{apiVersion: v1, kind: Pod, metadata: {namespace: %s, name: p, labels: {app: prometheus}}, spec: {nodeName: n1, containers: []}}"
	two := fmt.Sprintf(scraped, "api-1", "") + fmt.Sprintf(scraped, "api-2", `, prometheus.io/port: "9090"`)
	all := findings(t, read(t, shop, two, fmt.Sprintf(prometheus, "monitoring")), "scrape Pod shop/api-1")
	if !strings.Contains(all[0].Fix, "name: api-plaintext-9090") || strings.Contains(all[0].Fix, "hash") {
		t.Errorf("the fix is\n%s", all[0].Fix)
	}
	findings(t, read(t, shop, two, fmt.Sprintf(prometheus, "shop")))
	findings(t, read(t, shop, `{apiVersion: v1, kind: Service, metadata: {namespace: shop, name: m, annotations: {prometheus.io/scrape: "true", prometheus.io/port: "9102"}}, spec: {selector: {app: db}}}`), "scrape Service shop/m")
	findings(t, read(t, shop, "{apiVersion: v1, kind: Service, metadata: {namespace: shop, name: public}, spec: {type: LoadBalancer, selector: {app: web}, ports: [{port: 80, targetPort: 8080}, {port: 53, protocol: UDP}]}}"), "datagrams Service shop/public", "outside-client Service shop/public")
	const names = "{apiVersion: v1, kind: Service, metadata: {namespace: shop, name: dns}, spec: {selector: {app: %s}, ports: [{port: 53, protocol: UDP}, {port: 53, protocol: TCP}]}}"
	all = findings(t, read(t, shop, fmt.Sprintf(names, "web")), "datagrams Service shop/dns")
	if !strings.Contains(all[0].Detail, "at port 53,") || !strings.Contains(all[0].Remedy, "heddle.dev/mesh: disabled") {
		t.Errorf("got %+v", all[0])
	}
	findings(t, read(t, shop, fmt.Sprintf(names, "nobody")))
	host := "{apiVersion: apps/v1, kind: DaemonSet, metadata: {namespace: shop, name: node}, spec: {template: {metadata: {labels: {app: node%s}}, spec: {hostNetwork: true, containers: []}}}}"
	all = findings(t, read(t, shop, fmt.Sprintf(host, "")), "host-network Pod shop/node")
	if all[0].Fix != "" || !strings.Contains(all[0].Remedy, "heddle.dev/mesh: disabled") {
		t.Errorf("got %+v", all[0])
	}
	findings(t, read(t, shop, fmt.Sprintf(host, ", heddle.dev/mesh: disabled")))
}

// TestMonitors: what the Prometheus operator's objects have scraped.
func TestMonitors(t *testing.T) {
	const shopService = `
apiVersion: v1
kind: Service
metadata: {namespace: shop, name: metrics, labels: {app: web, team: a}}
spec: {selector: {app: web}, ports: [{name: other, port: 80}, {name: http-metrics, port: 9100, targetPort: 9090}]}
---
`
	monitor := func(kind, namespace, spec string) string {
		return fmt.Sprintf("{apiVersion: monitoring.coreos.com/v1, kind: %s, metadata: {namespace: %s, name: m}, spec: %s}\n---\n", kind, namespace, spec)
	}
	const prometheus = "{apiVersion: v1, kind: Pod, metadata: {namespace: %s, name: p, labels: {app.kubernetes.io/name: prometheus}}, spec: {nodeName: n1, containers: []}}\n---\n"
	for _, tc := range []struct {
		name, monitor string
		port          string // that of the fix; "" when nothing is cut off
	}{
		{"a service's port by its name", monitor("ServiceMonitor", "shop", "{selector: {matchLabels: {team: a}}, endpoints: [{port: http-metrics}]}"), "9090"},
		{"the pods' port by its number", monitor("ServiceMonitor", "shop", "{selector: {}, endpoints: [{targetPort: 9090}]}"), "9090"},
		{"the pods' port by its name", monitor("ServiceMonitor", "shop", "{selector: {matchExpressions: [{key: team, operator: Exists}]}, endpoints: [{targetPort: https}]}"), "8443"},
		{"from another namespace", monitor("ServiceMonitor", "monitoring", "{selector: {matchLabels: {team: a}}, namespaceSelector: {matchNames: [shop]}, endpoints: [{port: http-metrics}]}"), "9090"},
		{"of every namespace", monitor("ServiceMonitor", "monitoring", "{selector: {matchLabels: {team: a}}, namespaceSelector: {any: true}, endpoints: [{port: http-metrics}]}"), "9090"},
		{"of its own namespace only", monitor("ServiceMonitor", "monitoring", "{selector: {matchLabels: {team: a}}, endpoints: [{port: http-metrics}]}"), ""},
		{"other services", monitor("ServiceMonitor", "shop", "{selector: {matchLabels: {team: b}}, endpoints: [{port: http-metrics}]}"), ""},
		{"a port that is not there", monitor("ServiceMonitor", "shop", "{selector: {}, endpoints: [{port: none}]}"), ""},
		{"pods, a port by its name", monitor("PodMonitor", "shop", "{selector: {matchLabels: {app: web}}, podMetricsEndpoints: [{port: https}]}"), "8443"},
		{"pods, a port by its number", monitor("PodMonitor", "shop", "{selector: {matchExpressions: [{key: app, operator: In, values: [web]}]}, podMetricsEndpoints: [{portNumber: 9090}]}"), "9090"},
		{"pods, a port as it was written once", monitor("PodMonitor", "shop", "{selector: {matchLabels: {app: web}}, podMetricsEndpoints: [{targetPort: 9090}]}"), "9090"},
		{"other pods", monitor("PodMonitor", "shop", "{selector: {matchLabels: {app: none}}, podMetricsEndpoints: [{port: https}]}"), ""},
		{"pods, no port", monitor("PodMonitor", "shop", "{selector: {}, podMetricsEndpoints: [{path: /m}]}"), ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			kind, namespace := "ServiceMonitor", "shop"
			if strings.Contains(tc.monitor, "PodMonitor") {
				kind = "PodMonitor"
			}
			if strings.Contains(tc.monitor, "namespace: monitoring") {
				namespace = "monitoring"
			}
			var want []string
			if tc.port != "" {
				want = []string{"scrape " + kind + " " + namespace + "/m"}
			}
			all := findings(t, read(t, shop, shopService, tc.monitor, fmt.Sprintf(prometheus, "monitoring")), want...)
			if tc.port != "" && (all[0].Namespace != "shop" || !strings.Contains(all[0].Fix, "port: "+tc.port+"\n") || !strings.Contains(all[0].Fix, "app: web")) {
				t.Errorf("it is mended in %s by\n%s", all[0].Namespace, all[0].Fix)
			}
			findings(t, read(t, shop, shopService, tc.monitor, fmt.Sprintf(prometheus, "shop"))) // which is in the mesh
		})
	}
	bad := read(t, shop)
	if err := bad.Read(strings.NewReader(monitor("PodMonitor", "shop", "{selector: 5}")), ""); err == nil || !strings.Contains(err.Error(), "PodMonitor shop/m") {
		t.Errorf("one that cannot be read: %v", err)
	}
}

func TestNetworkPolicies(t *testing.T) {
	policy := func(name, spec string) string {
		return fmt.Sprintf("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {namespace: shop, name: %s}\nspec: %s\n---\n", name, spec)
	}
	const only = "NetworkPolicy shop/p"
	for _, tc := range []struct {
		name, policies string
		blocked        bool
	}{
		{"one port from one workload", policy("p", "{podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: 5432}]}]}"), true},
		{"one port from everybody", policy("p", "{podSelector: {}, policyTypes: [Ingress], ingress: [{ports: [{port: 80}]}]}"), true},
		{"a port by name", policy("p", "{podSelector: {}, ingress: [{ports: [{port: https}]}]}"), true},
		{"from a namespace", policy("p", "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: shop}}}], ports: [{port: 80}]}]}"), true},
		{"from pods' addresses", policy("p", "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.244.0.0/16}}], ports: [{port: 80}]}]}"), true},
		{"from other addresses", policy("p", "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.244.0.0/16, except: [10.244.1.5/32, 10.244.2.5/32]}}], ports: [{port: 80}]}]}"), false},
		{"to one port", policy("p", "{podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], egress: [{to: [{podSelector: {}}], ports: [{port: 5432}]}]}"), true},
		{"to DNS elsewhere", policy("p", "{podSelector: {}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}}], ports: [{port: 53}]}]}"), false},
		{"UDP only", policy("p", "{podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: 53, protocol: UDP}]}]}"), false},
		{"every port", policy("p", "{podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}"), false},
		{"every TCP port", policy("p", "{podSelector: {}, ingress: [{ports: [{protocol: TCP}]}]}"), false},
		{"a range with the tunnel in it", policy("p", "{podSelector: {}, ingress: [{ports: [{port: 15000, endPort: 15100}]}]}"), false},
		{"a range without", policy("p", "{podSelector: {}, ingress: [{ports: [{port: 8000, endPort: 9000}]}]}"), true},
		{"nobody is meant to", policy("p", "{podSelector: {}, policyTypes: [Ingress, Egress]}"), false},
		{"nobody is selected", policy("p", "{podSelector: {matchLabels: {app: none}}, ingress: [{ports: [{port: 80}]}]}"), false},
		{"from outside the mesh only", policy("p", "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: other}}}], ports: [{port: 80}]}]}"), false},
		{"completed by another", policy("p", "{podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: 5432}]}]}") +
			policy("q", "{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: 15008}]}]}"), false},
		{"completed for other pods only", policy("p", "{podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: 5432}]}]}") +
			policy("q", "{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: 15008}]}]}"), true},
		{"completed for other peers only", policy("p", "{podSelector: {}, ingress: [{ports: [{port: 5432}]}]}") +
			policy("q", "{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: 15008}]}]}"), true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var want []string
			if tc.blocked {
				want = []string{KindNetworkPolicy + " " + only}
			}
			all := findings(t, read(t, shop, tc.policies), want...)
			if tc.blocked && !strings.Contains(all[0].Fix, "port: 15008") {
				t.Errorf("the fix is\n%s", all[0].Fix)
			}
		})
	}
	const both = "{podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress, Egress], ingress: [{from: [{podSelector: {}}], ports: [{port: 80}, {port: 90}]}], egress: [{to: [{podSelector: {}}], ports: [{port: 5432}]}]}"
	all := findings(t, read(t, shop, policy("p", both)), KindNetworkPolicy+" "+only)
	const fix = `apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: p-heddle-tunnel
  namespace: shop
spec:
  egress:
  - ports:
    - port: 15008
      protocol: TCP
    to:
    - podSelector: {}
  ingress:
  - from:
    - podSelector: {}
    ports:
    - port: 15008
      protocol: TCP
  podSelector:
    matchLabels:
      app: db
  policyTypes:
  - Ingress
  - Egress
`
	if all[0].Fix != fix || !strings.Contains(all[0].Detail, "ingress to port 80, 90, and egress to port 5432") {
		t.Errorf("%s\n%s, want\n%s", all[0].Detail, all[0].Fix, fix)
	}
	// Policies of namespaces without a pod in the mesh are none of ours.
	findings(t, read(t, strings.Replace(shop, "enabled", "disabled", 1), policy("p", both)))
}

func TestFiles(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"a.yaml": shop, "b.json": `{"apiVersion":"v1","kind":"List","items":[{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{"name":"p"},"spec":{"podSelector":{},"ingress":[{"ports":[{"port":80}]}]}}]}`,
		"README.md": "not this", ".hidden.yaml": "x",
		"c.yml": "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\nspec: {template: {metadata: {labels: {app: web}}, spec: {containers: []}}}\n---\n# nothing\n---\napiVersion: batch/v1\nkind: CronJob\nmetadata: {name: c}\nspec: {jobTemplate: {spec: {template: {spec: {containers: []}}}}}\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	o, err := FromFiles(nil, []string{dir}, "front")
	if err != nil {
		t.Fatal(err)
	}
	o.Enroll("front", false)
	findings(t, o, "network-policy NetworkPolicy front/p")
	for text, says := range map[string]string{
		"kind: x": "document 1: it is no object", "a: [": "document 1", "apiVersion: v1\nkind: Pod\nspec: 5": "Pod", "apiVersion: v1\nkind: List\nitems: [5]": "items[0]",
		"apiVersion: v1\nkind: List\nitems: [{apiVersion: v1, kind: List, items: []}]": "a list in a list",
	} {
		bad := filepath.Join(dir, "bad.yaml")
		if err := os.WriteFile(bad, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := FromFiles(nil, []string{bad}, ""); err == nil || !strings.Contains(err.Error(), says) || !strings.Contains(err.Error(), bad) {
			t.Errorf("%q: %v", text, err)
		}
	}
	lacking := filepath.Join(t.TempDir(), "w.yaml")
	if err := os.WriteFile(lacking, []byte("apiVersion: heddle.dev/v1alpha1\nkind: Workload\nmetadata: {name: w, namespace: front}\nspec: {}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = FromFiles(nil, []string{lacking}, "")
	lines := strings.Split(fmt.Sprint(err), "\n")
	if len(lines) < 2 || slices.ContainsFunc(lines, func(line string) bool { return !strings.HasPrefix(line, lacking+": document 1: Workload front/w: ") }) {
		t.Errorf("of several things that are wrong, not each says where: %q", lines)
	}
	if _, err := FromFiles(nil, []string{dir + "/none"}, ""); err == nil {
		t.Error("a folder that is not there was read")
	}
	if err := (&Objects{}).Read(endless{}, ""); err == nil || !strings.Contains(err.Error(), "larger than") {
		t.Errorf("an endless file: %v", err)
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = '#'
	}
	return len(p), nil
}

type lister map[string]string

func (l lister) List(_ context.Context, r schema.GroupVersionResource, _ string) ([]unstructured.Unstructured, error) {
	if l[r.Resource] == "" {
		return nil, nil
	}
	kind, name := l[r.Resource], "x"
	if r.Resource == "customresourcedefinitions" {
		kind, name = "CustomResourceDefinition", kind
	}
	return []unstructured.Unstructured{{Object: map[string]any{"apiVersion": r.GroupVersion().String(), "kind": kind, "metadata": map[string]any{"name": name}}}}, nil
}

func TestFromCluster(t *testing.T) {
	o, err := FromCluster(t.Context(), lister{"namespaces": "Namespace", "meshes": "Mesh", "networkpolicies": "NetworkPolicy"})
	if err != nil || len(o.namespaces) != 1 || len(o.meshes) != 1 || len(o.policies) != 1 || len(o.monitors) != 0 {
		t.Errorf("%v, %+v", err, o)
	}
	// Monitors are asked for where there are such kinds, and only there.
	o, err = FromCluster(t.Context(), lister{"customresourcedefinitions": "servicemonitors.monitoring.coreos.com", "servicemonitors": "ServiceMonitor", "podmonitors": "PodMonitor"})
	if err != nil || len(o.monitors) != 1 || o.monitors[0].kind != "ServiceMonitor" {
		t.Errorf("%v, monitors %+v", err, o.monitors)
	}
}

// FuzzRead: whatever a file says, it is read or refused, and can be analyzed.
func FuzzRead(f *testing.F) {
	f.Add(shop)
	f.Add("apiVersion: v1\nkind: List\nitems: [{apiVersion: apps/v1, kind: Deployment, metadata: {name: x}, spec: {template: {}}}]")
	f.Add("apiVersion: apiregistration.k8s.io/v1\nkind: APIService\nspec: {service: {port: 1.5}}")
	f.Add("apiVersion: monitoring.coreos.com/v1\nkind: PodMonitor\nmetadata: {namespace: shop}\nspec: {selector: {}, podMetricsEndpoints: [{targetPort: -1}, {port: https}]}")
	f.Add("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {namespace: shop}\nspec: {ingress: [{from: [{ipBlock: {cidr: x}}], ports: [{port: -1, endPort: 0}]}]}")
	f.Fuzz(func(t *testing.T, text string) {
		o := read(t, shop)
		if err := o.Read(strings.NewReader(text), "shop"); err != nil {
			return
		}
		if _, err := o.Analyze(""); err != nil {
			t.Logf("refused: %v", err)
		}
	})
}
