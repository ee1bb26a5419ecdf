package wire

import (
	"bytes"
	"math/rand/v2"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// TestPendingCost: what few bytes of many slow readers cost is near to what they
// are, and never more than twice as much and a small buffer.
func TestPendingCost(t *testing.T) {
	const streams = 5000
	var b Buffers
	before := heap()
	all := make([]Pending, streams)
	for i := range all {
		all[i].Store(&b, []byte("ten bytes!"))
	}
	each := (heap() - before) / streams
	t.Logf("10 bytes that wait cost %d", each)
	if each > 700 {
		t.Errorf("10 bytes that wait cost %d", each)
	}
	runtime.KeepAlive(all)
	random := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		var p Pending
		for range random.IntN(100) {
			p.Store(&b, make([]byte, 1+random.IntN(1+random.IntN(40_000))))
			if most := 2*p.Len() + chunkBytes; p.Held() > most {
				t.Fatalf("%d bytes cost %d", p.Len(), p.Held())
			}
			if p.Len() < smallBytes && p.Held() > mediumBytes {
				t.Fatalf("%d bytes cost %d", p.Len(), p.Held())
			}
		}
		p.Free(&b)
		if p.Held() != 0 || !p.IsEmpty() {
			t.Fatalf("freed, and holds %d bytes", p.Held())
		}
	}
}

func heap() int {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc)
}

// TestPendingOrder: what is stored in pieces of any size comes out as it was,
// from a socket that takes a little at a time.
func TestPendingOrder(t *testing.T) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fds[0])
	defer unix.Close(fds[1])
	if err := unix.SetsockoptInt(fds[0], unix.SOL_SOCKET, unix.SO_SNDBUF, 4096); err != nil {
		t.Fatal(err)
	}
	var b Buffers
	var p Pending
	var sent, got []byte
	random := rand.New(rand.NewPCG(3, 4))
	buf := make([]byte, 10_000)
	for len(got) < 4<<20 {
		if len(sent) < 4<<20 {
			piece := make([]byte, random.IntN(1+random.IntN(40_000)))
			for i := range piece {
				piece[i] = byte(random.Uint32())
			}
			p.Store(&b, piece)
			sent = append(sent, piece...)
		}
		if _, errno := p.Write(&b, fds[0]); errno != 0 {
			t.Fatal(errno)
		}
		if n, err := unix.Read(fds[1], buf[:1+random.IntN(len(buf))]); err == nil {
			got = append(got, buf[:n]...)
		} else if p.IsEmpty() && len(sent) >= 4<<20 {
			break
		}
	}
	for !p.IsEmpty() || len(got) < len(sent) {
		if _, errno := p.Write(&b, fds[0]); errno != 0 {
			t.Fatal(errno)
		}
		n, err := unix.Read(fds[1], buf)
		if err != nil {
			t.Fatalf("%d of %d bytes: %v", len(got), len(sent), err)
		}
		got = append(got, buf[:n]...)
	}
	if !bytes.Equal(sent, got) {
		t.Error("bytes changed")
	}
	if p.Held() != 0 {
		t.Errorf("empty, and holds %d bytes", p.Held())
	}
}
