package publish

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestRequestsOfAFolderThatAreRelayed: a folder whose policy is about requests at a port that a
// TCPRoute carries is refused, and is taken without the route.
func TestRequestsOfAFolderThatAreRelayed(t *testing.T) {
	const objects = `{apiVersion: heddle.dev/v1alpha1, kind: Mesh, metadata: {name: default}, spec: {trustDomain: m, clusterRanges: ["10.0.0.0/8"]}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {heddle.dev/mesh: enabled}}}
---
{apiVersion: heddle.dev/v1alpha1, kind: Workload, metadata: {namespace: shop, name: api, labels: {app: api}}, spec: {node: n1, serviceAccount: api, addresses: [10.0.0.1], networkNamespace: /run/netns/api}}
---
{apiVersion: v1, kind: Service, metadata: {namespace: shop, name: api, labels: {heddle.dev/waypoint: way}}, spec: {selector: {app: api}, clusterIP: 10.1.0.1, ports: [{name: http, port: 80}]}}
---
{apiVersion: v1, kind: Service, metadata: {namespace: shop, name: way}, spec: {selector: {app: way}, clusterIP: 10.1.0.2, ports: [{port: 15009}]}}
---
{apiVersion: heddle.dev/v1alpha1, kind: AuthorizationPolicy, metadata: {namespace: shop, name: readers}, spec: {rules: [{to: [{methods: [GET]}]}]}}
`
	const route = `---
{apiVersion: gateway.networking.k8s.io/v1, kind: TCPRoute, metadata: {namespace: shop, name: api}, spec: {parentRefs: [{group: "", kind: Service, name: api, port: 80}], rules: [{backendRefs: [{name: api, port: 80}]}]}}
`
	const want = "AuthorizationPolicy shop/readers: spec.rules[0].to[0]: is about requests to workload shop/api, and no waypoint sees these"
	for text, refused := range map[string]bool{objects: false, objects + route: true} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "mesh.yaml"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Check(dir, false); (err != nil) != refused || refused && !strings.Contains(err.Error(), want) {
			t.Errorf("with the route %v: %v", refused, err)
		}
	}
}
