package grandfather_test

import (
	"net/netip"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/agent/grandfather"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/mesh/netpolicy"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// The pod is db; web is another of the mesh, out one of no mesh, and internet nobody.
const (
	db, web, out, internet, service = "10.0.0.1", "10.0.0.2", "10.0.0.3", "192.0.2.1", "10.96.0.1"
	webID                           = "spiffe://example.test/ns/shop/sa/web"
)

// state is what a configuration says; the zero value has db PERMISSIVE and no policy.
type state struct {
	settings mesh.Settings
	policies []mesh.Policy
	network  []netpolicy.Policy
	strict   bool
	deleted  bool // web is
	left     bool // web has left the mesh
	joined   bool // out has joined it
	dbOut    bool // db is not enrolled
}

func (s state) view(t *testing.T) *mesh.View {
	t.Helper()
	td := spiffeid.RequireTrustDomainFromString("example.test")
	s.settings.TrustDomain, s.settings.ClusterRanges = td, []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	pod := func(name, addr string, enrolled bool) mesh.Workload {
		id, err := mesh.IdentityFor(td, "shop", name)
		if err != nil {
			t.Fatal(err)
		}
		w := mesh.Workload{Key: mesh.Key{Namespace: "shop", Name: name}, ServiceAccount: name, Node: "n1", Identity: id, Ready: true,
			Labels: map[string]string{"app": name}, Addresses: []netip.Addr{netip.MustParseAddr(addr)}, Enrolled: enrolled, Mode: mesh.ModePermissive}
		if s.strict && name == "db" {
			w.Mode = mesh.ModeStrict
		}
		return w
	}
	pods := []mesh.Workload{pod("db", db, !s.dbOut), pod("out", out, s.joined)}
	if !s.deleted {
		pods = append(pods, pod("web", web, !s.left))
	}
	services := []mesh.Service{{Key: mesh.Key{Namespace: "shop", Name: "web"}, Addresses: []netip.Addr{netip.MustParseAddr(service)},
		Ports: []mesh.ServicePort{{Port: 80, TargetPort: 8080}}, Endpoints: []mesh.Key{{Namespace: "shop", Name: "web"}}}}
	v, err := mesh.NewNetworkView("1", s.settings, pods, services, s.policies, mesh.Network{Policies: s.network})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// policy is one about an application of the shop, from web where by is web's identity.
func policy(app string, action mesh.Action, by ...mesh.IdentityPattern) []mesh.Policy {
	p := mesh.Policy{Key: mesh.Key{Namespace: "shop", Name: "p"}, Action: action, Selector: map[string]string{"app": app}}
	if len(by) > 0 {
		p.Rules = []mesh.Rule{{From: []mesh.Source{{Identities: by}}}}
	}
	return []mesh.Policy{p}
}

func blocks(name string, in, out string) []netpolicy.Policy {
	p := netpolicy.Policy{Name: netpolicy.Name{Namespace: "shop", Name: name}, Selector: netpolicy.Selector{{Key: "app", Values: []string{"db"}}}}
	admit := func(block string) *netpolicy.Direction {
		if block == "" {
			return nil
		}
		return &netpolicy.Direction{Rules: []netpolicy.Rule{{Peers: []netpolicy.Peer{{Block: netip.MustParsePrefix(block)}}}}}
	}
	p.Ingress, p.Egress = admit(in), admit(out)
	return []netpolicy.Policy{p}
}

type change struct {
	name        string
	inbound     bool
	other       string
	before, now state
	reason      mesh.Reason // of the end; ReasonUnknown where it goes on
	by          mesh.Reason
	policy      string
}

func judge(t *testing.T, changes []change) {
	t.Helper()
	for _, c := range changes {
		conn := grandfather.Connection{Pod: mesh.Key{Namespace: "shop", Name: "db"}, Inbound: c.inbound,
			Local: netip.MustParseAddrPort(db + ":40000"), Remote: netip.MustParseAddrPort(c.other + ":80")}
		if c.inbound {
			conn.Local, conn.Remote = netip.MustParseAddrPort(db+":50051"), netip.MustParseAddrPort(c.other+":40000")
		}
		before, now := c.before.view(t), c.now.view(t)
		r, ended := grandfather.Refused(before, now, conn, nil)
		if ended != (c.reason != mesh.ReasonUnknown) || r.Reason != c.reason || r.By.Reason != c.by || r.By.Policy.Name != c.policy {
			t.Errorf("%s: ended %v, %+v; want %v, %v by %q", c.name, ended, r, c.reason, c.by, c.policy)
		}
		if ended && r.By.Verdict != mesh.VerdictDeny {
			t.Errorf("%s: the verdict is %v", c.name, r.By.Verdict)
		}
		if again, twice := grandfather.Refused(now, c.now.view(t), conn, nil); twice {
			t.Errorf("%s: refused again, though nothing has changed: %+v", c.name, again)
		}
	}
}

// TestInbound: what others have open to the pod ends when a change refuses it, and nothing
// else does.
func TestInbound(t *testing.T) {
	denies, allows := policy("db", mesh.ActionDeny, webID), policy("db", mesh.ActionAllow, webID)
	revoked := mesh.Settings{RevokedIdentities: []spiffeid.ID{spiffeid.RequireFromString(webID)}}
	changed, lives := mesh.ReasonPolicyChanged, mesh.ReasonUnknown
	judge(t, []change{
		{"DENY", true, web, state{}, state{policies: denies}, changed, mesh.ReasonPolicyDeny, "p"},
		{"DENY at a STRICT port", true, web, state{strict: true}, state{strict: true, policies: denies}, changed, mesh.ReasonPolicyDeny, "p"},
		{"DENY of another's identity", true, out, state{}, state{policies: denies}, lives, 0, ""},
		{"DENY about another pod", true, web, state{}, state{policies: policy("web", mesh.ActionDeny, webID)}, lives, 0, ""},
		{"DENY that was there", true, web, state{policies: denies}, state{policies: denies, network: blocks("n", "10.9.0.0/16", "")}, lives, 0, ""},
		{"the default deny", true, web, state{}, state{policies: policy("db", mesh.ActionAllow)}, changed, mesh.ReasonPolicyNoMatch, ""},
		{"ALLOW of web", true, web, state{}, state{policies: allows}, lives, 0, ""},
		{"ALLOW of web, from outside", true, internet, state{}, state{policies: allows}, changed, mesh.ReasonPolicyNoMatch, ""},
		{"ALLOW names another", true, web, state{policies: allows}, state{policies: policy("db", mesh.ActionAllow, "spiffe://example.test/ns/shop/sa/api")}, changed, mesh.ReasonPolicyNoMatch, ""},
		{"STRICT, from the mesh", true, web, state{}, state{strict: true}, changed, mesh.ReasonStrictPlaintext, ""},
		{"STRICT, from outside", true, internet, state{}, state{strict: true}, changed, mesh.ReasonStrictPlaintext, ""},
		{"STRICT of what was denied", true, web, state{policies: denies}, state{policies: denies, strict: true}, lives, 0, ""},
		{"STRICT as it was, from outside", true, internet, state{strict: true}, state{strict: true, policies: policy("db", mesh.ActionAllow)}, lives, 0, ""},
		{"PERMISSIVE again", true, internet, state{strict: true}, state{}, lives, 0, ""},
		{"NetworkPolicy", true, web, state{network: blocks("n", "10.0.0.0/8", "")}, state{network: blocks("n", "10.9.0.0/16", "")}, changed, mesh.ReasonNetworkPolicyIngress, "n"},
		{"NetworkPolicy, from outside", true, internet, state{}, state{network: blocks("n", "10.0.0.0/8", "")}, changed, mesh.ReasonNetworkPolicyIngress, "n"},
		{"NetworkPolicy that admits", true, web, state{}, state{network: blocks("n", "10.0.0.0/8", "")}, lives, 0, ""},
		{"egress", true, internet, state{}, state{settings: mesh.Settings{Egress: mesh.EgressDeny}}, lives, 0, ""},
		{"NetworkPolicy about egress", true, web, state{}, state{network: blocks("n", "", "10.9.0.0/16")}, lives, 0, ""},
		{"revoked", true, web, state{}, state{settings: revoked}, mesh.ReasonIdentityRevoked, mesh.ReasonIdentityRevoked, ""},
		{"the client joins, and is denied", true, out, state{policies: policy("db", mesh.ActionDeny, "spiffe://example.test/ns/shop/sa/out")},
			state{joined: true, policies: policy("db", mesh.ActionDeny, "spiffe://example.test/ns/shop/sa/out")}, lives, 0, ""},
		{"the client leaves", true, web, state{}, state{left: true}, lives, 0, ""},
		{"the client leaves, and the port is STRICT", true, web, state{strict: true}, state{strict: true, left: true}, mesh.ReasonUnenrolled, mesh.ReasonStrictPlaintext, ""},
		{"the client is deleted", true, web, state{strict: true, policies: allows}, state{strict: true, policies: allows, deleted: true}, lives, 0, ""},
		{"the pod itself joins", true, web, state{dbOut: true}, state{policies: denies}, lives, 0, ""},
	})
}

// TestOutbound: what the pod has open to others ends when a change refuses it, and nothing
// else does.
func TestOutbound(t *testing.T) {
	deny := state{settings: mesh.Settings{EgressNamespaces: map[string]mesh.EgressMode{"shop": mesh.EgressDeny}}}
	revoked := mesh.Settings{RevokedIdentities: []spiffeid.ID{spiffeid.RequireFromString(webID)}}
	elsewhere := state{network: blocks("n", "", "10.9.0.0/16")}
	changed, lives := mesh.ReasonPolicyChanged, mesh.ReasonUnknown
	left := deny
	left.left = true
	judge(t, []change{
		{"egress", false, internet, state{}, deny, changed, mesh.ReasonEgressDenied, ""},
		{"egress, to a workload outside", false, out, state{}, deny, changed, mesh.ReasonEgressDenied, ""},
		{"egress, inside the mesh", false, web, state{}, deny, lives, 0, ""},
		{"egress, to a service inside", false, service, state{}, deny, lives, 0, ""},
		{"egress, to nobody", false, "10.0.0.9", state{}, deny, lives, 0, ""},
		{"egress of another namespace", false, internet, state{}, state{settings: mesh.Settings{EgressNamespaces: map[string]mesh.EgressMode{"other": mesh.EgressDeny}}}, lives, 0, ""},
		{"egress that was denied", false, internet, deny, state{settings: deny.settings, network: elsewhere.network}, lives, 0, ""},
		{"NetworkPolicy", false, web, state{}, elsewhere, changed, mesh.ReasonNetworkPolicyEgress, "n"},
		{"NetworkPolicy, to outside", false, internet, state{}, elsewhere, changed, mesh.ReasonNetworkPolicyEgress, "n"},
		{"NetworkPolicy, to a service", false, service, state{}, elsewhere, changed, mesh.ReasonNetworkPolicyEgress, "n"},
		{"NetworkPolicy that lets go", false, service, state{}, state{network: blocks("n", "", "10.0.0.2/32")}, lives, 0, ""},
		{"NetworkPolicy about ingress", false, web, state{}, state{network: blocks("n", "10.9.0.0/16", "")}, lives, 0, ""},
		{"STRICT", false, web, state{}, state{strict: true}, lives, 0, ""},
		{"the default deny of the pod", false, web, state{}, state{policies: policy("db", mesh.ActionAllow)}, lives, 0, ""},
		{"revoked", false, web, state{}, state{settings: revoked}, mesh.ReasonIdentityRevoked, mesh.ReasonIdentityRevoked, ""},
		{"the server leaves", false, web, state{}, state{left: true}, lives, 0, ""},
		{"the server leaves, where nobody may go", false, web, deny, left, mesh.ReasonUnenrolled, mesh.ReasonEgressDenied, ""},
		{"the server is deleted", false, web, deny, state{settings: deny.settings, deleted: true}, lives, 0, ""},
	})
}
