package serve_test

import (
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/waypoint/serve"
)

// offered is what became of requests that were sent at a rate, each at its time whether or not the ones before it were answered.
type offered struct {
	served, shed, failed int
	servedIn, shedIn     time.Duration // the median of how long it took
}

// offer sends requests for a while.
func offer(t *testing.T, c *http.Client, perSecond float64, d time.Duration) (o offered) {
	t.Helper()
	var mu sync.Mutex
	var served, shed []time.Duration
	var all sync.WaitGroup
	began := time.Now()
	for n := 0; n < int(perSecond*d.Seconds()); n++ {
		due := began.Add(time.Duration(float64(n) / perSecond * float64(time.Second)))
		time.Sleep(time.Until(due))
		all.Go(func() {
			resp, err := c.Do(request(t, "GET", "/", nil))
			if err == nil {
				_, err = io.Copy(io.Discard, resp.Body)
				_ = resp.Body.Close()
			}
			took := time.Since(due)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil && resp.StatusCode == 200 && took < time.Second:
				served = append(served, took)
			case err == nil && resp.StatusCode == 503 && resp.Header.Get("X-Heddle-Reason") == "Overloaded":
				shed = append(shed, took)
			default:
				o.failed++
			}
		})
	}
	all.Wait()
	o.served, o.shed, o.servedIn, o.shedIn = len(served), len(shed), middle(served), middle(shed)
	return o
}

// wrong says what is wrong with what became of requests, of which there were too many or not, and of as many as can be served so many were.
func (o offered) wrong(takes time.Duration, tooMany bool, full int) string {
	switch {
	case 10*o.failed > o.served:
		return fmt.Sprintf("%d are neither served in a second nor refused as Overloaded, and %d served", o.failed, o.served)
	case 2*o.served < full:
		return fmt.Sprintf("it serves %d", o.served)
	case o.servedIn > takes+250*time.Millisecond:
		return fmt.Sprintf("they are served after %v", o.servedIn)
	case tooMany && (o.shed == 0 || o.shedIn > 250*time.Millisecond):
		return fmt.Sprintf("%d are refused, after %v", o.shed, o.shedIn)
	}
	return ""
}

func middle(all []time.Duration) time.Duration {
	if len(all) == 0 {
		return 0
	}
	slices.Sort(all)
	return all[len(all)/2]
}

// TestGoodput: of two and three times as many requests as it may have under way as many are served as of those that it
// can serve: the rest is refused at once, and nothing waits. How much that is, is measured here; the bound is generous,
// as the machine has other work (make bench-waypoint has the figures).
func TestGoodput(t *testing.T) {
	const most, takes, d = 4, 50 * time.Millisecond, 1500 * time.Millisecond // 80 each second, of which any machine can send three times as many
	for version, of := range map[string]func(*world) *http.Client{"HTTP/1.1": (*world).client, "HTTP/2": (*world).client2} {
		t.Run(version, func(t *testing.T) {
			b := serving(t, "cart", cartAddr, 1, func(http.ResponseWriter, *http.Request) { time.Sleep(takes) })
			w := newWorld(t, []*backend{b}, oneLoop, func(cfg *serve.Config) { cfg.Limits.Requests = most })
			c := of(w)
			w.get(c, "/") // its first connection
			full := most / takes.Seconds()
			first, refused := offered{}, 0
			for times := 1; times <= 3; times++ {
				var wrong string
				for range 3 { // the best of a few: the machine may have other work
					o := offer(t, c, float64(times)*full, d)
					t.Logf("%d ×: %+v", times, o)
					if refused += o.shed; times == 1 {
						first = o
					}
					if wrong = o.wrong(takes, times > 1, first.served); wrong == "" {
						break
					}
				}
				if wrong != "" {
					t.Errorf("at %d × of what it can serve, which was %d: %s", times, first.served, wrong)
				}
			}
			if first.served < 40 {
				t.Errorf("of %v requests it serves %d: nothing is compared", full*d.Seconds(), first.served)
			}
			if n := w.value("heddle_waypoint_refusals_total", "reason", "Overloaded"); n != float64(refused) {
				t.Errorf("%v refusals are counted, of %d", n, refused)
			}
		})
	}
}
