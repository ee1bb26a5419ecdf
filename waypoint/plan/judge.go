package plan

import (
	"bytes"
	"strings"
	"unsafe"

	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/waypoint/http1"
)

// Authorize asks policy whether a client may reach a workload at a port: with a request, or nil with a
// connection of which none is known.
func Authorize(v *mesh.View, c *Client, to *mesh.Workload, port uint16, r *mesh.Request) mesh.Decision {
	_, d := v.Authorize(mesh.Connection{Peer: c.ID, Source: c.Addr.Addr(), Destination: to, Port: port, Request: r})
	return d
}

// AuthorizeSent is Authorize with the request that a head is when it is sent, as e changes it.
func (p *Planner) AuthorizeSent(v *mesh.View, c *Client, to *mesh.Workload, port uint16, head *http1.Head, e *http1.Edit) mesh.Decision {
	if !v.AboutRequests(to) {
		return Authorize(v, c, to, port, nil)
	}
	sent(&p.sent, head, e)
	return Authorize(v, c, to, port, &p.sent)
}

// sent reads what policies look at of a request as the workload gets it: what a route has made of it, with the
// fields that say who the client is, and without those that are not forwarded. It lies where the head and the edit lie.
func sent(r *mesh.Request, head *http1.Head, e *http1.Edit) {
	host, path, headers := head.Host, head.Path, r.Headers[:0]
	if e.Host != nil {
		host = e.Host
	}
	if e.Path != nil {
		path = e.Path
	}
	for i := range head.Fields {
		if f := &head.Fields[i]; !head.Hop(f) && !removed(e, f.Name) {
			headers = append(headers, mesh.RequestHeader{Name: text(f.Name), Value: text(f.Value)})
		}
	}
	if head.Upgrade { // whose lines are written anew
		headers = append(headers, mesh.RequestHeader{Name: "upgrade", Value: "websocket"})
	}
	for i := range e.Add {
		headers = append(headers, mesh.RequestHeader{Name: text(e.Add[i].Name), Value: text(e.Add[i].Value)})
	}
	*r = mesh.Request{Host: text(host), Method: text(head.Method), Headers: headers}
	path, _, _ = bytes.Cut(path, []byte("?"))
	r.SetPath(text(path)) // nothing is known of what is none
}

func removed(e *http1.Edit, name []byte) bool {
	for _, gone := range e.Remove {
		if len(gone) == len(name) && strings.EqualFold(gone, text(name)) {
			return true
		}
	}
	return false
}

// Sent is a request as it is sent, kept to be judged as long as it is under way.
type Sent struct {
	request mesh.Request
	text    []byte
	kept    bool
}

// mostSent is how much memory is kept for another one.
const mostSent = 8 << 10

// Keep keeps the request that a head is, as e changes it.
func (s *Sent) Keep(p *Planner, head *http1.Head, e *http1.Edit) {
	sent(&p.sent, head, e)
	s.text, s.kept = p.sent.Keep(&s.request, s.text), true
}

// Held is how much memory what was kept takes, in bytes.
func (s *Sent) Held() int {
	if !s.kept {
		return 0
	}
	return cap(s.text) + cap(s.request.Headers)*int(unsafe.Sizeof(mesh.RequestHeader{}))
}

// Copy is what was kept, in no more memory than it needs: for what goes on for long.
func (s *Sent) Copy() (c Sent) {
	if s.kept {
		c.request.Headers = make([]mesh.RequestHeader, 0, len(s.request.Headers))
		c.text, c.kept = s.request.Keep(&c.request, make([]byte, 0, len(s.text))), true
	}
	return c
}

// Request is what was kept, nil before.
func (s *Sent) Request() *mesh.Request {
	if !s.kept {
		return nil
	}
	return &s.request
}

// Reset forgets it, and keeps the memory.
func (s *Sent) Reset() {
	if s.kept = false; cap(s.text) > mostSent {
		*s = Sent{}
	}
}
