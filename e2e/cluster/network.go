package cluster

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

const (
	bridgeName = "br0"
	uplinkName = "eth0"
	linkMTU    = 1500
)

// netnsHandle opens a machine's network namespace for netlink.
func (c *Cluster) netnsHandle(name string) (*netlink.Handle, netns.NsHandle, error) {
	ns, err := netns.GetFromPath(c.machines[name].NetnsPath())
	if err != nil {
		return nil, netns.None(), fmt.Errorf("open network of %s: %w", name, err)
	}
	handle, err := netlink.NewHandleAt(ns)
	if err != nil {
		return nil, netns.None(), errors.Join(fmt.Errorf("open network of %s: %w", name, err), ns.Close())
	}
	return handle, ns, nil
}

// inNetwork runs fn with a machine's network.
func (c *Cluster) inNetwork(name string, fn func(*netlink.Handle, netns.NsHandle) error) error {
	handle, ns, err := c.netnsHandle(name)
	if err != nil {
		return err
	}
	defer ns.Close() // only looked at
	defer handle.Close()
	if err := fn(handle, ns); err != nil {
		return fmt.Errorf("network of %s: %w", name, err)
	}
	return nil
}

// makeBridge makes the network that all machines meet in, in the control plane.
func (c *Cluster) makeBridge() error {
	return c.inNetwork(controlPlane, func(h *netlink.Handle, _ netns.NsHandle) error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = bridgeName, linkMTU
		bridge := &netlink.Bridge{LinkAttrs: attrs}
		if err := h.LinkAdd(bridge); err != nil {
			return fmt.Errorf("make bridge: %w", err)
		}
		if err := c.addAddresses(h, bridge, controlPlane); err != nil {
			return err
		}
		return h.LinkSetUp(bridge)
	})
}

// plugIn joins a worker to the bridge, and routes pods to and from it.
func (c *Cluster) plugIn(worker string) error {
	err := c.inNetwork(controlPlane, func(control *netlink.Handle, _ netns.NsHandle) error {
		if err := removeLink(control, worker); err != nil { // of the boot before
			return err
		}
		return c.inNetwork(worker, func(own *netlink.Handle, ownNS netns.NsHandle) error {
			return c.makeUplink(control, own, ownNS, worker)
		})
	})
	if err != nil {
		return err
	}
	return c.inNetwork(controlPlane, func(h *netlink.Handle, _ netns.NsHandle) error {
		return c.addRoutes(h, worker)
	})
}

func (c *Cluster) makeUplink(control, own *netlink.Handle, ownNS netns.NsHandle, worker string) error {
	bridge, err := control.LinkByName(bridgeName)
	if err != nil {
		return fmt.Errorf("find bridge: %w", err)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.MasterIndex = worker, linkMTU, bridge.Attrs().Index
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: uplinkName, PeerNamespace: netlink.NsFd(ownNS)}
	if err := control.LinkAdd(veth); err != nil {
		return fmt.Errorf("make link: %w", err)
	}
	if err := control.LinkSetUp(veth); err != nil {
		return fmt.Errorf("set link up: %w", err)
	}
	uplink, err := own.LinkByName(uplinkName)
	if err != nil {
		return fmt.Errorf("find %s: %w", uplinkName, err)
	}
	if err := c.addAddresses(own, uplink, worker); err != nil {
		return err
	}
	if err := own.LinkSetUp(uplink); err != nil {
		return fmt.Errorf("set %s up: %w", uplinkName, err)
	}
	for _, router := range c.plan.addresses(controlPlane) {
		if err := addRoute(own, everything(router), router); err != nil {
			return err
		}
	}
	for _, other := range c.plan.workers() {
		if other == worker {
			continue
		}
		if err := c.addRoutes(own, other); err != nil {
			return err
		}
	}
	return nil
}

// everything is the range of all addresses of an address's family.
func everything(address netip.Addr) netip.Prefix { return netip.PrefixFrom(address, 0).Masked() }

// addRoutes leads to a worker's pods.
func (c *Cluster) addRoutes(h *netlink.Handle, worker string) error {
	addresses := c.plan.addresses(worker)
	for i, pods := range c.plan.podRanges(worker) {
		if err := addRoute(h, pods, addresses[i]); err != nil {
			return err
		}
	}
	return nil
}

// addAddresses gives a link a machine's addresses.
func (c *Cluster) addAddresses(h *netlink.Handle, link netlink.Link, name string) error {
	ranges := c.plan.ranges()
	for i, address := range c.plan.addresses(name) {
		if err := addAddress(h, link, address, ranges[i].nodes.Bits()); err != nil {
			return err
		}
	}
	return nil
}

func removeLink(h *netlink.Handle, name string) error {
	link, err := h.LinkByName(name)
	if err != nil {
		if errors.As(err, &netlink.LinkNotFoundError{}) {
			return nil
		}
		return fmt.Errorf("find link %s: %w", name, err)
	}
	// ENODEV: the kernel was faster, whose own removal of a dead machine's links takes a moment.
	if err := h.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove link %s: %w", name, err)
	}
	return nil
}

func addAddress(h *netlink.Handle, link netlink.Link, address netip.Addr, bits int) error {
	err := h.AddrAdd(link, &netlink.Addr{IPNet: &net.IPNet{IP: address.AsSlice(), Mask: net.CIDRMask(bits, address.BitLen())}})
	if err != nil {
		return fmt.Errorf("add address %s: %w", address, err)
	}
	return nil
}

func addRoute(h *netlink.Handle, to netip.Prefix, via netip.Addr) error {
	err := h.RouteReplace(&netlink.Route{
		Dst: &net.IPNet{IP: to.Addr().AsSlice(), Mask: net.CIDRMask(to.Bits(), to.Addr().BitLen())}, Gw: via.AsSlice(),
	})
	if err != nil {
		return fmt.Errorf("route %s via %s: %w", to, via, err)
	}
	return nil
}
