package hbone

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

const (
	// maxForwardedBytes bounds a forwarded header: an honest one names one
	// client and one host.
	maxForwardedBytes = 1 << 10
	// maxAuthorityBytes is more than the longest "[IPv6]:port".
	maxAuthorityBytes = 64
	// traceParentBytes is the length of a version 00 traceparent (W3C Trace
	// Context section 3.2).
	traceParentBytes = 55
)

var (
	errAuthority = errors.New("authority is not ip:port")
	errForwarded = errors.New("forwarded is not as RFC 7239 section 4 says")
)

// ParseAuthority reads the target of a CONNECT: an IP address and a port other
// than 0. It refuses names, zones, IPv4 written as IPv6, unspecified and
// multicast addresses, and ports that are not written plainly, so that two
// readers of one authority cannot disagree.
func ParseAuthority(s string) (netip.AddrPort, error) {
	if len(s) > maxAuthorityBytes {
		return netip.AddrPort{}, errAuthority
	}
	host, port, ok := cutPort(s)
	if !ok {
		return netip.AddrPort{}, errAuthority
	}
	target, err := parseAddrPort(host, port)
	if err != nil || target.Port() == 0 {
		return netip.AddrPort{}, errAuthority
	}
	if a := target.Addr(); a.IsUnspecified() || a.IsMulticast() {
		return netip.AddrPort{}, errAuthority
	}
	return target, nil
}

// cutPort splits "host:port"; an IPv6 host has brackets.
func cutPort(s string) (host, port string, ok bool) {
	i := strings.LastIndexByte(s, ':')
	if i < 0 {
		return "", "", false
	}
	return s[:i], s[i+1:], true
}

// parseAddrPort reads an IPv4 address, or an IPv6 address in brackets, and a
// port in decimal without signs or leading zeros.
func parseAddrPort(host, port string) (netip.AddrPort, error) {
	inner, bracketed := strings.CutPrefix(host, "[")
	if bracketed {
		var closed bool
		if inner, closed = strings.CutSuffix(inner, "]"); !closed {
			return netip.AddrPort{}, errAuthority
		}
	}
	addr, err := netip.ParseAddr(inner)
	if err != nil || addr.Zone() != "" || addr.Is4In6() || addr.Is6() != bracketed {
		return netip.AddrPort{}, errAuthority
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || strconv.FormatUint(n, 10) != port {
		return netip.AddrPort{}, errAuthority
	}
	return netip.AddrPortFrom(addr, uint16(n)), nil
}

// FormatForwarded writes the forwarded header for one client (RFC 7239 section
// 6): for="192.0.2.1:80", for="[2001:db8::1]:80". The quotes are there because
// a colon is not allowed outside of them.
func FormatForwarded(client netip.AddrPort) string {
	return `for="` + client.String() + `"`
}

// ParseForwarded returns the first for= of a forwarded header (RFC 7239 section
// 4). A node that is unknown, obfuscated ("_hidden") or absent gives the zero
// value; one without a port has port 0. The whole header must be well formed,
// with no parameter twice in one element, whatever it says after the first: a
// header that two readers could understand differently is refused.
func ParseForwarded(s string) (netip.AddrPort, error) {
	if len(s) > maxForwardedBytes {
		return netip.AddrPort{}, fmt.Errorf("%w: longer than %d bytes", errForwarded, maxForwardedBytes)
	}
	p := forwardedParser{rest: s}
	var first netip.AddrPort
	for found := false; ; {
		node, ok, err := p.element()
		if err != nil {
			return netip.AddrPort{}, err
		}
		if ok && !found {
			found = true
			if first, err = parseNode(node); err != nil {
				return netip.AddrPort{}, err
			}
		}
		if p.rest == "" {
			return first, nil
		}
		if !p.skip(',') {
			return netip.AddrPort{}, errForwarded
		}
	}
}

// forwardedParser consumes rest from the left.
type forwardedParser struct{ rest string }

// element reads forwarded-pairs up to a comma or the end and returns the value
// of for=.
func (p *forwardedParser) element() (node string, found bool, err error) {
	var seen []string
	for {
		p.space()
		name := strings.ToLower(p.token())
		if name == "" || !p.skip('=') {
			return "", false, errForwarded
		}
		for _, s := range seen {
			if s == name {
				return "", false, fmt.Errorf("%w: %q twice in one element", errForwarded, name)
			}
		}
		seen = append(seen, name)
		value, err := p.value()
		if err != nil {
			return "", false, err
		}
		if name == "for" {
			node, found = value, true
		}
		p.space()
		if !p.skip(';') {
			return node, found, nil
		}
	}
}

// value reads a token or a quoted-string (RFC 9110 section 5.6.4).
func (p *forwardedParser) value() (string, error) {
	if !p.skip('"') {
		if t := p.token(); t != "" {
			return t, nil
		}
		return "", errForwarded
	}
	var b strings.Builder
	b.Grow(len(p.rest)) // no more than maxForwardedBytes
	for p.rest != "" {
		c := p.rest[0]
		p.rest = p.rest[1:]
		switch {
		case c == '"':
			return b.String(), nil
		case c == '\\':
			if p.rest == "" || !quotable(p.rest[0]) {
				return "", errForwarded
			}
			b.WriteByte(p.rest[0])
			p.rest = p.rest[1:]
		case quotable(c):
			b.WriteByte(c)
		default:
			return "", errForwarded
		}
	}
	return "", fmt.Errorf("%w: quote not closed", errForwarded)
}

func (p *forwardedParser) token() string {
	n := 0
	for n < len(p.rest) && IsTokenByte(p.rest[n]) {
		n++
	}
	t := p.rest[:n]
	p.rest = p.rest[n:]
	return t
}

func (p *forwardedParser) skip(c byte) bool {
	if p.rest == "" || p.rest[0] != c {
		return false
	}
	p.rest = p.rest[1:]
	return true
}

func (p *forwardedParser) space() { p.rest = strings.TrimLeft(p.rest, " \t") }

// parseNode reads node = nodename [":" node-port] (RFC 7239 section 6).
func parseNode(s string) (netip.AddrPort, error) {
	if s == "unknown" || strings.HasPrefix(s, "_") {
		return netip.AddrPort{}, nil
	}
	host, port := s, "0"
	if i := strings.LastIndexByte(s, ':'); i > strings.LastIndexByte(s, ']') {
		host, port = s[:i], s[i+1:]
		if strings.HasPrefix(port, "_") {
			port = "0"
		}
	}
	node, err := parseAddrPort(host, port)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("%w: node %q", errForwarded, s)
	}
	return node, nil
}

// IsTokenByte says whether c is a tchar (RFC 9110 section 5.6.2).
func IsTokenByte(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' ||
		strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0
}

// quotable says whether c may stand in a quoted-string; bytes above 127 may in
// RFC 9110, but no address needs them.
func quotable(c byte) bool { return c == '\t' || c >= ' ' && c < 0x7f }

// HeaderSafe says whether s can go out as a header value: visible ASCII and
// spaces.
func HeaderSafe(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] >= 0x7f {
			return false
		}
	}
	return true
}

// ValidTraceParent says whether s has the form of a traceparent. Tracing must
// never break traffic, so one that has not is dropped, as W3C Trace Context
// section 2.2.1 asks.
func ValidTraceParent(s string) bool {
	if len(s) != traceParentBytes || s[2] != '-' || s[35] != '-' || s[52] != '-' || s[:2] == "ff" {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if i != 2 && i != 35 && i != 52 && !(c >= '0' && c <= '9' || c >= 'a' && c <= 'f') {
			return false
		}
	}
	return true
}
