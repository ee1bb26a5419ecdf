// Package stay says which workload a request stays with: that of its session, which a token names, or that of its client,
// where the service asks for that (sessionAffinity: ClientIP). docs/decisions/0112 has the reasons.
//
// It opens no connection, and asks no policy. Nothing here is safe for concurrent use: all of it is one event loop's.
package stay

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/mesh/route"
	"github.com/heddle-mesh/heddle/internal/mesh/route/session"
	"github.com/heddle-mesh/heddle/internal/mesh/workload"
	"github.com/heddle-mesh/heddle/waypoint/http1"
)

// Stay is where one request stays. The zero Stay is nowhere.
type Stay struct {
	// With is the workload to be asked as long as it can be reached; nil where any may be.
	With *mesh.Workload

	session *route.Session // nil of a request that is of none
	backend uint64         // what tokens call the backend
	begins  bool           // the session
}

// Begin is that of the first request of a session at a backend, which tokens call by a name. It is the zero Stay for a rule
// without sessions, of which s is nil.
func Begin(s *route.Session, backend uint64) Stay {
	return Stay{session: s, backend: backend, begins: s != nil}
}

// On is that of a request whose session goes on with a workload.
func On(s *route.Session, backend uint64, with *mesh.Workload) Stay {
	return Stay{With: with, session: s, backend: backend}
}

// Append appends the field with a new token to those of a response, if the workload that it is of is not the one that the
// request's token names. It allocates only then.
func (s *Stay) Append(fields []http1.Field, by *mesh.Workload, now time.Time) []http1.Field {
	if s.session == nil || !s.begins && s.With == by {
		return fields
	}
	return append(fields, Field(s.session, session.At(s.backend, by.Key, now).String()))
}

// Tried appends a workload that has not answered a request, or not as its route wants, to those that are not to be asked
// again. One that it stays with is asked again as long as it is there.
func (s *Stay) Tried(tried []mesh.Key, w *mesh.Workload, there bool) []mesh.Key {
	if there && s.With == w {
		return tried
	}
	return append(tried, w.Key)
}

// Field is what carries a token in a response: a cookie, or the session's header.
func Field(s *route.Session, token string) http1.Field {
	if s.Header {
		return http1.NewField(s.Name, token)
	}
	cookie := s.Name + "=" + token + "; Path=/; HttpOnly"
	if s.Permanent && s.AbsoluteTimeout > 0 {
		cookie += fmt.Sprintf("; Max-Age=%d", int(s.AbsoluteTimeout.Seconds()))
	}
	return http1.NewField("set-cookie", cookie)
}

// Names finds the workloads of a backend by what tokens call them. It is made anew when they change, and then costs a hash
// for each of them; else a look-up.
type Names struct {
	of   []*mesh.Workload
	with map[uint64]*mesh.Workload
}

// Find returns the workload that a token names; nil when it is not among these.
func (n *Names) Find(among []*mesh.Workload, t session.Token) *mesh.Workload {
	if !same(n.of, among) {
		n.of, n.with = among, make(map[uint64]*mesh.Workload, len(among))
		for _, w := range among {
			n.with[session.Name(t.Backend(), w.Key)] = w
		}
	}
	return n.with[t.Workload()]
}

// Client keeps the workload that a client's address leads to, as the requests of a connection ask for the same one.
type Client struct {
	of   []*mesh.Workload
	with *mesh.Workload
}

// With returns the workload that a client stays with: the same at every replica, and the one that the client's own agent
// begins with where there is no waypoint.
func (c *Client) With(addr netip.Addr, among []*mesh.Workload) *mesh.Workload {
	if !same(c.of, among) {
		c.of, c.with = among, workload.ForClient(addr.Unmap(), among)
	}
	return c.with
}

// same reports whether two lists are one: a View changes none.
func same(a, b []*mesh.Workload) bool {
	return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0])
}
