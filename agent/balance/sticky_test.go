package balance

import (
	"fmt"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/internal/mesh"
)

func stickyFor(d time.Duration) *mesh.Service {
	return &mesh.Service{Key: mesh.Key{Namespace: "ns", Name: "web"}, Sticky: true, StickyFor: d}
}

// served are workloads with addresses.
func served(n int) []*mesh.Workload {
	var all []*mesh.Workload
	for i := range n {
		all = append(all, &mesh.Workload{Key: mesh.Key{Namespace: "ns", Name: fmt.Sprintf("web-%d", i)}, Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 1, byte(i + 1)})}})
	}
	return all
}

func clientOf(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, 2, byte(i)}) }

// TestStickyTimeout: a client that comes back within the time stays, counted from its
// last connection, and one that was away for longer gets any workload.
func TestStickyTimeout(t *testing.T) {
	for name, service := range map[string]*mesh.Service{"given": stickyFor(10 * time.Second), "default": stickyFor(0)} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b, of, limit := New(), served(4), service.StickyFor
				if limit == 0 {
					limit = 3 * time.Hour
				}
				pick := func() *mesh.Workload { return b.PickFor(clientOf(1), 80, service, of, nil) }
				at := pick()
				for range 50 { // for much longer than the time, without a pause of its length
					time.Sleep(limit)
					if w := pick(); w != at {
						t.Fatalf("a client that comes back in time is sent from %s to %s", at.Name, w.Name)
					}
				}
				seen := map[string]bool{}
				for range 100 {
					time.Sleep(limit + time.Nanosecond)
					at = pick()
					seen[at.Name] = true
					if w := pick(); w != at {
						t.Fatalf("chosen anew, it is sent from %s to %s at once", at.Name, w.Name)
					}
				}
				if len(seen) != len(of) {
					t.Errorf("after its time a client gets only %v", seen)
				}
			})
		})
	}
}

// TestStickyClientsStay: with a workload that is there, whoever else comes or goes.
func TestStickyClientsStay(t *testing.T) {
	b, of, service := New(), served(8), stickyFor(time.Hour)
	at, used := map[int]*mesh.Workload{}, map[string]int{}
	for i := range 200 {
		at[i] = b.PickFor(clientOf(i), 80, service, of[:7], nil)
		used[at[i].Name]++
		if w := New().PickFor(clientOf(i), 80, service, of[:7], nil); w != at[i] {
			t.Errorf("another process sends client %d to %s, not %s", i, w.Name, at[i].Name)
		}
	}
	for _, w := range of[:7] {
		if n := used[w.Name]; n < 8 || n > 60 {
			t.Errorf("%s has %d of 200 clients", w.Name, n)
		}
	}
	for i := range 200 {
		if w := b.PickFor(clientOf(i), 80, service, of, nil); w != at[i] { // one more
			t.Errorf("client %d moves from %s to %s, which is new", i, at[i].Name, w.Name)
		}
		w := b.PickFor(clientOf(i), 80, service, of[1:], nil) // the first has gone
		if w == of[0] || at[i] != of[0] && w != at[i] {
			t.Errorf("client %d moves from %s to %s", i, at[i].Name, w.Name)
		}
	}
}

// TestStickyClientsThatCannotStay: one whose workload does not answer goes to the next,
// and stays there; nobody else is moved by it.
func TestStickyClientsThatCannotStay(t *testing.T) {
	b, of, service := New(), served(3), stickyFor(time.Hour)
	one, other := b.PickFor(clientOf(1), 80, service, of, nil), netip.Addr{}
	for i := 2; !other.IsValid(); i++ {
		if b.PickFor(clientOf(i), 80, service, of, nil) == one {
			other = clientOf(i)
		}
	}
	b.Unreachable(one.Key)
	two := b.PickFor(clientOf(1), 80, service, of, []mesh.Key{one.Key})
	if two == one {
		t.Fatal("it is sent to the one that it tried")
	}
	for range 20 {
		if w := b.PickFor(clientOf(1), 80, service, of, nil); w != two {
			t.Fatalf("it does not stay with %s: %s", two.Name, w.Name)
		}
		if w := b.PickFor(other, 80, service, of, nil); w != one {
			t.Fatalf("another client is sent away from %s, which it did not find unreachable", one.Name)
		}
	}
	if w := b.PickFor(clientOf(1), 80, service, nil, nil); w != nil {
		t.Errorf("picked %v of none", w)
	}
}

func TestStickyClientsAreBounded(t *testing.T) {
	b, of, service := New(), served(3), stickyFor(time.Hour)
	for i := range maxClients + 1000 {
		b.PickFor(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 80, service, of, nil)
	}
	if n, m := len(b.clients.byClient), b.clients.recent.Len(); n != maxClients || m != n {
		t.Errorf("%d and %d clients are remembered, want %d", n, m, maxClients)
	}
	if _, kept := b.clients.byClient[clientKey{netip.AddrFrom4([4]byte{10, 0, 0, 1}), service.Key, 80}]; kept {
		t.Error("the one that was away for longest is not the one that was forgotten")
	}
	view, err := mesh.NewView("", mesh.Settings{TrustDomain: spiffeid.RequireTrustDomainFromString("test.example")}, nil, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	b.Prune(view)
	if n, m := len(b.clients.byClient), b.clients.recent.Len(); n != 0 || m != 0 {
		t.Errorf("%d and %d clients of a service that is gone are remembered", n, m)
	}
}
