package agent_test

import (
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/flow"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

// TestPolicyEndsOldConnections: a change of policy ends what was open before the pods were
// enrolled and is no longer allowed, within a second, on the node whose policy it is, with a
// flow that names it; and nothing else.
func TestPolicyEndsOldConnections(t *testing.T) {
	w := newWorld(t)
	for _, pod := range w.pods {
		pod.serve(7001, echo)
	}
	mode := func(m string) {
		w.write("modes.yaml", "apiVersion: heddle.dev/v1alpha1\nkind: PeerAuthentication\nmetadata: {namespace: shop, name: default}\nspec: {mode: "+m+"}\n")
	}
	mode("PERMISSIVE")
	// From the node's own network: nobody of the mesh is there.
	outside := podNS{w: w, ns: w.n2.ns, v4: wire2}
	outside.serve(7001, echo)
	w.pods["outside"] = &outside
	open := map[string]old{}
	for _, ends := range [][2]string{{"web", "db"}, {"api", "db"}, {"db", "web"}, {"db", "api"}, {"web", "outside"}} {
		open[ends[0]+" to "+ends[1]] = w.old(t, ends[0], ends[1])
	}
	for _, n := range []*node{w.n1, w.n2} {
		n.start()
		t.Cleanup(n.leave)
	}
	w.n1.await("enrolled")
	w.n2.await("enrolled")
	live := func(when string) {
		t.Helper()
		for name, o := range open {
			if err := o.asks(); err != nil {
				t.Errorf("%s: %s: %v", when, name, err)
			}
		}
	}
	live("enrolled")
	policy := func(name, kind, spec string) {
		api := "heddle.dev/v1alpha1"
		if kind == "NetworkPolicy" {
			api = "networking.k8s.io/v1"
		}
		w.write(name+".yaml", fmt.Sprintf("apiVersion: %s\nkind: %s\nmetadata: {namespace: shop, name: %s}\nspec: %s\n", api, kind, name, spec))
	}
	policy("unrelated", "AuthorizationPolicy", `{selector: {matchLabels: {app: six}}, action: ALLOW}`)
	time.Sleep(700 * time.Millisecond)
	live("a policy about another pod")
	for _, c := range []struct {
		name   string
		node   *node
		policy string
		change func()
		detail mesh.Reason
	}{
		{"web to db", w.n2, "no-web", func() {
			policy("no-web", "AuthorizationPolicy", `{selector: {matchLabels: {app: db}}, action: DENY, rules: [{from: [{serviceAccounts: [shop/web]}]}]}`)
		}, mesh.ReasonPolicyDeny},
		{"web to outside", w.n1, "", func() { w.settings("  egress: {mode: DENY}\n") }, mesh.ReasonEgressDenied},
		{"db to web", w.n1, "", func() {
			policy("nobody", "AuthorizationPolicy", `{selector: {matchLabels: {app: web}}, action: ALLOW}`)
		}, mesh.ReasonPolicyNoMatch},
		{"db to api", w.n1, "closed", func() {
			policy("closed", "NetworkPolicy", `{podSelector: {matchLabels: {app: api}}, policyTypes: [Ingress]}`)
		}, mesh.ReasonNetworkPolicyIngress},
		{"api to db", w.n2, "", func() { mode("STRICT") }, mesh.ReasonStrictPlaintext},
	} {
		o := open[c.name]
		delete(open, c.name)
		start := time.Now()
		c.change()
		local, remote := o.LocalAddr().String(), o.RemoteAddr().String()
		var found []flow.Record
		testenv.Eventually(t, 10*time.Second, c.name+" has ended with a flow", func() bool {
			found = c.node.flows(func(r *flow.Record) bool {
				return r.Transport == flow.TransportPlaintext && r.Verdict == mesh.VerdictDeny && r.Source.Addr.String() == local && r.Destination.Addr.String() == remote
			})
			return len(found) > 0
		})
		took := time.Since(start)
		r := found[0]
		if r.Reason != mesh.ReasonPolicyChanged || r.Policy.Name != c.policy || r.Detail != "was open before the pod was enrolled: "+c.detail.String() ||
			(r.Direction == flow.DirectionOutbound) != (c.name == "web to outside") {
			t.Errorf("%s: %+v", c.name, r)
		}
		if took > time.Second && !testenv.Overloaded(t) {
			t.Errorf("%s: it took %v", c.name, took)
		}
		t.Logf("%s: ended and told in %v", c.name, took)
		if err := o.asks(); err == nil {
			t.Errorf("%s goes on", c.name)
		}
		live(c.name)
	}
	if c, err := w.pods["api"].dial(net.JoinHostPort(w.pods["db"].v4, "7001")); err != nil {
		t.Errorf("a new one is carried: %v", err)
	} else {
		c.Close()
	}
}
