// Package pools tells from what a cluster shows which addresses its pods have, and will
// have. It asks nobody.
package pools

import (
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
)

// private are the blocks that networks are made of (RFC 1918, RFC 6598): pools in two
// of them have nothing to do with each other.
var private = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("172.16.0.0/12"),
	netip.MustParsePrefix("192.168.0.0/16"), netip.MustParsePrefix("100.64.0.0/10")}

// maxRanges is from how many ranges on they say nothing about pods to come.
const maxRanges = 32

// size has the lengths of prefixes of one IP version.
type size struct {
	pool   int // what a pool is at least: pods and nodes to come are in it
	widest int // that a pool may be
	single int // that one pod's address stands for, at least
}

func sizeOf(a netip.Addr) size {
	if a.Is4() {
		return size{pool: 16, widest: 8, single: 24}
	}
	return size{pool: 48, widest: 32, single: 64}
}

// Shown is what a cluster shows.
type Shown struct {
	// Blocks are those that the API server has given to nodes for their pods, which some
	// networks do not use.
	Blocks []netip.Prefix
	// Pods are the addresses that pods have in fact, Nodes those of the nodes themselves.
	Pods, Nodes []netip.Addr
}

// Read finds it in the cluster's nodes and pods. Pods that do not run, or are in their
// nodes' networks, show nothing.
func Read(nodes, pods []unstructured.Unstructured) (*Shown, error) {
	s := &Shown{}
	for i := range nodes {
		var n corev1.Node
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(nodes[i].Object, &n); err != nil {
			return nil, fmt.Errorf("node %s: %w", nodes[i].GetName(), err)
		}
		s.Blocks = append(s.Blocks, Prefixes(n.Spec.PodCIDRs)...)
		for _, a := range n.Status.Addresses {
			s.Nodes = append(s.Nodes, parsed(a.Address)...)
		}
	}
	for i := range pods {
		var p corev1.Pod
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(pods[i].Object, &p); err != nil {
			return nil, fmt.Errorf("pod %s/%s: %w", pods[i].GetNamespace(), pods[i].GetName(), err)
		}
		for _, ip := range p.Status.PodIPs {
			if p.Status.Phase == corev1.PodRunning && !p.Spec.HostNetwork {
				s.Pods = append(s.Pods, parsed(ip.IP)...)
			}
		}
	}
	return s, nil
}

// parsed is an address, or none of a name.
func parsed(text string) []netip.Addr {
	addr, err := netip.ParseAddr(text)
	if err != nil {
		return nil
	}
	return []netip.Addr{addr.Unmap()}
}

// Prefixes parses blocks that an API server has checked.
func Prefixes(texts []string) []netip.Prefix {
	var all []netip.Prefix
	for _, text := range texts {
		if block, err := netip.ParsePrefix(text); err == nil {
			all = append(all, block.Masked())
		}
	}
	return all
}

// Cover returns the ranges that hold the pods of a cluster. Those of pods count where
// they are in none of the blocks. Nodes' own addresses are in no range that is wider than
// what was given. It returns false when the ranges cannot be told.
func (s *Shown) Cover() ([]netip.Prefix, bool) {
	blocks, pods := s.Blocks, s.Pods
	outside := slices.DeleteFunc(slices.Clone(pods), func(a netip.Addr) bool { return contained(blocks, a) })
	c := cover{nodes: s.Nodes}
	for _, b := range blocks {
		// A block that no pod is in, beside pods that are in none, is not in use.
		if len(outside) == 0 || slices.ContainsFunc(pods, func(a netip.Addr) bool { return b.Contains(a) }) {
			c.add(c.widen(b))
		}
	}
	for _, a := range outside {
		wide := c.widen(netip.PrefixFrom(a, a.BitLen()))
		if wide.Bits() > sizeOf(a).single {
			return nil, false // among the nodes' own
		}
		c.add(wide)
	}
	slices.SortFunc(c.ranges, func(a, b netip.Prefix) int { return a.Addr().Compare(b.Addr()) })
	return c.ranges, len(c.ranges) > 0 && len(c.ranges) <= maxRanges
}

func contained(blocks []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(blocks, func(b netip.Prefix) bool { return b.Contains(a) })
}

type cover struct {
	nodes  []netip.Addr
	ranges []netip.Prefix
}

// widen returns the pool that a block is of, without any node.
func (c *cover) widen(b netip.Prefix) netip.Prefix {
	for bits := min(sizeOf(b.Addr()).pool, b.Bits()); bits < b.Bits(); bits++ {
		if wide := netip.PrefixFrom(b.Addr(), bits).Masked(); !slices.ContainsFunc(c.nodes, wide.Contains) {
			return wide
		}
	}
	return b.Masked()
}

// add adds a range, as one with those of the same pool.
func (c *cover) add(b netip.Prefix) {
	for i, a := range c.ranges {
		if both, ok := c.merged(a, b); ok {
			c.ranges = slices.Delete(c.ranges, i, i+1)
			c.add(both)
			return
		}
	}
	c.ranges = append(c.ranges, b)
}

// merged returns the smallest range that holds two, if they can be of one pool.
func (c *cover) merged(a, b netip.Prefix) (netip.Prefix, bool) {
	if a.Addr().Is4() != b.Addr().Is4() {
		return a, false
	}
	both := netip.PrefixFrom(a.Addr(), min(a.Bits(), b.Bits())).Masked()
	for !both.Contains(b.Addr()) {
		both = netip.PrefixFrom(both.Addr(), both.Bits()-1).Masked()
	}
	if both == a.Masked() || both == b.Masked() {
		return both, true // one is part of the other
	}
	for _, home := range private {
		if home.Overlaps(both) && !(home.Contains(both.Addr()) && home.Bits() <= both.Bits()) {
			return a, false
		}
	}
	return both, both.Bits() >= sizeOf(both.Addr()).widest && !slices.ContainsFunc(c.nodes, both.Contains)
}
