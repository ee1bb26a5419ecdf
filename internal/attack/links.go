package attack

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// inside runs fn on a thread of a network namespace; the thread ends with it.
func inside(path string, fn func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		result <- func() error {
			ns, err := netns.GetFromPath(path)
			if err != nil {
				return fmt.Errorf("open network namespace %s: %w", path, err)
			}
			defer ns.Close()
			if err := netns.Set(ns); err != nil {
				return fmt.Errorf("enter network namespace %s: %w", path, err)
			}
			return fn()
		}()
	}()
	return <-result
}

// port is a link to send frames on.
type port struct {
	netns   string
	index   int
	own, to net.HardwareAddr
}

// podPort finds the link on which a pod's address is, and its host side in the
// node's namespace.
func podPort(pod, node string, addr netip.Addr) (p, host port, err error) {
	p.netns, host.netns = pod, node
	err = inside(pod, func() error {
		links, err := netlink.LinkList()
		if err != nil {
			return err
		}
		for _, l := range links {
			addrs, err := netlink.AddrList(l, netlink.FAMILY_ALL)
			if err != nil {
				return err
			}
			for _, a := range addrs {
				if have, ok := netip.AddrFromSlice(a.IP); ok && have.Unmap() == addr {
					p.index, host.index, p.own = l.Attrs().Index, l.Attrs().ParentIndex, l.Attrs().HardwareAddr
					return nil
				}
			}
		}
		return fmt.Errorf("no link of %s has the address %s", pod, addr)
	})
	if err != nil {
		return p, host, err
	}
	err = inside(node, func() error {
		l, err := netlink.LinkByIndex(host.index)
		if err != nil {
			return fmt.Errorf("find the host side of the pod's veth in %s: %w", node, err)
		}
		p.to = l.Attrs().HardwareAddr
		host.own, host.to = p.to, p.own
		return nil
	})
	return p, host, err
}

const (
	openLinkName = "heddle-open0"
	openPeerName = "heddle-open1"
)

// openPort makes a veth pair in the node's namespace, both ends there: what is
// sent on one arrives on the other as if from a pod, and no gate is on it.
func openPort(node string) (p port, receives int, remove func() error, err error) {
	p.netns = node
	remove = func() error {
		return inside(node, func() error {
			l, err := netlink.LinkByName(openLinkName)
			var gone netlink.LinkNotFoundError
			if errors.As(err, &gone) {
				return nil
			}
			if err != nil {
				return err
			}
			return netlink.LinkDel(l)
		})
	}
	if err := remove(); err != nil { // of a run that was killed
		return p, 0, remove, fmt.Errorf("remove the link of an earlier run: %w", err)
	}
	err = inside(node, func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = openLinkName
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: openPeerName}); err != nil {
			return fmt.Errorf("make a link without a gate: %w", err)
		}
		receiver, err := netlink.LinkByName(openLinkName)
		if err != nil {
			return err
		}
		sender, err := netlink.LinkByName(openPeerName)
		if err != nil {
			return err
		}
		receives = receiver.Attrs().Index
		p.index, p.own, p.to = sender.Attrs().Index, sender.Attrs().HardwareAddr, receiver.Attrs().HardwareAddr
		return errors.Join(netlink.LinkSetUp(receiver), netlink.LinkSetUp(sender))
	})
	if err != nil {
		err = errors.Join(err, remove())
	}
	return p, receives, remove, err
}

// send puts IP packets on the port. bypass skips the egress hooks of the link
// itself (PACKET_QDISC_BYPASS, packet(7)).
func (p port) send(packets [][]byte, bypass bool) error {
	return inside(p.netns, func() error {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open packet socket: %w", err)
		}
		if bypass {
			err = unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, 1)
		}
		for _, ip := range packets {
			ethertype := uint16(unix.ETH_P_IP)
			if ip[0]>>4 == 6 {
				ethertype = unix.ETH_P_IPV6
			}
			to := p.to
			if ethertype == unix.ETH_P_IPV6 && ip[24] == 0xff { // RFC 2464, section 7
				to = append(net.HardwareAddr{0x33, 0x33}, ip[36:40]...)
			}
			frame := append(append(append([]byte{}, to...), p.own...), byte(ethertype>>8), byte(ethertype))
			if err == nil {
				err = unix.Sendto(fd, append(frame, ip...), 0, &unix.SockaddrLinklayer{Ifindex: p.index, Protocol: ethertype>>8 | ethertype<<8})
			}
		}
		// ENOBUFS: a hook of the link itself dropped it, which is an outcome.
		if errors.Is(err, unix.ENOBUFS) {
			err = nil
		}
		return errors.Join(err, unix.Close(fd))
	})
}
