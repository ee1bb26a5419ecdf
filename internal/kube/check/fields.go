package check

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/heddle-mesh/heddle/api/v1alpha1"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// Subdomain checks a name of the form that Kubernetes gives most names.
func (s Subject) Subdomain(field, what, name string) {
	if len(validation.IsDNS1123Subdomain(name)) > 0 {
		s.Problem(field, `write at most 253 lower-case letters, digits, "-" and "."; the first and the last a letter or a digit`, "%q is not %s", name, what)
	}
}

// DomainLabel checks the name of a namespace.
func (s Subject) DomainLabel(field, name string) {
	if len(validation.IsDNS1123Label(name)) > 0 {
		s.Problem(field, `write at most 63 lower-case letters, digits and "-"; the first and the last a letter or a digit`, "%q is not a namespace's name", name)
	}
}

// Labels checks the keys and values of labels.
func (s Subject) Labels(field string, labels map[string]string) {
	const form = `letters, digits, "-", "_" and "."; the first and the last a letter or a digit`
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		if len(validation.IsQualifiedName(key)) > 0 {
			s.Problem(field+"["+key+"]", "write at most 63 "+form+"; a domain and / may precede them", "%q is not a label's key", key)
		}
		if len(validation.IsValidLabelValue(labels[key])) > 0 {
			s.Problem(field+"["+key+"]", "write at most 63 "+form, "%q is not a label's value", labels[key])
		}
	}
}

// Mode reads a mode: unset where none is given, STRICT where it is none.
func (s Subject) Mode(field string, mode v1alpha1.PeerAuthenticationMode, unset mesh.Mode) mesh.Mode {
	switch mode {
	case "":
		return unset
	case v1alpha1.PeerAuthenticationStrict:
		return mesh.ModeStrict
	case v1alpha1.PeerAuthenticationPermissive:
		return mesh.ModePermissive
	}
	s.Problem(field, "write STRICT or PERMISSIVE", "%q is not a mode", string(mode))
	return mesh.ModeStrict
}

// Block reads an address range.
func (s Subject) Block(field, text string) (netip.Prefix, bool) {
	block, err := netip.ParsePrefix(text)
	if err != nil {
		remedy := "write one such as 10.1.0.0/16 or fd00:1::/64"
		if addr, err := netip.ParseAddr(text); err == nil && addr.Zone() == "" {
			remedy = fmt.Sprintf("for this one address write %s/%d", addr, addr.BitLen())
		}
		s.Problem(field, remedy, "%q is not an address range", text)
		return block, false
	}
	if block.Addr().Is4In6() {
		s.Problem(field, "write it as IPv4, such as 10.1.0.0/16", "%q is an IPv4 range written as IPv6", text)
		return block, false
	}
	if block.Masked() != block {
		s.Problem(field, fmt.Sprintf("write %s for the range, or %s/%d for the address", block.Masked(), block.Addr(), block.Addr().BitLen()),
			"%q has bits set after its prefix", text)
		return block, false
	}
	return block, true
}

// Blocks reads a list of address ranges, of which those that are none are left out.
func (s Subject) Blocks(field string, texts []v1alpha1.AddressBlock) []netip.Prefix {
	s.NotEmpty(field, texts != nil && len(texts) == 0)
	var blocks []netip.Prefix
	for i, text := range texts {
		if block, ok := s.Block(fmt.Sprintf("%s[%d]", field, i), string(text)); ok {
			blocks = append(blocks, block)
		}
	}
	return blocks
}

// Ports checks a list of ports.
func (s Subject) Ports(field string, ports []v1alpha1.Port) []uint16 {
	s.NotEmpty(field, ports != nil && len(ports) == 0)
	var out []uint16
	for i, port := range ports {
		at := fmt.Sprintf("%s[%d]", field, i)
		p, ok := s.Port(at, int32(port))
		switch {
		case !ok:
		case slices.Contains(out, p):
			s.Problem(at, "keep one of them", "port %d is given twice", p)
		default:
			out = append(out, p)
		}
	}
	return out
}

// Port reads the number of a port.
func (s Subject) Port(field string, port int32) (uint16, bool) {
	if port < 1 || port > 65535 {
		s.Problem(field, "write one of 1 to 65535", "%d is not a port", port)
		return 0, false
	}
	return uint16(port), true
}

// NotEmpty reports a list that is given without entries: it would say "nothing"
// to a reader and "everything" to the evaluator.
func (s Subject) NotEmpty(field string, empty bool) {
	if empty {
		s.Problem(field, "write at least one entry, or leave the field out", "is an empty list")
	}
}
