package product

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// keptYAML is a service of three servers behind the waypoint.
func keptYAML() string {
	all := `---
apiVersion: v1
kind: Service
metadata: {name: kept, namespace: shop, labels: {heddle.dev/waypoint: waypoint}}
spec: {selector: {tier: kept}, ports: [{name: http, port: 80, targetPort: 8080}]}
`
	for name, node := range keptServers() {
		all += strings.Replace(podYAML(name, node, itsShare, "serve"), "labels: {", "labels: {tier: kept, ", 1)
	}
	return all
}

// keptServers are its servers, and their nodes.
func keptServers() map[string]string {
	return map[string]string{"kept-1": "n1", "kept-2": "n2", "kept-3": "n2"}
}

// keptRoute has each session stay with one of them.
const keptRoute = `---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: kept, namespace: shop}
spec:
  parentRefs: [{group: "", kind: Service, name: kept, port: 80}]
  rules:
  - name: kept
    sessionPersistence: {sessionName: kept, type: Cookie}
    backendRefs: [{name: kept, port: 80}]
`

// formerWatches is how long an API server may leave watches alone that it began by a definition which is no more: two minutes (tearDown
// in customresource_handler.go of k8s.io/apiextensions-apiserver, twice its timeout of requests), and some more.
const formerWatches = 3 * time.Minute

// kept is where it is asked.
const kept = "http://kept.shop.svc.cluster.local."

// testSessions has sessions stay with pods. The field that asks for it is in the experimental channel's definition alone, which takes
// the standard one's place under requests, and gives it back: none is lost.
func (w *world) testSessions(t *testing.T) {
	if _, err := w.Kubectl(t.Context(), keptRoute, "apply", "-f", "-"); err == nil || !strings.Contains(err.Error(), "sessionPersistence") {
		t.Fatalf("by the standard channel's definition, a route with sessions is not taken: %v", err)
	}
	w.apply(t, keptYAML())
	defer w.kubectl(t, "-n", "shop", "delete", "service/kept", "pod/kept-1", "pod/kept-2", "pod/kept-3", "--now", "--ignore-not-found")
	for name, node := range keptServers() {
		w.waitReady(t, name)
		w.enrolled(t, node, "shop/"+name)
	}
	defer func() {
		w.kubectl(t, "-n", "shop", "delete", "httproute/kept", "--ignore-not-found")
		w.define(t, filepath.Join(w.root, "manifests/gateway-api/gateway.networking.k8s.io_httproutes.yaml"), "standard")
		w.visits(t, 10)
	}()
	w.define(t, filepath.Join(w.gatewayAPI(t), "config/crd/experimental/gateway.networking.k8s.io_httproutes.yaml"), "experimental")
	eventually(t, 20*time.Second, "a route with sessions is taken", func() error {
		_, err := w.Kubectl(t.Context(), keptRoute, "apply", "-f", "-")
		return err
	})
	w.isTold(t, "kept", 1)
	w.visits(t, 10)
	eventually(t, formerWatches, "sessions begin", func() error {
		p := w.fetchOne(t, "client", kept)
		if p.Status == 200 && strings.HasPrefix(p.Cookie, "kept=") {
			return nil
		}
		// A watch that the API server began by the definition before leaves the field out: the operator is told of the route once more.
		w.kubectl(t, "-n", "shop", "annotate", "httproute/kept", "--overwrite", "asked="+strconv.FormatInt(time.Now().UnixNano(), 10))
		return fmt.Errorf("%+v", p)
	})
	w.sessionMoves(t, w.sessionsBegin(t))
}

// gatewayAPI is the folder of the Gateway API's module.
func (w *world) gatewayAPI(t *testing.T) string {
	t.Helper()
	list := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Dir}}", "sigs.k8s.io/gateway-api")
	list.Dir = w.root
	folder, err := list.Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(folder))
}

// define puts the definition of HTTPRoutes in a file in the place of the one that is there, in the name of whoever has brought that.
func (w *world) define(t *testing.T, file, channel string) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Kubectl(t.Context(), string(text), "apply", "--server-side", "--force-conflicts", "--field-manager=heddle", "-f", "-"); err != nil {
		t.Fatal(err)
	}
	if said := w.kubectl(t, "get", "crd", "httproutes.gateway.networking.k8s.io", "-o", `jsonpath={.metadata.annotations.gateway\.networking\.k8s\.io/channel}`); said != channel {
		t.Fatalf("HTTPRoutes are defined by the channel %q, want %q", said, channel)
	}
}

// sessionsBegin begins some sessions, each of which stays with the pod that its first request got, over several connections; not
// all have the same. It returns one session of each pod.
func (w *world) sessionsBegin(t *testing.T) map[string]string {
	t.Helper()
	at := map[string]string{}
	for range 10 {
		began := w.fetchOne(t, "client", kept)
		if began.Status != 200 || !strings.HasPrefix(began.Cookie, "kept=") {
			t.Fatalf("a session does not begin: %+v", began)
		}
		at[began.Server] = began.Cookie
		for range 2 {
			w.staysWith(t, began.Server, began.Cookie)
		}
	}
	if len(at) < 2 {
		t.Fatalf("ten sessions are all at one of three pods: %v", at)
	}
	return at
}

// staysWith makes requests of a session: all go to its pod, and no token takes its token's place.
func (w *world) staysWith(t *testing.T, server, cookie string) {
	t.Helper()
	all, err := w.fetch(t, "client", 5, kept, "Cookie="+cookie)
	if err != nil || len(all) != 5 {
		t.Fatalf("a session's requests: %v, %v", all, err)
	}
	for _, p := range all {
		if p.Status != 200 || p.Server != server || p.Cookie != "" {
			t.Fatalf("a session of %s goes on as %+v", server, p)
		}
	}
}

// sessionMoves deletes a pod: its session goes on at another one with a new token, and others stay where they are.
func (w *world) sessionMoves(t *testing.T, at map[string]string) {
	t.Helper()
	gone, stays := "", ""
	for server := range at {
		gone, stays = stays, server
	}
	w.kubectl(t, "-n", "shop", "delete", "pod", gone, "--now")
	var moved page
	eventually(t, 20*time.Second, "the session goes on at another pod", func() error {
		all, err := w.fetch(t, "client", 1, kept, "Cookie="+at[gone])
		if err != nil {
			return err
		}
		if moved = all[0]; moved.Status != 200 || moved.Server == gone {
			return fmt.Errorf("%+v", moved)
		}
		if !strings.HasPrefix(moved.Cookie, "kept=") || moved.Cookie == at[gone] {
			return errors.New("it has no new token: " + moved.Cookie)
		}
		return nil
	})
	w.staysWith(t, moved.Server, moved.Cookie)
	w.staysWith(t, stays, at[stays])
}
