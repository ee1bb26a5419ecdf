package session_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/mesh/keyed"
	"github.com/heddle-mesh/heddle/internal/mesh/route/session"
)

var (
	now = time.Unix(1_700_000_000, 0)
	pod = keyed.Key{Namespace: "shop", Name: "cart-6d4cf56db6-x2x7k"}
)

// TestToken: what is written is read, and always the same: a replica of another version has to read it.
func TestToken(t *testing.T) {
	token := session.At(0x0123456789abcdef, pod, now)
	const want = "AmVT8QABI0VniavN766IRn5_"
	if token.String() != want {
		t.Errorf("the token is %q, want %q", token, want)
	}
	if again, ok := session.Parse(token.String()); !ok || again != token {
		t.Errorf("%v is read as %v, %v", token, again, ok)
	}
	if token.Backend() != 0x0123456789abcdef || token.Workload() != session.Name(token.Backend(), pod) {
		t.Errorf("it names backend %x and workload %x", token.Backend(), token.Workload())
	}
}

// TestOver: a session ends after its time, and has not begun in a future that no clock explains.
func TestOver(t *testing.T) {
	token := session.At(1, pod, now)
	for _, x := range []struct {
		limit, after time.Duration
		over         bool
	}{{0, 10000 * time.Hour, false}, {0, -time.Hour, false}, {time.Hour, time.Hour - time.Second, false}, {time.Hour, time.Hour, true}, {time.Hour, -time.Second, false}, {time.Hour, -2 * time.Minute, true}} {
		if got := token.Over(x.limit, now.Add(x.after)); got != x.over {
			t.Errorf("of %v, %v after its beginning: over %v, want %v", x.limit, x.after, got, x.over)
		}
	}
}

// TestNames: a workload's name differs from backend to backend, has no more bits than it should, and those of a large service differ.
func TestNames(t *testing.T) {
	if session.Name(1, pod) == session.Name(2, pod) {
		t.Error("two backends call a workload the same")
	}
	seen := map[uint64]bool{}
	for i := range 2000 {
		name := session.Name(1, keyed.Key{Namespace: "shop", Name: fmt.Sprintf("cart-%d", i)})
		if seen[name] || name >= 1<<40 {
			t.Errorf("the name %x of workload %d", name, i)
		}
		seen[name] = true
	}
}

// TestNothing: what is no token is none.
func TestNothing(t *testing.T) {
	good := session.At(1, pod, now).String()
	for _, text := range []string{"", good[1:], good + "A", good[:len(good)-1] + "=", good[:len(good)-1] + "+", "B" + good[1:], strings.Repeat("\x00", len(good)), good[:12] + "\n" + good[13:], strings.Repeat("A", 1<<16)} {
		if token, ok := session.Parse(text); ok {
			t.Errorf("%q is read as %v", text, token)
		}
	}
}

// FuzzParse: whatever is read is written as it was.
func FuzzParse(f *testing.F) {
	f.Add(session.At(1, pod, now).String())
	f.Add("AmVT8QAAAAAAAAAAAAAAAAAA")
	f.Add("")
	f.Fuzz(func(t *testing.T, text string) {
		if token, ok := session.Parse(text); ok && token.String() != text {
			t.Errorf("%q is read as %q", text, token)
		}
	})
}
