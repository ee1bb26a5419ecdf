package hbone_test

import (
	"strings"
	"testing"

	"golang.org/x/net/http2/hpack"

	"github.com/heddle-mesh/heddle/internal/hbone"
)

// FuzzRequest feeds decoded header fields, separated by zero bytes, to what
// reads a CONNECT: an accepted one has a target, and no header that could mean
// a second one.
func FuzzRequest(f *testing.F) {
	f.Add(":method\x00CONNECT\x00:authority\x0010.0.0.1:80\x00forwarded\x00for=1.2.3.4\x00baggage\x00a=b")
	f.Add(":method\x00CONNECT\x00:authority\x00[::1]:80\x00:authority\x00[::2]:80")
	f.Add(":method\x00GET\x00:path\x00/\x00host\x00x")
	f.Fuzz(func(t *testing.T, s string) {
		var fields []hpack.HeaderField
		authorities := 0
		parts := strings.Split(s, "\x00")
		for i := 0; i+1 < len(parts); i += 2 {
			fields = append(fields, hpack.HeaderField{Name: parts[i], Value: parts[i+1]})
			if parts[i] == ":authority" {
				authorities++
			}
		}
		req, err := hbone.ParseRequest(fields, false)
		if err != nil {
			return
		}
		if !req.Authority.IsValid() || authorities != 1 || !hbone.HeaderSafe(req.Baggage) {
			t.Errorf("%q: %+v", s, req)
		}
	})
}
