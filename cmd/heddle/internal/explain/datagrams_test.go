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
	objects := []string{
		`{apiVersion: heddle.dev/v1alpha1, kind: Mesh, metadata: {name: default}, spec: {trustDomain: m, clusterRanges: ["10.0.0.0/8"]}}`,
		`{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {heddle.dev/mesh: enabled}}}`,
		`{apiVersion: heddle.dev/v1alpha1, kind: AuthorizationPolicy, metadata: {namespace: shop, name: quic}, spec: {selector: {matchLabels: {app: db}}, rules: [{from: [{serviceAccounts: [web]}], to: [{protocol: UDP, ports: [443]}]}]}}`,
		`{apiVersion: heddle.dev/v1alpha1, kind: AuthorizationPolicy, metadata: {namespace: shop, name: not-old}, spec: {action: DENY, rules: [{from: [{serviceAccounts: [old]}]}]}}`,
	}
	objects = append(objects,
		`{apiVersion: v1, kind: Service, metadata: {namespace: shop, name: one}, spec: {selector: {app: db}, clusterIP: 10.96.0.1, ports: [{port: 9, protocol: UDP, targetPort: 443}]}}`,
		`{apiVersion: v1, kind: Service, metadata: {namespace: shop, name: all}, spec: {selector: {tier: x}, clusterIP: 10.96.0.2, ports: [{port: 9, protocol: UDP, targetPort: 443}, {name: tls, port: 443}]}}`)
	for i, name := range []string{"db", "web", "old", "api"} {
		objects = append(objects, strings.NewReplacer("NAME", name, "NUMBER", string(rune('1'+i))).Replace(
			`{apiVersion: heddle.dev/v1alpha1, kind: Workload, metadata: {namespace: shop, name: NAME, labels: {app: NAME, tier: x}}, spec: {node: n1, serviceAccount: NAME, addresses: [10.0.0.NUMBER], networkNamespace: /run/netns/NAME}}`))
	}
	saysOfDatagrams(t, objects, []datagramCase{
		{"shop/web", "shop/db:443", "NoPolicy", "over UDP, to port 443 of shop/db: allow, PolicyAllow (policy shop/quic, rule 0)"},
		{"shop/web", "shop/db:444", "NoPolicy", "over UDP, to port 444 of shop/db: deny, PolicyNoMatch"},
		{"shop/api", "shop/db:443", "NoPolicy", "over UDP, to port 443 of shop/db: deny, PolicyNoMatch"},
		{"shop/old", "shop/db:443", "PolicyDeny", "over UDP, to port 443 of shop/db: deny, PolicyDeny (policy shop/not-old, rule 0)"},
		{"shop/db", "shop/web:443", "NoPolicy", ""},
		// A service's port that is there over UDP alone.
		{"shop/web", "one.shop:9", "ServicePortUndefined", "over UDP, to port 9 of service shop/one: allow, PolicyAllow (policy shop/quic, rule 0)"},
		{"shop/api", "one.shop:9", "ServicePortUndefined", "over UDP, to port 9 of service shop/one: deny, PolicyNoMatch at its endpoint shop/db"},
		// One endpoint that nobody opened closes the service's address, which is what the gate sees.
		{"shop/web", "all.shop:9", "ServicePortUndefined", "over UDP, to port 9 of service shop/all: deny, KernelUDP at its endpoint shop/api"},
		{"shop/web", "all.shop:443", "NoPolicy", "over UDP, to port 443 of service shop/all: deny, KernelUDP: the service has no such port over UDP"},
	})
}

// TestDatagramsOutside: beside what becomes of a connection that leaves the mesh is said what
// becomes of UDP to the same address and port, and what decides that.
func TestDatagramsOutside(t *testing.T) {
	objects := []string{
		`{apiVersion: heddle.dev/v1alpha1, kind: Mesh, metadata: {name: default}, spec: {trustDomain: m, clusterRanges: ["10.0.0.0/8"],
		  egress: {namespaces: [{namespace: bank, mode: DENY}], udp: {namespaces: [{namespace: shop, mode: ALLOW, ports: [123]}, {namespace: bank, mode: ALLOW}]}}}}`,
		`{apiVersion: v1, kind: Namespace, metadata: {name: plain}}`,
	}
	for i, namespace := range []string{"shop", "bank", "games", "plain"} {
		if namespace != "plain" {
			objects = append(objects, `{apiVersion: v1, kind: Namespace, metadata: {name: `+namespace+`, labels: {heddle.dev/mesh: enabled}}}`)
		}
		objects = append(objects, strings.NewReplacer("NAMESPACE", namespace, "NUMBER", string(rune('1'+i))).Replace(
			`{apiVersion: heddle.dev/v1alpha1, kind: Workload, metadata: {namespace: NAMESPACE, name: w}, spec: {node: n1, serviceAccount: w, addresses: [10.0.0.NUMBER], networkNamespace: /run/netns/NAMESPACE}}`))
	}
	saysOfDatagrams(t, objects, []datagramCase{
		{"shop/w", "192.0.2.7:123", "EgressAllowed", "over UDP, to port 123 outside the mesh: allow, EgressAllowed"},
		{"shop/w", "192.0.2.7:443", "EgressAllowed", "over UDP, to port 443 outside the mesh: deny, EgressDenied; spec.egress.udp of the Mesh does not let namespace shop out to this port"},
		{"bank/w", "192.0.2.7:443", "EgressDenied", "over UDP, to port 443 outside the mesh: allow, EgressAllowed"},
		{"bank/w", "192.0.2.7:8472", "EgressDenied", "over UDP, to port 8472 outside the mesh: deny, KernelUDP; this port stays closed"},
		{"bank/w", "224.0.0.251:443", "EgressDenied", "over UDP, to port 443 outside the mesh: deny, KernelUDP; no datagram leaves to 224.0.0.251"},
		{"games/w", "192.0.2.7:443", "EgressAllowed", "deny, EgressDenied; spec.egress.udp of the Mesh does not let namespace games out"},
		{"bank/w", "192.0.2.7:53", "EgressDenied", ""},
		{"plain/w", "192.0.2.7:443", "EgressAllowed", ""},
		{"bank/w", "10.9.9.9:443", "UnknownDestination", ""},
		{"bank/w", "shop/w:443", "NoPolicy", ""},
	})
}

// datagramCase is a question, the reason of a connection, and what is said of UDP beside it, if anything.
type datagramCase struct{ source, destination, tcp, note string }

// saysOfDatagrams asks about a mesh of these objects.
func saysOfDatagrams(t *testing.T, objects []string, cases []datagramCase) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "mesh.yaml"), []byte(strings.Join(objects, "\n---\n")), 0o600); err != nil {
		t.Fatal(err)
	}
	m, err := fromFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range cases {
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
