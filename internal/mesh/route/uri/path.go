// Package uri has what URIs of requests are compared by: the one form of a path, the host
// of an authority, the parameters of a query. It is pure, and allocates only where it says so.
package uri

import "strings"

// MaxPath is the length of the longest path that NormalPath takes, in octets.
const MaxPath = 8 << 10

// NormalPath returns the one form of a request's path in which it is matched and
// forwarded, and false for what is no path, which is to be answered with 400:
//
//   - escapes are decoded of unreserved characters (RFC 3986, section 6.2.2.2), and of
//     those others that stand for themselves in a segment (section 3.3): ! $ & ' ( ) * , =
//     : and @;
//   - what may not stand in a path is escaped: " < > ^ ` { | } [ ] and octets that are not
//     ASCII (RFC 3987, section 3.1);
//   - escapes have upper-case digits (section 6.2.2.1);
//   - then "." and ".." segments are resolved (section 5.2.4): /a/%2e%2E/b is /b.
//
// A path that does not begin with "/", has an escape that is none, or has one of
// backslash, "?", "#", space and control characters, also escaped ones of NUL and
// backslash, is refused. The "*" of OPTIONS is in its one form.
//
// What backends read in different ways stays as it is, and is not the same here: "//" and
// "/"; %2F, which is part of a segment, and "/"; ";" and %3B, "+" and %2B; what follows a
// ";" is part of the segment.
//
// It allocates only when the form is another one. The result is at most three times
// as long.
func NormalPath(path string) (string, bool) {
	if path == "*" {
		return path, true
	}
	if path == "" || path[0] != '/' || len(path) > MaxPath {
		return "", false
	}
	plain, dots := true, false
	for i := range len(path) {
		switch c := path[i]; {
		case c <= ' ' || c == 0x7f || c == '\\' || c == '?' || c == '#':
			return "", false
		case c == '%' || !standing(c):
			plain = false
		case c == '.' && path[i-1] == '/':
			dots = dots || isDots(path[i:])
		}
	}
	if !plain {
		decoded, ok := reescape(path)
		if !ok {
			return "", false
		}
		path, dots = decoded, strings.Contains(decoded, "/.")
	}
	if dots {
		path = withoutDots(path)
	}
	return path, true
}

const upperHex = "0123456789ABCDEF"

// reescape brings all escapes into their one form.
func reescape(path string) (string, bool) {
	var b strings.Builder
	b.Grow(len(path))
	for i := 0; i < len(path); i++ {
		c, escaped := path[i], false
		if c == '%' {
			if i+2 >= len(path) {
				return "", false
			}
			high, low := unhex(path[i+1]), unhex(path[i+2])
			if high > 15 || low > 15 {
				return "", false
			}
			c, escaped = high<<4|low, true
			i += 2
			if c == 0 || c == '\\' {
				return "", false
			}
		}
		if !standing(c) || escaped && (c == '/' || c == ';' || c == '+') {
			b.WriteByte('%')
			b.WriteByte(upperHex[c>>4])
			b.WriteByte(upperHex[c&15])
		} else {
			b.WriteByte(c)
		}
	}
	return b.String(), true
}

// unhex returns the value of a hexadecimal digit, or more than 15.
func unhex(c byte) byte {
	switch {
	case '0' <= c && c <= '9':
		return c - '0'
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10
	case 'A' <= c && c <= 'F':
		return c - 'A' + 10
	}
	return 0xff
}

// standing reports whether a character stands for itself in a path: it is a slash, or may be
// in a segment (pchar of RFC 3986, section 3.3).
func standing(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("/-._~!$&'()*+,;=:@", c) >= 0
}

// isDots reports whether the segment that rest begins with is "." or "..".
func isDots(rest string) bool {
	segment, _, _ := strings.Cut(rest, "/")
	return segment == "." || segment == ".."
}

// withoutDots is "remove_dot_segments" of RFC 3986, section 5.2.4, for a path that begins
// with "/".
func withoutDots(path string) string {
	segments := strings.Split(path[1:], "/")
	kept := segments[:0]
	for i, segment := range segments {
		last := i == len(segments)-1
		switch segment {
		case "..":
			kept = kept[:max(0, len(kept)-1)]
			fallthrough
		case ".":
			if last {
				kept = append(kept, "")
			}
		default:
			kept = append(kept, segment)
		}
	}
	return "/" + strings.Join(kept, "/")
}

// MergedPath returns the path that servers make of one in the form of NormalPath which read
// more into it than is said: an escaped slash is one, what follows a ";" (escaped or not) in a
// segment is no part of it, "//" is "/", and only then "." and ".." are resolved.
//
// To match a rule in both forms is to match it whoever reads the path, as long as sure is set. It is
// not where servers make still other paths of it, by how much of this they do and in which order:
// where a ";" comes with an escaped slash, with an escaped ";" or with "//", and where "." or ".."
// are left to resolve.
//
// It allocates only when the form is another one.
func MergedPath(path string) (merged string, sure bool) {
	raw, escaped, slash := strings.ContainsRune(path, ';'), strings.Contains(path, "%3B"), strings.Contains(path, "%2F")
	if !raw && !escaped && !slash && !strings.Contains(path, "//") {
		return path, true
	}
	var b strings.Builder
	b.Grow(len(path))
	param, last := false, byte(0)
	for i := 0; i < len(path); i++ {
		c := path[i]
		if c == '%' && i+2 < len(path) && (path[i+1:i+3] == "2F" || path[i+1:i+3] == "3B") {
			c = unhex(path[i+1])<<4 | unhex(path[i+2])
			i += 2
		}
		switch {
		case c == ';':
			param = true
		case c == '/' && last == '/':
			param, slash = false, true
		case c == '/' || !param:
			param = param && c != '/'
			b.WriteByte(c)
			last = c
		}
	}
	merged = withoutDots(b.String())
	return merged, merged == b.String() && !(raw && (escaped || slash)) && !(escaped && slash)
}
