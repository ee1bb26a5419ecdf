package e2e

import (
	"fmt"
	"strings"
	"testing"

	"github.com/heddle-mesh/heddle/e2e/testbed"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// pod is a workload of the tests' mesh.
type pod struct {
	namespace, name, node string
	addresses             []string
}

// meshYAML writes the objects of a mesh with the namespaces "shop" (enrolled)
// and "plain" (not).
func meshYAML(mesh string, pods ...pod) string {
	var out strings.Builder
	out.WriteString(`apiVersion: heddle.dev/v1alpha1
kind: Mesh
metadata: {name: default}
spec:
  trustDomain: e2e.heddle.dev
  clusterRanges: ["10.244.0.0/16", "10.96.0.0/16", "fd00:244::/32", "fd00:96::/32"]
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {heddle.dev/mesh: enabled}}
---
apiVersion: v1
kind: Namespace
metadata: {name: plain}
`)
	for _, p := range pods {
		fmt.Fprintf(&out, `---
apiVersion: heddle.dev/v1alpha1
kind: Workload
metadata: {namespace: %[1]s, name: %[2]s, labels: {app: %[2]s}}
spec:
  node: %[3]s
  serviceAccount: %[2]s
  addresses: ["%[4]s"]
  networkNamespace: /run/netns/heddle-%[5]s-%[1]s-%[2]s
`, p.namespace, p.name, p.node, strings.Join(p.addresses, `", "`), mesh)
	}
	return out.String()
}

// service writes a Service of namespace shop that selects app=name.
func service(name, address string, port int) string {
	return fmt.Sprintf(`---
apiVersion: v1
kind: Service
metadata: {namespace: shop, name: %[1]s}
spec:
  selector: {app: %[1]s}
  clusterIPs: ["%[2]s"]
  ports: [{port: %[3]d, targetPort: %[3]d}]
`, name, address, port)
}

// The pods of the tests: a client and a server on each of two nodes.
func shopPods() []pod {
	return []pod{
		{"shop", "client", "n1", []string{"10.244.1.10", "fd00:244:1::10"}},
		{"shop", "near", "n1", []string{"10.244.1.11", "fd00:244:1::11"}},
		{"shop", "server", "n2", []string{"10.244.2.10", "fd00:244:2::10"}},
		{"shop", "six", "n2", []string{"fd00:244:2::66"}},
		{"plain", "talker", "n1", []string{"10.244.1.90", "fd00:244:1::90"}},
		{"plain", "listener", "n2", []string{"10.244.2.90", "fd00:244:2::90"}},
	}
}

func up(t *testing.T, name string, change ...func(*testbed.Bed)) *testbed.Bed {
	t.Helper()
	return testbed.Up(t, "..", name, meshYAML(name, shopPods()...)+service("server", "10.96.0.10", 80), change...)
}
