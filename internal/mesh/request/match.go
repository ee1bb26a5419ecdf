package request

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/heddle-mesh/heddle/internal/mesh/route/uri"
)

// Bounds of a Match, in entries and in octets. They are those of the API.
const (
	MaxEntries = 64  // of each list
	MaxHeaders = 16  // conditions
	MaxMethod  = 32  // as long as waypoints take
	MaxHost    = 253 // RFC 1035
	MaxText    = 1024
	MaxName    = 256 // the Gateway API's longest name of a header
)

// maxValues is how many values of a header are compared.
const maxValues = 64

// Pattern is a text, or the beginning of one before a "*", or the end of one behind it; "*"
// alone is any.
type Pattern string

// Patterns returns texts as Patterns; nil for none.
func Patterns(texts []string) (all []Pattern) {
	for _, text := range texts {
		all = append(all, Pattern(text))
	}
	return all
}

// parts returns what a pattern wants, and where.
func (p Pattern) parts() (text string, prefix, suffix bool) {
	n := len(p)
	switch {
	case n > 0 && p[n-1] == '*':
		return string(p[:n-1]), true, false
	case n > 0 && p[0] == '*':
		return string(p[1:]), false, true
	}
	return string(p), false, false
}

// match compares a pattern with a text, ASCII letters of either case alike where fold is set.
func (p Pattern) match(s string, fold bool) bool {
	want, prefix, suffix := p.parts()
	switch {
	case len(s) < len(want):
		return false
	case prefix:
		s = s[:len(want)]
	case suffix:
		s = s[len(s)-len(want):]
	case len(s) != len(want):
		return false
	}
	return s == want || fold && equalFold(s, want)
}

func equalFold(a, b string) bool {
	for i := range len(a) {
		if lower(a[i]) != lower(b[i]) {
			return false
		}
	}
	return len(a) == len(b)
}

func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		return c + 'a' - 'A'
	}
	return c
}

// Match is a set of conditions, of which each that is given must hold: one of the entries of
// a list, none of those of a Not list, each of Headers.
type Match struct {
	// Hosts are names without a port, in lower case.
	Hosts, NotHosts []Pattern
	// Methods are whole.
	Methods, NotMethods []string
	// Paths have no query, and are in the form of uri.NormalPath.
	Paths, NotPaths []Pattern
	Headers         []HeaderMatch
}

// HeaderMatch is a condition on the header of a name, which is in lower case. Without Values
// it must be there.
type HeaderMatch struct {
	Name   string
	Values []Pattern
}

// Match reports whether a request is one of those that m names, for a policy that lets in or
// for one that does not. Where readers differ about a request, a policy that lets in wants
// all readings to be named, and one that does not is content with one:
//
//   - a host is compared without its port, dots at its end and the case, an address of IPv6 in the
//     form of RFC 5952;
//   - a method is compared as it is. A policy that does not let in takes get for GET, too, and
//     NotMethods of one that does;
//   - a path is compared in two forms: that of uri.NormalPath and that of uri.MergedPath;
//   - of what has no path, one that is none, "*", or one of which servers make more than these two
//     forms, nothing is known. It lets in only where any path does;
//   - what is inside a CONNECT is not known: it is let in only where Methods names it;
//   - a header that has several values, in several lines or between commas, lets in only if each
//     of them is named, or the line as a whole by a Pattern without "*", and is refused if any
//     value, or a line as a whole, is named. What follows the 64th value is not known;
//   - a header whose name is another one's to CGI, as x_role is x-role, is refused as that one.
//     It is not there for a policy that lets in, and must be named as well where that one is.
func (m *Match) Match(r *Request, lets bool) bool {
	if r.Method == "CONNECT" && (!lets || !slices.Contains(m.Methods, r.Method)) {
		return !lets
	}
	if len(m.Hosts)+len(m.NotHosts) > 0 {
		var buf [64]byte
		host := hostOf(r.Host, buf[:0])
		if len(m.Hosts) > 0 && !anyOf(m.Hosts, host, true) || anyOf(m.NotHosts, host, true) {
			return false
		}
	}
	if len(m.Methods) > 0 && !method(m.Methods, r.Method, !lets) || len(m.NotMethods) > 0 && method(m.NotMethods, r.Method, lets) {
		return false
	}
	if len(m.Paths)+len(m.NotPaths) > 0 && !m.path(r, lets) {
		return false
	}
	for i := range m.Headers {
		if !m.Headers[i].match(r.Headers, lets) {
			return false
		}
	}
	return true
}

// hostOf is the host of an authority as it is compared but for its case, in buf where that is another form.
func hostOf(authority string, buf []byte) string {
	host := strings.TrimRight(uri.Host(authority), ".")
	if len(host) < 2 || host[0] != '[' {
		return host
	}
	address, err := netip.ParseAddr(host[1 : len(host)-1])
	if err != nil {
		return host
	}
	return text(append(address.AppendTo(append(buf, '[')), ']'))
}

func anyOf(patterns []Pattern, s string, fold bool) bool {
	for _, p := range patterns {
		if p.match(s, fold) {
			return true
		}
	}
	return false
}

func method(methods []string, is string, fold bool) bool {
	for _, m := range methods {
		if m == is || fold && equalFold(m, is) {
			return true
		}
	}
	return false
}

func (m *Match) path(r *Request, lets bool) bool {
	if r.path == "" || r.path == "*" {
		return !lets || slices.Contains(m.Paths, "*") && len(m.NotPaths) == 0
	}
	in, out := m.onePath(r.path)
	if r.merged != r.path {
		in2, out2 := m.onePath(r.merged)
		if lets {
			in, out = in && in2, out || out2
		} else { // there may be a form between the two, which is in by the one and not out by the other
			in, out = in || in2, out && out2
		}
	}
	return in && !out
}

func (m *Match) onePath(path string) (in, out bool) {
	return len(m.Paths) == 0 || anyPath(m.Paths, path), anyPath(m.NotPaths, path)
}

// anyPath is anyOf for a path, of which a suffix cuts no escape in two.
func anyPath(patterns []Pattern, path string) bool {
	for _, p := range patterns {
		if !p.match(path, false) {
			continue
		}
		text, _, suffix := p.parts()
		if at := len(path) - len(text); !suffix || !(at > 0 && path[at-1] == '%' || at > 1 && path[at-2] == '%') {
			return true
		}
	}
	return false
}

// match reports whether the lines of a header hold the condition.
func (h *HeaderMatch) match(lines []Header, lets bool) bool {
	there, left := false, maxValues
	for i := range lines {
		if !alike(lines[i].Name, h.Name) {
			continue
		}
		is := equalFold(lines[i].Name, h.Name)
		if len(h.Values) == 0 {
			if is || !lets {
				return true
			}
			continue
		}
		there = there || is
		if h.line(lines[i].Value, lets, &left) != lets {
			return !lets
		}
	}
	return there && lets
}

// alike reports whether two names are one to CGI (RFC 3875, section 4.1.18) and what came after it, where all
// bytes but letters, digits and "-" are "-".
func alike(a, b string) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range len(a) {
		if dashed(a[i]) != dashed(b[i]) {
			return false
		}
	}
	return true
}

func dashed(c byte) byte {
	if c = lower(c); 'a' <= c && c <= 'z' || '0' <= c && c <= '9' {
		return c
	}
	return '-'
}

// line is match for one line, of which no more values are looked at than are left.
func (h *HeaderMatch) line(value string, lets bool, left *int) bool {
	for _, p := range h.Values {
		if _, prefix, suffix := p.parts(); p.match(value, false) && (!lets || !prefix && !suffix) {
			return true
		}
	}
	for more := true; more; *left-- {
		if *left == 0 {
			return !lets
		}
		var one string
		one, value, more = strings.Cut(value, ",")
		if anyOf(h.Values, strings.Trim(one, " \t"), false) != lets {
			return !lets
		}
	}
	return lets
}

// Validate says what is wrong with a Match, or nil: it must have a condition, within the
// bounds, and each must be one that a request could meet.
func (m *Match) Validate() error {
	errs := []error{
		each("host", m.Hosts, checkHost), each("host", m.NotHosts, checkHost), each("path", m.Paths, checkPath), each("path", m.NotPaths, checkPath),
		each("method", m.Methods, CheckMethod), each("method", m.NotMethods, CheckMethod),
	}
	if len(m.Hosts)+len(m.NotHosts)+len(m.Methods)+len(m.NotMethods)+len(m.Paths)+len(m.NotPaths)+len(m.Headers) == 0 {
		errs = append(errs, errors.New("nothing is said of requests"))
	}
	if len(m.Headers) > MaxHeaders {
		errs = append(errs, fmt.Errorf("%d headers, more than %d", len(m.Headers), MaxHeaders))
	}
	for i := range m.Headers {
		h := &m.Headers[i]
		errs = append(errs, CheckHeader(h.Name), each("value of header "+h.Name, h.Values, CheckValue))
		if h.Name == "upgrade" && len(h.Values) > 0 && !anyOf(h.Values, Upgrade, false) {
			errs = append(errs, fmt.Errorf("header %q: no other upgrade than %q is handed on", h.Name, Upgrade))
		}
	}
	return errors.Join(errs...)
}

func each[T ~string](what string, texts []T, check func(string) error) error {
	if len(texts) > MaxEntries {
		return fmt.Errorf("%d times %s, more than %d", len(texts), what, MaxEntries)
	}
	for _, text := range texts {
		if err := check(string(text)); err != nil {
			return fmt.Errorf("%s %q: %w", what, string(text), err)
		}
	}
	return nil
}

func checkHost(text string) error {
	if strings.ToLower(text) != text {
		return errors.New("is not in lower case")
	}
	return CheckHost(text)
}

func checkPath(text string) error { return CheckPath(text) }
