// Package jwtkeys has the public keys that verify JWT-SVIDs: what a trust domain's may be, in
// which form pods are given them, and those of the mesh's own trust domain, which an agent
// keeps for its next start. It has no private key: operator/jwtauthority signs.
package jwtkeys

import (
	"cmp"
	"crypto"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"sync"
	"unicode"

	"github.com/go-jose/go-jose/v4"
	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/protobuf/proto"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/identity/cakey"
	"github.com/heddle-mesh/heddle/internal/identity/keystore"
)

// Bounds of what is asked for, said and believed.
const (
	MaxAudiences     = 16
	MaxAudienceBytes = 512
	// maxAudience is of all of them in JSON, in bytes, so that a token of theirs is no more
	// than MaxToken.
	maxAudience = 6 << 10
	// MaxToken is of a JWT-SVID in its compact form, MaxDocument of a JWKS, in bytes.
	MaxToken    = 16 << 10
	MaxDocument = 16 << 10
	MaxKeys     = 32

	maxKeyID, maxWithheld = 128, 1024
)

// Audience returns a set of audiences sorted and each once, which is what a token of it says.
// The error names the bound that it is beyond.
func Audience(audience []string) ([]string, error) {
	if n := len(audience); n == 0 || n > MaxAudiences {
		return nil, fmt.Errorf("%d audiences: 1 to %d are possible", n, MaxAudiences)
	}
	for _, one := range audience {
		if n := len(one); n == 0 || n > MaxAudienceBytes {
			return nil, fmt.Errorf("audience of %d bytes: 1 to %d are possible", n, MaxAudienceBytes)
		}
		if strings.ContainsFunc(one, unicode.IsControl) {
			return nil, fmt.Errorf("audience %q has a control character", one)
		}
	}
	sorted := slices.Compact(slices.Sorted(slices.Values(audience)))
	if text, err := json.Marshal(sorted); err != nil || len(text) > maxAudience {
		return nil, fmt.Errorf("audiences of more than %d bytes of JSON together", maxAudience)
	}
	return sorted, nil
}

// Document is a JWKS (RFC 7517) of keys, sorted by key ID, so that the same keys are the same
// bytes.
func Document(keys map[string]crypto.PublicKey) ([]byte, error) {
	set := jose.JSONWebKeySet{Keys: []jose.JSONWebKey{}}
	for _, id := range slices.Sorted(maps.Keys(keys)) {
		set.Keys = append(set.Keys, jose.JSONWebKey{Key: keys[id], KeyID: id})
	}
	document, err := json.Marshal(set)
	if err != nil {
		return nil, fmt.Errorf("encode keys of JWT-SVIDs: %w", err)
	}
	return document, nil
}

// Keys is what an operator says of the mesh's own JWT-SVIDs. It must not be changed.
type Keys struct {
	// Document is the JWKS as it came, Bundle what it says.
	Document []byte
	Bundle   *jwtbundle.Bundle
	// Withheld is why there are no JWT-SVIDs in this mesh; "" where there are.
	Withheld string
}

// Parse reads what an operator says. The error names what is wrong with it.
func Parse(td spiffeid.TrustDomain, said *meshpb.JWTKeys) (*Keys, error) {
	k := &Keys{Document: said.GetJwks(), Bundle: jwtbundle.New(td), Withheld: said.GetWithheld()}
	switch {
	case len(k.Withheld) > maxWithheld:
		return nil, fmt.Errorf("keys of JWT-SVIDs: a reason of %d bytes, %d are possible", len(k.Withheld), maxWithheld)
	case len(k.Document) > MaxDocument:
		return nil, fmt.Errorf("keys of JWT-SVIDs: %d bytes, %d are possible", len(k.Document), MaxDocument)
	case len(k.Document) == 0:
		return k, nil
	}
	var set jose.JSONWebKeySet
	if err := json.Unmarshal(k.Document, &set); err != nil {
		return nil, fmt.Errorf("keys of JWT-SVIDs: %w", err)
	}
	if n := len(set.Keys); n > MaxKeys {
		return nil, fmt.Errorf("keys of JWT-SVIDs: %d, %d are possible", n, MaxKeys)
	}
	for i, key := range set.Keys {
		if len(key.KeyID) > maxKeyID || k.Bundle.HasJWTAuthority(key.KeyID) {
			return nil, fmt.Errorf("keys of JWT-SVIDs: key %d has an ID that is too long, or another's", i)
		}
		if err := cakey.Public(key.Key); err != nil { // a private key is none, either
			return nil, fmt.Errorf("keys of JWT-SVIDs: key %d: %w", i, err)
		}
		if err := k.Bundle.AddJWTAuthority(key.KeyID, key.Key); err != nil {
			return nil, fmt.Errorf("keys of JWT-SVIDs: key %d: %w", i, err)
		}
	}
	return k, nil
}

// Store holds the Keys of the moment. The zero value holds none; it is safe for concurrent use.
type Store struct {
	state struct {
		sync.Mutex
		keys    *Keys
		changed chan struct{}
	}
}

// Now returns the Keys, nil before an operator has said something, and a channel that is
// closed at the next change.
func (s *Store) Now() (*Keys, <-chan struct{}) {
	s.state.Lock()
	defer s.state.Unlock()
	if s.state.changed == nil {
		s.state.changed = make(chan struct{})
	}
	return s.state.keys, s.state.changed
}

// Keys returns the Keys, nil before an operator has said something.
func (s *Store) Keys() *Keys {
	s.state.Lock()
	defer s.state.Unlock()
	return s.state.keys
}

// Take replaces the Keys by what an operator says, unless that says nothing, and reports
// whether they are others.
func (s *Store) Take(td spiffeid.TrustDomain, said *meshpb.JWTKeys) (changed bool, err error) {
	if said == nil {
		return false, nil
	}
	next, err := Parse(td, said)
	if err != nil {
		return false, err
	}
	s.state.Lock()
	defer s.state.Unlock()
	if k := s.state.keys; k != nil && string(k.Document) == string(next.Document) && k.Withheld == next.Withheld {
		return false, nil
	}
	s.state.keys = next
	if s.state.changed != nil {
		close(s.state.changed)
		s.state.changed = nil
	}
	return true, nil
}

// Save keeps the Keys in a file, and Load takes what Save has kept, checked as if it came from
// the operator; nothing when there is no file.
func (s *Store) Save(path string) error {
	k := s.Keys()
	said := &meshpb.JWTKeys{}
	if k != nil {
		said.Jwks, said.Withheld = k.Document, k.Withheld
	}
	text, err := proto.Marshal(said)
	if err != nil {
		return fmt.Errorf("encode keys of JWT-SVIDs: %w", err)
	}
	return keystore.ReplaceFile(path, text, 0o600)
}

// Load is told by Save.
func (s *Store) Load(path string, td spiffeid.TrustDomain) error {
	text, err := keystore.ReadSecretFile(path, MaxDocument+2*maxWithheld)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	said := &meshpb.JWTKeys{}
	if err = cmp.Or(err, proto.Unmarshal(text, said)); err == nil {
		_, err = s.Take(td, said)
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	return nil
}
