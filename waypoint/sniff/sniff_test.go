package sniff_test

import (
	"strings"
	"testing"

	"github.com/heddle-mesh/heddle/internal/testenv"
	"github.com/heddle-mesh/heddle/waypoint/sniff"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func TestRequest(t *testing.T) {
	for text, want := range map[string][2]bool{
		"": {false, false}, "G": {false, false}, "GET": {false, false}, "GET ": {false, false}, "GET /": {true, true}, "M-SEARCH *": {true, true}, "CONNECT h:1": {true, true}, "OPTIONS *": {true, true},
		"CONNECT 10.0.0.1:1": {true, true}, "CONNECT [::1]:1": {true, true}, "GET \x00": {false, true}, "get /": {false, true}, "\x16\x03\x01": {false, true}, "GO ": {false, true}, "SSH-2.0-x\r\n": {false, true},
		"P": {false, false}, "PRI": {false, false}, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r": {false, false}, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n": {false, true}, "PRI * HTTP/1.1": {true, true}, "PROPFIND /": {true, true},
		strings.Repeat("A", 32): {false, false}, strings.Repeat("A", 33): {false, true},
	} {
		if is, sure := sniff.Request([]byte(text)); is != want[0] || sure != want[1] {
			t.Errorf("%q: %v %v, want %v", text, is, sure, want)
		}
	}
}

// FuzzRequest: what is sure stays so, whatever comes behind.
func FuzzRequest(f *testing.F) {
	f.Add([]byte("GET / HTTP/1.1\r\n"))
	f.Add([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		said, before := false, false
		for i := range len(b) + 1 {
			is, sure := sniff.Request(b[:i])
			if said && (is != before || !sure) {
				t.Fatalf("%q: %v, %v after %v", b[:i], is, sure, before)
			}
			said, before = sure, is
		}
	})
}
