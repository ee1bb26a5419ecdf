package identity

import (
	"fmt"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"pgregory.net/rapid"
)

func TestFreshNeedsGoBeforeRenewals(t *testing.T) {
	q, now := newQueue(), time.Now()
	q.set(shopDB, urgencyRenewal, now.Add(-time.Hour))
	q.set(shopWeb, urgencyFresh, now)
	for _, want := range []spiffeid.ID{shopWeb, shopDB} {
		if id, ok := q.pop(now); !ok || id != want {
			t.Fatalf("popped %v, want %v", id, want)
		}
	}
	if id, ok := q.pop(now); ok {
		t.Fatalf("popped %v from an empty queue", id)
	}
}

// TestQueueAgainstAList compares the queue with a plain list that is searched.
func TestQueueAgainstAList(t *testing.T) {
	ids := make([]spiffeid.ID, 8)
	for i := range ids {
		ids[i] = spiffeid.RequireFromString(fmt.Sprintf("spiffe://mesh.test/ns/n/sa/a%d", i))
	}
	type want struct {
		u   urgency
		due time.Time
	}
	rapid.Check(t, func(t *rapid.T) {
		q, now, list := newQueue(), time.Unix(1e9, 0), map[spiffeid.ID]want{}
		t.Repeat(map[string]func(*rapid.T){
			"set": func(t *rapid.T) {
				id := rapid.SampledFrom(ids).Draw(t, "id")
				w := want{urgency(rapid.IntRange(0, 1).Draw(t, "urgency")), now.Add(time.Duration(rapid.IntRange(-50, 50).Draw(t, "due")) * time.Second)}
				list[id] = w
				q.set(id, w.u, w.due)
			},
			"remove": func(t *rapid.T) {
				id := rapid.SampledFrom(ids).Draw(t, "id")
				delete(list, id)
				q.remove(id)
			},
			"wait": func(t *rapid.T) { now = now.Add(time.Duration(rapid.IntRange(0, 20).Draw(t, "wait")) * time.Second) },
			"pop": func(t *rapid.T) {
				id, ok := q.pop(now)
				due := 0
				for _, w := range list {
					if !w.due.After(now) {
						due++
					}
				}
				if ok != (due > 0) {
					t.Fatalf("popped: %v, due: %d", ok, due)
				}
				for other, w := range list {
					if ok && !w.due.After(now) && (w.u < list[id].u || w.u == list[id].u && w.due.Before(list[id].due)) {
						t.Fatalf("%s goes before %s", other, id)
					}
				}
				delete(list, id)
			},
			"": func(t *rapid.T) {
				for _, id := range ids {
					if _, ok := list[id]; ok != q.has(id) {
						t.Fatalf("%s: listed %v, queued %v", id, ok, q.has(id))
					}
				}
			},
		})
	})
}
