// Package proxyheader writes and reads the header by which an agent tells a waypoint
// whose connection it carries: the PROXY protocol, version 2, as HAProxy's
// proxy-protocol.txt specifies it, section 2.2.
//
// It knows one use of that: a TCP connection that is carried for somebody (command
// PROXY), between two IP addresses, perhaps with a SPIFFE ID in a TLV of a type of our
// own. It does not decide who may be believed. Its functions keep nothing, and are safe
// for concurrent use.
package proxyheader

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
)

const (
	// TypeIdentity is the type of the TLV that has the SPIFFE ID of the client, the
	// first of those that section 2.2.7 leaves to applications.
	TypeIdentity = 0xE0
	// MaxIdentity is the longest SPIFFE ID, in bytes (SPIFFE-ID, section 2.3).
	MaxIdentity = 2048
	// MaxLength bounds a whole header, in bytes: one that says it is longer is refused
	// before anything of it is waited for. It leaves room for TLVs of others.
	MaxLength = 4096
)

// signature begins every header of version 2.
const signature = "\r\n\r\n\x00\r\nQUIT\n"

const (
	fixed        = len(signature) + 4 // with version and command, family and protocol, length
	commandProxy = 0x21               // of version 2; 0x20 is LOCAL
	commandLocal = 0x20
	familyTCP4   = 0x11
	familyTCP6   = 0x21
	addresses4   = 2*4 + 2*2
	addresses6   = 2*16 + 2*2
	tlvHeader    = 3
)

var (
	// ErrMore: the bytes are the beginning of a header, and there must be more.
	ErrMore = errors.New("PROXY header is not whole yet")
	// ErrInvalid: the bytes are not a header that this package reads.
	ErrInvalid = errors.New("invalid PROXY header")
)

// Header says whose connection it is that follows.
type Header struct {
	// Client and Service are where the connection comes from, and where it wanted to
	// go. Parse gives both unmapped.
	Client, Service netip.AddrPort
	// Identity is the SPIFFE ID that the client has proved; "" when it proved none.
	// Parse says nothing of its form, but that it is at most MaxIdentity bytes.
	Identity string
}

// Append writes h after dst. Where one address is of IPv4 and the other of IPv6, the
// first is written as the IPv6 address that maps it (RFC 4291, section 2.5.5.2). It
// panics where there is an address missing, or the identity is longer than MaxIdentity:
// callers have both checked.
func Append(dst []byte, h Header) []byte {
	client, service := h.Client.Addr().Unmap(), h.Service.Addr().Unmap()
	if !client.IsValid() || !service.IsValid() || len(h.Identity) > MaxIdentity {
		panic(fmt.Errorf("proxyheader: %s to %s, with an identity of %d bytes", h.Client, h.Service, len(h.Identity)))
	}
	dst = append(append(dst, signature...), commandProxy)
	family, length := byte(familyTCP6), addresses6
	if client.Is4() && service.Is4() {
		family, length = familyTCP4, addresses4
	}
	whole := length
	if h.Identity != "" {
		whole += tlvHeader + len(h.Identity)
	}
	dst = binary.BigEndian.AppendUint16(append(dst, family), uint16(whole))
	for _, addr := range [...]netip.Addr{client, service} {
		if length == addresses4 {
			four := addr.As4()
			dst = append(dst, four[:]...)
			continue
		}
		sixteen := addr.As16()
		dst = append(dst, sixteen[:]...)
	}
	dst = binary.BigEndian.AppendUint16(dst, h.Client.Port())
	dst = binary.BigEndian.AppendUint16(dst, h.Service.Port())
	if h.Identity != "" {
		dst = binary.BigEndian.AppendUint16(append(dst, TypeIdentity), uint16(len(h.Identity)))
		dst = append(dst, h.Identity...)
	}
	return dst
}

// Parse reads the header that b begins with, and returns its length, n: what follows is
// the connection's. While b has the beginning only, the error matches ErrMore, and more
// is to be read; at the first byte that cannot be of a header, or when the header says
// that it is longer than MaxLength, it matches ErrInvalid. It refuses the command LOCAL,
// whatever is not TCP over IPv4 or IPv6, and an identity given twice, empty or too long;
// it skips TLVs of other types.
func Parse(b []byte) (h Header, n int, err error) {
	if n, err = measure(b); err != nil {
		return Header{}, 0, err
	}
	if len(b) < n {
		return Header{}, 0, ErrMore
	}
	rest := b[fixed:n]
	if b[len(signature)+1] == familyTCP4 {
		h.Client = addrPort(netip.AddrFrom4([4]byte(rest[:4])), rest[8:])
		h.Service = addrPort(netip.AddrFrom4([4]byte(rest[4:])), rest[10:])
		rest = rest[addresses4:]
	} else {
		h.Client = addrPort(netip.AddrFrom16([16]byte(rest[:16])), rest[32:])
		h.Service = addrPort(netip.AddrFrom16([16]byte(rest[16:])), rest[34:])
		rest = rest[addresses6:]
	}
	if h.Identity, err = identity(rest); err != nil {
		return Header{}, 0, err
	}
	return h, n, nil
}

func addrPort(addr netip.Addr, port []byte) netip.AddrPort {
	return netip.AddrPortFrom(addr.Unmap(), binary.BigEndian.Uint16(port))
}

// measure returns the length of a whole header of which b has the beginning.
func measure(b []byte) (int, error) {
	if got := b[:min(len(b), len(signature))]; !bytes.Equal(got, []byte(signature)[:len(got)]) {
		return 0, fmt.Errorf("%w: it does not begin with the signature of version 2", ErrInvalid)
	}
	if len(b) > len(signature) {
		switch command := b[len(signature)]; command {
		case commandProxy:
		case commandLocal:
			return 0, fmt.Errorf("%w: the command LOCAL says of nobody whose connection it is", ErrInvalid)
		default:
			return 0, fmt.Errorf("%w: version and command are %#02x, want %#02x", ErrInvalid, command, commandProxy)
		}
	}
	least := addresses4
	if len(b) > len(signature)+1 {
		switch family := b[len(signature)+1]; family {
		case familyTCP4:
		case familyTCP6:
			least = addresses6
		default:
			return 0, fmt.Errorf("%w: family and protocol are %#02x, neither TCP over IPv4 nor over IPv6", ErrInvalid, family)
		}
	}
	if len(b) < fixed {
		return 0, ErrMore
	}
	length := int(binary.BigEndian.Uint16(b[fixed-2:]))
	switch {
	case length < least:
		return 0, fmt.Errorf("%w: %d bytes have no room for two addresses", ErrInvalid, length)
	case fixed+length > MaxLength:
		return 0, fmt.Errorf("%w: it is %d bytes long, more than %d", ErrInvalid, fixed+length, MaxLength)
	}
	return fixed + length, nil
}

// identity reads the TLVs (section 2.2).
func identity(tlvs []byte) (id string, err error) {
	for found := false; len(tlvs) > 0; {
		if len(tlvs) < tlvHeader {
			return "", fmt.Errorf("%w: it ends within a TLV", ErrInvalid)
		}
		length := int(binary.BigEndian.Uint16(tlvs[1:]))
		if length > len(tlvs)-tlvHeader {
			return "", fmt.Errorf("%w: a TLV of type %#02x and %d bytes is longer than what is left", ErrInvalid, tlvs[0], length)
		}
		if tlvs[0] == TypeIdentity {
			switch {
			case found:
				return "", fmt.Errorf("%w: it has two identities", ErrInvalid)
			case length == 0 || length > MaxIdentity:
				return "", fmt.Errorf("%w: an identity of %d bytes, want 1 to %d", ErrInvalid, length, MaxIdentity)
			}
			found, id = true, string(tlvs[tlvHeader:tlvHeader+length])
		}
		tlvs = tlvs[tlvHeader+length:]
	}
	return id, nil
}
