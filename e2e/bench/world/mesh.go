package world

import (
	"fmt"
	"strings"
)

// meshYAML is the configuration of a world. Enrolled pods have an identity each,
// and a policy that names who may connect, so that each connection is judged.
func meshYAML(name string, enrolled bool) string {
	mesh := "disabled"
	if enrolled {
		mesh = "enabled"
	}
	var b strings.Builder
	fmt.Fprintf(&b, `apiVersion: heddle.dev/v1alpha1
kind: Mesh
metadata: {name: default}
spec:
  trustDomain: bench.heddle.dev
  clusterRanges: ["10.244.0.0/16"]
---
apiVersion: v1
kind: Namespace
metadata: {name: load, labels: {heddle.dev/mesh: %[1]s}}
---
apiVersion: v1
kind: Namespace
metadata: {name: serve, labels: {heddle.dev/mesh: %[1]s}}
---
apiVersion: heddle.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {namespace: serve, name: clients}
spec:
  action: ALLOW
  rules:
    - from:
        - identities: ["spiffe://bench.heddle.dev/ns/load/sa/*"]
      to:
        - ports: [%[2]d]
`, mesh, Port)
	workload := func(namespace, pod, node, address string) {
		fmt.Fprintf(&b, `---
apiVersion: heddle.dev/v1alpha1
kind: Workload
metadata: {namespace: %[1]s, name: %[2]s}
spec: {node: %[3]s, serviceAccount: %[2]s, addresses: [%[4]q], networkNamespace: /run/netns/%[5]s}
`, namespace, pod, node, address, podNetNS(name, pod))
	}
	for i := range Clients {
		workload("load", fmt.Sprintf("c%d", i), "n1", clientAddr(i).String())
	}
	for i := range Servers {
		workload("serve", fmt.Sprintf("s%d", i), "n2", serverAddr(i).String())
	}
	return b.String()
}

func podNetNS(mesh, pod string) string { return "heddle-" + mesh + "-" + pod }
