package subscriber

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// TestStreamsAreBounded: one that follows has so many streams and no more, which takes nothing from others; one that has
// ended makes room, and nobody is remembered who has none.
func TestStreamsAreBounded(t *testing.T) {
	a := &Authenticator{}
	a.streams.of = map[follower]int{}
	one, other, pod := follower{node: "n1"}, follower{node: "waypoint/shop/gate", replica: "gate-1"}, follower{node: "waypoint/shop/gate", replica: "gate-2"}
	var ends []context.CancelFunc
	enter := func(f follower) error {
		ctx, cancel := context.WithCancel(t.Context())
		ends = append(ends, cancel)
		return a.enter(ctx, f)
	}
	for range maxStreams {
		for _, f := range []follower{one, other} {
			if err := enter(f); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := enter(one); err == nil || !strings.Contains(err.Error(), "n1 has 8 streams already") {
		t.Errorf("one more of a node: %v", err)
	}
	if err := enter(other); err == nil || !strings.Contains(err.Error(), "gate-1 has 8 streams already") {
		t.Errorf("one more of a pod: %v", err)
	}
	if err := enter(pod); err != nil {
		t.Errorf("another pod: %v", err)
	}
	ends[0]()
	testenv.Eventually(t, 10*time.Second, "there is room again", func() bool { return enter(one) == nil })
	for _, end := range ends {
		end()
	}
	testenv.Eventually(t, 10*time.Second, "nobody is remembered", func() bool {
		a.streams.Lock()
		defer a.streams.Unlock()
		return len(a.streams.of) == 0
	})
}
