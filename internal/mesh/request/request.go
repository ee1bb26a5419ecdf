// Package request says whether a request over HTTP is one that a policy names: by its host,
// its method, its path and its headers. What two readers of a request could read differently
// never lets anybody in, and is refused by whoever refuses either reading. All of it is pure,
// and allocates nothing but where it says so.
package request

import "github.com/heddle-mesh/heddle/internal/mesh/route/uri"

// Header is one line of a request's head, its name in any case.
type Header struct{ Name, Value string }

// Request is what policies look at of a request, as its workload gets it.
type Request struct {
	// Host is the authority, with its port if there is one.
	Host string
	// Method is the HTTP method (RFC 9110, section 9); that of a call of gRPC is POST.
	Method string
	// Headers are in their order, without HTTP/2's pseudo-headers.
	Headers []Header

	path, merged string
}

// SetPath takes a path without its query, or "" of a CONNECT, which has none. It reports false
// for what is no path: nothing is known of it then, as of a CONNECT's, and of one of which servers
// make more than two (uri.MergedPath). It allocates where the
// path is not in the form of uri.NormalPath, or has what readers read differently.
func (r *Request) SetPath(raw string) bool {
	r.path, r.merged = "", ""
	if raw == "" {
		return true
	}
	path, ok := uri.NormalPath(raw)
	if !ok {
		return false
	}
	if merged, sure := uri.MergedPath(path); sure {
		r.path, r.merged = path, merged
	}
	return true
}

// Path is the path in the form of uri.NormalPath; "" where nothing is known of it.
func (r *Request) Path() string { return r.path }

// Keep copies all that a Request has to memory of its own, as what it was read from will be gone:
// the texts to buf, which is returned with them in it. It uses the memory of to again.
func (r *Request) Keep(to *Request, buf []byte) []byte {
	n := len(r.Host) + len(r.Method) + len(r.path)
	if r.merged != r.path {
		n += len(r.merged)
	}
	for i := range r.Headers {
		n += len(r.Headers[i].Name) + len(r.Headers[i].Value)
	}
	if cap(buf) < n {
		buf = make([]byte, 0, n+n/2)
	}
	buf = buf[:0]
	keep := func(s string) string {
		at := len(buf)
		buf = append(buf, s...)
		return text(buf[at:])
	}
	headers := to.Headers[:0]
	for i := range r.Headers {
		headers = append(headers, Header{keep(r.Headers[i].Name), keep(r.Headers[i].Value)})
	}
	*to = Request{Host: keep(r.Host), Method: keep(r.Method), Headers: headers, path: keep(r.path)}
	if to.merged = to.path; r.merged != r.path {
		to.merged = keep(r.merged)
	}
	return buf
}
