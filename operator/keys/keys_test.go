package keys

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/identity"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func TestEpochBase(t *testing.T) {
	for text, want := range map[string]uint64{"": 0, "0": 0, "1764000000000000": 1764000000000000, " 7\n": 7} {
		if got, err := epochBase([]byte(text)); err != nil || got != want {
			t.Errorf("%q: %d, %v", text, got, err)
		}
	}
	for text, says := range map[string]string{"-1": "invalid", "soon": "invalid", "1e6": "invalid", " ": "invalid", "9223372036854775807": "larger", "99999999999999999999": "range"} {
		if _, err := epochBase([]byte(text)); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v, want %q", text, err, says)
		}
	}
}

// TestCAThatEnded: with somebody who gives another CA, it takes the place of one that has
// ended, once; what is not the CA's stays. Else, and where cert-manager keeps it, it does not.
func TestCAThatEnded(t *testing.T) {
	s, cfg := certManagers(t)
	past := cfg
	past.RootTTL, past.Now = time.Hour, func() time.Time { return time.Now().Add(-2 * time.Hour) }
	ended, err := identity.NewAuthorityTexts(past)
	if err != nil {
		t.Fatal(err)
	}
	asked := 0
	first := func(context.Context) (map[string][]byte, error) {
		asked++
		texts, err := identity.NewAuthorityTexts(cfg)
		delete(texts, "configuration.key")
		return texts, err
	}
	ended[EpochKey], ended["root.key"] = []byte("7000"), ended["tls.key"]
	s.kept.Data = maps.Clone(ended)
	if _, err := Open(t.Context(), s, "heddle-system", cfg, first); !errors.Is(err, ErrManaged) || s.updates != 0 {
		t.Errorf("cert-manager's: %v, %d updates", err, s.updates)
	}
	s.kept.Annotations, asked = nil, 0
	if _, err := Open(t.Context(), s, "heddle-system", cfg, nil); err == nil || s.updates != 0 {
		t.Errorf("with nobody to ask: %v, %d updates", err, s.updates)
	}
	for range 2 {
		kept, err := Open(t.Context(), s, "heddle-system", cfg, first)
		if err != nil || asked != 1 || s.updates != 1 || kept.EpochBase != 7000 {
			t.Fatalf("%v, asked %d times, %d updates", err, asked, s.updates)
		}
	}
	if !bytes.Equal(s.kept.Data["configuration.key"], ended["configuration.key"]) || bytes.Equal(s.kept.Data["tls.key"], ended["tls.key"]) || s.kept.Data["root.key"] != nil {
		t.Error("the configuration key changed, or a key of the CA stayed")
	}
	s.kept.Data = maps.Clone(ended)
	s.first = func() { // another replica is first
		s.first = nil
		if _, err := Open(t.Context(), s, "heddle-system", cfg, first); err != nil {
			t.Error(err)
		}
	}
	if _, err := Open(t.Context(), s, "heddle-system", cfg, first); err != nil || s.updates != 2 {
		t.Errorf("%v, %d updates", err, s.updates)
	}
}
