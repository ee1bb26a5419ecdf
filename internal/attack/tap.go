package attack

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// tapWait bounds how long a tap blocks before it looks whether to stop.
const tapWait = 50 * time.Millisecond

// tap sees every frame of a network namespace (packet(7)), or what a listener gets, and
// counts those that carry what it was told to look for.
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
	return startTap(fd, ignored)
}

// openListener must be called inside the namespace. It is a tap in the place of a router
// that listens for MLD reports on the links, or on the bridges that they are ports of:
// what a gate drops on its way in does not come as far.
func openListener(links ...int) (*tap, error) {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMPV6)
	if err != nil {
		return nil, fmt.Errorf("open listener: %w", err)
	}
	for _, index := range links {
		l, err := netlink.LinkByIndex(index)
		if err == nil {
			group := &unix.IPv6Mreq{Multiaddr: listeners().As16(), Interface: uint32(cmp.Or(l.Attrs().MasterIndex, index))}
			err = unix.SetsockoptIPv6Mreq(fd, unix.IPPROTO_IPV6, unix.IPV6_JOIN_GROUP, group)
		}
		// ENODEV: a link without IPv6, where nobody hears anything.
		if err != nil && !errors.Is(err, unix.ENODEV) {
			return nil, errors.Join(fmt.Errorf("listen for reports on interface %d: %w", index, err), unix.Close(fd))
		}
	}
	return startTap(fd, nil)
}

// startTap has a tap read from the socket, which it closes in the end.
func startTap(fd int, ignored []int) (*tap, error) {
	limit := unix.NsecToTimeval(tapWait.Nanoseconds())
	err := errors.Join(
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
		if err != nil {
			return
		}
		index := 0
		if link, ok := from.(*unix.SockaddrLinklayer); ok {
			index = link.Ifindex
		}
		t.look(buf[:n], index)
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
