package steer

import (
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/agent/netns"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

// TestMovedInIsASecondWay: a tunnel that the node made and moved into the pod still sends
// in the node's namespace. One that the pod made sends by the pod's veth, before the gate.
func TestMovedInIsASecondWay(t *testing.T) {
	node, pod := testenv.NewNetNS(t, "node"), testenv.NewNetNS(t, "pod")
	testenv.Veth(t, node, "vpod", nil, pod, "eth0", []string{"10.66.1.2/24"})
	ns, err := netns.Open(pod.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	find := func() error {
		_, err := FindLink(handle(t, pod), handle(t, node), ns, []netip.Addr{netip.MustParseAddr("10.66.1.2")})
		return err
	}
	pod.Must(t, func() error { return makeTunnel("own", -1) })
	if err := find(); err != nil {
		t.Errorf("with a tunnel of its own: %v", err)
	}
	node.Must(t, func() error { return makeTunnel("moved", ns.Fd()) })
	if err := find(); err != nil {
		t.Errorf("with a tunnel that is down: %v", err)
	}
	pod.Must(t, func() error {
		l, err := netlink.LinkByName("moved")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(l)
	})
	const want = "interface moved of the pod is a second way out (a device of type vxlan, whose packets go on outside)"
	if err := find(); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("with a tunnel of the node's: %v, want %q", err, want)
	}
}

// makeTunnel makes a vxlan, and moves it to a namespace or, where that is -1, brings it up.
func makeTunnel(name string, to int) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	tunnel := &netlink.Vxlan{LinkAttrs: attrs, VxlanId: 7, Port: 4789, Group: net.IPv4(10, 66, 9, 9)}
	if err := netlink.LinkAdd(tunnel); err != nil {
		return err
	}
	if to < 0 {
		return netlink.LinkSetUp(tunnel)
	}
	return netlink.LinkSetNsFd(tunnel, to)
}

func handle(t *testing.T, ns *testenv.NetNS) (h *netlink.Handle) {
	t.Helper()
	ns.Must(t, func() (err error) { h, err = netlink.NewHandle(unix.NETLINK_ROUTE); return err })
	t.Cleanup(h.Close)
	return h
}

// TestLeadsOutside: of what not every kernel has, by what netlink says of it.
func TestLeadsOutside(t *testing.T) {
	for _, kind := range []string{"gre", "gretap", "erspan", "ipip", "sit", "vti", "ip6tnl", "ip6gre", "ip6gretap", "vti6", "geneve", "bareudp", "xfrm", "vxlan", "macvlan", "ipvlan", "vlan", "macsec", "netkit"} {
		for id, outside := range map[int]bool{-1: false, 0: true, 3: true} {
			l := &netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Flags: net.FlagUp, NetNsID: id}, LinkType: kind}
			if why := leadsOutside(l, nil, nil); (why != "") != outside {
				t.Errorf("%s whose other end is in namespace %d: %q, want it to lead outside: %v", kind, id, why, outside)
			}
		}
	}
	if why := leadsOutside(&netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Flags: net.FlagUp}, LinkType: "vxcan"}, nil, nil); why != "" {
		t.Errorf("vxcan, which carries no IP: %s", why)
	}
}
