package replay

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/explain"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/replay/past"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// overUDP is the protocol of what was no connection.
const overUDP = "UDP"

func protocolOf(c *past.Connection) string {
	if c.UDP {
		return overUDP
	}
	return ""
}

// serviceAt says whose address one is.
func serviceAt(m *explain.Model) func(netip.Addr) (mesh.Key, bool) {
	return func(addr netip.Addr) (mesh.Key, bool) {
		if s, ok := m.ServiceAt(addr); ok {
			return s.Key, true
		}
		return mesh.Key{}, false
	}
}

// sender is client for datagrams: nobody but a workload of this mesh has an identity there.
func (j *judge) sender(c *past.Connection) (*mesh.Workload, netip.Addr, why) {
	src, addr, unclear := j.client(c)
	switch {
	case unclear == goneClient: // its identity is of what passed only
		unclear = goneSender
	case unclear == unknownClient: // whoever it was, in no mesh
		unclear = judged
	case src != nil && j.model.Foreign(src.Identity):
		src = nil
	}
	return src, addr, unclear
}

// decideDatagram says what becomes of a conversation over UDP now, as the gates of both
// ends do: of what was sent to a service's address, that of the sender.
func (j *judge) decideDatagram(c *past.Connection) (Decision, why) {
	src, client, unclear := j.sender(c)
	if unclear != judged {
		return Decision{}, unclear
	}
	if c.Destination.Workload == (mesh.Key{}) {
		to, ok := j.dialled(c)
		if !ok {
			return Decision{}, goneServer
		}
		return j.datagram(src, to), judged
	}
	servers := j.servers(c)
	if len(servers) == 0 {
		return Decision{}, goneServer
	}
	var first Decision
	for i, w := range servers {
		d := j.datagram(src, netip.AddrPortFrom(ofFamily(w.Addresses, client), c.Port))
		if i == 0 {
			first = d
		} else if d.Verdict != first.Verdict {
			return Decision{}, several
		}
	}
	return first, judged
}

// ofFamily is the first address of the family of another, or the first of all.
func ofFamily(addresses []netip.Addr, other netip.Addr) netip.Addr {
	if i := slices.IndexFunc(addresses, func(a netip.Addr) bool { return a.Is4() == other.Is4() }); i >= 0 {
		return addresses[i]
	}
	if len(addresses) > 0 {
		return addresses[0]
	}
	return netip.Addr{}
}

func (j *judge) datagram(src *mesh.Workload, to netip.AddrPort) Decision {
	d, service, at := j.model.Datagram(src, to)
	out := Decision{Verdict: d.Verdict.String(), Reason: d.Reason.String(), Rule: d.Rule}
	if d.Policy != (mesh.Key{}) {
		out.Policy = d.Policy.String()
	}
	if out.denied() && service != (mesh.Key{}) && at != (mesh.Key{}) {
		out.Endpoint = ownerOf(at).String()
	}
	return out
}

// dialled is the address and port that was sent to; that which its service has now, where
// it has another. False when the service is gone.
func (j *judge) dialled(c *past.Connection) (netip.AddrPort, bool) {
	addr := c.Destination.Address
	if c.Service != (mesh.Key{}) {
		s, ok := j.model.Service(c.Service)
		if !ok {
			return netip.AddrPort{}, false
		}
		if !slices.Contains(s.Addresses, addr) {
			i := slices.IndexFunc(s.Addresses, func(a netip.Addr) bool { return a.Is4() == addr.Is4() })
			if i < 0 {
				return netip.AddrPort{}, false
			}
			addr = s.Addresses[i]
		}
	}
	return netip.AddrPortFrom(addr, c.Port), true
}

// fold makes one of those that could not be judged and differ in nothing. What only was
// dropped over UDP is one whatever its ports: answers that came late went to any.
func fold(all []Unjudged) []Unjudged {
	slices.SortFunc(all, func(a, b Unjudged) int {
		return cmp.Or(strings.Compare(a.Source.Name, b.Source.Name), strings.Compare(a.Destination.Name, b.Destination.Name), cmp.Compare(a.Port, b.Port),
			strings.Compare(a.Protocol, b.Protocol), strings.Compare(a.Why, b.Why), strings.Compare(a.Source.Workload, b.Source.Workload), strings.Compare(a.Destination.Workload, b.Destination.Workload))
	})
	return mergeNeighbours(all, func(a, b *Unjudged) bool {
		return a.Protocol == overUDP && b.Protocol == overUDP && a.Source.Name == b.Source.Name && a.Destination.Name == b.Destination.Name && a.Port == b.Port && a.Why == b.Why
	}, func(u *Unjudged) (*uint64, *time.Time) { return &u.Count, &u.Last })
}
