package route

import "strings"

// MaxPath is the length of the longest path that NormalPath takes, in octets.
const MaxPath = 8 << 10

// NormalPath returns the one form of a request's path in which it is matched and
// forwarded, and false for what is no path, which is to be answered with 400:
//
//   - escapes of unreserved characters are decoded, others have upper-case digits
//     (RFC 3986, sections 6.2.2.1 and 6.2.2.2);
//   - then "." and ".." segments are resolved (section 5.2.4): /a/%2e%2E/b is /b;
//   - octets that are not ASCII are escaped, as RFC 3987, section 3.1 has it.
//
// A path that does not begin with "/", has an escape that is none, or has one of
// backslash, "?", "#", space and control characters, also escaped ones of NUL and
// backslash, is refused. An escaped slash stays escaped, and is part of a segment.
// Empty segments are kept: "//" is not "/". The "*" of OPTIONS is in its one form.
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
		case c == '%' || c >= 0x80:
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
		if escaped && !unreserved(c) || c >= 0x80 {
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

// unreserved is RFC 3986, section 2.3.
func unreserved(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '.' || c == '_' || c == '~'
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
