package proxy_test

import (
	"net/netip"
	"testing"

	"github.com/heddle-mesh/heddle/internal/flow"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// TestFlowsNameWhoAudits: the flow of the node that decides names the AUDIT policies that match,
// of what is let in, refused by a DENY policy and refused by default.
func TestFlowsNameWhoAudits(t *testing.T) {
	for _, way := range []string{"tunnel", "splice", "plaintext"} {
		t.Run(way, func(t *testing.T) {
			w, judge, client, to := auditedWay(t, way)
			watch := mesh.Policy{Key: mesh.Key{Namespace: "shop", Name: "watch"}, Action: mesh.ActionAudit, Rules: []mesh.Rule{{}}}
			never := mesh.Policy{Key: mesh.Key{Namespace: "shop", Name: "never"}, Action: mesh.ActionDeny, Rules: []mesh.Rule{{}}}
			nobody := mesh.Policy{Key: mesh.Key{Namespace: "shop", Name: "nobody"}}
			for i, c := range []struct {
				policies []mesh.Policy
				verdict  mesh.Verdict
				policy   string
				audited  flow.Names
			}{
				{[]mesh.Policy{watch}, mesh.VerdictAudit, "", "shop/watch"},
				{[]mesh.Policy{watch, never}, mesh.VerdictDeny, "never", "shop/watch"},
				{[]mesh.Policy{watch, nobody}, mesh.VerdictDeny, "", "shop/watch"},
				{[]mesh.Policy{never}, mesh.VerdictDeny, "never", ""},
			} {
				w.policies = c.policies
				w.publish()
				if c.verdict == mesh.VerdictDeny {
					client.refused(to)
				} else {
					conn := client.client(to)
					greeting(t, conn)
					conn.Close()
				}
				if r := judge.flows.wait(t, i+1)[i]; r.Verdict != c.verdict || r.Policy.Name != c.policy || r.Audited != c.audited {
					t.Errorf("%v by %q, audited by %q; want %+v", r.Verdict, r.Policy, r.Audited, c)
				}
			}
		})
	}
}

// auditedWay is a client that reaches an application some way, at an address, and the node that decides.
func auditedWay(t *testing.T, way string) (w *world, judge *node, client *pod, to string) {
	switch way {
	case "tunnel":
		w, _, judge, client, _ = twoNodes(t, echo)
		return w, judge, client, vip
	case "splice":
		w, judge, client = sameNode(t, echo)
		return w, judge, client, vip
	}
	w = newWorld(t)
	w.workload("db", "b", "198.18.2.1").PortModes = map[uint16]mesh.Mode{7002: mesh.ModePermissive}
	w.publish()
	judge = w.node("b")
	application(t, "198.18.2.1:7902", echo)
	client = judge.serve("db", "198.18.2.1", podOptions{
		inbound: []string{"198.18.2.1:7002"}, noTunnel: true, apps: map[uint16]uint16{7002: 7902}, probe: func(_, _ netip.AddrPort) bool { return false },
	})
	return w, judge, client, "198.18.2.1:7002"
}
