package accesslog_test

import (
	"bytes"
	"context"
	"encoding/json"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/heddle-mesh/heddle/internal/testenv"
	"github.com/heddle-mesh/heddle/internal/tune"
	"github.com/heddle-mesh/heddle/waypoint/accesslog"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func entry() *accesslog.Entry {
	return &accesslog.Entry{Time: time.Unix(1, 0), Client: netip.MustParseAddrPort("10.0.0.1:2"), Peer: "spiffe://a/b", Service: "shop/cart:80", Route: "r", Backend: "b", Workload: "w", Method: []byte("GET"),
		Host: []byte("h"), Path: []byte("/a?token=secret"), Agent: []byte("x"), Status: 200, Received: 1, Sent: 2, Took: time.Second, Tries: 1, First: "f", Reason: "y"}
}

// lines are what a log writes of an entry.
func lines(t *testing.T, cfg accesslog.Config, e *accesslog.Entry) string {
	t.Helper()
	var out bytes.Buffer
	l, err := accesslog.New(&out, cfg)
	if err != nil {
		t.Fatal(err)
	}
	l.Add(e)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	l.Run(ctx)
	return out.String()
}

// TestLine: a line is JSON, has every field that the page names, and masks those that it is to.
func TestLine(t *testing.T) {
	page, err := os.ReadFile("../../docs/waypoint.md")
	if err != nil {
		t.Fatal(err)
	}
	if want := "Fields: `" + strings.Join(accesslog.Fields(), "`, `") + "`."; !strings.Contains(string(page), want) {
		t.Errorf("docs/waypoint.md lacks %s", want)
	}
	if got := tune.AccessFields(); !slices.Equal(got, accesslog.Fields()) {
		t.Errorf("the operator checks masks by %q", got)
	}
	var line map[string]any
	if err := json.Unmarshal([]byte(lines(t, accesslog.Config{Sample: 1}, entry())), &line); err != nil {
		t.Fatal(err)
	}
	for _, f := range accesslog.Fields() {
		if _, ok := line[f]; !ok {
			t.Errorf("a line has no %s", f)
		}
	}
	if line["path"] != "/a" || line["query"] != "token=secret" || line["seconds"] != 1.0 {
		t.Errorf("a line is %v", line)
	}
	text := lines(t, accesslog.Config{Sample: 1, Mask: accesslog.Fields()}, entry())
	line = nil
	if err := json.Unmarshal([]byte(text), &line); err != nil {
		t.Fatal(err)
	}
	for f, v := range line {
		if v != "***" {
			t.Errorf("%s is %v", f, v)
		}
	}
}

func TestSample(t *testing.T) {
	l, err := accesslog.New(&bytes.Buffer{}, accesslog.Config{Sample: 0.1})
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for range 1000 {
		if l.Wants(200) {
			n++
		}
	}
	if n != 100 || !l.Wants(500) || !l.Wants(0) {
		t.Errorf("%d of 1000", n)
	}
	if none, err := accesslog.New(nil, accesslog.Config{}); none != nil || err != nil || none.Wants(500) || none.Lost() != 0 {
		t.Error("a log of nothing")
	}
}

// TestFull: what has no room is lost, and counted.
func TestFull(t *testing.T) {
	l, err := accesslog.New(&bytes.Buffer{}, accesslog.Config{Sample: 1})
	if err != nil {
		t.Fatal(err)
	}
	for range 100_000 {
		l.Add(entry())
	}
	if n := l.Lost(); n < 1000 || n > 99_000 {
		t.Errorf("%d of 100000 are lost", n)
	}
}

// FuzzLine: whatever a client sends, a line is one line of JSON in UTF-8.
func FuzzLine(f *testing.F) {
	f.Add([]byte("/a?\"\\\x00\xff\u2028"))
	f.Fuzz(func(t *testing.T, b []byte) {
		e := entry()
		e.Path, e.Host, e.Agent = b, b, b
		text := lines(t, accesslog.Config{Sample: 1}, e)
		var line map[string]any
		if err := json.Unmarshal([]byte(text), &line); err != nil || strings.Count(text, "\n") != 1 || !utf8.ValidString(text) {
			t.Fatalf("%q: %v", text, err)
		}
		if host, _ := line["host"].(string); utf8.Valid(b) && host != string(b) {
			t.Fatalf("%q became %q", b, host)
		}
	})
}
