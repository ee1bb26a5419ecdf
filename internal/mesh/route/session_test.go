package route_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/mesh/keyed"
	"github.com/heddle-mesh/heddle/internal/mesh/route"
	"github.com/heddle-mesh/heddle/internal/mesh/route/session"
)

// carrying returns a request with a token, as its session has it.
func carrying(s *route.Session, token string) *route.Request {
	if s.Header {
		return &route.Request{To: web(), Headers: fields("accept", "*/*", strings.ToUpper(s.Name), token)}
	}
	return &route.Request{To: web(), Headers: fields("accept", "*/*", "Cookie", fmt.Sprintf("x%s=1; %s=%s; b=2", s.Name, s.Name, token))}
}

// pod is a workload that sessions begin with.
var pod = keyed.Key{Namespace: "shop", Name: "web-v1-6d4cf56db6-x2x7k"}

// choose returns the backend of a request, and the token of the session that it begins; "" when it is of one that goes on.
func choose(s *route.Splits, target *route.Target, r *route.Request, now time.Time) (*route.Backend, string) {
	if b, _ := s.Session(target, r, now); b != nil {
		return b, ""
	}
	b, name := s.Backend(target)
	return b, session.At(name, pod, now).String()
}

// TestSessionsStay: the requests of a session go where its first one went, which took its
// turn by weight; also when weights change.
func TestSessionsStay(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	for _, of := range []route.Session{{Name: "x-user", Header: true}, {Name: "user"}} {
		rule := route.Rule{Backends: backends(7, 3), Session: &of}
		s, target := splits(t, nil, rule)
		counts := map[string]int{}
		tokens := map[string]string{}
		for range 100 {
			b, token := choose(s, target, &route.Request{To: web()}, now)
			if len(token) != 24 || strings.ContainsAny(token, "=; ,") {
				t.Fatalf("the token is %q", token)
			}
			counts[b.Service.Name]++
			tokens[b.Service.Name] = token
			if again, anew := choose(s, target, carrying(&of, token), now); again != b || anew != "" {
				t.Fatalf("a session of %s goes on at %s, with token %q", b.Service, again.Service, anew)
			}
		}
		if counts["web-v1"] != 70 || counts["web-v2"] != 30 {
			t.Errorf("sessions begin at %v, want 70 and 30 of 100", counts)
		}
		for _, weights := range [][]uint32{{1, 99, 5}, {0, 1}, {1, 0}} {
			rule.Backends = backends(weights...)
			s, target := splits(t, s, rule)
			for name, token := range tokens {
				if b, anew := choose(s, target, carrying(&of, token), now.Add(1000*time.Hour)); b.Service.Name != name || anew != "" {
					t.Errorf("with weights %v a session of %s goes to %s, with token %q", weights, name, b.Service, anew)
				}
			}
		}
	}
}

// TestSessionsEnd: what is no token of this rule, or of a backend that is gone, or too old,
// begins a session.
func TestSessionsEnd(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	of := route.Session{Name: "s", AbsoluteTimeout: time.Hour}
	rule := route.Rule{Name: "one", Backends: backends(1), Session: &of}
	s, target := splits(t, nil, rule)
	_, token := choose(s, target, &route.Request{To: web()}, now)
	other := rule
	other.Name = "two"
	two, target2 := splits(t, nil, other)
	gone := rule
	gone.Backends = backends(1, 1)[1:]
	without, target3 := splits(t, nil, gone)
	broken := rule
	broken.Backends = backends(1, 1)
	broken.Backends[0].Broken, broken.Backends[0].Weight = "is not there", 0
	unfit, target4 := splits(t, nil, broken)
	for _, test := range []struct {
		name   string
		splits *route.Splits
		target *route.Target
		token  string
		at     time.Time
		begins bool
	}{
		{"a good one", s, target, token, now.Add(time.Hour - time.Second), false},
		{"another replica's, whose clock is ahead", s, target, token, now.Add(-time.Second), false},
		{"too old", s, target, token, now.Add(time.Hour), true},
		{"of the future", s, target, token, now.Add(-time.Hour), true},
		{"another rule's", two, target2, token, now, true},
		{"of a backend that is gone", without, target3, token, now, true},
		{"of a backend that is broken", unfit, target4, token, now, true},
		{"none", s, target, "", now, true},
		{"cut off", s, target, token[:len(token)-1], now, true},
		{"too long", s, target, token + strings.Repeat("A", 1<<16), now, true},
		{"no base64", s, target, strings.Repeat("!", len(token)), now, true},
		{"of another version", s, target, "Z" + token[1:], now, true},
		{"made up", s, target, strings.Repeat("A", len(token)), now, true},
	} {
		b, anew := choose(test.splits, test.target, carrying(&of, test.token), test.at)
		if b == nil || b.Broken != "" || (anew != "") != test.begins {
			t.Errorf("%s: goes to %v, begins a session: %v, want %v", test.name, b, anew != "", test.begins)
		}
	}
}

// FuzzSession: whatever a client says is its token, it gets a backend of the rule, and a
// token that keeps it there unless it had one.
func FuzzSession(f *testing.F) {
	now := time.Unix(1_700_000_000, 0)
	of := route.Session{Name: "s", AbsoluteTimeout: time.Hour}
	rule := route.Rule{Backends: backends(1, 1), Session: &of}
	f.Add("", int64(0))
	f.Add("AmVS9gAAAAAAAAAAAAAAAAAA", int64(10))
	f.Add("s=1; s=", int64(-10))
	f.Fuzz(func(t *testing.T, cookie string, ago int64) {
		s, target := splits(t, nil, rule)
		for _, r := range []*route.Request{{To: web(), Headers: fields("cookie", cookie)}, carrying(&of, cookie)} {
			at := now.Add(time.Duration(ago % int64(2*time.Hour)))
			b, anew := choose(s, target, r, at)
			if b == nil || b.Weight != 1 {
				t.Fatalf("%q goes to %v", cookie, b)
			}
			if anew == "" {
				continue // it went on
			}
			if again, token := choose(s, target, carrying(&of, anew), at); again != b || token != "" {
				t.Fatalf("%q begins a session with %q, which goes on at %v with %q, not at %v", cookie, anew, again, token, b)
			}
		}
	})
}
