package jwtkeys

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"
	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

var td = spiffeid.RequireTrustDomainFromString("mesh.test")

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func document(t testing.TB, n int) []byte {
	t.Helper()
	keys, key := map[string]crypto.PublicKey{}, newKey(t)
	for i := range n {
		keys[fmt.Sprint("k", i)] = key.Public()
	}
	text, err := Document(keys)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// TestDocument: the same keys are the same bytes, and go-spiffe reads them.
func TestDocument(t *testing.T) {
	keys := map[string]crypto.PublicKey{}
	for i := range 8 {
		keys[fmt.Sprint("k", i)] = newKey(t).Public()
	}
	first, err := Document(keys)
	if err != nil {
		t.Fatal(err)
	}
	for range 20 {
		if again, err := Document(keys); err != nil || string(again) != string(first) {
			t.Fatalf("another document of the same keys: %s, %v", again, err)
		}
	}
	if b, err := jwtbundle.Parse(td, first); err != nil || !b.Equal(jwtbundle.FromJWTAuthorities(td, keys)) {
		t.Errorf("go-spiffe reads %v, %v", b, err)
	}
}

// TestAudience: within bounds, in one order.
func TestAudience(t *testing.T) {
	if got, err := Audience([]string{"b", "a", "b"}); err != nil || !slices.Equal(got, []string{"a", "b"}) {
		t.Errorf("%v, %v", got, err)
	}
	for _, bad := range [][]string{nil, {}, {""}, {"a", ""}, {strings.Repeat("a", MaxAudienceBytes+1)}, slices.Repeat([]string{"a"}, MaxAudiences+1), {"a\x00b"},
		{strings.Repeat("<", MaxAudienceBytes), strings.Repeat(">", MaxAudienceBytes), strings.Repeat("&", MaxAudienceBytes)}} {
		if got, err := Audience(bad); err == nil {
			t.Errorf("%v is taken", got)
		}
	}
}

// TestTake: an operator's word is taken whole or not at all, and who waits hears of it.
func TestTake(t *testing.T) {
	var s Store
	if k, _ := s.Now(); k != nil {
		t.Fatal("there are keys before anybody said so")
	}
	take := func(said *meshpb.JWTKeys, want bool) {
		t.Helper()
		_, changed := s.Now()
		got, err := s.Take(td, said)
		if err != nil || got != want {
			t.Fatalf("changed %v, %v", got, err)
		}
		select {
		case <-changed:
			got = true
		default:
			got = false
		}
		if got != want {
			t.Fatalf("who waits hears %v of it", got)
		}
	}
	doc := document(t, 2)
	take(nil, false)
	take(&meshpb.JWTKeys{}, true) // no key yet
	take(&meshpb.JWTKeys{Jwks: doc}, true)
	take(&meshpb.JWTKeys{Jwks: doc}, false)
	if k, _ := s.Now(); len(k.Bundle.JWTAuthorities()) != 2 || k.Bundle.TrustDomain() != td {
		t.Errorf("keys are %v", k)
	}
	private, err := (&jose.JSONWebKey{Key: newKey(t), KeyID: "k"}).MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	_, ed, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	edwards, err := Document(map[string]crypto.PublicKey{"k": ed.Public()})
	if err != nil {
		t.Fatal(err)
	}
	one := string(document(t, 1))
	for name, bad := range map[string]*meshpb.JWTKeys{
		"no JSON":        {Jwks: []byte("{")},
		"too long":       {Jwks: make([]byte, MaxDocument+1)},
		"too many":       {Jwks: document(t, MaxKeys+1)},
		"a private key":  {Jwks: fmt.Appendf(nil, `{"keys": [%s]}`, private)},
		"Ed25519":        {Jwks: edwards},
		"no ID":          {Jwks: []byte(strings.Replace(one, `"k0"`, `""`, 1))},
		"a long ID":      {Jwks: []byte(strings.Replace(one, `"k0"`, `"`+strings.Repeat("k", maxKeyID+1)+`"`, 1))},
		"one ID twice":   {Jwks: []byte(strings.ReplaceAll(string(document(t, 2)), `"k1"`, `"k0"`))},
		"a long reason":  {Withheld: strings.Repeat("a", maxWithheld+1)},
		"no key at all":  {Jwks: []byte(`{"keys": [null]}`)},
		"an unknown one": {Jwks: []byte(`{"keys": [{"kty": "oct", "k": "AAAA", "kid": "k"}]}`)},
	} {
		if _, err := s.Take(td, bad); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	if k, _ := s.Now(); string(k.Document) != string(doc) {
		t.Errorf("what was refused has changed the keys: %s", k.Document)
	}
	take(&meshpb.JWTKeys{Withheld: "they are SPIRE's"}, true)
	if k, _ := s.Now(); !k.Bundle.Empty() || k.Withheld == "" {
		t.Errorf("keys are %v", k)
	}
}

// TestSaveAndLoad: what was kept is checked as what was told.
func TestSaveAndLoad(t *testing.T) {
	path := filepath.Join(t.TempDir(), "jwt-keys")
	var s, next Store
	if err := s.Load(path, td); err != nil {
		t.Fatalf("without a file: %v", err)
	}
	if k, _ := s.Now(); k != nil {
		t.Error("there are keys of no file")
	}
	if _, err := s.Take(td, &meshpb.JWTKeys{Jwks: document(t, 3)}); err != nil {
		t.Fatal(err)
	}
	if err := s.Save(path); err != nil {
		t.Fatal(err)
	}
	if err := next.Load(path, td); err != nil {
		t.Fatal(err)
	}
	a, _ := s.Now()
	if b, _ := next.Now(); b == nil || !a.Bundle.Equal(b.Bundle) {
		t.Errorf("loaded is %v", b)
	}
	if err := os.WriteFile(path, []byte("torn"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := next.Load(path, td); err == nil {
		t.Error("a torn file is loaded")
	}
}

// FuzzParse: whatever an operator says, or a file has, it is within bounds or refused.
func FuzzParse(f *testing.F) {
	f.Add(document(f, 2), "")
	f.Add([]byte(`{"keys": []}`), "reason")
	f.Add([]byte(`{"keys": [null]}`), "")
	f.Add([]byte(`{"keys": [{"kty": "EC", "crv": "P-256", "x": "", "y": "", "kid": "a"}]}`), "")
	f.Fuzz(func(t *testing.T, text []byte, why string) {
		k, err := Parse(td, &meshpb.JWTKeys{Jwks: text, Withheld: why})
		if err != nil {
			return
		}
		if n := len(k.Bundle.JWTAuthorities()); n > MaxKeys || len(k.Document) > MaxDocument || len(k.Withheld) > maxWithheld {
			t.Errorf("%d keys of %d bytes are believed", n, len(k.Document))
		}
		if _, err := Document(k.Bundle.JWTAuthorities()); err != nil {
			t.Error(err)
		}
	})
}
