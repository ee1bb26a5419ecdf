package analyze

import (
	"fmt"
	"strings"
	"testing"
)

// behind has a service behind a waypoint, which is there, or not yet.
const behind = shop + `
apiVersion: v1
kind: Service
metadata: {namespace: shop, name: db, labels: {heddle.dev/waypoint: waypoint}}
spec: {selector: {app: db}, ports: [{port: 5432}, {name: metrics, port: 9090}]}
---
`

const itsPods = `
apiVersion: v1
kind: Service
metadata: {namespace: shop, name: waypoint, labels: {heddle.dev/waypoint: none}}
spec: {selector: {gateway.networking.k8s.io/gateway-name: waypoint}, ports: [{port: 15009}]}
---
apiVersion: v1
kind: Pod
metadata: {namespace: shop, name: waypoint-1, labels: {gateway.networking.k8s.io/gateway-name: waypoint}}
spec: {nodeName: n1, containers: [{name: c}]}
status: {podIPs: [{ip: 10.244.1.9}]}
---
`

func networkPolicy(name, spec string) string {
	return fmt.Sprintf("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {namespace: shop, name: %s}\nspec: %s\n---\n", name, spec)
}

// TestPoliciesThatBlockAWaypoint: who is admitted to a workload comes from the waypoint's
// pods when its service has one.
func TestPoliciesThatBlockAWaypoint(t *testing.T) {
	const (
		client  = "{podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: 5432}, {port: 15008}]}]}"
		through = "{podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {matchLabels: {gateway.networking.k8s.io/gateway-name: waypoint}}}], ports: [{port: 5432}, {port: 15008}]}]}"
		deny    = "{podSelector: {}, policyTypes: [Ingress]}"
	)
	for _, tc := range []struct {
		name, objects string
		want          []string
	}{
		{"one that admits the clients alone", behind + networkPolicy("p", client), []string{"waypoint NetworkPolicy shop/p"}},
		{"and a waypoint that is there", behind + itsPods + networkPolicy("p", client), []string{"waypoint NetworkPolicy shop/p"}},
		{"completed by another", behind + itsPods + networkPolicy("p", client) + networkPolicy("q", through), nil},
		{"completed before the waypoint is there", behind + networkPolicy("p", client) + networkPolicy("q", through), nil},
		{"no port of the service", behind + networkPolicy("p", strings.ReplaceAll(client, "5432", "22")), nil},
		{"of a range", behind + networkPolicy("p", strings.ReplaceAll(client, "{port: 5432}", "{port: 5000, endPort: 6000}")), []string{"waypoint NetworkPolicy shop/p"}},
		{"every port, to the same namespace", behind + networkPolicy("p", "{podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}"), nil},
		{"from addresses of pods", behind + networkPolicy("p", "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.244.0.0/16}}]}]}"), nil},
		{"from the client's address", behind + itsPods + networkPolicy("p", "{podSelector: {matchLabels: {app: db}}, ingress: [{from: [{ipBlock: {cidr: 10.244.1.5/32}}]}]}"), []string{"waypoint NetworkPolicy shop/p"}},
		{"nobody is meant to", behind + networkPolicy("p", "{podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress]}"), nil},
		{"without a waypoint", strings.Replace(behind, "{heddle.dev/waypoint: waypoint}", "{}", 1) + networkPolicy("p", client), nil},
		{"past that of the namespace", strings.NewReplacer("{heddle.dev/waypoint: waypoint}", "{heddle.dev/waypoint: none}", "heddle.dev/mesh: enabled}", "heddle.dev/mesh: enabled, heddle.dev/waypoint: waypoint}").Replace(behind) + networkPolicy("p", client), nil},
		{"that of the namespace", strings.NewReplacer("{heddle.dev/waypoint: waypoint}", "{}", "heddle.dev/mesh: enabled}", "heddle.dev/mesh: enabled, heddle.dev/waypoint: waypoint}").Replace(behind) + networkPolicy("p", client), []string{"waypoint NetworkPolicy shop/p"}},
		{"no address to be taken from", strings.Replace(behind, "spec: {selector: {app: db}", "spec: {clusterIP: None, selector: {app: db}", 1) + networkPolicy("p", client), nil},
		{"a default deny isolates the waypoint, too", behind + itsPods + networkPolicy("deny", deny) + networkPolicy("p", client), []string{"waypoint NetworkPolicy shop/deny", "waypoint NetworkPolicy shop/p"}},
		{"one that isolates the waypoint alone", behind + itsPods + networkPolicy("w", "{podSelector: {matchLabels: {gateway.networking.k8s.io/gateway-name: waypoint}}, policyTypes: [Ingress]}"), []string{"waypoint NetworkPolicy shop/w"}},
		{"and lets some in", behind + itsPods + networkPolicy("w", "{podSelector: {matchLabels: {gateway.networking.k8s.io/gateway-name: waypoint}}, ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]}"), nil},
	} {
		t.Run(tc.name, func(t *testing.T) { findings(t, read(t, tc.objects), tc.want...) })
	}
	all := findings(t, read(t, behind, networkPolicy("deny", deny), networkPolicy("p", client)), "waypoint NetworkPolicy shop/deny", "waypoint NetworkPolicy shop/p")
	const clients = `apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: waypoint-heddle-clients
  namespace: shop
spec:
  ingress:
  - from:
    - podSelector:
        matchLabels:
          app: web
    ports:
    - port: 15009
      protocol: TCP
    - port: 15008
      protocol: TCP
  podSelector:
    matchLabels:
      gateway.networking.k8s.io/gateway-name: waypoint
  policyTypes:
  - Ingress
`
	const workloads = `apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: p-heddle-waypoint
  namespace: shop
spec:
  ingress:
  - from:
    - podSelector:
        matchLabels:
          gateway.networking.k8s.io/gateway-name: waypoint
    ports:
    - port: 5432
      protocol: TCP
    - port: 15008
      protocol: TCP
  podSelector:
    matchLabels:
      app: db
  policyTypes:
  - Ingress
`
	if len(all) == 2 && (all[0].Fix != clients || all[1].Fix != workloads) {
		t.Errorf("the fixes are\n%s\n%s", all[0].Fix, all[1].Fix)
	}
}

// TestThrough: what would be blocked is found before the namespace has the label.
func TestThrough(t *testing.T) {
	o := read(t, strings.Replace(behind, "{heddle.dev/waypoint: waypoint}", "{}", 1), networkPolicy("p", "{podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]}"))
	findings(t, o)
	o.Through("shop", "waypoint")
	findings(t, o, "waypoint NetworkPolicy shop/p")
}
