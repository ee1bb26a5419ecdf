package serve_test

import (
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/internal/mesh/route"
)

// TestForeignIsToldNothing: a client of another trust domain that no policy names gets no answer of the waypoint's own.
func TestForeignIsToldNothing(t *testing.T) {
	w := newWorld(t, []*backend{serving(t, "cart", cartAddr, 1, echo)})
	w.header.Identity = spiffeid.RequireFromString("spiffe://other.example/ns/a/sa/b").String()
	w.routes = routed(route.Rule{Name: "all", Filters: []route.Filter{{Redirect: &route.Redirect{Hostname: "x", Status: 302}}}})
	w.set()
	if resp, _ := w.get(w.client(), "/"); resp.StatusCode != 403 {
		t.Errorf("%d %v, want 403", resp.StatusCode, resp.Header)
	}
}
