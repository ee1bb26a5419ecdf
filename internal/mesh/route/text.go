package route

import "strings"

// hostOf returns an authority without its port and the dot of a root at its end; an
// address of IPv6 keeps its brackets.
func hostOf(authority string) string {
	end := len(authority)
	for end > 0 && '0' <= authority[end-1] && authority[end-1] <= '9' {
		end--
	}
	if end > 0 && authority[end-1] == ':' {
		authority = authority[:end-1]
	}
	return strings.TrimSuffix(authority, ".")
}

// lower appends a text in lower case: only ASCII letters have one here.
func lower(dst []byte, text string) []byte {
	for i := range len(text) {
		c := text[i]
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		dst = append(dst, c)
	}
	return dst
}

// fold reports whether two texts are the same but for the case of ASCII letters.
func fold(a, b string) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range len(a) {
		x, y := a[i], b[i]
		if x == y {
			continue
		}
		if x |= 0x20; x != y|0x20 || x < 'a' || x > 'z' {
			return false
		}
	}
	return true
}

func (h *Header) isHost() bool { return fold(h.Name, "host") }

// field returns the place of the first header of a name, or -1, and whether there is
// another.
func (r *Request) field(name string) (first int, again bool) {
	first = -1
	for i := range r.Headers {
		if !fold(r.Headers[i].Name, name) {
			continue
		}
		if first >= 0 {
			return first, true
		}
		first = i
	}
	return first, false
}

// joined returns the value of a header that is repeated, of which it is given the first.
// That is work, which counts.
func (s *search) joined(first int) string {
	name := s.req.Headers[first].Name
	separator := ", "
	if fold(name, "cookie") {
		separator = "; "
	}
	var b strings.Builder
	b.WriteString(s.req.Headers[first].Value)
	for _, h := range s.req.Headers[first+1:] {
		if fold(h.Name, name) {
			b.WriteString(separator)
			b.WriteString(h.Value)
		}
	}
	s.work -= 16 * b.Len()
	return b.String()
}

// param is one parameter of a query, as it was sent.
type param struct {
	start       int
	name, value string
}

// nextParam returns the parameter that begins at a place, and moves that on.
func nextParam(query string, at *int) param {
	start := *at
	end := strings.IndexByte(query[start:], '&')
	if end < 0 {
		end = len(query) - start
	}
	*at = start + end + 1
	name, value, _ := strings.Cut(query[start:start+end], "=")
	return param{start, name, value}
}

// firstOf reports whether a parameter is the first of its name, which is given decoded.
func firstOf(query string, p param, name []byte) bool {
	for at := 0; at < p.start; {
		if before := nextParam(query, &at); equalsUnescaped(before.name, string(name)) {
			return false
		}
	}
	return true
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

// unescape appends a text, decoded: at most as many octets as it has.
func unescape(dst []byte, text string) []byte {
	for i := 0; i < len(text); {
		c, n := next(text, i)
		dst = append(dst, c)
		i += n
	}
	return dst
}

// equalsUnescaped reports whether a text is another one when it is decoded.
func equalsUnescaped(text, decoded string) bool {
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
