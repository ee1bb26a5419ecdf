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

// TestPoliciesAboutEgressThatBlockAWaypoint: who lets clients out to a workload has to let them
// out to its waypoint, and the waypoint out to the workload.
func TestPoliciesAboutEgressThatBlockAWaypoint(t *testing.T) {
	const (
		clients  = "{podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {app: db}}}], ports: [{port: 5432}, {port: 15008}]}]}"
		to       = "{podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {gateway.networking.k8s.io/gateway-name: waypoint}}}], ports: [{port: 15009}, {port: 15008}]}]}"
		deny     = "{podSelector: {}, policyTypes: [Egress]}"
		isolated = "{podSelector: {matchLabels: {gateway.networking.k8s.io/gateway-name: waypoint}}, policyTypes: [Egress]}"
		beyond   = "{podSelector: {matchLabels: {gateway.networking.k8s.io/gateway-name: waypoint}}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {app: db}}}], ports: [{port: 5432}, {port: 9090}, {port: 15008}]}]}"
		bank     = "{apiVersion: v1, kind: Namespace, metadata: {name: bank, labels: {heddle.dev/mesh: enabled}}}\n---\n" +
			"{apiVersion: v1, kind: Pod, metadata: {namespace: bank, name: b, labels: {app: b}}, spec: {nodeName: n1, containers: [{name: c}]}, status: {podIPs: [{ip: 10.244.1.8}]}}\n---\n"
	)
	elsewhere := strings.Replace(networkPolicy("e", "{podSelector: {}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {}, podSelector: {matchLabels: {app: db}}}]}]}"), "namespace: shop", "namespace: bank", 1)
	p, w, d := []string{"waypoint NetworkPolicy shop/p"}, []string{"waypoint NetworkPolicy shop/w"}, []string{"waypoint NetworkPolicy shop/d"}
	for _, tc := range []struct {
		name, objects string
		want          []string
	}{
		{"one that lets clients out to the workload alone", behind + networkPolicy("p", clients), p},
		{"and a waypoint that is there", behind + itsPods + networkPolicy("p", clients), p},
		{"completed by another", behind + itsPods + networkPolicy("p", clients) + networkPolicy("q", to), nil},
		{"completed before the waypoint is there", behind + networkPolicy("p", clients) + networkPolicy("q", to), nil},
		{"to no port of the service", behind + networkPolicy("p", strings.ReplaceAll(clients, "5432", "22")), nil},
		{"to every pod of the namespace", behind + networkPolicy("p", "{podSelector: {}, policyTypes: [Egress], egress: [{to: [{podSelector: {}}]}]}"), nil},
		{"to the workload's address", behind + itsPods + networkPolicy("p", "{podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.244.2.5/32}}]}]}"), p},
		{"nobody is meant to leave", behind + itsPods + networkPolicy("d", deny), nil},
		{"without a waypoint", strings.Replace(behind, "{heddle.dev/waypoint: waypoint}", "{}", 1) + networkPolicy("p", clients), nil},
		{"of clients in another namespace", behind + bank + elsewhere, []string{"waypoint NetworkPolicy bank/e"}},
		{"one that isolates the waypoint", behind + itsPods + networkPolicy("w", isolated), w},
		{"and lets it out to the workload", behind + itsPods + networkPolicy("w", beyond), nil},
		{"at one port of two", behind + itsPods + networkPolicy("w", strings.Replace(beyond, "{port: 9090}, ", "", 1)), w},
		{"a default deny, and clients let out to the waypoint", behind + itsPods + networkPolicy("d", deny) + networkPolicy("q", to), d},
		{"a default deny, and clients let out to the workload", behind + itsPods + networkPolicy("d", deny) + networkPolicy("p", clients), []string{d[0], p[0]}},
		{"all hops are let out", behind + itsPods + networkPolicy("d", deny) + networkPolicy("p", to) + networkPolicy("w", beyond), nil},
	} {
		t.Run(tc.name, func(t *testing.T) { findings(t, read(t, tc.objects), tc.want...) })
	}
	all := findings(t, read(t, behind, bank, elsewhere, networkPolicy("d", deny)), "waypoint NetworkPolicy bank/e", d[0])
	const toWaypoint = `apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: e-heddle-to-waypoint
  namespace: bank
spec:
  egress:
  - ports:
    - port: 15009
      protocol: TCP
    - port: 15008
      protocol: TCP
    to:
    - namespaceSelector:
        matchLabels:
          kubernetes.io/metadata.name: shop
      podSelector:
        matchLabels:
          gateway.networking.k8s.io/gateway-name: waypoint
  podSelector: {}
  policyTypes:
  - Egress
`
	const workloads = `apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: waypoint-heddle-workloads
  namespace: shop
spec:
  egress:
  - ports:
    - port: 5432
      protocol: TCP
    - port: 9090
      protocol: TCP
    - port: 15008
      protocol: TCP
    to:
    - podSelector:
        matchLabels:
          app: db
  podSelector:
    matchLabels:
      gateway.networking.k8s.io/gateway-name: waypoint
  policyTypes:
  - Egress
`
	if len(all) == 2 && (all[0].Fix != toWaypoint || all[1].Fix != workloads || all[0].Waypoint.String() != "shop/waypoint") {
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
