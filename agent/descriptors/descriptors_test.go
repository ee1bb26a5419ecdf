package descriptors

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func TestForSockets(t *testing.T) {
	for limit, want := range map[uint64]int{0: 0, 1024: 512, 8192: 4096, 8193: 4097, 1 << 30: 1 << 20} {
		if got := ForSockets(limit); got != want {
			t.Errorf("of %d: %d, want %d", limit, got, want)
		}
	}
}

func TestRaiseLimit(t *testing.T) {
	got, err := RaiseLimit()
	if err != nil {
		t.Fatal(err)
	}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if got != limit.Cur || limit.Cur != limit.Max {
		t.Errorf("%d, and the limits are %d of %d", got, limit.Cur, limit.Max)
	}
}
