package product

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/e2e/testbed"
)

// servicesYAML are two pods of a StatefulSet and two more, one on each node, and
// services of every kind in front of them.
func servicesYAML(namespace string) string {
	service := func(name, spec string) string {
		return fmt.Sprintf("---\napiVersion: v1\nkind: Service\nmetadata: {name: %s, namespace: %s}\nspec: {%s}\n", name, namespace, spec)
	}
	const ports = "ports: [{port: 80, targetPort: 7000}]"
	text := service("db", "clusterIP: None, selector: {app: db}, ports: [{port: 7000}]") +
		service("any", "selector: {tier: pair}, "+ports) +
		service("close", "selector: {tier: pair}, trafficDistribution: PreferClose, "+ports) +
		service("zone", "selector: {tier: pair}, trafficDistribution: PreferSameZone, "+ports) +
		service("sticky", "selector: {tier: pair}, sessionAffinity: ClientIP, "+ports) +
		service("alias", "type: ExternalName, externalName: db-0.db."+namespace+".svc.cluster.local") +
		fmt.Sprintf(`---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db, namespace: %s}
spec:
  replicas: 2
  serviceName: db
  podManagementPolicy: Parallel
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{name: main, image: %s, imagePullPolicy: Never, args: [serve]}]
`, namespace, workloadImage)
	for i, node := range []string{"n1", "n2"} {
		pod := podYAML(fmt.Sprintf("pair-%d", i+1), node, "", "serve")
		text += strings.NewReplacer("namespace: shop", "namespace: "+namespace, "labels: {", "labels: {tier: pair, ").Replace(pod)
	}
	return text
}

// arrivals are where the connections of shop/client went, by the flows of its node:
// the workloads, by what was dialled: a service, or else a pod's address.
func (w *world) arrivals(t *testing.T, since time.Time, transports ...string) map[string][]string {
	t.Helper()
	out, err := w.node(t, "n1").Exec(t.Context(), onNode, "flows", "--socket", agent, "--workload", "shop/client", "--since", since.UTC().Format(time.RFC3339Nano), "--last", "1000", "-o", "json")
	if err != nil {
		t.Fatalf("flows: %v: %s", err, out)
	}
	to := map[string]map[string]bool{}
	for dec := json.NewDecoder(strings.NewReader(out)); ; {
		var f struct {
			testbed.Flow
			Service string `json:"service"`
		}
		if err := dec.Decode(&f); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("read flows: %v in %s", err, out)
		}
		if f.Source.Workload != "shop/client" || f.Direction == "inbound" {
			continue
		}
		if f.Verdict != "allow" || !slices.Contains(transports, f.Transport) {
			t.Errorf("a connection to %s %s is %s: %s over %s, want %v", f.Service, f.Destination.Workload, f.Verdict, f.Reason, f.Transport, transports)
		}
		dialled := f.Service
		if dialled == "" {
			dialled = f.Destination.Workload
		}
		if to[dialled] == nil {
			to[dialled] = map[string]bool{}
		}
		to[dialled][f.Destination.Workload] = true
	}
	all := map[string][]string{}
	for dialled, workloads := range to {
		all[dialled] = slices.Sorted(maps.Keys(workloads))
	}
	return all
}

// dialEach has shop/client connect several times to each name of a namespace, and
// returns where that went.
func (w *world) dialEach(t *testing.T, namespace string, names []string, transports ...string) map[string][]string {
	t.Helper()
	args := []string{"each", "12"}
	for _, name := range names {
		host, port, _ := strings.Cut(name, ":")
		args = append(args, host+"."+namespace+".svc.cluster.local.:"+port)
	}
	var began time.Time
	// A name that has just come is known to DNS a moment later.
	eventually(t, 20*time.Second, fmt.Sprintf("%v of %s answer", names, namespace), func() error {
		began = time.Now()
		out, err := w.inPod(t, "client", args...)
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	return w.arrivals(t, began, transports...)
}

// leadsToAll waits until a service of pair-1 and pair-2 has led to each of them. That they
// are ready, as the API server says, the client's node learns a moment later, and until
// then the one that it knows gets all; as does the other one for a second after a
// connection to one has failed, and by chance once in two thousand dozens.
func (w *world) leadsToAll(t *testing.T, namespace string, transports ...string) {
	t.Helper()
	seen, all := map[string]bool{}, []string{namespace + "/pair-1", namespace + "/pair-2"}
	eventually(t, 20*time.Second, fmt.Sprintf("%s/any leads to %v", namespace, all), func() error {
		for _, to := range w.dialEach(t, namespace, []string{"any:80"}, transports...)[namespace+"/any"] {
			if !slices.Contains(all, to) {
				t.Errorf("%s/any leads to %s", namespace, to)
			}
			seen[to] = true
		}
		if len(seen) < len(all) {
			return fmt.Errorf("it leads to %v", slices.Sorted(maps.Keys(seen)))
		}
		return nil
	})
}

// testServices: what Kubernetes' services of all kinds lead to, they lead to in the
// mesh: from a client in it to servers in it, and to servers outside.
func (w *world) testServices(t *testing.T) {
	for node, zone := range map[string]string{"n1": "za", "n2": "zb"} {
		w.kubectl(t, "label", "node", node, "topology.kubernetes.io/zone="+zone)
	}
	w.apply(t, "apiVersion: v1\nkind: Namespace\nmetadata: {name: plain}\n"+servicesYAML("plain")+servicesYAML("shop"))
	for _, namespace := range []string{"shop", "plain"} {
		w.kubectl(t, "-n", namespace, "rollout", "status", "statefulset/db", "--timeout="+patience.String())
		w.kubectl(t, "-n", namespace, "wait", "--for=condition=Ready", "pod/pair-1", "pod/pair-2", "--timeout="+patience.String())
	}
	for namespace, transports := range map[string][]string{"shop": {"tunnel", "splice"}, "plain": {"plaintext"}} {
		t.Run(namespace, func(t *testing.T) {
			w.leadsToAll(t, namespace, transports...)
			names := []string{"db-0.db:7000", "db-1.db:7000", "close:80", "zone:80", "sticky:80"}
			went := w.dialEach(t, namespace, names, transports...)
			one, two := namespace+"/pair-1", namespace+"/pair-2"
			for dialled, want := range map[string][]string{
				"/db-0": {namespace + "/db-0"}, "/db-1": {namespace + "/db-1"}, "/close": {one}, "/zone": {one},
			} {
				if got := went[namespace+dialled]; !slices.Equal(got, want) {
					t.Errorf("%s%s leads to %v, want %v", namespace, dialled, got, want)
				}
			}
			if got := went[namespace+"/sticky"]; len(got) != 1 {
				t.Errorf("a service with session affinity leads to %v", got)
			}
			// A headless service is its pods, and another name is what it is for.
			went = w.dialEach(t, namespace, []string{"db:7000"}, transports...)
			for dialled := range went {
				if dialled != namespace+"/db-0" && dialled != namespace+"/db-1" {
					t.Errorf("a headless service leads to %v", went)
				}
			}
			if went = w.dialEach(t, namespace, []string{"alias:7000"}, transports...); len(went) != 1 || len(went[namespace+"/db-0"]) != 1 {
				t.Errorf("an ExternalName leads to %v, want db-0", went)
			}
			// With nobody near, others are taken.
			w.kubectl(t, "-n", namespace, "delete", "pod", "pair-1", "--now")
			went = w.dialEach(t, namespace, []string{"close:80", "zone:80", "sticky:80"}, transports...)
			for _, dialled := range []string{"/close", "/zone", "/sticky"} {
				if got := went[namespace+dialled]; !slices.Equal(got, []string{two}) {
					t.Errorf("without pair-1, %s%s leads to %v, want %v", namespace, dialled, got, two)
				}
			}
		})
	}
	w.kubectl(t, "delete", "namespace", "plain", "--wait=false")
	w.kubectl(t, "-n", "shop", "delete", "--now", "service/db", "service/any", "service/close", "service/zone", "service/sticky", "service/alias", "statefulset/db", "pod/pair-2")
	for _, node := range []string{"n1", "n2"} {
		w.kubectl(t, "label", "node", node, "topology.kubernetes.io/zone-")
	}
}
