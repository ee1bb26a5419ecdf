package serve_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/heddle-mesh/heddle/waypoint/serve"
)

// unknown is a body whose length nobody says.
type unknown struct{ io.Reader }

// TestBodyBound: a body beyond the bound is answered with 413, at once where its length is said, and else when there is more of it,
// in either version on either side; no workload takes it for whole, and one as large as the bound goes through.
func TestBodyBound(t *testing.T) {
	const most = 10_000
	var whole atomic.Int64
	handle := func(out http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		if err != nil {
			return // cut short
		}
		if whole.Add(1); n > most {
			t.Errorf("a workload has %d bytes", n)
		}
		fmt.Fprint(out, n)
	}
	for name, b := range map[string]*backend{"one": serving(t, "cart", cartAddr, 1, handle), "two": serving2(t, "cart", cartAddr, 1, nil, handle)} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, []*backend{b}, func(cfg *serve.Config) { cfg.HTTP.BodyBytes = most })
			for version, client := range map[string]func() *http.Client{"1": w.client, "2": w.client2} {
				for _, said := range []bool{true, false} {
					body := func(n int) io.Reader {
						if said {
							return strings.NewReader(strings.Repeat("x", n))
						}
						return unknown{strings.NewReader(strings.Repeat("x", n))}
					}
					what := fmt.Sprintf("HTTP/%s, its length said: %v", version, said)
					before := whole.Load()
					for _, n := range []int{most + 1, 5 * most} {
						if resp, _ := w.do(client(), request(t, "POST", "/", body(n))); resp.StatusCode != 413 || resp.Header.Get("X-Heddle-Reason") != "body_too_large" {
							t.Errorf("%s, %d bytes: %d %v", what, n, resp.StatusCode, resp.Header)
						}
					}
					if whole.Load() != before {
						t.Errorf("%s: a workload has had a whole request of what was refused", what)
					}
					if resp, text := w.do(client(), request(t, "POST", "/", body(most))); resp.StatusCode != 200 || text != fmt.Sprint(most) {
						t.Errorf("%s: as large as the bound: %d %q %v", what, resp.StatusCode, text, resp.Header)
					}
				}
			}
			if n := w.value("heddle_waypoint_refusals_total", "reason", "body_too_large"); n != 8 {
				t.Errorf("%v refusals are counted", n)
			}
			w.stop()
			if n := strings.Count(w.log.String(), `"status":413`); n != 8 {
				t.Errorf("%d of 8 are in the log: %s", n, w.log)
			}
		})
	}
}
