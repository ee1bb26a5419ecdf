package asked_test

import (
	"strings"
	"testing"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/explain/asked"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// TestParse: what is no request is refused, with the flag.
func TestParse(t *testing.T) {
	for _, c := range []struct{ method, host, path, header, flag string }{
		{"", "", "", "", ""}, {"GET", "cart.shop:8080", "/a?b=c", "x-role=a=b", ""}, {"OPTIONS", "", "*", "", ""}, {"CONNECT", "", "", "", ""}, {"GET", "", "/a%5Cb", "", ""}, {"GET", "", "/a%00", "", "--path"}, {"GET", "", "", "upgrade=websocket", ""},
		{"G T", "", "", "", "--method"}, {strings.Repeat("A", 100), "", "", "", "--method"}, {"TRACE", "", "", "", "--method"},
		{"GET", "a b", "", "", "--host"}, {"GET", "http://x/", "", "", "--host"}, {"GET", "", "x", "", "--path"}, {"GET", "", "/a b", "", "--path"}, {"GET", "", "/" + strings.Repeat("a", 10000), "", "--path"},
		{"GET", "", "", "novalue", "--header"}, {"GET", "", "", "=x", "--header"}, {"GET", "", "", "a b=x", "--header"}, {"GET", "", "", "a=x\ny", "--header"}, {"GET", "", "", "Host=x", "--host x"},
	} {
		var headers []string
		if c.header != "" {
			headers = []string{c.header}
		}
		r, err := asked.Parse(c.method, c.host, c.path, headers)
		if c.flag == "" {
			if err != nil || r.Method == "" {
				t.Errorf("%+v: %v", c, err)
			}
		} else if err == nil || !strings.Contains(err.Error(), c.flag) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

// FuzzParse: whatever flags say is a request or an error that names one of them.
func FuzzParse(f *testing.F) {
	f.Add("GET", "a", "/", "a=b")
	f.Fuzz(func(t *testing.T, method, host, path, header string) {
		if r, err := asked.Parse(method, host, path, []string{header}); err != nil {
			if !strings.HasPrefix(err.Error(), "--") {
				t.Errorf("%v", err)
			}
		} else if r.Method == "" || len(r.Headers) != 1 {
			t.Errorf("%+v", r)
		}
	})
}
