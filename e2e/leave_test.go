package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/heddle-mesh/heddle/e2e/testbed"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

// TestLeavingEndsAtStrictPeers: of a client that leaves the mesh, what it has with a STRICT
// port ends within a second, through the tunnel and within a node, with its reason in the
// flow; what plaintext may reach lives on until the drain is over; and of another pod of its
// service account nothing ends.
func TestLeavingEndsAtStrictPeers(t *testing.T) {
	const name = "e2e-leave"
	meshFile := strings.Replace(meshYAML(name, append(shopPods(), pod{"shop", "twin", "n1", []string{"10.244.1.12", "fd00:244:1::12"}})...),
		"serviceAccount: twin", "serviceAccount: client", 1)
	b := testbed.Up(t, "..", name, meshFile)
	b.Write(t, "policies.yaml", fmt.Sprintf(`apiVersion: heddle.dev/v1alpha1
kind: PeerAuthentication
metadata: {namespace: shop, name: strict}
spec: {mode: STRICT, portModes: [{port: %d, mode: PERMISSIVE}]}
`, liveSpared))
	for _, pod := range []string{"shop/server", "shop/near"} {
		for _, port := range []int{liveDoomed, liveSpared} {
			go echo(t, b.Listen(t, pod, fmt.Sprintf(":%d", port)))
		}
	}
	ways := []liveWay{{"tunnel", "shop/client", "10.244.2.10"}, {"splice", "shop/client", "10.244.1.11"}, {"twin", "shop/twin", "10.244.2.10"}}
	leaving := strings.Replace(meshFile, "labels: {app: client}", `labels: {app: client, heddle.dev/mesh: disabled}`, 1)
	leave := func() { b.Write(t, "mesh.yaml", leaving) }
	of := func(c liveConn) bool { return c.way != "twin" }

	took := endsExactly(t, openWays(t, b, ways), func(c liveConn) bool { return of(c) && c.port == liveDoomed }, leave)
	reasons(t, b, "deny", "Unenrolled", 2)
	if len(took) > 0 {
		slices.Sort(took)
		within := liveWithin
		if testenv.Overloaded(t) {
			within = liveLoaded
		}
		last := took[len(took)-1]
		t.Logf("%d connections to STRICT ports ended: median %v, last %v", len(took), took[len(took)/2], last)
		if last > within {
			t.Errorf("the last ended after %v, more than %v", last, within)
		}
	}

	b.Write(t, "mesh.yaml", meshFile)
	for _, w := range ways { // in the mesh, as none else is let in
		waitPasses(t, b, w.from, fmt.Sprintf("%s:%d", w.to, liveDoomed))
	}
	all := slices.DeleteFunc(openWays(t, b, ways), func(c liveConn) bool {
		if of(c) && c.port == liveDoomed {
			c.Close()
			return true
		}
		return false
	})
	drainsWithin(t, endsExactly(t, all, of, leave))
}
