package cluster

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// Options say what cluster to bring up. The zero value of a field takes the
// default that it names.
type Options struct {
	// Name is the cluster's, and the prefix of all it makes on the host: the
	// network namespaces cluster-NAME-NODE and the cgroups cluster-NAME. Default: dev.
	Name string `json:"name"`
	// Root is the checkout that the programs are built from.
	Root string `json:"root"`
	// Dir is the folder that the states of clusters are in, one folder each.
	// Default: .cache/clusters in Root.
	Dir string `json:"dir"`
	// Workers is how many nodes run pods: n1, n2, ... Default: 2.
	Workers int `json:"workers"`
	// APIPort is the port of 127.0.0.1 that leads to the API server. Default: a
	// free one.
	APIPort int `json:"apiPort"`
	// NodeRange has the machines' addresses, PodRange a /24 for each worker, and
	// ServiceRange the services'. No traffic leaves a cluster's machines, so that
	// clusters side by side may have the same ranges. Defaults: 10.231.0.0/24,
	// 10.244.0.0/16, 10.96.0.0/16.
	NodeRange    netip.Prefix `json:"nodeRange"`
	PodRange     netip.Prefix `json:"podRange"`
	ServiceRange netip.Prefix `json:"serviceRange"`
	// IPFamilies are the families of pods' and services' addresses, the primary one
	// first: ipv4, ipv6, or both in either order. The ranges of ipv6 are those of
	// every cluster: see rangesIPv6. Default: ipv4 alone.
	IPFamilies []string `json:"ipFamilies"`
	// ProxyMode is kube-proxy's: nftables or iptables. Default: nftables.
	ProxyMode string `json:"proxyMode"`
	// Say is told of each step; nil is told nothing.
	Say func(string) `json:"-"`
}

// maxWorkers keeps a worker's number in one octet of its addresses.
const maxWorkers = 200

// WithDefaults fills in what was left out, and checks the rest.
func (o Options) WithDefaults() (Options, error) {
	if o.Name == "" {
		o.Name = "dev"
	}
	if !regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,18}[a-z0-9])?$`).MatchString(o.Name) {
		return o, fmt.Errorf("cluster name %q: use up to 20 of a-z, 0-9 and inner dashes", o.Name)
	}
	if o.Dir == "" {
		if o.Root == "" {
			return o, errors.New("cluster options: neither Root nor Dir is given")
		}
		o.Dir = filepath.Join(o.Root, ".cache", "clusters")
	}
	var err error
	if o.Dir, err = filepath.Abs(o.Dir); err != nil {
		return o, fmt.Errorf("cluster options: Dir: %w", err)
	}
	if o.Workers == 0 {
		o.Workers = 2
	}
	if o.Workers < 1 || o.Workers > maxWorkers {
		return o, fmt.Errorf("cluster options: %d workers: use 1 to %d", o.Workers, maxWorkers)
	}
	if o.ProxyMode == "" {
		o.ProxyMode = "nftables"
	}
	if !slices.Contains([]string{"nftables", "iptables"}, o.ProxyMode) {
		return o, fmt.Errorf("cluster options: proxy mode %q: use nftables or iptables", o.ProxyMode)
	}
	if len(o.IPFamilies) == 0 {
		o.IPFamilies = []string{familyIPv4}
	}
	if !slices.Contains([]string{"ipv4", "ipv6", "ipv4,ipv6", "ipv6,ipv4"}, strings.Join(o.IPFamilies, ",")) {
		return o, fmt.Errorf("cluster options: IP families %q: use ipv4, ipv6, ipv4,ipv6 or ipv6,ipv4", o.IPFamilies)
	}
	if o.APIPort < 0 || o.APIPort > 65535 {
		return o, fmt.Errorf("cluster options: API port %d is none", o.APIPort)
	}
	if o.Say == nil {
		o.Say = func(string) {}
	}
	return o.withRanges()
}

func (o Options) withRanges() (Options, error) {
	ranges := []struct {
		name     string
		value    *netip.Prefix
		fallback string
		maxBits  int
	}{
		{"node range", &o.NodeRange, "10.231.0.0/24", 24},
		{"pod range", &o.PodRange, "10.244.0.0/16", 16},
		{"service range", &o.ServiceRange, "10.96.0.0/16", 24},
	}
	for i, r := range ranges {
		if !r.value.IsValid() {
			*r.value = netip.MustParsePrefix(r.fallback)
		}
		if !r.value.Addr().Is4() || r.value.Masked() != *r.value || r.value.Bits() > r.maxBits {
			return o, fmt.Errorf("cluster options: %s %s: use an IPv4 range of at least a /%d, without host bits", r.name, r.value, r.maxBits)
		}
		for _, other := range ranges[:i] {
			if r.value.Overlaps(*other.value) {
				return o, fmt.Errorf("cluster options: %s %s overlaps the %s %s: they must differ within a cluster", r.name, r.value, other.name, other.value)
			}
		}
	}
	return o, nil
}

// plan is where everything of a cluster is: the options and what follows from
// them. It is what the cluster's folder keeps.
type plan struct {
	Options Options `json:"options"`
	// Programs is the folder of what was built.
	Programs string `json:"programs"`
}

const controlPlane = "cp"

func (p plan) dir() string { return filepath.Join(p.Options.Dir, p.Options.Name) }

func (p plan) workers() []string {
	var names []string
	for i := range p.Options.Workers {
		names = append(names, fmt.Sprintf("n%d", i+1))
	}
	return names
}

// machines are all machines' names, the control plane's first.
func (p plan) machines() []string { return append([]string{controlPlane}, p.workers()...) }

const (
	familyIPv4 = "ipv4"
	familyIPv6 = "ipv6"
)

// ranges are a family's, as the fields of Options.
type ranges struct{ nodes, pods, services netip.Prefix }

// rangesIPv6 are every cluster's: no cluster meets another, nor anything else. The
// services' are as many as the API server takes at most, 20 bits of them.
func rangesIPv6() ranges {
	return ranges{
		nodes: netip.MustParsePrefix("fd00:10:231::/64"), pods: netip.MustParsePrefix("fd00:10:244::/48"),
		services: netip.MustParsePrefix("fd00:10:96::/108"),
	}
}

// ranges are those of each family, the primary one's first.
func (p plan) ranges() []ranges {
	var all []ranges
	for _, family := range p.Options.IPFamilies {
		if family == familyIPv6 {
			all = append(all, rangesIPv6())
		} else {
			all = append(all, ranges{p.Options.NodeRange, p.Options.PodRange, p.Options.ServiceRange})
		}
	}
	return all
}

// of is one value of each family, the primary one's first.
func of[T any](p plan, value func(ranges) T) []T {
	var all []T
	for _, r := range p.ranges() {
		all = append(all, value(r))
	}
	return all
}

// listed joins values by commas, as flags have them.
func listed[T fmt.Stringer](values []T) string {
	var texts []string
	for _, value := range values {
		texts = append(texts, value.String())
	}
	return strings.Join(texts, ",")
}

// nth is the address at a place in a range.
func nth(prefix netip.Prefix, n int) netip.Addr {
	return subnet(prefix, n, prefix.Addr().BitLen()).Addr()
}

// subnet is the range of some bits at a place in a larger one. The number of the place
// ends within the last 64 bits of an address, or within the 64 before them.
func subnet(prefix netip.Prefix, n, bits int) netip.Prefix {
	whole := prefix.Addr().As16()
	end := bits + 128 - prefix.Addr().BitLen() // in bits of As16
	half, shift := whole[8:], 128-end
	if end <= 64 {
		half, shift = whole[:8], 64-end
	}
	binary.BigEndian.PutUint64(half, binary.BigEndian.Uint64(half)+uint64(n)<<shift)
	address := netip.AddrFrom16(whole)
	if prefix.Addr().Is4() {
		address = address.Unmap()
	}
	return netip.PrefixFrom(address, bits)
}

// addresses are a machine's: the control plane has the first of a range, the workers
// those from the eleventh on.
func (p plan) addresses(machine string) []netip.Addr {
	place := 1
	if i := slices.Index(p.workers(), machine); i >= 0 {
		place = 11 + i
	}
	return of(p, func(r ranges) netip.Addr { return nth(r.nodes, place) })
}

// address is a machine's of the primary family.
func (p plan) address(machine string) netip.Addr { return p.addresses(machine)[0] }

// podRanges are a worker's parts of the pod ranges: the second /24, and the second /64
// of IPv6, are n1's.
func (p plan) podRanges(worker string) []netip.Prefix {
	place := 1 + slices.Index(p.workers(), worker)
	return of(p, func(r ranges) netip.Prefix {
		if r.pods.Addr().Is4() {
			return subnet(r.pods, place, 24)
		}
		return subnet(r.pods, place, 64)
	})
}

func (p plan) allPods() []netip.Prefix { return of(p, func(r ranges) netip.Prefix { return r.pods }) }
func (p plan) allServices() []netip.Prefix {
	return of(p, func(r ranges) netip.Prefix { return r.services })
}

func (p plan) apiServiceAddresses() []netip.Addr {
	return of(p, func(r ranges) netip.Addr { return nth(r.services, 1) })
}

func (p plan) dnsAddresses() []netip.Addr {
	return of(p, func(r ranges) netip.Addr { return nth(r.services, 10) })
}

// everywhere is what a server listens at that is reached at all addresses of its machine.
func (p plan) everywhere() string {
	if slices.Contains(p.Options.IPFamilies, familyIPv6) {
		return "::"
	}
	return "0.0.0.0"
}

// apiAddress is where machines and pods reach the API server.
func (p plan) apiAddress() string {
	return netip.AddrPortFrom(p.address(controlPlane), apiPort).String()
}

const (
	apiPort       = 6443
	clusterDomain = "cluster.local"
)
