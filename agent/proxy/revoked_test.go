package proxy_test

import (
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/agent/engine"
	"github.com/heddle-mesh/heddle/agent/proxy"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

// tunnels counts the connections to port 15008 that are open, at the end that has accepted them.
func tunnels(t *testing.T) (open int) {
	t.Helper()
	text, err := os.ReadFile("/proc/thread-self/net/tcp")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 3 && strings.HasSuffix(f[1], ":3AA0") && f[3] == "01" {
			open++
		}
	}
	return open
}

// TestRevokedKeepsNoWarmTunnel: a tunnel connection without a stream, which would be kept for the
// next one, ends with the identity of either end, whichever node learns of it.
func TestRevokedKeepsNoWarmTunnel(t *testing.T) {
	for _, side := range []string{"a", "b"} {
		for _, kind := range []string{engine.Loop, engine.Reference} {
			t.Run(side+" "+kind, func(t *testing.T) {
				late := mesh.NewStore()
				w := newWorld(t)
				w.engines = map[string]string{"a": kind, "b": kind}
				w.workload("web", "a", "198.18.1.1")
				w.workload("db", "b", "198.18.2.1")
				w.service("db", "198.18.9.1", 7000, 7001, "db")
				w.publish()
				late.Replace(w.store.View())
				application(t, "198.18.2.1:7001", echo)
				nodes := map[string]*node{}
				for _, name := range []string{"a", "b"} {
					nodes[name] = w.node(name, func(c *proxy.Config) {
						if name != side {
							c.Store = late
						}
					})
				}
				client := nodes["a"].serve("web", "198.18.1.1", podOptions{outbound: []string{vip}})
				nodes["b"].serve("db", "198.18.2.1", podOptions{})
				c := client.client(vip)
				greeting(t, c)
				c.CloseWrite()
				if _, err := io.Copy(io.Discard, c); err != nil {
					t.Fatal(err)
				}
				nodes["a"].flows.wait(t, 1)
				w.workload("other", "a", "198.18.1.9")
				w.publish()
				time.Sleep(100 * time.Millisecond)
				if tunnels(t) == 0 {
					t.Fatal("no tunnel connection is kept")
				}
				w.settings.RevokedIdentities = append(w.settings.RevokedIdentities, w.workloads[0].Identity)
				w.publish()
				testenv.Eventually(t, 5*time.Second, "the tunnel connection ends", func() bool { return tunnels(t) == 0 })
			})
		}
	}
}
