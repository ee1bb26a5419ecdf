package wire

import (
	"io"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestEstimate: BBR that has found what the path carries begins anew for a
// large flow after a rest, and goes on with what it knows without one, as does an
// algorithm that is not BBR.
func TestEstimate(t *testing.T) {
	const rtt = time.Millisecond
	for _, tt := range []struct {
		name, algorithm string
		rest            time.Duration
		anew            bool
	}{
		{"rested", "bbr", leastRest, true},
		{"a far peer's rest is longer", "bbr", 0, false},
		{"busy", "bbr", leastRest - time.Millisecond, false},
		{"not BBR", "reno", leastRest, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			fd := settled(t, tt.algorithm)
			now := time.Now()
			e := Estimate{busyAt: now.Add(-tt.rest)}
			e.Busy(fd, now, rtt)
			if tt.name == "a far peer's rest is longer" {
				e.busyAt = now.Add(-leastRest)
				e.Busy(fd, now, leastRest)
			}
			info, err := unix.GetsockoptTCPCCBBRInfo(fd, unix.IPPROTO_TCP, unix.TCP_CC_INFO)
			if err != nil {
				t.Fatal(err)
			}
			if anew := begins(info); tt.algorithm == "bbr" && anew != tt.anew {
				t.Errorf("begins anew: %v, want %v (gain %d)", anew, tt.anew, info.Pacing_gain)
			}
			if name, err := unix.GetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION); name != tt.algorithm || err != nil {
				t.Errorf("it goes by %q now, %v", name, err)
			}
			if now != e.busyAt {
				t.Error("it is not known to be busy")
			}
		})
	}
}

// settled returns a socket that goes by the algorithm; if that is BBR, it has left its
// search for what the path carries.
func settled(t *testing.T, algorithm string) (fd int) {
	t.Helper()
	program, local := connected(t)
	fd = taken(t, local)
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, algorithm); err != nil {
		t.Fatalf("%s: %v: this kernel needs tcp_%s (modprobe)", algorithm, err, algorithm)
	}
	read := make(chan struct{})
	go func() {
		defer close(read)
		_, _ = io.Copy(io.Discard, program)
	}()
	// What the path carries.
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MAX_PACING_RATE, 4<<20); err != nil {
		t.Fatal(err)
	}
	message := make([]byte, 64<<10)
	for deadline := time.Now().Add(10 * time.Second); algorithm == "bbr"; {
		if _, err := unix.Write(fd, message); err != nil && err != unix.EAGAIN {
			t.Fatal(err)
		}
		info, err := unix.GetsockoptTCPCCBBRInfo(fd, unix.IPPROTO_TCP, unix.TCP_CC_INFO)
		if err != nil || time.Now().After(deadline) {
			t.Fatalf("BBR does not settle: %v", err)
		}
		if !begins(info) {
			break
		}
		time.Sleep(time.Millisecond)
	}
	if err := unix.Shutdown(fd, unix.SHUT_WR); err != nil {
		t.Fatal(err)
	}
	<-read
	return fd
}
