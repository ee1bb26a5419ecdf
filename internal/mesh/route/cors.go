package route

import (
	"strconv"
	"strings"

	"github.com/heddle-mesh/heddle/internal/mesh/route/uri"
)

// CORS says what browsers may let pages of other origins do (Gateway API,
// HTTPCORSFilter; https://fetch.spec.whatwg.org/#http-cors-protocol).
type CORS struct {
	// Origins are "*" alone, or of the form scheme://host or scheme://host:port, in lower case, where
	// a "*" in the host stands for any characters.
	Origins []string
	// Credentials lets requests have cookies.
	Credentials bool
	// Methods, Headers and Expose may each be "*" alone.
	Methods, Headers, Expose []string
	// MaxAge is how long a browser may keep the answer to a preflight, in seconds.
	MaxAge int
}

// Preflight returns the headers of the answer to a browser that asks before it makes
// a request, and false when the request is none of that kind. The answer has status 204, and is not
// the backend's; without headers it refuses.
func (c *CORS) Preflight(r *Request) ([]Header, bool) {
	method := r.first("access-control-request-method")
	if r.Method != "OPTIONS" || method == "" || r.first("origin") == "" {
		return nil, false
	}
	answer := c.allowed(r)
	if answer == nil {
		return nil, true
	}
	if !c.anyone() {
		answer = append(answer, Header{"vary", "Origin"})
	}
	answer = c.list(answer, "access-control-allow-methods", c.Methods, method)
	answer = c.list(answer, "access-control-allow-headers", c.Headers, r.first("access-control-request-headers"))
	return append(answer, Header{"access-control-max-age", strconv.Itoa(c.MaxAge)}), true
}

// Apply returns the headers of a backend's response to a request after the change. The
// backend's own word on other origins does not count: all of its access-control-* headers
// are gone. It changes the slice that it is given, and appends to it.
func (c *CORS) Apply(r *Request, fields []Header) []Header {
	const ours = "access-control-"
	kept := fields[:0]
	for _, f := range fields {
		if len(f.Name) < len(ours) || !fold(f.Name[:len(ours)], ours) {
			kept = append(kept, f)
		}
	}
	if !c.anyone() { // also when the request has no origin, or the answer would be kept for others
		kept = append(kept, Header{"vary", "Origin"})
	}
	kept = append(kept, c.allowed(r)...)
	if !c.allows(r.first("origin")) || c.Credentials && len(c.Expose) == 1 && c.Expose[0] == "*" {
		return kept // with credentials "*" would be the name of a header
	}
	return c.list(kept, "access-control-expose-headers", c.Expose, "")
}

// anyone reports whether the answer to every origin is the same.
func (c *CORS) anyone() bool { return len(c.Origins) == 1 && c.Origins[0] == "*" && !c.Credentials }

// allowed returns what is said to every request of an origin that is allowed, or nil.
func (c *CORS) allowed(r *Request) []Header {
	origin := r.first("origin")
	if !c.allows(origin) {
		return nil
	}
	if c.anyone() {
		return []Header{{"access-control-allow-origin", "*"}}
	}
	answer := []Header{{"access-control-allow-origin", origin}}
	if c.Credentials {
		answer = append(answer, Header{"access-control-allow-credentials", "true"})
	}
	return answer
}

// allows reports whether an origin is among those allowed.
func (c *CORS) allows(origin string) bool {
	lowered := strings.ToLower(origin)
	if origin == "" {
		return false
	}
	for _, allowed := range c.Origins {
		if allowed == "*" || uri.OriginMatches(allowed, lowered) {
			return true
		}
	}
	return false
}

// list adds a header with a list; "*" is what was asked for, where credentials do not
// allow to say "*".
func (c *CORS) list(answer []Header, name string, values []string, asked string) []Header {
	value := strings.Join(values, ", ")
	if value == "*" && c.Credentials {
		value = asked
	}
	if value == "" {
		return answer
	}
	return append(answer, Header{name, value})
}

// first returns the value of the first header of a name; "" when there is none.
func (r *Request) first(name string) string {
	if at, _ := r.field(name); at >= 0 {
		return r.Headers[at].Value
	}
	return ""
}
