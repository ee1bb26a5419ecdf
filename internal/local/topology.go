package local

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"

	"github.com/heddle-mesh/heddle/internal/netnsdir"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

const (
	bridgeName   = "br0"
	underlayName = "underlay0"
	podLinkName  = "eth0"
	gateway4     = "169.254.1.1"
	gateway6     = "fe80::1"
)

// inNetNS runs fn on a thread inside a namespace. The thread ends with it: one
// that changed its namespace must not serve anything else.
func inNetNS(path string, fn func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		result <- func() error {
			if err := enter(path); err != nil {
				return err
			}
			return fn()
		}()
	}()
	return <-result
}

// makeNetNS makes a named namespace that forwards packets. It reports whether it
// was made now: one that is there already is left as it is.
func makeNetNS(name string) (made bool, err error) {
	path := filepath.Join(netnsdir.Path, name)
	if _, err := os.Stat(path); err == nil {
		return false, nil
	}
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		result <- func() error {
			if err := netnsdir.Share(netnsdir.Path); err != nil {
				return fmt.Errorf("make network namespace %s: %w", name, err)
			}
			ns, err := netns.NewNamed(name)
			if err != nil {
				return fmt.Errorf("make network namespace %s: %w", name, err)
			}
			defer ns.Close()
			return configureNetNS()
		}()
	}()
	return true, <-result
}

func configureNetNS() error {
	for path, value := range map[string]string{
		// Nobody else is on these links: looking for duplicates only delays.
		"net/ipv6/conf/all/accept_dad":     "0",
		"net/ipv6/conf/default/accept_dad": "0",
		"net/ipv4/ip_forward":              "1",
		"net/ipv6/conf/all/forwarding":     "1",
	} {
		if err := os.WriteFile(filepath.Join("/proc/sys", path), []byte(value), 0o644); err != nil {
			return fmt.Errorf("set sysctl %s: %w", path, err)
		}
	}
	return linkUp("lo")
}

func removeNetNS(name string) error {
	if err := netns.DeleteNamed(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove network namespace %s: %w", name, err)
	}
	return nil
}

// makeFabric makes the bridge that joins the nodes.
func makeFabric(name string) error {
	return inNetNS(filepath.Join(netnsdir.Path, name), func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = bridgeName
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
			return fmt.Errorf("make bridge: %w", err)
		}
		return addrsUp(bridgeName, netip.PrefixFrom(fabricAddr4(), 24), netip.PrefixFrom(fabricAddr6(), 64))
	})
}

// joinNode connects a node's namespace to the fabric.
func joinNode(fabric string, n Node) error {
	port := n.FabricLink
	if err := makeVeth(filepath.Join(netnsdir.Path, fabric), port, filepath.Join(netnsdir.Path, n.NetNS), underlayName); err != nil {
		return err
	}
	err := inNetNS(filepath.Join(netnsdir.Path, fabric), func() error {
		bridge, err := netlink.LinkByName(bridgeName)
		if err != nil {
			return err
		}
		link, err := netlink.LinkByName(port)
		if err != nil {
			return err
		}
		if err := netlink.LinkSetMaster(link, bridge); err != nil {
			return fmt.Errorf("put %s on the bridge: %w", port, err)
		}
		return netlink.LinkSetUp(link)
	})
	if err != nil {
		return err
	}
	return inNetNS(filepath.Join(netnsdir.Path, n.NetNS), func() error {
		return addrsUp(underlayName, netip.PrefixFrom(n.Underlay4, 24), netip.PrefixFrom(n.Underlay6, 64))
	})
}

// makeVeth makes a pair of links, one end in each namespace.
func makeVeth(aPath, aName, bPath, bName string) error {
	b, err := netns.GetFromPath(bPath)
	if err != nil {
		return fmt.Errorf("open network namespace %s: %w", bPath, err)
	}
	defer b.Close()
	return inNetNS(aPath, func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = aName
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: bName, PeerNamespace: netlink.NsFd(int(b))}); err != nil {
			return fmt.Errorf("make veth %s: %w", aName, err)
		}
		return nil
	})
}

// joinPod connects a pod's namespace to its node, routed: the node knows the
// pod's addresses one by one, the pod sends everything to its node.
func joinPod(n Node, p Pod) error {
	nodePath := filepath.Join(netnsdir.Path, n.NetNS)
	if err := makeVeth(nodePath, p.HostLink, p.NetNS, podLinkName); err != nil {
		return err
	}
	err := inNetNS(nodePath, func() error {
		if err := addrsUp(p.HostLink, netip.MustParsePrefix(gateway4+"/32"), netip.MustParsePrefix(gateway6+"/64")); err != nil {
			return err
		}
		for _, addr := range p.Addresses {
			if err := routeTo(addr, p.HostLink, netip.Addr{}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return inNetNS(p.NetNS, func() error {
		var own []netip.Prefix
		for _, addr := range p.Addresses {
			own = append(own, netip.PrefixFrom(addr, addr.BitLen()))
		}
		if err := addrsUp(podLinkName, own...); err != nil {
			return err
		}
		return defaultRoutes(p.Addresses)
	})
}

// defaultRoutes sends what leaves a pod to its node, in the families it has.
func defaultRoutes(addresses []netip.Addr) error {
	link, err := netlink.LinkByName(podLinkName)
	if err != nil {
		return err
	}
	families := map[bool]string{}
	for _, addr := range addresses {
		if addr.Is4() {
			families[true] = gateway4
		} else {
			families[false] = gateway6
		}
	}
	for _, gw := range families {
		route := &netlink.Route{LinkIndex: link.Attrs().Index, Gw: net.ParseIP(gw), Flags: int(netlink.FLAG_ONLINK)}
		if err := netlink.RouteAdd(route); err != nil {
			return fmt.Errorf("add default route by %s: %w", gw, err)
		}
	}
	return nil
}

// routeNodes tells a node where the pods of the others are.
func routeNodes(n Node, all []Node) error {
	return inNetNS(filepath.Join(netnsdir.Path, n.NetNS), func() error {
		for _, other := range all {
			if other.Name == n.Name {
				continue
			}
			for _, pod := range other.Pods {
				for _, addr := range pod.Addresses {
					via := other.Underlay4
					if addr.Is6() {
						via = other.Underlay6
					}
					if err := routeTo(addr, underlayName, via); err != nil {
						return err
					}
				}
			}
		}
		return nil
	})
}

// routeTo adds a route to one address, by a gateway if via is valid.
func routeTo(addr netip.Addr, link string, via netip.Addr) error {
	l, err := netlink.LinkByName(link)
	if err != nil {
		return fmt.Errorf("find link %s: %w", link, err)
	}
	route := &netlink.Route{LinkIndex: l.Attrs().Index, Dst: ipNet(netip.PrefixFrom(addr, addr.BitLen())), Scope: netlink.SCOPE_LINK}
	if via.IsValid() {
		route.Gw, route.Scope = via.AsSlice(), netlink.SCOPE_UNIVERSE
	}
	if err := netlink.RouteReplace(route); err != nil {
		return fmt.Errorf("add route to %s: %w", addr, err)
	}
	return nil
}

func addrsUp(name string, prefixes ...netip.Prefix) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find link %s: %w", name, err)
	}
	for _, p := range prefixes {
		addr := &netlink.Addr{IPNet: ipNet(p)}
		if p.Addr().Is6() {
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrAdd(link, addr); err != nil {
			return fmt.Errorf("add address %s to %s: %w", p, name, err)
		}
	}
	return linkUp(name)
}

func linkUp(name string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find link %s: %w", name, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("set link %s up: %w", name, err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
