package analyze

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
)

// TestNamesOfFixes: no two objects that are printed are one, nor one that is there, and a
// name that nobody else has stays as it is.
func TestNamesOfFixes(t *testing.T) {
	const (
		ns   = "{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {heddle.dev/mesh: enabled}}}\n---\n"
		long = "my-release-kube-prometheus-stack-operator-"
		cut  = "my-release-kube-prometheus-stack-operato"
	)
	scraped := func(name, labels string) string {
		return fmt.Sprintf("{apiVersion: v1, kind: Pod, metadata: {namespace: shop, name: %s, labels: {%s}, annotations: {prometheus.io/scrape: \"true\", prometheus.io/port: \"9090\"}}, spec: {nodeName: n1, containers: [{name: c}]}}\n---\n", name, labels)
	}
	hook := func(name string) string {
		return fmt.Sprintf("{apiVersion: admissionregistration.k8s.io/v1, kind: ValidatingWebhookConfiguration, metadata: {name: %[1]s}, webhooks: [{name: g.x, clientConfig: {service: {namespace: shop, name: %[2]s%[1]s}}}]}\n---\n"+
			"{apiVersion: v1, kind: Service, metadata: {namespace: shop, name: %[2]s%[1]s}, spec: {selector: {app: %[1]s}, ports: [{port: 443, targetPort: 8443}]}}\n---\n"+
			"{apiVersion: v1, kind: Pod, metadata: {namespace: shop, name: %[1]s, labels: {app: %[1]s}}, spec: {nodeName: n1, containers: [{name: c}]}}\n---\n", name, long)
	}
	policy := func(name, app string) string {
		return fmt.Sprintf("{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {namespace: shop, name: %s}, spec: {podSelector: {matchLabels: {app: %s}}, ingress: [{from: [{podSelector: {}}], ports: [{port: 80}]}]}}\n---\n", name, app)
	}
	const there = "{apiVersion: heddle.dev/v1alpha1, kind: PeerAuthentication, metadata: {namespace: shop, name: web-plaintext-9090}, spec: {selector: {matchLabels: {app: other}}, portModes: [{port: 9090, mode: PERMISSIVE}]}}\n---\n"
	for _, tc := range []struct {
		name, objects string
		want          []string // names, sorted as findings are; "*" stands for a hash
	}{
		{"one", ns + scraped("a", "app: web"), []string{"web-plaintext-9090"}},
		{"one, cut", ns + hook("one"), []string{cut + "-plaintext-8443"}},
		{"two workloads of one app", ns + scraped("a", "app: web, tier: front") + scraped("b", "app: web, tier: back"), []string{"web-plaintext-9090", "web-plaintext-9090-*"}},
		{"two services' names, cut", ns + hook("one") + hook("two"), []string{cut + "-plaintext-8443", cut + "-plaintext-8443-*"}},
		{"two policies' names, cut", shop + policy(long+"one", "web") + policy(long+"two", "db"), []string{cut + "-heddle-tunnel", cut + "-heddle-tunnel-*"}},
		{"one that is there, of other pods", ns + there + scraped("a", "app: web"), []string{"web-plaintext-9090-*"}},
		{"two objects that call one port", ns + hook("one") + strings.ReplaceAll(hook("one"), "name: one}, webhooks", "name: other}, webhooks"), []string{cut + "-plaintext-8443"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			o := read(t, tc.objects)
			all, err := o.Analyze("")
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			seen := map[string]bool{}
			for _, text := range Fixes(all) {
				u, err := decode(text)
				if err != nil {
					t.Fatal(err)
				}
				seen[u.GetName()] = true
				got = append(got, regexp.MustCompile("-[0-9a-f]{8}$").ReplaceAllString(u.GetName(), "-*"))
				if err := o.Read(strings.NewReader(text), ""); err != nil {
					t.Errorf("%v in\n%s", err, text)
				}
			}
			if fmt.Sprint(got) != fmt.Sprint(tc.want) || len(seen) != len(got) {
				t.Errorf("got %q, want %q", got, tc.want)
			}
			if left, err := o.Analyze(""); err != nil || len(left) > 0 {
				t.Errorf("left: %+v, %v", left, err)
			}
		})
	}
}
