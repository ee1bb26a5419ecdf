package plan

import (
	"github.com/heddle-mesh/heddle/waypoint/http1"
)

// Fields that say where a request is from. Each that a client sends is taken away, as whoever
// may write them may be anybody; ours are written anew.
var saysWho = [...]string{"x-forwarded-for", "x-forwarded-proto", "x-forwarded-client-cert", "forwarded", "x-real-ip", "x-forwarded-host", "x-forwarded-port",
	"x-forwarded-by", "x-forwarded-server", "x-forwarded-prefix", "x-forwarded-scheme", "x-forwarded-ssl", "x-forwarded-user", "x-forwarded-email"}

// SaysWho returns the name of a field that says where a request is from, in lower case, and "" for
// all others. It allocates for rare ones only.
func SaysWho(name []byte) string {
	const prefix = "x-forwarded-"
	if len(name) < len("forwarded") || name[0]|0x20 != 'x' && name[0]|0x20 != 'f' {
		return ""
	}
	for _, known := range saysWho {
		if fold(name, known) {
			return known
		}
	}
	if len(name) > len(prefix) && fold(name[:len(prefix)], prefix) {
		return string(name)
	}
	return ""
}

// fold reports whether a name is a known one, which is in lower case.
func fold(name []byte, known string) bool {
	if len(name) != len(known) {
		return false
	}
	for i, c := range name {
		if 'A' <= c && c <= 'Z' {
			c |= 0x20
		}
		if c != known[i] {
			return false
		}
	}
	return true
}

// origin has the fields that Forwarded writes, but for their values.
type origin [4]http1.Field

func newOrigin() origin {
	return origin{http1.NewField("x-forwarded-for", ""), http1.NewField("x-forwarded-proto", "http"), http1.NewField("forwarded", ""), http1.NewField("x-forwarded-client-cert", "")}
}

// Forwarded appends the fields that say who a client is: x-forwarded-for, x-forwarded-proto,
// forwarded (RFC 7239) and, when its identity was proven, x-forwarded-client-cert as Envoy
// writes it. Their values lie in buf, which is returned with more behind it.
func (p *Planner) Forwarded(to []http1.Field, buf []byte, c *Client) ([]http1.Field, []byte) {
	at, o := len(buf), p.origin
	addr := c.Addr.Addr().Unmap()
	buf = addr.AppendTo(buf)
	o[0].Value = buf[at:]
	at = len(buf)
	if addr.Is4() {
		buf = append(addr.AppendTo(append(buf, "for="...)), ";proto=http"...)
	} else {
		buf = append(addr.AppendTo(append(buf, `for="[`...)), `]";proto=http`...)
	}
	o[2].Value = buf[at:]
	if c.ID.IsZero() {
		return append(to, o[:3]...), buf
	}
	at = len(buf)
	if p.self != "" {
		buf = append(append(append(buf, "By="...), p.self...), ';')
	}
	buf = append(append(buf, "URI="...), c.ID.String()...)
	o[3].Value = buf[at:]
	return append(to, o[:]...), buf
}
