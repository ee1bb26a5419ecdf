package mesh

import (
	"net/netip"

	"github.com/heddle-mesh/heddle/internal/mesh/index"
)

// LookedAt returns how many services are looked at to find whose an external address is.
func (v *View) LookedAt(at netip.AddrPort) int {
	return len(v.external.Bucket(index.OfAddressPort(at.Addr(), at.Port())))
}
