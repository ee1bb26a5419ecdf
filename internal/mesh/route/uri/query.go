package uri

import "strings"

// Host returns an authority without its port and the dot of a root at its end; an
// address of IPv6 keeps its brackets.
func Host(authority string) string {
	end := len(authority)
	for end > 0 && '0' <= authority[end-1] && authority[end-1] <= '9' {
		end--
	}
	if end > 0 && authority[end-1] == ':' {
		authority = authority[:end-1]
	}
	return strings.TrimSuffix(authority, ".")
}

// Param is one parameter of a query, as it was sent.
type Param struct{ Name, Value string }

// NextParam returns the parameter that begins at a place, and moves that on.
func NextParam(query string, at *int) Param {
	start := *at
	end := strings.IndexByte(query[start:], '&')
	if end < 0 {
		end = len(query) - start
	}
	*at = start + end + 1
	name, value, _ := strings.Cut(query[start:start+end], "=")
	return Param{name, value}
}

// next returns the first character of a text, decoded, and how many octets it is there.
// What looks like an escape and is none stands for itself.
func next(text string, i int) (c byte, n int) {
	switch c = text[i]; {
	case c == '+':
		return ' ', 1
	case c == '%' && i+2 < len(text):
		if high, low := unhex(text[i+1]), unhex(text[i+2]); high < 16 && low < 16 {
			return high<<4 | low, 3
		}
	}
	return c, 1
}

// Unescape appends a text, decoded, and reports whether there was room for all of it.
func Unescape(dst []byte, text string) ([]byte, bool) {
	for i := 0; i < len(text); {
		if len(dst) == cap(dst) {
			return dst, false
		}
		c, n := next(text, i)
		dst = append(dst, c)
		i += n
	}
	return dst, true
}

// EqualsUnescaped reports whether a text is another one when it is decoded.
func EqualsUnescaped(text, decoded string) bool {
	if len(text) < len(decoded) {
		return false
	}
	j := 0
	for i := 0; i < len(text); j++ {
		c, n := next(text, i)
		if j >= len(decoded) || c != decoded[j] {
			return false
		}
		i += n
	}
	return j == len(decoded)
}
