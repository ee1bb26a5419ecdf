package proxy_test

import (
	"io"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/agent/proxy"
	"github.com/heddle-mesh/heddle/internal/flow"
	"github.com/heddle-mesh/heddle/internal/hbone"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/mesh/netpolicy"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

// isolates is a policy of everybody in the shop that admits these blocks.
func isolates(name string, egress bool, blocks ...string) netpolicy.Policy {
	d := &netpolicy.Direction{}
	for _, b := range blocks {
		d.Rules = append(d.Rules, netpolicy.Rule{Peers: []netpolicy.Peer{{Block: netip.MustParsePrefix(b)}}})
	}
	p := netpolicy.Policy{Name: netpolicy.Name{Namespace: "shop", Name: name}}
	if egress {
		p.Egress = d
	} else {
		p.Ingress = d
	}
	return p
}

// TestNetworkPolicyOnEitherNode: the source's node keeps to the source's policies,
// and the destination's to the destination's, in the tunnel and in a splice, and
// both do so to connections that are open.
func TestNetworkPolicyOnEitherNode(t *testing.T) {
	for _, serverNode := range []string{"b", "a"} {
		for _, egress := range []bool{false, true} {
			name := map[string]string{"a": "splice", "b": "tunnel"}[serverNode] + map[bool]string{false: " ingress", true: " egress"}[egress]
			t.Run(name, func(t *testing.T) { networkPolicy(t, serverNode, egress) })
		}
	}
}

func networkPolicy(t *testing.T, serverNode string, egress bool) {
	w := newWorld(t)
	w.workload("web", "a", "198.18.1.1")
	w.workload("db", serverNode, "198.18.2.1")
	w.service("db", "198.18.9.1", 7000, 7001, "db")
	other, reason := "198.18.2.0/24", mesh.ReasonNetworkPolicyEgress
	if !egress {
		other, reason = "198.18.1.0/24", mesh.ReasonNetworkPolicyIngress
	}
	w.network = []netpolicy.Policy{isolates("some", egress, other)}
	w.publish()
	application(t, "198.18.2.1:7001", echo)
	a := w.node("a")
	server := a
	if serverNode == "b" {
		server = w.node("b")
	}
	client := a.serve("web", "198.18.1.1", podOptions{outbound: []string{vip}})
	server.serve("db", "198.18.2.1", podOptions{})
	judge := a // the node that decides
	if !egress {
		judge = server
	}

	c := client.client(vip)
	greeting(t, c)
	w.network = []netpolicy.Policy{isolates("some", egress, "198.18.7.0/24")}
	w.publish()
	refused(t, c)
	testenv.Eventually(t, 5*time.Second, "what was open is ended by policy", func() bool {
		all := judge.flows.all()
		return len(all) == 1 && all[0].Reason == mesh.ReasonPolicyChanged && all[0].Verdict == mesh.VerdictDeny
	})
	client.refused(vip)
	r := judge.flows.wait(t, 2)[1]
	if r.Verdict != mesh.VerdictDeny || r.Reason != reason || r.Policy != (mesh.Key{Namespace: "shop", Name: "some"}) || r.Rule != -1 || r.Transport != flow.TransportNone {
		t.Errorf("%+v, want %v by some", r, reason)
	}
	if judge != a {
		if r := a.flows.wait(t, 2)[1]; r.Reason != mesh.ReasonPeerRefused {
			t.Errorf("at the source's node: %v", r.Reason)
		}
	}
	// A second policy adds to what the first admits.
	w.network = append(w.network, isolates("more", egress, other))
	w.publish()
	greeting(t, client.client(vip))
}

// Out of the mesh, to a workload that is not in it, and to the pod's own node.
func TestNetworkPolicyOfEgress(t *testing.T) {
	w := newWorld(t)
	w.workload("web", "a", "198.18.1.1")
	w.workload("legacy", "b", "198.18.3.1").Enrolled = false
	w.service("legacy", "198.18.9.2", 7000, 7001, "legacy")
	w.network = []netpolicy.Policy{isolates("some", true, "198.18.3.0/24")}
	w.publish()
	application(t, "198.18.3.1:7001", echo)
	var onNode atomic.Bool // whether the workload is on the node's own address
	a := w.node("a", func(c *proxy.Config) {
		c.OnNode = func(addr netip.Addr) bool { return onNode.Load() && addr == netip.MustParseAddr("198.18.3.1") }
	})
	client := a.serve("web", "198.18.1.1", podOptions{outbound: []string{"198.18.9.2:7000", "203.0.113.1:7000"}})

	client.refused("203.0.113.1:7000")
	if r := a.flows.wait(t, 1)[0]; r.Reason != mesh.ReasonNetworkPolicyEgress || r.Policy.Name != "some" {
		t.Errorf("%+v", r)
	}
	c := client.client("198.18.9.2:7000")
	greeting(t, c)
	w.network = []netpolicy.Policy{isolates("some", true)}
	w.publish()
	refused(t, c)
	if r := a.flows.wait(t, 2)[1]; r.Reason != mesh.ReasonPolicyChanged || r.Transport != flow.TransportPlaintext {
		t.Errorf("%+v", r)
	}
	client.refused("198.18.9.2:7000")
	if r := a.flows.wait(t, 3)[2]; r.Reason != mesh.ReasonNetworkPolicyEgress {
		t.Errorf("%+v", r)
	}
	// Nothing keeps a pod from its own node, then or later.
	onNode.Store(true)
	c = client.client("198.18.9.2:7000")
	greeting(t, c)
	w.publish()
	c.Write([]byte("still here\n"))
	if got := greeting(t, c); got != "still here" {
		t.Errorf("%q", got)
	}
}

// In plaintext: probes and the node come in, and whom a policy admits.
func TestNetworkPolicyOfPlaintext(t *testing.T) {
	w := newWorld(t)
	db := w.workload("db", "b", "198.18.2.1")
	db.Mode = mesh.ModePermissive
	db.ProbePorts = []uint16{7003}
	w.network = []netpolicy.Policy{isolates("some", false, "198.18.4.0/24")}
	w.publish()
	application(t, "198.18.2.1:7902", echo)
	b := w.node("b", func(c *proxy.Config) {
		c.OnNode = func(addr netip.Addr) bool { return addr == netip.MustParseAddr("198.18.5.1") }
	})
	server := b.serve("db", "198.18.2.1", podOptions{
		inbound: []string{"198.18.2.1:7002", "198.18.2.1:7003"}, noTunnel: true,
		probe: func(local, _ netip.AddrPort) bool { return local.Port() == 7003 },
		apps:  map[uint16]uint16{7002: 7902, 7003: 7902},
	})
	for i, c := range []struct {
		from, to string
		reason   mesh.Reason
	}{
		{"198.18.4.1", "198.18.2.1:7002", mesh.ReasonPermissive},
		{"198.18.5.1", "198.18.2.1:7002", mesh.ReasonPermissive}, // the node
		{"198.18.6.1", "198.18.2.1:7002", mesh.ReasonNetworkPolicyIngress},
		{"198.18.6.1", "198.18.2.1:7003", mesh.ReasonProbe},
	} {
		client := *server
		client.addr = netip.MustParseAddr(c.from)
		if c.reason == mesh.ReasonNetworkPolicyIngress {
			client.refused(c.to)
		} else {
			conn := client.client(c.to)
			greeting(t, conn)
			conn.CloseWrite()
			io.Copy(io.Discard, conn)
		}
		if r := b.flows.wait(t, i+1)[i]; r.Reason != c.reason {
			t.Errorf("from %s to %s: %+v, want %v", c.from, c.to, r, c.reason)
		}
	}
	// A change ends what a policy no longer admits, and leaves the node alone.
	from := func(addr string) *pod { p := *server; p.addr = netip.MustParseAddr(addr); return &p }
	admitted, node := from("198.18.4.1").client("198.18.2.1:7002"), from("198.18.5.1").client("198.18.2.1:7002")
	greeting(t, admitted)
	greeting(t, node)
	w.network = []netpolicy.Policy{isolates("some", false)}
	w.publish()
	refused(t, admitted)
	node.Write([]byte("still here\n"))
	if got := greeting(t, node); got != "still here" {
		t.Errorf("%q", got)
	}
}

// A pod that takes an address that is not its own is not believed within the node
// either.
func TestSpliceNeedsTheClientsOwnAddress(t *testing.T) {
	_, a, client := sameNode(t, echo)
	client.addr = netip.MustParseAddr("198.18.1.9")
	client.refused(vip)
	if r := a.flows.wait(t, 1)[0]; r.Reason != mesh.ReasonForwardedUntrusted {
		t.Errorf("%+v", r)
	}
}

// TestNewPod: a pod connects before the configuration has its address, which the node
// has from the CNI, to a service on its node and on another.
func TestNewPod(t *testing.T) {
	for _, serverNode := range []string{"a", "b"} {
		t.Run(serverNode, func(t *testing.T) {
			w := newWorld(t)
			w.workload("web", "a", "198.18.1.1").Addresses = nil
			w.workload("db", serverNode, "198.18.2.1")
			w.service("db", "198.18.9.1", 7000, 7001, "db")
			w.publish()
			application(t, "198.18.2.1:7001", echo)
			a := w.node("a")
			server := a
			if serverNode != "a" {
				server = w.node(serverNode)
			}
			server.serve("db", "198.18.2.1", podOptions{})
			client := a.serve("web", "198.18.1.1", podOptions{outbound: []string{vip}})
			if got := greeting(t, client.client(vip)); got != "hello 198.18.1.1" {
				t.Errorf("application greeted %q", got)
			}
		})
	}
}

// TestNewServer: a pod is connected to before its own node's configuration has its
// address.
func TestNewServer(t *testing.T) {
	w := newWorld(t)
	w.workload("web", "a", "198.18.1.1")
	w.workload("db", "b", "198.18.2.1")
	w.service("db", "198.18.9.1", 7000, 7001, "db")
	w.publish()
	late := *w
	late.store, late.workloads = mesh.NewStore(), slices.Clone(w.workloads)
	late.workloads[1].Addresses = nil
	late.publish()
	application(t, "198.18.2.1:7001", echo)
	a, b := w.node("a"), late.node("b")
	b.serve("db", "198.18.2.1", podOptions{})
	client := a.serve("web", "198.18.1.1", podOptions{outbound: []string{vip}})
	if got := greeting(t, client.client(vip)); got != "hello 198.18.1.1" {
		t.Errorf("application greeted %q", got)
	}
}

// TestNewPodIsReached: a peer may be told a new pod's address before its own node is,
// also while that still has the one of the pod that had the name before.
func TestNewPodIsReached(t *testing.T) {
	w, a, b, _, _ := twoNodes(t, echo)
	for _, c := range []struct {
		name, target string
		known        []netip.Addr
		code         int
		reason       mesh.Reason
	}{
		{"no address yet", "198.18.2.1:7001", nil, 0, mesh.ReasonNoPolicy},
		{"another pod's, and none yet", "198.18.2.9:7001", nil, 400, mesh.ReasonAuthorityMismatch},
		{"that of the one before", "198.18.2.1:7001", []netip.Addr{netip.MustParseAddr("198.18.2.8")}, 503, mesh.ReasonNotSynced},
	} {
		t.Run(c.name, func(t *testing.T) {
			w.workloads[1].Addresses = c.known
			w.publish()
			seen := len(b.flows.all())
			err := connectAs(t, w, a, c.target, "")
			status, _ := err.(*hbone.StatusError)
			if c.code == 0 && err != nil || c.code != 0 && (status == nil || status.Code != c.code) {
				t.Errorf("answered %v, want %d", err, c.code)
			}
			if r := b.flows.wait(t, seen+1)[seen]; r.Reason != c.reason {
				t.Errorf("record: %v (%s)", r.Reason, r.Detail)
			}
		})
	}
}
