package mesh_test

import (
	"fmt"
	"sync"
	"testing"

	"github.com/heddle-mesh/heddle/internal/mesh"
)

func TestStoreWakesEveryone(t *testing.T) {
	s := mesh.NewStore()
	if v := s.View(); v == nil || v.Synced() || len(v.Workloads()) != 0 || v.Settings() == nil {
		t.Fatalf("first view: %+v", v)
	}
	a, b := s.Changed(), s.Changed()
	_, c := s.Snapshot()
	v := mustView(t, settings(), nil, nil, nil)
	s.Replace(v)
	<-a
	<-b
	<-c
	now, changed := s.Snapshot()
	if now != v || s.View() != v {
		t.Error("not the new view")
	}
	select {
	case <-changed:
		t.Error("changed without a change")
	default:
	}
}

// A reader that takes channel and View again after each wake-up sees the last
// View, however many it missed, and never an older one after a newer one.
func TestStoreIsLevelTriggered(t *testing.T) {
	s := mesh.NewStore()
	const last = 200
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			for seen := 0; seen < last; {
				v, changed := s.Snapshot()
				number := 0
				if v.Synced() {
					if _, err := fmt.Sscan(v.Revision(), &number); err != nil {
						t.Error(err)
						return
					}
				}
				if number < seen {
					t.Errorf("view %d after %d", number, seen)
				}
				if seen = number; seen < last {
					<-changed
				}
			}
		})
	}
	for i := 1; i <= last; i++ {
		v, err := mesh.NewView(fmt.Sprint(i), settings(), nil, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		s.Replace(v)
	}
	readers.Wait()
}

func TestStoreRefusesNil(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("took a nil view")
		}
	}()
	mesh.NewStore().Replace(nil)
}
