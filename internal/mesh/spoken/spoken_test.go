package spoken_test

import (
	"testing"

	"github.com/heddle-mesh/heddle/internal/mesh/spoken"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func TestPort(t *testing.T) {
	for _, c := range []struct {
		name, app string
		said      spoken.Spoken
		version   spoken.Version
	}{
		{"http", "", spoken.HTTP, spoken.AsAsked}, {"http-web", "", spoken.HTTP, spoken.AsAsked}, {"grpc", "", spoken.HTTP, spoken.Two}, {"grpc-api", "", spoken.HTTP, spoken.Two},
		{"http2", "", spoken.HTTP, spoken.Two}, {"h2c", "", spoken.HTTP, spoken.Two}, {"grpc-web", "", spoken.HTTP, spoken.AsAsked}, {"grpc-web-a", "", spoken.HTTP, spoken.AsAsked},
		{"grpc-webs", "", spoken.HTTP, spoken.Two}, {"tcp-db", "", spoken.Opaque, spoken.AsAsked}, {"https", "", spoken.Opaque, spoken.AsAsked},
		{"web", "", spoken.Unsaid, spoken.AsAsked}, {"", "", spoken.Unsaid, spoken.AsAsked}, {"httpx", "", spoken.Unsaid, spoken.AsAsked},
		// What the port says itself has the last word,
		{"web", "kubernetes.io/h2c", spoken.HTTP, spoken.Two}, {"tcp", "kubernetes.io/h2c", spoken.HTTP, spoken.Two}, {"grpc", "kubernetes.io/ws", spoken.HTTP, spoken.One},
		{"http", "kubernetes.io/wss", spoken.Opaque, spoken.AsAsked}, {"http", "grpc", spoken.HTTP, spoken.Two}, {"grpc", "http", spoken.HTTP, spoken.AsAsked}, {"http", "tcp", spoken.Opaque, spoken.AsAsked},
		{"", "HTTP2", spoken.HTTP, spoken.Two}, {"", "grpc-web", spoken.HTTP, spoken.AsAsked},
		// unless nobody knows what it means.
		{"grpc", "example.com/own", spoken.HTTP, spoken.Two}, {"", "ldap", spoken.Unsaid, spoken.AsAsked}, {"", "http-web", spoken.Unsaid, spoken.AsAsked},
	} {
		if said, version := spoken.Port(c.name, c.app); said != c.said || version != c.version {
			t.Errorf("name %q, appProtocol %q: %d %d, want %d %d", c.name, c.app, said, version, c.said, c.version)
		}
	}
}
