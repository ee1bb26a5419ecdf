package chaos

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/e2e/testbed"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

const (
	secret       = "nobody-else-must-read-this"
	defaultKills = 30 // `make chaos` has a thousand, and reboots nodes (e2e/product)
	meshName     = "chaos"
)

const meshYAML = `apiVersion: heddle.dev/v1alpha1
kind: Mesh
metadata: {name: default}
spec:
  trustDomain: chaos.heddle.dev
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
spec: {node: n1, addresses: ["10.244.1.10", "fd00:244:1::10"], networkNamespace: /run/netns/heddle-chaos-client}
---
apiVersion: heddle.dev/v1alpha1
kind: Workload
metadata: {namespace: shop, name: server}
spec: {node: n2, addresses: ["10.244.2.10", "fd00:244:2::10"], networkNamespace: /run/netns/heddle-chaos-server}
---
apiVersion: heddle.dev/v1alpha1
kind: Workload
metadata: {namespace: plain, name: talker}
spec: {node: n1, addresses: ["10.244.1.90", "fd00:244:1::90"], networkNamespace: /run/netns/heddle-chaos-talker}
---
apiVersion: heddle.dev/v1alpha1
kind: Workload
metadata: {namespace: plain, name: listener}
spec: {node: n2, addresses: ["10.244.2.90"], networkNamespace: /run/netns/heddle-chaos-listener}
`

// TestChaos kills one agent or the other, again and again, while the enrolled
// pods talk to each other and an unenrolled pod tries the STRICT server. At the
// end the capture holds no plaintext byte of the enrolled pods, and is shown to
// see plaintext of the others.
func TestChaos(t *testing.T) {
	kills := defaultKills
	if text := os.Getenv("HEDDLE_CHAOS_KILLS"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil {
			t.Fatalf("HEDDLE_CHAOS_KILLS: %v", err)
		}
		kills = n
	}
	b := testbed.Up(t, "../..", meshName, meshYAML)
	capture := b.Capture(t)
	l := b.Listen(t, "shop/server", ":7000")
	go serve(l)

	var carried, refused, leaked atomic.Int64
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var traffic sync.WaitGroup
	for i := range 8 {
		address := "10.244.2.10:7000"
		if i%2 == 1 {
			address = "[fd00:244:2::10]:7000"
		}
		traffic.Go(func() { talk(ctx, b, "shop/client", address, &carried, &refused) })
	}
	// Nobody outside the mesh gets in, whatever happens to the agents.
	for _, address := range []string{"10.244.2.10:7000", "[fd00:244:2::10]:7000"} {
		traffic.Go(func() { talk(ctx, b, "plain/talker", address, &leaked, new(atomic.Int64)) })
	}

	for i := range kills {
		node := []string{"n1", "n2"}[rand.IntN(2)]
		time.Sleep(time.Duration(rand.IntN(1200)) * time.Millisecond)
		b.Kill(t, node)
		time.Sleep(time.Duration(rand.IntN(300)) * time.Millisecond)
		b.Restart(t)
		if i%10 == 9 {
			t.Logf("%d kills: %d exchanges carried, %d refused", i+1, carried.Load(), refused.Load())
		}
	}
	before := carried.Load()
	testenv.Eventually(t, 30*time.Second, "traffic flows again after the last kill", func() bool { return carried.Load() > before+20 })
	cancel()
	traffic.Wait()

	control(t, b)
	found := capture.Stop(t, secret, func(a netip.Addr) bool {
		return a.String() == "10.244.1.10" || a.String() == "10.244.2.10" || a.String() == "fd00:244:1::10" || a.String() == "fd00:244:2::10"
	})
	t.Logf("%d kills, %d exchanges carried, %d refused; enrolled pods on the wire: %s", kills, carried.Load(), refused.Load(), found)
	if err := found.Sealed(); err != nil || found.UDPPayloads > 0 {
		testenv.ForGood(t, "of enrolled pods, and %d datagrams: %v", found.UDPPayloads, err)
	}
	if leaked.Load() > 0 {
		testenv.ForGood(t, "a pod outside the mesh reached a STRICT one %d times", leaked.Load())
	}
	if carried.Load() < int64(kills) || found.TLSBytes < 100*kills {
		t.Errorf("too little traffic to show anything: %d exchanges, %s", carried.Load(), found)
	}
}

// control shows that the capture sees plaintext when it is there: it runs in a
// capture of its own kind, at the end, between the unenrolled pods.
func control(t *testing.T, b *testbed.Bed) {
	t.Helper()
	capture := b.Capture(t)
	l := b.Listen(t, "plain/listener", ":7000")
	go serve(l)
	c := b.MustDial(t, "plain/talker", "10.244.2.90:7000")
	if err := exchange(c); err != nil {
		t.Fatal(err)
	}
	found := capture.Stop(t, secret, func(a netip.Addr) bool { return strings.HasSuffix(a.String(), ".90") })
	if found.PlaintextBytes == 0 || found.Markers == 0 {
		t.Errorf("the capture does not see plaintext when it is there: %s", found)
	}
}

func serve(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(time.Minute)) // a killed agent may leave it hanging
			_, _ = io.Copy(c, c)                           // ends with the connection
		}()
	}
}

// talk opens connections and says the secret on each, until ctx is done.
func talk(ctx context.Context, b *testbed.Bed, pod, address string, carried, refused *atomic.Int64) {
	for ctx.Err() == nil {
		c, err := b.Dial(pod, address, 500*time.Millisecond)
		if err == nil {
			for range 5 {
				if err = exchange(c); err != nil {
					break
				}
				carried.Add(1)
			}
			c.Close()
		}
		if err != nil {
			refused.Add(1)
			time.Sleep(20 * time.Millisecond)
		}
	}
}

func exchange(c net.Conn) error {
	if err := c.SetDeadline(time.Now().Add(time.Second)); err != nil {
		return err
	}
	if _, err := io.WriteString(c, secret); err != nil {
		return err
	}
	got := make([]byte, len(secret))
	if _, err := io.ReadFull(c, got); err != nil {
		return err
	}
	if string(got) != secret {
		return fmt.Errorf("got %q back", got)
	}
	return nil
}
