package product

import (
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/testenv"
)

// fromEnvironment reads a number of the environment, which makes a test longer than
// it is beside the others.
func fromEnvironment(t *testing.T, name string, otherwise int) int {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("%s=%q: want a number, 1 or more", name, text)
	}
	return n
}

// requestsPerRoll are those with a connection of their own.
const requestsPerRoll = 5000

// testRolls restarts a server again and again whose pods are gone a second after
// SIGTERM and have no preStop hook: no request to its service is lost, from its own
// node and from another.
func (w *world) testRolls(t *testing.T) {
	w.apply(t, rolling)
	w.rolledOut(t)
	service := w.kubectl(t, "-n", "shop", "get", "service", "rolling", "-o", "jsonpath={.spec.clusterIP}")
	clients := []string{"asking-1", "asking-2"}
	w.apply(t, podYAML(clients[0], "n1", itsShare, "ask", service+":70", "5", "250")+podYAML(clients[1], "n2", itsShare, "ask", service+":70", "5", "250"))
	w.waitReady(t, clients...)
	began := w.asked(t, clients)
	rolls := fromEnvironment(t, "HEDDLE_ROLLS", 1)
	for n := range rolls {
		started := time.Now()
		w.kubectl(t, "-n", "shop", "rollout", "restart", "deployment/rolling")
		w.rolledOut(t)
		took := time.Since(started)
		var now asked
		testenv.Eventually(t, 10*patience, "requests are made", func() bool {
			time.Sleep(time.Second)
			now = w.asked(t, clients)
			return now.own-began.own >= requestsPerRoll*(n+1) && w.gone(t)
		})
		t.Logf("restart %d in %.1f s: %+v", n+1, took.Seconds(), now)
		if now.again == began.again {
			t.Error("no connection that was kept has seen its server leave")
		}
		if now.lost > 0 {
			for _, node := range []string{"n1", "n2"} {
				denied, err := w.node(t, node).Exec(t.Context(), onNode, "flows", "--verdict", "deny", "--last", "40", "--socket", agent)
				t.Logf("refused on %s: %v\n%s", node, err, denied)
			}
			testenv.ForGood(t, "%d of %d requests lost over %d restarts:\n%s", now.lost, now.own+now.kept+now.lost, n+1,
				grep(w.logs(t, clients[0])+w.logs(t, clients[1]), "LOST"))
			t.FailNow()
		}
	}
	now := w.asked(t, clients)
	t.Logf("%d restarts: %d requests over connections of their own, %d over kept ones, %d lost", rolls, now.own, now.kept, now.lost)
	w.kubectl(t, "-n", "shop", "delete", "deployment/rolling", "service/rolling", "serviceaccount/rolling", "pod/asking-1", "pod/asking-2", "--now")
}

// rolling is a server of two pods that are replaced one by one.
const rolling = `
apiVersion: v1
kind: ServiceAccount
metadata: {name: rolling, namespace: shop}
---
apiVersion: v1
kind: Service
metadata: {name: rolling, namespace: shop}
spec:
  selector: {app: rolling}
  ports: [{port: 70, targetPort: 7000}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: rolling, namespace: shop}
spec:
  replicas: 2
  strategy: {rollingUpdate: {maxSurge: 1, maxUnavailable: 0}}
  selector: {matchLabels: {app: rolling}}
  template:
    metadata: {labels: {app: rolling}}
    spec:
      serviceAccountName: rolling
      terminationGracePeriodSeconds: 30
      topologySpreadConstraints:
      - {maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: ScheduleAnyway, labelSelector: {matchLabels: {app: rolling}}}
      containers:
      - name: main
        image: ` + workloadImage + `
        imagePullPolicy: Never
        args: [leave]
    ` + itsShare + `        readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
`

func (w *world) rolledOut(t *testing.T) {
	t.Helper()
	w.kubectl(t, "-n", "shop", "rollout", "status", "deployment/rolling", "--timeout="+patience.String())
}

// gone reports whether all pods are gone that were told to end.
func (w *world) gone(t *testing.T) bool {
	t.Helper()
	return strings.TrimSpace(w.kubectl(t, "-n", "shop", "get", "pods", "-l", "app=rolling", "-o", "jsonpath={.items[*].metadata.deletionTimestamp}")) == ""
}

// asked counts the requests of clients.
type asked struct{ own, kept, again, lost int }

func (w *world) asked(t *testing.T, clients []string) (sum asked) {
	t.Helper()
	for _, name := range clients {
		eventually(t, 20*time.Second, name+" counts", func() error {
			said := w.kubectl(t, "-n", "shop", "logs", name, "--tail=30")
			all := regexp.MustCompile(`(?m)^own (\d+) kept (\d+) again (\d+) lost (\d+)$`).FindAllStringSubmatch(said, -1)
			if len(all) == 0 {
				return fmt.Errorf("%s", said)
			}
			for i, into := range []*int{&sum.own, &sum.kept, &sum.again, &sum.lost} {
				n, _ := strconv.Atoi(all[len(all)-1][i+1]) // digits
				*into += n
			}
			return nil
		})
	}
	return sum
}
