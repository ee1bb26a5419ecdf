package resources

import (
	"cmp"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"slices"
	"strings"
)

// Limits that both ends hold.
const (
	// MaxMessage is the size, in bytes, below which every message of the
	// stream stays.
	MaxMessage = 1 << 20
	// maxResource bounds one encoded resource: it fits in a message with room
	// for its envelope.
	maxResource = MaxMessage - 16<<10
	// MaxName bounds a resource's name.
	MaxName = 1 << 10
	// MaxSetBytes bounds the names and contents of one node's whole set, in
	// memory and in the last good file.
	MaxSetBytes = 256 << 20
	// MaxSetSize bounds the number of resources of one node's set.
	MaxSetSize = 1 << 20
)

// Kind is the type of a resource.
type Kind uint8

// The kinds, in the order in which a round carries them. The numbers of those
// that an agent holds are under a set's hash: they stay as they are.
const (
	KindSettings Kind = iota
	KindService
	KindWorkload
	KindPolicy
	KindNetworkPolicy
	KindAddressSet
	KindRoute
	KindCount // number of kinds of which somebody holds resources
	KindCommit
)

// AgentKinds returns the kinds that an agent asks for, in their order.
func AgentKinds() []Kind {
	return []Kind{KindSettings, KindService, KindWorkload, KindPolicy, KindNetworkPolicy, KindAddressSet}
}

// WaypointKinds returns the kinds that a waypoint asks for, in their order.
func WaypointKinds() []Kind {
	return []Kind{KindSettings, KindService, KindWorkload, KindPolicy, KindRoute}
}

const typePrefix = "type.googleapis.com/heddle.mesh.v1alpha1."

// Names of the resources of which there is one.
const (
	settingsName = "Settings"
	CommitName   = "Commit"
)

// Newer reports whether a kind is one that an agent or an operator of the version
// before does not know. Such an agent is not told of it. Routes are for waypoints only,
// which there were none of before routes.
func (k Kind) Newer() bool { return k == KindNetworkPolicy || k == KindAddressSet }

// String returns the type's name, such as "Workload".
func (k Kind) String() string {
	switch k {
	case KindSettings:
		return "Settings"
	case KindService:
		return "Service"
	case KindWorkload:
		return "Workload"
	case KindPolicy:
		return "Policy"
	case KindNetworkPolicy:
		return "NetworkPolicy"
	case KindAddressSet:
		return "AddressSet"
	case KindRoute:
		return "Route"
	case KindCommit:
		return "Commit"
	default:
		return fmt.Sprintf("kind(%d)", uint8(k))
	}
}

// TypeURL returns the name of the type on the wire.
func (k Kind) TypeURL() string { return typePrefix + k.String() }

// KindOf is the inverse of Kind.TypeURL.
func KindOf(typeURL string) (Kind, error) {
	for _, k := range []Kind{KindSettings, KindService, KindWorkload, KindPolicy, KindNetworkPolicy, KindAddressSet, KindRoute, KindCommit} {
		if k.TypeURL() == typeURL {
			return k, nil
		}
	}
	return 0, fmt.Errorf("unknown resource type %.100q", typeURL)
}

// Ref names one version of one resource.
type Ref struct {
	Kind Kind
	Name string
	// Version is the hash of kind, name and body; see versionOf.
	Version string
}

// CompareRefs orders by kind and name: the order of a set's hash.
func CompareRefs(a, b Ref) int {
	return cmp.Or(cmp.Compare(a.Kind, b.Kind), strings.Compare(a.Name, b.Name))
}

// Resource is one encoded object; immutable.
type Resource struct {
	Ref
	Body []byte
}

func newResource(k Kind, name string, body []byte) *Resource {
	return &Resource{Ref: Ref{k, name, versionOf(k, name, body)}, Body: body}
}

// digest is the binary form of a version.
type digest [16]byte

func (d digest) String() string { return hex.EncodeToString(d[:]) }

// digestOf returns the first 128 bits of a hash over the length-prefixed parts.
// The receiver computes it anew from the bytes it got, so that the signed hash
// over names and versions covers the contents.
func digestOf(k Kind, name string, body []byte) (d digest) {
	h := sha256.New()
	writePart(h, k.TypeURL())
	writePart(h, name)
	h.Write(body)
	var sum [sha256.Size]byte
	copy(d[:], h.Sum(sum[:0]))
	return d
}

func versionOf(k Kind, name string, body []byte) string { return digestOf(k, name, body).String() }

func writePart(h hash.Hash, part string) {
	var size [4]byte
	binary.BigEndian.PutUint32(size[:], uint32(len(part)))
	h.Write(size[:])
	io.WriteString(h, part) // a hash's Write returns no error
}

// Commit is what closes a round. All of it is under the signature.
type Commit struct {
	Node     string
	Revision string
	Epoch    uint64
	Hash     []byte
	// signature is by the operator's configuration key, over message.
	signature []byte
}

// message returns what is signed. Its first line keeps the signature from
// meaning anything elsewhere; the node's name keeps one node's set, or last
// good file, from being given to another.
func (c *Commit) message() []byte {
	m := []byte("heddle configuration commit 2\n")
	for _, part := range []string{c.Node, c.Revision, string(c.Hash)} {
		m = binary.BigEndian.AppendUint32(m, uint32(len(part)))
		m = append(m, part...)
	}
	return binary.BigEndian.AppendUint64(m, c.Epoch)
}

// Sign signs all other fields.
func (c *Commit) Sign(key ed25519.PrivateKey) { c.signature = ed25519.Sign(key, c.message()) }

// verify reports whether one of the keys has signed.
func (c *Commit) verify(keys []ed25519.PublicKey) bool {
	return slices.ContainsFunc(keys, func(key ed25519.PublicKey) bool {
		return len(key) == ed25519.PublicKeySize && ed25519.Verify(key, c.message(), c.signature)
	})
}

// Version identifies the commit as a resource.
func (c *Commit) Version() string { return versionOf(KindCommit, CommitName, c.message()) }

// RefsOf returns the references, in the same order.
func RefsOf(resources []*Resource) []Ref {
	refs := make([]Ref, len(resources))
	for i, r := range resources {
		refs[i] = r.Ref
	}
	return refs
}

// Sort puts resources into the order of CompareRefs.
func Sort(resources []*Resource) {
	slices.SortFunc(resources, func(a, b *Resource) int { return CompareRefs(a.Ref, b.Ref) })
}

// checkSize refuses what no message, or no receiver, would take.
func checkSize(r *Resource) error {
	if len(r.Name) > MaxName {
		return fmt.Errorf("encode %s %.80s...: the name has %d bytes, more than %d", r.Kind, r.Name, len(r.Name), MaxName)
	}
	if len(r.Body) > maxResource {
		return fmt.Errorf("encode %s %s: %d bytes, more than %d: split it into several objects", r.Kind, r.Name, len(r.Body), maxResource)
	}
	return nil
}
