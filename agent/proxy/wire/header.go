// Package wire has the words of a tunnel: what its peer is told of a connection,
// how far what the peer says is believed, and the mesh's closed list of reasons for
// what peers, sockets and relays say. It keeps nothing.
package wire

import (
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"math/rand/v2"
	"net/url"
	"strings"
	"sync/atomic"

	"github.com/heddle-mesh/heddle/internal/hbone"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// Baggage describes the source workload in the keys that HBONE peers read
// (W3C Baggage; OpenTelemetry's resource names).
func Baggage(w *mesh.Workload) string {
	service := w.Labels["app.kubernetes.io/name"]
	if service == "" {
		service = w.Labels["app"]
	}
	if service == "" {
		service = w.Name
	}
	members := [][2]string{
		{"k8s.namespace.name", w.Namespace}, {"k8s.pod.name", w.Name}, {"service.name", service},
	}
	version := w.Labels["app.kubernetes.io/version"]
	if version == "" {
		version = w.Labels["version"]
	}
	if version != "" {
		members = append(members, [2]string{"service.version", version})
	}
	var b strings.Builder
	for i, m := range members {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(m[0] + "=" + url.PathEscape(m[1]))
	}
	return b.String()
}

// Described is the Baggage of a workload, written once for each time that it
// changes. It is safe for concurrent use.
type Described struct{ last atomic.Pointer[described] }

// described is the baggage of a workload as one View has it.
type described struct {
	src  *mesh.Workload
	text string
}

// Of describes what the workload is at the moment.
func (d *Described) Of(src *mesh.Workload) string {
	if last := d.last.Load(); last != nil && last.src == src {
		return last.text
	}
	now := &described{src, Baggage(src)}
	d.last.Store(now)
	return now.text
}

// Printed is the fingerprint of a workload's certificate, made once for each. It is
// safe for concurrent use.
type Printed struct{ last atomic.Pointer[printed] }

// printed keeps the certificate, so that no other comes to lie at its address.
type printed struct {
	cert  *tls.Certificate
	print [32]byte
}

// Of is the fingerprint of what the certificate is at the moment, which must not be
// changed.
func (p *Printed) Of(cert *tls.Certificate) [32]byte {
	if last := p.last.Load(); last != nil && last.cert == cert {
		return last.print
	}
	now := &printed{cert, hbone.Fingerprint(cert)}
	p.last.Store(now)
	return now.print
}

// TraceParent begins a trace that is not sampled (W3C Trace Context, section
// 3.2): the flow's two records can be matched by it.
func TraceParent() string {
	id := make([]byte, 0, 24)
	for _, part := range [...]uint64{rand.Uint64(), rand.Uint64() | 1, rand.Uint64() | 1} {
		id = binary.BigEndian.AppendUint64(id, part)
	}
	text := append(make([]byte, 0, 55), "00-"...)
	text = hex.AppendEncode(text, id[:16])
	text = append(text, '-')
	text = hex.AppendEncode(text, id[16:])
	return string(append(text, "-00"...))
}
