package route

import (
	"strconv"
	"strings"

	"github.com/heddle-mesh/heddle/internal/mesh/route/uri"
)

// Apply returns a path after the change, in the form of uri.NormalPath if Value is. Prefix is
// that of the Decision. The "*" of OPTIONS is about no path, and stays.
func (c *PathChange) Apply(path, prefix string) string {
	if path == "*" {
		return path
	}
	changed := c.Value
	if c.Prefix {
		changed = strings.TrimSuffix(c.Value, "/") + strings.TrimPrefix(path, prefix)
	}
	if changed == "" {
		return "/"
	}
	return changed
}

// Location returns the value of the Location header for a request that came by a scheme,
// "http" or "https". The port is left out where it is the scheme's own; else it is
// that of the redirect, of its scheme, or the one that the request came to (Gateway API,
// HTTPRequestRedirectFilter). The query stays.
func (r *Redirect) Location(req *Request, scheme, prefix string) string {
	port := r.Port
	if port == 0 {
		port = req.To.Port
		if r.Scheme != "" {
			port = uri.SchemePort(r.Scheme)
		}
	}
	if r.Scheme != "" {
		scheme = r.Scheme
	}
	host := r.Hostname
	if host == "" {
		host = uri.Host(req.Host)
	}
	if port != 0 && port != uri.SchemePort(scheme) {
		host += ":" + strconv.Itoa(int(port))
	}
	path := req.Path
	if r.Path != nil {
		path = r.Path.Apply(path, prefix)
	}
	if path == "*" {
		path = "" // the server as a whole (RFC 9112, section 3.2.4)
	}
	if req.Query != "" {
		path += "?" + req.Query
	}
	return scheme + "://" + host + path
}

// Apply returns headers after the change: the fields to remove are gone, those to set are
// there once, those to add are there too, as lines of their own: that means the same as
// behind a comma (RFC 9110, section 5.3). It changes the slice that it is given, and appends to it.
func (h *Headers) Apply(fields []Header) []Header {
	for _, name := range h.Remove {
		fields = without(fields, name)
	}
	for _, set := range h.Set {
		fields = append(without(fields, set.Name), set)
	}
	return append(fields, h.Add...)
}

func without(fields []Header, name string) []Header {
	kept := fields[:0]
	for _, f := range fields {
		if !fold(f.Name, name) {
			kept = append(kept, f)
		}
	}
	return kept
}
