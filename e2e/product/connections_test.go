package product

import (
	"encoding/base64"
	"fmt"
	"strings"
	"testing"
	"time"
)

// vaultYAML is a service whose servers end TLS themselves, one on each node, and one for
// each of them; which of them has a connection is said by the name that it asks for.
func vaultYAML(t *testing.T) string {
	service := func(name, selector string) string {
		return fmt.Sprintf("---\napiVersion: v1\nkind: Service\nmetadata: {name: %s, namespace: shop}\nspec: {selector: {%s}, ports: [{name: tls, port: 443, targetPort: 8443}]}\n", name, selector)
	}
	server := func(name, node string) string {
		certificate, key := selfSigned(t, name)
		return strings.Replace(podYAML(name, node, itsShare, "secure", base64.StdEncoding.EncodeToString(certificate), base64.StdEncoding.EncodeToString(key)), "labels: {", "labels: {tier: vault, ", 1)
	}
	route := func(name, hostname, backend string) string {
		return fmt.Sprintf(`---
apiVersion: gateway.networking.k8s.io/v1
kind: TLSRoute
metadata: {name: %s, namespace: shop}
spec:
  parentRefs: [{group: "", kind: Service, name: vault, port: 443}]
  hostnames: [%q]
  rules: [{backendRefs: [{name: %s, port: 443}]}]
`, name, hostname, backend)
	}
	return service("vault", "tier: vault") + service("vault-1", "app: vault-1") + service("vault-2", "app: vault-2") +
		server("vault-1", "n1") + server("vault-2", "n2") +
		route("vault-long", "vault.shop.svc.cluster.local", "vault-1") + route("vault-short", "vault.shop.svc", "vault-2") + `---
apiVersion: v1
kind: Service
metadata: {name: wire, namespace: shop}
spec: {selector: {tier: site}, ports: [{name: tcp, port: 80, targetPort: 8080}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: TCPRoute
metadata: {name: wire, namespace: shop}
spec:
  parentRefs: [{group: "", kind: Service, name: wire, port: 80}]
  rules: [{backendRefs: [{name: site-1, port: 80, weight: 3}, {name: site-2, port: 80, weight: 1}]}]
`
}

// testRoutedConnections has connections routed by the name that TLS asks for, which the
// servers go on to end themselves, and by weights.
func (w *world) testRoutedConnections(t *testing.T) {
	w.apply(t, vaultYAML(t))
	w.waitReady(t, "vault-1", "vault-2")
	w.enrolled(t, "n1", "shop/vault-1")
	w.enrolled(t, "n2", "shop/vault-2")
	w.kubectl(t, "-n", "shop", "label", "service", "vault", "wire", "heddle.dev/waypoint=waypoint")
	for _, route := range []string{"tlsroute/vault-long", "tlsroute/vault-short", "tcproute/wire"} {
		for _, condition := range []string{"Accepted", "ResolvedRefs"} {
			w.kubectl(t, "-n", "shop", "wait", route, "--timeout=20s",
				fmt.Sprintf(`--for=jsonpath={.status.parents[?(@.controllerName=="heddle.dev/operator")].conditions[?(@.type=="%s")].status}=True`, condition))
		}
	}
	for host, server := range map[string]string{"vault.shop.svc.cluster.local": "vault-1", "vault.shop.svc": "vault-2"} {
		eventually(t, 20*time.Second, host+" leads to "+server, func() error {
			all, err := w.fetch(t, "client", 5, "https://"+host, "connection=close")
			for _, p := range all {
				if p.Signed != server || p.Server != server || p.Status != 200 {
					err = fmt.Errorf("%+v", p)
				}
			}
			return err
		})
	}
	if all, err := w.fetch(t, "client", 1, "https://vault.shop"); err == nil || !strings.Contains(err.Error(), "unrecognized name") {
		t.Errorf("a name that no route has: %+v, %v; want to be told that it is unrecognized", all, err)
	}
	eventually(t, 20*time.Second, "of 80 connections 60 go to site-1", func() error {
		all, err := w.fetch(t, "client", 80, "http://wire.shop.svc.cluster.local.", "connection=close")
		at := map[string]int{}
		for _, p := range all {
			at[p.Server]++
		}
		// Each of the two replicas is exact to within one.
		if err == nil && (len(all) != 80 || at["site-1"] < 58 || at["site-1"] > 62 || at["site-1"]+at["site-2"] != 80) {
			err = fmt.Errorf("%v", at)
		}
		return err
	})
	eventually(t, 20*time.Second, "flows name the routes", func() error {
		for kind, names := range map[string][]string{"TLS": {"vault-long", "vault-short"}, "TCP": {"wire"}} {
			for _, name := range names {
				said := w.cli(t, "flows", "-n", "shop", "--route", "shop/"+name, "--last", "3", "-o", "json")
				if !strings.Contains(said, fmt.Sprintf(`"method":%q`, kind)) || !strings.Contains(said, fmt.Sprintf("%sRoute shop/%s ", kind, name)) {
					return fmt.Errorf("of the route %s there is %s", name, said)
				}
			}
		}
		return nil
	})
	w.kubectl(t, "-n", "shop", "delete", "tlsroute/vault-long", "tlsroute/vault-short", "tcproute/wire", "service/vault", "service/vault-1", "service/vault-2", "service/wire",
		"pod/vault-1", "pod/vault-2", "--now")
}

// testWaypointScaling has a waypoint whose replicas are said to be busy scaled by
// Kubernetes, and back by whom it belongs to, under requests: none is lost, and the
// operator leaves the number to the autoscaler meanwhile.
func (w *world) testWaypointScaling(t *testing.T) {
	ready := func() string {
		return w.kubectl(t, "-n", "shop", "get", "deployment", "waypoint", "-o", "jsonpath={.spec.replicas}/{.status.readyReplicas}")
	}
	w.apply(t, `apiVersion: v1
kind: Namespace
metadata: {name: measured}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: meter, namespace: shop}
rules: [{apiGroups: [""], resources: [pods], verbs: [list]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: meter, namespace: shop}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: meter}
subjects: [{kind: ServiceAccount, name: default, namespace: measured}]
`)
	w.deployMetricsAPI(t, "measured")
	defer w.kubectl(t, "delete", "namespace/measured", "apiservice/"+metricsAPI, "--wait=false")
	defer w.kubectl(t, "-n", "shop", "delete", "role/meter", "rolebinding/meter")
	w.kubectl(t, "-n", "measured", "wait", "--for=condition=Ready", "pod/meter", "--timeout="+patience.String())
	if now := ready(); now != "2/2" {
		t.Fatalf("of the waypoint's replicas are ready %s, want 2/2", now)
	}

	w.cli(t, "waypoint", "apply", "-n", "shop", "--autoscale", "2-3", "--wait")
	eventually(t, patience, "there are three replicas", func() error {
		if now := ready(); now != "3/3" {
			said, _ := w.Kubectl(t.Context(), "", "-n", "shop", "describe", "hpa", "waypoint")
			return fmt.Errorf("%s: %s", now, said)
		}
		return nil
	})
	w.visits(t, 20)
	w.cli(t, "waypoint", "apply", "-n", "shop", "--autoscale", "2-3", "--wait") // all of it is applied once more
	if now := ready(); now != "3/3" {
		t.Errorf("the operator has put the number of replicas back: %s", now)
	}
	w.cli(t, "waypoint", "apply", "-n", "shop", "--replicas", "2", "--wait")
	eventually(t, patience, "there are two again", func() error {
		left, err := w.Kubectl(t.Context(), "", "-n", "shop", "get", "hpa", "-o", "name")
		if now := ready(); err != nil || now != "2/2" || strings.TrimSpace(left) != "" {
			return fmt.Errorf("%s, autoscalers %q, %v", now, left, err)
		}
		return nil
	})
	w.visits(t, 20)
}
