// Package grammar has the pieces of RFC 9110 and RFC 3986 that HTTP/1.1's heads are
// made of: classes of bytes, tokens, lists, hosts, paths. It finds and compares, and decides nothing.
package grammar

import (
	"bytes"
	"net/netip"
)

// What a byte may stand in.
const (
	Token    = 1 << iota // RFC 9110 section 5.6.2
	Value                // HTAB, SP, VCHAR and obs-text: section 5.5
	Target               // VCHAR without " # < >: RFC 3986, and what browsers leave as it is
	HostByte             // letters, digits and - . _ ~
	Hex
)

var classes = [256]uint8{
	0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0,
	0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
	2, 7, 2, 3, 7, 7, 7, 7, 6, 6, 7, 7, 6, 15, 15, 6,
	31, 31, 31, 31, 31, 31, 31, 31, 31, 31, 6, 6, 2, 6, 2, 6,
	6, 31, 31, 31, 31, 31, 31, 15, 15, 15, 15, 15, 15, 15, 15, 15,
	15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 6, 6, 6, 7, 15,
	7, 31, 31, 31, 31, 31, 31, 15, 15, 15, 15, 15, 15, 15, 15, 15,
	15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 6, 7, 6, 15, 0,
	2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2,
	2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2,
	2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2,
	2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2,
	2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2,
	2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2,
	2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2,
	2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2,
}

func Is(c byte, class uint8) bool { return classes[c]&class != 0 }

// Span is how many bytes at the beginning of b are of a class.
func Span(b []byte, class uint8) int {
	for i, c := range b {
		if classes[c]&class == 0 {
			return i
		}
	}
	return len(b)
}

func IsBlank(c byte) bool { return c == ' ' || c == '\t' }

// Blanks is how many SP and HTAB b begins with.
func Blanks(b []byte) (n int) {
	for n < len(b) && IsBlank(b[n]) {
		n++
	}
	return n
}

// Trim takes the optional whitespace off (RFC 9110 section 5.6.3).
func Trim(b []byte) []byte {
	b = b[Blanks(b):]
	for len(b) > 0 && IsBlank(b[len(b)-1]) {
		b = b[:len(b)-1]
	}
	return b
}

func Lower(c byte) byte {
	if c >= 'A' && c <= 'Z' {
		c += 'a' - 'A'
	}
	return c
}

// IsOdd says that a byte of a name is no letter, no digit and no dash.
func IsOdd(c byte) bool {
	lower := Lower(c)
	return c != '-' && (c < '0' || c > '9') && (lower < 'a' || lower > 'z')
}

// Dashed appends a name with a dash in place of every odd byte: what CGI, and what came after it,
// make one name of.
func Dashed(to, name []byte) []byte {
	from := len(to)
	to = append(to, name...)
	for i, c := range to[from:] {
		if IsOdd(c) {
			to[from+i] = '-'
		}
	}
	return to
}

// FoldEqual compares ASCII without case.
func FoldEqual[S []byte | string](b []byte, s S) bool {
	if len(b) != len(s) {
		return false
	}
	for i, c := range b {
		if Lower(c) != Lower(s[i]) {
			return false
		}
	}
	return true
}

func HasFoldPrefix(b []byte, s string) bool { return len(b) >= len(s) && FoldEqual(b[:len(s)], s) }

// NextToken cuts the first token off a list (RFC 9110 section 5.6.1). Empty
// elements are no elements; anything but tokens and commas is not ok.
func NextToken(list []byte) (token, rest []byte, ok bool) {
	for len(list) > 0 && (IsBlank(list[0]) || list[0] == ',') {
		list = list[1:]
	}
	n := Span(list, Token)
	token, rest = list[:n], list[n:]
	rest = rest[Blanks(rest):]
	return token, rest, len(rest) == 0 || rest[0] == ',' && n > 0
}

// ListHas looks for a token in a list; anything else in it may be of any form.
func ListHas(list []byte, token string) bool {
	for len(list) > 0 {
		end := 0
		for end < len(list) && list[end] != ',' {
			end++
		}
		if FoldEqual(Trim(list[:end]), token) {
			return true
		}
		list = list[min(end+1, len(list)):]
	}
	return false
}

func HexValue(c byte) uint64 {
	switch {
	case c <= '9':
		return uint64(c - '0')
	default:
		return uint64(Lower(c)-'a') + 10
	}
}

// CheckHost checks a host with or without a port (RFC 3986 section 3.2), narrower than the
// grammar: nothing escaped, no sub-delims, no empty host, no empty port.
func CheckHost(v []byte) (ok, hasPort bool) {
	n := 0
	if len(v) > 0 && v[0] == '[' {
		end := bytes.IndexByte(v, ']')
		if end < 0 {
			return false, false
		}
		a, err := netip.ParseAddr(string(v[1:end]))
		if err != nil || !a.Is6() || a.Zone() != "" {
			return false, false
		}
		n = end + 1
	} else if n = Span(v, HostByte); n == 0 {
		return false, false
	}
	if n == len(v) {
		return true, false
	}
	port := v[n+1:]
	if v[n] != ':' || len(port) == 0 || len(port) > 5 {
		return false, false
	}
	number := 0
	for _, c := range port {
		if c < '0' || c > '9' {
			return false, false
		}
		number = number*10 + int(c-'0')
	}
	return number <= 65535, true
}

// CheckPath refuses in the path of a target what servers read differently: a backslash, which is a
// slash to some, an escape that is none, and an escaped NUL, which ends some strings.
// A query is opaque.
func CheckPath(path []byte) bool {
	for i := 0; i < len(path); i++ {
		switch path[i] {
		case '?':
			return true
		case '\\':
			return false
		case '%':
			if i+2 >= len(path) || !Is(path[i+1], Hex) || !Is(path[i+2], Hex) || path[i+1] == '0' && path[i+2] == '0' {
				return false
			}
		}
	}
	return true
}

// Quoted is the length of the quoted-string that b begins with (RFC 9110 section
// 5.6.4), 0 when it does not.
func Quoted(b []byte) int {
	if len(b) == 0 || b[0] != '"' {
		return 0
	}
	for i := 1; i < len(b) && Is(b[i], Value); i++ {
		switch b[i] {
		case '"':
			return i + 1
		case '\\':
			if i++; i == len(b) || !Is(b[i], Value) {
				return 0
			}
		}
	}
	return 0
}

// Extensions checks *( BWS ";" BWS name [ BWS "=" BWS value ] ), of which nothing
// is used (RFC 9112 section 7.1.1). What is not of this form is not skipped: readers
// that skip differ about where it ends. When it is not ok, at is the byte that is wrong, and
// begun says whether there was a ";" before it.
func Extensions(b []byte) (at int, begun, ok bool) {
	for rest := b; len(rest) > 0; begun = true {
		rest = rest[Blanks(rest):]
		if len(rest) == 0 || rest[0] != ';' {
			return len(b) - len(rest), begun, false
		}
		rest = rest[1+Blanks(rest[1:]):]
		n := Span(rest, Token)
		if n == 0 {
			return len(b) - len(rest), true, false
		}
		rest = rest[n:]
		gap := Blanks(rest)
		if gap == len(rest) || rest[gap] != '=' {
			continue
		}
		rest = rest[gap+1:]
		rest = rest[Blanks(rest):]
		if n = Quoted(rest); n == 0 {
			n = Span(rest, Token)
		}
		if n == 0 {
			return len(b) - len(rest), true, false
		}
		rest = rest[n:]
	}
	return len(b), begun, true
}
