package federated

import (
	"crypto/ed25519"
	"os"
	"path/filepath"
	"testing"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/hbone/enginetest"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func document(t testing.TB, td string) (string, []byte) {
	t.Helper()
	ca := enginetest.NewCA(t, td)
	b := spiffebundle.FromX509Bundle(ca.Bundle())
	_, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	for id, key := range map[string]any{"good": ca.Cert.PublicKey, "of another kind": private.Public()} {
		if err := b.AddJWTAuthority(id, key); err != nil {
			t.Fatal(err)
		}
	}
	text, err := b.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return td, text
}

func told(td string, text []byte) *meshpb.DomainBundle {
	return &meshpb.DomainBundle{TrustDomain: td, Bundle: text}
}

// TestTake: an operator's word is taken whole or not at all, and never about ours.
func TestTake(t *testing.T) {
	own := spiffeid.RequireTrustDomainFromString("ours.test")
	one, first := document(t, "one.test")
	two, second := document(t, "two.test")
	_, ours := document(t, "ours.test")
	set, err := (*Set)(nil).Take(own, &meshpb.Federation{Domains: []*meshpb.DomainBundle{told(two, second), told(one, first)}})
	if err != nil {
		t.Fatal(err)
	}
	if all := set.Domains(); len(all) != 2 || all[0].TrustDomain().Name() != one {
		t.Fatalf("the set is %v", all)
	}
	if keys := set.Domains()[0].JWT().JWTAuthorities(); len(keys) != 1 || keys["good"] == nil {
		t.Errorf("keys for JWT-SVIDs are %v", keys)
	}
	// What has not come yet stays as it was, and what is the same stays the same value: by it
	// connections know that nothing is to be verified again.
	kept, err := set.Take(own, &meshpb.Federation{Domains: []*meshpb.DomainBundle{told(one, nil), told(two, second), told("three.test", nil)}})
	if err != nil {
		t.Fatal(err)
	}
	if !kept.Equal(set) || kept.Domains()[0] != set.Domains()[0] || kept.Domains()[1] != set.Domains()[1] {
		t.Error("what was said again is another")
	}
	less, err := set.Take(own, &meshpb.Federation{Domains: []*meshpb.DomainBundle{told(one, nil)}})
	if err != nil || less.Of(spiffeid.RequireTrustDomainFromString(two)) != nil {
		t.Errorf("after the end of a federation there is %v, %v", less, err)
	}
	var many []*meshpb.DomainBundle
	for i := range MaxDomains + 1 {
		many = append(many, told(string(rune('a'+i))+".test", first))
	}
	for name, bad := range map[string][]*meshpb.DomainBundle{
		"our own domain":  {told(one, first), told("ours.test", ours)},
		"twice":           {told(one, first), told(one, first)},
		"no name":         {told("", first)},
		"no trust domain": {told("not a name", first)},
		"no bundle":       {told(one, []byte("{}"))},
		"too long":        {told(one, make([]byte, MaxDocument+1))},
		"too many":        many,
	} {
		if got, err := set.Take(own, &meshpb.Federation{Domains: bad}); err == nil {
			t.Errorf("%s: taken: %v", name, got.Domains())
		}
	}
}

// TestSaveAndLoad: what was kept is checked as what was told.
func TestSaveAndLoad(t *testing.T) {
	own, path := spiffeid.RequireTrustDomainFromString("ours.test"), filepath.Join(t.TempDir(), "bundles")
	if set, err := Load(path, own); err != nil || set.Domains() != nil {
		t.Errorf("without a file: %v, %v", set.Domains(), err)
	}
	set, err := (*Set)(nil).Take(own, &meshpb.Federation{Domains: []*meshpb.DomainBundle{told(document(t, "one.test"))}})
	if err != nil {
		t.Fatal(err)
	}
	if err := set.Save(path); err != nil {
		t.Fatal(err)
	}
	if got, err := Load(path, own); err != nil || !got.Equal(set) {
		t.Errorf("loaded is another: %v", err)
	}
	if got, err := Load(path, spiffeid.RequireTrustDomainFromString("one.test")); err == nil {
		t.Errorf("our own trust domain is loaded: %v", got.Domains())
	}
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(path, own); err == nil {
		t.Error("a torn file is loaded")
	}
}

// FuzzParse: whatever an endpoint answers, it is within bounds or refused.
func FuzzParse(f *testing.F) {
	td := spiffeid.RequireTrustDomainFromString("one.test")
	_, good := document(f, "one.test")
	f.Add(good)
	f.Add([]byte(`{"keys": []}`))
	f.Add([]byte(`{"keys": null, "spiffe_sequence": -1, "spiffe_refresh_hint": 1e300}`))
	f.Add([]byte(`{"keys": [{"use": "x509-svid", "kty": "EC", "crv": "P-256", "x": "", "y": "", "x5c": [""]}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		d, err := Parse(td, text)
		if err != nil {
			return
		}
		if n := len(d.X509().X509Authorities()); n == 0 || n > MaxRoots || len(d.JWT().JWTAuthorities()) > MaxJWTKeys || d.TrustDomain() != td {
			t.Errorf("%d roots and %d keys of %s are believed", n, len(d.JWT().JWTAuthorities()), d.TrustDomain())
		}
	})
}
