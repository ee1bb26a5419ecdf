package kube

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/heddle-mesh/heddle/api/v1alpha1"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// subdomain checks a name of the form that Kubernetes gives most names.
func (s subject) subdomain(field, what, name string) {
	if len(validation.IsDNS1123Subdomain(name)) > 0 {
		s.problem(field, `write at most 253 lower-case letters, digits, "-" and "."; the first and the last a letter or a digit`, "%q is not %s", name, what)
	}
}

// domainLabel checks the name of a namespace.
func (s subject) domainLabel(field, name string) {
	if len(validation.IsDNS1123Label(name)) > 0 {
		s.problem(field, `write at most 63 lower-case letters, digits and "-"; the first and the last a letter or a digit`, "%q is not a namespace's name", name)
	}
}

func (s subject) labels(field string, labels map[string]string) {
	const form = `letters, digits, "-", "_" and "."; the first and the last a letter or a digit`
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		if len(validation.IsQualifiedName(key)) > 0 {
			s.problem(field+"["+key+"]", "write at most 63 "+form+"; a domain and / may precede them", "%q is not a label's key", key)
		}
		if len(validation.IsValidLabelValue(labels[key])) > 0 {
			s.problem(field+"["+key+"]", "write at most 63 "+form, "%q is not a label's value", labels[key])
		}
	}
}

func (s subject) mode(field string, mode v1alpha1.PeerAuthenticationMode, unset mesh.Mode) mesh.Mode {
	switch mode {
	case "":
		return unset
	case v1alpha1.PeerAuthenticationStrict:
		return mesh.ModeStrict
	case v1alpha1.PeerAuthenticationPermissive:
		return mesh.ModePermissive
	}
	s.problem(field, "write STRICT or PERMISSIVE", "%q is not a mode", string(mode))
	return mesh.ModeStrict
}

func (s subject) egress(field string, mode v1alpha1.EgressMode) mesh.EgressMode {
	switch mode {
	case "", v1alpha1.EgressAllow:
		return mesh.EgressAllow
	case v1alpha1.EgressDeny:
		return mesh.EgressDeny
	}
	s.problem(field, "write ALLOW or DENY", "%q is not an egress mode", string(mode))
	return mesh.EgressDeny
}

// dnsModes say who answers the name queries of a namespace's workloads.
type dnsModes struct {
	mesh       mesh.DNSMode
	namespaces map[string]mesh.DNSMode
}

func (d dnsModes) of(namespace string) mesh.DNSMode {
	if mode, ok := d.namespaces[namespace]; ok {
		return mode
	}
	return d.mesh
}

func (s subject) dnsModes(spec *v1alpha1.DNS) dnsModes {
	return dnsModes{mesh: s.dnsMode("spec.dns.mode", spec.Mode), namespaces: namespaceModes(s, "spec.dns.namespaces", "write CAPTURE or DIRECT", len(spec.Namespaces),
		func(i int) (string, v1alpha1.DNSMode) { return spec.Namespaces[i].Namespace, spec.Namespaces[i].Mode }, s.dnsMode)}
}

// namespaceModes reads a list of n namespaces with a mode each; none is nil. remedy is
// for a mode that is missing.
func namespaceModes[T ~string, M any](s subject, list, remedy string, n int, at func(int) (string, T), mode func(string, T) M) map[string]M {
	var modes map[string]M
	for i := range n {
		field := fmt.Sprintf("%s[%d]", list, i)
		namespace, text := at(i)
		if _, twice := modes[namespace]; twice {
			s.problem(field+".namespace", "keep one of them", "namespace %q is given twice", namespace)
			continue
		}
		if namespace == "" {
			s.problem(field+".namespace", "write the name of a namespace", "is empty")
		}
		if text == "" {
			s.problem(field+".mode", remedy, "is missing")
		}
		if modes == nil {
			modes = map[string]M{}
		}
		modes[namespace] = mode(field+".mode", text)
	}
	return modes
}

func (s subject) dnsMode(field string, mode v1alpha1.DNSMode) mesh.DNSMode {
	switch mode {
	case "":
		return mesh.DNSDefault
	case v1alpha1.DNSCapture:
		return mesh.DNSCapture
	case v1alpha1.DNSDirect:
		return mesh.DNSDirect
	}
	s.problem(field, "write CAPTURE or DIRECT", "%q is not a DNS mode", string(mode))
	return mesh.DNSDefault
}

// block parses an address range.
func (s subject) block(field, text string) (netip.Prefix, bool) {
	block, err := netip.ParsePrefix(text)
	if err != nil {
		remedy := "write one such as 10.1.0.0/16 or fd00:1::/64"
		if addr, err := netip.ParseAddr(text); err == nil && addr.Zone() == "" {
			remedy = fmt.Sprintf("for this one address write %s/%d", addr, addr.BitLen())
		}
		s.problem(field, remedy, "%q is not an address range", text)
		return block, false
	}
	if block.Addr().Is4In6() {
		s.problem(field, "write it as IPv4, such as 10.1.0.0/16", "%q is an IPv4 range written as IPv6", text)
		return block, false
	}
	if block.Masked() != block {
		s.problem(field, fmt.Sprintf("write %s for the range, or %s/%d for the address", block.Masked(), block.Addr(), block.Addr().BitLen()),
			"%q has bits set after its prefix", text)
		return block, false
	}
	return block, true
}

func (s subject) blocks(field string, texts []v1alpha1.AddressBlock) []netip.Prefix {
	s.notEmpty(field, texts != nil && len(texts) == 0)
	var blocks []netip.Prefix
	for i, text := range texts {
		if block, ok := s.block(fmt.Sprintf("%s[%d]", field, i), string(text)); ok {
			blocks = append(blocks, block)
		}
	}
	return blocks
}

// ports checks a list of ports.
func (s subject) ports(field string, ports []v1alpha1.Port) []uint16 {
	s.notEmpty(field, ports != nil && len(ports) == 0)
	var out []uint16
	for i, port := range ports {
		at := fmt.Sprintf("%s[%d]", field, i)
		p, ok := s.port(at, int32(port))
		switch {
		case !ok:
		case slices.Contains(out, p):
			s.problem(at, "keep one of them", "port %d is given twice", p)
		default:
			out = append(out, p)
		}
	}
	return out
}

func (s subject) port(field string, port int32) (uint16, bool) {
	if port < 1 || port > 65535 {
		s.problem(field, "write one of 1 to 65535", "%d is not a port", port)
		return 0, false
	}
	return uint16(port), true
}

// notEmpty reports a list that is given without entries: it would say "nothing"
// to a reader and "everything" to the evaluator.
func (s subject) notEmpty(field string, empty bool) {
	if empty {
		s.problem(field, "write at least one entry, or leave the field out", "is an empty list")
	}
}

// selector checks a selector and returns its labels; nil picks everything.
func (s subject) selector(selector *v1alpha1.Selector) map[string]string {
	if selector == nil {
		return nil
	}
	if len(selector.MatchLabels) == 0 {
		s.problem("spec.selector.matchLabels", "write at least one label, or leave the selector out to pick every workload of the namespace", "is empty")
	}
	labels := selector.Labels()
	s.labels("spec.selector.matchLabels", labels)
	return labels
}

// groupKey names the workloads of a namespace, told apart by one label.
type groupKey struct{ namespace, label string }

// candidates returns the workloads of a namespace that a selector may select,
// sorted by key: those that have one of its labels. Looking at all of them for
// each selector would be most of the work of compiling a large cluster.
func (c *compiler) candidates(namespace string, selector map[string]string) []*mesh.Workload {
	label := ""
	for key := range selector {
		if label == "" || key < label {
			label = key
		}
	}
	if label == "" {
		return c.members[namespace]
	}
	at := groupKey{namespace, label}
	group, known := c.groups[at]
	if !known {
		group = map[string][]*mesh.Workload{}
		for _, w := range c.members[namespace] {
			if value, has := w.Labels[label]; has {
				group[value] = append(group[value], w)
			}
		}
		c.groups[at] = group
	}
	return group[selector[label]]
}

// selects reports whether labels have everything that a selector wants.
func selects(selector, labels map[string]string) bool {
	for key, want := range selector {
		if have, ok := labels[key]; !ok || have != want {
			return false
		}
	}
	return true
}
