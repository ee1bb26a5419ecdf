package proxy_test

import (
	"io"
	"slices"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/agent/engine"
	"github.com/heddle-mesh/heddle/internal/flow"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/mesh/request"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

// TestOnlyTheWaypointWherePoliciesAreAboutRequests: a workload's node sees none, so that it lets
// in the waypoint, which does, and nobody whose requests would have to be known: neither who comes
// past the waypoint, nor whom the service lets past one that is gone.
func TestOnlyTheWaypointWherePoliciesAreAboutRequests(t *testing.T) {
	of := func(action mesh.Action, m mesh.RequestMatch) mesh.Policy {
		return mesh.Policy{Key: mesh.Key{Namespace: "shop", Name: "requests"}, Action: action, Rules: []mesh.Rule{{
			From: []mesh.Source{{Identities: []mesh.IdentityPattern{"spiffe://example.test/ns/shop/sa/*"}}}, To: []mesh.Destination{{Requests: &m}},
		}}}
	}
	for name, policy := range map[string]mesh.Policy{
		"ALLOW": of(mesh.ActionAllow, mesh.RequestMatch{Methods: []string{"GET"}}),
		"DENY":  of(mesh.ActionDeny, mesh.RequestMatch{Paths: []request.Pattern{"/admin*"}}),
	} {
		t.Run(name, func(t *testing.T) {
			eachPlace(t, func(t *testing.T, engines map[string]string, beside bool) {
				n := newChanging(t, engines, beside, false, hold(100*time.Millisecond))
				n.w.policies = []mesh.Policy{policy}
				n.put("waypoint")
				if got := greeting(t, n.waypoint.client(dbAddress)); got != "hello 198.18.2.1" {
					t.Errorf("application greeted %q", got)
				}
				n.unseen(t, "requests", func() { n.direct("near", "198.18.2.2", n.b, dbAddress).refused(dbAddress) })
				n.w.workloads[1].Ready, n.w.services[1].Bypass = false, true
				n.w.publish()
				n.unseen(t, "requests", func() { n.direct("web", "198.18.1.1", n.a, behindVIP).refused(behindVIP) })
			})
		})
	}
}

// direct is a pod that goes past the waypoint: it has the listener in its place.
func (n *changing) direct(name, addr string, at *node, to string) *pod {
	n.waypoint.stop(nil)
	return at.serve(name, addr, podOptions{outbound: []string{to}})
}

// unseen wants of what it calls that the workload's node says why it refuses, and by which policy.
func (n *changing) unseen(t *testing.T, policy string, refused func()) {
	t.Helper()
	before := len(n.a.flows.all())
	refused()
	testenv.Eventually(t, 10*time.Second, "a record says that a request was not seen", func() bool {
		return slices.ContainsFunc(n.a.flows.all()[before:], func(r flow.Record) bool {
			return r.Reason == mesh.ReasonRequestUnseen && r.Verdict == mesh.VerdictDeny && r.Policy.Name == policy
		})
	})
}

// TestFormerWaypointHasJudgedRequests: what it has under way goes on when it is the waypoint no more,
// though the policies about its requests are as they were.
func TestFormerWaypointHasJudgedRequests(t *testing.T) {
	for _, kind := range []string{engine.Loop, engine.Reference} {
		t.Run(kind, func(t *testing.T) {
			n := newChanging(t, map[string]string{"a": kind}, false, false, hold(100*time.Millisecond), grace(time.Minute))
			n.w.policies = nil
			for _, action := range []mesh.Action{mesh.ActionAllow, mesh.ActionDeny} {
				n.w.policies = append(n.w.policies, mesh.Policy{Key: mesh.Key{Namespace: "shop", Name: action.String()}, Action: action,
					Rules: []mesh.Rule{{To: []mesh.Destination{{Requests: &mesh.RequestMatch{Methods: []string{map[mesh.Action]string{mesh.ActionAllow: "GET", mesh.ActionDeny: "PUT"}[action]}}}}}}})
			}
			n.put("waypoint")
			c := n.waypoint.client(dbAddress)
			greeting(t, c)
			n.put("")
			c.Write([]byte("x"))
			if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
				t.Fatalf("it ended with its waypoint: %v", err)
			}
			if got := greeting(t, n.waypoint.client(dbAddress)); got != "hello 198.18.2.1" {
				t.Errorf("application greeted %q", got)
			}
			n.denies("waypoint")
			refused(t, c)
		})
	}
}
