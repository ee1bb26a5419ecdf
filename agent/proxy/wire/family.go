package wire

import (
	"errors"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/internal/mesh"
)

// Client is whom an application is shown: an address of the family of the one that it is
// connected to at, and the port, which may be 0.
type Client struct {
	netip.AddrPort
	// of is the workload that is proved to be the client, and judge decides about it; nil
	// where none is.
	of    *mesh.Workload
	judge *Judge
}

// InFamily returns client, or when its family is not that of target, the
// workload's first address of target's family with client's port. Under it the
// destination's application sees the client.
func (j *Judge) InFamily(w *mesh.Workload, client netip.AddrPort, target netip.Addr) Client {
	c := Client{client, w, j}
	if addr, ok := c.address(target.Is4()); ok {
		c.AddrPort = netip.AddrPortFrom(addr, client.Port())
	}
	return c
}

// address is the client's own in a family, else the workload's first of it.
func (c *Client) address(v4 bool) (addr netip.Addr, ok bool) {
	if c.Addr().Is4() == v4 {
		return c.Addr(), true
	}
	if c.of == nil {
		return netip.Addr{}, false
	}
	return inFamily(c.of, v4)
}

func inFamily(w *mesh.Workload, v4 bool) (netip.Addr, bool) {
	for _, addr := range w.Addresses {
		if addr.Is4() == v4 {
			return addr, true
		}
	}
	return netip.Addr{}, false
}

// otherwise returns from where and at which address of the pod to look for an application that
// refused a permitted connection at app: it may listen at addresses of one family only, and the
// client, whose connection the mesh has accepted by then, would not try the other one itself.
// That has to be permitted as well.
func (c *Client) otherwise(permit mesh.Permit, app netip.AddrPort, refused error) (from, to netip.AddrPort, ok bool) {
	if !errors.Is(refused, unix.ECONNREFUSED) || c.of == nil || permit.Behind().IsValid() {
		return from, to, false
	}
	v4 := !app.Addr().Is4()
	at, has := inFamily(permit.Destination(), v4)
	addr, known := c.address(v4)
	if !has || !known {
		return from, to, false
	}
	// Why not is of no use: the caller goes on with the error of the first address.
	again, _, _ := c.judge.Authorize(c.judge.store.View(), mesh.Connection{Peer: permit.Peer(), Source: addr, Destination: permit.Destination(), Port: permit.Port()})
	return netip.AddrPortFrom(addr, c.Port()), netip.AddrPortFrom(at, app.Port()), again.Valid()
}
