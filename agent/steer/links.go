package steer

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/agent/netns"
)

// Link is the pod's way out: its interface, and the other end of that veth
// in the agent's network namespace, where the gate sits.
type Link struct {
	Name     string // in the pod
	Index    int
	MAC      net.HardwareAddr
	HostName string
	Host     int // interface index in the agent's namespace
	HostMAC  net.HardwareAddr
}

// FindLink finds the veth that carries the pod's addresses. It refuses a pod
// whose addresses are elsewhere, and a pod that has a second way out, because
// the gate would not see what takes it.
func FindLink(pod, node *netlink.Handle, ns *netns.Namespace, addrs []netip.Addr) (Link, error) {
	links, err := linkList(pod)
	if err != nil {
		return Link{}, fmt.Errorf("list interfaces in %s: %w", ns.Path(), err)
	}
	holders, err := addressHolders(pod)
	if err != nil {
		return Link{}, fmt.Errorf("list addresses in %s: %w", ns.Path(), err)
	}
	index, err := carrier(holders, links, addrs)
	if err != nil {
		return Link{}, err
	}
	for _, l := range links {
		if l.Attrs().Index == index {
			continue
		}
		if why := leadsOutside(l, node, ns); why != "" {
			return Link{}, fmt.Errorf("interface %s of the pod is a second way out (%s) that no gate watches: remove it, or leave the pod out of the mesh", l.Attrs().Name, why)
		}
	}
	for _, l := range links {
		if l.Attrs().Index == index {
			return hostSide(l, node, ns)
		}
	}
	return Link{}, fmt.Errorf("interface %d of the pod went away while it was looked at: try again", index)
}

// carrier returns the index of the one interface that has all of addrs.
func carrier(holders map[netip.Addr]int, links []netlink.Link, addrs []netip.Addr) (int, error) {
	index := 0
	for _, a := range addrs {
		at, ok := holders[a]
		if !ok {
			return 0, fmt.Errorf("address %s is on no interface of the pod (it has %s): correct the workload's addresses", a, listAddresses(holders))
		}
		if index != 0 && at != index {
			return 0, fmt.Errorf("addresses are on two interfaces, %s and %s: the gate watches one; list the addresses of one", linkName(links, index), linkName(links, at))
		}
		index = at
	}
	if name := linkName(links, index); isLoopback(links, index) {
		return 0, fmt.Errorf("addresses are on the loopback interface %s, which leads nowhere: list the addresses of the pod's veth", name)
	}
	return index, nil
}

// hostSide finds and verifies the other end of a pod's veth: right index in the
// agent's namespace, a veth too, and one whose own other end is the pod's.
func hostSide(l netlink.Link, node *netlink.Handle, ns *netns.Namespace) (Link, error) {
	a := l.Attrs()
	if l.Type() != "veth" {
		return Link{}, fmt.Errorf("interface %s of the pod is of type %s: only veth pairs have a host side that the gate can watch", a.Name, l.Type())
	}
	if a.Flags&net.FlagUp == 0 {
		return Link{}, fmt.Errorf("interface %s of the pod is down: bring it up (`ip link set %s up` in the pod)", a.Name, a.Name)
	}
	host, err := peerIn(l, node, ns)
	if err != nil {
		return Link{}, fmt.Errorf("the host side of %s is not in the agent's network namespace (%w): run the agent in the namespace that holds it, or set the agent's node namespace", a.Name, err)
	}
	return Link{
		Name: a.Name, Index: a.Index, MAC: a.HardwareAddr,
		HostName: host.Attrs().Name, Host: host.Attrs().Index, HostMAC: host.Attrs().HardwareAddr,
	}, nil
}

// peerIn returns the other end of the pod's veth l when it is in node.
func peerIn(l netlink.Link, node *netlink.Handle, ns *netns.Namespace) (netlink.Link, error) {
	host, err := node.LinkByIndex(l.Attrs().ParentIndex)
	if err != nil {
		return nil, fmt.Errorf("no interface %d there: %w", l.Attrs().ParentIndex, err)
	}
	if host.Type() != "veth" || host.Attrs().ParentIndex != l.Attrs().Index {
		return nil, fmt.Errorf("interface %d there is %s, which is not its peer", host.Attrs().Index, host.Attrs().Name)
	}
	// The same indexes may meet by chance. Showing the link above made the
	// kernel give the peer's namespace an id, as rtnl_fill_link_netnsid does.
	id := -1
	err = ns.WithFd(func(fd int) (err error) {
		id, err = node.GetNetNsIdByFd(fd)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("look up the id of the pod's namespace: %w", err)
	}
	if id < 0 || host.Attrs().NetNsID != id {
		return nil, fmt.Errorf("interface %s there has its peer in another namespace", host.Attrs().Name)
	}
	return host, nil
}

// leadsOutside says why an interface of the pod lets packets out of it, "" when
// it does not: veths to namespaces nested in the pod, bridges, dummies and
// tunnels of the pod's own all end in the pod or leave through its veth. Of what
// was made outside and moved in, such as a vxlan, ipip or macvlan, the kernel
// says that packets go on in another namespace (IFLA_LINK_NETNSID, which
// rtnl_fill_link_netnsid writes when get_link_net is not the device's own). Of
// WireGuard it does not say where its socket is, and nothing tells one of the pod's own,
// which the gate sees, from one that was moved in.
func leadsOutside(l netlink.Link, node *netlink.Handle, ns *netns.Namespace) string {
	a := l.Attrs()
	if a.Flags&net.FlagUp == 0 {
		return "" // and the pod cannot use it; checking the pod looks again
	}
	switch l.Type() {
	case "veth":
		if _, err := peerIn(l, node, ns); err == nil {
			return "a veth to the node"
		}
	case "device":
		if a.Flags&net.FlagLoopback == 0 {
			return "a physical device"
		}
	case "vxcan": // carries no IP
	default:
		if a.NetNsID >= 0 {
			return "a device of type " + l.Type() + ", whose packets go on outside"
		}
	}
	return ""
}

func linkList(h *netlink.Handle) ([]netlink.Link, error) {
	return retryInterrupted(h.LinkList)
}

// addressHolders maps each address of the namespace to its interface.
func addressHolders(h *netlink.Handle) (map[netip.Addr]int, error) {
	addrs, err := retryInterrupted(func() ([]netlink.Addr, error) { return h.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, err
	}
	holders := map[netip.Addr]int{}
	for _, a := range addrs {
		if ip, ok := netip.AddrFromSlice(a.IP); ok {
			holders[ip.Unmap()] = a.LinkIndex
		}
	}
	return holders, nil
}

// retryInterrupted repeats a netlink dump that changes under its reader, which
// the kernel marks (NLM_F_DUMP_INTR), a few times.
func retryInterrupted[T any](dump func() ([]T, error)) ([]T, error) {
	var all []T
	var err error
	for range 5 {
		if all, err = dump(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return all, err
}

func listAddresses(holders map[netip.Addr]int) string {
	var words []string
	for a := range holders {
		if !a.IsLoopback() && !a.IsLinkLocalUnicast() {
			words = append(words, a.String())
		}
	}
	if len(words) == 0 {
		return "none but loopback's"
	}
	slices.Sort(words)
	return strings.Join(words, ", ")
}

func linkName(links []netlink.Link, index int) string {
	for _, l := range links {
		if l.Attrs().Index == index {
			return l.Attrs().Name
		}
	}
	return fmt.Sprintf("interface %d", index)
}

func isLoopback(links []netlink.Link, index int) bool {
	for _, l := range links {
		if l.Attrs().Index == index {
			return l.Attrs().Flags&net.FlagLoopback != 0
		}
	}
	return false
}

// Loopback returns the index of lo in the pod, which must be up: redirection
// goes over it.
func Loopback(pod *netlink.Handle, ns *netns.Namespace) (int, error) {
	links, err := linkList(pod)
	if err != nil {
		return 0, fmt.Errorf("list interfaces in %s: %w", ns.Path(), err)
	}
	for _, l := range links {
		if l.Attrs().Flags&net.FlagLoopback == 0 {
			continue
		}
		if l.Attrs().Flags&net.FlagUp == 0 {
			return 0, fmt.Errorf("loopback is down in %s: bring it up (`ip link set lo up` in the pod)", ns.Path())
		}
		return l.Attrs().Index, nil
	}
	return 0, fmt.Errorf("no loopback interface in %s", ns.Path())
}

// Families returns the address families of addrs, IPv4 first.
func Families(addrs []netip.Addr) []int {
	var fams []int
	if slices.ContainsFunc(addrs, netip.Addr.Is4) {
		fams = append(fams, unix.AF_INET)
	}
	if slices.ContainsFunc(addrs, netip.Addr.Is6) {
		fams = append(fams, unix.AF_INET6)
	}
	return fams
}

// AddressOf returns the first address of a family; invalid when there is none.
func AddressOf(addrs []netip.Addr, family int) netip.Addr {
	for _, a := range addrs {
		if a.Is4() == (family == unix.AF_INET) {
			return a
		}
	}
	return netip.Addr{}
}
