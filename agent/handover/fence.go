package handover

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/internal/admin/rootsocket"
)

// A successor that its donor gives up may not know it yet. Before the donor does
// anything with what both have, it closes the conversation, which the successor
// looks at before what it does, and then sees to it that the successor's process
// has ended: by itself, as long as it is told to; then by SIGKILL.
const (
	// leaveWithin is how long it may take to end by itself while the donor still
	// serves everything, leaveAtOnce when nobody accepts meanwhile.
	leaveWithin = 2 * time.Second
	leaveAtOnce = 100 * time.Millisecond
	// killedWithin is how long a process may take to end that was killed.
	killedWithin = 5 * time.Second
)

// watchPeer opens the successor's process, if it is one of its own that this one
// can see and end: its hello says so. 0 is returned for any other.
func (s *session) watchPeer() {
	pid, err := rootsocket.Peer(s.conn)
	if err != nil || pid <= 0 || pid == os.Getpid() || !s.hello.Mortal {
		return
	}
	// The conversation is open, so that the process is the one that said hello.
	if s.process, err = unix.PidfdOpen(pid, 0); err != nil {
		s.process = -1
		s.cfg.Log.Warn("the successor could not be ended if it had to be", "successor", pid, "error", err)
	}
}

// fence ends the successor for good.
func (s *session) fence() {
	_ = s.conn.Close() // it was said, or cannot be said any more
	if s.process < 0 || s.resigned {
		return
	}
	within := leaveWithin
	if s.moving {
		within = leaveAtOnce
	}
	if ended(s.process, within) {
		return
	}
	s.cfg.Log.Warn("the successor does not end by itself: it is killed", "successor", s.hello.Self.PID)
	if err := unix.PidfdSendSignal(s.process, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		s.cfg.Log.Error("the successor cannot be ended: end it, it must not go on", "successor", s.hello.Self.PID, "error", err)
		return
	}
	if !ended(s.process, killedWithin) {
		s.cfg.Log.Error("the successor was killed and has not ended", "successor", s.hello.Self.PID)
	}
}

// ended waits for the end of a process, for so long.
func ended(process int, within time.Duration) bool {
	for limit := time.Now().Add(within); ; {
		watched := []unix.PollFd{{Fd: int32(process), Events: unix.POLLIN}}
		n, err := unix.Poll(watched, int(max(time.Until(limit), 0).Milliseconds()))
		if !errors.Is(err, unix.EINTR) {
			return err == nil && n == 1
		}
	}
}

// Watch tells of the end of the conversation by a donor that lives, until stop is
// called, which waits for it: from lost's closing on this agent must do nothing.
// It is for the time between Estate and Ready, while nothing is received.
func (s *Successor) Watch() (lost <-chan struct{}, stop func()) {
	over, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		if s.hungUp() && !s.donorDied() {
			close(over)
		}
	}()
	return over, func() {
		_ = s.channel.conn.SetReadDeadline(time.Unix(1, 0)) // fails only when closed, which ends it, too
		<-ended
	}
}

// hungUp waits for the end of what the donor says, or for something that it says,
// which it leaves in the socket.
func (s *Successor) hungUp() (hung bool) {
	raw, err := s.channel.conn.SyscallConn()
	if err != nil {
		return false
	}
	_ = s.channel.conn.SetReadDeadline(time.Time{}) // fails only when closed
	err = raw.Read(func(fd uintptr) bool {
		n, _, err := unix.Recvfrom(int(fd), make([]byte, 1), unix.MSG_PEEK|unix.MSG_DONTWAIT)
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
			return false
		}
		hung = err != nil || n == 0
		return true
	})
	return err == nil && hung
}

// deed is the file in a message that makes its owner the node's agent; nil when
// there is none. Others that came are not for this version.
func (m *message) deed() *os.File {
	if len(m.files) == 0 {
		return nil
	}
	f := os.NewFile(uintptr(m.files[0]), fmt.Sprintf("deed from message %d", m.kind))
	m.files = m.files[1:]
	return f
}
