package explain

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/internal/mesh"
)

// ours reports whether an agent of this mesh carries what a source opens.
func (m *Model) ours(src *mesh.Workload) bool {
	return src != nil && src.Enrolled && !m.Foreign(src.Identity)
}

// beyond is what becomes of a connection to a workload of another trust domain, as far as
// it is decided here.
func (m *Model) beyond(e *Endpoint, src, w *mesh.Workload) {
	switch {
	case !m.ours(src): // nobody here is on the way
		e.Path, e.Verdict = PathPlaintext, "allow"
	case m.Revoked(w.Identity) || m.Revoked(src.Identity):
		e.Reason = mesh.ReasonIdentityRevoked.String()
	default:
		e.Path, e.Verdict, e.Reason = PathTunnel, "allow", mesh.ReasonNoPolicy.String()
	}
}

// beyond says what is not decided here of a connection to a workload of another trust domain.
func (a *Answer) beyond(m *Model, src, w *mesh.Workload) {
	switch {
	case !m.Foreign(w.Identity):
	case !m.ours(src):
		a.Notes = append(a.Notes, neitherEnd)
	case a.Verdict == "allow":
		a.Notes = append(a.Notes, fmt.Sprintf("the destination is declared in spec.federation of the Mesh: who answers has to prove exactly its identity, by the roots of %s, which `heddle certs` lists; what policies say there is not known here", w.Identity.TrustDomain()))
	}
}

// foreignDestination finds a declared workload of another trust domain by its identity, with
// the port behind it.
func foreignDestination(view *mesh.View, text string) (target, error) {
	name, port := text, ""
	if i := strings.LastIndexByte(text, ':'); i > len("spiffe:") {
		name, port = text[:i], text[i+1:]
	}
	id, err := spiffeid.FromString(name)
	if err != nil {
		return target{}, fmt.Errorf("destination %q: %w", text, err)
	}
	number, err := strconv.ParseUint(port, 10, 16)
	if err != nil || number == 0 {
		return target{}, fmt.Errorf("destination %q has no port: write %s:PORT", text, name)
	}
	for i := range view.Settings().Federation {
		for _, w := range view.Settings().Federation[i].Workloads {
			if w.Identity == id {
				return target{address: netip.AddrPortFrom(w.Addresses[0], uint16(number))}, nil
			}
		}
	}
	return target{}, fmt.Errorf("destination %s: no workload of a federated trust domain is declared with this identity, in spec.federation of the Mesh; name one of this mesh as NAMESPACE/NAME", id)
}
