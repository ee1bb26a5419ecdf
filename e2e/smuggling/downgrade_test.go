package smuggling

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/testenv"
	"github.com/heddle-mesh/heddle/waypoint"
	"github.com/heddle-mesh/heddle/waypoint/corpus"
)

// shop is a service that a waypoint serves to whoever connects.
const shop = `apiVersion: heddle.dev/v1alpha1
kind: Mesh
metadata: {name: default}
spec:
  trustDomain: test.example
  clusterRanges: ["10.0.0.0/8"]
  defaults: {peerAuthentication: PERMISSIVE}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Service
metadata: {namespace: shop, name: waypoint}
spec: {clusterIP: 10.96.0.9, selector: {app: waypoint}, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {namespace: shop, name: cart}
spec: {clusterIP: 10.96.0.10, selector: {app: cart}, ports: [{name: http, port: 80, targetPort: 8081}]}
---
apiVersion: heddle.dev/v1alpha1
kind: Workload
metadata: {namespace: shop, name: cart-1, labels: {app: cart}}
spec: {node: n1, serviceAccount: cart, addresses: [10.1.0.7]}
`

// startWaypoints serves each lane with a waypoint of its own, until the test ends.
func startWaypoints(t *testing.T, lanes []*lane) {
	t.Helper()
	folder := t.TempDir()
	if err := os.WriteFile(filepath.Join(folder, "shop.yaml"), []byte(shop), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, n := range lanes {
		cfg := waypoint.Defaults()
		cfg.Waypoint, cfg.Folder, cfg.Metrics, cfg.Serve.Loops = "shop/waypoint", folder, "", 1
		cfg.Listen, cfg.Direct = fmt.Sprintf("127.0.0.1:%d", n.port), "10.96.0.10:80"
		cfg.Reach = map[string]string{"10.1.0.7:8081": n.listener.Addr().String()}
		cfg.Serve.Timeouts.Drain = time.Second
		w, err := waypoint.New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan error, 1)
		go func() { ended <- w.Run(ctx) }()
		t.Cleanup(func() {
			cancel()
			if err := <-ended; err != nil && !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		})
		testenv.Eventually(t, 20*time.Second, "the waypoint serves", func() bool {
			c, err := net.Dial("tcp", cfg.Listen)
			return err == nil && c.Close() == nil
		})
	}
}

// downgraded runs a case of what a client sends in HTTP/2, and says how it was read: what came whole to the backend, and
// how the proxy has refused it.
func (n *lane) downgraded(c corpus.Case) (string, error) {
	if err := n.begin(c, false); err != nil {
		return "", err
	}
	got, closed, err := n.talk(c.Send, nil)
	if err != nil {
		return "", err
	}
	whole, _ := n.got()
	told := corpus.ReadTold(got)
	switch {
	case told.Status == "200" || told.Status >= "500" && len(whole) > 0: // the latter is about what the backend has answered
	case told.Status != "":
		whole = append(whole, told.Status)
	case told.Reset != "":
		whole = append(whole, "reset")
	case len(whole) == 0 && closed:
		whole = append(whole, "closed")
	case len(whole) == 0:
		whole = append(whole, "waits")
	}
	return strings.Join(whole, "; "), nil
}

// refused are the ways in which a request of HTTP/2 is, between which RFC 9113 section 8.1.1 leaves the choice.
func refused(line string) bool {
	return line == "reset" || line == "closed" || len(line) == 3 && line >= "400" && line <= "599"
}

// alike says that two readings of HTTP/2 differ at most in how a request is refused.
func alike(a, b string) bool {
	one, other := strings.Split(a, "; "), strings.Split(b, "; ")
	return slices.EqualFunc(one, other, func(a, b string) bool { return a == b || refused(a) && refused(b) })
}

// expectedDowngrade is how the waypoint is to read a case.
func expectedDowngrade(c corpus.Case) string {
	if strings.HasPrefix(c.Want[0], "CONNECT ") {
		return "405" // the engine's reading: a waypoint asks no workload for a tunnel
	}
	last := c.Want[len(c.Want)-1]
	if how, name, ok := strings.Cut(last, " "); ok && (how == "malformed" || how == "refused") {
		return statusOf(name) // it has all of the case at once, and has sent nothing on before that
	}
	return strings.Join(c.Want, "; ")
}
