package route

import (
	"strings"

	"github.com/heddle-mesh/heddle/internal/mesh/route/uri"
)

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
func (s *search) joined(first int) string {
	name := s.req.Headers[first].Name
	separator := ", "
	if fold(name, "cookie") {
		separator = "; "
	}
	rest, size := s.req.Headers[first+1:], len(s.req.Headers[first].Value)
	for i := range rest {
		if fold(rest[i].Name, name) {
			size += len(separator) + len(rest[i].Value)
		}
	}
	if !s.spend(size / 2) {
		return ""
	}
	var b strings.Builder
	b.Grow(size)
	b.WriteString(s.req.Headers[first].Value)
	for i := range rest {
		if fold(rest[i].Name, name) {
			b.WriteString(separator)
			b.WriteString(rest[i].Value)
		}
	}
	return b.String()
}

// decoded returns a text without escapes. It allocates when there are any.
func (s *search) decoded(text string) string {
	if strings.IndexByte(text, '%') < 0 && strings.IndexByte(text, '+') < 0 || !s.spend(len(text)/2) {
		return text
	}
	plain, _ := uri.Unescape(make([]byte, 0, len(text)), text)
	return string(plain)
}
