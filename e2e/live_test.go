package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/e2e/testbed"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

const (
	livePerKind = 100 // connections of each way, to each of two ports
	liveDoomed  = 7501
	liveSpared  = 7502
	liveWithin  = time.Second // p99, from the file to the client's reset
	liveLoaded  = 10 * time.Second
	// The bounds of a workload that leaves: for what it has, and for what began since.
	liveDrain     = 5 * time.Second
	liveDrainLate = 500 * time.Millisecond
)

// livePermissive lets plaintext to the two ports of shop/server; the 1,000 policies beside
// it say nothing about these connections, 20 of them about shop/server.
func livePermissive() string {
	var b strings.Builder
	fmt.Fprintf(&b, `apiVersion: heddle.dev/v1alpha1
kind: PeerAuthentication
metadata: {namespace: shop, name: both}
spec: {mode: STRICT, portModes: [{port: %d, mode: PERMISSIVE}, {port: %d, mode: PERMISSIVE}]}
`, liveDoomed, liveSpared)
	for i := range 1000 {
		app := "server"
		if i >= 20 {
			app = fmt.Sprintf("app-%d", i%50)
		}
		fmt.Fprintf(&b, `---
apiVersion: heddle.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {namespace: shop, name: policy-%d}
spec: {selector: {matchLabels: {app: %s}}, action: DENY, rules: [{from: [{namespaces: [shop]}], to: [{ports: [9]}]}]}
`, i, app)
	}
	return b.String()
}

const liveDeny = `apiVersion: heddle.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {namespace: shop, name: doomed}
spec: {action: DENY, rules: [{to: [{ports: [7501]}]}]}
`

// liveConn is a connection that is open from a client's side.
type liveConn struct {
	*net.TCPConn
	way  string
	port int
}

// TestChangesActOnLiveConnections opens many connections, through the tunnel, within a node
// and in plaintext, and changes policy, modes and the deny-list under them: what is not
// allowed any more ends within a second, with its reason in the flow, and nothing else does.
// What a workload has that leaves the mesh ends when it has had its time. There are 1,000
// policies.
func TestChangesActOnLiveConnections(t *testing.T) {
	b := up(t, "e2e-live")
	b.Write(t, "policies.yaml", livePermissive())
	for _, pod := range []string{"shop/server", "shop/near"} {
		for _, port := range []int{liveDoomed, liveSpared} {
			go echo(t, b.Listen(t, pod, fmt.Sprintf(":%d", port)))
		}
	}
	waitPlaintext(t, b)
	var took []time.Duration

	all := openLive(t, b)
	took = append(took, endsExactly(t, all, func(c liveConn) bool { return c.port == liveDoomed }, func() { b.Write(t, "doomed.yaml", liveDeny) })...)
	b.Remove(t, "doomed.yaml")
	reasons(t, b, "deny", "PolicyChanged", 3)

	all = openLive(t, b)
	strict := strings.ReplaceAll(livePermissive(), fmt.Sprintf("{port: %d, mode: PERMISSIVE}, ", liveDoomed), "")
	took = append(took, endsExactly(t, all, func(c liveConn) bool { return c.way == "plaintext" && c.port == liveDoomed }, func() { b.Write(t, "policies.yaml", strict) })...)
	b.Write(t, "policies.yaml", livePermissive())

	all = openLive(t, b)
	revoke := `spec:
  revokedIdentities: ["spiffe://e2e.heddle.dev/ns/shop/sa/client"]
  trustDomain`
	meshFile := meshYAML("e2e-live", shopPods()...) + service("server", "10.96.0.10", 80)
	took = append(took, endsExactly(t, all, func(c liveConn) bool { return c.way != "plaintext" }, func() {
		b.Write(t, "mesh.yaml", strings.Replace(meshFile, "spec:\n  trustDomain", revoke, 1))
	})...)
	reasons(t, b, "deny", "IdentityRevoked", 2)
	b.Write(t, "mesh.yaml", meshFile)

	all = openLive(t, b)
	leaving := strings.Replace(meshFile, "labels: {app: server}", `labels: {app: server, heddle.dev/mesh: disabled}`, 1)
	drained := endsExactly(t, all, func(c liveConn) bool { return c.way != "splice" }, func() { b.Write(t, "mesh.yaml", leaving) })
	reasons(t, b, "allow", "Unenrolled", 2) // nothing forbade them
	drainsWithin(t, drained)

	slices.Sort(took)
	p99 := took[len(took)*99/100]
	t.Logf("%d connections ended, with 1,000 policies: median %v, p99 %v, last %v", len(took), took[len(took)/2], p99, took[len(took)-1])
	within := liveWithin
	if testenv.Overloaded(t) {
		within = liveLoaded
	}
	if p99 > within {
		t.Errorf("p99 of the ends is %v, more than %v", p99, within)
	}
}

// drainsWithin judges how long after their workload was to leave the mesh connections ended:
// they have the time that docs/enrollment.md says.
func drainsWithin(t *testing.T, took []time.Duration) {
	t.Helper()
	if len(took) == 0 {
		return // said already
	}
	least, most := slices.Min(took), slices.Max(took)
	t.Logf("%d connections of a workload that left ended after %v to %v", len(took), least, most)
	if least < liveDrain {
		t.Errorf("a connection of a workload that left ended after %v, before the %v that it has", least, liveDrain)
	}
	// Both bounds run from when the agent hears of it, one after the other.
	within := liveDrain + liveDrainLate + 3*liveWithin
	if testenv.Overloaded(t) {
		within += liveLoaded
	}
	if most > within {
		t.Errorf("a connection of a workload that left ended after %v, more than %v", most, within)
	}
}

// waitPlaintext returns when plaintext passes to both ports.
func waitPlaintext(t *testing.T, b *testbed.Bed) {
	t.Helper()
	for _, port := range []int{liveDoomed, liveSpared} {
		waitPasses(t, b, "plain/talker", fmt.Sprintf("10.244.2.10:%d", port))
	}
}

// waitPasses returns when a pod's connections are answered.
func waitPasses(t *testing.T, b *testbed.Bed, from, to string) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; {
		c, err := b.Dial(from, to, time.Second)
		if err == nil {
			err = liveEcho(c)
			c.Close()
		}
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s does not reach %s: %v", from, to, err)
		}
	}
}

// openLive opens connections each way to both ports, and has them exchange something.
func openLive(t *testing.T, b *testbed.Bed) []liveConn {
	t.Helper()
	waitPlaintext(t, b)
	return openWays(t, b, []liveWay{
		{"tunnel", "shop/client", "10.244.2.10"}, {"splice", "shop/client", "10.244.1.11"}, {"plaintext", "plain/talker", "10.244.2.10"},
	})
}

// liveWay is from whom, and where to, connections go.
type liveWay struct{ way, from, to string }

func openWays(t *testing.T, b *testbed.Bed, ways []liveWay) []liveConn {
	t.Helper()
	all := make([]liveConn, len(ways)*2*livePerKind)
	var mu sync.Mutex
	var errs []error
	each(context.Background(), len(all), 16, func(i int) {
		w, port := ways[i%len(ways)], liveDoomed+i/len(ways)%2
		var c *net.TCPConn
		var err error
		// The change before this one may still be on its way.
		for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); {
			if c, err = b.Dial(w.from, fmt.Sprintf("%s:%d", w.to, port), 5*time.Second); err != nil {
				continue
			}
			if err = liveEcho(c); err == nil {
				break
			}
			c.Close()
		}
		mu.Lock()
		defer mu.Unlock()
		all[i] = liveConn{c, w.way, port}
		errs = append(errs, err)
	})
	t.Cleanup(func() {
		for _, c := range all {
			if c.TCPConn != nil {
				c.Close()
			}
		}
	})
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	return all
}

func liveEcho(c *net.TCPConn) error {
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	if _, err := c.Write([]byte{'x'}); err != nil {
		return err
	}
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		return err
	}
	return c.SetDeadline(time.Time{})
}

// endsExactly makes a change, and returns how long after it each connection ended that must;
// the others must go on.
func endsExactly(t *testing.T, all []liveConn, must func(liveConn) bool, change func()) []time.Duration {
	t.Helper()
	ends := make([]time.Time, len(all))
	var reading sync.WaitGroup
	for i, c := range all {
		if !must(c) {
			continue
		}
		if err := c.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
		reading.Go(func() {
			if _, err := c.Read(make([]byte, 1)); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
				ends[i] = time.Now()
			}
		})
	}
	began := time.Now()
	change()
	reading.Wait()
	var took []time.Duration
	stayed, lost := 0, 0
	for i, c := range all {
		switch {
		case must(c) && ends[i].IsZero():
			stayed++
		case must(c):
			took = append(took, ends[i].Sub(began))
		case liveEcho(c.TCPConn) != nil:
			lost++
		}
		c.Close()
	}
	if stayed+lost > 0 || len(took) < livePerKind {
		t.Errorf("%d of %d connections did not end, and %d of %d ended that are allowed", stayed, stayed+len(took), lost, len(all)-stayed-len(took))
	}
	return took
}

// reasons waits for flows of a verdict and a reason by so many transports.
func reasons(t *testing.T, b *testbed.Bed, verdict, reason string, ways int) {
	t.Helper()
	seen := map[string]bool{}
	deadline := time.Now().Add(10 * time.Second)
	for len(seen) < ways && time.Now().Before(deadline) {
		for _, f := range b.Flows(t, "--reason", reason) {
			if f.Verdict == verdict {
				seen[f.Transport] = true
			}
		}
	}
	if len(seen) < ways {
		t.Errorf("flows say %s of these ways only: %v", reason, seen)
	}
}
