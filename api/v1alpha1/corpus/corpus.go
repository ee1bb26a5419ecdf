// Package corpus has objects of Heddle's kinds that everyone takes, and objects that are wrong
// in one place, which everyone has to refuse: the API server, by the schemas and rules of the
// definitions; internal/kube, which operators compile with; and the command line, which judges
// folders. It is there for their tests, which are in different places, and judges nothing.
package corpus

import (
	"fmt"
)

const (
	// GoodMesh is a Mesh's spec, Enrolled the namespace of all objects.
	GoodMesh = `{trustDomain: example.org, clusterRanges: ["10.0.0.0/8", "fd00::/8"]}`
	Enrolled = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {heddle.dev/mesh: enabled}}\n"
)

// Object is the text of one with a spec.
func Object(kind, spec string) string {
	meta := "{namespace: shop, name: it}"
	if kind == "Mesh" {
		meta = "{name: default}"
	}
	return fmt.Sprintf("apiVersion: heddle.dev/v1alpha1\nkind: %s\nmetadata: %s\nspec: %s\n", kind, meta, spec)
}

// Accepted are specs that everyone takes, by kind.
func Accepted() map[string][]string {
	all := map[string][]string{
		"Mesh": {
			GoodMesh,
			`{trustDomain: a_b.c-d, clusterRanges: [0.0.0.0/0, "::/0"], defaults: {peerAuthentication: PERMISSIVE}, egress: {mode: DENY, namespaces: [{namespace: a, mode: ALLOW}]}}`,
			`{trustDomain: example.org, clusterRanges: [10.0.0.0/8], dns: {mode: CAPTURE, namespaces: [{namespace: a, mode: DIRECT}]}}`,
			`{trustDomain: example.org, clusterRanges: [10.0.0.0/8], dns: {}}`,
			`{trustDomain: example.org, clusterRanges: [10.0.0.0/8], egress: {mode: ALLOW, udp: {mode: DENY, namespaces: [{namespace: games, mode: ALLOW, ports: [1, 123, 443, 65535]}, {namespace: a, mode: ALLOW}, {namespace: b, mode: DENY}]}}}`,
			`{trustDomain: example.org, clusterRanges: [10.0.0.0/8], egress: {udp: {mode: ALLOW, ports: [123], namespaces: [{namespace: b, mode: DENY}]}}}`,
			`{trustDomain: example.org, clusterRanges: [10.0.0.0/8], egress: {udp: {}}}`,
			`{trustDomain: example.org, clusterRanges: [10.0.0.0/8], revokedIdentities: ["spiffe://example.org/ns/shop/sa/web", "spiffe://example.org", "spiffe://x/..a/.b/..."]}`,
		},
		"Workload": {
			`{node: n1, addresses: [10.1.0.1, "fd00::1"], networkNamespace: /run/netns/web, probePorts: [80, 15020], ready: false, serviceAccount: a.b-c}`,
			`{node: n1.example.org, addresses: [10.1.0.1], networkNamespace: /run/.netns/..web/...}`,
		},
		"PeerAuthentication": {
			`{mode: STRICT}`,
			`{selector: {matchLabels: {app: "", example.org/Tier_1.x: a-B_c.9}}, portModes: [{port: 65535, mode: PERMISSIVE}, {port: 1, mode: STRICT}]}`,
		},
		"AuthorizationPolicy": {
			`{}`,
			`{action: DENY, rules: [{}]}`,
			`{action: AUDIT, rules: [{from: [{ipBlocks: [10.1.2.3/32, "fd00:1::/64"], notIpBlocks: [10.0.0.0/8]}], to: [{ports: [1, 65535], notPorts: [80]}]}]}`,
			`{rules: [{from: [{identities: ["spiffe://example.org/ns/*/sa/web", "spiffe://example.org/ns/shop/*", "spiffe://x/.a/..b/..."], notIdentities: ["spiffe://example.org/*"]}]}]}`,
			`{rules: [{from: [{namespaces: [shop]}], to: [{protocol: UDP, ports: [443]}, {ports: [443]}, {protocol: TCP}]}]}`,
			`{action: DENY, rules: [{to: [{protocol: UDP}]}, {to: [{protocol: UDP, notPorts: [53]}]}]}`,
			`{rules: [{to: [{hosts: ["*"], notHosts: ["*.Example.org", "a_b*", "[fd00::1]"], methods: [GET, M-SEARCH], notMethods: [POST], paths: ["*"]}, {paths: [/, /admin*, "*.css", "*/x", "/shop.Cart/*"]}]}]}`,
			`{action: DENY, rules: [{to: [{ports: [80], notPaths: [/a]}, {headers: [{name: X-Role, values: [admin*, "*", "a, b"]}, {name: x.y}]}]}]}`,
			`{rules: [{from: [{serviceAccounts: [web, shop/web.v2], namespaces: [shop], notNamespaces: [bank]}]}]}`,
		},
	}
	for _, spec := range Levels() {
		all["AuthorizationPolicy"] = append(all["AuthorizationPolicy"], fmt.Sprintf(spec, ""))
	}
	return all
}
