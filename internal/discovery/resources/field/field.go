// Package field converts the parts that the messages of configuration have in
// common, from the model and to it, with the bounds of what comes from outside.
// All of it is pure.
package field

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"slices"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// FromKey encodes a name.
func FromKey(k mesh.Key) *meshpb.ObjectKey {
	return &meshpb.ObjectKey{Namespace: k.Namespace, Name: k.Name}
}

// FromKeys encodes names.
func FromKeys(keys []mesh.Key) (all []*meshpb.ObjectKey) {
	for _, k := range keys {
		all = append(all, FromKey(k))
	}
	return all
}

// FromMode encodes a mode.
func FromMode(m mesh.Mode) meshpb.Mode {
	if m == mesh.ModePermissive {
		return meshpb.Mode_MODE_PERMISSIVE
	}
	return meshpb.Mode_MODE_STRICT
}

// FromEgress encodes what is done with what leaves the mesh.
func FromEgress(e mesh.EgressMode) meshpb.Egress {
	if e == mesh.EgressAllow {
		return meshpb.Egress_EGRESS_ALLOW
	}
	return meshpb.Egress_EGRESS_DENY
}

// FromUDPEgress encodes what may leave the mesh over UDP from a namespace.
func FromUDPEgress(namespace string, e mesh.UDPEgress) *meshpb.UDPEgress {
	m := &meshpb.UDPEgress{Namespace: namespace, Egress: meshpb.Egress_EGRESS_DENY, Ports: FromPorts(e.Ports)}
	if e.Allow {
		m.Egress = meshpb.Egress_EGRESS_ALLOW
	}
	return m
}

// FromAddresses encodes addresses, 4 or 16 bytes each.
func FromAddresses(addrs []netip.Addr) [][]byte {
	var all [][]byte
	for _, a := range addrs {
		all = append(all, a.AsSlice())
	}
	return all
}

// FromBlocks encodes blocks of addresses.
func FromBlocks(blocks []netip.Prefix) []*meshpb.AddressBlock {
	var all []*meshpb.AddressBlock
	for _, b := range blocks {
		all = append(all, &meshpb.AddressBlock{Address: b.Addr().AsSlice(), Bits: uint32(b.Bits())})
	}
	return all
}

// FromLabels encodes labels, sorted.
func FromLabels(labels map[string]string) []*meshpb.Label {
	var all []*meshpb.Label
	for _, k := range SortedKeys(labels) {
		all = append(all, &meshpb.Label{Key: k, Value: labels[k]})
	}
	return all
}

// FromPatterns encodes patterns of identities.
func FromPatterns(patterns []mesh.IdentityPattern) []string {
	var all []string
	for _, p := range patterns {
		all = append(all, string(p))
	}
	return all
}

// FromPorts encodes ports.
func FromPorts(ports []uint16) []uint32 {
	var all []uint32
	for _, p := range ports {
		all = append(all, uint32(p))
	}
	return all
}

// SortedKeys returns the keys of a map in order: bytes that are equal on every replica need one.
func SortedKeys[K cmp.Ordered, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }

// Unmarshal decodes a message of bounded depth.
func Unmarshal(body []byte, m proto.Message) error {
	return proto.UnmarshalOptions{RecursionLimit: 16}.Unmarshal(body, m)
}

// UnmarshalKnown refuses fields that this program does not know, at any depth:
// a condition that a newer operator can add to a rule must not get lost. A
// field that is not used is not encoded, so a newer operator is understood
// until somebody uses what is new.
func UnmarshalKnown(body []byte, m proto.Message) error {
	if err := Unmarshal(body, m); err != nil {
		return err
	}
	return CheckKnown(m)
}

// CheckKnown refuses fields that this program does not know, at any depth.
func CheckKnown(m proto.Message) error { return checkKnown(m.ProtoReflect()) }

func checkKnown(m protoreflect.Message) (err error) {
	if len(m.GetUnknown()) > 0 {
		return fmt.Errorf("%s has fields that are not known here: upgrade the agent, or the waypoint, that says so", m.Descriptor().Name())
	}
	m.Range(func(field protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case field.Message() == nil:
		case field.IsList():
			for i := 0; i < v.List().Len() && err == nil; i++ {
				err = checkKnown(v.List().Get(i).Message())
			}
		default:
			err = checkKnown(v.Message())
		}
		return err == nil
	})
	return err
}

// Key decodes a name; that of nil is empty.
func Key(k *meshpb.ObjectKey) mesh.Key {
	return mesh.Key{Namespace: k.GetNamespace(), Name: k.GetName()}
}

// Keys decodes names.
func Keys(raw []*meshpb.ObjectKey) (all []mesh.Key) {
	for _, k := range raw {
		all = append(all, Key(k))
	}
	return all
}

// Mode decodes a mode, and refuses one that is not known.
func Mode(m meshpb.Mode) (mesh.Mode, error) {
	switch m {
	case meshpb.Mode_MODE_STRICT:
		return mesh.ModeStrict, nil
	case meshpb.Mode_MODE_PERMISSIVE:
		return mesh.ModePermissive, nil
	default:
		return mesh.ModeStrict, fmt.Errorf("mode %v is unknown", m)
	}
}

// Egress decodes what is done with what leaves the mesh, and refuses what is not known.
func Egress(e meshpb.Egress) (mesh.EgressMode, error) {
	switch e {
	case meshpb.Egress_EGRESS_ALLOW:
		return mesh.EgressAllow, nil
	case meshpb.Egress_EGRESS_DENY:
		return mesh.EgressDeny, nil
	default:
		return mesh.EgressDeny, fmt.Errorf("egress %v is unknown", e)
	}
}

func addressOf(raw []byte) (netip.Addr, error) {
	addr, ok := netip.AddrFromSlice(raw)
	if !ok || addr.Is4In6() {
		return netip.Addr{}, fmt.Errorf("address %x: want 4 or 16 bytes, IPv4 not mapped", raw)
	}
	return addr, nil
}

// Addresses decodes addresses: 4 or 16 bytes each, IPv4 not mapped.
func Addresses(raw [][]byte) ([]netip.Addr, error) {
	var all []netip.Addr
	for _, r := range raw {
		addr, err := addressOf(r)
		if err != nil {
			return nil, err
		}
		all = append(all, addr)
	}
	return all, nil
}

// Blocks decodes blocks of addresses, and refuses those of nil.
func Blocks(raw []*meshpb.AddressBlock) ([]netip.Prefix, error) {
	var all []netip.Prefix
	for _, b := range raw {
		addr, err := addressOf(b.GetAddress())
		if err != nil {
			return nil, err
		}
		if b.GetBits() > uint32(addr.BitLen()) {
			return nil, fmt.Errorf("address block %v/%d: too many bits", addr, b.GetBits())
		}
		all = append(all, netip.PrefixFrom(addr, int(b.GetBits())))
	}
	return all, nil
}

// Labels decodes labels, and refuses one that is given twice.
func Labels(raw []*meshpb.Label) (map[string]string, error) {
	if len(raw) == 0 {
		return nil, nil
	}
	all := make(map[string]string, len(raw))
	for _, l := range raw {
		if _, twice := all[l.GetKey()]; twice {
			return nil, fmt.Errorf("label %q: given twice", l.GetKey())
		}
		all[l.GetKey()] = l.GetValue()
	}
	return all, nil
}

// PortModes decodes the modes of ports, and refuses one that is given twice.
func PortModes(raw []*meshpb.PortMode) (map[uint16]mesh.Mode, error) {
	if len(raw) == 0 {
		return nil, nil
	}
	all := make(map[uint16]mesh.Mode, len(raw))
	for _, p := range raw {
		port, err := Port(p.GetPort())
		if err != nil {
			return nil, err
		}
		if _, twice := all[port]; twice {
			return nil, fmt.Errorf("mode of port %d: given twice", port)
		}
		if all[port], err = Mode(p.GetMode()); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// Patterns decodes patterns of identities; it does not look into them.
func Patterns(raw []string) []mesh.IdentityPattern {
	var all []mesh.IdentityPattern
	for _, p := range raw {
		all = append(all, mesh.IdentityPattern(p))
	}
	return all
}

// Port decodes a port: 1 to 65535.
func Port(raw uint32) (uint16, error) {
	if raw == 0 || raw > math.MaxUint16 {
		return 0, fmt.Errorf("port %d is not between 1 and %d", raw, math.MaxUint16)
	}
	return uint16(raw), nil
}

// Ports decodes ports.
func Ports(raw []uint32) ([]uint16, error) {
	var all []uint16
	for _, r := range raw {
		port, err := Port(r)
		if err != nil {
			return nil, err
		}
		all = append(all, port)
	}
	return all, nil
}
