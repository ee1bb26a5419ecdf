package check

import (
	"net/netip"
	"slices"
	"strings"
)

// AllMayUse reports whether a load balancer's source ranges have room, in one family, for
// all of the blocks. Where they have not, kube-proxy looks at each connection's source, and
// goes on doing so.
func AllMayUse(sources []string, blocks []netip.Prefix, is4 bool) bool {
	if len(sources) == 0 {
		return true
	}
	var own []netip.Prefix
	for _, text := range sources {
		if source, err := netip.ParsePrefix(strings.TrimSpace(text)); err == nil && source.Addr().Is4() == is4 {
			own = append(own, source)
		}
	}
	within := func(block netip.Prefix) bool {
		return slices.ContainsFunc(own, func(source netip.Prefix) bool { return source.Bits() <= block.Bits() && source.Contains(block.Addr()) })
	}
	return !slices.ContainsFunc(blocks, func(block netip.Prefix) bool { return block.Addr().Is4() == is4 && !within(block) })
}
