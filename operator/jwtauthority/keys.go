package jwtauthority

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/heddle-mesh/heddle/internal/identity/jwtkeys"
)

// maxKeys bounds what is read: one that signs, the next one, and those that are retired.
const maxKeys = 8

// key is one key, as it is kept.
type key struct {
	// ID is the "kid" of its tokens: the first half of the SHA-256 of the public key.
	ID string `json:"id"`
	// PKCS8 is the private key, ECDSA P-256, in DER.
	PKCS8 []byte `json:"key"`
	// Made is when it came into the bundle, Signs since when it signs, Retired since when
	// it does no more.
	Made    time.Time `json:"made"`
	Signs   time.Time `json:"signs,omitzero"`
	Retired time.Time `json:"retired,omitzero"`

	further further
	private *ecdsa.PrivateKey
	signer  jose.Signer
}

// keySet is all keys, in the order in which they were made. It is not changed.
type keySet struct {
	Keys []key `json:"keys"`

	further  further
	document []byte // what verifies their tokens
}

// further are the fields that a newer version has written beside ours. They are kept: after a downgrade the keys go on,
// and nothing of theirs is lost by writing them anew.
type further map[string]json.RawMessage

// UnmarshalJSON implements json.Unmarshaler.
func (k *key) UnmarshalJSON(text []byte) (err error) {
	type known key
	k.further, err = readFields(text, (*known)(k), "id", "key", "made", "signs", "retired")
	return err
}

// MarshalJSON implements json.Marshaler.
func (k key) MarshalJSON() ([]byte, error) {
	type known key
	return k.further.with(known(k))
}

// UnmarshalJSON implements json.Unmarshaler.
func (s *keySet) UnmarshalJSON(text []byte) (err error) {
	type known keySet
	s.further, err = readFields(text, (*known)(s), "keys")
	return err
}

// MarshalJSON implements json.Marshaler.
func (s keySet) MarshalJSON() ([]byte, error) {
	type known keySet
	return s.further.with(known(s))
}

// readFields reads an object, and returns the fields that it has beside some.
func readFields(text []byte, known any, names ...string) (further, error) {
	if err := json.Unmarshal(text, known); err != nil {
		return nil, err
	}
	var all further
	if err := json.Unmarshal(text, &all); err != nil {
		return nil, err
	}
	maps.DeleteFunc(all, func(name string, _ json.RawMessage) bool {
		return slices.ContainsFunc(names, func(n string) bool { return strings.EqualFold(n, name) })
	})
	return all, nil
}

// with writes an object with further fields.
func (f further) with(known any) ([]byte, error) {
	text, err := json.Marshal(known)
	if err != nil || len(f) == 0 {
		return text, err
	}
	all := further{}
	if err := json.Unmarshal(text, &all); err != nil {
		return nil, err
	}
	maps.Copy(all, f)
	return json.Marshal(all)
}

func newKey(now time.Time) (key, error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return key{}, fmt.Errorf("make a key of JWT-SVIDs: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return key{}, fmt.Errorf("encode a key of JWT-SVIDs: %w", err)
	}
	id, err := keyID(private)
	return key{ID: id, PKCS8: der, Made: now.UTC()}, err
}

func keyID(private *ecdsa.PrivateKey) (string, error) {
	public, err := x509.MarshalPKIXPublicKey(private.Public())
	if err != nil {
		return "", fmt.Errorf("encode a key of JWT-SVIDs: %w", err)
	}
	sum := sha256.Sum256(public)
	return hex.EncodeToString(sum[:len(sum)/2]), nil
}

// read checks a key, and makes its signer.
func (k *key) read() error {
	parsed, err := x509.ParsePKCS8PrivateKey(k.PKCS8)
	if err != nil {
		return err
	}
	private, ok := parsed.(*ecdsa.PrivateKey)
	if !ok || private.Curve != elliptic.P256() {
		return errors.New("it is not an ECDSA key on P-256")
	}
	if id, err := keyID(private); err != nil || id != k.ID {
		return errors.Join(errors.New("its ID is another key's"), err)
	}
	k.private = private
	k.signer, err = jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: private, KeyID: k.ID}}, (&jose.SignerOptions{}).WithType("JWT"))
	return err
}

// parse reads what is kept; no text is no keys. The error names the key.
func parse(text []byte) (*keySet, error) {
	s := &keySet{}
	if len(text) > 0 {
		if err := json.Unmarshal(text, s); err != nil {
			return nil, err
		}
	}
	if len(s.Keys) > maxKeys {
		return nil, fmt.Errorf("%d keys, %d are possible", len(s.Keys), maxKeys)
	}
	for i := range s.Keys {
		if err := s.Keys[i].read(); err != nil {
			return nil, fmt.Errorf("key %d: %w", i, err)
		}
	}
	var err error
	s.document, err = jwtkeys.Document(s.public())
	if len(s.Keys) == 0 {
		s.document = nil
	}
	return s, err
}

func (s *keySet) text() ([]byte, error) {
	text, err := json.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("encode keys of JWT-SVIDs: %w", err)
	}
	return text, nil
}

// public is what verifies tokens, by key ID.
func (s *keySet) public() map[string]crypto.PublicKey {
	all := map[string]crypto.PublicKey{}
	for _, k := range s.Keys {
		all[k.ID] = k.private.Public()
	}
	return all
}

// signing is the index of the key that signs; -1 for none.
func (s *keySet) signing() int {
	return slices.IndexFunc(s.Keys, func(k key) bool { return !k.Signs.IsZero() && k.Retired.IsZero() })
}

// next is the index of the key that signs next; -1 for none.
func (s *keySet) next() int {
	return slices.IndexFunc(s.Keys, func(k key) bool { return k.Signs.IsZero() })
}

// advance returns the keys after what is due at a moment, and what that is; "" when nothing is.
// What one leader has done is judged by the next one's clock: a moment that is in the future
// by more than clocks differ is taken for now, so that a clock that was wrong holds nothing up.
func (s *keySet) advance(now time.Time, t Times) (*keySet, string, error) {
	out, now := &keySet{Keys: slices.Clone(s.Keys), further: s.further}, now.UTC()
	what := ""
	for i := range out.Keys {
		for _, at := range []*time.Time{&out.Keys[i].Made, &out.Keys[i].Signs, &out.Keys[i].Retired} {
			if at.After(now.Add(future)) {
				*at, what = now, "moments in the future are put right"
			}
		}
	}
	if what != "" {
		return out, what, nil
	}
	signing, next := out.signing(), out.next()
	switch {
	case signing < 0 && next < 0:
		first, err := newKey(now)
		first.Signs = first.Made // nobody has a token of another
		out.Keys = append(out.Keys, first)
		return out, "a first key signs", err
	case next >= 0 && (signing < 0 || now.Sub(out.Keys[next].Made) >= t.Distribute):
		if signing >= 0 {
			out.Keys[signing].Retired = now
		}
		out.Keys[next].Signs = now
		return out, "the next key signs", nil
	case next < 0 && now.Sub(out.Keys[signing].Signs) >= t.Period && len(out.Keys) < maxKeys:
		made, err := newKey(now)
		out.Keys = append(out.Keys, made)
		return out, "the next key is in the bundle", err
	}
	out.Keys = slices.DeleteFunc(out.Keys, func(k key) bool { return !k.Retired.IsZero() && now.Sub(k.Retired) >= t.Keep })
	if len(out.Keys) < len(s.Keys) {
		return out, "a key leaves the bundle", nil
	}
	return s, "", nil
}
