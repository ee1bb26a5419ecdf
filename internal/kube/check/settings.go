package check

import (
	"fmt"
	"slices"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/api/v1alpha1"
	"github.com/heddle-mesh/heddle/internal/kube/fit"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// Settings are what a Mesh says.
type Settings struct {
	Mesh mesh.Settings
	// Mode is that of workloads that no PeerAuthentication speaks for.
	Mode mesh.Mode
	DNS  DNSModes
	spec *v1alpha1.MeshSpec
}

// Believes reports whether identities of a trust domain are believed: the mesh's, or a
// federated one's.
func (m Settings) Believes(td spiffeid.TrustDomain) bool {
	return td == m.Mesh.TrustDomain || slices.ContainsFunc(m.Mesh.Federation, func(f mesh.FederatedDomain) bool { return f.TrustDomain == td })
}

// Mesh reads a Mesh. What is wrong with it is reported; what is only too much of is not,
// see Bound.
func Mesh(s Subject, spec *v1alpha1.MeshSpec) (out Settings) {
	out.spec = spec
	td, err := spiffeid.TrustDomainFromString(spec.TrustDomain)
	if err != nil || td.Name() != spec.TrustDomain {
		s.Problem("spec.trustDomain", "write a name such as example.org: lower-case letters, digits, dots, dashes", "%q is not a trust domain", spec.TrustDomain)
	} else {
		out.Mesh.TrustDomain = td
	}
	if len(spec.ClusterRanges) == 0 {
		s.Problem("spec.clusterRanges", "write the ranges that hold every workload's and service's address, such as 10.244.0.0/16", "is empty")
	}
	out.Mesh.ClusterRanges = s.Blocks("spec.clusterRanges", spec.ClusterRanges)
	out.Mode = s.Mode("spec.defaults.peerAuthentication", spec.Defaults.PeerAuthentication, mesh.ModeStrict)
	out.Mesh.Egress = egress(s, "spec.egress.mode", spec.Egress.Mode)
	out.Mesh.EgressNamespaces = namespaceModes(s, "spec.egress.namespaces", "write ALLOW or DENY", len(spec.Egress.Namespaces),
		func(i int) (string, v1alpha1.EgressMode) {
			return spec.Egress.Namespaces[i].Namespace, spec.Egress.Namespaces[i].Mode
		}, egress)
	out.Mesh.UDPEgress = udpEgress(s, spec.Egress.UDP)
	out.DNS = dnsModes(s, &spec.DNS)
	for i, text := range spec.RevokedIdentities {
		id, err := spiffeid.FromString(text)
		if err != nil {
			s.Problem(fmt.Sprintf("spec.revokedIdentities[%d]", i), "write one such as spiffe://example.org/ns/shop/sa/web", "%q is not a SPIFFE ID: %v", text, err)
			continue
		}
		out.Mesh.RevokedIdentities = append(out.Mesh.RevokedIdentities, id)
	}
	out.Mesh.Federation = federation(s, out.Mesh.TrustDomain, spec.Federation)
	return out
}

// Names warns of what a Mesh names that is not there: a slip in one of these looks as if it had
// been done. Of no Mesh nothing is said.
func Names(s Subject, m Settings, known func(namespace string) bool) {
	spec := m.spec
	if spec == nil {
		return
	}
	namespace := func(field, name string) {
		if name != "" && !known(name) {
			s.Warn(field, "compare with the names of the namespaces", "namespace %q is not defined", name)
		}
	}
	for i := range spec.Egress.Namespaces {
		namespace(fmt.Sprintf("spec.egress.namespaces[%d].namespace", i), spec.Egress.Namespaces[i].Namespace)
	}
	for i := range spec.DNS.Namespaces {
		namespace(fmt.Sprintf("spec.dns.namespaces[%d].namespace", i), spec.DNS.Namespaces[i].Namespace)
	}
	for i, text := range spec.RevokedIdentities {
		if id, err := spiffeid.FromString(text); err == nil && !m.Believes(id.TrustDomain()) {
			s.Warn(fmt.Sprintf("spec.revokedIdentities[%d]", i), "compare with spec.trustDomain, and with spec.federation", "trust domain %q is neither the mesh's nor federated with it: nobody has such an identity here", id.TrustDomain().Name())
		}
	}
}

// maxPath bounds the path of an identity of a workload, /ns/NAMESPACE/sa/ACCOUNT.
const maxPath = len("/ns/") + 63 + len("/sa/") + 253

// Bound leaves as many revoked identities to agents as they can be told of, and reports
// the others, which stay revoked at the signer; and lets nothing out over UDP where what is
// said of that does not fit beside the rest. First come those that somebody can have
// given a certificate that a peer would believe: this mesh's signer, or a trust domain that
// the mesh is federated with, whose signer knows nothing of what is revoked here.
func Bound(s Subject, m *mesh.Settings) {
	if len(m.UDPEgress) > 0 && !fit.BesideRevoked(m) {
		s.Problem("spec.egress.udp", "name fewer namespaces or ports; nothing leaves the mesh over UDP meanwhile", "does not fit into one message to an agent beside what else the Mesh says: it is of %d namespaces", len(m.UDPEgress)-1)
		m.UDPEgress = nil
	}
	n := fit.Revoked(m)
	if n == len(m.RevokedIdentities) {
		return
	}
	federated := map[spiffeid.TrustDomain]bool{}
	for i := range m.Federation {
		federated[m.Federation[i].TrustDomain] = true
	}
	believed, others := make([]spiffeid.ID, 0, len(m.RevokedIdentities)), []spiffeid.ID(nil)
	for _, id := range m.RevokedIdentities {
		if id.MemberOf(m.TrustDomain) && len(id.Path()) <= maxPath || federated[id.TrustDomain()] {
			believed = append(believed, id)
		} else {
			others = append(others, id)
		}
	}
	m.RevokedIdentities = append(believed, others...)
	n = fit.Revoked(m)
	m.RevokedIdentities, m.RevokedUntold = m.RevokedIdentities[:n:n], m.RevokedIdentities[n:]
	s.Problem("spec.revokedIdentities", "take out those whose certificates have ended, and those of trust domains that are not federated; the signer refuses those of "+m.TrustDomain.Name()+" meanwhile, and nobody those of federated trust domains",
		"come to more than agents take: %d of %d are not refused by agents, beginning with %s", len(m.RevokedUntold), len(believed)+len(others), m.RevokedUntold[0])
}

func egress(s Subject, field string, mode v1alpha1.EgressMode) mesh.EgressMode {
	switch mode {
	case "", v1alpha1.EgressAllow:
		return mesh.EgressAllow
	case v1alpha1.EgressDeny:
		return mesh.EgressDeny
	}
	s.Problem(field, "write ALLOW or DENY", "%q is not an egress mode", string(mode))
	return mesh.EgressDeny
}

// DNSModes say who answers the name queries of a namespace's workloads.
type DNSModes struct {
	mesh       mesh.DNSMode
	namespaces map[string]mesh.DNSMode
}

// Of returns the mode of a namespace's workloads.
func (d DNSModes) Of(namespace string) mesh.DNSMode {
	if mode, ok := d.namespaces[namespace]; ok {
		return mode
	}
	return d.mesh
}

func dnsModes(s Subject, spec *v1alpha1.DNS) DNSModes {
	return DNSModes{mesh: dnsMode(s, "spec.dns.mode", spec.Mode), namespaces: namespaceModes(s, "spec.dns.namespaces", "write CAPTURE or DIRECT", len(spec.Namespaces),
		func(i int) (string, v1alpha1.DNSMode) { return spec.Namespaces[i].Namespace, spec.Namespaces[i].Mode }, dnsMode)}
}

// namespaceModes reads a list of n namespaces with a mode each; none is nil. remedy is
// for a mode that is missing.
func namespaceModes[T ~string, M any](s Subject, list, remedy string, n int, at func(int) (string, T), mode func(Subject, string, T) M) map[string]M {
	var modes map[string]M
	for i := range n {
		field := fmt.Sprintf("%s[%d]", list, i)
		namespace, text := at(i)
		if _, twice := modes[namespace]; twice {
			s.Problem(field+".namespace", "keep one of them", "namespace %q is given twice", namespace)
			continue
		}
		if namespace == "" {
			s.Problem(field+".namespace", "write the name of a namespace", "is empty")
		}
		if text == "" {
			s.Problem(field+".mode", remedy, "is missing")
		}
		if modes == nil {
			modes = map[string]M{}
		}
		modes[namespace] = mode(s, field+".mode", text)
	}
	return modes
}

func dnsMode(s Subject, field string, mode v1alpha1.DNSMode) mesh.DNSMode {
	switch mode {
	case "":
		return mesh.DNSDefault
	case v1alpha1.DNSCapture:
		return mesh.DNSCapture
	case v1alpha1.DNSDirect:
		return mesh.DNSDirect
	}
	s.Problem(field, "write CAPTURE or DIRECT", "%q is not a DNS mode", string(mode))
	return mesh.DNSDefault
}
