package uri_test

import (
	"fmt"
	"net/url"
	"path"
	"strings"
	"testing"

	"github.com/heddle-mesh/heddle/internal/mesh/route/uri"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestNormalPath(t *testing.T) {
	for from, want := range map[string]string{
		"/": "/", "/a/b": "/a/b", "/a/": "/a/", "//": "//", "/a//b": "/a//b", "*": "*", "/.well-known/x": "/.well-known/x", "/a...": "/a...",
		"/%61%2d%7E": "/a-~", "/%2f%3a": "/%2F:", "/é": "/%C3%A9", "/\xff": "/%FF", "/%c3%a9": "/%C3%A9", "/a+b;c=d": "/a+b;c=d", "/%25%32%65": "/%252e",
		"/.": "/", "/..": "/", "/../../a": "/a", "/a/.": "/a/", "/a/..": "/", "/a/b/..": "/a/", "/a/./b/../c": "/a/c",
		"/a/%2e%2E/b": "/b", "/a/.%2e/b": "/b", "/%2e": "/", "/a//../b": "/a/b", "/a//.": "/a//", "/a/..%2fb": "/a/..%2Fb",
		// The example of RFC 3986, section 5.2.4.
		"/a/b/c/./../../g": "/a/g",
	} {
		if got, ok := uri.NormalPath(from); !ok || got != want {
			t.Errorf("NormalPath(%q) = %q, %v; want %q", from, got, ok, want)
		}
	}
	for _, bad := range []string{"", "a", "a/b", "http://a/", "/a b", "/a\tb", "/a\r\nb", "/\x00", "/%00", "/\\", "/%5c", "/a?b", "/a#b", "/%", "/%1", "/%g0", "/%0g", "/\x7f",
		"/" + strings.Repeat("a", uri.MaxPath)} {
		if got, ok := uri.NormalPath(bad); ok {
			t.Errorf("NormalPath(%.40q) = %.40q, want a refusal", bad, got)
		}
	}
	for _, plain := range []string{"/a/b/c-d_e~f.g", "/.well-known/x", "/a/..b/c."} {
		if n := testing.AllocsPerRun(100, func() { uri.NormalPath(plain) }); n != 0 {
			t.Errorf("NormalPath(%q) allocates %v times", plain, n)
		}
	}
}

func TestMain(m *testing.M) { testenv.Main(m) }

// TestNormalPathIsOneForm: what net/url, and with it most backends, reads as the same path is
// the same, but for what the documentation excepts.
func TestNormalPathIsOneForm(t *testing.T) {
	for c := range 256 {
		if c < ' ' || c == ' ' || c == 0x7f || strings.ContainsRune("\\?#%/;+", rune(c)) {
			continue
		}
		raw, upper, lower := "/x"+string([]byte{byte(c)})+"y", fmt.Sprintf("/x%%%02Xy", c), fmt.Sprintf("/x%%%02xy", c)
		a, okA := uri.NormalPath(raw)
		b, okB := uri.NormalPath(upper)
		l, okL := uri.NormalPath(lower)
		if !okA || !okB || !okL || a != b || a != l {
			t.Errorf("%q is %q, %q is %q, %q is %q", raw, a, upper, b, lower, l)
		}
	}
	for a, b := range map[string]string{"//admin": "/admin", "/a%2Fb": "/a/b", "/a%3Bb": "/a;b", "/a;x": "/a", "/a%2Bb": "/a+b"} {
		x, _ := uri.NormalPath(a)
		y, _ := uri.NormalPath(b)
		if x != a || y != b {
			t.Errorf("%s is %s and %s is %s, want them kept", a, x, b, y)
		}
	}
}

// FuzzNormalPath: the form is one form, has nothing left that could be read in two ways,
// and means what net/url and path take the path for.
func FuzzNormalPath(f *testing.F) {
	for _, seed := range []string{"/", "/a/../b", "/%2e%2e/a", "/a%2Fb//c/.", "/é%C3%A9", "/%25%32%65"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, from string) {
		normal, ok := uri.NormalPath(from)
		if !ok || normal == "*" {
			return
		}
		if len(normal) > 3*len(from) {
			t.Fatalf("NormalPath(%q) has %d octets of %d", from, len(normal), len(from))
		}
		if again, ok := uri.NormalPath(normal); len(normal) <= uri.MaxPath && (!ok || again != normal) {
			t.Fatalf("NormalPath(%q) = %q, and of that %q, %v", from, normal, again, ok)
		}
		for segment := range strings.SplitSeq(normal[1:], "/") {
			if segment == "." || segment == ".." {
				t.Fatalf("NormalPath(%q) = %q", from, normal)
			}
		}
		u, err := url.ParseRequestURI(normal)
		if err != nil || u.RawQuery != "" || u.Fragment != "" {
			t.Fatalf("NormalPath(%q) = %q: %v", from, normal, err)
		}
		// path.Clean joins empty segments and decodes slashes, which ours does not.
		if was, err := url.PathUnescape(from); err == nil && !strings.Contains(from, "//") && !strings.Contains(strings.ToLower(from), "%2f") {
			if want := path.Clean(was); strings.TrimSuffix(u.Path, "/") != strings.TrimSuffix(want, "/") && !strings.Contains(normal, "//") {
				t.Fatalf("NormalPath(%q) = %q, which is %q; path.Clean has %q", from, normal, u.Path, want)
			}
		}
	})
}

func TestMergedPath(t *testing.T) {
	for path, want := range map[string]string{
		"/": "/", "*": "*", "/a/b": "/a/b", "//a": "/a", "/a//": "/a/", "/a%2Fb": "/a/b", "/a%2F..%2Fb": "/b", "/a;x/b": "/a/b", "/a/..;/b": "/b",
		"/a%3Bx;y/b": "/a/b", "/;/a": "/a", "/%252Fa": "/%252Fa", "/a;": "/a", "/..;x": "/", "/a%2F": "/a/", "/.;/a": "/a",
	} {
		if got, _ := uri.MergedPath(path); got != want {
			t.Errorf("%q: %q, want %q", path, got, want)
		}
	}
	for path, want := range map[string]bool{
		"/": true, "/a/b": true, "/a%2Fb": true, "/a//b": true, "/a%2F/b": true, "/a;b/c;d": true, "/;a": true, "/a%3Bb": true,
		"/a;%2Fb": false, "/a%3B%2Fb": false, "/a%2Fb;c": false, "/a//b;c": false, "/a/;c/b": false, "/a;b%3Bc": false,
		"/a/%2F../b": false, "/a%2F..": false, "/..;/a": false, "/.;a": false, "/..%2Fa": false, "/public/..;%2Fpublic/admin": false,
	} {
		if _, sure := uri.MergedPath(path); sure != want {
			t.Errorf("%q: sure %v, want %v", path, sure, want)
		}
	}
}

// FuzzMergedPath: the form is one that a second reader leaves as it is.
func FuzzMergedPath(f *testing.F) {
	for _, seed := range []string{"/a", "//a;b/..%2f", "/%3B%2F;//..;/x", "*"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, path string) {
		normal, ok := uri.NormalPath(path)
		if !ok || len(normal) > uri.MaxPath {
			return
		}
		merged, _ := uri.MergedPath(normal)
		if again, ok := uri.NormalPath(merged); !ok || again != merged {
			t.Errorf("%q becomes %q, which becomes %q (%v)", path, merged, again, ok)
		}
		if again, sure := uri.MergedPath(merged); again != merged || !sure {
			t.Errorf("%q becomes %q, then %q, %v", path, merged, again, sure)
		}
		if strings.Contains(merged, "//") || strings.Contains(merged, ";") {
			t.Errorf("%q becomes %q", path, merged)
		}
	})
}
