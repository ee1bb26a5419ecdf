// Package wan makes the way between two network namespaces long: a TUN device in
// each, and between them a process that holds every packet back for a time and
// loses some of those that go one way. It is for kernels without netem, and for
// loss by packet: without offloads a TUN device never carries more than one
// segment at a time. It knows nothing of what the packets are.
package wan

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Device is the name of the TUN device in both namespaces.
const Device = "wan0"

const (
	mtu = 1500
	// queue bounds the packets under way in one direction: 1.9 Gbit/s for
	// 200 ms. One more is lost.
	queue = 32768
)

// Link is two devices and what is between them.
type Link struct {
	a, b  *os.File
	delay time.Duration
	// loss is of packets from a to b, in millionths.
	loss  atomic.Int64
	group sync.WaitGroup
}

// Open makes the devices in two namespaces, given by their paths, and forwards
// between them with the given delay each way until Close.
func Open(a, b string, delay time.Duration) (*Link, error) {
	l := &Link{delay: delay}
	var err error
	if l.a, err = device(a); err != nil {
		return nil, err
	}
	if l.b, err = device(b); err != nil {
		return nil, errors.Join(err, l.a.Close())
	}
	l.forward(l.a, l.b, &l.loss)
	l.forward(l.b, l.a, nil)
	return l, nil
}

// SetLoss sets the share of packets from a to b that get lost.
func (l *Link) SetLoss(share float64) { l.loss.Store(int64(share * 1e6)) }

// Close removes the devices, with their addresses and routes.
func (l *Link) Close() error {
	err := errors.Join(l.a.Close(), l.b.Close())
	l.group.Wait()
	return err
}

// device makes a TUN device in a namespace, and sets it up.
func device(path string) (*os.File, error) {
	type made struct {
		fd  int
		err error
	}
	result := make(chan made)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		fd, err := func() (int, error) {
			ns, err := netns.GetFromPath(path)
			if err != nil {
				return -1, fmt.Errorf("open network namespace %s: %w", path, err)
			}
			defer ns.Close()
			if err := netns.Set(ns); err != nil {
				return -1, fmt.Errorf("enter network namespace %s: %w", path, err)
			}
			return tun()
		}()
		result <- made{fd, err}
	}()
	m := <-result
	if m.err != nil {
		return nil, m.err
	}
	return os.NewFile(uintptr(m.fd), Device), nil
}

func tun() (fd int, err error) {
	fd, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return -1, fmt.Errorf("open /dev/net/tun: %w", err)
	}
	request, err := unix.NewIfreq(Device)
	if err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
		return -1, errors.Join(fmt.Errorf("make TUN device: %w", err), unix.Close(fd))
	}
	return fd, nil
}

// packet is on its way.
type packet struct {
	due  time.Time
	size int
	data *[mtu]byte
}

// forward carries packets one way until a device is closed.
func (l *Link) forward(from, to *os.File, loss *atomic.Int64) {
	way := make(chan packet, queue)
	free := &sync.Pool{New: func() any { return new([mtu]byte) }}
	l.group.Go(func() {
		defer close(way)
		for {
			data := free.Get().(*[mtu]byte)
			n, err := from.Read(data[:])
			if err != nil {
				return // closed
			}
			if loss != nil && rand.Int64N(1e6) < loss.Load() {
				free.Put(data)
				continue
			}
			select {
			case way <- packet{time.Now().Add(l.delay), n, data}:
			default:
				free.Put(data) // the queue is full, as a router's may be
			}
		}
	})
	l.group.Go(func() {
		for p := range way {
			// What is due within the timer's own grain goes now.
			if wait := time.Until(p.due); wait > 200*time.Microsecond {
				time.Sleep(wait)
			}
			_, _ = to.Write(p.data[:p.size]) // a device that is down loses it
			free.Put(p.data)
		}
	})
}

// Main runs a link as a process of its own: it prints "ready", takes lines
// "loss SHARE", answers each with "ok", and ends when in does.
func Main(args []string, in io.Reader, out io.Writer) error {
	flags := flag.NewFlagSet("wan", flag.ContinueOnError)
	a := flags.String("a", "", "path of the namespace whose packets may get lost")
	b := flags.String("b", "", "path of the other one")
	delay := flags.Duration("delay", 0, "each way")
	if err := flags.Parse(args); err != nil {
		return err
	}
	l, err := Open(*a, *b, *delay)
	if err != nil {
		return err
	}
	return errors.Join(obey(l, in, out), l.Close())
}

func obey(l *Link, in io.Reader, out io.Writer) error {
	if _, err := fmt.Fprintln(out, "ready"); err != nil {
		return err
	}
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		text, ok := strings.CutPrefix(lines.Text(), "loss ")
		share, err := strconv.ParseFloat(text, 64)
		if !ok || err != nil || share < 0 || share > 1 {
			return fmt.Errorf("wan: %q is no loss from 0 to 1", lines.Text())
		}
		l.SetLoss(share)
		if _, err := fmt.Fprintln(out, "ok"); err != nil {
			return err
		}
	}
	return lines.Err()
}
