package wire

import (
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// leastRest is how long a connection carries messages alone, at least, before BBR
	// begins anew for a large flow; restTrips is for how many round trips BBR remembers
	// the most that it has seen (net/ipv4/tcp_bbr.c, bbr_bw_rtts).
	leastRest = 200 * time.Millisecond
	restTrips = 10
	// startupGain is BBR's pacing gain, in 256ths, while it looks for what a new path
	// carries (bbr_high_gain).
	startupGain = 739
	// unpaced is in every kernel.
	unpaced = "reno"
)

// Estimate sees to it that a large flow on a connection that has carried messages
// begins as it would on a new one, where the connection goes by BBR. When BBR has
// forgotten the most that it has seen, it takes what comes next for the path's
// bandwidth, unless the program had no more to send. While it makes up for a loss it
// does not notice that (net/ipv4/tcp_rate.c, tcp_rate_check_app_limited: its own window
// is the limit then), and so believes that the path carries what messages need; from
// there it finds a quarter more in each eight round trips.
//
// It is no part of a connection's value: another process looks anew.
type Estimate struct {
	looked bool
	name   string    // of the algorithm, if it is BBR
	busyAt time.Time // when a large flow sent last
}

// Busy is called when a large flow is about to send. It asks the kernel when there was
// none for a while.
func (e *Estimate) Busy(fd int, now time.Time, rtt time.Duration) {
	rest := now.Sub(e.busyAt)
	if e.busyAt = now; !e.looked {
		e.look(fd)
	}
	if e.name == "" || rest < max(leastRest, restTrips*rtt) {
		return
	}
	if info, err := unix.GetsockoptTCPCCBBRInfo(fd, unix.IPPROTO_TCP, unix.TCP_CC_INFO); err == nil && !begins(info) {
		e.restart(fd)
	}
}

// begins says that BBR still looks for what the path carries; it has no gain before the
// first acknowledgement.
func begins(info *unix.TCPBBRInfo) bool {
	return info.Pacing_gain == 0 || info.Pacing_gain == startupGain
}

func (e *Estimate) look(fd int) {
	e.looked = true
	if name, err := unix.GetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION); err == nil && strings.HasPrefix(name, "bbr") {
		e.name = name
	}
}

// restart makes BBR begin anew: nothing else does, but that another algorithm was
// there before (net/ipv4/tcp_cong.c, tcp_set_congestion_control). The congestion
// window stays.
func (e *Estimate) restart(fd int) {
	if unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, unpaced) == nil {
		_ = unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, e.name) // it was there
	}
}
