package explain

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const behind = `
{apiVersion: heddle.dev/v1alpha1, kind: Mesh, metadata: {name: default}, spec: {trustDomain: m, clusterRanges: ["10.0.0.0/8"]}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {heddle.dev/mesh: enabled, heddle.dev/waypoint: waypoint}}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: plain}}
---
{apiVersion: heddle.dev/v1alpha1, kind: Workload, metadata: {namespace: shop, name: web, labels: {app: web}}, spec: {node: n1, serviceAccount: web, addresses: ["10.1.0.1"], networkNamespace: /run/netns/web}}
---
{apiVersion: heddle.dev/v1alpha1, kind: Workload, metadata: {namespace: shop, name: db, labels: {app: db}}, spec: {node: n1, serviceAccount: db, addresses: ["10.1.0.2"], networkNamespace: /run/netns/db}}
---
{apiVersion: heddle.dev/v1alpha1, kind: Workload, metadata: {namespace: shop, name: w1, labels: {app: waypoint}}, spec: {node: n2, serviceAccount: waypoint, ready: READY, addresses: ["10.1.0.3"], networkNamespace: /run/netns/w1}}
---
{apiVersion: heddle.dev/v1alpha1, kind: Workload, metadata: {namespace: plain, name: old}, spec: {node: n1, addresses: ["10.1.0.4"]}}
---
{apiVersion: v1, kind: Service, metadata: {namespace: shop, name: db}, spec: {selector: {app: db}, clusterIPs: ["10.96.0.1"], ports: [{port: 3306}]}}
---
{apiVersion: v1, kind: Service, metadata: {namespace: shop, name: waypoint}, spec: {selector: {app: waypoint}, clusterIPs: ["10.96.0.2"], ports: [{port: 15009}]}}
---
{apiVersion: heddle.dev/v1alpha1, kind: AuthorizationPolicy, metadata: {namespace: shop, name: only-web}, spec: {rules: [{from: [{serviceAccounts: [shop/web]}]}]}}
`

// TestExplainWaypoint: the endpoints are the waypoint's, which is told so, and what comes
// from it is admitted where others are not.
func TestExplainWaypoint(t *testing.T) {
	model := func(ready string) *Model {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "mesh.yaml"), []byte(strings.ReplaceAll(behind, "READY", ready)), 0o600); err != nil {
			t.Fatal(err)
		}
		m, err := fromFolder(dir)
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	m := model("true")
	for _, c := range []struct{ from, to, waypoint, endpoint, verdict, reason, path string }{
		{"shop/web", "shop/db", "shop/waypoint", "shop/w1", "allow", "Waypoint", PathTunnel},
		{"shop/w1", "shop/db", "", "shop/db", "allow", "Waypoint", PathTunnel},
		{"shop/db", "shop/db:3306", "shop/waypoint", "shop/w1", "deny", "PolicyNoMatch", PathTunnel}, // at the waypoint
		{"shop/web", "10.1.0.3:15009", "", "", "deny", "ReservedPort", ""},
		{"plain/old", "shop/db", "", "shop/db", "deny", "StrictPlaintext", PathRefused}, // nobody takes it to a waypoint
	} {
		a, err := Explain(m, c.from, c.to)
		if err != nil {
			t.Fatal(err)
		}
		var e Endpoint
		if len(a.Endpoints) > 0 {
			e = a.Endpoints[0]
		}
		if a.Waypoint != c.waypoint || e.Workload != c.endpoint || a.Verdict != c.verdict || a.Reason != c.reason || e.Path != c.path {
			t.Errorf("%s to %s: by %q to %q, %s: %s, %q", c.from, c.to, a.Waypoint, e.Workload, a.Verdict, a.Reason, e.Path)
		}
		var text bytes.Buffer
		if err := Print(&text, false, a); err != nil {
			t.Fatal(err)
		}
		if strings.Contains(text.String(), "through waypoint shop/waypoint") != (c.waypoint != "") {
			t.Errorf("%s to %s:\n%s", c.from, c.to, &text)
		}
	}
	a, err := Explain(model("false"), "shop/web", "shop/db")
	if err != nil {
		t.Fatal(err)
	}
	if a.Waypoint != "shop/waypoint" || a.Reason != "NoEndpoint" || !strings.Contains(strings.Join(a.Notes, "\n"), "waypoint-bypass") {
		t.Errorf("without a waypoint: by %q, %s, %q", a.Waypoint, a.Reason, a.Notes)
	}
}

// TestExplainRequests: where policies about requests are asked, the answer says which, and that
// the request decides; where nobody sees requests, whose rule refuses that.
func TestExplainRequests(t *testing.T) {
	const readers = `---
{apiVersion: heddle.dev/v1alpha1, kind: AuthorizationPolicy, metadata: {namespace: shop, name: readers}, spec: {action: ACTION, selector: {matchLabels: {app: db}}, rules: [{from: [{namespaces: [plain]}]}, {to: [{methods: [GET]}]}]}}
`
	for action, asked := range map[string]bool{"ALLOW": true, "DENY": true, "AUDIT": false} {
		dir := t.TempDir()
		all := strings.Replace(behind, "READY", "true", 1)
		all = all[:strings.LastIndex(all, "---")] + strings.Replace(readers, "ACTION", action, 1)
		if err := os.WriteFile(filepath.Join(dir, "mesh.yaml"), []byte(all), 0o600); err != nil {
			t.Fatal(err)
		}
		m, err := fromFolder(dir)
		if err != nil {
			t.Fatal(err)
		}
		a, err := Explain(m, "shop/web", "shop/db")
		if err != nil {
			t.Fatal(err)
		}
		var text bytes.Buffer
		if err := Print(&text, false, a); err != nil {
			t.Fatal(err)
		}
		if a.Verdict != "allow" || strings.Contains(text.String(), "depends on the request") != asked || (strings.Join(a.Requests, " ") == "shop/readers") != asked {
			t.Errorf("%s: %v\n%s", action, a.Requests, &text)
		}
		if a, err = Explain(m, "shop/web", "10.1.0.2:3306"); err != nil {
			t.Fatal(err)
		}
		e := a.Endpoints[0]
		refused := a.Reason == "RequestUnseen" && e.Policy == "shop/readers" && e.Rule != nil && *e.Rule == 1 && strings.Contains(strings.Join(a.Notes, "\n"), "shop/readers is about requests, which nobody sees")
		if refused != asked || (a.Verdict == "deny") != asked {
			t.Errorf("%s, past the waypoint: %s, %+v, %q", action, a.Reason, e, a.Notes)
		}
	}
}
