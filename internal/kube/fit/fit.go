// Package fit bounds what one object comes to: encoded, it must fit into one message
// to an agent, or nobody's configuration could be told. It measures what was compiled,
// not what was written: a name may come to more than itself, and a list may be repeated.
//
// Its functions are pure.
package fit

import "github.com/heddle-mesh/heddle/internal/mesh"

// MaxBytes bounds an object, by the measure of this package: half of what one message
// may hold, or more.
const MaxBytes = 512 << 10

// MaxEndpoints bounds the endpoints of a service: of names as long as may be, they are
// just less than a message.
const MaxEndpoints = 3000

// maxService bounds a service: MaxEndpoints of the longest names, and some ports.
const maxService = 990 << 10

// entry is more than the protocol's overhead of one text, number or message:
// a tag and a length (https://protobuf.dev/programming-guides/encoding/).
const entry = 8

func texts[T ~string](all ...T) (n int) {
	for _, text := range all {
		n += len(text) + entry
	}
	return n
}

// Policy returns no less than a policy's bytes, encoded.
func Policy(p *mesh.Policy) int {
	n := texts(p.Namespace, p.Name) + 2*entry
	for key, value := range p.Selector {
		n += texts(key, value) + entry
	}
	for i := range p.Rules {
		n += entry
		for j := range p.Rules[i].From {
			from := &p.Rules[i].From[j]
			n += entry + texts(from.Identities...) + texts(from.NotIdentities...) + texts(from.Namespaces...) + texts(from.NotNamespaces...)
			n += (16 + 2*entry) * (len(from.IPBlocks) + len(from.NotIPBlocks))
		}
		for j := range p.Rules[i].To {
			n += entry*(1+len(p.Rules[i].To[j].Ports)+len(p.Rules[i].To[j].NotPorts)) + requests(p.Rules[i].To[j].Requests)
		}
	}
	return n
}

func requests(m *mesh.RequestMatch) int {
	if m == nil {
		return 0
	}
	n := entry + texts(m.Hosts...) + texts(m.NotHosts...) + texts(m.Methods...) + texts(m.NotMethods...) + texts(m.Paths...) + texts(m.NotPaths...)
	for i := range m.Headers {
		n += 2*entry + texts(m.Headers[i].Name) + texts(m.Headers[i].Values...)
	}
	return n
}

// maxSettings bounds what the Mesh says: nearly all that one message holds.
const maxSettings = maxService

// BesideRevoked reports whether what the Mesh says, but for revoked identities, fits into
// one message.
func BesideRevoked(s *mesh.Settings) bool { return besideRevoked(s) <= maxSettings }

func besideRevoked(s *mesh.Settings) int {
	n := texts(s.TrustDomain.Name()) + (16+2*entry)*len(s.ClusterRanges) + entry
	for namespace := range s.EgressNamespaces {
		n += texts(namespace) + 2*entry
	}
	for namespace, e := range s.UDPEgress {
		n += texts(namespace) + 3*entry + 3*len(e.Ports)
	}
	for i := range s.Federation {
		n += texts(s.Federation[i].TrustDomain.Name())
		for _, w := range s.Federation[i].Workloads {
			n += texts(w.Identity.String()) + entry + (16+entry)*len(w.Addresses)
		}
	}
	return n
}

// Revoked returns how many of the revoked identities fit into one message beside what
// else the Mesh says, from the first on.
func Revoked(s *mesh.Settings) int {
	n := besideRevoked(s)
	for i := range s.RevokedIdentities {
		if n += texts(s.RevokedIdentities[i].String()); n > maxSettings {
			return i
		}
	}
	return len(s.RevokedIdentities)
}

func keys(all []mesh.Key) (n int) {
	for i := range all {
		n += texts(all[i].Namespace, all[i].Name)
	}
	return n
}

// Ports returns how many of a service's ports fit into one message beside its
// endpoints, from the first on.
func Ports(s *mesh.Service) int {
	n := texts(s.Namespace, s.Name) + keys(s.Endpoints) + 6*entry + (16+entry)*(len(s.Addresses)+len(s.External))
	for i := range s.Ports {
		n += texts(s.Ports[i].Name) + 3*entry + keys(s.Ports[i].Only)
		for _, at := range s.Ports[i].Elsewhere {
			n += 2*entry + keys(at.Endpoints)
		}
		if n > maxService {
			return i
		}
	}
	return len(s.Ports)
}
