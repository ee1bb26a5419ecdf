package resources

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/mesh/datagram"
	"github.com/heddle-mesh/heddle/internal/mesh/netpolicy"
	"github.com/heddle-mesh/heddle/internal/mesh/request"
)

func equalModel() cmp.Options {
	return cmp.Options{
		cmp.Comparer(func(a, b spiffeid.ID) bool { return a == b }),
		cmp.Comparer(func(a, b spiffeid.TrustDomain) bool { return a == b }),
		cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
		cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
		cmpopts.EquateEmpty(),
	}
}

func genName() *rapid.Generator[string] { return rapid.StringMatching(`[a-z][a-z0-9.-]{0,20}`) }

func genKey() *rapid.Generator[mesh.Key] {
	return rapid.Custom(func(t *rapid.T) mesh.Key {
		return mesh.Key{Namespace: genName().Draw(t, "namespace"), Name: genName().Draw(t, "name")}
	})
}

func genAddr() *rapid.Generator[netip.Addr] {
	return rapid.Custom(func(t *rapid.T) netip.Addr {
		n := rapid.SampledFrom([]int{4, 16}).Draw(t, "bytes")
		addr, _ := netip.AddrFromSlice(rapid.SliceOfN(rapid.Byte(), n, n).Draw(t, "address"))
		return addr.Unmap()
	})
}

func genBlock() *rapid.Generator[netip.Prefix] {
	return rapid.Custom(func(t *rapid.T) netip.Prefix {
		addr := genAddr().Draw(t, "address")
		return netip.PrefixFrom(addr, rapid.IntRange(0, addr.BitLen()).Draw(t, "bits"))
	})
}

func genPort() *rapid.Generator[uint16] { return rapid.Uint16Min(1) }

func genMode() *rapid.Generator[mesh.Mode] {
	return rapid.SampledFrom([]mesh.Mode{mesh.ModeStrict, mesh.ModePermissive})
}

func genEgress() *rapid.Generator[mesh.EgressMode] {
	return rapid.SampledFrom([]mesh.EgressMode{mesh.EgressAllow, mesh.EgressDeny})
}

func genUDPEgress() *rapid.Generator[mesh.UDPEgress] {
	return rapid.Custom(func(t *rapid.T) (e mesh.UDPEgress) {
		if e.Allow = rapid.Bool().Draw(t, "allow"); e.Allow {
			e.Ports = rapid.SliceOfN(genPort().Filter(func(p uint16) bool { return !datagram.ClosedPort(p) }), 0, datagram.MaxPorts).Draw(t, "ports")
		}
		return e
	})
}

func genID() *rapid.Generator[spiffeid.ID] {
	return rapid.Custom(func(t *rapid.T) spiffeid.ID {
		return spiffeid.RequireFromString("spiffe://test.example/ns/" + rapid.StringMatching(`[a-z]{1,9}`).Draw(t, "ns") + "/sa/x")
	})
}

func genSource() *rapid.Generator[mesh.Source] {
	return rapid.Custom(func(t *rapid.T) mesh.Source {
		pattern := rapid.Map(rapid.StringMatching(`spiffe://[a-z]{1,5}/[a-z*]{1,5}`), func(s string) mesh.IdentityPattern { return mesh.IdentityPattern(s) })
		return mesh.Source{
			Identities: rapid.SliceOfN(pattern, 0, 3).Draw(t, "identities"), NotIdentities: rapid.SliceOfN(pattern, 0, 3).Draw(t, "not identities"),
			Namespaces: rapid.SliceOfN(genName(), 0, 3).Draw(t, "namespaces"), NotNamespaces: rapid.SliceOfN(genName(), 0, 3).Draw(t, "not namespaces"),
			IPBlocks: rapid.SliceOfN(genBlock(), 0, 3).Draw(t, "blocks"), NotIPBlocks: rapid.SliceOfN(genBlock(), 0, 3).Draw(t, "not blocks"),
		}
	})
}

func genRequests(t *rapid.T) *mesh.RequestMatch {
	if rapid.Bool().Draw(t, "no requests") {
		return nil
	}
	texts := rapid.SliceOfN(rapid.StringMatching(`[a-z/*]{1,5}`), 0, 3)
	patterns := rapid.SliceOfN(rapid.Map(rapid.StringMatching(`[a-z/*]{1,5}`), func(s string) request.Pattern { return request.Pattern(s) }), 0, 3)
	header := rapid.Custom(func(t *rapid.T) request.HeaderMatch {
		return request.HeaderMatch{Name: rapid.StringMatching(`[a-z-]{1,5}`).Draw(t, "name"), Values: patterns.Draw(t, "values")}
	})
	return &mesh.RequestMatch{
		Hosts: patterns.Draw(t, "hosts"), NotHosts: patterns.Draw(t, "not hosts"), Methods: texts.Draw(t, "methods"), NotMethods: texts.Draw(t, "not methods"),
		Paths: patterns.Draw(t, "paths"), NotPaths: patterns.Draw(t, "not paths"), Headers: rapid.SliceOfN(header, 0, 2).Draw(t, "headers"),
	}
}

func genRule() *rapid.Generator[mesh.Rule] {
	return rapid.Custom(func(t *rapid.T) mesh.Rule {
		to := rapid.Custom(func(t *rapid.T) mesh.Destination {
			return mesh.Destination{Ports: rapid.SliceOfN(genPort(), 0, 3).Draw(t, "ports"), NotPorts: rapid.SliceOfN(genPort(), 0, 3).Draw(t, "not ports"), Requests: genRequests(t)}
		})
		return mesh.Rule{From: rapid.SliceOfN(genSource(), 0, 3).Draw(t, "from"), To: rapid.SliceOfN(to, 0, 3).Draw(t, "to")}
	})
}

// genDatagrams makes policies as workloads have them, about UDP.
func genDatagrams() *rapid.Generator[*mesh.Policy] {
	return rapid.Custom(func(t *rapid.T) *mesh.Policy {
		return &mesh.Policy{Key: genKey().Draw(t, "key"), Action: rapid.SampledFrom([]mesh.Action{mesh.ActionAllow, mesh.ActionDeny, mesh.ActionAudit}).Draw(t, "action"),
			Rules: rapid.SliceOfN(genRule(), 0, 2).Draw(t, "rules")}
	})
}

func genLabels() *rapid.Generator[map[string]string] {
	return rapid.MapOfN(genName(), rapid.String(), 0, 4)
}

// roundTrip encodes, decodes and compares; encoding twice gives the same bytes.
func roundTrip[T any](t *rapid.T, want *T, encode func(*T) (*Resource, error), got func(*decoded) *T) {
	t.Helper()
	r, err := encode(want)
	if err != nil {
		t.Fatal(err)
	}
	again, err := encode(want)
	if err != nil || again.Version != r.Version {
		t.Fatalf("encodings differ: %v", err)
	}
	d, err := decodeResource(r.Kind, r.Name, r.Version, r.Body)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got(d), equalModel()); diff != "" {
		t.Fatal(diff)
	}
}

func TestRoundTrip(t *testing.T) {
	t.Run("settings", rapid.MakeCheck(func(t *rapid.T) {
		roundTrip(t, &mesh.Settings{TrustDomain: spiffeid.RequireTrustDomainFromString("test.example"),
			ClusterRanges: rapid.SliceOfN(genBlock(), 0, 4).Draw(t, "ranges"), Egress: genEgress().Draw(t, "egress"),
			EgressNamespaces:  rapid.MapOfN(genName(), genEgress(), 0, 4).Draw(t, "namespaces"),
			UDPEgress:         rapid.MapOfN(rapid.OneOf(rapid.Just(""), genName()), genUDPEgress(), 0, 4).Draw(t, "udp"),
			RevokedIdentities: rapid.SliceOfN(genID(), 0, 3).Draw(t, "revoked"), Federation: genFederation(t)}, EncodeSettings, func(d *decoded) *mesh.Settings { return d.settings })
	}))
	t.Run("workload", rapid.MakeCheck(func(t *rapid.T) {
		roundTrip(t, &mesh.Workload{Key: genKey().Draw(t, "key"), ServiceAccount: genName().Draw(t, "account"), Node: genName().Draw(t, "node"),
			Identity: genID().Draw(t, "identity"), Addresses: rapid.SliceOfN(genAddr(), 1, 4).Draw(t, "addresses"), Labels: genLabels().Draw(t, "labels"),
			Enrolled: rapid.Bool().Draw(t, "enrolled"), Gated: rapid.Bool().Draw(t, "gated"), Ready: rapid.Bool().Draw(t, "ready"), Leaving: rapid.Bool().Draw(t, "leaving"), NetNS: rapid.String().Draw(t, "netns"),
			DNS:  rapid.SampledFrom([]mesh.DNSMode{mesh.DNSDefault, mesh.DNSCapture, mesh.DNSDirect}).Draw(t, "dns"),
			Mode: genMode().Draw(t, "mode"), PortModes: rapid.MapOfN(genPort(), genMode(), 0, 4).Draw(t, "port modes"),
			ProbePorts: rapid.SliceOfN(genPort(), 0, 4).Draw(t, "probe ports"), Datagrams: rapid.SliceOfN(genDatagrams(), 0, 2).Draw(t, "datagrams")}, EncodeWorkload, func(d *decoded) *mesh.Workload { return d.workload })
	}))
	t.Run("service", rapid.MakeCheck(func(t *rapid.T) {
		port := rapid.Custom(func(t *rapid.T) mesh.ServicePort {
			elsewhere := rapid.Custom(func(t *rapid.T) mesh.PortElsewhere {
				return mesh.PortElsewhere{TargetPort: genPort().Draw(t, "target"), Endpoints: mesh.SortedKeys(rapid.SliceOfN(genKey(), 1, 3).Draw(t, "endpoints"))}
			})
			return mesh.ServicePort{Name: rapid.String().Draw(t, "name"), AppProtocol: rapid.SampledFrom([]string{"", "http", "kubernetes.io/h2c"}).Draw(t, "protocol"), Port: genPort().Draw(t, "port"), TargetPort: genPort().Draw(t, "target"),
				Only: rapid.SliceOfN(genKey(), 0, 3).Draw(t, "only"), Elsewhere: rapid.SliceOfN(elsewhere, 0, 2).Draw(t, "elsewhere")}
		})
		roundTrip(t, &mesh.Service{Key: genKey().Draw(t, "key"), Addresses: rapid.SliceOfN(genAddr(), 0, 3).Draw(t, "addresses"), External: rapid.SliceOfN(genAddr(), 0, 3).Draw(t, "external"),
			UDPPorts: rapid.SliceOfN(rapid.Custom(func(t *rapid.T) mesh.ServicePort {
				return mesh.ServicePort{Port: genPort().Draw(t, "port"), TargetPort: genPort().Draw(t, "target")}
			}), 0, 3).Draw(t, "udp ports"),
			Ports: rapid.SliceOfN(port, 0, 3).Draw(t, "ports"), Endpoints: rapid.SliceOfN(genKey(), 0, 5).Draw(t, "endpoints"),
			Prefer: mesh.Nearness(rapid.IntRange(0, 3).Draw(t, "prefer")), Sticky: rapid.Bool().Draw(t, "sticky"),
			StickyFor: time.Duration(rapid.Uint32().Draw(t, "seconds")) * time.Second, Unready: rapid.Bool().Draw(t, "unready"),
			Waypoint: rapid.OneOf(rapid.Just(mesh.Key{}), genKey()).Draw(t, "waypoint"), Bypass: rapid.Bool().Draw(t, "bypass")},
			EncodeService, func(d *decoded) *mesh.Service { return d.service })
	}))
	t.Run("policy", rapid.MakeCheck(func(t *rapid.T) {
		roundTrip(t, &mesh.Policy{Key: genKey().Draw(t, "key"), Action: rapid.SampledFrom([]mesh.Action{mesh.ActionAllow, mesh.ActionDeny, mesh.ActionAudit}).Draw(t, "action"),
			Selector: genLabels().Draw(t, "selector"), Rules: rapid.SliceOfN(genRule(), 0, 4).Draw(t, "rules")}, EncodePolicy, func(d *decoded) *mesh.Policy { return d.policy })
	}))
	t.Run("network policy", rapid.MakeCheck(func(t *rapid.T) {
		p := &netpolicy.Policy{Name: netpolicy.Name(genKey().Draw(t, "key"))}
		for range rapid.IntRange(0, 3).Draw(t, "requirements") {
			p.Selector = append(p.Selector, netpolicy.Requirement{Key: genName().Draw(t, "label"), Operator: netpolicy.Operator(rapid.IntRange(0, 3).Draw(t, "operator")),
				Values: rapid.SliceOfN(genName(), 0, 3).Draw(t, "values")})
		}
		p.Ingress, p.Egress = genDirection(t), genDirection(t)
		roundTrip(t, p, EncodeNetworkPolicy, func(d *decoded) *netpolicy.Policy { return d.network })
	}))
	t.Run("address set", rapid.MakeCheck(func(t *rapid.T) {
		var members []netpolicy.Member
		for range rapid.IntRange(1, 200).Draw(t, "members") {
			members = append(members, netpolicy.Member{Addr: genAddr().Draw(t, "address"), Port: rapid.SampledFrom([]uint16{0, 80, 443}).Draw(t, "port")})
		}
		for _, shard := range netpolicy.Split(genName().Draw(t, "set"), members) {
			roundTrip(t, &shard, EncodeAddressSet, func(d *decoded) *netpolicy.Shard { return d.shard })
		}
	}))
}

// genFederation draws other trust domains, sorted, as their workloads are.
func genFederation(t *rapid.T) (all []mesh.FederatedDomain) {
	names := rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"a.example", "a.example.org", "b.example"}), 0, 3, rapid.ID).Draw(t, "federated")
	slices.Sort(names)
	for _, name := range names {
		d := mesh.FederatedDomain{TrustDomain: spiffeid.RequireTrustDomainFromString(name)}
		paths := rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"/a", "/a/b", "/ns/x/sa/y"}), 0, 3, rapid.ID).Draw(t, "paths")
		slices.Sort(paths)
		for _, path := range paths {
			d.Workloads = append(d.Workloads, mesh.FederatedWorkload{Identity: spiffeid.RequireFromPath(d.TrustDomain, path), Addresses: rapid.SliceOfN(genAddr(), 1, 3).Draw(t, "addresses")})
		}
		all = append(all, d)
	}
	return all
}

func genDirection(t *rapid.T) *netpolicy.Direction {
	if rapid.Bool().Draw(t, "isolates not") {
		return nil
	}
	d := &netpolicy.Direction{}
	for range rapid.IntRange(0, 3).Draw(t, "rules") {
		var r netpolicy.Rule
		for range rapid.IntRange(0, 2).Draw(t, "peers") {
			p := netpolicy.Peer{Set: rapid.SampledFrom([]string{"", "set"}).Draw(t, "set")}
			if p.Set == "" {
				p.Block, p.Except = genBlock().Draw(t, "block"), rapid.SliceOfN(genBlock(), 0, 2).Draw(t, "except")
			}
			r.Peers = append(r.Peers, p)
		}
		for range rapid.IntRange(0, 2).Draw(t, "ports") {
			p := netpolicy.Port{Set: rapid.SampledFrom([]string{"", "set"}).Draw(t, "set")}
			if p.Set == "" {
				p.First = genPort().Draw(t, "first")
				p.Last = rapid.Uint16Min(p.First).Draw(t, "last")
			}
			r.Ports = append(r.Ports, p)
		}
		d.Rules = append(d.Rules, r)
	}
	return d
}

// A policy about UDP that says what this program does not know closes UDP, and leaves the
// workload as it is otherwise: what is not let in explicitly is not let in.
func TestUnknownAboutUDPCloses(t *testing.T) {
	m := &meshpb.Workload{Key: &meshpb.ObjectKey{Namespace: "a", Name: "b"}, Identity: "spiffe://t/ns/a/sa/b", Enrolled: true,
		Datagrams: []*meshpb.Policy{{Key: &meshpb.ObjectKey{Namespace: "a", Name: "p"}, Action: meshpb.Action_ACTION_ALLOW, Rules: []*meshpb.Rule{{To: []*meshpb.Destination{{Ports: []uint32{443}}}}}}}}
	decoded := func() *mesh.Workload {
		body, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		d, err := decodeResource(KindWorkload, "a/b", versionOf(KindWorkload, "a/b", body), body)
		if err != nil {
			t.Fatal(err)
		}
		return d.workload
	}
	if w := decoded(); len(w.Datagrams) != 1 {
		t.Fatalf("%+v", w)
	}
	m.Datagrams[0].Rules[0].To[0].ProtoReflect().SetUnknown(protowire.AppendVarint(protowire.AppendTag(nil, 99, protowire.VarintType), 1))
	if w := decoded(); len(w.Datagrams) != 0 || !w.Enrolled {
		t.Errorf("%+v", w)
	}
}

func TestWhatMustNotBeDecoded(t *testing.T) {
	key := &meshpb.ObjectKey{Namespace: "a", Name: "b"}
	unknown := &meshpb.Policy{Key: key, Action: meshpb.Action_ACTION_DENY, Rules: []*meshpb.Rule{{From: []*meshpb.Source{{}}}}}
	unknown.Rules[0].From[0].ProtoReflect().SetUnknown(protowire.AppendVarint(protowire.AppendTag(nil, 99, protowire.VarintType), 1))
	workload := func(change func(*meshpb.Workload)) *meshpb.Workload {
		w := &meshpb.Workload{Key: key, Identity: "spiffe://t/ns/a/sa/b", Addresses: [][]byte{{10, 0, 0, 1}}}
		change(w)
		return w
	}
	leaving := func(e ...*meshpb.UDPEgress) *meshpb.Settings {
		return &meshpb.Settings{TrustDomain: "t", Egress: meshpb.Egress_EGRESS_DENY, UdpEgress: e}
	}
	federated := func(id string, addr []byte) *meshpb.Settings {
		return &meshpb.Settings{TrustDomain: "t", Egress: meshpb.Egress_EGRESS_DENY, FederatedDomains: []string{"a.example"}, FederatedWorkloads: []*meshpb.FederatedWorkload{{Identity: id, Addresses: [][]byte{addr}}}}
	}
	for name, c := range map[string]struct {
		kind Kind
		m    proto.Message
		says string
	}{
		"condition that is not known":    {KindPolicy, unknown, "upgrade the agent"},
		"action that got lost":           {KindPolicy, &meshpb.Policy{Key: key}, "action"},
		"mode of tomorrow":               {KindWorkload, workload(func(w *meshpb.Workload) { w.Mode = 9 }), "mode"},
		"no identity":                    {KindWorkload, workload(func(w *meshpb.Workload) { w.Identity = "" }), "identity"},
		"mapped address":                 {KindWorkload, workload(func(w *meshpb.Workload) { w.Addresses = [][]byte{append(make([]byte, 10), 255, 255, 1, 2, 3, 4)} }), "not mapped"},
		"short address":                  {KindWorkload, workload(func(w *meshpb.Workload) { w.Addresses = [][]byte{{1, 2}} }), "4 or 16"},
		"port 70000":                     {KindWorkload, workload(func(w *meshpb.Workload) { w.ProbePorts = []uint32{70000} }), "70000"},
		"label twice":                    {KindWorkload, workload(func(w *meshpb.Workload) { w.Labels = []*meshpb.Label{{Key: "a"}, {Key: "a"}} }), "twice"},
		"port mode twice":                {KindWorkload, workload(func(w *meshpb.Workload) { w.PortModes = []*meshpb.PortMode{{Port: 1}, {Port: 1}} }), "twice"},
		"egress that got lost":           {KindSettings, &meshpb.Settings{TrustDomain: "t"}, "egress"},
		"ports of nothing over UDP":      {KindSettings, leaving(&meshpb.UDPEgress{Namespace: "a", Egress: meshpb.Egress_EGRESS_DENY, Ports: []uint32{123}}), `namespace "a"`},
		"UDP to a closed port":           {KindSettings, leaving(&meshpb.UDPEgress{Egress: meshpb.Egress_EGRESS_ALLOW, Ports: []uint32{8472}}), "port 8472 is always closed"},
		"UDP to no port":                 {KindSettings, leaving(&meshpb.UDPEgress{Egress: meshpb.Egress_EGRESS_ALLOW, Ports: []uint32{65536}}), "65536"},
		"UDP to too many ports":          {KindSettings, leaving(&meshpb.UDPEgress{Egress: meshpb.Egress_EGRESS_ALLOW, Ports: slices.Repeat([]uint32{123}, 65)}), "65 ports, more than 64"},
		"UDP of no mode":                 {KindSettings, leaving(&meshpb.UDPEgress{Ports: []uint32{123}}), "is unknown"},
		"UDP of a namespace twice":       {KindSettings, leaving(&meshpb.UDPEgress{Egress: meshpb.Egress_EGRESS_ALLOW}, &meshpb.UDPEgress{Egress: meshpb.Egress_EGRESS_DENY}), "given twice"},
		"no trust domain":                {KindSettings, &meshpb.Settings{Egress: meshpb.Egress_EGRESS_DENY}, "trust domain"},
		"workload of a stranger":         {KindSettings, federated("spiffe://b.example/x", []byte{10, 0, 0, 1}), "none of the federated domains"},
		"workload of this trust domain":  {KindSettings, federated("spiffe://t/x", []byte{10, 0, 0, 1}), "none of the federated domains"},
		"workload without an identity":   {KindSettings, federated("", []byte{10, 0, 0, 1}), "federated workload"},
		"workload of half an address":    {KindSettings, federated("spiffe://a.example/x", []byte{10}), "4 or 16"},
		"other name":                     {KindService, &meshpb.Service{Key: &meshpb.ObjectKey{Namespace: "a", Name: "c"}}, "contents are those of a/c"},
		"network operator that got lost": {KindNetworkPolicy, &meshpb.NetworkPolicy{Key: key, Selector: []*meshpb.LabelRequirement{{Key: "a"}}}, "operator"},
		"network peer that got lost":     {KindNetworkPolicy, &meshpb.NetworkPolicy{Key: key, Ingress: &meshpb.NetworkDirection{Rules: []*meshpb.NetworkRule{{Peers: []*meshpb.NetworkPeer{{}}}}}}, "4 or 16"},
		"network port that got lost":     {KindNetworkPolicy, &meshpb.NetworkPolicy{Key: key, Egress: &meshpb.NetworkDirection{Rules: []*meshpb.NetworkRule{{Ports: []*meshpb.NetworkPort{{}}}}}}, "port 0"},
		"address cut off":                {KindAddressSet, &meshpb.AddressSet{Set: "a", Count: 1, Groups: []*meshpb.AddressGroup{{Ipv4: []byte{10, 0, 0}}}}, "cut off"},
		"shard that is none":             {KindAddressSet, &meshpb.AddressSet{Set: "a", Count: 3, Groups: []*meshpb.AddressGroup{{Ipv4: []byte{10, 0, 0, 1}}}}, "shard 0 of 3"},
		"address of another shard":       {KindAddressSet, &meshpb.AddressSet{Set: "a", Count: 1 << 12, Groups: []*meshpb.AddressGroup{{Ipv4: []byte{10, 0, 0, 1}}}}, "not one of this shard"},
		"a commit":                       {KindCommit, &meshpb.Commit{}, "not a kind"},
	} {
		body, err := proto.Marshal(c.m)
		if err != nil {
			t.Fatal(err)
		}
		resourceName := "a/b"
		if c.kind == KindSettings {
			resourceName = settingsName
		}
		_, err = decodeResource(c.kind, resourceName, versionOf(c.kind, resourceName, body), body)
		if err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: got %v, want %q", name, err, c.says)
		}
	}
}
