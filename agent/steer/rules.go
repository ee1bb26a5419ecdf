package steer

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/agent/netns"
)

// RouteProtocol is the routing protocol number (rtm_protocol, and FRA_PROTOCOL
// of rules) on every rule and route that the agent puts into a pod. Nothing
// else in the pod's namespace is touched.
const RouteProtocol = 72

// Priorities of the two rules. The kernel's local table is at 0, main at 32766.
const (
	priorityMarked   = 90
	priorityRedirect = 100
)

// Steering is the routing that leads a pod's TCP to the agent's listeners.
type Steering struct {
	// Mark, under Mask, leads past the redirection.
	Mark, Mask uint32
	// Table is the routing table that leads to loopback.
	Table int
	// Loopback is lo's index in the pod; Check needs none.
	Loopback int
	// Addrs are the pod's addresses.
	Addrs []netip.Addr
	// DNS leads UDP to port 53 there, too.
	DNS bool
	// Congestion is the congestion control of the pod's connections to there; "" is the system's.
	Congestion string
}

// dnsPort is where DNS servers listen (RFC 1035, section 4.2).
const dnsPort = 53

// Install makes the pod's rules and routes those of s: what is there stays,
// what an agent with other settings left goes, in an order that never lets a
// connection through that should be redirected.
func (s Steering) Install(h *netlink.Handle) error {
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		src := AddressOf(s.Addrs, family)
		if !src.IsValid() {
			if err := removeFamily(h, family, nil, nil); err != nil {
				return err
			}
			continue
		}
		if err := s.installFamily(h, family, src); err != nil {
			return err
		}
	}
	return nil
}

func (s Steering) installFamily(h *netlink.Handle, family int, src netip.Addr) error {
	route := s.route(family, src)
	if err := s.refuseForeign(h, family); err != nil {
		return err
	}
	// Marked packets find main before anything is steered; the route is there
	// before the rule that leads to it.
	rules := s.rules(family)
	if err := addRule(h, rules[0]); err != nil {
		return err
	}
	if err := h.RouteReplace(route); err != nil {
		return fmt.Errorf("add local default route to table %d: %w", s.Table, err)
	}
	for _, redirect := range rules[1:] {
		if err := addRule(h, redirect); err != nil {
			return err
		}
	}
	return removeFamily(h, family, rules, route)
}

// rules are a family's, the marked packets' first.
func (s Steering) rules(family int) []*netlink.Rule {
	rules := []*netlink.Rule{s.markedRule(family), s.redirectRule(family)}
	if s.DNS {
		rules = append(rules, s.dnsRule(family))
	}
	return rules
}

func (s Steering) markedRule(family int) *netlink.Rule {
	r := netlink.NewRule()
	mask := s.Mask
	r.Family, r.Priority, r.Protocol = family, priorityMarked, RouteProtocol
	r.Mark, r.Mask, r.Table = s.Mark, &mask, unix.RT_TABLE_MAIN
	return r
}

// redirectRule has no use for "invert" (it negates the whole match), and keeps
// "iif lo": see package podnet's doc.
func (s Steering) redirectRule(family int) *netlink.Rule {
	r := netlink.NewRule()
	r.Family, r.Priority, r.Protocol = family, priorityRedirect, RouteProtocol
	r.IifName, r.IPProto, r.Table = "lo", unix.IPPROTO_TCP, s.Table
	return r
}

func (s Steering) dnsRule(family int) *netlink.Rule {
	r := s.redirectRule(family)
	r.IPProto, r.Dport = unix.IPPROTO_UDP, netlink.NewRulePortRange(dnsPort, dnsPort)
	return r
}

// route needs its source: without it a pod's connection would leave from the
// destination's own address, as on any local route.
func (s Steering) route(family int, src netip.Addr) *netlink.Route {
	bits := 32
	if family == unix.AF_INET6 {
		bits = 128
	}
	return &netlink.Route{
		LinkIndex: s.Loopback, Table: s.Table, Type: unix.RTN_LOCAL, Scope: unix.RT_SCOPE_HOST,
		Dst:      &net.IPNet{IP: make(net.IP, bits/8), Mask: net.CIDRMask(0, bits)},
		Src:      src.AsSlice(),
		Protocol: RouteProtocol, Family: family, Congctl: s.Congestion,
	}
}

// Check says which rule or route is missing: an enrolled pod without them would
// talk past the agent, and the gate would drop all it says.
func (s Steering) Check(h *netlink.Handle) error {
	for _, family := range Families(s.Addrs) {
		rules, err := retryInterrupted(func() ([]netlink.Rule, error) { return h.RuleList(family) })
		if err != nil {
			return fmt.Errorf("list rules: %w", err)
		}
		for _, want := range s.rules(family) {
			if !slices.ContainsFunc(rules, func(r netlink.Rule) bool { return sameRule(want, &r) }) {
				return fmt.Errorf("%s is missing: find out what removed it, then enroll the pod again", want)
			}
		}
		routes, err := ownRoutes(h, family)
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(routes, func(r netlink.Route) bool { return r.Table == s.Table }) {
			return fmt.Errorf("the local default route of table %d is missing: find out what removed it, then enroll the pod again", s.Table)
		}
	}
	return nil
}

// refuseForeign refuses a pod that uses the table for something else: the
// redirect rule would send its TCP there.
func (s Steering) refuseForeign(h *netlink.Handle, family int) error {
	routes, err := retryInterrupted(func() ([]netlink.Route, error) {
		return h.RouteListFiltered(family, &netlink.Route{Table: s.Table}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return fmt.Errorf("list routes of table %d: %w", s.Table, err)
	}
	for _, r := range routes {
		if r.Protocol != RouteProtocol {
			return fmt.Errorf("routing table %d is used in the pod (%s): give the agent another table, or free this one", s.Table, r)
		}
	}
	return nil
}

// Uninstall removes every rule and route that carries our protocol.
func Uninstall(h *netlink.Handle) error {
	return errors.Join(removeFamily(h, unix.AF_INET, nil, nil), removeFamily(h, unix.AF_INET6, nil, nil))
}

// UninstallIn is Uninstall in a namespace of which no handle is open.
func UninstallIn(ns *netns.Namespace) error {
	h, err := ns.Netlink()
	if err != nil {
		return err
	}
	defer h.Close()
	return Uninstall(h)
}

// removeFamily removes our rules, then our routes, except those to keep.
func removeFamily(h *netlink.Handle, family int, keepRules []*netlink.Rule, keepRoute *netlink.Route) error {
	rules, err := retryInterrupted(func() ([]netlink.Rule, error) { return h.RuleList(family) })
	if err != nil {
		return fmt.Errorf("list rules: %w", err)
	}
	// The highest priority number goes first: capture ends before the marked
	// packets lose their way.
	for i := len(rules) - 1; i >= 0; i-- {
		r := rules[i]
		if r.Protocol != RouteProtocol || slices.ContainsFunc(keepRules, func(k *netlink.Rule) bool { return sameRule(k, &r) }) {
			continue
		}
		r.Family = family
		if err := h.RuleDel(&r); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("remove rule %d: %w", r.Priority, err)
		}
	}
	routes, err := ownRoutes(h, family)
	if err != nil {
		return err
	}
	for _, r := range routes {
		if keepRoute != nil && r.Table == keepRoute.Table && r.Src.Equal(keepRoute.Src) {
			continue
		}
		if err := h.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("remove route of table %d: %w", r.Table, err)
		}
	}
	return nil
}

// addRule adds a rule unless it is there: the kernel would keep two of them.
func addRule(h *netlink.Handle, want *netlink.Rule) error {
	rules, err := retryInterrupted(func() ([]netlink.Rule, error) { return h.RuleList(want.Family) })
	if err != nil {
		return fmt.Errorf("list rules: %w", err)
	}
	for _, have := range rules {
		if sameRule(want, &have) {
			return nil
		}
	}
	if err := h.RuleAdd(want); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add rule %d: %w", want.Priority, err)
	}
	return nil
}

// ownRoutes lists the routes of all tables that carry our protocol.
func ownRoutes(h *netlink.Handle, family int) ([]netlink.Route, error) {
	routes, err := retryInterrupted(func() ([]netlink.Route, error) {
		return h.RouteListFiltered(family, &netlink.Route{Protocol: RouteProtocol, Table: unix.RT_TABLE_UNSPEC},
			netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	return routes, nil
}

func sameRule(a, b *netlink.Rule) bool {
	return a.Priority == b.Priority && a.Table == b.Table && a.Protocol == b.Protocol &&
		a.Mark == b.Mark && maskOf(a) == maskOf(b) && a.IifName == b.IifName && a.IPProto == b.IPProto && portsOf(a) == portsOf(b)
}

// portsOf is the range of destination ports that the rule is for; zero: all.
func portsOf(r *netlink.Rule) netlink.RulePortRange {
	if r.Dport == nil {
		return netlink.RulePortRange{}
	}
	return *r.Dport
}

// maskOf is the effective mask: the kernel reports none as all ones when there
// is a mark.
func maskOf(r *netlink.Rule) uint32 {
	switch {
	case r.Mask != nil:
		return *r.Mask
	case r.Mark != 0:
		return ^uint32(0)
	}
	return 0
}
