package netns

import (
	"errors"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestStock: sockets are made ahead by demand, and given back without it.
func TestStock(t *testing.T) {
	var trips []int
	made := 0
	makeSome := func(into []int) error {
		trips = append(trips, len(into))
		for i := range into {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			into[i] = fd
			made++
		}
		return nil
	}
	s := Stock{shelf: &Shelf{}}
	taken := 0
	for range 100 {
		fd, err := s.Take(makeSome)
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Close(fd); err != nil {
			t.Fatalf("took a socket that is none: %v", err)
		}
		taken++
	}
	if len(trips) > 8 || trips[0] != 1 {
		t.Errorf("100 sockets took trips of %v: want one at first, and then ever more", trips)
	}
	left := len(s.ready)
	if used := s.shelf.used.Load(); used != int64(left) {
		t.Errorf("room is taken for %d, with %d there", used, left)
	}
	if made-taken != left || left >= maxStock {
		t.Errorf("%d made, %d taken, %d left", made, taken, left)
	}
	if err := s.Tidy(); err != nil || len(s.ready) != left {
		t.Errorf("gave back what was in demand a moment ago: %v", err)
	}
	s.last = time.Now().Add(-2 * stockIdle)
	if err := s.Tidy(); err != nil || len(s.ready) != 0 {
		t.Errorf("%d left without demand, %v", len(s.ready), err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	fd, err := s.Take(makeSome)
	if err != nil || len(s.ready) != 0 {
		t.Errorf("a closed stock keeps %d sockets, %v", len(s.ready), err)
	}
	if err := unix.Close(fd); err != nil {
		t.Error(err)
	}
}

// TestStockFails: a trip that fails is the caller's error, and tried again.
func TestStockFails(t *testing.T) {
	s := Stock{shelf: &Shelf{}}
	sorry := errors.New("sorry")
	for range 2 {
		if _, err := s.Take(func([]int) error { return sorry }); !errors.Is(err, sorry) {
			t.Errorf("error %v", err)
		}
	}
	if used := s.shelf.used.Load(); len(s.ready) != 0 || used != 0 {
		t.Errorf("%d sockets, and room for %d, out of failures", len(s.ready), used)
	}
}

// TestStocksOfANode: many pods with demand have no more sockets made ahead than
// the node has room for, all get theirs all the same, and room is given back.
func TestStocksOfANode(t *testing.T) {
	var of Shelf
	held, most := 0, 0
	makeSome := func(into []int) error {
		for i := range into {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			into[i] = fd
		}
		held += len(into)
		return nil
	}
	stocks := make([]Stock, 100)
	for range 40 {
		for i := range stocks {
			stocks[i].On(&of)
			fd, err := stocks[i].Take(makeSome)
			if err != nil {
				t.Fatal(err)
			}
			if err := unix.Close(fd); err != nil {
				t.Fatal(err)
			}
			held--
			most = max(most, held)
		}
	}
	if most > maxShelf || most < maxShelf/2 {
		t.Errorf("%d were made ahead at most, want up to %d", most, maxShelf)
	}
	if int(of.used.Load()) != held {
		t.Errorf("room is taken for %d, with %d there", of.used.Load(), held)
	}
	for i := range stocks {
		if err := stocks[i].Close(); err != nil {
			t.Error(err)
		}
	}
	if of.used.Load() != 0 {
		t.Errorf("room is taken for %d when none is left", of.used.Load())
	}
}
