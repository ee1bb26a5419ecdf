package badinput

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/e2e/testbed"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

const (
	meshName = "badinput"
	domain   = "badinput.heddle.dev"
	// budget is what the agents of this mesh allow each pod.
	budget = 48
	server = "10.244.2.10"
	busy   = "10.244.2.11"
	doomed = "10.244.2.12"
)

const meshYAML = `apiVersion: heddle.dev/v1alpha1
kind: Mesh
metadata: {name: default}
spec:
  trustDomain: badinput.heddle.dev
  clusterRanges: ["10.244.0.0/16", "fd00:244::/32"]
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {heddle.dev/mesh: enabled}}
---
apiVersion: v1
kind: Namespace
metadata: {name: plain}
---
apiVersion: heddle.dev/v1alpha1
kind: Workload
metadata: {namespace: shop, name: client}
spec: {node: n1, serviceAccount: client, addresses: ["10.244.1.10", "fd00:244:1::10"], networkNamespace: /run/netns/heddle-badinput-client}
---
apiVersion: heddle.dev/v1alpha1
kind: Workload
metadata: {namespace: shop, name: flooder}
spec: {node: n1, serviceAccount: flooder, addresses: ["10.244.1.11"], networkNamespace: /run/netns/heddle-badinput-flooder}
---
apiVersion: heddle.dev/v1alpha1
kind: Workload
metadata: {namespace: shop, name: server}
spec: {node: n2, serviceAccount: server, addresses: ["10.244.2.10", "fd00:244:2::10"], networkNamespace: /run/netns/heddle-badinput-server}
---
apiVersion: heddle.dev/v1alpha1
kind: Workload
metadata: {namespace: shop, name: busy}
spec: {node: n2, serviceAccount: busy, addresses: ["10.244.2.11"], networkNamespace: /run/netns/heddle-badinput-busy}
---
apiVersion: heddle.dev/v1alpha1
kind: Workload
metadata: {namespace: shop, name: doomed}
spec: {node: n2, serviceAccount: doomed, addresses: ["10.244.2.12"], networkNamespace: /run/netns/heddle-badinput-doomed}
---
apiVersion: heddle.dev/v1alpha1
kind: Workload
metadata: {namespace: plain, name: talker}
spec: {node: n1, addresses: ["10.244.1.90", "fd00:244:1::90"], networkNamespace: /run/netns/heddle-badinput-talker}
`

// TestBadInput runs every case on one mesh, one after the other: that the next
// case finds the mesh in order is part of what each shows.
func TestBadInput(t *testing.T) {
	testenv.NeedRoot(t)
	t.Setenv("HEDDLE_MAX_CONNECTIONS", strconv.Itoa(budget)) // the agents inherit it
	w := &world{Bed: testbed.Up(t, "../..", meshName, meshYAML)}
	for _, pod := range []string{"shop/server", "shop/busy", "shop/flooder"} {
		go echo(w.Listen(t, pod, ":7000"))
	}
	w.served(t)
	t.Run("metrics page", w.metricsPage)
	t.Run("configuration", w.configuration)
	t.Run("namespace", w.namespace)
	t.Run("tunnel", w.tunnel)
	t.Run("token", w.token)
	t.Run("flood", w.flood)
	t.Run("last good", w.lastGood)
	w.served(t)
}

// world is the mesh of the tests.
type world struct{ *testbed.Bed }

func echo(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(time.Minute)) // no test needs longer
			_, _ = io.Copy(c, c)                           // ends with the connection
		}()
	}
}

// served fails the test if the mesh does not carry other traffic, across nodes
// and over both families.
func (w *world) served(t *testing.T) {
	t.Helper()
	for _, address := range []string{server + ":7000", "[fd00:244:2::10]:7000"} {
		if err := w.exchange("shop/client", address); err != nil {
			t.Errorf("the mesh does not go on: %v", err)
		}
	}
}

// exchange makes a connection and says something on it.
func (w *world) exchange(pod, address string) error {
	c, err := w.Dial(pod, address, 5*time.Second)
	if err != nil {
		return fmt.Errorf("dial %s from %s: %w", address, pod, err)
	}
	defer c.Close()
	if err := say(c); err != nil {
		return fmt.Errorf("from %s to %s: %w", pod, address, err)
	}
	return nil
}

func say(c net.Conn) error {
	const word = "anybody there?"
	if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	if _, err := io.WriteString(c, word); err != nil {
		return err
	}
	got := make([]byte, len(word))
	if _, err := io.ReadFull(c, got); err != nil {
		return err
	}
	if string(got) != word {
		return fmt.Errorf("got %q back", got)
	}
	return nil
}

// check is what `heddle check` says; it is no error that something is wrong.
func (w *world) check(t *testing.T) string {
	t.Helper()
	out, err := w.Heddle("check", "--name", meshName)
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return out
}

// checkSays waits until `heddle check` has a line that begins with the verdict
// and has every word.
func (w *world) checkSays(t *testing.T, verdict string, words ...string) {
	t.Helper()
	var out string
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		out = w.check(t)
		for line := range strings.Lines(out) {
			if strings.HasPrefix(line, verdict) && hasAll(line, words) {
				return
			}
		}
	}
	t.Errorf("check has no line %q with %q:\n%s", verdict, words, out)
}

func hasAll(text string, words []string) bool {
	for _, word := range words {
		if !strings.Contains(text, word) {
			return false
		}
	}
	return true
}

// healthy waits until all is well again.
func (w *world) healthy(t *testing.T) {
	t.Helper()
	testenv.Eventually(t, 20*time.Second, "all is well again", func() bool {
		_, err := w.Heddle("check", "--name", meshName)
		return err == nil
	})
}

// logSays waits until a program's log has a line with every word.
func (w *world) logSays(t *testing.T, part string, words ...string) {
	t.Helper()
	var out string
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		var err error
		if out, err = w.Heddle("logs", "--name", meshName, part); err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(out) {
			if hasAll(line, words) {
				return
			}
		}
	}
	t.Errorf("the log of %s has no line with %q:\n%s", part, words, out)
}

// metric reads one series of a program, "operator" or a node: 0 if there is none.
func (w *world) metric(t *testing.T, part, series string) float64 {
	t.Helper()
	for line := range strings.Lines(w.Metrics(t, part)) {
		if rest, ok := strings.CutPrefix(line, series+" "); ok {
			value, err := strconv.ParseFloat(strings.TrimSpace(rest), 64)
			if err != nil {
				t.Fatal(err)
			}
			return value
		}
	}
	return 0
}

// metricsPage compares what the operator serves with docs/metrics.md.
func (w *world) metricsPage(t *testing.T) {
	page, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	body := w.Metrics(t, "operator")
	served := regexp.MustCompile(`(?m)^# TYPE (heddle_\w+) (\w+)`).FindAllStringSubmatch(body, -1)
	if len(served) < 8 {
		t.Errorf("the operator serves %d metrics of its own:\n%s", len(served), body)
	}
	for _, m := range served {
		if !strings.Contains(string(page), "| `"+m[1]+"` | "+m[2]+" |") {
			t.Errorf("docs/metrics.md lacks %s, a %s", m[1], m[2])
		}
	}
}

// counts fails the test if series of a program has not grown by at least one
// while fn ran.
func (w *world) counts(t *testing.T, part, series string, fn func()) {
	t.Helper()
	before := w.metric(t, part, series)
	fn()
	var after float64
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if after = w.metric(t, part, series); after > before {
			return
		}
	}
	t.Errorf("%s of %s went from %v to %v", series, part, before, after)
}

// denials is the agents' counter of refused connections.
func denials(direction, reason string) string {
	return fmt.Sprintf(`heddle_connections_total{direction=%q,reason=%q,verdict="deny"}`, direction, reason)
}
