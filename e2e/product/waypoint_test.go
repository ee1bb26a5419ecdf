package product

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/testenv"
)

// siteYAML is a service of two servers, one on each node, and a service for each of them;
// who may not ask them, whatever way they come; and another client, with an identity of
// its own.
func siteYAML() string {
	service := func(name, selector string) string {
		return fmt.Sprintf("---\napiVersion: v1\nkind: Service\nmetadata: {name: %s, namespace: shop}\nspec: {selector: {%s}, ports: [{name: http, port: 80, targetPort: 8080}]}\n", name, selector)
	}
	server := func(name, node string) string {
		return strings.Replace(podYAML(name, node, itsShare, "serve"), "labels: {", "labels: {tier: site, ", 1)
	}
	return service("site", "tier: site") + service("site-1", "app: site-1") + service("site-2", "app: site-2") +
		server("site-1", "n1") + server("site-2", "n2") + `---
apiVersion: v1
kind: ServiceAccount
metadata: {name: guest, namespace: shop}
---
apiVersion: heddle.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: no-guests, namespace: shop}
spec:
  selector: {matchLabels: {tier: site}}
  action: DENY
  rules: [{from: [{identities: ["spiffe://cluster.local/ns/shop/sa/guest"]}]}]
` + strings.Replace(podYAML("guest", "n2", itsShare, "wait"), "spec:\n", "spec:\n  serviceAccountName: guest\n", 1)
}

// routeYAML is a route with a bit of everything; of other requests, share in a hundred go
// to site-1.
func routeYAML(share int) string {
	return fmt.Sprintf(`---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: site, namespace: shop}
spec:
  parentRefs: [{group: "", kind: Service, name: site, port: 80}]
  rules:
  - name: chosen
    matches: [{headers: [{name: x-server, value: two}]}]
    backendRefs: [{name: site-2, port: 80}]
  - name: moved
    matches: [{path: {value: /old}}]
    filters: [{type: RequestRedirect, requestRedirect: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /new}, statusCode: 301}}]
  - name: rewritten
    matches: [{path: {value: /shown}}]
    filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /hidden}}}]
    backendRefs: [{name: site-1, port: 80}]
  - name: split
    backendRefs: [{name: site-1, port: 80, weight: %d}, {name: site-2, port: 80, weight: %d}]
`, share, 100-share)
}

// site is where it is asked.
const site = "http://site.shop.svc.cluster.local."

// page is an answer, as the workload program prints it.
type page struct {
	Status                         int
	Location, Reason, Server, Path string
	Cookie                         string // that it sets, NAME=VALUE
	Signed                         string // whose certificate it was
	Fields                         map[string][]string
}

// fetch makes n requests over one connection from a pod.
func (w *world) fetch(t *testing.T, pod string, n int, url string, fields ...string) ([]page, error) {
	t.Helper()
	out, err := w.inPod(t, pod, append([]string{"fetch", fmt.Sprint(n), url}, fields...)...)
	if err != nil {
		return nil, fmt.Errorf("%w: %s", err, out)
	}
	var all []page
	for dec := json.NewDecoder(strings.NewReader(out)); ; {
		var p page
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return all, nil
		} else if err != nil {
			t.Fatalf("read answers: %v in %s", err, out)
		}
		all = append(all, p)
	}
}

// fetchOne makes one request, which has to be answered.
func (w *world) fetchOne(t *testing.T, pod, url string, fields ...string) page {
	t.Helper()
	all, err := w.fetch(t, pod, 1, url, fields...)
	if err != nil || len(all) != 1 {
		t.Fatalf("%s gets %s: %v, %v", pod, url, all, err)
	}
	return all[0]
}

// testWaypoint is the life of a waypoint: it is asked for, gets the requests of a service
// that names it, without one lost, is restarted under them, and goes.
func (w *world) testWaypoint(t *testing.T) {
	defer func() {
		if t.Failed() {
			w.explain(t, "heddle-system")
			w.explain(t, "shop")
		}
	}()
	w.apply(t, siteYAML())
	w.waitReady(t, "site-1", "site-2", "guest")
	w.enrolled(t, "n1", "shop/site-1")
	w.enrolled(t, "n2", "shop/site-2", "shop/guest")
	w.apply(t, podYAML("visitor", "n1", itsShare, "visit", site, "2", "20"))
	w.waitReady(t, "visitor")
	w.visits(t, 20)

	started := time.Now()
	w.cli(t, "waypoint", "apply", "-n", "shop", "--wait")
	t.Logf("the waypoint takes requests after %.1f s", time.Since(started).Seconds())
	w.kubectl(t, "-n", "shop", "label", "service", "site", "heddle.dev/waypoint=waypoint")
	w.apply(t, routeYAML(90))
	w.routeIsTold(t, 1)
	w.visits(t, 20)

	t.Run("routes", func(t *testing.T) { w.testRouted(t) })
	t.Run("a change", func(t *testing.T) { w.testRouteChange(t) })
	t.Run("refused", func(t *testing.T) { w.testRouteRefused(t) })
	t.Run("requests", func(t *testing.T) { w.testRequests(t) })
	t.Run("connections", func(t *testing.T) { w.testRoutedConnections(t) })
	t.Run("scaling", func(t *testing.T) { w.testWaypointScaling(t) })
	t.Run("access log", func(t *testing.T) { w.testAccessLog(t) })
	t.Run("restart", func(t *testing.T) { w.testWaypointRestart(t) })
	t.Run("drain", func(t *testing.T) { w.testNodesDrained(t) })
	t.Run("moved", func(t *testing.T) { w.testWaypointMoved(t) })
	t.Run("removed", func(t *testing.T) { w.testWaypointRemoved(t) })
	t.Run("canary", func(t *testing.T) { w.testWaypointCanary(t) })
	t.Run("sessions", func(t *testing.T) { w.testSessions(t) })
	t.Run("deletion", func(t *testing.T) { w.testWaypointDeletion(t) })
	w.kubectl(t, "-n", "shop", "delete", "httproute/site", "service/site", "service/site-1", "service/site-2", "pod/site-1", "pod/site-2", "pod/guest", "serviceaccount/guest",
		"authorizationpolicy/no-guests", "--now")
}

// visits has the visitor make n requests of each kind, none of which is lost, nor was one
// before.
func (w *world) visits(t *testing.T, n int) {
	t.Helper()
	began := w.asked(t, []string{"visitor"})
	var now asked
	testenv.Eventually(t, patience, "requests are answered", func() bool {
		now = w.asked(t, []string{"visitor"})
		return now.own-began.own >= n && now.kept-began.kept >= n || now.lost > began.lost
	})
	if now.lost > 0 {
		for _, node := range []string{"n1", "n2"} {
			denied, err := w.node(t, node).Exec(t.Context(), onNode, "flows", "--verdict", "deny", "--last", "20", "--socket", agent)
			t.Logf("refused on %s: %v\n%s", node, err, denied)
		}
		testenv.ForGood(t, "%d of %d requests are lost:\n%s", now.lost, now.own+now.kept+now.lost, grep(w.logs(t, "visitor"), "LOST"))
		t.FailNow()
	}
}

// routeIsTold waits until the status of the site's route is about a generation of it, and good.
func (w *world) routeIsTold(t *testing.T, generation int64) {
	t.Helper()
	w.isTold(t, "site", generation)
}

// isTold does so for any HTTPRoute of the namespace shop.
func (w *world) isTold(t *testing.T, name string, generation int64) {
	t.Helper()
	type route struct {
		Metadata struct{ Generation int64 }
		Status   struct {
			Parents []struct {
				ControllerName string
				Conditions     []struct {
					Type, Status, Reason, Message string
					ObservedGeneration            int64
				}
			}
		}
	}
	eventually(t, 20*time.Second, "the route's status is good", func() error {
		var r route
		said := w.kubectl(t, "-n", "shop", "get", "httproute", name, "-o", "json")
		if err := json.Unmarshal([]byte(said), &r); err != nil {
			return err
		}
		if r.Metadata.Generation != generation {
			t.Fatalf("the route is of generation %d, want %d", r.Metadata.Generation, generation)
		}
		if len(r.Status.Parents) != 1 || r.Status.Parents[0].ControllerName != "heddle.dev/operator" {
			return fmt.Errorf("parents %+v", r.Status.Parents)
		}
		good := map[string]bool{}
		for _, c := range r.Status.Parents[0].Conditions {
			good[c.Type] = c.Status == "True" && c.ObservedGeneration == generation
		}
		if !good["Accepted"] || !good["ResolvedRefs"] {
			return fmt.Errorf("conditions %+v", r.Status.Parents[0].Conditions)
		}
		return nil
	})
}

// testRouted asks for what each rule is about.
func (w *world) testRouted(t *testing.T) {
	all, err := w.fetch(t, "client", 200, site)
	if err != nil {
		t.Fatal(err)
	}
	at := map[string]int{}
	for _, p := range all {
		at[p.Server]++
	}
	if len(all) != 200 || at["site-1"] < 179 || at["site-1"] > 181 || at["site-1"]+at["site-2"] != 200 {
		t.Errorf("of %d requests went %v, want 180 to site-1 and 20 to site-2, give or take one", len(all), at)
	}
	chosen, err := w.fetch(t, "client", 20, site, "x-server=two") // by chance, two of them
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range chosen {
		if p.Server != "site-2" {
			t.Errorf("by its header, a request goes to site-2: %+v", p)
		}
	}
	if p := w.fetchOne(t, "client", site+"/old/page"); p.Status != 301 || !strings.HasSuffix(p.Location, "/new/page") {
		t.Errorf("what has moved: %+v", p)
	}
	p := w.fetchOne(t, "client", site+"/shown/page", "x-forwarded-client-cert=URI=spiffe://cluster.local/ns/shop/sa/forged")
	if p.Status != 200 || p.Path != "/hidden/page" || p.Server != "site-1" {
		t.Errorf("what is rewritten: %+v", p)
	}
	const who = "By=spiffe://cluster.local/ns/shop/sa/waypoint;URI=spiffe://cluster.local/ns/shop/sa/default"
	if got := p.Fields["X-Forwarded-Client-Cert"]; len(got) != 1 || got[0] != who {
		t.Errorf("the server learns that it is %q, want %q", got, who)
	}
	if p := w.fetchOne(t, "guest", site); p.Status != 403 || p.Reason != "PolicyDeny" {
		t.Errorf("who may not gets %+v, want 403 PolicyDeny", p)
	}
}

// testRouteChange measures from when kubectl says that the route is changed to the first
// request that goes by that. It may be less than nothing: kubectl takes its time to end.
func (w *world) testRouteChange(t *testing.T) {
	w.apply(t, podYAML("watcher", "n2", itsShare, "watch", site+"/watched"))
	w.waitReady(t, "watcher")
	w.apply(t, strings.Replace(routeYAML(100), "- name: split", "- name: split\n    matches: [{path: {value: /}}]", 1))
	w.routeIsTold(t, 2)
	testenv.Eventually(t, 20*time.Second, "all go to site-1", func() bool {
		all, err := w.fetch(t, "client", 50, site)
		return err == nil && !slices.ContainsFunc(all, func(p page) bool { return p.Server != "site-1" })
	})
	w.kubectl(t, "-n", "shop", "patch", "httproute", "site", "--type=json", "-p",
		`[{"op":"replace","path":"/spec/rules/3/backendRefs/0/weight","value":0},{"op":"replace","path":"/spec/rules/3/backendRefs/1/weight","value":100}]`)
	changed := time.Now()
	w.routeIsTold(t, 3)
	var took time.Duration
	eventually(t, 10*time.Second, "all go to site-2", func() error {
		said := regexp.MustCompile(`(?m)^(\S+) (.*)$`).FindAllStringSubmatch(strings.TrimSpace(w.logs(t, "watcher")), -1)
		if len(said) == 0 || said[len(said)-1][2] != "200 site-2" {
			return fmt.Errorf("%v", said)
		}
		at, err := time.Parse(time.RFC3339Nano, said[len(said)-1][1])
		took = at.Sub(changed)
		return err
	})
	if took > time.Second {
		t.Errorf("from the change to the first request that goes by it: %v, want less than 1s", took)
	}
	t.Logf("from the change to the first request that goes by it: %v", took)
	w.kubectl(t, "-n", "shop", "delete", "pod/watcher", "--now")
	w.visits(t, 5)
}

// testRequests has policies about requests: the waypoint refuses what they name, whoever writes it how, and past it
// nobody is let in; one whose requests it does not see is refused.
func (w *world) testRequests(t *testing.T) {
	policy := func(name, selector string) string {
		return fmt.Sprintf("---\napiVersion: heddle.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: %s, namespace: shop}\n"+
			"spec: {action: DENY, selector: {matchLabels: {%s}}, rules: [{to: [{methods: [GET], paths: [/secret*]}]}]}\n", name, selector)
	}
	const direct = "http://site-1.shop.svc.cluster.local./page" // of a service without a waypoint
	if p := w.fetchOne(t, "client", direct); p.Status != 200 {
		t.Fatalf("before there is a policy, past the waypoint: %+v", p)
	}
	w.apply(t, policy("no-secrets", "tier: site")+policy("unseen", "app: guest"))
	for name, want := range map[string]string{"no-secrets": "True", "unseen": "False"} {
		eventually(t, 20*time.Second, "the status of "+name+" says so", func() error {
			said := w.kubectl(t, "-n", "shop", "get", "authorizationpolicy", name, "-o", `jsonpath={range .status.conditions[?(@.type=="Accepted")]}{.status} {.message}{end}`)
			if !strings.HasPrefix(said, want) || strings.Contains(said, "no waypoint sees these") != (want == "False") {
				return fmt.Errorf("%s: %s", name, said)
			}
			return nil
		})
	}
	eventually(t, 20*time.Second, "what is named is refused", func() error {
		if p := w.fetchOne(t, "client", site+"/secret/page"); p.Status != 403 || p.Reason != "PolicyDeny" {
			return fmt.Errorf("%+v", p)
		}
		return nil
	})
	for path, status := range map[string]int{"/page": 200, "/secre": 200, "/secret": 403, "//secret": 403, "/page/..%2Fsecret": 403, "/%73ecret": 403} {
		if p := w.fetchOne(t, "client", site+path); p.Status != status {
			t.Errorf("%s: %+v, want %d", path, p, status)
		}
	}
	eventually(t, 20*time.Second, "past the waypoint nobody is let in", func() error {
		all, err := w.fetch(t, "client", 1, direct)
		if err == nil {
			return fmt.Errorf("it is answered: %+v", all)
		}
		denied, err := w.node(t, "n1").Exec(t.Context(), onNode, "flows", "--verdict", "deny", "--last", "50", "--socket", agent)
		if err != nil || !strings.Contains(denied, "RequestUnseen") {
			return fmt.Errorf("no flow says RequestUnseen: %v %s", err, denied)
		}
		return nil
	})
	w.kubectl(t, "-n", "shop", "delete", "authorizationpolicy/no-secrets", "authorizationpolicy/unseen")
	w.visits(t, 5)
}

// testWaypointRestart replaces the waypoint's pods under requests: none is lost.
func (w *world) testWaypointRestart(t *testing.T) {
	before := w.kubectl(t, "-n", "shop", "get", "pods", "-l", ofWaypoint, "-o", "jsonpath={.items[*].metadata.name}")
	started := time.Now()
	w.kubectl(t, "-n", "shop", "rollout", "restart", "deployment/waypoint")
	w.kubectl(t, "-n", "shop", "rollout", "status", "deployment/waypoint", "--timeout="+patience.String())
	t.Logf("the waypoint's pods are new ones after %.1f s", time.Since(started).Seconds())
	testenv.Eventually(t, patience, "the old pods are gone", func() bool {
		now := w.kubectl(t, "-n", "shop", "get", "pods", "-l", ofWaypoint, "-o", "jsonpath={.items[*].metadata.name}")
		for _, name := range strings.Fields(before) {
			if strings.Contains(now, name) {
				return false
			}
		}
		return len(strings.Fields(now)) > 0
	})
	w.visits(t, 20)
}

// testWaypointDeletion deletes a waypoint that is in use, which has to be asked for: its
// service does not get around it, and says so, until it names it no more.
func (w *world) testWaypointDeletion(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), w.heddle, "waypoint", "delete", "-n", "shop", "--kubeconfig", w.Kubeconfig()).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "site") {
		t.Errorf("a waypoint in use is deleted: %v: %s", err, out)
	}
	w.kubectl(t, "-n", "shop", "delete", "pod", "visitor", "--now")
	w.cli(t, "waypoint", "delete", "-n", "shop", "--force")
	eventually(t, 20*time.Second, "requests are refused", func() error {
		if all, err := w.fetch(t, "client", 1, site); err == nil {
			return fmt.Errorf("%+v", all)
		}
		return nil
	})
	eventually(t, 20*time.Second, "the service says why", func() error {
		if said := w.events(t, "site"); !strings.Contains(said, "WaypointGone") {
			return errors.New(said)
		}
		return nil
	})
	eventually(t, patience, "nothing is left of the waypoint", func() error {
		if left := w.kubectl(t, "-n", "shop", "get", "deployments,services,serviceaccounts,poddisruptionbudgets,pods", "-l", ofWaypoint, "-o", "name"); left != "" {
			return errors.New(left)
		}
		return nil
	})
	w.kubectl(t, "-n", "shop", "label", "service", "site", "heddle.dev/waypoint-")
	eventually(t, 20*time.Second, "requests go past it", func() error {
		all, err := w.fetch(t, "client", 1, site)
		if err == nil && (all[0].Status != 200 || all[0].Fields["X-Forwarded-Client-Cert"] != nil) {
			err = fmt.Errorf("%+v", all)
		}
		return err
	})
}
