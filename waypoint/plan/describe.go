package plan

import (
	"bytes"
	"unsafe"

	"github.com/heddle-mesh/heddle/internal/mesh/route"
	"github.com/heddle-mesh/heddle/waypoint/http1"
)

// text is b as a string, for as long as b stays as it is.
func text(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// Read takes in what a plan has to know of a request, for as long as its head stays where it is. It appends to
// remove the names of fields that are taken away because they say who the client is.
func (r *Request) Read(head *http1.Head, remove []string) []string {
	*r = Request{Request: route.Request{Host: text(head.Host), Method: text(head.Method), Headers: r.Headers[:0]}, Target: text(head.Path)}
	for i := range head.Fields {
		f := &head.Fields[i]
		if who := SaysWho(f.Name); who != "" {
			remove = append(remove, who)
		}
		if len(f.Name) == len("content-type") && f.Name[0]|0x20 == 'c' && f.Name[8]|0x20 == 't' {
			r.GRPC = isGRPC(f.Value)
		}
		r.Headers = append(r.Headers, route.Header{Name: text(f.Name), Value: text(f.Value)})
	}
	return remove
}

// isGRPC says that a content type is gRPC's, alone or with "+" or ";" behind it: application/grpc-web is another protocol.
func isGRPC(kind []byte) bool {
	const grpc = "application/grpc"
	return len(kind) >= len(grpc) && text(kind[:len(grpc)]) == grpc && (len(kind) == len(grpc) || kind[len(grpc)] == '+' || kind[len(grpc)] == ';' || kind[len(grpc)] == ' ')
}

// Idempotent says that a request may be sent again (RFC 9110 section 9.2.2).
func Idempotent(head *http1.Head) bool {
	switch text(head.Method) {
	case "GET", "HEAD", "OPTIONS", "PUT", "DELETE":
		return !head.Upgrade
	}
	return false
}

// Origin is what a request says of where it is from, for CORS; "" when it says nothing.
func Origin(head *http1.Head) string {
	for i := range head.Fields {
		if f := &head.Fields[i]; bytes.EqualFold(f.Name, []byte("origin")) {
			return string(f.Value)
		}
	}
	return ""
}
