package grammar

import (
	"net/url"
	"strings"
	"testing"

	"golang.org/x/net/http/httpguts"

	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// TestClasses compares the table of bytes with the grammar, and with x/net's.
func TestClasses(t *testing.T) {
	for i := range 256 {
		c := byte(i)
		alnum := c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
		for class, want := range map[uint8]bool{
			Token:    i < 0x80 && httpguts.IsTokenRune(rune(i)),
			Value:    httpguts.ValidHeaderFieldValue(string([]byte{c})),
			Target:   c > ' ' && c < 0x7f && !strings.ContainsRune(`"#<>`, rune(i)),
			HostByte: alnum || i < 0x80 && strings.ContainsRune("-._~", rune(i)),
			Hex:      strings.ContainsRune("0123456789abcdefABCDEF", rune(i)),
		} {
			if Is(c, class) != want {
				t.Errorf("byte %#x, class %d: %v", i, class, !want)
			}
		}
	}
}

// TestLists: tokens and commas, and nothing else.
func TestLists(t *testing.T) {
	for list, want := range map[string]string{
		"": "|", "a": "a|", "a,b": "a|b|", " a ,\t b ": "a|b|", ",,a,,": "a|", "a b": "!", "a;b": "!", "a,\"b\"": "a|!", "a\x00": "!", "a, ": "a|",
	} {
		var got strings.Builder
		for rest := []byte(list); ; {
			token, after, ok := NextToken(rest)
			if !ok {
				got.WriteString("!")
				break
			}
			if got.Write(token); len(token) == 0 && got.Len() > 0 {
				break
			}
			got.WriteString("|")
			if rest = after; len(rest) == 0 {
				break
			}
		}
		if got.String() != want {
			t.Errorf("%q: %q, want %q", list, got.String(), want)
		}
	}
}

// FuzzHost: a host that is good to us is one to net/url, with the port that we see.
func FuzzHost(f *testing.F) {
	for _, seed := range []string{"h", "h:80", "[::1]:8080", "a_b.c~:0", "[::ffff:1.2.3.4]", "h:65536", "h:", "[::1%25eth0]", "a@b", "[v1.x]", "h:080"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, host string) {
		ok, port := CheckHost([]byte(host))
		if !ok {
			return
		}
		u, err := url.ParseRequestURI("http://" + host + "/")
		if err != nil || u.Host != host || (u.Port() != "") != port || !httpguts.ValidHostHeader(host) {
			t.Errorf("%q: %v, %+v, port %v", host, err, u, port)
		}
	})
}

// FuzzTarget: a path that is good to us is one to net/url, and says the same.
func FuzzTarget(f *testing.F) {
	for _, seed := range []string{"/", "/a%2f?b=%", "//x", "/%zz", "/%00", "/a\\b", "/[]|^{}", "/?\\"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, target string) {
		b := []byte(target)
		if !strings.HasPrefix(target, "/") || Span(b, Target) < len(b) || !CheckPath(b) {
			return
		}
		u, err := url.ParseRequestURI(target)
		path, query, _ := strings.Cut(target, "?")
		if err != nil || u.Host != "" || u.RawQuery != query || strings.ContainsAny(u.Path, "\x00") || u.EscapedPath() != path && u.RawPath != path && u.Path != path {
			t.Errorf("%q: %v, %+v", target, err, u)
		}
	})
}
