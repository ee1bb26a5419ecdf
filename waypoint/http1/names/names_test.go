package names

import (
	"strings"
	"testing"

	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// TestKinds: every field that we act upon is known in any case, and its alias too.
func TestKinds(t *testing.T) {
	names := map[string]Kind{
		"Sec-WebSocket-Key": WebSocketKey, "Sec-WebSocket-Accept": WebSocketAccept, "Trailer": Trailer, "Host": Host, "Content-Length": ContentLength,
		"Transfer-Encoding": TransferEncoding, "Connection": Connection, "Keep-Alive": KeepAlive, "Proxy-Connection": ProxyConnection, "TE": TE, "Upgrade": Upgrade,
		"HTTP2-Settings": HTTP2Settings, "Expect": Expect, "X-Heddle-Reason": HeddleReason,
	}
	for name, want := range names {
		for _, spelling := range []string{name, strings.ToLower(name), strings.ToUpper(name)} {
			if k, aliased := Of([]byte(spelling)); k != want || aliased {
				t.Errorf("%s: %d, %v", spelling, k, aliased)
			}
		}
		if alias := strings.ReplaceAll(name, "-", "_"); alias != name {
			if k, aliased := Of([]byte(alias)); k != want || !aliased {
				t.Errorf("%s: %d, %v", alias, k, aliased)
			}
		}
		for i := range name {
			changed := []byte(name)
			changed[i] ^= 1 // a dash becomes a comma
			if k, aliased := Of(changed); aliased != (name[i] == '-') || k != Other && !aliased {
				t.Errorf("%s: %d, %v", changed, k, aliased)
			}
		}
	}
	if (WebSocketKey >= FirstOwned) || (Host < FirstOwned) || HeddleReason != Host+Kind(len(names)-4) {
		t.Error("the kinds are in another order")
	}
}
