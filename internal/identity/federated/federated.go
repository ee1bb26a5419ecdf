// Package federated has the bundles of other trust domains: what one may be, and the set of
// those that are believed, which an agent keeps for its next start. Whose bundle is to be
// believed, and whom an identity of theirs may reach, is not decided here.
package federated

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/identity/cakey"
	"github.com/heddle-mesh/heddle/internal/identity/keystore"
)

// Bounds of what is believed.
const (
	MaxDomains  = 16
	MaxDocument = 48 << 10 // bytes of one bundle
	MaxRoots    = 32
	MaxJWTKeys  = 32
)

// maxFile bounds what is kept: base64 of everything, with room for names.
const maxFile = 2 * MaxDomains * MaxDocument

// Domain is one trust domain's bundle. It must not be changed.
type Domain struct {
	// Document is the SPIFFE bundle as it came, Bundle what it says.
	Document []byte
	Bundle   *spiffebundle.Bundle
	x509     *x509bundle.Bundle
	jwt      *jwtbundle.Bundle
}

// Parse reads a SPIFFE bundle (JWKS; SPIFFE Trust Domain and Bundle, section 4) of a trust
// domain. It has at least one root, and each is a CA's whose key this mesh's own CA might have.
func Parse(td spiffeid.TrustDomain, document []byte) (*Domain, error) {
	if len(document) > MaxDocument {
		return nil, fmt.Errorf("bundle of %s: more than %d bytes", td, MaxDocument)
	}
	bundle, err := spiffebundle.Parse(td, document)
	if err != nil {
		return nil, fmt.Errorf("bundle of %s: %w", td, err)
	}
	roots, keys := bundle.X509Authorities(), bundle.JWTAuthorities()
	switch {
	case len(roots) == 0:
		return nil, fmt.Errorf("bundle of %s: it has no root (no key with use x509-svid)", td)
	case len(roots) > MaxRoots, len(keys) > MaxJWTKeys:
		return nil, fmt.Errorf("bundle of %s: %d roots and %d keys for JWT-SVIDs, %d and %d are possible", td, len(roots), len(keys), MaxRoots, MaxJWTKeys)
	}
	for _, root := range roots {
		if !root.IsCA {
			return nil, fmt.Errorf("bundle of %s: certificate %s is not a CA's", td, root.SerialNumber.Text(16))
		}
		if err := cakey.Public(root.PublicKey); err != nil {
			return nil, fmt.Errorf("bundle of %s: certificate %s: %w", td, root.SerialNumber.Text(16), err)
		}
	}
	for id, key := range keys {
		if cakey.Public(key) != nil {
			bundle.RemoveJWTAuthority(id) // of a kind that verifies nothing here; the others do
		}
	}
	return &Domain{Document: document, Bundle: bundle, x509: bundle.X509Bundle(), jwt: bundle.JWTBundle()}, nil
}

// TrustDomain is whose bundle it is.
func (d *Domain) TrustDomain() spiffeid.TrustDomain { return d.Bundle.TrustDomain() }

// X509 and JWT are its parts: the same at each call.
func (d *Domain) X509() *x509bundle.Bundle { return d.x509 }
func (d *Domain) JWT() *jwtbundle.Bundle   { return d.jwt }

// Expires is when the last of its roots does.
func (d *Domain) Expires() (last time.Time) {
	for _, root := range d.x509.X509Authorities() {
		if root.NotAfter.After(last) {
			last = root.NotAfter
		}
	}
	return last
}

// Set is the bundles of several trust domains. It is immutable; nil has none.
type Set struct{ domains []*Domain }

// NewSet returns a Set, which is sorted by name. There is one of each trust domain.
func NewSet(domains ...*Domain) *Set {
	all := slices.Clone(domains)
	slices.SortFunc(all, func(a, b *Domain) int { return strings.Compare(a.TrustDomain().Name(), b.TrustDomain().Name()) })
	return &Set{all}
}

// Domains are all, sorted by name. They must not be changed.
func (s *Set) Domains() []*Domain {
	if s == nil {
		return nil
	}
	return s.domains
}

// Of returns a trust domain's, or nil.
func (s *Set) Of(td spiffeid.TrustDomain) *Domain {
	for _, d := range s.Domains() {
		if d.TrustDomain() == td {
			return d
		}
	}
	return nil
}

// GetX509BundleForTrustDomain implements x509bundle.Source.
func (s *Set) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	if d := s.Of(td); d != nil {
		return d.x509, nil
	}
	return nil, fmt.Errorf("no bundle for trust domain %q", td)
}

// Take returns what an operator says of federation, with what this Set has where it has
// nothing yet. The error names what is wrong, and all that there is stays as it is.
func (s *Set) Take(own spiffeid.TrustDomain, said *meshpb.Federation) (*Set, error) {
	if n := len(said.GetDomains()); n > MaxDomains {
		return nil, fmt.Errorf("federation with %d trust domains, %d are possible", n, MaxDomains)
	}
	next := &Set{}
	for _, told := range said.GetDomains() {
		td, err := spiffeid.TrustDomainFromString(told.GetTrustDomain())
		switch {
		case err != nil:
			return nil, fmt.Errorf("federation: %w", err)
		case td == own:
			return nil, fmt.Errorf("federation with %s, which is this mesh's own trust domain", td)
		case next.Of(td) != nil:
			return nil, fmt.Errorf("federation with %s is said twice", td)
		}
		d := s.Of(td)
		if document := told.GetBundle(); len(document) > 0 && (d == nil || string(d.Document) != string(document)) {
			if d, err = Parse(td, document); err != nil {
				return nil, err
			}
		}
		if d != nil {
			next.domains = append(next.domains, d)
		}
	}
	return NewSet(next.domains...), nil
}

// Equal reports whether two Sets have the same documents.
func (s *Set) Equal(other *Set) bool {
	return slices.EqualFunc(s.Domains(), other.Domains(), func(a, b *Domain) bool {
		return a == b || a.TrustDomain() == b.TrustDomain() && string(a.Document) == string(b.Document)
	})
}

// Save keeps a Set in a file of mode 0600.
func (s *Set) Save(path string) error {
	kept := map[string][]byte{}
	for _, d := range s.Domains() {
		kept[d.TrustDomain().Name()] = d.Document
	}
	text, err := json.Marshal(kept)
	if err != nil {
		return fmt.Errorf("encode federated bundles: %w", err)
	}
	return keystore.ReplaceFile(path, text, 0o600)
}

// Load reads what Save has kept; nothing when there is no file.
func Load(path string, own spiffeid.TrustDomain) (*Set, error) {
	text, err := keystore.ReadSecretFile(path, maxFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	kept := map[string][]byte{}
	if err == nil {
		err = json.Unmarshal(text, &kept)
	}
	if err != nil {
		return nil, fmt.Errorf("read federated bundles %s: %w", path, err)
	}
	said := &meshpb.Federation{}
	for name, document := range kept {
		said.Domains = append(said.Domains, &meshpb.DomainBundle{TrustDomain: name, Bundle: document})
	}
	return (*Set)(nil).Take(own, said)
}
