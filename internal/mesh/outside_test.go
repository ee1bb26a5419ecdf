package mesh_test

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"pgregory.net/rapid"

	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/mesh/datagram"
)

// gateOpens is what a gate does with rules and what is inside, as plainly as possible.
func gateOpens(rules []datagram.Rule, inside []netip.Prefix, to netip.AddrPort) bool {
	if to.Addr() != datagram.Outside() && slices.Contains(rules, datagram.Rule{Remote: to.Addr(), Port: to.Port()}) {
		return true
	}
	if slices.Contains([]uint16{0, 53, 4789, 4790, 6081, 8472}, to.Port()) || slices.ContainsFunc(inside, func(p netip.Prefix) bool { return p.Contains(to.Addr()) }) {
		return false
	}
	return slices.ContainsFunc(rules, func(r datagram.Rule) bool {
		return r.Remote == datagram.Outside() && !r.Inbound && (r.Port == 0 || r.Port == to.Port())
	})
}

// TestDatagramsOutsideAreTheSpecification holds the evaluator, and what it writes out for
// gates, to what the Mesh says of UDP to whoever is not in it.
func TestDatagramsOutsideAreTheSpecification(t *testing.T) {
	outside := []string{"192.0.2.1", "9.255.255.255", "11.0.0.0", "2001:db8::1", "fc00::1", "64:ff9b::c000:201"}
	closed := []string{"10.9.9.9", "10.0.0.0", "10.255.255.255", "fd00::9", "10.96.0.1", "172.16.0.9", "172.16.96.1", "127.0.0.1", "0.0.0.0", "0.1.2.3", "169.254.169.254", "224.0.0.251", "239.255.255.255",
		"240.0.0.1", "255.255.255.255", "::", "::1", "::192.0.2.1", "fe80::1", "febf::1", "fec0::1", "ff02::fb", "64:ff9b::a09:909", "64:ff9b::a9fe:a9fe", "64:ff9b::ac10:9", "64:ff9b::e000:fb"}
	ports := []uint16{0, 1, 53, 123, 443, 4789, 4790, 6081, 8472, 65535}
	mode := rapid.Custom(func(t *rapid.T) (e mesh.UDPEgress) {
		if e.Allow = rapid.Bool().Draw(t, "allow"); e.Allow && rapid.Bool().Draw(t, "some") {
			e.Ports = rapid.SliceOfNDistinct(rapid.SampledFrom([]uint16{1, 123, 443, 65535}), 1, 3, rapid.ID[uint16]).Draw(t, "ports")
		}
		return e
	})
	rapid.Check(t, func(t *rapid.T) {
		s := settings()
		s.UDPEgress = rapid.MapOfN(rapid.SampledFrom([]string{"", "shop", "bank"}), mode, 0, 3).Draw(t, "egress")
		if rapid.Bool().Draw(t, "revoke") {
			s.RevokedIdentities = []spiffeid.ID{identity("bank", "web")}
		}
		var workloads []mesh.Workload
		for i, namespace := range []string{"shop", "bank", "games"} {
			w := workload(namespace, "web", fmt.Sprintf("10.%d.2.3", i), fmt.Sprintf("fd00::%d", i+1))
			w.Enrolled, w.Node = rapid.IntRange(0, 3).Draw(t, "enrolled") > 0, "n1"
			workloads = append(workloads, w)
		}
		workloads = append(workloads, workload("shop", "apart", "172.16.0.9"))
		services := []mesh.Service{
			{Key: mesh.Key{Namespace: "shop", Name: "svc"}, Addresses: []netip.Addr{netip.MustParseAddr("10.96.0.1")}},
			{Key: mesh.Key{Namespace: "shop", Name: "apart"}, Addresses: []netip.Addr{netip.MustParseAddr("172.16.96.1")}},
		}
		v, err := mesh.NewView("r", s, workloads, services, nil)
		if err != nil {
			t.Fatal(err)
		}
		rules, inside := datagram.Rules(v, "n1"), datagram.Inside(v)
		for _, w := range v.OnNode("n1") {
			said, ok := s.UDPEgress[w.Namespace]
			if !ok {
				said = s.UDPEgress[""]
			}
			for _, addr := range append(slices.Clone(outside), closed...) {
				for _, port := range ports {
					to := netip.AddrPortFrom(netip.MustParseAddr(addr), port)
					want := mesh.ReasonEgressAllowed
					switch {
					case !w.Enrolled || slices.Contains(closed, addr) || slices.Contains([]uint16{0, 53, 4789, 4790, 6081, 8472}, port):
						want = mesh.ReasonKernelUDP
					case slices.Contains(s.RevokedIdentities, w.Identity):
						want = mesh.ReasonIdentityRevoked
					case !said.Allow || said.Ports != nil && !slices.Contains(said.Ports, port):
						want = mesh.ReasonEgressDenied
					}
					d, _, _ := datagram.AuthorizeTo(v, w, to)
					if d.Reason != want || (d.Verdict == mesh.VerdictAllow) != (want == mesh.ReasonEgressAllowed) {
						t.Fatalf("%v to %v: %v, %v, want %v", w.Key, to, d.Verdict, d.Reason, want)
					}
					if opens := gateOpens(rules[w.Key], inside, to); opens != (want == mesh.ReasonEgressAllowed) {
						t.Fatalf("%v to %v: the gate opens: %v, want %v", w.Key, to, opens, want)
					}
					if is := datagram.IsOutside(v, to.Addr()); is != slices.Contains(outside, addr) {
						t.Fatalf("%s is outside: %v", addr, is)
					}
				}
			}
		}
	})
}

// TestUDPEgressIsChecked: what an operator must not have told is refused.
func TestUDPEgressIsChecked(t *testing.T) {
	for _, e := range []mesh.UDPEgress{{Ports: []uint16{123}}, {Allow: true, Ports: make([]uint16, 65)}, {Allow: true, Ports: []uint16{0}}, {Allow: true, Ports: []uint16{123, 53}}, {Allow: true, Ports: []uint16{8472}}} {
		if datagram.CheckEgress(e) == nil {
			t.Errorf("%v is taken", e)
		}
	}
	for _, e := range []mesh.UDPEgress{{}, {Allow: true}, {Allow: true, Ports: []uint16{123, 443}}} {
		if err := datagram.CheckEgress(e); err != nil {
			t.Errorf("%v: %v", e, err)
		}
	}
}

// TestMoreInsideThanAGateHolds: then nothing is let out.
func TestMoreInsideThanAGateHolds(t *testing.T) {
	s := settings()
	s.UDPEgress = map[string]mesh.UDPEgress{"": {Allow: true}}
	var all []mesh.Workload
	for i := range datagram.MaxInside {
		w := workload("shop", "w", fmt.Sprintf("172.16.%d.%d", i/250, i%250))
		w.Name, w.Node = fmt.Sprintf("w%d", i), "n1"
		all = append(all, w)
	}
	// Each address is inside once more, translated.
	fits := func(n int) bool {
		return len(datagram.Inside(mustView(t, s, slices.Clone(all[:n]), nil, nil))) <= datagram.MaxInside
	}
	most := 1
	for fits(2 * most) {
		most *= 2
	}
	for step := most / 2; step > 0; step /= 2 {
		if fits(most + step) {
			most += step
		}
	}
	to := netip.MustParseAddrPort("192.0.2.7:443")
	for n, want := range map[int]mesh.Reason{10: mesh.ReasonEgressAllowed, most: mesh.ReasonEgressAllowed, most + 1: mesh.ReasonKernelUDP, len(all): mesh.ReasonKernelUDP} {
		v := mustView(t, s, slices.Clone(all[:n]), nil, nil)
		out := map[bool]int{true: n}[want == mesh.ReasonEgressAllowed]
		if rules := datagram.Rules(v, "n1"); len(rules) != out {
			t.Errorf("of %d workloads, %d have rules, want %d", n, len(rules), out)
		}
		if d, _, _ := datagram.AuthorizeTo(v, v.OnNode("n1")[0], to); d.Reason != want {
			t.Errorf("with %d workloads: %v, want %v", n, d.Reason, want)
		}
	}
}
