package fast_test

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// moveWithin moves a site in bounded time.
func moveWithin(t *testing.T, s *site, limit time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	start := time.Now()
	if err := s.move(ctx, nil); err != nil {
		t.Fatalf("%d connections moved in %v: %v", s.moved, time.Since(start), err)
	}
	t.Logf("%d connections moved in %v", s.moved, time.Since(start))
}

// TestMoveBusyPeer moves a server whose peer opens a stream every 200 ms, each
// for an Accept of 2 s: there is none that is not served in the end, and none
// that was established is lost.
func TestMoveBusyPeer(t *testing.T) {
	w := newWorld(t, newFastEngine, newFastEngine)
	established := w.mustOpen()
	w.delay.Store(int64(2 * time.Second))
	stop, opened := make(chan struct{}), make(chan error)
	go func() {
		var all []<-chan error
		for ticks := time.NewTicker(200 * time.Millisecond); ; <-ticks.C {
			select {
			case <-stop:
				ticks.Stop()
				for _, one := range all {
					opened <- <-one
				}
				close(opened)
				return
			default:
			}
			one := make(chan error, 1)
			go func() {
				_, err := w.open()
				one <- err
			}()
			all = append(all, one)
		}
	}()
	time.Sleep(500 * time.Millisecond)
	moveWithin(t, w.server, 6*time.Second)
	close(stop)
	n := 0
	for err := range opened {
		if n++; err != nil {
			t.Errorf("stream %d: %v", n, err)
		}
	}
	if n < 10 || w.server.moved == 0 {
		t.Errorf("%d streams opened, %d connections moved", n, w.server.moved)
	}
	if err := established.echo("still here"); err != nil {
		t.Fatal(err)
	}
	if err := established.finish(); err != nil {
		t.Error(err)
	}
}

// TestMoveEndlessAccept: streams whose Accepts do not return are refused, and
// repeated by the peer.
func TestMoveEndlessAccept(t *testing.T) {
	w := newWorld(t, newFastEngine, newFastEngine)
	established := w.mustOpen()
	w.delay.Store(int64(time.Hour))
	opened := make(chan error, 3)
	for range cap(opened) {
		go func() {
			_, err := w.open()
			opened <- err
		}()
	}
	time.Sleep(200 * time.Millisecond)
	w.delay.Store(0)
	moveWithin(t, w.server, 8*time.Second)
	for range cap(opened) {
		if err := <-opened; err != nil {
			t.Error(err)
		}
	}
	if err := established.echo("still here"); err != nil {
		t.Error(err)
	}
}

// unwatch takes the socket whose other end is at an address out of every epoll of
// this process.
func unwatch(t *testing.T, peer netip.AddrPort) {
	t.Helper()
	epolls, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, path := range epolls {
		if to, err := os.Readlink(path); err != nil || to != "anon_inode:[eventpoll]" {
			continue
		}
		epfd, _ := strconv.Atoi(filepath.Base(path)) // the kernel's
		info, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", epfd))
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(info)) {
			words := strings.Fields(line)
			if len(words) < 2 || words[0] != "tfd:" {
				continue
			}
			fd, _ := strconv.Atoi(words[1]) // the kernel's
			of, err := unix.Getpeername(fd)
			if a, ok := of.(*unix.SockaddrInet4); err != nil || !ok || netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port)) != peer {
				continue
			}
			if err := unix.EpollCtl(epfd, unix.EPOLL_CTL_DEL, fd, nil); err != nil {
				t.Fatal(err)
			}
			found++
		}
	}
	if found == 0 {
		t.Fatalf("no epoll has the socket of %v", peer)
	}
}

// TestMoveAfterFailedRest: a connection that cannot be brought to rest goes on,
// and moves when it can.
func TestMoveAfterFailedRest(t *testing.T) {
	w := newWorld(t, newFastEngine, newFastEngine)
	f, other := w.mustOpen(), w.mustOpen()
	unwatch(t, f.program.LocalAddr().(interface{ AddrPort() netip.AddrPort }).AddrPort())
	moveWithin(t, w.client, 3*time.Second)
	for _, f := range []*moveFlow{f, other} {
		if err := f.echo("after the move"); err != nil {
			t.Error(err)
		}
	}
}
