package ports

import (
	"fmt"
	"reflect"
	"testing"

	"pgregory.net/rapid"

	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func keys(from, n int) (all []mesh.Key) {
	for i := range n {
		all = append(all, mesh.Key{Namespace: external, Name: fmt.Sprintf("%06d", from+i)})
	}
	return all
}

// TestSlicesAreWhatTheyAdd: what is found for many ports at once is what each slice adds
// to each port.
func TestSlicesAreWhatTheyAdd(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		names := []string{"a", "b", "c", "d"}
		var s Slices
		plain, all := make([]ByNumber, len(names)), []mesh.Key(nil)
		for range rapid.IntRange(0, 6).Draw(t, "slices") {
			numbers, of := map[string]uint16{}, keys(rapid.IntRange(0, 6).Draw(t, "first"), rapid.IntRange(0, 4).Draw(t, "endpoints"))
			all = mesh.SortedKeys(append(all, of...))
			for i, name := range names {
				if n := rapid.SampledFrom([]uint16{0, 80, 80, 81, 8080}).Draw(t, name); n != 0 {
					numbers[name] = n
					plain[i].Add(n, of...)
				}
			}
			s.Add(of, numbers)
		}
		for i, name := range names {
			got, ok := s.Numbers(name)
			if want := &plain[i]; !ok || got.Target() != want.Target() || fmt.Sprint(got.Numbers()) != fmt.Sprint(want.Numbers()) {
				t.Fatalf("port %s has %v at %d, want %v at %d", name, got.Numbers(), got.Target(), want.Numbers(), want.Target())
			}
			is, want := mesh.ServicePort{TargetPort: got.Target()}, mesh.ServicePort{TargetPort: got.Target()}
			got.Place(&is, all)
			plain[i].Place(&want, all)
			if !reflect.DeepEqual(is, want) {
				t.Fatalf("port %s is %v, want %v", name, is, want)
			}
		}
	})
}

// TestWorkIsBounded: ports of which all slices say the same cost nothing more, however
// many there are; others only so much.
func TestWorkIsBounded(t *testing.T) {
	var s Slices
	numbers := []map[string]uint16{{}, {}}
	for i := range 1000 {
		for _, slice := range numbers {
			slice[fmt.Sprint("same", i)] = uint16(1 + i)
		}
	}
	for i := range 64 { // each as no other
		for bit := range 6 {
			if len(numbers) < 2+6 {
				numbers = append(numbers, map[string]uint16{})
			}
			numbers[2+bit][fmt.Sprint("other", i)] = uint16(1 + i>>bit&1)
		}
	}
	for i, slice := range numbers {
		s.Add(keys(1000*i, 1000), slice)
	}
	for i := range 1000 {
		if b, ok := s.Numbers(fmt.Sprint("same", i)); !ok || len(b.Of(uint16(1+i))) != 2000 {
			t.Fatalf("port same%d: %v, %v", i, b.Numbers(), ok)
		}
	}
	refused := 0
	for i := range 64 {
		if _, ok := s.Numbers(fmt.Sprint("other", i)); !ok {
			refused++
		}
	}
	if most := (MaxWork - 2000) / 6000; refused != 2*(32-most) { // two ports each differ by their numbers only
		t.Errorf("%d of 64 ports are refused", refused)
	}
	if s.work > MaxWork {
		t.Errorf("%d endpoints were looked at", s.work)
	}
	if _, ok := s.Numbers("same7"); !ok {
		t.Error("what is known already is refused")
	}
}

// TestEmptySlicesAreWork: ports times slices are bounded, also where no slice has an
// endpoint.
func TestEmptySlicesAreWork(t *testing.T) {
	const slices = 4096
	var s Slices
	numbers := map[string]uint16{"a": 80}
	for range slices {
		s.Add(nil, numbers)
	}
	for i := range maxLooks / slices {
		if _, ok := s.Numbers("a"); !ok {
			t.Fatalf("port %d is refused", i)
		}
	}
	for range 2 {
		if _, ok := s.Numbers("a"); ok {
			t.Fatal("a port is looked for in more slices than may be")
		}
	}
	if s.Refused() != 2 {
		t.Errorf("%d ports are refused", s.Refused())
	}
}
