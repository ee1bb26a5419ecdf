package flow

import (
	"crypto/tls"
	"net/netip"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/hbone/secured"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/testenv"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// sample is a record in which every field says something.
func sample() Record {
	return Record{
		ID: 7, Start: time.Unix(1700000000, 5), Duration: 3 * time.Second, Direction: DirectionOutbound,
		Source: Endpoint{
			Workload: mesh.Key{Namespace: "shop", Name: "web-1"},
			Identity: spiffeid.RequireFromString("spiffe://mesh.local/ns/shop/sa/web"),
			Addr:     netip.MustParseAddrPort("10.1.0.2:40000"),
		},
		Destination: Endpoint{
			Workload: mesh.Key{Namespace: "data", Name: "db-0"},
			Identity: spiffeid.RequireFromString("spiffe://mesh.local/ns/data/sa/db"),
			Addr:     netip.MustParseAddrPort("[fd00::5]:3306"),
		},
		Service: mesh.Key{Namespace: "data", Name: "db"}, Node: "one", Verdict: mesh.VerdictAllow,
		Reason: mesh.ReasonPolicyAllow, Policy: mesh.Key{Namespace: "data", Name: "web-reads"}, Rule: 0, Audited: "data/everything,data/writes",
		BytesSent: 10, BytesReceived: 20,
		Timing: Timing{Handshake: time.Millisecond, Connect: 2 * time.Millisecond, RTT: 30 * time.Microsecond},
		Wire:   Wire{mesh.Key{Namespace: "shop", Name: "waypoint"}, 2, TransportTunnel, secured.Facts{Group: tls.X25519MLKEM768, Serial: "ab12", NotAfter: 1700086400}.By()}, Packets: 1, Protocol: 6, Detail: "a hint",
	}
}
