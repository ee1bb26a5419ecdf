package testbed

import (
	"context"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/testenv"
)

// Metrics reads what a program of the mesh serves: the agent of a node, by its
// name, or "operator".
func (b *Bed) Metrics(t testing.TB, part string) string {
	t.Helper()
	at := "/run/netns/heddle-" + b.Mesh.Plan.Name + "-" + part
	if part == "operator" {
		at = b.Mesh.FabricPath()
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, network, address string) (c net.Conn, err error) {
		err = testenv.InNetNS(at, func() error {
			c, err = new(net.Dialer).DialContext(ctx, network, address)
			return err
		})
		return c, err
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://127.0.0.1:15020/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		t.Fatalf("read the metrics of %s: %v", part, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("read the metrics of %s: %v", part, err)
	}
	return string(body)
}
