package jwtauthority

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/identity"
	"github.com/heddle-mesh/heddle/internal/identity/jwtkeys"
	"github.com/heddle-mesh/heddle/internal/identity/keystore"
	"github.com/heddle-mesh/heddle/internal/testenv"
	"github.com/heddle-mesh/heddle/operator/issuing"
	"github.com/heddle-mesh/heddle/operator/rotation"
)

func TestMain(m *testing.M) { testenv.Main(m) }

var (
	td  = spiffeid.RequireTrustDomainFromString("mesh.test")
	web = spiffeid.RequireFromString("spiffe://mesh.test/ns/shop/sa/web")
)

func live(t *testing.T, dir string) *rotation.Live {
	t.Helper()
	l, err := rotation.OpenDir(t.Context(), dir, rotation.LiveConfig{Authority: identity.AuthorityConfig{TrustDomain: td}, Poll: 20 * time.Millisecond, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// replica is an Authority that reads, and one that leads.
func replica(t *testing.T, dir string, cfg Config) *Authority {
	t.Helper()
	cfg.Live, cfg.Logger = live(t, dir), slog.New(slog.DiscardHandler)
	a, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := cfg.Live.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { stop(); running.Wait() })
	return a
}

func lead(t *testing.T, a *Authority) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := a.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	stop = sync.OnceFunc(func() { cancel(); running.Wait() })
	t.Cleanup(stop)
	return stop
}

func sign(t *testing.T, a *Authority) string {
	t.Helper()
	token := ""
	testenv.Eventually(t, 20*time.Second, "there is a key", func() bool {
		var err error
		token, _, err = a.Sign(web, []string{"api"})
		if err != nil && !errors.Is(err, issuing.ErrNoJWTKey) {
			t.Fatal(err)
		}
		return err == nil
	})
	return token
}

// keyOf is the kid of a token.
func keyOf(t *testing.T, token string) string {
	t.Helper()
	parsed, err := jwt.ParseSigned(token, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		t.Fatal(err)
	}
	return parsed.Headers[0].KeyID
}

// TestToken: a token is what the specification says, and go-spiffe takes it.
func TestToken(t *testing.T) {
	a := replica(t, filepath.Join(t.TempDir(), "ca"), Config{})
	if _, _, err := a.Sign(web, []string{"api"}); !errors.Is(err, issuing.ErrNoJWTKey) {
		t.Errorf("before there is a leader: %v", err)
	}
	if said := a.Said(); len(said.GetJwks()) > 0 || said.GetWithheld() != "" {
		t.Errorf("before there is a key agents are told %v", said)
	}
	lead(t, a)
	sign(t, a)
	token, life, err := a.Sign(web, []string{"api", "db"})
	if err != nil || life != DefaultTTL {
		t.Fatalf("valid for %v, %v", life, err)
	}
	svid, err := jwtsvid.ParseAndValidate(token, a.Bundle(), []string{"db"})
	if err != nil {
		t.Fatal(err)
	}
	if svid.ID != web || !slices.Equal(svid.Audience, []string{"api", "db"}) || time.Until(svid.Expiry) > DefaultTTL || time.Until(svid.Expiry) < DefaultTTL-time.Minute {
		t.Errorf("the token says %+v", svid)
	}
	parsed, err := jwt.ParseSigned(token, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		t.Fatal(err)
	}
	header := parsed.Headers[0]
	if header.ExtraHeaders[jose.HeaderType] != "JWT" || header.KeyID == "" || header.Algorithm != "ES256" {
		t.Errorf("the token's header is %+v", header)
	}
	claims := map[string]any{}
	if err := parsed.UnsafeClaimsWithoutVerification(&claims); err != nil {
		t.Fatal(err)
	}
	issued := time.Unix(int64(claims["iat"].(float64)), 0)
	if _, ok := claims["nbf"]; ok || len(claims) != 4 || time.Since(issued) < 20*time.Minute {
		t.Errorf("the token's claims are %v", claims)
	}
	// A verifier whose clock is 20 minutes behind takes it.
	if err := (jwt.Claims{IssuedAt: jwt.NewNumericDate(issued), Expiry: jwt.NewNumericDate(svid.Expiry)}).ValidateWithLeeway(jwt.Expected{Time: time.Now().Add(-20 * time.Minute)}, 0); err != nil {
		t.Error(err)
	}
	if _, err := jwtsvid.ParseAndValidate(token, a.Bundle(), []string{"other"}); err == nil {
		t.Error("it is taken for another audience")
	}
	keys, err := jwtkeys.Parse(td, a.Said())
	if err != nil || !keys.Bundle.Equal(a.Bundle()) || strings.Contains(string(keys.Document), `"d"`) {
		t.Errorf("agents are told %s, %v", keys.Document, err)
	}
}

// TestRotation: replicas sign by the same key, a key is in the bundle of each before it signs,
// and what was signed by the one before stays valid for as long as a token lives. A leader that
// restarts goes on.
func TestRotation(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ca")
	times := Times{Period: 100 * time.Millisecond, Distribute: 2 * time.Second, Keep: time.Hour, Interval: 10 * time.Millisecond}
	first, second := replica(t, dir, Config{Times: times}), replica(t, dir, Config{Times: times})
	stop := lead(t, first)
	token := sign(t, second)
	told := func(a *Authority) map[string]bool {
		ids := map[string]bool{}
		for id := range a.Bundle().JWTAuthorities() {
			ids[id] = true
		}
		return ids
	}
	known := map[string]bool{}
	for i := range 2 {
		before := keyOf(t, sign(t, first))
		testenv.Eventually(t, 30*time.Second, "another key signs", func() bool {
			ids := told(second) // before it is signed
			id := keyOf(t, sign(t, first))
			if id != before && !ids[id] {
				// The other replica polls: what it has not read it had two seconds for.
				t.Errorf("key %s signs, and another replica's bundle does not have it: %v", id, ids)
			}
			return id != before
		})
		if i == 0 {
			stop()
			stop = lead(t, second)
		}
		known[before] = true
	}
	stop()
	for _, a := range []*Authority{first, second} {
		testenv.Eventually(t, 10*time.Second, "both know all", func() bool {
			ids := told(a)
			for id := range known {
				if !ids[id] {
					return false
				}
			}
			return string(a.Said().GetJwks()) == string(first.Said().GetJwks())
		})
		if _, err := jwtsvid.ParseAndValidate(token, a.Bundle(), []string{"api"}); err != nil {
			t.Errorf("signed before two rotations: %v", err)
		}
	}
	out := &meshpb.CertificatesResponse{}
	second.Describe(out)
	if n := len(out.GetJwtKeys()); n < 3 || out.GetJwtKeys()[0].GetState() != "signs" || out.GetJwtKeys()[n-1].GetUntilNs() == 0 {
		t.Errorf("said of keys: %v", out)
	}
	// Certificates are not touched.
	if first.cfg.Live.Keyring().Signing.Root().Equal(live(t, dir).Keyring().Signing.Root()) != true {
		t.Error("the root has changed")
	}
}

// TestAdvance is a key's life, with clocks that differ.
func TestAdvance(t *testing.T) {
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	times := Times{}.withDefaults()
	s := &keySet{}
	step := func(after time.Duration, want string) {
		t.Helper()
		now = now.Add(after)
		next, what, err := s.advance(now, times)
		if err != nil || what != want {
			t.Fatalf("at %v: %q, %v, want %q", now, what, err, want)
		}
		text, err := next.text()
		if err != nil {
			t.Fatal(err)
		}
		if s, err = parse(text); err != nil {
			t.Fatal(err)
		}
	}
	step(0, "a first key signs")
	first := s.Keys[0].ID
	step(times.Period-time.Second, "")
	step(time.Second, "the next key is in the bundle")
	if len(s.Keys) != 2 || s.Keys[s.signing()].ID != first || len(s.public()) != 2 {
		t.Errorf("the next key signs already: %+v", s)
	}
	step(-20*time.Minute, "") // another leader
	step(20*time.Minute+times.Distribute, "the next key signs")
	step(0, "")
	step(times.Keep-time.Second, "")
	if s.public()[first] == nil {
		t.Error("a key has left while tokens of it may live")
	}
	step(time.Second, "a key leaves the bundle")
	step(0, "")
	if len(s.Keys) != 1 || s.Keys[0].ID == first {
		t.Errorf("left are %+v", s.Keys)
	}
	// A clock that was years ahead holds nothing up afterwards.
	step(10*365*24*time.Hour, "the next key is in the bundle")
	step(time.Hour, "the next key signs")
	step(-10*365*24*time.Hour, "moments in the future are put right")
	step(times.Keep, "a key leaves the bundle")
	step(times.Period-times.Keep, "the next key is in the bundle")
}

// TestWithheld: where the keys are somebody else's there are none, and it is said why.
func TestWithheld(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ca")
	a := replica(t, dir, Config{Withheld: "they are SPIRE's"})
	if err := a.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, _, err := a.Sign(web, []string{"api"}); !errors.Is(err, issuing.ErrJWTsWithheld) || !strings.Contains(err.Error(), "SPIRE") {
		t.Errorf("signed: %v", err)
	}
	if a.Said().GetWithheld() == "" || !a.Bundle().Empty() {
		t.Errorf("agents are told %v", a.Said())
	}
	if _, err := os.Stat(filepath.Join(dir, rotation.JWTFile)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a key was made: %v", err)
	}
}

// TestUnreadable: what cannot be read is not written over, and the keys before sign on; what
// was taken out is made anew.
func TestUnreadable(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ca")
	a := replica(t, dir, Config{Times: Times{Interval: 10 * time.Millisecond}})
	lead(t, a)
	before := keyOf(t, sign(t, a))
	path := filepath.Join(dir, rotation.JWTFile)
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("%v, %v", info, err)
	}
	// At once: an empty file would be one that was taken out.
	if err := keystore.ReplaceFile(path, []byte(`{"keys": [{"id": "x"}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, 10*time.Second, "it is said", func() bool {
		out := &meshpb.CertificatesResponse{}
		a.Describe(out)
		return strings.Contains(out.GetJwtProblem(), "jwt.key: key 0")
	})
	if id := keyOf(t, sign(t, a)); id != before {
		t.Errorf("%s signs, and not %s", id, before)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, 10*time.Second, "another key signs, alone", func() bool {
		token, _, err := a.Sign(web, []string{"api"})
		return err == nil && keyOf(t, token) != before && len(a.Bundle().JWTAuthorities()) == 1
	})
}

// TestUnreadableAtStart: an operator that cannot read the keys says nothing of them, so that
// agents go on with what they have; one that has none yet says so.
func TestUnreadableAtStart(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ca")
	live(t, dir)
	path := filepath.Join(dir, rotation.JWTFile)
	if err := keystore.ReplaceFile(path, []byte(`{"keys": [{"id": "x"}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	a := replica(t, dir, Config{Times: Times{Interval: 10 * time.Millisecond}})
	lead(t, a)
	if said := a.Said(); said != nil {
		t.Errorf("agents are told %v", said)
	}
	if _, _, err := a.Sign(web, []string{"api"}); !errors.Is(err, issuing.ErrNoJWTKey) || !a.Bundle().Empty() {
		t.Errorf("signed: %v", err)
	}
	var kept jwtkeys.Store
	one, err := newKey(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if err := one.read(); err != nil {
		t.Fatal(err)
	}
	document, err := jwtkeys.Document((&keySet{Keys: []key{one}}).public())
	if err != nil {
		t.Fatal(err)
	}
	for _, said := range []*meshpb.JWTKeys{{Jwks: document}, a.Said()} { // before the restart, and after
		if _, err := kept.Take(td, said); err != nil {
			t.Fatal(err)
		}
	}
	if keys, _ := kept.Now(); !keys.Bundle.HasJWTAuthority(one.ID) {
		t.Error("an agent has lost what it had")
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	sign(t, a)
	if len(a.Said().GetJwks()) == 0 {
		t.Error("agents are not told of the key that was made")
	}
}

// TestRestored: a backup's key signs at once, and what was made since verifies nothing, as
// docs/workload-api.md says.
func TestRestored(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ca")
	a := replica(t, dir, Config{Times: Times{Interval: 10 * time.Millisecond}})
	lead(t, a)
	old := keyOf(t, sign(t, a))
	path := filepath.Join(dir, rotation.JWTFile)
	backup, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	since := ""
	testenv.Eventually(t, 30*time.Second, "another key signs", func() bool {
		since = sign(t, a)
		return keyOf(t, since) != old
	})
	if err := keystore.ReplaceFile(path, backup, 0o600); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, 30*time.Second, "the old key signs", func() bool { return keyOf(t, sign(t, a)) == old })
	if _, err := jwtsvid.ParseAndValidate(since, a.Bundle(), []string{"api"}); err == nil || len(a.Bundle().JWTAuthorities()) != 1 {
		t.Error("a key that was made since verifies")
	}
}

// TestNewerVersion: what a newer version has written beside is read, and kept by each change.
func TestNewerVersion(t *testing.T) {
	one, err := newKey(time.Now().Add(-365 * 24 * time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	one.Signs, one.further = one.Made, further{"level": json.RawMessage(`"high"`)}
	text, err := (&keySet{Keys: []key{one}, further: further{"more": json.RawMessage(`{"a":1}`)}}).text()
	if err != nil {
		t.Fatal(err)
	}
	s, err := parse(text)
	if err != nil {
		t.Fatal(err)
	}
	s, what, err := s.advance(time.Now(), Times{}.withDefaults())
	if err != nil || what != "the next key is in the bundle" {
		t.Fatal(what, err)
	}
	if text, err = s.text(); err != nil {
		t.Fatal(err)
	}
	var got struct {
		Keys []map[string]any
		More map[string]int
	}
	if err := json.Unmarshal(text, &got); err != nil {
		t.Fatal(err)
	}
	if len(got.Keys) != 2 || got.Keys[0]["level"] != "high" || got.Keys[0]["id"] != one.ID || got.Keys[1]["level"] != nil || got.More["a"] != 1 {
		t.Errorf("written: %s", text)
	}
}

// TestParse refuses what is no key of ours.
func TestParse(t *testing.T) {
	one, err := newKey(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	other, err := newKey(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	swapped := one
	swapped.ID = other.ID
	for name, bad := range map[string]any{
		"no object":    []int{1},
		"no key":       keySet{Keys: []key{{ID: "x", PKCS8: []byte("x")}}},
		"another's ID": keySet{Keys: []key{swapped}},
		"too many":     keySet{Keys: slices.Repeat([]key{one}, maxKeys+1)},
	} {
		text, err := json.Marshal(bad)
		if err != nil {
			t.Fatal(err)
		}
		if s, err := parse(text); err == nil {
			t.Errorf("%s: %+v", name, s)
		}
	}
}

// TestTimes: what is beyond the bounds is refused before anything starts.
func TestTimes(t *testing.T) {
	for _, bad := range []Times{{TTL: time.Second}, {TTL: 2 * time.Hour}, {TTL: -time.Minute}, {Keep: -1}} {
		if bad.Check() == nil {
			t.Errorf("%+v is taken", bad)
		}
	}
	if err := (Times{TTL: MaxTTL}).Check(); err != nil {
		t.Error(err)
	}
}
