package idle

import (
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/e2e/testbed"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// silence is what the issue of the first data path asks for, and a little more.
const silence = 10*time.Minute + 15*time.Second

const meshYAML = `apiVersion: heddle.dev/v1alpha1
kind: Mesh
metadata: {name: default}
spec: {trustDomain: idle.heddle.dev, clusterRanges: ["10.244.0.0/16", "fd00:244::/32"]}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {heddle.dev/mesh: enabled}}
---
apiVersion: heddle.dev/v1alpha1
kind: Workload
metadata: {namespace: shop, name: client}
spec: {node: n1, addresses: ["10.244.1.10", "fd00:244:1::10"], networkNamespace: /run/netns/heddle-idle-client}
---
apiVersion: heddle.dev/v1alpha1
kind: Workload
metadata: {namespace: shop, name: near}
spec: {node: n1, addresses: ["10.244.1.11"], networkNamespace: /run/netns/heddle-idle-near}
---
apiVersion: heddle.dev/v1alpha1
kind: Workload
metadata: {namespace: shop, name: server}
spec: {node: n2, addresses: ["10.244.2.10", "fd00:244:2::10"], networkNamespace: /run/netns/heddle-idle-server}
`

// TestIdle keeps connections silent, through the tunnel and spliced, over both
// families, and then uses them in both directions.
func TestIdle(t *testing.T) {
	b := testbed.Up(t, "../..", "idle", meshYAML)
	targets := []struct{ pod, address string }{
		{"shop/server", "10.244.2.10:7000"}, {"shop/server", "[fd00:244:2::10]:7001"}, {"shop/near", "10.244.1.11:7000"},
	}
	var conns []net.Conn
	for _, target := range targets {
		_, port, err := net.SplitHostPort(target.address)
		if err != nil {
			t.Fatal(err)
		}
		l := b.Listen(t, target.pod, ":"+port)
		go func() {
			if c, err := l.Accept(); err == nil {
				defer c.Close()
				_, _ = io.Copy(c, c) // ends with the connection
			}
		}()
		c := b.MustDial(t, "shop/client", target.address)
		if err := ask(c, "before"); err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
	}
	time.Sleep(silence)
	for i, c := range conns {
		if err := ask(c, "after"); err != nil {
			t.Errorf("%s: silent for %v, then: %v", targets[i].address, silence, err)
		}
	}
}

func ask(c net.Conn, message string) error {
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	if _, err := io.WriteString(c, message); err != nil {
		return err
	}
	got := make([]byte, len(message))
	if _, err := io.ReadFull(c, got); err != nil {
		return err
	}
	if string(got) != message {
		return fmt.Errorf("got %q back", got)
	}
	return nil
}
