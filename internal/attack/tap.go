package attack

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// tapWait bounds how long a tap blocks before it looks whether to stop.
const tapWait = 50 * time.Millisecond

// tap sees every frame of a network namespace (packet(7)) and counts those that
// carry what it was told to look for.
type tap struct {
	fd       int
	stop     chan struct{}
	finished sync.WaitGroup

	mu      sync.Mutex
	ignored map[int]bool // links before the gate, by index
	wanted  []sign
	seen    int
}

// sign is what tells an attack's packets from all others: the marker in their
// payload, or addresses and ports.
type sign struct {
	marker              []byte
	source, destination netip.AddrPort
}

// openTap must be called inside the namespace. Frames on the ignored links do
// not count.
func openTap(ignored ...int) (*tap, error) {
	all := binary.NativeEndian.Uint16([]byte{0, unix.ETH_P_ALL}) // htons
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(all))
	if err != nil {
		return nil, fmt.Errorf("open tap: %w", err)
	}
	limit := unix.NsecToTimeval(tapWait.Nanoseconds())
	err = errors.Join(
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit),
		// A busy node must not push the attack's packets out.
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20),
	)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("set up tap: %w", err), unix.Close(fd))
	}
	t := &tap{fd: fd, stop: make(chan struct{}), ignored: map[int]bool{}}
	for _, index := range ignored {
		t.ignored[index] = true
	}
	t.finished.Go(t.read)
	return t, nil
}

func (t *tap) read() {
	buf := make([]byte, 64<<10)
	for {
		select {
		case <-t.stop:
			return
		default:
		}
		n, from, err := unix.Recvfrom(t.fd, buf, 0)
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) || errors.Is(err, unix.ENETDOWN) {
			continue // nothing yet, or a link went down
		}
		link, ok := from.(*unix.SockaddrLinklayer)
		if err != nil || !ok {
			return
		}
		t.look(buf[:n], link.Ifindex)
	}
}

func (t *tap) look(frame []byte, link int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ignored[link] {
		return
	}
	for _, s := range t.wanted {
		if s.in(frame) {
			t.seen++
			return
		}
	}
}

// in errs on the side of seeing too much: a false alarm is looked into.
func (s sign) in(frame []byte) bool {
	if len(s.marker) > 0 && bytes.Contains(frame, s.marker) {
		return true
	}
	if !s.source.IsValid() {
		return false
	}
	addresses := append(s.source.Addr().AsSlice(), s.destination.Addr().AsSlice()...)
	ports := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, s.source.Port()), s.destination.Port())
	_, rest, ok := bytes.Cut(frame, addresses)
	return ok && bytes.Contains(rest, ports)
}

// expect makes the tap count from 0 what carries one of the signs.
func (t *tap) expect(signs ...sign) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.wanted, t.seen = signs, 0
}

func (t *tap) count() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.seen
}

func (t *tap) close() error {
	close(t.stop)
	t.finished.Wait()
	return os.NewSyscallError("close tap", unix.Close(t.fd))
}
