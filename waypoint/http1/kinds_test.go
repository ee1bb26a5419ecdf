package http1

import (
	"strings"
	"testing"
)

// TestKinds: every field that we act upon is known in any case, and its alias too.
func TestKinds(t *testing.T) {
	names := map[string]kind{
		"Sec-WebSocket-Key": webSocketKey, "Sec-WebSocket-Accept": webSocketAccept, "Trailer": trailer, "Host": host, "Content-Length": contentLength,
		"Transfer-Encoding": transferEncoding, "Connection": connection, "Keep-Alive": keepAlive, "Proxy-Connection": proxyConnection, "TE": te, "Upgrade": upgrade,
		"HTTP2-Settings": http2Settings, "Expect": expect, "X-Heddle-Reason": heddleReason,
	}
	for name, want := range names {
		for _, spelling := range []string{name, strings.ToLower(name), strings.ToUpper(name)} {
			if k, aliased := kindOf([]byte(spelling)); k != want || aliased {
				t.Errorf("%s: %d, %v", spelling, k, aliased)
			}
		}
		if alias := strings.ReplaceAll(name, "-", "_"); alias != name {
			if k, aliased := kindOf([]byte(alias)); k != want || !aliased {
				t.Errorf("%s: %d, %v", alias, k, aliased)
			}
		}
		for i := range name {
			changed := []byte(name)
			changed[i] ^= 1 // a dash becomes a comma
			if k, aliased := kindOf(changed); aliased != (name[i] == '-') || k != other && !aliased {
				t.Errorf("%s: %d, %v", changed, k, aliased)
			}
		}
	}
	if (webSocketKey >= firstOwned) || (host < firstOwned) || heddleReason != host+kind(len(names)-4) {
		t.Error("the kinds are in another order")
	}
}
