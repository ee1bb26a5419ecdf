package testenv

import (
	"net"
	"os"
	"runtime"
	"strings"
	"testing"

	"github.com/heddle-mesh/heddle/internal/netnsdir"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// NetNS is a network namespace that a test made. It is named, so that other
// programs reach it as /run/netns/NAME, and it is deleted when the test ends.
// It is safe for concurrent use.
type NetNS struct {
	// Name is unique on this machine.
	Name string
	// Path is /run/netns/NAME.
	Path   string
	handle netns.NsHandle
}

// NewNetNS makes a named network namespace with loopback up, IPv6 duplicate
// address detection off and forwarding on.
func NewNetNS(t testing.TB, hint string) *NetNS {
	t.Helper()
	NeedRoot(t)
	name := uniqueName(hint)
	ns := &NetNS{Name: name, Path: "/run/netns/" + name}
	err := onThread(func() error {
		if err := netnsdir.Share(netnsdir.Path); err != nil {
			return err
		}
		h, err := netns.NewNamed(name)
		if err != nil {
			return err
		}
		ns.handle = h
		for path, value := range map[string]string{
			"/proc/sys/net/ipv6/conf/all/accept_dad":     "0",
			"/proc/sys/net/ipv6/conf/default/accept_dad": "0",
			"/proc/sys/net/ipv4/ip_forward":              "1",
			"/proc/sys/net/ipv6/conf/all/forwarding":     "1",
		} {
			if err := os.WriteFile(path, []byte(value), 0o644); err != nil {
				return err
			}
		}
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(lo)
	})
	if err != nil {
		t.Fatalf("make network namespace: %v", err)
	}
	t.Cleanup(func() {
		ns.handle.Close()
		if err := netns.DeleteNamed(name); err != nil {
			t.Errorf("delete network namespace %s: %v", name, err)
		}
	})
	return ns
}

// Fd is the open descriptor of the namespace; it stays owned by ns.
func (ns *NetNS) Fd() int { return int(ns.handle) }

// Do runs fn on a thread inside the namespace and returns its error. Sockets
// that fn makes belong to the namespace for good. fn must not start
// goroutines that need the namespace.
func (ns *NetNS) Do(fn func() error) error {
	return onThread(func() error {
		if err := netns.Set(ns.handle); err != nil {
			return err
		}
		return fn()
	})
}

// InNetNS is Do in the namespace of a path, such as /run/netns/NAME, whoever has made it.
func InNetNS(path string, fn func() error) error {
	return onThread(func() error {
		ns, err := netns.GetFromPath(path)
		if err != nil {
			return err
		}
		defer ns.Close()
		if err := netns.Set(ns); err != nil {
			return err
		}
		return fn()
	})
}

// Must is Do for a test that cannot go on after an error.
func (ns *NetNS) Must(t testing.TB, fn func() error) {
	t.Helper()
	if err := ns.Do(fn); err != nil {
		t.Fatalf("in namespace %s: %v", ns.Name, err)
	}
}

// Veth joins two namespaces by a veth pair and puts the given addresses
// ("10.0.0.1/24") on its ends, which are up when it returns.
func Veth(t testing.TB, a *NetNS, aName string, aAddrs []string, b *NetNS, bName string, bAddrs []string) {
	t.Helper()
	a.Must(t, func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = aName
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: bName, PeerNamespace: netlink.NsFd(b.Fd())})
	})
	a.Must(t, func() error { return linkUp(aName, aAddrs) })
	b.Must(t, func() error { return linkUp(bName, bAddrs) })
}

// DefaultRoute routes all of a namespace's traffic, of the gateway's family,
// through the gateway.
func DefaultRoute(t testing.TB, ns *NetNS, gateway string) {
	t.Helper()
	ns.Must(t, func() error { return netlink.RouteAdd(&netlink.Route{Gw: net.ParseIP(gateway)}) })
}

func linkUp(name string, addrs []string) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	for _, a := range addrs {
		addr, err := netlink.ParseAddr(a)
		if err != nil {
			return err
		}
		if strings.Contains(a, ":") {
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrAdd(l, addr); err != nil {
			return err
		}
	}
	return netlink.LinkSetUp(l)
}

// onThread runs fn on a thread that is thrown away afterwards, because a
// thread that changed its namespace must not serve other goroutines.
func onThread(fn func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		result <- fn()
	}()
	return <-result
}

func uniqueName(hint string) string {
	f, err := os.CreateTemp("", "ht-"+hint+"-")
	if err != nil {
		return hint
	}
	defer os.Remove(f.Name())
	defer f.Close()
	return f.Name()[strings.LastIndex(f.Name(), "/")+1:]
}
