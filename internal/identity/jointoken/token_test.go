package jointoken

import (
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

var td = spiffeid.RequireTrustDomainFromString("mesh.test")

func newToken(t testing.TB, node string, expires time.Time) Token {
	t.Helper()
	tok, err := New(td, node, "operator.test:15010", sha256.Sum256([]byte("root")), expires)
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

func text(t testing.TB, tok Token) string {
	t.Helper()
	s, err := tok.Text()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestTextComesBack(t *testing.T) {
	tok := newToken(t, "n1", time.Now().Add(time.Hour))
	s := text(t, tok)
	if !strings.HasPrefix(s, "heddle-join:v1:") {
		t.Errorf("text is %s", s)
	}
	got, err := Parse("\n  " + s + "\n")
	if err != nil || got != tok {
		t.Errorf("came back as %+v, %v; was %+v", got, err, tok)
	}
}

func TestTokensDoNotPrintTheirSecret(t *testing.T) {
	tok := newToken(t, "n1", time.Now().Add(time.Hour))
	for _, s := range []string{fmt.Sprint(tok), fmt.Sprintf("%+v", tok), fmt.Sprintf("%v", &tok)} {
		if s != "join token "+tok.ID()+" of node n1" {
			t.Errorf("prints %q", s)
		}
	}
}

// seal makes a token's text of any body, with a checksum that is right.
func seal(body string) string {
	sum := sha256.Sum256([]byte(body))
	return prefix + version + base64.RawURLEncoding.EncodeToString(append([]byte(body), sum[:sumBytes]...))
}

func TestMalformedTextsAreRefused(t *testing.T) {
	good := text(t, newToken(t, "n1", time.Now().Add(time.Hour)))
	raw, err := base64.RawURLEncoding.DecodeString(strings.TrimPrefix(good, prefix+version))
	if err != nil {
		t.Fatal(err)
	}
	body := string(raw[:len(raw)-sumBytes])
	for name, c := range map[string]struct{ text, want string }{
		"empty":           {"", "begin with"},
		"another thing":   {"eyJhbGciOi", "begin with"},
		"another version": {strings.Replace(good, ":v1:", ":v2:", 1), "version"},
		"cut short":       {good[:len(good)-9], "cut short"},
		"one letter off":  {good[:40] + string(good[40]^1) + good[41:], "damaged"},
		"too long":        {good + strings.Repeat("A", MaxText), "limit"},
		"no JSON":         {seal("{"), "decode"},
		"unknown field":   {seal(strings.Replace(body, "{", `{"x":1,`, 1)), "canonical"},
		"space":           {seal(body + " "), "canonical"},
		"twice":           {seal(strings.Replace(body, "{", `{"node":"n0",`, 1)), "canonical"},
		"no trust domain": {seal(strings.Replace(body, "mesh.test", "", 1)), "trust domain"},
		"bad node":        {seal(strings.Replace(body, `"n1"`, `"../n1"`, 1)), "node name"},
		"long node":       {seal(strings.Replace(body, `"n1"`, `"`+strings.Repeat("n", 300)+`"`, 1)), "node name"},
		"bad operator":    {seal(strings.Replace(body, "operator.test:15010", "operator.test", 1)), "host:port"},
		"operator's path": {seal(strings.Replace(body, "operator.test:15010", "x/y:1", 1)), "no host has"},
		"operator's port": {seal(strings.Replace(body, ":15010", ":0", 1)), "65535"},
		"short hash":      {seal(strings.Replace(body, `"ca":"`, `"ca":"","x":"`, 1)), "another length"},
		"no expiry":       {seal(body[:strings.Index(body, `,"exp"`)] + "}"), "expiry"},
	} {
		if tok, err := Parse(c.text); !errors.Is(err, ErrMalformed) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, %v; want %q", name, tok, err, c.want)
		}
	}
}

func TestNewRefusesWhatParseWould(t *testing.T) {
	for _, c := range []struct{ node, operator string }{{"", "a:1"}, {"a/b", "a:1"}, {"n", "a"}, {"n", ":1"}, {"n", "a:99999"}} {
		if _, err := New(td, c.node, c.operator, [32]byte{}, time.Now()); err == nil {
			t.Errorf("made a token of %q", c)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(text(f, newToken(f, "n1", time.Unix(2e9, 0))))
	f.Add("heddle-join:v1:")
	f.Add(seal(`{"td":"a","node":"n","ca":"","key":"","exp":1}`))
	f.Fuzz(func(t *testing.T, s string) {
		tok, err := Parse(s)
		if err != nil {
			if !errors.Is(err, ErrMalformed) {
				t.Errorf("%v does not match ErrMalformed", err)
			}
			return
		}
		if again, err := tok.Text(); err != nil || again != strings.TrimSpace(s) {
			t.Errorf("%q has another text: %q, %v", s, again, err)
		}
	})
}
