package cluster

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
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

// nth is the address at a place in a range.
func nth(prefix netip.Prefix, n int) netip.Addr {
	b := prefix.Addr().As4()
	value := uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
	value += uint32(n)
	return netip.AddrFrom4([4]byte{byte(value >> 24), byte(value >> 16), byte(value >> 8), byte(value)})
}

// address is a machine's address: the control plane has the first, the workers
// those from the eleventh on.
func (p plan) address(machine string) netip.Addr {
	if i := slices.Index(p.workers(), machine); i >= 0 {
		return nth(p.Options.NodeRange, 11+i)
	}
	return nth(p.Options.NodeRange, 1)
}

// podRange is a worker's part of the pod range: the second /24 is n1's.
func (p plan) podRange(worker string) netip.Prefix {
	return netip.PrefixFrom(nth(p.Options.PodRange, 256*(1+slices.Index(p.workers(), worker))), 24)
}

func (p plan) apiServiceAddress() netip.Addr { return nth(p.Options.ServiceRange, 1) }
func (p plan) dnsAddress() netip.Addr        { return nth(p.Options.ServiceRange, 10) }

// apiAddress is where machines and pods reach the API server.
func (p plan) apiAddress() string {
	return netip.AddrPortFrom(p.address(controlPlane), apiPort).String()
}

const (
	apiPort       = 6443
	clusterDomain = "cluster.local"
)
