package serve_test

import (
	"io"
	"net/http"
	"net/netip"
	"strconv"
	"testing"

	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/testenv"
	"github.com/heddle-mesh/heddle/waypoint/serve"
)

// TestH2Spec: the suite is the client of a waypoint, with workloads behind it that speak the one version or the other. What it
// sees are their answers: they read a request to its end, and say something.
func TestH2Spec(t *testing.T) {
	hello := func(out http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			panic(http.ErrAbortHandler)
		}
		_, _ = io.WriteString(out, "hello, whoever you are")
	}
	// At a port for HTTP of either version, what is no preface is HTTP/1.1's, and answered in it (RFC 9113 section 3.4: the
	// peer is not using HTTP/2), which the second case of 3.5 cannot read. At one for HTTP/2 it is a bad preface.
	sections := map[string][]string{"one": {"generic", "hpack", "http2/3.5/1", "http2/4", "http2/5", "http2/6", "http2/7", "http2/8"}, "two": nil}
	for name, b := range map[string]*backend{"one": serving(t, "cart", cartAddr, 1, hello), "two": serving2(t, "cart", cartAddr, 1, nil, hello)} {
		t.Run(name, func(t *testing.T) {
			b.mode = mesh.ModePermissive // nobody says who the suite is
			w := newWorld(t, []*backend{b}, func(c *serve.Config) { c.Direct = netip.AddrPortFrom(cartAddr, servicePort) })
			testenv.H2Spec(t, "../http2/h2spec", strconv.Itoa(w.at.Port), sections[name]...)
			if n := w.value("heddle_waypoint_requests_total", "code", "5xx"); n > 0 {
				t.Errorf("%v requests were answered with 5xx", n)
			}
		})
	}
}
