package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/e2e/testbed"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

// reaches tries a connection from a pod to an echo server.
func reaches(b *testbed.Bed, from, address string) bool {
	c, err := b.Dial(from, address, 5*time.Second)
	if err != nil {
		return false
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return false
	}
	_, _ = c.Write([]byte("x")) // the read judges
	_, err = io.ReadFull(c, make([]byte, 1))
	return err == nil
}

// becomes waits until a pod reaches an address, or does no more.
func becomes(t *testing.T, b *testbed.Bed, want bool, from, address string) {
	t.Helper()
	what := from + " reaches " + address
	if !want {
		what = from + " does not reach " + address
	}
	testenv.Eventually(t, 10*time.Second, what, func() bool { return reaches(b, from, address) == want })
}

// deniedBy tries until a pod is refused with a reason by a policy; refusals before
// may be those of what was in force until now.
func deniedBy(t *testing.T, b *testbed.Bed, reason, policy, from, address string) {
	t.Helper()
	testenv.Eventually(t, 10*time.Second, reason+" by "+policy+" of "+from+" to "+address, func() bool {
		if reaches(b, from, address) {
			return false
		}
		for _, f := range b.Flows(t, "--verdict", "deny") {
			if f.Reason == reason && f.Policy == policy && f.Source.Workload == from && f.Destination.Address == address {
				return true
			}
		}
		return false
	})
}

// explained asks what would happen to a connection, and compares it with a flow's
// reason and policy; "" is one that is allowed.
func explained(t *testing.T, b *testbed.Bed, from, address, reason, policy, says string) {
	t.Helper()
	out, err := b.Heddle("explain", from, address, "--name", b.Mesh.Plan.Name, "-o", "json")
	var answer struct{ Verdict, Reason string }
	if failed := json.Unmarshal([]byte(out), &answer); failed != nil {
		t.Fatalf("explain %s %s: %v, %v in %s", from, address, err, failed, out)
	}
	verdict := "deny"
	if reason == "" {
		verdict, reason = "allow", answer.Reason
	}
	if (err == nil) != (verdict == "allow") || answer.Verdict != verdict || answer.Reason != reason || policy != "" && !strings.Contains(out, `"`+policy+`"`) {
		t.Errorf("explain %s %s says %s %s, %v; want %s %s by %s:\n%s", from, address, answer.Verdict, answer.Reason, err, verdict, reason, policy, out)
	}
	if !strings.Contains(out, says) {
		t.Errorf("explain %s %s does not say %q:\n%s", from, address, says, out)
	}
}

// liveOn waits until the status of the mesh says that a NetworkPolicy is in force on
// all of so many nodes.
func liveOn(t *testing.T, b *testbed.Bed, policy string, nodes int) {
	t.Helper()
	want := fmt.Sprintf("NetworkPolicy %s accepted %d/%d -", policy, nodes, nodes)
	testenv.Eventually(t, 10*time.Second, "status says "+want, func() bool {
		out, err := b.Heddle("status", "--name", b.Mesh.Plan.Name)
		if err != nil {
			t.Logf("heddle status: %v", err)
			return false
		}
		for line := range strings.Lines(out) {
			if strings.Join(strings.Fields(line), " ") == want {
				return true
			}
		}
		return false
	})
}

func networkPolicyYAML(name, spec string) string {
	return "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {namespace: shop, name: " + name + "}\nspec: " + spec + "\n"
}

// TestNetworkPolicy: what NetworkPolicies say holds for what is in the tunnel, for
// what stays on a node, and for what is in plaintext; and it holds as soon as they,
// or labels, change.
func TestNetworkPolicy(t *testing.T) {
	const name = "e2e-netpol"
	b := up(t, name)
	const server, near, listener = "10.244.2.10:7300", "10.244.1.11:7300", "10.244.2.90:7300"
	for _, pod := range []string{"shop/server", "shop/near", "shop/client", "plain/listener"} {
		go echo(t, b.Listen(t, pod, ":7300"))
	}
	t.Run("IngressThroughTheTunnel", func(t *testing.T) {
		becomes(t, b, true, "shop/near", server)
		b.Write(t, "np.yaml", networkPolicyYAML("server-in", `{podSelector: {matchLabels: {app: server}}, ingress: [{from: [{podSelector: {matchLabels: {app: client}}}], ports: [{port: 7300}]}]}`))
		deniedBy(t, b, "NetworkPolicyIngress", "shop/server-in", "shop/near", server)
		liveOn(t, b, "shop/server-in", 1)
		explained(t, b, "shop/near", server, "NetworkPolicyIngress", "shop/server-in", "ingress[0]: 10.244.1.11 is not among its peers")
		becomes(t, b, true, "shop/client", server)
		explained(t, b, "shop/client", server, "", "shop/server-in", `"rule": 0`)
		becomes(t, b, true, "shop/client", "[fd00:244:2::10]:7300")
		becomes(t, b, false, "shop/near", "[fd00:244:2::10]:7300")
		becomes(t, b, true, "shop/server", server) // itself
		go echo(t, b.Listen(t, "shop/server", ":7301"))
		becomes(t, b, false, "shop/client", "10.244.2.10:7301")
	})
	t.Run("LiveConnectionsEnd", func(t *testing.T) {
		c := b.MustDial(t, "shop/client", server)
		roundTrip(t, c, []byte(secret))
		b.Write(t, "np.yaml", networkPolicyYAML("server-in", `{podSelector: {matchLabels: {app: server}}, ingress: [{from: [{podSelector: {matchLabels: {app: near}}}]}]}`))
		if err := c.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(make([]byte, 1)); err == nil || strings.Contains(err.Error(), "timeout") {
			t.Errorf("the connection that no policy admits any more did not end: %v", err)
		}
		waitFlow(t, b, "a flow that says PolicyChanged", func(f testbed.Flow) bool {
			return f.Reason == "PolicyChanged" && f.Source.Workload == "shop/client" && f.Direction == "inbound"
		})
		becomes(t, b, true, "shop/near", server)
	})
	t.Run("IngressWithinANode", func(t *testing.T) {
		becomes(t, b, true, "shop/client", near)
		b.Write(t, "np.yaml", networkPolicyYAML("near-in", `{podSelector: {matchLabels: {app: near}}, ingress: [{from: [{podSelector: {matchExpressions: [{key: app, operator: In, values: [server]}]}}]}]}`))
		deniedBy(t, b, "NetworkPolicyIngress", "shop/near-in", "shop/client", near)
		becomes(t, b, true, "shop/server", near)
	})
	t.Run("Egress", func(t *testing.T) {
		b.Write(t, "np.yaml", networkPolicyYAML("client-out", `{podSelector: {matchLabels: {app: client}}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {app: server}}}], ports: [{port: 7290, endPort: 7310}]}]}`))
		deniedBy(t, b, "NetworkPolicyEgress", "shop/client-out", "shop/client", near)
		explained(t, b, "shop/client", near, "NetworkPolicyEgress", "shop/client-out", "egress[0]: 10.244.1.11 is not among its peers")
		becomes(t, b, true, "shop/client", server)
		deniedBy(t, b, "NetworkPolicyEgress", "shop/client-out", "shop/client", listener)
		explained(t, b, "shop/client", listener, "NetworkPolicyEgress", "shop/client-out", "egress[0]: 10.244.2.90 is not among its peers")
		becomes(t, b, true, "shop/near", listener)
		b.Write(t, "np.yaml", networkPolicyYAML("client-out", `{podSelector: {matchLabels: {app: client}}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.244.0.0/16, except: [10.244.1.0/24]}}]}]}`))
		becomes(t, b, true, "shop/client", listener)
		becomes(t, b, false, "shop/client", near)
		explained(t, b, "shop/client", listener, "", "shop/client-out", `"rule": 0`)
		explained(t, b, "shop/client", near, "NetworkPolicyEgress", "shop/client-out", "10.244.1.11 is in the exception 10.244.1.0/24 of its ipBlock")
	})
	t.Run("BothMustAdmit", func(t *testing.T) {
		b.Write(t, "np.yaml", networkPolicyYAML("server-in", `{podSelector: {matchLabels: {app: server}}, ingress: [{}]}`)+"---\n"+
			networkPolicyYAML("nothing-out", `{podSelector: {matchLabels: {app: client}}, policyTypes: [Egress]}`))
		deniedBy(t, b, "NetworkPolicyEgress", "shop/nothing-out", "shop/client", server)
		becomes(t, b, true, "shop/near", server)
	})
	t.Run("PlaintextAndNamespaceLabels", func(t *testing.T) {
		b.Write(t, "permissive.yaml", "apiVersion: heddle.dev/v1alpha1\nkind: PeerAuthentication\nmetadata: {namespace: shop, name: permissive}\nspec: {mode: PERMISSIVE}\n")
		b.Remove(t, "np.yaml")
		becomes(t, b, true, "plain/talker", server)
		b.Write(t, "np.yaml", networkPolicyYAML("server-in", `{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: ops}}}]}]}`))
		deniedBy(t, b, "NetworkPolicyIngress", "shop/server-in", "plain/talker", server)
		labelled := strings.Replace(meshYAML(name, shopPods()...), "metadata: {name: plain}", "metadata: {name: plain, labels: {team: ops}}", 1)
		b.Write(t, "mesh.yaml", labelled+service("server", "10.96.0.10", 80))
		becomes(t, b, true, "plain/talker", server)
		becomes(t, b, false, "shop/client", server)
	})
	t.Run("WithoutPoliciesNobodyIsIsolated", func(t *testing.T) {
		b.Remove(t, "np.yaml")
		becomes(t, b, true, "shop/client", server)
		becomes(t, b, true, "shop/client", near)
	})
}
