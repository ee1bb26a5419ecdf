package stay_test

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/mesh/route"
	"github.com/heddle-mesh/heddle/internal/mesh/route/session"
	"github.com/heddle-mesh/heddle/waypoint/stay"
)

var now = time.Unix(1_700_000_000, 0)

func pods(names ...string) (all []*mesh.Workload) {
	for i, name := range names {
		all = append(all, &mesh.Workload{Key: mesh.Key{Namespace: "shop", Name: name}, Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})}})
	}
	return all
}

// TestField: a token goes where the route says.
func TestField(t *testing.T) {
	for want, s := range map[string]route.Session{
		"set-cookie: a=tok; Path=/; HttpOnly": {Name: "a", AbsoluteTimeout: time.Hour}, "set-cookie: a=tok; Path=/; HttpOnly; Max-Age=3600": {Name: "a", Permanent: true, AbsoluteTimeout: time.Hour}, "a: tok": {Name: "a", Header: true},
	} {
		if f := stay.Field(&s, "tok"); string(f.Name)+": "+string(f.Value) != want {
			t.Errorf("%s: %s, want %s", f.Name, f.Value, want)
		}
	}
}

// TestAppend: a response has a token when its session begins, and when another workload has answered than it was with.
func TestAppend(t *testing.T) {
	all := pods("a", "b")
	of := &route.Session{Name: "sid", Header: true}
	begun, client := stay.Begin(of, 7), stay.Begin(of, 7)
	client.With = all[0] // as its service wants for the client
	for _, x := range []struct {
		what string
		stay stay.Stay
		by   int
		want bool
	}{{"none", stay.Stay{}, 0, false}, {"no session, of a client", stay.Stay{With: all[0]}, 1, false}, {"a rule without", stay.Begin(nil, 7), 0, false},
		{"the first", begun, 0, true}, {"the first, of a client", client, 0, true}, {"one that goes on", stay.On(of, 7, all[0]), 0, false}, {"one that moves", stay.On(of, 7, all[0]), 1, true}} {
		fields := x.stay.Append(nil, all[x.by], now)
		if len(fields) > 0 != x.want || x.want && string(fields[0].Value) != session.At(7, all[x.by].Key, now).String() {
			t.Errorf("%s: %q", x.what, fields)
		}
	}
}

// TestTried: one that it stays with is asked again as long as it is there, all others are not.
func TestTried(t *testing.T) {
	all := pods("a", "b")
	s := stay.On(&route.Session{}, 7, all[0])
	for _, x := range []struct {
		of    int
		there bool
		want  []mesh.Key
	}{{0, true, nil}, {0, false, []mesh.Key{all[0].Key}}, {1, true, []mesh.Key{all[1].Key}}, {1, false, []mesh.Key{all[1].Key}}} {
		if got := s.Tried(nil, all[x.of], x.there); !slices.Equal(got, x.want) {
			t.Errorf("of %d, there %v: %v, want %v", x.of, x.there, got, x.want)
		}
	}
}

// TestNames: a workload is found by a token of its backend, in whatever list it is now.
func TestNames(t *testing.T) {
	all := pods("a", "b", "c")
	var n stay.Names
	for _, among := range [][]*mesh.Workload{all, all[1:], nil, all[:2], {all[2], all[0]}, all} {
		for _, w := range all {
			want := w
			if !slices.Contains(among, w) {
				want = nil
			}
			if got := n.Find(among, session.At(7, w.Key, now)); got != want {
				t.Errorf("%s is found as %v among %d", w.Name, got, len(among))
			}
		}
	}
	if got := n.Find(all, session.At(7, mesh.Key{Namespace: "shop", Name: "d"}, now)); got != nil {
		t.Errorf("one that is not there is found as %s", got.Name)
	}
}

// TestClient: a client stays where it is when others come and go, but for one that is its own; and nowhere where nobody is.
func TestClient(t *testing.T) {
	all := pods("a", "b", "c", "d", "e", "f")
	for i := range 100 {
		addr := netip.AddrFrom4([4]byte{10, 9, 9, byte(i)})
		var c stay.Client
		at := c.With(addr, all)
		if again := c.With(addr, all); again != at {
			t.Errorf("%s goes from %s to %s", addr, at.Name, again.Name)
		}
		without := slices.DeleteFunc(slices.Clone(all), func(w *mesh.Workload) bool { return w == all[i%6] && w != at })
		if other := c.With(netip.AddrFrom16(addr.As16()), without); other != at {
			t.Errorf("%s goes from %s to %s, and that is there", addr, at.Name, other.Name)
		}
		if c.With(addr, nil) != nil {
			t.Errorf("%s is with somebody where nobody is", addr)
		}
	}
}
