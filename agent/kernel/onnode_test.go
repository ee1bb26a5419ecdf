package kernel

import (
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestOnNode(t *testing.T) {
	node, pod := testenv.NewNetNS(t, "node"), testenv.NewNetNS(t, "pod")
	testenv.Veth(t, node, "veth0", []string{"10.244.1.1/24", "fd00:1::1/64"}, pod, "eth0", []string{"10.244.1.2/24"})
	node.Must(t, func() error {
		link := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: servicesLink}}
		if err := netlink.LinkAdd(link); err != nil {
			return err
		}
		addr, err := netlink.ParseAddr("10.96.0.10/32")
		if err != nil {
			return err
		}
		return netlink.AddrAdd(link, addr)
	})
	// The kernel routes to a new IPv6 address when it gets to it (addrconf_dad_work).
	testenv.Eventually(t, 5*time.Second, "the node has its IPv6 address", func() (is bool) {
		node.Must(t, func() error { is = OnNode(netip.MustParseAddr("fd00:1::1")); return nil })
		return is
	})
	for text, want := range map[string]bool{
		"10.244.1.1": true, "::ffff:10.244.1.1": true, "fd00:1::1": true,
		"10.244.1.2":  false, // a pod behind it
		"192.0.2.1":   false, // nothing leads there
		"10.244.1.99": false,
		"10.96.0.10":  false, // a service that kube-proxy balances
	} {
		var got bool
		node.Must(t, func() error { got = OnNode(netip.MustParseAddr(text)); return nil })
		if got != want {
			t.Errorf("%s is on the node: %v, want %v", text, got, want)
		}
	}
	if OnNode(netip.Addr{}) {
		t.Error("no address is on the node")
	}
}
