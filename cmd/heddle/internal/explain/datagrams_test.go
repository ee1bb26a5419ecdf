package explain

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestDatagrams: where policies of an endpoint speak of UDP, what becomes of it at the same
// port is said beside what becomes of a connection.
func TestDatagrams(t *testing.T) {
	dir := t.TempDir()
	objects := []string{
		`{apiVersion: heddle.dev/v1alpha1, kind: Mesh, metadata: {name: default}, spec: {trustDomain: m, clusterRanges: ["10.0.0.0/8"]}}`,
		`{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {heddle.dev/mesh: enabled}}}`,
		`{apiVersion: heddle.dev/v1alpha1, kind: AuthorizationPolicy, metadata: {namespace: shop, name: quic}, spec: {selector: {matchLabels: {app: db}}, rules: [{from: [{serviceAccounts: [web]}], to: [{protocol: UDP, ports: [443]}]}]}}`,
		`{apiVersion: heddle.dev/v1alpha1, kind: AuthorizationPolicy, metadata: {namespace: shop, name: not-old}, spec: {action: DENY, rules: [{from: [{serviceAccounts: [old]}]}]}}`,
	}
	for i, name := range []string{"db", "web", "old", "api"} {
		objects = append(objects, strings.NewReplacer("NAME", name, "NUMBER", string(rune('1'+i))).Replace(
			`{apiVersion: heddle.dev/v1alpha1, kind: Workload, metadata: {namespace: shop, name: NAME, labels: {app: NAME}}, spec: {node: n1, serviceAccount: NAME, addresses: [10.0.0.NUMBER], networkNamespace: /run/netns/NAME}}`))
	}
	if err := os.WriteFile(filepath.Join(dir, "mesh.yaml"), []byte(strings.Join(objects, "\n---\n")), 0o600); err != nil {
		t.Fatal(err)
	}
	m, err := fromFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ source, destination, tcp, note string }{
		{"shop/web", "shop/db:443", "NoPolicy", "over UDP, to port 443 of shop/db: allow, PolicyAllow (policy shop/quic, rule 0)"},
		{"shop/web", "shop/db:444", "NoPolicy", "over UDP, to port 444 of shop/db: deny, PolicyNoMatch"},
		{"shop/api", "shop/db:443", "NoPolicy", "over UDP, to port 443 of shop/db: deny, PolicyNoMatch"},
		{"shop/old", "shop/db:443", "PolicyDeny", "over UDP, to port 443 of shop/db: deny, PolicyDeny (policy shop/not-old, rule 0)"},
		{"shop/db", "shop/web:443", "NoPolicy", ""},
	} {
		a, err := Explain(m, c.source, c.destination)
		if err != nil {
			t.Fatal(err)
		}
		notes := strings.Join(a.Notes, "\n")
		if a.Reason != c.tcp || !strings.Contains(notes, c.note) || strings.Contains(notes, "UDP") != (c.note != "") {
			t.Errorf("%s to %s: %s, %q, want %s, %q", c.source, c.destination, a.Reason, notes, c.tcp, c.note)
		}
	}
}
